"""A domain's console on this terminal: a unix stream socket on one side, stdin and stdout on the other.

Ctrl-] leaves. A terminal is put into raw mode and always put back. Without a terminal stdin and stdout are
pipes: the end of stdin does not end the session, the end of the domain does.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time

from toolstack.xm.client import Fault
from toolstack.xm.errors import Failure, UsageError
from toolstack.xm.options import Options, check_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any

    from toolstack.xm.session import Session

CONSOLE = Options("qn:", {"quiet": "q", "num=": "n"})
ESCAPE = b"\x1d"
PENDING = 1 << 16
"""Bytes kept for a guest that does not read its console; then a pipe waits and a keyboard's keys are lost."""


def attach(session: Session, args: list[str]) -> None:
    """`xm console`."""
    check_count(args, "console", 1, 4)
    options, rest = CONSOLE.parse(args)
    if len(rest) != 1:
        raise UsageError("No domain given")
    if options.get("n", "0") != "0":
        raise UsageError("a domain has only console 0 yet")
    try:
        domid = session.running_domid(rest[0])
    except (Fault, Failure):
        if "q" in options:
            raise Failure(None) from None
        raise
    interact(connect(session.console_socket(domid)), os.isatty(0))


def connect(path: str, wait: float = 1.0) -> socket.socket:
    """The console socket of a domain, for which it waits `wait` seconds at most: xenconsoled makes it a
    moment after the domain appears.

    Raises: Failure.
    """
    deadline = time.monotonic() + wait
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
            return sock
        except OSError as error:
            sock.close()
            if time.monotonic() >= deadline:
                raise Failure(f"the console cannot be reached at {path}: {error.strerror or error}") from None
        time.sleep(0.01)


class _Raw:
    """The terminal at `fd` in raw mode; put back on leaving, on SIGTERM and on SIGHUP too."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.saved: list[Any] = []
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> None:
        import termios
        import tty

        self.saved = termios.tcgetattr(self.fd)
        for number in (signal.SIGTERM, signal.SIGHUP):
            self.handlers[number] = signal.signal(number, self._stop)
        tty.setraw(self.fd)

    @staticmethod
    def _stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import termios

        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        try:
            termios.tcsetattr(self.fd, termios.TCSANOW, self.saved)
            os.write(self.fd, b"\n")
        except (termios.error, OSError):
            pass  # the terminal itself is gone


def interact(sock: socket.socket, terminal: bool, stdin: int = 0, stdout: int = 1) -> None:
    """Carries bytes both ways until the user leaves or the domain ends. Closes the socket."""
    with sock:
        if terminal:
            with _Raw(stdin):
                _carry(sock, stdin, stdout, keyboard=True)
        else:
            _carry(sock, stdin, stdout, keyboard=False)


def _carry(sock: socket.socket, stdin: int, stdout: int, keyboard: bool) -> None:
    sock.setblocking(False)
    pending = b""
    listening = True
    while True:
        readers: list[Any] = [sock]
        if listening and (keyboard or len(pending) < PENDING):
            readers.append(stdin)
        readable, writable, _ = select.select(readers, [sock] if pending else [], [])
        try:
            if sock in readable:
                output = sock.recv(1 << 16)
                if not output:
                    return
                _write_all(stdout, output)
            if stdin in readable:
                data = _read(stdin)
                listening = bool(data)
                data, escape, _ = data.partition(ESCAPE)
                pending += data[: max(0, PENDING - len(pending))] if keyboard else data
                if escape:
                    _flush(sock, pending)
                    return
            if sock in writable:
                pending = pending[sock.send(pending) :]
        except BlockingIOError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # a terminal that hung up
        return b""


def _flush(sock: socket.socket, pending: bytes) -> None:
    """What was typed before Ctrl-] still reaches the guest, if it takes it now."""
    try:
        sock.send(pending)
    except OSError:
        pass


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
