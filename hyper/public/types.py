"""Names of numbers. A bare "frame", "page" or "addr" is a bug waiting: see the house rules on names."""

from __future__ import annotations

from typing import NewType

DomId = NewType("DomId", int)
Mfn = NewType("Mfn", int)
"""Machine frame: byte `mfn << PAGE_SHIFT` of the bank."""
Gfn = NewType("Gfn", int)
"""Guest frame: index into a domain's physmap; what a PV guest calls a machine frame."""
Pfn = NewType("Pfn", int)
"""Pseudo-physical frame: index into a PV guest's own p2m."""
GuestHandle = NewType("GuestHandle", int)
"""Address of an argument as its hypercall sees it; for a process domain a byte offset in its arena. 0 is
NULL.
"""
EvtchnPort = NewType("EvtchnPort", int)
Virq = NewType("Virq", int)
GrantRef = NewType("GrantRef", int)
"""The granter's index into its grant table."""
GrantHandle = NewType("GrantHandle", int)
"""The mapper's index of a mapping."""

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
