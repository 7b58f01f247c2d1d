"""The frame allocator against a list of what is handed out.

Whatever the order of calls: frames are conserved, no two extents overlap, each is aligned to its size and
zero, a frame somebody else holds isn't reused, and no TLB remembers a free one (`audit` in the harness).
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.core_harness import load_library

MIB, RESERVED, MAX_PAGES = 8, 256, 1000
FRAMES = MIB * 256
LIB: Any = None


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory) -> None:
    global LIB
    LIB = load_library(tmp_path_factory.mktemp("allocator"))


class Allocator(RuleBasedStateMachine):
    loose = Bundle("loose")  # extents that the hypervisor took for itself
    owned = Bundle("owned")  # frames of the domain
    held = Bundle("held")  # references from outside

    def __init__(self) -> None:
        super().__init__()
        self.hv = LIB.machine_new(MIB)
        self.domain = LIB.domain_new(self.hv, 1, 0, MAX_PAGES, 1)
        self.used: set[int] = set()
        self.alive: set[int] = set()  # the domain's, not yet released
        self.holds: dict[int, int] = {}
        self.zombies: set[int] = set()  # released, but held

    def teardown(self) -> None:
        for mfn, n in self.holds.items():
            for _ in range(n):
                LIB.drive_unhold(self.domain, mfn)
        LIB.drive_relinquish(self.domain)
        assert LIB.drive_tot_pages(self.domain) == 0
        LIB.domain_free(self.domain)
        LIB.machine_free(self.hv)

    def _take(self, mfn: int, order: int) -> None:
        extent = set(range(mfn, mfn + (1 << order)))
        assert mfn % (1 << order) == 0
        assert mfn >= RESERVED
        assert mfn + (1 << order) <= FRAMES
        assert not extent & self.used
        assert LIB.drive_is_zero(self.hv, mfn, order)
        LIB.drive_fill(self.hv, mfn, order)
        self.used |= extent

    @rule(target=loose, order=st.integers(0, 11))
    def alloc(self, order: int) -> tuple[int, int]:
        mfn = LIB.drive_alloc_heap(self.hv, order)
        if mfn:
            self._take(mfn, order)
        else:
            assert order or len(self.used) == FRAMES - RESERVED
        return mfn, order

    @rule(extent=consumes(loose))
    def free(self, extent: tuple[int, int]) -> None:
        mfn, order = extent
        if mfn:
            LIB.drive_free_heap(self.hv, mfn, order)
            self.used -= set(range(mfn, mfn + (1 << order)))

    @rule(target=owned, order=st.integers(0, 9))
    def populate(self, order: int) -> int:
        mfn: int = LIB.drive_alloc_domheap(self.domain, order)
        if mfn:
            self._take(mfn, order)
            self.alive |= set(range(mfn, mfn + (1 << order)))
        else:
            room = MAX_PAGES - len(self.alive | self.zombies)
            assert order or not room or len(self.used) == FRAMES - RESERVED
        return mfn

    @rule(mfn=owned, offset=st.integers(0, 511), order=st.integers(0, 9), touched=st.booleans())
    def release(self, mfn: int, offset: int, order: int, touched: bool) -> None:
        first = mfn + offset
        extent = set(range(first, first + (1 << order)))
        if not extent <= self.alive:
            return
        if touched:
            LIB.drive_touch(self.domain, first)
        assert LIB.drive_release(self.domain, first, order) == 1
        self.alive -= extent
        self.zombies |= extent & self.holds.keys()
        self.used -= extent - self.holds.keys()

    @rule(target=held, mfn=owned, offset=st.integers(0, 511))
    def hold(self, mfn: int, offset: int) -> int:
        frame = mfn + offset if mfn + offset < FRAMES else mfn
        got = LIB.drive_hold(self.domain, frame)
        assert got == (frame in self.alive | self.zombies)
        if got:
            self.holds[frame] = self.holds.get(frame, 0) + 1
        return frame if got else 0

    @rule(mfn=consumes(held))
    def unhold(self, mfn: int) -> None:
        if not mfn:
            return
        LIB.drive_unhold(self.domain, mfn)
        self.holds[mfn] -= 1
        if not self.holds[mfn]:
            del self.holds[mfn]
            if mfn in self.zombies:
                self.zombies.remove(mfn)
                self.used.remove(mfn)

    @invariant()
    def conserved(self) -> None:
        assert LIB.drive_free_frames(self.hv) == FRAMES - RESERVED - len(self.used)
        assert LIB.drive_tot_pages(self.domain) == len(self.alive | self.zombies)
        assert LIB.audit(self.hv) == 0


TestAllocator = Allocator.TestCase
