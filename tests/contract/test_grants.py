"""Grant tables of the real core: map, unmap, copy. The guest is only memory, the test its kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hyper.guest import abi
from hyper.machine import Machine
from hyper.public.errors import XenError
from tests.core_kit import Process, lib

SELF = lib.DOMID_SELF
READ, WRITE = lib.GTF_reading, lib.GTF_writing
HOST = lib.GNTMAP_host_map
GREF = 9


class Granter:
    """A domain with some frames and its grant table."""

    def __init__(self, dom0: Process) -> None:
        self.dom0 = dom0
        self.domid = dom0.create()
        self.gfns = dom0.populate(self.domid, 4)
        self.table = abi.struct("struct grant_entry_v1", dom0.grant_frame(self.domid))

    def grant(self, gref: int = GREF, *, to: int = 0, frame: int = 0, flags: int = 0) -> None:
        self.table[gref].frame = self.gfns[frame]
        self.table[gref].domid = to
        self.table[gref].flags = lib.GTF_permit_access | flags

    def used(self, gref: int = GREF) -> int:
        """GTF_reading and GTF_writing, as the hypervisor has set them."""
        return self.table[gref].flags & (READ | WRITE)

    def page(self, frame: int = 0) -> memoryview:
        return self.dom0.frame(self.gfns[frame])  # of an ordinary domain a gfn is its mfn today


@pytest.fixture
def guest(dom0: Process) -> Iterator[Granter]:
    granter = Granter(dom0)
    yield granter
    dom0.destroy(granter.domid)


def one(dom0: Process, op: str, ctype: str, **fields: Any) -> Any:
    handle, arg = dom0.new(f"struct {ctype}", **fields)
    dom0.call(abi.nr.grant_table_op, getattr(lib, f"GNTTABOP_{op}"), handle, 1)
    return arg


def map_ref(dom0: Process, domid: int, gref: int = GREF, flags: int = HOST) -> Any:
    return one(dom0, "map_grant_ref", "gnttab_map_grant_ref", dom=domid, ref=gref, flags=flags)


def unmap(dom0: Process, handle: int) -> int:
    return one(dom0, "unmap_grant_ref", "gnttab_unmap_grant_ref", handle=handle).status


def copy(
    dom0: Process,
    source: tuple[int, int],
    dest: tuple[int, int],
    length: int,
    *,
    flags: int,
    offsets: tuple[int, int] = (0, 0),
) -> int:
    """Each side: (domid, gref or gmfn)."""
    handle, op = dom0.new("struct gnttab_copy", len=length, flags=flags)
    for side, (domid, what), is_gref, offset in (
        (op.source, source, flags & lib.GNTCOPY_source_gref, offsets[0]),
        (op.dest, dest, flags & lib.GNTCOPY_dest_gref, offsets[1]),
    ):
        side.domid, side.offset = domid, offset
        if is_gref:
            side.u.ref = what
        else:
            side.u.gmfn = what
    dom0.call(abi.nr.grant_table_op, lib.GNTTABOP_copy, handle, 1)
    return op.status


def test_a_connection_with_many_maps_ends_in_pieces(machine: Machine, guest: Granter) -> None:
    """All of them used to be swept at once, while everybody else waited."""
    process = Process(machine)
    guest.grant()
    for _ in range(1000):
        assert map_ref(process, guest.domid).status == lib.GNTST_okay
    pieces = 1
    while process.connection.end() == -lib.XEN_ERESTART:
        assert guest.used() == READ | WRITE
        pieces += 1
    assert pieces == 4
    assert guest.used() == 0
    process.close()


# --- map


def test_map_marks_the_entry_and_unmap_clears_it(dom0: Process, guest: Granter) -> None:
    guest.grant()
    mapped = map_ref(dom0, guest.domid)
    assert mapped.status == lib.GNTST_okay
    assert mapped.dev_bus_addr == guest.gfns[0] << 12
    assert guest.used() == READ | WRITE
    assert unmap(dom0, mapped.handle) == lib.GNTST_okay
    assert guest.used() == 0
    assert unmap(dom0, mapped.handle) == lib.GNTST_bad_handle


def test_flags_follow_the_strongest_use(dom0: Process, guest: Granter) -> None:
    guest.grant()
    first = map_ref(dom0, guest.domid, flags=HOST | lib.GNTMAP_readonly)
    assert guest.used() == READ
    second = map_ref(dom0, guest.domid)
    assert guest.used() == READ | WRITE
    unmap(dom0, second.handle)
    assert guest.used() == READ
    unmap(dom0, first.handle)
    assert guest.used() == 0


REFUSED_MAPS = [
    # what the entry says, the request, status
    ({"to": 5}, {}, lib.GNTST_general_error),
    ({"flags": lib.GTF_readonly}, {}, lib.GNTST_general_error),
    ({}, {"gref": 5}, lib.GNTST_general_error),  # an empty entry
    ({}, {"gref": 512}, lib.GNTST_bad_gntref),
    ({}, {"gref": 0xFFFFFFFF}, lib.GNTST_bad_gntref),
    ({}, {"flags": 0}, lib.GNTST_bad_gntref),
]


@pytest.mark.parametrize(("entry", "request_", "status"), REFUSED_MAPS)
def test_refused_maps(
    dom0: Process, guest: Granter, entry: dict[str, int], request_: dict[str, int], status: int
) -> None:
    guest.grant(**entry)
    assert map_ref(dom0, guest.domid, **request_).status == status
    assert guest.used() == 0


def test_a_readonly_grant_maps_readonly(dom0: Process, guest: Granter) -> None:
    guest.grant(flags=lib.GTF_readonly)
    mapped = map_ref(dom0, guest.domid, flags=HOST | lib.GNTMAP_readonly)
    assert mapped.status == lib.GNTST_okay
    assert unmap(dom0, mapped.handle) == lib.GNTST_okay


def test_unknown_domains(dom0: Process) -> None:
    assert map_ref(dom0, 999).status == lib.GNTST_bad_domain
    assert map_ref(dom0, lib.DOMID_IO).status == lib.GNTST_bad_domain


def test_a_frame_that_isnt_the_granters(dom0: Process, guest: Granter) -> None:
    guest.grant()
    for frame in (0, 0xFFFFFFFF, guest.gfns[0] + 1000):
        guest.table[GREF].frame = frame
        assert map_ref(dom0, guest.domid).status == lib.GNTST_bad_page
        assert guest.used() == 0


def test_what_is_mapped_stays_mapped(dom0: Process, guest: Granter) -> None:
    """The granter may write to its table what it likes; the mapping keeps its frame, and its user."""
    guest.grant(frame=0)
    first = map_ref(dom0, guest.domid)
    guest.table[GREF].frame = guest.gfns[1]
    second = map_ref(dom0, guest.domid)
    assert second.dev_bus_addr == first.dev_bus_addr
    guest.table[GREF].flags = lib.GTF_invalid
    assert unmap(dom0, first.handle) == lib.GNTST_okay
    assert unmap(dom0, second.handle) == lib.GNTST_okay


def test_a_page_table_is_not_granted_for_writing(dom0: Process, guest: Granter) -> None:
    """A page table can't be mapped writable, and what is mapped writable can't become a page table."""
    op, arg = dom0.new("struct mmuext_op", cmd=lib.MMUEXT_PIN_L1_TABLE)
    arg.arg1.mfn = guest.gfns[0]
    guest.grant()
    mapped = map_ref(dom0, guest.domid)
    with pytest.raises(XenError):
        dom0.call(abi.nr.mmuext_op, op, 1, 0, guest.domid)
    unmap(dom0, mapped.handle)
    dom0.call(abi.nr.mmuext_op, op, 1, 0, guest.domid)
    assert map_ref(dom0, guest.domid).status == lib.GNTST_general_error
    readonly = map_ref(dom0, guest.domid, flags=HOST | lib.GNTMAP_readonly)
    assert readonly.status == lib.GNTST_okay
    unmap(dom0, readonly.handle)


def test_handles_are_lowest_first_and_per_process(dom0: Process, machine: Machine, guest: Granter) -> None:
    guest.grant()
    handles = [map_ref(dom0, guest.domid).handle for _ in range(3)]
    assert handles == [0, 1, 2]
    with Process(machine) as other:
        assert unmap(other, handles[1]) == lib.GNTST_bad_handle
    assert unmap(dom0, handles[1]) == lib.GNTST_okay
    assert map_ref(dom0, guest.domid).handle == handles[1]


def test_a_dead_process_is_swept(dom0: Process, machine: Machine, guest: Granter) -> None:
    guest.grant()
    with Process(machine) as daemon:
        for _ in range(100):
            assert map_ref(daemon, guest.domid).status == lib.GNTST_okay
        assert guest.used() == READ | WRITE
        assert machine.statistics()["nr_grant_maps"] == 100
    assert guest.used() == 0
    assert machine.statistics()["nr_grant_maps"] == 0


def test_a_mapped_frame_outlives_its_domain(dom0: Process, machine: Machine) -> None:
    """It isn't given to anybody else while a process of Dom0 still has it mapped."""
    granter = Granter(dom0)
    granter.grant()
    mapped = map_ref(dom0, granter.domid)
    page = granter.page()
    page[:4] = b"mine"
    dom0.destroy(granter.domid)
    info = dom0.domctl("getdomaininfo", granter.domid)
    assert info.domain == granter.domid
    assert info.u.getdomaininfo.flags & lib.XEN_DOMINF_dying
    assert info.u.getdomaininfo.tot_pages == 1
    assert page[:4] == b"mine"
    assert unmap(dom0, mapped.handle) == lib.GNTST_okay
    with pytest.raises(XenError):
        dom0.domctl("getdomaininfo", granter.domid)


