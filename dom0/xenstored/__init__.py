"""xenstored: the store every half of a PV driver meets in. See dom0/xenstored/README.md."""
