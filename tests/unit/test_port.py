"""A port of the guest kit, over two eventfds of the test's own."""

from __future__ import annotations

import os

import pytest
import trio

from hyper.guest import Port
from hyper.guest.ports import SharedWait
from hyper.public.types import EvtchnPort


def make_port() -> tuple[Port, int]:
    """The port, and what makes it pending."""
    upcall = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    async def closed(_: Port) -> None:
        pass

    event = os.dup(upcall)
    return Port(EvtchnPort(1), upcall, os.eventfd(0, os.EFD_CLOEXEC), closed), event


async def test_closed_just_when_it_became_pending(no_leaked_fds: None) -> None:
    """The waiting task was woken for the event, then another closed the port: it read from descriptor -1."""
    for _ in range(20):  # which of two ready tasks runs first is chance
        port, event = make_port()

        async def wait(port: Port = port) -> None:
            with pytest.raises(trio.ClosedResourceError):
                while True:
                    await port.wait()

        async def close(port: Port = port, event: int = event) -> None:
            await trio.lowlevel.wait_readable(event)
            await port.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(close)
            await trio.testing.wait_all_tasks_blocked()
            os.eventfd_write(event, 1)
        os.close(event)


async def test_several_tasks_share_a_port(no_leaked_fds: None) -> None:
    """Each event wakes all of them, and one that is cancelled takes nobody's turn along."""
    port, event = make_port()
    shared = SharedWait(port)
    woken: list[int] = []

    async def wait(number: int) -> None:
        await shared.wait()
        woken.append(number)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()

            async def given_up() -> None:
                with first:
                    await shared.wait()

            nursery.start_soon(given_up)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(3):
                nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            await trio.testing.wait_all_tasks_blocked()
            os.eventfd_write(event, 1)
    assert sorted(woken) == [0, 1, 2]
    await port.close()
    os.close(event)
