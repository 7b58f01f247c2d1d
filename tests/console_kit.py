"""A guest's console driver over a page in memory: the layout is written out a second time."""

from __future__ import annotations

import struct

from tests.xenstore_kit import MemoryPage, MemoryPort

IN_BYTES, OUT_BYTES = 1024, 2048
IN, OUT, IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 0, 1024, 3072, 3076, 3080, 3084


class ConsoleGuest:
    """Its half of the ring, over `page`; `port` wakes xenconsoled."""

    def __init__(self) -> None:
        self.page = MemoryPage()
        self.port = MemoryPort()

    def index(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.page.view, at)[0])

    def set_index(self, at: int, value: int) -> None:
        struct.pack_into("<I", self.page.view, at, value & 0xFFFFFFFF)

    def print(self, data: bytes) -> int:
        """Bytes that found room."""
        cons, prod = self.index(OUT_CONS), self.index(OUT_PROD)
        part = data[: OUT_BYTES - (prod - cons)]
        for offset, byte in enumerate(part):
            self.page.view[OUT + (prod + offset) % OUT_BYTES] = byte
        self.set_index(OUT_PROD, prod + len(part))
        self.port.kick()
        return len(part)

    def typed(self) -> bytes:
        """What has been typed, taken out of the ring."""
        cons, prod = self.index(IN_CONS), self.index(IN_PROD)
        data = bytes(self.page.view[IN + at % IN_BYTES] for at in range(cons, prod))
        self.set_index(IN_CONS, prod)
        self.port.kick()
        return data
