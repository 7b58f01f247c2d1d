"""PV guests: the plan as a property, and whole builds, read back through the guest's own page tables."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from dom0.libxc import pv
from dom0.libxc.control import XenControl
from dom0.libxc.frames import FrameMap, assign_frames
from dom0.libxc.images import ElfImage, ImageError, ImageFile, KernelCache, PvKernel
from dom0.libxc.images.elf import Segment
from dom0.libxc.pv_layout import PAGE, PTE_PRESENT, PTE_RW, Layout, Mapping, plan, table_contents
from hyper.guest import abi
from hyper.public.errors import OutOfFrames
from hyper.public.types import DomId
from tests.conftest import open_fds
from tests.kernel_files import INIT_P2M, LINUX_BASE, Load, bzimage, elf, linux_notes, small_notes
from tests.paper_xen import PaperDomain, PaperXen

MIB = 1 << 20
ADDRESS = 0x000F_FFFF_FFFF_F000

# --- the plan


class NamedOnly(ImageFile):
    """An image file that is only mentioned."""

    def __init__(self) -> None:
        self.name, self.fd, self.size = "vmlinuz", -1, 0


def kernel_at(
    pstart: int,
    nbytes: int,
    *,
    virt_base: int = LINUX_BASE,
    init_p2m: int | None = INIT_P2M,
    as_pfn: bool = True,
) -> PvKernel:
    image = ElfImage(NamedOnly(), virt_base + pstart, (Segment(pstart, 0, nbytes, nbytes),), {})
    return PvKernel(
        image, virt_base, 0, pstart, pstart + nbytes, virt_base + pstart, None, init_p2m, as_pfn, "linux", ""
    )  # fmt: skip


@st.composite
def kernels(draw: st.DrawFn) -> PvKernel:
    virt_base = draw(
        st.sampled_from([0, 0x200000, 1 << 39, LINUX_BASE, LINUX_BASE + 0x123000, -(64 * MIB) + (1 << 64)])
    )
    near = [virt_base - distance for distance in (PAGE, 64 * PAGE, 4 * MIB, 1 << 30, 1 << 40)]
    p2m_bases = [base for base in (INIT_P2M, *near) if 0 <= base < virt_base]
    return kernel_at(
        draw(st.integers(0, 3 * MIB)),
        draw(st.integers(1, 12 * MIB)),
        virt_base=virt_base,
        init_p2m=draw(st.sampled_from([None, *p2m_bases])),
        as_pfn=draw(st.booleans()),
    )


@dataclass
class Walker:
    """Translates through the planned tables, as a CPU would."""

    layout: Layout
    pages: dict[int, Any]
    """gfn -> 512 entries."""
    root: int

    @classmethod
    def of(cls, layout: Layout, frames: FrameMap) -> Walker:
        pages = {}
        for pfn, entries in table_contents(layout, frames):
            for index in range(len(entries) // 512):
                pages[frames.gfn(pfn + index)] = entries[512 * index : 512 * (index + 1)]
        return cls(layout, pages, frames.gfn(layout.page_tables.pfn))

    def entry(self, vaddr: int) -> int:
        gfn = self.root
        for level in (4, 3, 2, 1):
            entry: int = self.pages[gfn][vaddr >> 3 + 9 * level & 511]
            if not entry & PTE_PRESENT:
                return 0
            gfn = (entry & ADDRESS) >> 12
        return entry

    def levels(self) -> Iterator[tuple[int, int]]:
        """(level, gfn) of each table that can be reached, once per way to it."""
        rows = [(4, self.root)]
        while rows:
            level, gfn = rows.pop()
            yield level, gfn
            if level > 1:
                rows += [
                    (level - 1, (entry & ADDRESS) >> 12) for entry in self.pages[gfn] if entry & PTE_PRESENT
                ]


@given(kernels(), st.integers(-5, 3000), st.integers(0, 9 * MIB), st.booleans(), st.integers(1, 600))
def test_plan(kernel: PvKernel, spare_pages: int, ramdisk_bytes: int, narrow: bool, first_gfn: int) -> None:
    """Parts never overlap, each virtual address leads to its page, and no page table is writable."""
    nr_pages = max((kernel.pend + ramdisk_bytes) // PAGE + spare_pages, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dom0.libxc.pv_layout.MAX_MAPPED_WITH_RAMDISK", 8 * MIB if narrow else 512 * MIB)
        try:
            layout = plan(kernel, nr_pages, ramdisk_bytes)
        except ImageError as refused:
            event(str(refused)[:45])
            return
    event(f"planned, ramdisk {'mapped' if layout.ramdisk_mapped else layout.ramdisk and 'not mapped'}")
    check_regions(kernel, layout, ramdisk_bytes)
    frames = assign_frames([(first_gfn, nr_pages)])
    walker = Walker.of(layout, frames)
    for mapping in layout.mappings:
        check_mapping(walker, mapping, frames.p2m())
    check_tables(walker, layout, frames)


def check_regions(kernel: PvKernel, layout: Layout, ramdisk_bytes: int) -> None:
    end = 0
    for name, region in layout.regions:
        assert region.pages > 0 or name == "p2m tables"  # all shared with the initial mapping
        assert region.pfn >= end
        end = region.end
    assert end <= layout.nr_pages
    assert layout.kernel.paddr <= kernel.pstart
    assert kernel.pend <= layout.kernel.end * PAGE
    assert layout.p2m.pages * PAGE >= layout.nr_pages * 8
    assert (layout.ramdisk.pages if layout.ramdisk else 0) == -(-ramdisk_bytes // PAGE)
    mapped = layout.mappings[0]
    assert (mapped.vaddr, mapped.pfn) == (kernel.virt_base, 0)
    room = (mapped.pages - layout.boot_stack - 1) * PAGE
    assert room >= 512 << 10 or mapped.pages == layout.nr_pages
    assert mapped.end % (4 * MIB) == 0 or mapped.pages == layout.nr_pages
    for name, region in layout.regions:
        if name == "ramdisk" and not layout.ramdisk_mapped:
            assert kernel.mod_start_pfn
        elif not (layout.p2m_tables and name.startswith("p2m")):
            assert region.end <= mapped.pages


def check_mapping(walker: Walker, mapping: Mapping, p2m: Any) -> None:
    for page in range(mapping.pages):
        entry = walker.entry(mapping.vaddr + page * PAGE)
        assert entry & PTE_PRESENT
        assert (entry & ADDRESS) >> 12 == p2m[mapping.pfn + page]
    inside = [range(m.vaddr, m.end) for m in walker.layout.mappings]
    for vaddr in (mapping.vaddr - PAGE, mapping.end):
        if 0 <= vaddr < 1 << 64 and not any(vaddr in span for span in inside):
            assert not walker.entry(vaddr)


def check_tables(walker: Walker, layout: Layout, frames: FrameMap) -> None:
    tables = {frames.gfn(table.pfn): table.level for table in layout.tables}
    assert len(tables) == len(layout.tables) == len(walker.pages)
    assert sorted(walker.levels()) == sorted((level, gfn) for gfn, level in tables.items())
    for gfn, level in tables.items():
        for entry in walker.pages[gfn]:
            if entry & PTE_PRESENT and level == 1 and (entry & ADDRESS) >> 12 in tables:
                assert not entry & PTE_RW


def test_the_order_is_xens() -> None:
    layout = plan(kernel_at(16 * MIB, 30 * MIB), 256 * MIB // PAGE, 5 * MIB)
    assert [name for name, _ in layout.regions] == [
        "kernel", "ramdisk", "start_info", "xenstore", "console", "page tables", "boot stack",
        "p2m", "p2m tables",
    ]  # fmt: skip
    pfn = 16 * MIB // PAGE
    for _, region in layout.regions:
        assert region.pfn == pfn
        pfn = region.end
    layout = plan(kernel_at(MIB, MIB, virt_base=0, init_p2m=None, as_pfn=False), 64 * MIB // PAGE, 5 * MIB)
    assert [name for name, _ in layout.regions] == [
        "kernel", "ramdisk", "p2m", "start_info", "xenstore", "console", "page tables", "boot stack",
    ]  # fmt: skip


def test_a_large_ramdisk_is_not_mapped() -> None:
    layout = plan(kernel_at(16 * MIB, 30 * MIB), 2048 * MIB // PAGE, 500 * MIB)
    assert not layout.ramdisk_mapped
    assert layout.ramdisk and layout.ramdisk.pfn == layout.boot_stack + 1
    assert layout.mappings[0].pages * PAGE < 64 * MIB


XEN_START = 0xFFFF800000000000
NO_MEMORY = "does not fit in memory: "
NO_ROOM = "vmlinuz: does not fit in its address space: it would be mapped at "


@pytest.mark.parametrize(
    ("kernel", "ramdisk", "message"),
    [
        (kernel_at(16 * MIB, 60 * MIB), 0, f"vmlinuz: {NO_MEMORY}it needs 76 MiB, the guest has 64 MiB"),
        (
            kernel_at(16 * MIB, 47 * MIB), 30 * MIB,
            f"initrd: {NO_MEMORY}its 30 MiB and the kernel need 93 MiB, the guest has 64 MiB",
        ),
        (kernel_at(0, 1 << 62), 0, f"vmlinuz: {NO_MEMORY}it needs 4398046511104 MiB, the guest has 64 MiB"),
        (kernel_at(0, MIB, virt_base=(1 << 64) - MIB - PAGE), 0, NO_ROOM),
        (kernel_at(0, MIB, virt_base=1 << 47), 0, NO_ROOM),
        (kernel_at(0, MIB, virt_base=XEN_START), 0, NO_ROOM),
        (kernel_at(0, MIB, init_p2m=XEN_START), 0, NO_ROOM),
        (kernel_at(0, MIB, init_p2m=LINUX_BASE - PAGE), 0, "so close below the kernel that both overlap"),
    ],
)  # fmt: skip
def test_what_does_not_fit(kernel: PvKernel, ramdisk: int, message: str) -> None:
    with pytest.raises(ImageError) as refused:
        plan(kernel, 64 * MIB // PAGE, ramdisk, "initrd")
    assert message in str(refused.value)


# --- whole builds

TEXT = random.Random(1).randbytes(3 * PAGE + 17)
DATA = random.Random(2).randbytes(700_000)
RAMDISK = random.Random(3).randbytes(1_234_567)
LINUX = elf([Load(MIB, TEXT), Load(3 * MIB + 256, DATA, MIB)], linux_notes(LINUX_BASE + MIB))
SMALL = elf([Load(MIB, TEXT + bytes(PAGE), 5 * PAGE)], small_notes(hypercall_page=MIB + 4 * PAGE), entry=MIB)


@dataclass
class Built:
    """A built guest, seen from inside."""

    xen: PaperXen
    domain: PaperDomain
    image: pv.PvImage
    context: Any
    info: Any

    @property
    def root(self) -> int:
        number: int = self.context.ctrlreg[3] >> 12
        return number

    def read(self, vaddr: int, nbytes: int) -> bytes:
        return self.xen.read(self.root, vaddr, nbytes)

    def p2m(self) -> list[int]:
        return list(memoryview(self.read(self.info.mfn_list, 8 * self.info.nr_pages)).cast("Q"))


class Bench:
    """Files and a hypervisor to build with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.xen = PaperXen(nr_extents=32, nr_frames=600)
        self.xc = XenControl(self.xen.hypervisor)
        self.cache = KernelCache(folder / "cache")

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    async def build(
        self, kernel: bytes, memory_mib: float, ramdisk: bytes | Path = b"", **more: Any
    ) -> Built:
        domid = await self.xc.domain_create(UUID(int=7), max_vcpus=1)
        await self.xc.max_vcpus(domid, 1)
        memory_kib = int(memory_mib * 1024)
        await self.xc.max_mem(domid, max(memory_kib, more.get("maxmem_kib", 0)))
        if isinstance(ramdisk, bytes):
            ramdisk = self.file("initrd", ramdisk) if ramdisk else Path()
        spec = pv.PvSpec(
            domid, self.file("vmlinuz", kernel), memory_kib, ramdisk=ramdisk if ramdisk.name else None, **more
        )
        image = await pv.build(self.xc, spec, self.cache)
        domain = self.xen.domains[domid]
        context = abi.struct("struct vcpu_guest_context", bytearray(domain.contexts[0]))
        root = context.ctrlreg[3] >> 12
        info = self.xen.read(root, context.user_regs.rsi, abi.sizeof("struct start_info"))
        return Built(self.xen, domain, image, context, abi.struct("struct start_info", bytearray(info)))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    free = bench.xen.arena.free_bytes
    yield bench
    assert bench.xen.arena.free_bytes == free
    assert not [target for target in open_fds().values() if target.startswith(str(tmp_path))]
    bench.xen.arena.close()


