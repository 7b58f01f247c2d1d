"""A process domain's own grant table: what it lends to others. Entries are written in C (grant_entries.c).

    gref = hyp.grant_table.grant_access(backend_domid, page.mfn)
    ...
    hyp.grant_table.end_access(gref)
"""

from __future__ import annotations

from collections import deque
from typing import Any

from hyper.guest.abi import ffi, lib, sizeof, struct
from hyper.public.errors import NoFreeSlot
from hyper.public.types import GrantRef

RESERVED_GREFS = 8
"""The first ones are the toolstack's: xenstore, console."""
_ENTRY_BYTES = sizeof("struct grant_entry_v1")


class GrantTable:
    """`view` is the whole table, shared with hyper. Nothing here blocks."""

    def __init__(self, view: memoryview) -> None:
        self._table: Any = struct("struct grant_entry_v1", view)
        self.nr_entries = len(view) // _ENTRY_BYTES
        self._free = deque(range(RESERVED_GREFS, self.nr_entries))
        self._granted: set[int] = set()

    @property
    def free(self) -> int:
        """Entries that can be granted."""
        return len(self._free)

    def grant_access(self, domid: int, gfn: int, readonly: bool = False) -> GrantRef:
        """Lends one of our frames to `domid`.

        Raises: NoFreeSlot when the table is full.
        """
        if not self._free:
            raise NoFreeSlot("grant_access", domid=domid, nr_grants=self.nr_entries)
        gref = self._free.popleft()  # the longest unused: a late use of an old one meets no new grant
        self._granted.add(gref)
        lib.grant_entry_set(self._table + gref, domid, gfn, readonly)
        return GrantRef(gref)

    def end_access(self, gref: int) -> bool:
        """Takes the frame back. False: somebody uses it just now; the grant stands, try again later.

        Raises: ValueError for what was not granted.
        """
        if gref not in self._granted:
            raise ValueError(f"gref {gref} is not granted")
        if lib.grant_entry_end(self._table + gref):
            return False
        self._granted.discard(gref)
        self._free.append(gref)
        return True

    def is_used(self, gref: int) -> bool:
        """Whether somebody maps or copies the frame just now."""
        if not 0 <= gref < self.nr_entries:
            raise ValueError(f"gref {gref} of {self.nr_entries}")
        return bool(lib.grant_entry_is_used(self._table + gref))

    @property
    def address(self) -> int:
        """Host address of entry 0, for C code that writes entries of grefs it got here."""
        return int(ffi.cast("uintptr_t", self._table))