# --- copy


def test_copy_both_ways(dom0: Process, guest: Granter) -> None:
    guest.grant(8, frame=0)
    guest.grant(9, frame=1)
    guest.page(0)[100:105] = b"hello"
    both = lib.GNTCOPY_source_gref | lib.GNTCOPY_dest_gref
    status = copy(dom0, (guest.domid, 8), (guest.domid, 9), 5, flags=both, offsets=(100, 4091))
    assert status == lib.GNTST_okay
    assert guest.page(1)[4091:4096] == b"hello"
    assert guest.used(8) == guest.used(9) == 0


COPY_REFUSALS = [
    # source, dest, length, offsets, flags, status
    ((0, 8), (0, 9), 1, (0, 0), 3, lib.GNTST_okay),
    ((0, 8), (0, 9), 4096, (1, 0), 3, lib.GNTST_bad_copy_arg),
    ((0, 8), (0, 9), 1, (0, 4096), 3, lib.GNTST_bad_copy_arg),
    ((0, 8), (0, 9), 4096, (0, 0), 3, lib.GNTST_okay),
    ((0, 8), (0, 9), 0, (0, 0), 3, lib.GNTST_okay),
    ((0, 900), (0, 9), 1, (0, 0), 3, lib.GNTST_bad_gntref),
    ((0, 5), (0, 9), 1, (0, 0), 3, lib.GNTST_general_error),
    ((0, 8), (0, 10), 1, (0, 0), 3, lib.GNTST_general_error),  # read-only
    ((0, 10), (0, 9), 1, (0, 0), 3, lib.GNTST_okay),
    ((0, 0), (0, 9), 1, (0, 0), 2, lib.GNTST_permission_denied),  # a gmfn of another domain
    ((None, 1 << 50), (0, 9), 1, (0, 0), 2, lib.GNTST_bad_page),
]


