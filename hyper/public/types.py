"""Names of numbers. A bare "frame", "page" or "addr" is a bug waiting: see the house rules on names."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class ProcessDomain:
    """What a process domain finds in its bank at its start (struct hv_process). Its gfns are mfns.

    From first_free_mfn to the end of the bank it is RAM that nothing lies in.
    """

    base_mfn: int
    nr_frames: int
    serial: int
    shared_info_mfn: int
    grant_mfn: int
    store_mfn: int
    console_mfn: int
    first_free_mfn: int
    nr_grant_frames: int
    store_port: int
    console_port: int
