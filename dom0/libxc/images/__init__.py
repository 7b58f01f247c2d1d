"""From a path to a kernel that can be started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dom0.libxc.images import bzimage
from dom0.libxc.images.cache import KernelCache
from dom0.libxc.images.elf import ELF_MAGIC, ElfImage, read_elf
from dom0.libxc.images.errors import ImageError
from dom0.libxc.images.notes import PvKernel, pv_kernel
from dom0.libxc.images.source import ImageFile
from dom0.libxc.images.unpack import compression, decompress

__all__ = ["ElfImage", "ImageError", "ImageFile", "KernelCache", "PvKernel", "open_kernel", "pv_kernel"]

MAX_PACKED = 512 << 20
"""Bytes of the largest compressed kernel file we read."""


def open_kernel(path: Path, cache: KernelCache) -> ElfImage:
    """The ELF image in `path`: an ELF file, a compressed one, or a bzImage. Blocks: use a worker thread.

    The caller closes the result's `file`.
    Raises: ImageError with one clear line, whatever is in the file.
    """
    file = ImageFile.open(path)
    try:
        if _is_elf(file):
            return read_elf(file)
        payload = _payload(file)
        if file.size > MAX_PACKED:
            raise ImageError(file.name, f"is larger than {MAX_PACKED >> 20} MiB")
        unpacked = cache.open(file, lambda content: _unpack(file.name, content, payload))
    except BaseException:
        file.close()
        raise
    file.close()
    try:
        if not _is_elf(unpacked):
            raise ImageError(unpacked.name, "holds compressed data that is not an ELF image")
        return read_elf(unpacked)
    except BaseException:
        unpacked.close()
        raise


def _is_elf(file: ImageFile) -> bool:
    return file.read(0, min(file.size, len(ELF_MAGIC))) == ELF_MAGIC


def _payload(file: ImageFile) -> bzimage.Payload | None:
    """Where a bzImage has its kernel, or None when the whole file is one compressed kernel."""
    head = file.read(0, min(file.size, bzimage.HEADER_BYTES))
    if bzimage.is_bzimage(head):
        return bzimage.find_payload(file)
    if compression(head):
        return None
    if head[0x38:0x3C] == b"ARM\x64":
        raise ImageError(file.name, "is a Linux kernel of another architecture (AArch64), not x86-64")
    raise ImageError(file.name, "is not a kernel: neither an ELF image nor a bzImage")


def _unpack(name: str, content: bytes, payload: bzimage.Payload | None) -> Iterator[bytes]:
    data = memoryview(content)
    if payload is None:
        yield from decompress(name, data)
        return
    data = data[payload.offset : payload.offset + payload.size]
    promised = int.from_bytes(data[-4:], "little")
    if compression(bytes(data[:16])) != "gzip":  # it ends with the size; to the others Linux appends it
        data = data[:-4]
    total = 0
    for piece in decompress(name, data):
        total += len(piece)
        yield piece
    if total != promised:
        raise ImageError(name, f"is damaged: unpacks to {total} bytes instead of {promised}")
