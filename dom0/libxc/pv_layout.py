"""Where everything of a new PV guest goes: computed, not done. Knows neither frames nor hypercalls.

From VIRT_BASE up, one page after the other, as Xen's own builder does it:

    kernel | ramdisk | p2m | start_info | xenstore | console | page tables | boot stack | room up to 4 MiB

The whole is mapped from pseudo-physical 0 on. Two parts may lie behind the boot stack instead:
- the p2m, when the kernel has an INIT_P2M note: it is mapped there, with its tables behind it;
- the ramdisk, when the kernel takes it as a pfn (MOD_START_PFN) and it would make the mapping too large.
They come first thing after the stack, so they may be in the part that the room maps as well.

Every page table is mapped read-only, wherever it appears: the hypervisor refuses a writable one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from dom0.libxc.frames import FrameMap
from dom0.libxc.images import ImageError, PvKernel

PAGE_SHIFT = 12
PAGE = 1 << PAGE_SHIFT
ENTRIES = 512
P2M_ENTRY = 8

MAX_MAPPED_WITH_RAMDISK = 512 << 20
"""A ramdisk that need not be mapped is, up to this address (pseudo-physical): every Linux has room for it."""

_ROOM = 512 << 10  # at least so much is mapped behind the boot stack
_ALIGN = 4 << 20  # the mapping ends at a multiple of this
_LOW_END = 1 << 47
_HIGH_START = 0xFFFF_8800_0000_0000  # below it and above _LOW_END: non-canonical, and Xen's own
_ADDRESS_END = 1 << 64
_VA_MASK = (1 << 48) - 1

PTE_PRESENT, PTE_RW, PTE_USER, PTE_ACCESSED, PTE_DIRTY = 0x01, 0x02, 0x04, 0x20, 0x40
TABLE_FLAGS = PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED | PTE_DIRTY
LEAF_FLAGS = PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED | PTE_DIRTY


@dataclass(frozen=True)
class Region:
    """Pages in a row; `end` is one past the last."""

    pfn: int
    pages: int

    @property
    def end(self) -> int:
        return self.pfn + self.pages

    @property
    def paddr(self) -> int:
        return self.pfn << PAGE_SHIFT


@dataclass(frozen=True)
class Mapping:
    """`pages` pages from `vaddr` on are the pfns from `pfn` on."""

    vaddr: int
    pfn: int
    pages: int

    @property
    def end(self) -> int:
        return self.vaddr + (self.pages << PAGE_SHIFT)


@dataclass(frozen=True)
class Table:
    """One page table, level 4 the root, for the addresses with this `prefix` (vaddr >> its shift)."""

    level: int
    prefix: int
    pfn: int


@dataclass(frozen=True)
class Layout:
    nr_pages: int
    virt_base: int
    kernel: Region
    ramdisk: Region | None
    ramdisk_mapped: bool
    p2m: Region
    """The array of nr_pages gfns."""
    p2m_vaddr: int
    p2m_tables: Region | None
    """Behind `p2m`, when it is mapped at INIT_P2M; else None: it is part of the initial mapping."""
    start_info: int
    xenstore: int
    console: int
    page_tables: Region
    """Of the initial mapping; the first is the level-4 table of both mappings."""
    boot_stack: int
    mappings: tuple[Mapping, ...]
    """The initial mapping, then the one at INIT_P2M if there is one."""
    tables: tuple[Table, ...]
    """All of `page_tables` and `p2m_tables`, in the order of their pfns."""

    def vaddr(self, pfn: int) -> int:
        """Where the initial mapping has `pfn`."""
        return self.virt_base + (pfn << PAGE_SHIFT)

    @property
    def regions(self) -> tuple[tuple[str, Region], ...]:
        """All that is in use, named, by pfn."""
        optional = (("ramdisk", self.ramdisk), ("p2m tables", self.p2m_tables))
        named = [
            ("kernel", self.kernel),
            ("p2m", self.p2m),
            ("start_info", Region(self.start_info, 1)),
            ("xenstore", Region(self.xenstore, 1)),
            ("console", Region(self.console, 1)),
            ("page tables", self.page_tables),
            ("boot stack", Region(self.boot_stack, 1)),
            *((name, region) for name, region in optional if region),
        ]
        return tuple(sorted(named, key=lambda item: (item[1].pfn, item[1].end)))


def plan(kernel: PvKernel, nr_pages: int, ramdisk_bytes: int = 0, ramdisk_name: str = "ramdisk") -> Layout:
    """The layout of a guest with `nr_pages` pages; no ramdisk when it has 0 bytes. Pure, below a millisecond.

    Raises: ImageError when kernel or ramdisk don't fit, in memory or in the address space.
    """
    ramdisk = _Ramdisk(ramdisk_name, ramdisk_bytes)
    _check_memory(kernel, ramdisk, nr_pages, _pages(kernel.pend) + ramdisk.pages)  # a file may claim any size
    mapped = bool(ramdisk.pages) and (not kernel.mod_start_pfn or _fits_mapped(kernel, ramdisk))
    layout = _place(kernel, nr_pages, ramdisk, mapped)
    _check_memory(kernel, ramdisk, nr_pages, max(region.end for _, region in layout.regions))
    return layout


@dataclass(frozen=True)
class _Ramdisk:
    name: str
    nbytes: int

    @property
    def pages(self) -> int:
        return _pages(self.nbytes)


def _pages(nbytes: int) -> int:
    return -(-nbytes >> PAGE_SHIFT)


def _fits_mapped(kernel: PvKernel, ramdisk: _Ramdisk) -> bool:
    """Leaves out the tables and the p2m: the limit is far from any hard one."""
    return kernel.pend + ramdisk.nbytes <= MAX_MAPPED_WITH_RAMDISK


def _place(kernel: PvKernel, nr_pages: int, ramdisk: _Ramdisk, ramdisk_mapped: bool) -> Layout:
    cursor = _Cursor(kernel.pstart >> PAGE_SHIFT)
    p2m_pages = _pages(nr_pages * P2M_ENTRY)
    ramdisk_region = p2m = p2m_tables = None
    kernel_region = cursor.take(_pages(kernel.pend) - cursor.pfn)
    if ramdisk_mapped:
        ramdisk_region = cursor.take(ramdisk.pages)
    if kernel.init_p2m is None:
        p2m = cursor.take(p2m_pages)
    start_info, xenstore, console = (cursor.take(1).pfn for _ in range(3))
    mapped_end = _mapped_end(kernel, cursor.pfn)
    tables = list(_new_tables(set(), kernel.virt_base, mapped_end))
    page_tables = cursor.take(len(tables))
    boot_stack = cursor.take(1).pfn
    if ramdisk.pages and not ramdisk_mapped:
        ramdisk_region = cursor.take(ramdisk.pages)
    mapped_pages = min((mapped_end - kernel.virt_base) >> PAGE_SHIFT, nr_pages)
    mappings = [Mapping(kernel.virt_base, 0, mapped_pages)]
    if p2m is None:
        p2m = cursor.take(p2m_pages)
        mappings.append(_p2m_mapping(kernel, p2m))
        more = list(_new_tables(set(tables), mappings[1].vaddr, mappings[1].end))
        p2m_tables = cursor.take(len(more))
        tables += more
    table_pfns = [pfn for row in (page_tables, p2m_tables) if row for pfn in range(row.pfn, row.end)]
    return Layout(
        nr_pages=nr_pages,
        virt_base=kernel.virt_base,
        kernel=kernel_region,
        ramdisk=ramdisk_region,
        ramdisk_mapped=ramdisk_mapped,
        p2m=p2m,
        p2m_vaddr=mappings[1].vaddr if p2m_tables else kernel.virt_base + p2m.paddr,
        p2m_tables=p2m_tables,
        start_info=start_info,
        xenstore=xenstore,
        console=console,
        page_tables=page_tables,
        boot_stack=boot_stack,
        mappings=tuple(mappings),
        tables=tuple(Table(*key, pfn) for key, pfn in zip(tables, table_pfns, strict=True)),
    )


def _p2m_mapping(kernel: PvKernel, p2m: Region) -> Mapping:
    assert kernel.init_p2m is not None
    mapping = Mapping(kernel.init_p2m, p2m.pfn, p2m.pages)
    _check_addresses(kernel, mapping.vaddr, mapping.end)
    if mapping.end > kernel.virt_base:  # INIT_P2M lies below VIRT_BASE: images/notes.py
        raise ImageError(kernel.name, "has its p2m (INIT_P2M) so close below the kernel that both overlap")
    return mapping


class _Cursor:
    """The next free pfn."""

    def __init__(self, pfn: int) -> None:
        self.pfn = pfn

    def take(self, pages: int) -> Region:
        region = Region(self.pfn, pages)
        self.pfn += pages
        return region


def _shift(level: int) -> int:
    """Address bits below the prefix of a table of this level."""
    return PAGE_SHIFT + 9 * level


def _new_tables(have: set[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """(level, prefix) of the tables that map start..end and are not in `have`, from the root down."""
    for level in (4, 3, 2, 1):
        shift = _shift(level)
        first, last = (start & _VA_MASK) >> shift, (end - 1 & _VA_MASK) >> shift
        for prefix in range(first, last + 1):
            if (level, prefix) not in have:
                yield level, prefix


def _mapped_end(kernel: PvKernel, next_pfn: int) -> int:
    """Where the initial mapping ends: all so far, its own tables, the stack and some room, rounded up."""
    nr_tables = 0
    while True:
        used = kernel.virt_base + ((next_pfn + nr_tables + 1) << PAGE_SHIFT)
        end = -(-(used + _ROOM) // _ALIGN) * _ALIGN
        _check_addresses(kernel, kernel.virt_base, end)
        needed = sum(1 for _ in _new_tables(set(), kernel.virt_base, end))
        if needed <= nr_tables:
            return end
        nr_tables = needed


def _check_memory(kernel: PvKernel, ramdisk: _Ramdisk, nr_pages: int, needed_pages: int) -> None:
    if needed_pages <= nr_pages:
        return
    has, needs = nr_pages << PAGE_SHIFT >> 20, -(-needed_pages << PAGE_SHIFT >> 20)
    if ramdisk.pages and needed_pages - ramdisk.pages <= nr_pages:
        size = -(-ramdisk.nbytes >> 20)
        reason = f"its {size} MiB and the kernel need {needs} MiB, the guest has {has} MiB"
        raise ImageError(ramdisk.name, f"does not fit in memory: {reason}")
    raise ImageError(kernel.name, f"does not fit in memory: it needs {needs} MiB, the guest has {has} MiB")


def _check_addresses(kernel: PvKernel, start: int, end: int) -> None:
    low = end <= _LOW_END
    high = start >= _HIGH_START and end <= _ADDRESS_END
    if not low and not high:
        where = f"{start:#x}-{end:#x}"
        raise ImageError(kernel.name, f"does not fit in its address space: it would be mapped at {where}")


def table_contents(layout: Layout, frames: FrameMap) -> list[tuple[int, array[int]]]:
    """(pfn, entries) of each row of page tables: the initial ones, then those of INIT_P2M."""
    pages = {(table.level, table.prefix): array("Q", bytes(PAGE)) for table in layout.tables}
    for table in layout.tables:
        if table.level < 4:
            parent = pages[table.level + 1, table.prefix >> 9]
            parent[table.prefix % ENTRIES] = frames.gfn(table.pfn) << PAGE_SHIFT | TABLE_FLAGS
    for mapping in layout.mappings:
        _fill_leaves(pages, mapping, _leaf_entries(layout, mapping, frames))
    rows = [layout.page_tables, *([layout.p2m_tables] if layout.p2m_tables else [])]
    by_pfn = {table.pfn: pages[table.level, table.prefix] for table in layout.tables}
    return [(row.pfn, sum((by_pfn[pfn] for pfn in range(row.pfn, row.end)), array("Q"))) for row in rows]


def _leaf_entries(layout: Layout, mapping: Mapping, frames: FrameMap) -> array[int]:
    entries = frames.entries(mapping.pfn, mapping.pages, LEAF_FLAGS)
    for table in layout.tables:
        if 0 <= table.pfn - mapping.pfn < mapping.pages:
            entries[table.pfn - mapping.pfn] &= ~PTE_RW
    return entries


def _fill_leaves(pages: dict[tuple[int, int], array[int]], mapping: Mapping, entries: array[int]) -> None:
    done = 0
    while done < mapping.pages:
        page_number = (mapping.vaddr & _VA_MASK) // PAGE + done
        slot = page_number % ENTRIES
        count = min(ENTRIES - slot, mapping.pages - done)
        pages[1, page_number // ENTRIES][slot : slot + count] = entries[done : done + count]
        done += count