@pytest.mark.parametrize(("source", "dest", "length", "offsets", "flags", "status"), COPY_REFUSALS)
def test_copies_are_checked(
    dom0: Process,
    guest: Granter,
    source: tuple[int | None, int],
    dest: tuple[int, int],
    length: int,
    offsets: tuple[int, int],
    flags: int,
    status: int,
) -> None:
    guest.grant(8, frame=0)
    guest.grant(9, frame=1)
    guest.grant(10, frame=2, flags=lib.GTF_readonly)
    from_domain = SELF if source[0] is None else guest.domid
    result = copy(
        dom0, (from_domain, source[1]), (guest.domid, dest[1]), length, flags=flags, offsets=offsets
    )
    assert result == status
    assert guest.used(8) == guest.used(9) == guest.used(10) == 0


def test_a_long_batch_is_continued(dom0: Process, guest: Granter) -> None:
    """One call of the core stops after its time; the answers are those of one long call."""
    guest.grant(8, frame=0)
    guest.grant(9, frame=1)
    count = 4000
    handle, ops = dom0.new("struct gnttab_copy", count)
    for index in range(count):
        op = ops[index]
        op.source.u.ref, op.dest.u.ref = 8, 9
        op.source.domid = op.dest.domid = guest.domid
        op.flags, op.len, op.status = 3, 4096, 99
    pieces = 0
    while (
        ret := dom0.connection.hypercall(abi.nr.grant_table_op, (lib.GNTTABOP_copy, handle, count, 0, 0, 0))
    ) == -lib.XEN_ERESTART:
        pieces += 1
    assert ret == 0
    assert pieces > 1
    assert all(ops[index].status == 0 for index in range(count))


