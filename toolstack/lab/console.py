"""A guest's console in a test: what it wrote, waiting for text, typing. Synchronous, with deadlines."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

MAX_KEPT = 1 << 20
"""Characters of output kept; older ones are dropped."""
_SHOWN = 800


class ConsoleError(Exception):
    """The expected text did not come; the message ends with what came instead."""


class ConsoleTimeout(ConsoleError):
    """It did not come in time."""


class ConsoleClosed(ConsoleError):
    """The console ended first: the domain is gone, or xenconsoled is."""


@dataclass(frozen=True)
class Match:
    """What `expect` found: the matched text, what came before it, and a pattern's groups."""

    text: str
    before: str
    groups: tuple[str | None, ...] = ()


class Console:
    """The console socket of one domain. `text` is all that came; `expect` looks only at what is new to it."""

    def __init__(self, path: Path, wait_seconds: float = 10.0) -> None:
        self.path = path
        self.text = ""
        self._seen = 0
        self._partial = b""
        self._socket = _connect(path, wait_seconds)

    def expect(self, what: str | re.Pattern[str], timeout: float = 30.0) -> Match:
        """Wait until `what` comes, and go on behind it. A string stands for itself, a pattern for a search.

        Raises: ConsoleTimeout, ConsoleClosed.
        """
        pattern = re.compile(re.escape(what)) if isinstance(what, str) else what
        deadline = time.monotonic() + timeout
        while True:
            new = self.text[self._seen :]
            found = pattern.search(new)
            if found:
                self._seen += found.end()
                return Match(found[0], new[: found.start()], found.groups())
            if not self._receive(deadline - time.monotonic()):
                why = ConsoleTimeout if time.monotonic() >= deadline else ConsoleClosed
                how = f"within {timeout:g} s" if why is ConsoleTimeout else "before the console ended"
                shown = self.text[self._seen :][-_SHOWN:]
                raise why(f"{pattern.pattern!r} did not come {how}; what came ends with:\n{shown}")

    def send(self, text: str) -> None:
        """Type `text` as it is. Raises: ConsoleClosed."""
        try:
            self._socket.settimeout(30)
            self._socket.sendall(text.encode())
        except OSError as error:
            raise ConsoleClosed(f"nothing can be typed: {error}") from error

    def send_line(self, text: str = "") -> None:
        """Type `text` and Return."""
        self.send(text + "\n")

    def drain(self, quiet: float = 0.1) -> str:
        """Take all that comes until nothing has come for `quiet` seconds, and skip it. Returns it."""
        start = self._seen
        while self._receive(quiet):
            pass
        self._seen = len(self.text)
        return self.text[start:]

    def reconnect(self, wait_seconds: float = 10.0) -> None:
        """Connect anew (xenconsoled was restarted), skipping what it shows again."""
        self.close()
        self._partial = b""
        self._socket = _connect(self.path, wait_seconds)
        self.drain()

    def close(self) -> None:
        """Let go of the socket. May be called twice."""
        self._socket.close()

    def _receive(self, seconds: float) -> bool:
        """Take what is there, waiting for some at most `seconds`; False when nothing came or will come."""
        if seconds <= 0:
            return False
        try:
            self._socket.settimeout(seconds)
            data = self._socket.recv(65536)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        if not data:
            return False
        data = self._partial + data
        text, self._partial = _decode(data)
        self.text += text.replace("\r\n", "\n")
        dropped = max(0, len(self.text) - MAX_KEPT)
        self.text = self.text[dropped:]
        self._seen = max(0, self._seen - dropped)
        return True


def _decode(data: bytes) -> tuple[str, bytes]:
    """UTF-8 as far as it goes. A last CR, or the beginning of a character, waits for what follows."""
    keep = 1 if data.endswith(b"\r") else 0
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            keep = back if back < length else 0
            break
        if byte < 0x80:
            break
    cut = len(data) - keep
    return data[:cut].decode(errors="replace"), data[cut:]


def _connect(path: Path, wait_seconds: float) -> socket.socket:
    deadline = time.monotonic() + wait_seconds
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
            return sock
        except OSError as error:
            sock.close()
            if time.monotonic() >= deadline:
                raise ConsoleClosed(f"no console at {path}: {error.strerror}") from error
        time.sleep(0.005)
