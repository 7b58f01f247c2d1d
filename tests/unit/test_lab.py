"""The lab without a hypervisor: consoles over a socket, commands in a real shell on a pty, leak reports."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolstack.lab.console import Console, ConsoleClosed, ConsoleTimeout
from toolstack.lab.guest import Guest, GuestError
from toolstack.lab.host import Host, HostError, Resources


@pytest.fixture
def far_end(tmp_path: Path) -> Iterator[tuple[Console, socket.socket]]:
    """A console and the guest's side of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        console = Console(tmp_path / "console")
        far, _ = listener.accept()
        with far:
            yield console, far
    console.close()


def test_expect_goes_on_behind_what_it_found(far_end: tuple[Console, socket.socket]) -> None:
    console, far = far_end
    far.sendall(b"one\r\ntwo\r\nlogin: ")
    found = console.expect("two\n")
    assert (found.text, found.before) == ("two\n", "one\n")
    assert console.expect(re.compile("(log)(in)")).groups == ("log", "in")
    with pytest.raises(ConsoleTimeout, match=r"'one' did not come within 0.05 s(.|\n)*: $"):
        console.expect("one", timeout=0.05)
    console.send_line("root")
    assert far.recv(100) == b"root\n"


def test_text_may_come_in_any_pieces(far_end: tuple[Console, socket.socket]) -> None:
    console, far = far_end
    for byte in "größe €\r\n\r\r\n".encode():
        far.sendall(bytes([byte]))
        console.drain(0.002)
    far.sendall(b"\xff\xfe end")
    console.expect("end")
    assert console.text == "größe €\n\r\n\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} end"


def test_a_console_that_ends(far_end: tuple[Console, socket.socket]) -> None:
    console, far = far_end
    far.sendall(b"last words")
    far.close()
    console.expect("last")
    with pytest.raises(ConsoleClosed, match=r"'more' did not come before the console ended(.|\n)* words"):
        console.expect("more")


def test_no_console_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConsoleClosed, match="no console at"):
        Console(tmp_path / "console", wait_seconds=0.02)


class _ShellGuest(Guest):
    """A guest whose console is a shell of this machine on a pty, with its echo."""

    def __init__(self, console: Console) -> None:
        super().__init__(Host.named("none"), "shell")
        self._console = console


@pytest.fixture(params=["sh", "busybox sh"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    words = request.param.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]} on this machine")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*words, "-i"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        console = Console(tmp_path / "console")
        far, _ = listener.accept()
    carrier = threading.Thread(target=_carry, args=(far, master))
    carrier.start()
    yield _ShellGuest(console)
    console.close()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    carrier.join(5)


def _carry(far: socket.socket, master: int) -> None:
    with far:
        while True:
            for source in select.select([far, master], [], [])[0]:
                try:
                    data = os.read(master, 4096) if source == master else far.recv(4096)
                    if not data:
                        return
                    if source == master:
                        far.sendall(data)
                    else:
                        os.write(master, data)
                except OSError:
                    return


@pytest.mark.parametrize(
    ("command", "output", "status"),
    [
        ("true", "", 0),
        ("echo hi", "hi\n", 0),
        ("printf no-newline", "no-newline", 0),
        ("echo err >&2; exit 7", "err\n", 7),
        ("cat; echo 'quotes \" and $HOME' | wc -c", "19\n", 0),
        ("for i in 1 2 3; do\n\techo line $i\ndone", "line 1\nline 2\nline 3\n", 0),
        ("echo 'a!b' # comment", "a!b\n", 0),
        ("cat <<X\nhere\nX", "here\n", 0),
        ("(exit 3)", "", 3),
        (": " + "x" * 3000 + "; echo long", "long\n", 0),
        ("echo größe", "größe\n", 0),
    ],
)
def test_commands_in_a_shell(shell: Guest, command: str, output: str, status: int) -> None:
    assert shell.run(command, timeout=10) == type(shell.run("true"))(output, status)


def test_a_broken_command_does_not_break_the_shell(shell: Guest) -> None:
    assert shell.run("echo 'unbalanced", timeout=10).status != 0
    assert shell.run("echo fine", timeout=10).output == "fine\n"
    with pytest.raises(GuestError, match="status 5"):
        shell.run("exit 5", check=True, timeout=10)
    with pytest.raises(ConsoleTimeout):
        shell.run("sleep 5", timeout=0.2)


def resources(free: int = 100, ports: int = 3, files: int = 10, pid: int = 7) -> Resources:
    return Resources(
        {"free_frames": free, "nr_ports": ports}, {"hyper": 1}, {pid: files}, {pid: 4}, {pid: "hyper"}
    )


def test_leaks_are_told_apart_from_gains() -> None:
    before = resources()
    assert before.growth(resources()) == []
    assert before.growth(resources(free=120, ports=2, files=9)) == []
    assert before.growth(resources(free=99, ports=4, files=11)) == [
        "free_frames: 100 before, 99 after",
        "nr_ports: 3 before, 4 after",
        "open files of hyper: 10 before, 11 after",
    ]
    assert before.growth(resources(pid=8, files=50)) == []  # restarted: another process
    other = Resources({}, {"xend": 1}, {9: 5}, {9: 1}, {9: "xend"})
    more = Resources({}, {"xend": 1}, {9: 6}, {9: 2}, {9: "xend"})
    assert other.growth(more) == []
    assert len(other.growth(more, everything=True)) == 2
    gone = Resources({}, {}, {}, {}, {})
    assert before.growth(gone) == ["hyper processes: 1 before, 0 after"]


def test_a_host_that_is_not_up(tmp_path: Path) -> None:
    host = Host.private("t")
    assert not host.is_up() and host.state() is None and not host.stop()
    with pytest.raises(HostError, match="xend does not run"):
        host.daemon("xend")
    with pytest.raises(OSError):
        host.statistics()
    assert host.xm("list", check=False).returncode == 1
