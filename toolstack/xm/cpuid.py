"""`cpuid` and `cpuid_check` of a configuration file, in libxl's or xend's syntax: see dom0.libxc.cpuid."""

from __future__ import annotations

from dom0.libxc.cpuid import parse


def rules(entries: list[str]) -> list[str]:
    """Each rule as a string of xend's syntax. Raises: ValueError with the reason."""
    return [rule.text for entry in entries if entry for rule in parse(entry)]
