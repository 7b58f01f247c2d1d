"""Linux's bzImage: a real-mode setup part, then code with the compressed kernel inside it.

Source: Linux's Documentation/arch/x86/boot.rst (payload_offset and payload_length since protocol 2.08).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dom0.libxc.images.errors import ImageError
from dom0.libxc.images.source import ImageFile

HEADER_BYTES = 0x250
_SECTOR = 512
_FIRST_VERSION = 0x0208


@dataclass(frozen=True)
class Payload:
    """Bytes of the file that hold the compressed kernel. Its last four are the unpacked size."""

    offset: int
    size: int


def is_bzimage(head: bytes) -> bool:
    """True for the first bytes of a Linux x86 boot image, whatever its version."""
    return head[0x202:0x206] == b"HdrS" and head[0x1FE:0x200] == b"\x55\xaa"


def find_payload(file: ImageFile) -> Payload:
    """`file` must be a bzImage.

    Raises: ImageError when it is truncated, older than Linux 2.6.26, or points outside of itself.
    """
    head = file.read(0, HEADER_BYTES)
    (version,) = struct.unpack_from("<H", head, 0x206)
    if version < _FIRST_VERSION:
        raise ImageError(file.name, "is a bzImage of before Linux 2.6.26 (boot protocol 2.08)")
    setup_sectors = head[0x1F1] or 4
    offset, size = struct.unpack_from("<II", head, 0x248)
    start = (setup_sectors + 1) * _SECTOR + offset
    if not size:
        raise ImageError(file.name, "is a bzImage without a payload")
    if start + size > file.size:
        raise file.truncated(start + size)
    return Payload(start, size)