# --- tables


def test_setup_and_query(dom0: Process, guest: Granter) -> None:
    size = one(dom0, "query_size", "gnttab_query_size", dom=guest.domid)
    assert (size.status, size.nr_frames, size.max_nr_frames) == (lib.GNTST_okay, 1, 64)
    frames, view = dom0.buffer(8 * 3)
    table = one(dom0, "setup_table", "gnttab_setup_table", dom=guest.domid, nr_frames=3, frame_list=frames)
    assert table.status == lib.GNTST_okay
    assert len(set(view.cast("Q"))) == 3
    assert one(dom0, "query_size", "gnttab_query_size", dom=guest.domid).nr_frames == 3
    too_many = one(
        dom0, "setup_table", "gnttab_setup_table", dom=guest.domid, nr_frames=65, frame_list=frames
    )
    assert too_many.status == lib.GNTST_general_error
    assert one(dom0, "query_size", "gnttab_query_size", dom=999).status == lib.GNTST_bad_domain


def test_versions(dom0: Process, guest: Granter) -> None:
    assert one(dom0, "get_version", "gnttab_get_version", dom=guest.domid).version == 1
    assert one(dom0, "set_version", "gnttab_set_version", version=1).version == 1
    for version, errno in ((2, lib.XEN_ENOSYS), (3, lib.XEN_EINVAL)):
        with pytest.raises(XenError) as error:
            one(dom0, "set_version", "gnttab_set_version", version=version)
        assert error.value.errno == errno


def test_swap(dom0: Process) -> None:
    frames, view = dom0.buffer(8)
    one(dom0, "setup_table", "gnttab_setup_table", dom=SELF, nr_frames=1, frame_list=frames)
    table = abi.struct("struct grant_entry_v1", dom0.frame(view.cast("Q")[0]))
    table[20].frame, table[21].frame = 1111, 2222
    assert one(dom0, "swap_grant_ref", "gnttab_swap_grant_ref", ref_a=20, ref_b=21).status == 0
    assert (table[20].frame, table[21].frame) == (2222, 1111)
    table[20].frame = table[21].frame = 0
    bad = one(dom0, "swap_grant_ref", "gnttab_swap_grant_ref", ref_a=20, ref_b=100000)
    assert bad.status == lib.GNTST_bad_gntref


def test_unknown_operations(dom0: Process) -> None:
    handle, _ = dom0.buffer(64)
    assert dom0.raw(abi.nr.grant_table_op, 77, handle, 1) == -lib.XEN_ENOSYS
    assert dom0.raw(abi.nr.grant_table_op, lib.GNTTABOP_query_size, handle, 2) == -lib.XEN_EINVAL
    assert dom0.raw(abi.nr.grant_table_op, lib.GNTTABOP_copy, 0, 1) == -lib.XEN_EFAULT
