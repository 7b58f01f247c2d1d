"""The xenstore client of a guest: over its ring, on our own daemon in the same process."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio

from dom0.xenstored.connection import Connection
from dom0.xenstored.daemon import Daemon
from dom0.xenstored.rings import GuestRing
from hyper.guest import Port, xenstore
from hyper.guest.rings import ConsoleRing, GuestConsoleRing
from hyper.guest.xenstore import Transaction, XenstoreClient, XenstoreGone
from hyper.public.errors import AccessDenied, NoSuchNode
from hyper.public.xs_wire import XsType as X
from tests.paper_ports import pair
from tests.xenstore_kit import PATIENCE, DirectCaller, memory_daemon

DOMID = 3


class Page:
    """A mapping of the guest's page, as xenstored has it."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(4096))

    async def close(self) -> None:
        pass


@asynccontextmanager
async def guest(page: Page) -> AsyncIterator[tuple[XenstoreClient, Daemon, DirectCaller]]:
    """A guest's client, the daemon it talks to, and Dom0."""
    daemon = memory_daemon(journalled=True)
    dom0 = DirectCaller(daemon.xs, Connection(0))
    daemon.xs.introduce(DOMID, 0, 0)
    await dom0.ask(X.MKDIR, b"/local/domain/%d" % DOMID)
    await dom0.ask(X.SET_PERMS, b"/local/domain/%d" % DOMID, b"n%d" % DOMID)
    ours, theirs = pair()
    ring = GuestRing(daemon, daemon.xs.domains[DOMID].conn, page, theirs)
    ring.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.run)
        with trio.fail_after(PATIENCE):
            async with xenstore.over_ring(page.view, cast(Port, ours)) as xs:
                yield xs, daemon, dom0
        nursery.cancel_scope.cancel()


async def test_operations() -> None:
    async with guest(Page()) as (xs, _, _):
        await xs.write("data/a", "text")
        assert await xs.read(f"/local/domain/{DOMID}/data/a") == "text"
        assert await xs.directory("data") == ["a"]
        big = "x" * 2000  # a ring and a bit; the quota is 2048
        await xs.write("data/big", big)
        assert await xs.read("data/big") == big

        async def both(tx: Transaction) -> None:
            await tx.write("data/one", "1")
            await tx.write("data/two", "2")

        await xs.transact(both)
        assert await xs.read("data/two") == "2"
        with pytest.raises(NoSuchNode):
            await xs.read("data/none")
        with pytest.raises(AccessDenied):
            await xs.write("/tool/x", "1")


async def test_many_tasks_and_a_watch() -> None:
    """More requests than the ring holds: senders wait for room, and everybody shares one port."""
    async with guest(Page()) as (xs, daemon, dom0):
        got: list[str] = []

        async def one(number: int) -> None:
            await xs.write(f"data/{number}", str(number) * 100)
            got.append(await xs.read(f"data/{number}"))

        async with xs.watch("data/news") as watch:
            assert await anext(watch) == "data/news"
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(one, number)
            assert sorted(got) == sorted(str(number) * 100 for number in range(50))
            await dom0.ask(X.WRITE, b"/local/domain/%d/data/news" % DOMID, raw=b"x")
            daemon.channels[daemon.xs.domains[DOMID].conn].flush()  # as after a request over a socket
            assert await anext(watch) == "data/news"


async def test_a_ring_given_up() -> None:
    """The daemon serves a ring with impossible indices no further: every call says so."""
    page = Page()
    async with guest(page) as (xs, _, _):
        struct.pack_into("<I", page.view, 2052, 99_999)  # req_prod
        with pytest.raises(XenstoreGone):
            await xs.read("data")
        with pytest.raises(XenstoreGone):
            await xs.read("data")


def test_console() -> None:
    page = memoryview(bytearray(4096))
    dom0, guest = ConsoleRing(page), GuestConsoleRing(page)
    assert guest.write(b"hello") == 5
    assert dom0.read_output(100) == b"hello"
    assert guest.write(b"x" * 3000) == 2048
    assert guest.write(b"y") == 0
    assert dom0.write_input(b"typed") == 5
    assert guest.read(2) == b"ty"
    assert guest.read(100) == b"ped"
