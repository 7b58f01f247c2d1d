"""ELF64 images for x86-64: headers, segments and Xen's notes.

pyelftools knows the layouts of the headers. The offsets in them come from the file: they are checked here,
before anything is read. Notes are walked by hand: pyelftools gives Xen's types 1 to 5 the names of GNU's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

from dom0.libxc.images.errors import ImageError
from dom0.libxc.images.source import ImageFile

ELF_MAGIC = b"\x7fELF"

_MAX_HEADERS = 4096
_MAX_NOTE_BYTES = 1 << 20
_ADDRESS_LIMIT = 1 << 64
_NOTE_HEADER = struct.Struct("<III")
_XEN_OWNER = b"Xen\0"


@dataclass(frozen=True)
class Segment:
    """A PT_LOAD: `filesz` bytes at `offset` of the file go to `paddr`, followed by zeros up to `memsz`."""

    paddr: int
    offset: int
    filesz: int
    memsz: int


@dataclass(frozen=True)
class ElfImage:
    """Headers that have been checked: every segment lies inside the file. Owns `file`."""

    file: ImageFile
    entry: int
    segments: tuple[Segment, ...]
    """PT_LOADs with memsz > 0, in file order. At least one."""
    notes: dict[int, bytes]
    """Description of each Xen note by its raw type; the last one wins, as in Xen."""


def read_elf(file: ImageFile) -> ElfImage:
    """Reads the headers, not the contents. `file` belongs to the result, or stays the caller's on error.

    Raises: ImageError: truncated, not for x86-64, 32-bit, nothing to load, or with impossible headers.
    """
    header = _file_header(file)
    program = list(_table(file, header, "e_phoff", "e_phentsize", "e_phnum"))
    segments = tuple(_segments(file, program))
    if not segments:
        raise ImageError(file.name, "has no loadable segment")
    notes = _notes(file, [p for p in program if p["p_type"] == "PT_NOTE"], "p_offset", "p_filesz")
    if not notes:  # Xen looks at sections only then
        sections = _table(file, header, "e_shoff", "e_shentsize", "e_shnum")
        notes = _notes(file, [s for s in sections if s["sh_type"] == "SHT_NOTE"], "sh_offset", "sh_size")
    return ElfImage(file, header["e_entry"], segments, notes)


def _structs() -> ELFStructs:
    structs = ELFStructs(little_endian=True, elfclass=64)
    structs.create_basic_structs()
    structs.create_advanced_structs()
    return structs


_STRUCTS = _structs()


def _parse(file: ImageFile, layout: Any, data: bytes) -> Any:
    try:
        return struct_parse(layout, BytesIO(data), 0)
    except ELFError as exc:
        raise ImageError(file.name, f"has a damaged ELF header: {exc}") from exc


def _file_header(file: ImageFile) -> Any:
    size: int = _STRUCTS.Elf_Ehdr.sizeof()
    ident = file.read(0, 16)
    if ident[4] == 1:
        raise ImageError(file.name, "is a 32-bit ELF image; only 64-bit x86 kernels can be started")
    if ident[4] != 2 or ident[5] != 1:
        raise ImageError(file.name, "is an ELF image of another architecture, not x86-64")
    header = _parse(file, _STRUCTS.Elf_Ehdr, file.read(0, size))
    if header["e_machine"] != "EM_X86_64":
        machine = str(header["e_machine"]).removeprefix("EM_")
        raise ImageError(file.name, f"is an ELF image of another architecture ({machine}), not x86-64")
    if header["e_type"] not in ("ET_EXEC", "ET_DYN"):
        raise ImageError(file.name, "is an ELF file but not an executable image")
    return header


def _table(file: ImageFile, header: Any, offset_key: str, size_key: str, count_key: str) -> Iterator[Any]:
    offset, entry_bytes, count = header[offset_key], header[size_key], header[count_key]
    layout = _STRUCTS.Elf_Phdr if offset_key == "e_phoff" else _STRUCTS.Elf_Shdr
    if not offset or not count:
        return
    if entry_bytes < layout.sizeof() or count > _MAX_HEADERS:
        raise ImageError(file.name, f"has an impossible ELF table ({count} entries of {entry_bytes} bytes)")
    data = file.read(offset, entry_bytes * count)
    for start in range(0, len(data), entry_bytes):
        yield _parse(file, layout, data[start : start + layout.sizeof()])


def _segments(file: ImageFile, program: list[Any]) -> Iterator[Segment]:
    for p in program:
        if p["p_type"] != "PT_LOAD" or not p["p_memsz"]:
            continue
        segment = Segment(p["p_paddr"], p["p_offset"], p["p_filesz"], p["p_memsz"])
        if segment.filesz > segment.memsz or segment.paddr + segment.memsz > _ADDRESS_LIMIT:
            raise ImageError(file.name, f"has an impossible segment at {segment.paddr:#x}")
        if segment.offset + segment.filesz > file.size:
            raise file.truncated(segment.offset + segment.filesz)
        yield segment


def _notes(file: ImageFile, places: list[Any], offset_key: str, size_key: str) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for place in places:
        if place[size_key] > _MAX_NOTE_BYTES:
            raise ImageError(file.name, f"has {place[size_key]} bytes of ELF notes")
        found.update(_xen_notes(file.read(place[offset_key], place[size_key])))
    return found


def _xen_notes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, description) of each Xen note. Stops at the first that does not fit in `data`."""
    position = 0
    while position + _NOTE_HEADER.size <= len(data):
        name_bytes, desc_bytes, kind = _NOTE_HEADER.unpack_from(data, position)
        name_at = position + _NOTE_HEADER.size
        desc_at = name_at + (name_bytes + 3 & ~3)
        if desc_at + desc_bytes > len(data):
            return
        if data[name_at : name_at + name_bytes] == _XEN_OWNER:
            yield kind, data[desc_at : desc_at + desc_bytes]
        position = desc_at + (desc_bytes + 3 & ~3)
