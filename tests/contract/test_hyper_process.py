"""hyper as a process: start, refusal of a second one, what it gave up, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import hyper.guest
from hyper.guest import abi
from hyper.public.paths import HostPaths

ROOT = Path(__file__).resolve().parents[2]
FAKE = "import sys; from tests.fake_core import FakeCore; from hyper import binding, __main__ as m;" \
       " binding.load = FakeCore; sys.exit(m.main(sys.argv[1:]))"  # fmt: skip


@pytest.fixture(params=["fake", "core"])
def command(request: pytest.FixtureRequest) -> list[str]:
    start = ["-c", FAKE] if request.param == "fake" else ["-m", "hyper"]
    return [sys.executable, *start, "--host", "t", "--memory", "64M", "--cpus", "1"]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Serves inside; killed at the end if it still runs."""
    ready, theirs = os.pipe()
    try:
        process = subprocess.Popen(
            [*command, "--ready-fd", str(theirs)],
            cwd=ROOT,
            pass_fds=[theirs],
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(theirs)
        try:
            if os.read(ready, 2) != b"\n":
                pytest.fail(f"hyper did not start: {process.communicate()[1]}")
            assert os.read(ready, 1) == b""
            yield process
        finally:
            process.kill()
            process.communicate()
    finally:
        os.close(ready)


def test_life(command: list[str], host_paths: HostPaths) -> None:
    with started(command) as process:
        assert host_paths.control.stat().st_mode & 0o777 == 0o600
        status = Path(f"/proc/{process.pid}/status").read_text().split("\n")
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            assert "Seccomp:\t2" in (task / "status").read_text().split("\n")

        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
        assert second.returncode == 1
        assert "host 't' already runs" in second.stderr
        assert host_paths.control.exists()

        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0
        assert not host_paths.control.exists()
        assert len(log.splitlines()) == 2, log
        assert "hyper serves" in log
        assert "hyper has stopped" in log


async def test_serves_and_survives_bad_clients(command: list[str], host_paths: HostPaths) -> None:
    with started(command) as process:
        async with hyper.guest.connect(host_paths.control) as hyp:
            assert await hyp.hypercall(abi.nr.xen_version, 0, 0) == 4 << 16 | 17
            with pytest.raises(hyper.guest.HypervisorGone, match="hello comes first, and once"):
                async with hyper.guest.connect(host_paths.control) as bad:
                    await bad._start()
            assert await hyp.hypercall(abi.nr.xen_version, 0, 0) == 4 << 16 | 17
            process.kill()
            assert await hyp.wait_gone()


def test_starts_over_what_a_killed_one_left(command: list[str], host_paths: HostPaths) -> None:
    with started(command) as process:
        process.kill()
        process.wait()
        assert host_paths.control.exists()
    with started(command):
        pass


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--memory", "lots"], "want a number with M or G"),
        (["--cpus", "0"], "want 1 to 64"),
        (["--host", "a/b"], "host name 'a/b'"),
        (["--scheduler", "lottery"], "invalid choice"),
    ],
)
def test_bad_arguments(arguments: list[str], reason: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FAKE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert run.returncode != 0
    assert reason in run.stderr
    assert "Traceback" not in run.stderr


def test_confined_process_keeps_what_it_needs() -> None:
    """Every door of confine.DENIED that Python can knock at is shut, in threads from before as well."""
    script = textwrap.dedent("""
        import ctypes, mmap, os, socket, subprocess, tempfile, threading
        from hyper.confine import DENIED, confine
        path = tempfile.mktemp()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path); listener.listen()
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        go, result = threading.Event(), []

        def refused(call, *args, wanted=PermissionError):
            try:
                call(*args)
            except wanted:
                return True
            return False

        def early():
            go.wait()
            result.append(refused(open, "/dev/null"))

        thread = threading.Thread(target=early)
        thread.start()
        libc = ctypes.CDLL(None, use_errno=True)
        confine()
        go.set()
        thread.join()
        assert result == [True], "a thread from before is free"
        assert refused(open, "/dev/null")
        assert refused(os.open, "/tmp", os.O_RDONLY)
        assert refused(socket.socket)
        assert refused(os.fork)
        assert refused(os.execv, "/bin/true", ["true"])
        assert refused(subprocess.run, ["/bin/true"])
        for name, nr in DENIED.items():
            ctypes.set_errno(0)
            assert libc.syscall(nr, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1, name
        ctypes.set_errno(0)
        assert libc.syscall(435, 0, 0) == -1 and ctypes.get_errno() == 38
        assert libc.syscall(0x40000000 | 39) == -1

        late = threading.Thread(target=lambda: result.append("late"))
        late.start()
        late.join()
        assert result[-1] == "late"
        client.connect(path)
        sock, _ = listener.accept()
        fd = os.memfd_create("x")
        socket.send_fds(sock, [b"x"], [fd])
        assert socket.recv_fds(client, 1, 1)[0] == b"x"
        os.ftruncate(fd, 4096)
        mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE).close()
        mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
        assert refused(mmap.mmap, fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE | mmap.PROT_EXEC)
        os.close(os.eventfd(0))
        os.unlink(path)
        print("fine")
    """)
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert run.stdout == "fine\n", run.stderr
