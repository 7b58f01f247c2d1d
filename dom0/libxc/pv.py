"""Builds a PV guest: its memory, the kernel in it, and vCPU 0 ready to run. The plan is pv_layout's.

    domid = await xc.domain_create(...)          # the toolstack's part
    await xc.max_vcpus(domid, n)
    await xc.max_mem(domid, maxmem_kib)
    image = await pv.build(xc, PvSpec(domid, kernel, memory_kib), cache)
    # introduce image.store_mfn and image.store_port to xenstored, fill xenstore, unpause

After a failure the domain exists with what it has got so far: the toolstack destroys it.
"""

from __future__ import annotations

import struct
from array import array
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from dom0.libxc.control import XenControl, ram_map
from dom0.libxc.frames import EXTENT_FRAMES, FrameMap, assign_frames
from dom0.libxc.guest_memory import GuestMemory
from dom0.libxc.images import ImageError, ImageFile, KernelCache, PvKernel, open_kernel, pv_kernel
from dom0.libxc.pv_layout import PAGE, PAGE_SHIFT, Layout, plan, table_contents
from hyper.guest import abi
from hyper.public.errors import OutOfFrames
from hyper.public.types import DomId, EvtchnPort, Gfn

MAX_CMDLINE = 1023
"""Bytes of a kernel's command line, without the closing NUL."""

BACKEND_DOMID = DomId(0)
"""Who runs xenstored and xenconsoled."""

_EXTENT_ORDER = EXTENT_FRAMES.bit_length() - 1
_BATCH = 1 << 16
_INTERRUPTS_ENABLED = 1 << 9
_DR6_DEFAULT, _DR7_DEFAULT = 0xFFFF0FF0, 0x400
_GRANT_ENTRY = struct.Struct("<HHI")  # struct grant_entry_v1: flags, domid, frame


@dataclass(frozen=True)
class PvSpec:
    """What to put into domain `domid`, which has its vCPUs and its limit of memory already."""

    domid: DomId
    kernel: Path
    memory_kib: int
    ramdisk: Path | None = None
    cmdline: str = ""
    maxmem_kib: int = 0
    """How far the guest may balloon up; at least memory_kib."""


@dataclass(frozen=True)
class PvImage:
    """What a toolstack must know of the built guest."""

    domid: DomId
    nr_pages: int
    store_mfn: Gfn
    store_port: EvtchnPort
    console_mfn: Gfn
    console_port: EvtchnPort


async def build(xc: XenControl, spec: PvSpec, cache: KernelCache) -> PvImage:
    """Builds the guest. 256 MiB with Debian's kernel: about 50 ms, plus the first unpacking.

    Raises: ImageError for the kernel, the ramdisk or the command line; XenError, OutOfFrames among them.
    """
    with ExitStack() as files:
        source = await trio.to_thread.run_sync(_open, spec, cache, files)
        frames = await _populate(xc, spec.domid, source.layout.nr_pages)
        maxmem_kib = max(spec.maxmem_kib, spec.memory_kib)
        await xc.set_memory_map(spec.domid, ram_map(maxmem_kib << 10))
        image = PvImage(
            domid=spec.domid,
            nr_pages=source.layout.nr_pages,
            store_mfn=Gfn(frames.gfn(source.layout.xenstore)),
            store_port=await xc.evtchn_alloc_unbound(spec.domid, BACKEND_DOMID),
            console_mfn=Gfn(frames.gfn(source.layout.console)),
            console_port=await xc.evtchn_alloc_unbound(spec.domid, BACKEND_DOMID),
        )
        shared_info_frame = (await xc.getdomaininfo(spec.domid)).shared_info_frame
        start_info = _start_info(source, image, shared_info_frame)
        memory = GuestMemory(frames, partial(xc.foreign_frames, spec.domid))
        await trio.to_thread.run_sync(_write, source, frames, memory, start_info)
    await _hand_over(xc, spec.domid, source, frames)
    await _seed_grants(xc, image)
    return image


@dataclass(frozen=True)
class _Source:
    """All that goes into the guest, open and checked."""

    kernel: PvKernel
    ramdisk: ImageFile | None
    cmdline: bytes
    layout: Layout


def _open(spec: PvSpec, cache: KernelCache, files: ExitStack) -> _Source:
    """All that can be refused without touching the domain. Blocks; `files` gets what is to be closed."""
    image = open_kernel(spec.kernel, cache)
    files.enter_context(image.file)
    kernel = pv_kernel(image)
    cmdline = spec.cmdline.encode(errors="surrogateescape")
    if len(cmdline) > MAX_CMDLINE:
        raise ImageError(
            kernel.name, f"has a command line of {len(cmdline)} bytes; at most {MAX_CMDLINE} fit"
        )
    if b"\0" in cmdline:
        raise ImageError(kernel.name, "has a command line with a NUL in it")
    ramdisk = files.enter_context(ImageFile.open(spec.ramdisk)) if spec.ramdisk else None
    nr_pages = (spec.memory_kib << 10) >> PAGE_SHIFT
    layout = plan(kernel, nr_pages, ramdisk.size if ramdisk else 0, ramdisk.name if ramdisk else "")
    return _Source(kernel, ramdisk, cmdline, layout)


