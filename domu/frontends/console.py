"""The guest's console: what it prints, what is typed.

`print` goes to it in a guest, for its standard output and error are a ConsoleFile. Output waits in a buffer
while nobody reads the ring; beyond BUFFER_BYTES the oldest is lost, as on a serial line without flow control.
Input is cooked as a terminal would do it: echoed, backspace erases, Enter ends a line.
"""

from __future__ import annotations

import io
from collections import deque

import trio

from hyper.guest.ports import Port
from hyper.guest.rings import GuestConsoleRing

BUFFER_BYTES = 1 << 16
MAX_LINE = 4096
_INPUT_BYTES = 1024


class Console:
    """`page` is the console page, `port` our end of its event channel. run() must run."""

    def __init__(self, page: memoryview, port: Port) -> None:
        self.echo = True
        self.nr_lost = 0
        """Bytes that were printed and never read."""
        self._ring = GuestConsoleRing(page)
        self._port = port
        self._output = bytearray()
        self._line = bytearray()
        self._lines: deque[str] = deque(maxlen=1024)
        self._changed = trio.lowlevel.ParkingLot()

    def print(self, *values: object, end: str = "\n") -> None:
        """Never blocks."""
        self.write(" ".join(map(str, values)) + end)

    def write(self, text: str) -> None:
        """The same for one string."""
        self._output += text.replace("\n", "\r\n").encode(errors="backslashreplace")
        if (over := len(self._output) - BUFFER_BYTES) > 0:
            self.nr_lost += over
            del self._output[:over]
        self._flush()

    async def readline(self) -> str:
        """A line that was typed, without its end. Lines nobody reads are kept up to 1024."""
        while not self._lines:
            await self._changed.park()
        return self._lines.popleft()

    async def drain(self) -> None:
        """Until all that was printed is in the hands of Dom0's console daemon, or at least in the ring."""
        while self._output:
            await self._changed.park()

    async def run(self) -> None:
        """Moves bytes until cancelled.

        Raises: RingError when the daemon's indices make no sense; HypervisorGone.
        """
        while True:
            self._flush()
            while typed := self._ring.read(_INPUT_BYTES):
                self._take(typed)
            self._changed.unpark_all()
            await self._port.wait()

    def _flush(self) -> None:
        while self._output and (written := self._ring.write(bytes(self._output[:2048]))):
            del self._output[:written]
        self._port.notify()

    def _take(self, typed: bytes) -> None:
        for byte in typed:
            if byte in b"\r\n":
                self._lines.append(self._line.decode(errors="replace"))
                self._line.clear()
                self._say(b"\r\n")
            elif byte in b"\b\x7f":
                if self._line:
                    self._line.pop()
                    self._say(b"\b \b")
            elif len(self._line) < MAX_LINE:
                self._line.append(byte)
                self._say(bytes([byte]))

    def _say(self, data: bytes) -> None:
        if self.echo:
            self._output += data
            self._flush()


class ConsoleFile(io.TextIOBase):
    """What sys.stdout and sys.stderr are in a guest."""

    encoding = "utf-8"

    def __init__(self, console: Console) -> None:
        self._console = console

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._console.write(text)
        return len(text)
