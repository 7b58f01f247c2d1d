"""Page types against an obvious model: dictionaries for tables, recursion, a copy to go back to.

A frame is never writable and a page table at once, every operation succeeds or is refused as the model says,
counts agree after each step (the model's, and the harness's own count over all tables) and return to zero.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.core_harness import L1, L4, PTE_PRESENT, PTE_PSE, PTE_RW, PTE_USER, WRITABLE, load_library

NR_FRAMES = 14
SLOTS = [0, 1, 255, 300, 511]
XEN_SLOT = 260
LIB: Any = None


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory) -> None:
    global LIB
    LIB = load_library(tmp_path_factory.mktemp("types"))


class Refused(Exception):
    """The hypervisor says no."""


@dataclass
class Frame:
    words: dict[int, int] = field(default_factory=dict)
    type: int = 0
    types: int = 0
    count: int = 1
    allocated: bool = True
    pinned: bool = False


class Model:
    """Frames by mfn. An operation that raises Refused leaves the caller to restore a copy."""

    def __init__(self) -> None:
        self.frames: dict[int, Frame] = {}
        self.roots: list[int] = [0, 0]

    def get(self, mfn: int) -> Frame:
        if mfn not in self.frames:
            raise Refused
        self.frames[mfn].count += 1
        return self.frames[mfn]

    def put(self, mfn: int) -> None:
        self.frames[mfn].count -= 1
        if not self.frames[mfn].count:
            del self.frames[mfn]

    def get_type(self, mfn: int, kind: int) -> None:
        frame = self.frames[mfn]
        if frame.types and frame.type != kind:
            raise Refused
        frame.types += 1
        frame.type = kind
        if frame.types == 1 and kind <= L4:
            for slot, word in sorted(frame.words.items()):
                if kind == L4 and slot == XEN_SLOT:
                    frame.words[slot] = 0
                elif word & PTE_PRESENT:
                    self.get_entry(word, kind)
                    frame.words[slot] = word | PTE_USER

    def put_type(self, mfn: int) -> None:
        frame = self.frames[mfn]
        frame.types -= 1
        if not frame.types:
            kind, frame.type = frame.type, 0
            for word in list(frame.words.values()) if kind <= L4 else []:
                if word & PTE_PRESENT:
                    self.put_entry(word, kind)

    def get_entry(self, word: int, level: int) -> None:
        mfn = word >> 12
        if word & PTE_PSE:
            raise Refused
        self.get(mfn)
        if level > L1:
            self.get_type(mfn, level - 1)
        elif word & PTE_RW:
            self.get_type(mfn, WRITABLE)

    def put_entry(self, word: int, level: int) -> None:
        mfn = word >> 12
        if level > L1 or word & PTE_RW:
            self.put_type(mfn)
        self.put(mfn)

    def write(self, mfn: int, slot: int, word: int) -> None:
        frame = self.get(mfn)
        if frame.types and frame.type <= L4:
            if frame.type == L4 and slot == XEN_SLOT:
                raise Refused
            if word & PTE_PRESENT:
                word |= PTE_USER
                self.get_entry(word, frame.type)
            old = frame.words.get(slot, 0)
            frame.words[slot] = word
            if old & PTE_PRESENT:
                self.put_entry(old, frame.type)
        else:
            frame.words[slot] = word
        self.put(mfn)

    def pin(self, mfn: int, level: int) -> None:
        self.get(mfn)
        self.get_type(mfn, level)
        if self.frames[mfn].pinned:
            raise Refused
        self.frames[mfn].pinned = True

    def unpin(self, mfn: int) -> None:
        if mfn not in self.frames or not self.frames[mfn].pinned:
            raise Refused
        self.frames[mfn].pinned = False
        self.put_type(mfn)
        self.put(mfn)

    def set_root(self, which: int, mfn: int) -> None:
        old = self.roots[which]
        if mfn == old:
            return
        if mfn or not which:
            self.get(mfn)
            self.get_type(mfn, L4)
        self.roots[which] = mfn
        if old:
            self.put_type(old)
            self.put(old)

    def release(self, mfn: int) -> None:
        if mfn not in self.frames:
            raise Refused
        if self.frames[mfn].allocated:
            self.frames[mfn].allocated = False
            self.put(mfn)


frames = st.integers(0, NR_FRAMES - 1)
flags = st.sampled_from(
    [0, PTE_RW, PTE_PRESENT, PTE_PRESENT | PTE_RW, PTE_PRESENT | PTE_RW | PTE_USER, PTE_PRESENT | PTE_PSE]
)
weighted_flags = st.one_of(st.just(PTE_PRESENT | PTE_RW), st.just(PTE_PRESENT), flags)


class PageTypes(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.hv = LIB.machine_new(2)
        self.domain = LIB.domain_new(self.hv, 1, 0, NR_FRAMES, 1)
        self.model = Model()
        self.mfns = [int(LIB.drive_alloc_domheap(self.domain, 0)) for _ in range(NR_FRAMES)]
        assert all(self.mfns)
        for mfn in self.mfns:
            self.model.frames[mfn] = Frame()

    def teardown(self) -> None:
        if not hasattr(self, "hv"):
            return
        LIB.drive_relinquish(self.domain)
        assert LIB.audit(self.hv) == 0
        assert LIB.drive_tot_pages(self.domain) == 0
        LIB.domain_free(self.domain)
        assert LIB.drive_free_frames(self.hv) == 256
        LIB.machine_free(self.hv)

    def both(self, ours: Any, operation: str, *arguments: int) -> None:
        """The model does it and agrees with what the core answered."""
        before = copy.deepcopy(self.model)
        try:
            getattr(self.model, operation)(*arguments)
            assert ours >= 0, f"{operation}{arguments}: {ours}, the model allows it"
        except Refused:
            # A refused validation has still marked the entries it saw as the user's, and so does the model.
            words = {
                mfn: dict(frame.words) for mfn, frame in self.model.frames.items() if mfn in before.frames
            }
            self.model = before
            for mfn, seen in words.items():
                if not self.model.frames[mfn].types:
                    self.model.frames[mfn].words = seen
            assert ours < 0, f"{operation}{arguments}: {ours}, the model refuses it"

    @rule(
        table=frames,
        slot=st.sampled_from([*SLOTS, XEN_SLOT]),
        to=frames,
        flags=weighted_flags,
        ad=st.booleans(),
    )
    def write(self, table: int, slot: int, to: int, flags: int, ad: bool) -> None:
        mfn, word = self.mfns[table], self.mfns[to] << 12 | flags
        self.both(LIB.drive_write(self.domain, mfn, slot, word, ad), "write", mfn, slot, word)

    @rule(table=frames, level=st.integers(1, 4))
    def pin(self, table: int, level: int) -> None:
        mfn = self.mfns[table]
        self.both(LIB.drive_pin(self.domain, level, mfn), "pin", mfn, level)

    @rule(table=frames)
    def unpin(self, table: int) -> None:
        mfn = self.mfns[table]
        self.both(LIB.drive_unpin(self.domain, mfn), "unpin", mfn)

    @rule(table=frames, user=st.booleans())
    def load(self, table: int, user: bool) -> None:
        mfn = self.mfns[table]
        self.both(LIB.drive_baseptr(self.domain, mfn, user), "set_root", int(user), mfn)

    @rule()
    def unload_user(self) -> None:
        self.both(LIB.drive_baseptr(self.domain, 0, True), "set_root", 1, 0)

    @rule(
        chain=st.permutations(range(NR_FRAMES)),
        slots=st.lists(st.sampled_from(SLOTS), min_size=4, max_size=4),
        rw=st.booleans(),
    )
    def build_space(self, chain: list[int], slots: list[int], rw: bool) -> None:
        """What is unlikely by single writes: a whole space, loaded."""
        tables = [self.mfns[i] for i in chain[:5]]
        for above, below, slot in zip(tables, tables[1:], slots):
            word = below << 12 | PTE_PRESENT | (PTE_RW if rw else 0)
            self.both(LIB.drive_write(self.domain, above, slot, word, False), "write", above, slot, word)
        self.both(LIB.drive_baseptr(self.domain, tables[0], False), "set_root", 0, tables[0])

    @rule(frame=frames)
    def release_and_populate(self, frame: int) -> None:
        mfn = self.mfns[frame]
        LIB.drive_touch(self.domain, mfn) if not self._is_table(mfn) else None
        done = LIB.drive_release(self.domain, mfn, 0)
        self.both(done - 1, "release", mfn)
        if mfn in self.model.frames:
            return
        self.mfns[frame] = int(LIB.drive_alloc_domheap(self.domain, 0))
        assert self.mfns[frame]
        self.model.frames[self.mfns[frame]] = Frame()

    @rule(frame=frames)
    def touch(self, frame: int) -> None:
        if not self._is_table(self.mfns[frame]):
            LIB.drive_touch(self.domain, self.mfns[frame])

    def _is_table(self, mfn: int) -> bool:
        frame = self.model.frames.get(mfn)
        return frame is None or bool(frame.types and frame.type <= L4)

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "hv"):
            return
        assert LIB.audit(self.hv) == 0
        assert LIB.drive_tot_pages(self.domain) == len(self.model.frames)
        for mfn, frame in self.model.frames.items():
            found = (
                LIB.drive_type(self.hv, mfn),
                LIB.drive_type_count(self.hv, mfn),
                LIB.drive_count(self.hv, mfn),
            )
            assert found == (frame.type, frame.types, frame.count)
            for slot in [*SLOTS, XEN_SLOT]:
                assert LIB.drive_read(self.hv, mfn, slot) == frame.words.get(slot, 0)


TestPageTypes = PageTypes.TestCase
