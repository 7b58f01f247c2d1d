"""What a PV kernel asks for in its Xen notes (Xen's public/elfnote.h), and Xen's defaults for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from dom0.libxc.images.elf import ElfImage
from dom0.libxc.images.errors import ImageError


class Note(IntEnum):
    """Types of notes owned by "Xen"."""

    INFO = 0
    ENTRY = 1
    HYPERCALL_PAGE = 2
    VIRT_BASE = 3
    PADDR_OFFSET = 4
    XEN_VERSION = 5
    GUEST_OS = 6
    GUEST_VERSION = 7
    LOADER = 8
    PAE_MODE = 9
    FEATURES = 10
    BSD_SYMTAB = 11
    HV_START_LOW = 12
    L1_MFN_VALID = 13
    SUSPEND_CANCEL = 14
    INIT_P2M = 15
    MOD_START_PFN = 16
    SUPPORTED_FEATURES = 17
    PHYS32_ENTRY = 18


OFFERED_FEATURES = frozenset(
    {
        "writable_page_tables",
        "pae_pgdir_above_4gb",
        "mmu_pt_update_preserve_ad",
        "highmem_assist",
        "gnttab_map_avail_bits",
    }
)
"""Features (Xen's public/features.h) a 64-bit PV guest may require of us."""

_PAGE = 4096


@dataclass(frozen=True)
class PvKernel:
    """A kernel that has what a 64-bit PV guest needs. Addresses are bytes; `p...` are pseudo-physical."""

    image: ElfImage
    virt_base: int
    """Where pseudo-physical 0 is mapped."""
    paddr_offset: int
    """What to take off a segment's paddr to get its pseudo-physical address."""
    pstart: int
    """First byte of the lowest segment; the kernel is mapped from its page on."""
    pend: int
    """One past the highest segment."""
    entry: int
    hypercall_page: int | None
    init_p2m: int | None
    mod_start_pfn: bool
    """The kernel takes its ramdisk as a pfn and does not need it mapped."""
    guest_os: str
    guest_version: str

    @property
    def name(self) -> str:
        return self.image.file.name


def pv_kernel(image: ElfImage) -> PvKernel:
    """Checks that `image` is a 64-bit PV kernel; `image` stays the caller's on error.

    Raises: ImageError naming the missing note, the feature we lack, or the address that cannot be.
    Source: the rules of Xen's ELF loader: VIRT_BASE and PADDR_OFFSET default to 0, ENTRY to the ELF header's.
    """
    _check_is_pv(image)
    _check_features(image)
    virt_base = _number(image, Note.VIRT_BASE)
    paddr_offset = _number(image, Note.PADDR_OFFSET)
    if paddr_offset is not None and virt_base is None:
        raise ImageError(image.file.name, "has a PADDR_OFFSET note but no VIRT_BASE note")
    virt_base, paddr_offset = virt_base or 0, paddr_offset or 0
    entry = _number(image, Note.ENTRY)
    kernel = PvKernel(
        image=image,
        virt_base=virt_base,
        paddr_offset=paddr_offset,
        pstart=min(s.paddr for s in image.segments) - paddr_offset,
        pend=max(s.paddr + s.memsz for s in image.segments) - paddr_offset,
        entry=image.entry if entry is None else entry,
        hypercall_page=_number(image, Note.HYPERCALL_PAGE),
        init_p2m=_usable_p2m_base(_number(image, Note.INIT_P2M), virt_base),
        mod_start_pfn=bool(_number(image, Note.MOD_START_PFN)),
        guest_os=_text(image, Note.GUEST_OS),
        guest_version=_text(image, Note.GUEST_VERSION),
    )
    _check_addresses(kernel)
    return kernel


def _check_is_pv(image: ElfImage) -> None:
    name, notes = image.file.name, image.notes
    if not notes:
        raise ImageError(name, "is not a Xen PV kernel: it has no Xen notes")
    if Note.XEN_VERSION not in notes:
        also = " (it has only the entry for PVH guests)" if Note.PHYS32_ENTRY in notes else ""
        raise ImageError(name, f"is not a Xen PV kernel: the note XEN_VERSION is missing{also}")
    if not _text(image, Note.XEN_VERSION).startswith("xen-3.0"):
        raise ImageError(name, f"is for Xen {_text(image, Note.XEN_VERSION)!r}, not for 'xen-3.0'")
    if Note.LOADER not in notes and Note.GUEST_OS not in notes:
        raise ImageError(name, "is not a Xen PV kernel: the notes LOADER and GUEST_OS are missing")
    loader, guest_os = _text(image, Note.LOADER), _text(image, Note.GUEST_OS)
    if not loader.startswith("generic") and not guest_os.startswith("linux"):
        raise ImageError(name, f"is for the loader {loader!r}; only 'generic' and Linux kernels can start")


def _check_features(image: ElfImage) -> None:
    wanted = {word[1:] for word in _text(image, Note.FEATURES).split("|") if word.startswith("!")}
    if lacking := sorted(wanted - OFFERED_FEATURES):
        raise ImageError(image.file.name, f"needs features we lack: {', '.join(map(repr, lacking))}")


def _check_addresses(kernel: PvKernel) -> None:
    first, last = kernel.virt_base + kernel.pstart, kernel.virt_base + kernel.pend
    if kernel.pstart < 0 or last > 1 << 64:
        raise ImageError(kernel.name, f"cannot be mapped at its VIRT_BASE {kernel.virt_base:#x}")
    if kernel.virt_base % _PAGE:
        raise ImageError(kernel.name, f"has a VIRT_BASE inside a page: {kernel.virt_base:#x}")
    if not first <= kernel.entry < last:
        raise ImageError(kernel.name, f"has its entry {kernel.entry:#x} outside of {first:#x}-{last:#x}")
    page = kernel.hypercall_page
    if page is not None and (page % _PAGE or not first // _PAGE <= page // _PAGE < -(-last // _PAGE)):
        raise ImageError(kernel.name, f"has its hypercall page {page:#x} outside of {first:#x}-{last:#x}")


def _usable_p2m_base(base: int | None, virt_base: int) -> int | None:
    """INIT_P2M counts only when it is a page address below the kernel's mapping, as in Xen's builder."""
    return base if base is not None and base < virt_base and base % _PAGE == 0 else None


def _number(image: ElfImage, note: Note) -> int | None:
    data = image.notes.get(note)
    if data is None:
        return None
    if len(data) not in (1, 2, 4, 8):
        raise ImageError(image.file.name, f"has a note {note.name} of {len(data)} bytes; want a number")
    return int.from_bytes(data, "little")


def _text(image: ElfImage, note: Note) -> str:
    return image.notes.get(note, b"").partition(b"\0")[0].decode("ascii", "replace")
