"""The console on a terminal and on pipes."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolstack.xm import console
from toolstack.xm.errors import Failure

ROOT = Path(__file__).resolve().parents[2]
CODE = (
    f"import sys, os; sys.path.insert(0, {str(ROOT)!r})\n"
    "from toolstack.xm import console\n"
    "console.interact(console.connect(sys.argv[1]), os.isatty(0))\n"
)


class Guest:
    """The xenconsoled side of one console."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(10)
        self.conn: socket.socket | None = None

    def accept(self) -> socket.socket:
        self.conn, _ = self._listener.accept()
        self.conn.settimeout(10)
        return self.conn

    def close(self) -> None:
        self._listener.close()
        if self.conn is not None:
            self.conn.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    found = Guest(tmp_path / "7.sock")
    yield found
    found.close()


def start(guest: Guest, **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", CODE, str(guest.path)], **streams)  # type: ignore[call-overload, no-any-return]


def receive(conn: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = conn.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def read_all(fd: int, wanted: bytes) -> bytes:
    data = b""
    deadline = time.monotonic() + 10
    while wanted not in data and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            data += os.read(fd, 4096)
    return data


class TestPipes:
    def test_output_and_input(self, guest: Guest) -> None:
        process = start(guest, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        conn = guest.accept()
        conn.sendall(b"login: ")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"root\n")
        process.stdin.close()
        assert receive(conn, 5) == b"root\n"
        conn.sendall(b"# \xff\x00")
        conn.close()
        assert process.stdout.read() == b"login: # \xff\x00"
        assert process.wait() == 0

    def test_the_end_of_input_does_not_end_the_session(self, guest: Guest) -> None:
        process = start(guest, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        conn = guest.accept()
        time.sleep(0.1)
        conn.sendall(b"x" * 50_000)
        conn.close()
        assert process.stdout is not None
        assert len(process.stdout.read()) == 50_000
        assert process.wait() == 0

    def test_escape_leaves_after_what_came_before_it(self, guest: Guest) -> None:
        process = start(guest, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        conn = guest.accept()
        assert process.stdin is not None
        process.stdin.write(b"halt\n\x1dnot this")
        process.stdin.flush()
        assert receive(conn, 100) == b"halt\n"
        assert process.wait() == 0
        process.stdin.close()


class TestTerminal:
    @pytest.fixture
    def terminal(self) -> Iterator[tuple[int, int]]:
        master, slave = pty.openpty()
        yield master, slave
        os.close(master)
        os.close(slave)

    @staticmethod
    def wait_raw(fd: int, raw: bool) -> None:
        deadline = time.monotonic() + 10
        while bool(termios.tcgetattr(fd)[3] & termios.ICANON) == raw:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def test_raw_until_escape(self, guest: Guest, terminal: tuple[int, int]) -> None:
        master, slave = terminal
        before = termios.tcgetattr(slave)
        process = start(guest, stdin=slave, stdout=slave)
        conn = guest.accept()
        self.wait_raw(slave, True)
        os.write(master, b"\x03\x04ls\r")  # control characters are the guest's
        assert receive(conn, 5) == b"\x03\x04ls\r"
        conn.sendall(b"hello\r\n")
        assert b"hello\r\n" in read_all(master, b"hello\r\n")
        os.write(master, b"\x1d")
        assert process.wait(10) == 0
        assert termios.tcgetattr(slave) == before

    def test_restored_when_the_domain_ends(self, guest: Guest, terminal: tuple[int, int]) -> None:
        _, slave = terminal
        before = termios.tcgetattr(slave)
        process = start(guest, stdin=slave, stdout=slave)
        guest.accept()
        self.wait_raw(slave, True)
        guest.close()
        assert process.wait(10) == 0
        assert termios.tcgetattr(slave) == before

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_restored_after_a_signal(self, guest: Guest, terminal: tuple[int, int], number: int) -> None:
        _, slave = terminal
        before = termios.tcgetattr(slave)
        process = start(guest, stdin=slave, stdout=slave)
        guest.accept()
        self.wait_raw(slave, True)
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        assert termios.tcgetattr(slave) == before

    def test_a_guest_that_does_not_read_does_not_hold_the_user(
        self, guest: Guest, terminal: tuple[int, int]
    ) -> None:
        master, slave = terminal
        process = start(guest, stdin=slave, stdout=slave)
        guest.accept()
        self.wait_raw(slave, True)
        for _ in range(200):
            os.write(master, b"x" * 4000)
        os.write(master, b"\x1d")
        assert process.wait(20) == 0


def test_connect_waits_for_the_socket(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"the console cannot be reached at .*: No such file or directory"):
        console.connect(str(tmp_path / "absent"), wait=0.05)
