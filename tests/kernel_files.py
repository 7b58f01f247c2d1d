"""Kernel files made on the spot: ELF images with Xen notes, and bzImages in each compression."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import lz4.block
import zstandard

from dom0.libxc.images.notes import Note

LINUX_BASE = 0xFFFFFFFF80000000
INIT_P2M = 0x8000000000


@dataclass(frozen=True)
class Load:
    paddr: int
    data: bytes
    memsz: int = 0
    """Of the segment; the length of `data` when that is more."""


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


def linux_notes(entry: int = LINUX_BASE + 0x1000000) -> dict[int, bytes]:
    """What Debian's kernel has."""
    return {
        Note.GUEST_OS: b"linux\0",
        Note.GUEST_VERSION: b"2.6\0",
        Note.XEN_VERSION: b"xen-3.0\0",
        Note.VIRT_BASE: number(LINUX_BASE),
        Note.INIT_P2M: number(INIT_P2M),
        Note.ENTRY: number(entry),
        Note.FEATURES: b"!writable_page_tables|pae_pgdir_above_4gb",
        Note.SUPPORTED_FEATURES: struct.pack("<I", 0x8801),
        Note.LOADER: b"generic\0",
        Note.MOD_START_PFN: struct.pack("<I", 1),
    }


def small_notes(hypercall_page: int | None = None) -> dict[int, bytes]:
    """What a kernel linked at its own load address has: neither VIRT_BASE nor ENTRY nor INIT_P2M."""
    notes: dict[int, bytes] = {
        Note.GUEST_OS: b"small\0",
        Note.LOADER: b"generic\0",
        Note.XEN_VERSION: b"xen-3.0\0",
        Note.FEATURES: b"!writable_page_tables|pae_pgdir_above_4gb\0",
    }
    if hypercall_page is not None:
        notes[Note.HYPERCALL_PAGE] = number(hypercall_page)
    return notes


def _note_bytes(notes: Mapping[int, bytes]) -> bytes:
    # A foreign note first: its type must not be taken for Xen's.
    packed = struct.pack("<III", 4, 2, 1) + b"GNU\0" + b"no\0\0"
    for kind, desc in notes.items():
        packed += struct.pack("<III", 4, len(desc), kind) + b"Xen\0" + desc + bytes(-len(desc) % 4)
    return packed


def elf(
    loads: Sequence[Load] = (Load(0x1000000, b"\x90" * 100),),
    notes: Mapping[int, bytes] | None = None,
    *,
    entry: int = 0x1000000,
    machine: int = 62,
    elf_class: int = 2,
    kind: int = 2,
    notes_in_section: bool = False,
) -> bytes:
    """An ELF64 file: headers, notes, then the segments, each at the next page."""
    note_data = b"" if notes is None else _note_bytes(notes)
    program_notes = notes is not None and not notes_in_section
    nr_program = len(loads) + program_notes
    note_at = 64 + 56 * nr_program
    sections_at = note_at + len(note_data)
    nr_sections = 1 if notes is not None and notes_in_section else 0
    position = -(-(sections_at + 64 * nr_sections) // 4096) * 4096
    program, body = b"", b""
    start = position
    for load in loads:
        size = max(load.memsz, len(load.data))
        program += struct.pack(
            "<IIQQQQQQ", 1, 7, position, LINUX_BASE + load.paddr & (1 << 64) - 1, load.paddr,
            len(load.data), size, 4096,
        )  # fmt: skip
        body += load.data + bytes(-len(load.data) % 4096)
        position = start + len(body)
    if program_notes:
        program += struct.pack("<IIQQQQQQ", 4, 4, note_at, 0, 0, len(note_data), len(note_data), 4)
    section = struct.pack("<IIQQQQIIQQ", 0, 7, 0, 0, note_at, len(note_data), 0, 0, 4, 0) * nr_sections
    header = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", elf_class, 1, 1, kind, machine, 1, entry, 64,
        sections_at if nr_sections else 0, 0, 64, 56, nr_program, 64, nr_sections, 0,
    )  # fmt: skip
    head = header + program + note_data + section
    return head + bytes(start - len(head)) + body


def lz4_legacy(data: bytes) -> bytes:
    packed = struct.pack("<I", 0x184C2102)
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "lz4": lz4_legacy,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def bzimage(vmlinux: bytes, compression: str, *, version: int = 0x020F, size_error: int = 0) -> bytes:
    """A boot image with `vmlinux` in it. `size_error` is added to the size it promises."""
    payload = COMPRESSORS[compression](vmlinux)
    promised = struct.pack("<I", len(vmlinux) + size_error)
    payload = payload[:-4] + promised if compression == "gzip" else payload + promised
    setup_sectors, code_before = 3, 96
    head = bytearray((setup_sectors + 1) * 512)
    head[0x1F1] = setup_sectors
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<II", head, 0x248, code_before, len(payload))
    return bytes(head) + b"\xcc" * code_before + payload + b"\xcc" * 64
