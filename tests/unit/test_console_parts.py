"""Scrollback and log files of xenconsoled."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from dom0.xenconsoled import logfile
from dom0.xenconsoled.logfile import LogWriter, RotatingFile, log_path
from dom0.xenconsoled.scrollback import BYTES, Scrollback
from tests.xenstore_kit import PATIENCE

chunks = st.lists(st.integers(0, 3 * BYTES) | st.integers(0, 100), max_size=12)


@given(chunks)
def test_scrollback_keeps_the_last_bytes(sizes: list[int]) -> None:
    scrollback = Scrollback()
    model = b""
    for number, size in enumerate(sizes):
        data = bytes([number + 1]) * size
        scrollback.append(data)
        model += data
        assert scrollback.text() == model[-BYTES:]
        assert scrollback.written == len(model)
    successor = Scrollback(os.dup(scrollback.fd))
    scrollback.close()
    assert successor.text() == model[-BYTES:]
    successor.close()


def test_scrollback_refuses_another_file(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    with pytest.raises(ValueError, match="scrollback"):
        Scrollback(fd)
    os.close(fd)


def test_log_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "MAX_FILE_BYTES", 1000)
    file = RotatingFile(tmp_path / "log")
    text = b"".join(b"%09d\n" % number for number in range(250))
    for at in range(0, len(text), 70):
        file.write(text[at : at + 70])
    file.close()
    old, new = (tmp_path / "log.1").read_bytes(), (tmp_path / "log").read_bytes()
    assert old + new == text[-len(old + new) :]
    assert len(old) == 1000
    assert 0 < len(new) <= 1000
    assert len(list(tmp_path.iterdir())) == 2


def test_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    for part in (b"one", b"two"):
        file = RotatingFile(tmp_path / "log")
        file.write(part)
        file.close()
    assert (tmp_path / "log").read_bytes() == b"onetwo"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "\0", "x" * 5000, "ü"])
def test_log_path_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    path = log_path(tmp_path, name)
    assert path.parent == tmp_path
    path.write_bytes(b"")


async def test_log_writer_writes_what_is_left_at_the_end(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "log")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        writer.put(b"first ")
        await trio.testing.wait_all_tasks_blocked()
        writer.put(b"last")
        nursery.cancel_scope.cancel()
    assert (tmp_path / "log").read_bytes() == b"first last"


async def test_a_full_disk_loses_bytes_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = True
    real_write = RotatingFile.write

    def write(file: RotatingFile, data: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_write(file, data)

    monkeypatch.setattr(RotatingFile, "write", write)
    writer = LogWriter(tmp_path / "log")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for _ in range(3):
            writer.put(b"x" * 100_000)
            await _until(lambda: not writer._waiting)
        await _until(lambda: writer._lost_before == 300_000)
        full = False
        writer.put(b"after")
        await _until(lambda: writer._lost_before == 0 and not writer._waiting)
        nursery.cancel_scope.cancel()
    assert (tmp_path / "log").read_bytes() == b"\r\n[xenconsoled: 300000 bytes are missing here]\r\nafter"


async def _until(done: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not done():
            await trio.sleep(0.002)


async def test_what_finds_no_room_is_counted(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "log")
    async with trio.open_nursery() as nursery:
        writer.put(b"x" * logfile.MAX_WAITING_BYTES + b"yy")
        writer.put(b"zzz")
        nursery.start_soon(writer.run)
        await _until(lambda: not writer._waiting)
        nursery.cancel_scope.cancel()
    written = (tmp_path / "log").read_bytes()
    assert written[logfile.MAX_WAITING_BYTES :] == b"\r\n[xenconsoled: 5 bytes are missing here]\r\n"


async def test_a_hanging_disk_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    released = threading.Event()
    monkeypatch.setattr(RotatingFile, "write", lambda file, data: released.wait(30) and None)
    monkeypatch.setattr(logfile, "_LAST_SECONDS", 0.01)
    writer = LogWriter(tmp_path / "log")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for _ in range(2000):
            writer.put(b"x" * 100_000)
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    released.set()