def check_guest(guest: Built, nr_pages: int) -> None:
    """What holds for every PV guest that is ready to run."""
    info, registers, domain = guest.info, guest.context.user_regs, guest.domain
    assert bytes(abi.ffi.buffer(info.magic)) == b"xen-3.0-x86_64".ljust(32, b"\0")
    assert info.nr_pages == guest.image.nr_pages == nr_pages
    p2m = guest.p2m()
    assert sorted(p2m) == sorted(domain.gfns)
    assert domain.m2p == {gfn: pfn for pfn, gfn in enumerate(p2m)}
    assert p2m != sorted(p2m)
    assert info.shared_info == domain.shared_info << 12
    assert (info.store_mfn, info.store_evtchn) == (guest.image.store_mfn, guest.image.store_port)
    assert (info.console.domU.mfn, info.console.domU.evtchn) == (
        guest.image.console_mfn,
        guest.image.console_port,
    )
    assert (guest.image.store_port, guest.image.console_port, domain.ports) == (1, 2, [0, 0])
    for gfn in (info.store_mfn, info.console.domU.mfn):
        assert bytes(guest.xen.frame(gfn)) == bytes(PAGE)
    assert guest.xen.translate(guest.root, info.pt_base) == guest.root
    grants = struct.unpack("<HHIHHI", guest.xen.frame(domain.grant_table)[:16])
    assert grants == (1, 0, info.console.domU.mfn, 1, 0, info.store_mfn)
    assert (registers.cs, registers.ss, registers.ds, registers.rflags) == (0xE033, 0xE02B, 0, 0x200)
    assert (guest.context.kernel_ss, guest.context.kernel_sp) == (registers.ss, registers.rsp)
    assert guest.context.flags == abi.lib.VGCF_in_kernel | abi.lib.VGCF_online
    assert registers.rsp % PAGE == 0
    assert guest.read(registers.rsp - PAGE, PAGE) == bytes(PAGE)
    assert guest.read(registers.rsp, 512 << 10) is not None  # mapped
    assert domain.pause_count == 1


