"""Devices of domains: what they are (vbd, vif, config), and how they come and go (controller)."""
