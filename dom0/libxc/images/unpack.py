"""Decompressors for kernels: generators of pieces of at most 32 MiB, so that the caller can stop in time.

A stream that is damaged or ends early raises one of `DAMAGE`, whichever library found it.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator

import lz4.block
import zstandard

from dom0.libxc.images.errors import ImageError

MAX_UNPACKED = 1 << 30
"""Bytes of the largest kernel we unpack; a PV kernel is mapped in 2 GiB."""

_INPUT = 64 << 10
_OUTPUT = 1 << 20
_ZSTD_INPUT = 1 << 10  # a 4-byte block gives up to 128 KiB
_ZSTD_WINDOW = 128 << 20
_LZMA_MEMORY = 256 << 20
_LZ4_BLOCK = 8 << 20
_LZ4_MAGIC = 0x184C2102


class Truncated(Exception):
    """The compressed stream ends before its end mark."""


DAMAGE = (
    Truncated, EOFError, OSError, ValueError, OverflowError, zlib.error, lzma.LZMAError, zstandard.ZstdError,
    lz4.block.LZ4BlockError,
)  # fmt: skip


def _pieces(data: memoryview, size: int) -> Iterator[memoryview]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _gzip(data: memoryview) -> Iterator[bytes]:
    stream = zlib.decompressobj(wbits=31)
    for piece in _pieces(data, _INPUT):
        pending: bytes | memoryview = piece
        while pending and not stream.eof:
            yield stream.decompress(pending, _OUTPUT)
            pending = stream.unconsumed_tail
        if stream.eof:
            return
    raise Truncated


def _stream(stream: bz2.BZ2Decompressor | lzma.LZMADecompressor, data: memoryview) -> Iterator[bytes]:
    for piece in _pieces(data, _INPUT):
        yield stream.decompress(piece, _OUTPUT)
        while not stream.eof and not stream.needs_input:
            yield stream.decompress(b"", _OUTPUT)
        if stream.eof:
            return
    raise Truncated


def _bzip2(data: memoryview) -> Iterator[bytes]:
    return _stream(bz2.BZ2Decompressor(), data)


def _xz(data: memoryview) -> Iterator[bytes]:
    return _stream(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY), data)


def _lzma(data: memoryview) -> Iterator[bytes]:
    return _stream(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY), data)


def _zstd(data: memoryview) -> Iterator[bytes]:
    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    for piece in _pieces(data, _ZSTD_INPUT):
        yield stream.decompress(piece)
        if stream.eof:
            return
    raise Truncated


def _lz4_legacy(data: memoryview) -> Iterator[bytes]:
    """Blocks of a 32-bit size and at most 8 MiB unpacked; the magic may come again between them."""
    position = 0
    while position < len(data):
        if position + 4 > len(data):
            raise Truncated
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if size == _LZ4_MAGIC:
            continue
        if position + size > len(data):
            raise Truncated
        yield lz4.block.decompress(data[position : position + size], uncompressed_size=_LZ4_BLOCK)
        position += size


_FORMATS: tuple[tuple[bytes, str, Callable[[memoryview], Iterator[bytes]] | None], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\x00", "xz", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\x00\x00", "lzma", _lzma),
    (b"\x02\x21\x4c\x18", "lz4", _lz4_legacy),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x89LZO", "lzo", None),
)


def compression(head: bytes) -> str | None:
    """The name of the format that starts with `head`, or None."""
    return next((name for magic, name, _ in _FORMATS if head.startswith(magic)), None)


def decompress(name: str, data: memoryview) -> Iterator[bytes]:
    """Pieces of what `data` holds, at most MAX_UNPACKED bytes in all. `name` is for errors.

    Raises: ImageError for an unknown format, a damaged or truncated stream, or too much output.
    """
    kind = compression(bytes(data[:16]))
    decoder = next((decode for _, known, decode in _FORMATS if known == kind), None)
    if decoder is None:
        raise ImageError(name, f"holds a kernel in an unknown compression ({kind or bytes(data[:4]).hex()})")
    total = 0
    try:
        for piece in decoder(data):
            total += len(piece)
            if total > MAX_UNPACKED:
                raise ImageError(name, f"unpacks to more than {MAX_UNPACKED >> 20} MiB")
            yield piece
    except Truncated as exc:
        raise ImageError(name, f"is truncated: its {kind} stream ends too early") from exc
    except DAMAGE as exc:
        raise ImageError(name, f"is damaged: its {kind} stream cannot be unpacked ({exc})") from exc
