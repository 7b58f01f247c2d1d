"""One guest's console: the ring is always drained, whoever does not read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from dom0.xenconsoled import scrollback
from dom0.xenconsoled.console import Console
from dom0.xenconsoled.logfile import LogWriter
from dom0.xenconsoled.scrollback import Scrollback
from tests.console_kit import IN_BYTES, OUT_PROD, ConsoleGuest
from tests.xenstore_kit import PATIENCE


class Running:
    def __init__(self, guest: ConsoleGuest, console: Console, folder: Path) -> None:
        self.guest = guest
        self.console = console
        self.socket = folder / "1.sock"
        self.log = folder / "log"

    async def print(self, text: bytes) -> None:
        """The guest prints all of it, as fast as its ring is drained."""
        with trio.fail_after(PATIENCE):
            while text:
                text = text[self.guest.print(text) :]
                await trio.testing.wait_all_tasks_blocked()

    async def attach(self) -> trio.SocketStream:
        stream = await trio.open_unix_socket(str(self.socket))
        await trio.testing.wait_all_tasks_blocked()
        return stream


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Running]:
    guest = ConsoleGuest()
    console = Console(1, guest.page, guest.port, Scrollback(), LogWriter(folder / "log"))
    async with trio.open_nursery() as nursery:
        await nursery.start(console.run, folder / "1.sock")
        yield Running(guest, console, folder)
        await console.stop()
    assert (guest.page.closed, guest.port.closed) == (1, 1)
    assert not (folder / "1.sock").exists()


async def receive(stream: trio.SocketStream, nbytes: int) -> bytes:
    data = b""
    with trio.fail_after(PATIENCE):
        while len(data) < nbytes:
            part = bytes(await stream.receive_some())
            assert part, data[-200:]
            data += part
    return data


async def test_scrollback_then_live_to_several_viewers(tmp_path: Path, no_leaked_fds: None) -> None:
    async with running(tmp_path) as it:
        await it.print(b"before\r\n")
        async with await it.attach() as one, await it.attach() as two:
            await it.print(b"live\r\n")
            for viewer in (one, two):
                assert await receive(viewer, 14) == b"before\r\nlive\r\n"
        async with await it.attach() as late:
            assert await receive(late, 14) == b"before\r\nlive\r\n"
    assert it.log.read_bytes() == b"before\r\nlive\r\n"


async def test_the_ring_is_drained_without_any_viewer(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        text = bytes(range(256)) * 1000
        await it.print(text)
        async with await it.attach() as viewer:
            assert await receive(viewer, scrollback.BYTES) == text[-scrollback.BYTES :]
        before = it.guest.port.nr_notified
        await it.print(b"x")
        assert it.guest.port.nr_notified > before  # the guest is told that there is room


async def test_a_viewer_that_does_not_read_misses_some_and_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as it, await it.attach() as slow, await it.attach() as fast:
        line = b"%07d\r\n"
        nr_lines = 120_000
        seen = bytearray()
        for start in range(0, nr_lines, 200):
            await it.print(b"".join(line % number for number in range(start, start + 200)))
            seen += await receive(fast, 200 * 9)
        assert seen == b"".join(line % number for number in range(nr_lines))
        data = b""
        with trio.move_on_after(0.5):
            while True:
                data += bytes(await slow.receive_some())
        lost = int(data.partition(b"[xenconsoled: ")[2].split()[0])
        shown = data.partition(b"\r\n[xenconsoled")[0]
        assert len(shown) + lost == nr_lines * 9
        await it.print(b"and on\r\n")
        assert await receive(slow, 8) == b"and on\r\n"


async def test_typed_keys_wait_for_the_guest(tmp_path: Path) -> None:
    async with running(tmp_path) as it, await it.attach() as viewer:
        text = bytes(range(256)) * 16
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(viewer.send_all, text)
            with trio.fail_after(PATIENCE):
                while len(received) < len(text):
                    part = it.guest.typed()
                    assert len(part) <= IN_BYTES
                    received += part
                    await trio.testing.wait_all_tasks_blocked()
        assert received == text


async def test_a_guest_that_does_not_read_keys_goes_on_printing(tmp_path: Path, no_leaked_fds: None) -> None:
    async with running(tmp_path) as it:
        async with await it.attach() as typist:
            await typist.send_all(b"k" * 3000)
            await it.print(b"x" * 5000)
            assert await receive(typist, 5000) == b"x" * 5000
        await trio.testing.wait_all_tasks_blocked()  # his hang-up is noticed although keys still wait
        assert not it.console._viewers


@pytest.mark.parametrize("ahead", [2049, 1 << 31])
async def test_a_nonsensical_ring_harms_nobody(ahead: int, tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.print(b"fine\r\n")
        prod = it.guest.index(OUT_PROD)
        it.guest.set_index(OUT_PROD, prod + ahead)
        it.guest.port.kick()
        await trio.testing.wait_all_tasks_blocked()
        async with await it.attach() as viewer:
            assert await receive(viewer, 6) == b"fine\r\n"
            it.guest.set_index(OUT_PROD, prod)
            await it.print(b"again\r\n")
            assert await receive(viewer, 7) == b"again\r\n"


async def test_the_last_words_are_shown(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        viewer = await it.attach()
        it.guest.print(b"last words\r\n")
        it.guest.port._pending = trio.Event()  # the event got lost with the domain
    async with viewer:
        assert await receive(viewer, 12) == b"last words\r\n"
        assert await viewer.receive_some() == b""
    assert it.log.read_bytes() == b"last words\r\n"