async def test_linux_with_a_ramdisk(bench: Bench) -> None:
    guest = await bench.build(
        bzimage(LINUX, "zstd"), 24, RAMDISK, cmdline="console=hvc0 é", maxmem_kib=48 << 10
    )
    check_guest(guest, 24 * MIB // PAGE)
    info = guest.info
    assert guest.context.user_regs.rip == LINUX_BASE + MIB
    assert guest.read(LINUX_BASE + MIB, len(TEXT)) == TEXT
    assert guest.read(LINUX_BASE + 3 * MIB + 256, MIB) == DATA + bytes(MIB - len(DATA))
    assert info.flags == abi.lib.SIF_MOD_START_PFN
    assert guest.read(LINUX_BASE + info.mod_start * PAGE, info.mod_len) == RAMDISK
    assert info.mfn_list == INIT_P2M
    assert bytes(abi.ffi.buffer(info.cmd_line))[:16] == "console=hvc0 é".encode() + b"\0"
    p2m = guest.p2m()
    assert p2m[info.first_p2m_pfn] == guest.xen.translate(guest.root, INIT_P2M)
    tables = {pfn for pfn, gfn in enumerate(p2m) if gfn in guest.domain.tables}
    first_table = (info.pt_base - LINUX_BASE) // PAGE
    assert tables == {
        *range(first_table, first_table + info.nr_pt_frames),
        *range(info.first_p2m_pfn + 12, info.first_p2m_pfn + info.nr_p2m_frames),
    }
    assert guest.domain.memory_map == struct.pack("<QQI", 0, 48 * MIB, 1)
    assert guest.domain.hypercall_page is None


async def test_small_kernel(bench: Bench) -> None:
    """No VIRT_BASE, no INIT_P2M: everything lies at its pseudo-physical address, the p2m among it."""
    guest = await bench.build(SMALL, 16.5, RAMDISK)
    check_guest(guest, 4224)
    info = guest.info
    assert guest.context.user_regs.rip == MIB
    assert guest.read(MIB, len(TEXT)) == TEXT
    assert guest.domain.hypercall_page == guest.p2m()[MIB // PAGE + 4]
    assert guest.read(MIB + 4 * PAGE, PAGE) == b"\xcc" * PAGE
    assert (info.flags, info.first_p2m_pfn, info.nr_p2m_frames) == (0, 0, 0)
    assert guest.read(info.mod_start, info.mod_len) == RAMDISK
    assert info.mfn_list == -(-(info.mod_start + info.mod_len) // PAGE) * PAGE
    order = [MIB, info.mod_start, info.mfn_list, guest.context.user_regs.rsi, info.pt_base]
    assert order == sorted(order)
    assert guest.domain.memory_map == struct.pack("<QQI", 0, 4224 * PAGE, 1)


async def test_no_ramdisk(bench: Bench) -> None:
    guest = await bench.build(LINUX, 16)
    check_guest(guest, 4096)
    assert (guest.info.flags, guest.info.mod_start, guest.info.mod_len) == (0, 0, 0)


async def test_memory_in_single_frames(bench: Bench) -> None:
    """Once no 2 MiB extent is left."""
    del bench.xen.free_extents[7:]
    guest = await bench.build(LINUX, 16)
    check_guest(guest, 4096)


async def test_order_of_steps(bench: Bench) -> None:
    """The tables are whole before they are pinned, and the vCPU comes last."""
    await bench.build(SMALL, 16)
    steps = [
        step
        for step in bench.xen.log
        if step in ("mmu_update", "hypercall_init", "mmuext_op", "setvcpucontext")
    ]
    assert steps == ["mmu_update", "hypercall_init", "mmuext_op", "setvcpucontext"]


@pytest.mark.parametrize("nbytes", [1023, 1024])
async def test_length_of_the_command_line(bench: Bench, nbytes: int) -> None:
    cmdline = "x" * nbytes
    if nbytes > pv.MAX_CMDLINE:
        with pytest.raises(ImageError, match="has a command line of 1024 bytes; at most 1023 fit"):
            await bench.build(LINUX, 16, cmdline=cmdline)
        return
    guest = await bench.build(LINUX, 16, cmdline=cmdline)
    assert bytes(abi.ffi.buffer(guest.info.cmd_line)) == cmdline.encode() + b"\0"


async def test_refusals_leave_the_domain_alone(bench: Bench) -> None:
    free = len(bench.xen.free_extents)
    for kernel, ramdisk, message in (
        (b"no kernel", b"", "vmlinuz: is not a kernel"),
        (elf(), b"", "vmlinuz: is not a Xen PV kernel: it has no Xen notes"),
        (LINUX[:9000], b"", "vmlinuz: is truncated"),
        (LINUX, bytes(17 * MIB), "initrd: does not fit in memory: its 17 MiB"),
    ):
        with pytest.raises(ImageError, match=message):
            await bench.build(kernel, 16, ramdisk)
    spec = pv.PvSpec(DomId(1), bench.file("vmlinuz", LINUX), 16 << 10, ramdisk=bench.folder / "nothing")
    with pytest.raises(ImageError, match="nothing: cannot be opened"):
        await pv.build(bench.xc, spec, bench.cache)
    assert len(bench.xen.free_extents) == free
    assert "populate_physmap" not in bench.xen.log


async def test_no_memory_left(bench: Bench) -> None:
    del bench.xen.free_extents[4:]
    with pytest.raises(OutOfFrames, match="wanted_pages=4096"):
        await bench.build(LINUX, 16)


async def test_the_second_build_unpacks_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = bzimage(LINUX, "xz")
    await bench.build(packed, 16)
    monkeypatch.setattr("dom0.libxc.images.decompress", None)
    check_guest(await bench.build(packed, 16), 4096)


async def test_a_ramdisk_with_holes(bench: Bench) -> None:
    path = bench.file("initrd", b"start")
    os.truncate(path, 2 * MIB)
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"end", 2 * MIB - 3)
    os.close(fd)
    guest = await bench.build(LINUX, 16, path)
    content = guest.read(LINUX_BASE + guest.info.mod_start * PAGE, guest.info.mod_len)
    assert content == b"start" + bytes(2 * MIB - 8) + b"end"