async def _populate(xc: XenControl, domid: DomId, nr_pages: int) -> FrameMap:
    """Gets the guest's memory: 2 MiB extents as long as there are some, then single frames."""
    extents: list[tuple[int, int]] = []
    pfn = 0
    for order in (_EXTENT_ORDER, 0):
        while wanted := min((nr_pages - pfn) >> order, _BATCH):
            gpfns = range(pfn, pfn + (wanted << order), 1 << order)
            gfns = await xc.populate_physmap(domid, gpfns, order)
            extents += [(gfn, 1 << order) for gfn in gfns]
            pfn += len(gfns) << order
            if len(gfns) < wanted:
                break
    if pfn < nr_pages:
        raise OutOfFrames("populate_physmap", domid=domid, wanted_pages=nr_pages, got_pages=pfn)
    return assign_frames(extents)


def _write(source: _Source, frames: FrameMap, memory: GuestMemory, start_info: bytearray) -> None:
    """Everything that lies in the guest's own memory. Blocks."""
    layout = source.layout
    for segment in source.kernel.image.segments:
        paddr = segment.paddr - source.kernel.paddr_offset
        memory.load(paddr, source.kernel.image.file, segment.offset, segment.filesz)
    if source.ramdisk and layout.ramdisk:
        memory.load(layout.ramdisk.paddr, source.ramdisk, 0, source.ramdisk.size)
    memory.write(layout.p2m.paddr, frames.p2m().tobytes())
    for pfn, entries in table_contents(layout, frames):
        memory.write(pfn << PAGE_SHIFT, entries.tobytes())
    for pfn in (layout.xenstore, layout.console):
        memory.write(pfn << PAGE_SHIFT, bytes(PAGE))
    memory.write(layout.start_info << PAGE_SHIFT, start_info)


async def _hand_over(xc: XenControl, domid: DomId, source: _Source, frames: FrameMap) -> None:
    """What only the hypervisor can write: machine-to-phys, hypercall page, types of the tables, registers."""
    layout = source.layout
    for first in range(0, layout.nr_pages, _BATCH):
        count = min(_BATCH, layout.nr_pages - first)
        await xc.machphys_update(domid, frames.machphys_updates(first, count))
    if source.kernel.hypercall_page is not None:
        pfn = (source.kernel.hypercall_page - layout.virt_base) >> PAGE_SHIFT
        await xc.hypercall_init(domid, frames.gfn(pfn))
    l4_gfn = frames.gfn(layout.page_tables.pfn)
    await xc.pin_l4_table(domid, l4_gfn)
    await xc.setvcpucontext(domid, 0, _vcpu_context(source, l4_gfn))


def _start_info(source: _Source, image: PvImage, shared_info_frame: int) -> bytearray:
    """A struct start_info, as Xen fills it for a DomU."""
    layout = source.layout
    data = bytearray(abi.sizeof("struct start_info"))
    info = abi.struct("struct start_info", data)
    info.magic = b"xen-3.0-x86_64"
    info.nr_pages = layout.nr_pages
    info.shared_info = shared_info_frame << PAGE_SHIFT
    info.store_mfn = image.store_mfn
    info.store_evtchn = image.store_port
    info.console.domU.mfn = image.console_mfn
    info.console.domU.evtchn = image.console_port
    info.pt_base = layout.vaddr(layout.page_tables.pfn)
    info.nr_pt_frames = layout.page_tables.pages
    info.mfn_list = layout.p2m_vaddr
    if layout.ramdisk and source.ramdisk:
        as_pfn = source.kernel.mod_start_pfn
        info.flags = abi.lib.SIF_MOD_START_PFN if as_pfn else 0
        info.mod_start = layout.ramdisk.pfn if as_pfn else layout.vaddr(layout.ramdisk.pfn)
        info.mod_len = source.ramdisk.size
    info.cmd_line = array("b", source.cmdline).tolist()
    if layout.p2m_tables:
        info.first_p2m_pfn = layout.p2m.pfn
        info.nr_p2m_frames = layout.p2m.pages + layout.p2m_tables.pages
    return data


def _vcpu_context(source: _Source, l4_gfn: int) -> bytearray:
    """A struct vcpu_guest_context: the state in which Xen starts a 64-bit PV guest's first vCPU."""
    layout, lib = source.layout, abi.lib
    data = bytearray(abi.sizeof("struct vcpu_guest_context"))
    context = abi.struct("struct vcpu_guest_context", data)
    registers = context.user_regs
    registers.rip = source.kernel.entry
    registers.rsp = layout.vaddr(layout.boot_stack + 1)
    registers.rsi = layout.vaddr(layout.start_info)
    registers.rflags = _INTERRUPTS_ENABLED
    registers.cs = lib.FLAT_KERNEL_CS64
    registers.ss = lib.FLAT_KERNEL_SS64
    for selector in ("ds", "es", "fs", "gs"):
        setattr(registers, selector, lib.FLAT_KERNEL_DS64)
    context.flags = lib.VGCF_in_kernel | lib.VGCF_online
    context.kernel_ss = registers.ss
    context.kernel_sp = registers.rsp
    context.ctrlreg[3] = l4_gfn << PAGE_SHIFT
    context.debugreg[6], context.debugreg[7] = _DR6_DEFAULT, _DR7_DEFAULT
    return data


async def _seed_grants(xc: XenControl, image: PvImage) -> None:
    """Grants the two rings to Dom0 on the guest's behalf, before it can do so itself."""
    table = await xc.grant_table_frame(image.domid)
    seeds = {
        abi.lib.GNTTAB_RESERVED_CONSOLE: image.console_mfn,
        abi.lib.GNTTAB_RESERVED_XENSTORE: image.store_mfn,
    }
    for gref, gfn in seeds.items():
        _GRANT_ENTRY.pack_into(table, gref * _GRANT_ENTRY.size, abi.lib.GTF_permit_access, BACKEND_DOMID, gfn)
