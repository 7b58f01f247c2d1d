"""A guest's ring: in parts, without room, with nonsense in it. The guest's half is played over a page in
memory.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from dom0.xenstored.connection import CONGESTED_BYTES, MAX_OUTPUT_BYTES, Connection
from dom0.xenstored.daemon import Daemon
from hyper.public.xs_wire import Message, RingProblem
from hyper.public.xs_wire import XsType as X
from tests.xenstore_kit import DirectCaller, Guest, RingCaller, memory_daemon

OK = b"OK\0"


@asynccontextmanager
async def guests(*domids: int) -> AsyncIterator[tuple[Daemon, DirectCaller, list[Guest]]]:
    daemon = memory_daemon(journalled=True)
    dom0 = DirectCaller(daemon.xs, Connection(0))
    async with trio.open_nursery() as nursery:
        made = [Guest(daemon, domid, nursery) for domid in domids]
        for domid in domids:
            await dom0.ask(X.MKDIR, b"/local/domain/%d" % domid)
            await dom0.ask(X.SET_PERMS, b"/local/domain/%d" % domid, b"n%d" % domid)
        yield daemon, dom0, made
        nursery.cancel_scope.cancel()


async def test_partial_requests_are_consumed() -> None:
    """Linux writes header and body apart, and does not notify again while its header is unread: boot used to
    hang.
    """
    async with guests(1) as (_, _, [guest]):
        message = Message(X.WRITE, 7, 0, b"a\0value").encode()
        for byte in message[:-1]:
            assert guest.caller.send_some(bytes([byte])) == 1
            guest.port.kick()
            await trio.testing.wait_all_tasks_blocked()
            assert guest.caller.index(RingCaller.REQ_CONS) == guest.caller.index(RingCaller.REQ_PROD)
        assert guest.caller.receive_some() == b""
        before = guest.port.nr_notified
        guest.caller.send_some(message[-1:])
        guest.port.kick()
        await trio.testing.wait_all_tasks_blocked()
        assert guest.caller.receive_some() == Message(X.WRITE, 7, 0, OK).encode()
        assert guest.port.nr_notified > before


async def test_messages_larger_than_the_ring() -> None:
    async with guests(1) as (_, _, [guest]):
        value = bytes(range(256)) * 7
        assert await guest.caller.ask(X.WRITE, b"big", raw=value) == OK
        assert await guest.caller.ask(X.READ, b"big") == value


async def test_a_guest_that_does_not_read_is_served_no_further() -> None:
    async with guests(1, 2) as (daemon, dom0, [deaf, other]):
        await dom0.ask(X.WRITE, b"/local/domain/1/big", raw=b"x" * 4000)
        request = Message(X.READ, 1, 0, b"big\0").encode()
        stream = request * 100
        sent = 0
        while True:
            part = deaf.caller.send_some(stream[sent:])
            if not part:
                break
            sent += part
            deaf.port.kick()
            await trio.testing.wait_all_tasks_blocked()
        assert daemon.xs.domains[1].conn.congested
        assert daemon.xs.domains[1].conn.output_bytes < CONGESTED_BYTES + 1024 // len(request) * 4100
        assert await other.caller.ask(X.WRITE, b"x", raw=b"") == OK  # nobody else is held up
        received = b""
        while sent < len(stream) or len(received) < 100 * 4016:
            received += deaf.caller.receive_some()
            sent += deaf.caller.send_some(stream[sent:])
            deaf.port.kick()
            await trio.testing.wait_all_tasks_blocked()
        assert received == Message(X.READ, 1, 0, b"x" * 4000).encode() * 100


async def test_watch_events_of_a_deaf_guest_are_conflated() -> None:
    async with guests(1) as (_, dom0, [guest]):
        await guest.caller.ask(X.WATCH, b"w", b"t")
        for _ in range(200):
            await dom0.ask(X.WRITE, b"/local/domain/1/w", raw=b"")
            guest.ring.flush()
        events = await guest.caller.events()
        assert 1024 // 20 < len(events) < 60
        assert set(events) == {b"w\0t\0"}


async def test_a_deaf_guest_is_cut_off() -> None:
    async with guests(1) as (daemon, dom0, [guest]):
        await guest.caller.ask(X.WATCH, b"w", b"t" * 3000)
        for number in range(MAX_OUTPUT_BYTES // 3000 + 2):
            await dom0.ask(X.WRITE, b"/local/domain/1/w/%d" % number, raw=b"")
            guest.ring.flush()
        assert daemon.xs.domains[1].conn.closed
        assert problem_of(guest) is RingProblem.COMM
        assert not list(daemon.xs.watches)


@pytest.mark.parametrize("at", [RingCaller.REQ_PROD, RingCaller.RSP_CONS])
async def test_impossible_indices_end_that_ring_only(at: int) -> None:
    async with guests(1, 2) as (daemon, dom0, [bad, other]):
        await bad.caller.ask(X.WATCH, b"w", b"t")
        bad.caller.set_index(at, bad.caller.index(at) + 5000)
        bad.port.kick()
        await trio.testing.wait_all_tasks_blocked()
        await dom0.ask(X.WRITE, b"/local/domain/1/w", raw=b"")
        bad.ring.flush()
        assert problem_of(bad) is RingProblem.RINGIDX
        assert daemon.xs.domains[1].conn.closed
        assert await other.caller.ask(X.WRITE, b"x", raw=b"") == OK
        assert await dom0.ask(X.IS_DOMAIN_INTRODUCED, b"1") == b"T\0"


async def test_an_oversized_message_ends_that_ring_only() -> None:
    async with guests(1, 2) as (_, _, [bad, other]):
        good = Message(X.WRITE, 1, 0, b"x\0").encode()
        bad.caller.send_some(good + struct.pack("<IIII", X.READ, 2, 0, 4097) + b"whatever")
        bad.port.kick()
        await trio.testing.wait_all_tasks_blocked()
        assert bad.caller.receive_some() == b""  # also what came before is not answered any more
        assert problem_of(bad) is RingProblem.PROTO
        assert await other.caller.ask(X.READ, b"/local/domain/1/x") == "EACCES"


async def test_release_lets_go_of_page_and_port() -> None:
    async with guests(1) as (daemon, dom0, [guest]):
        assert await dom0.ask(X.RELEASE, b"1") == OK
        daemon.xs.released.append(1)  # the caller, being no daemon, has cleared it
        daemon.settle()
        await trio.testing.wait_all_tasks_blocked()
        assert (guest.page.closed, guest.port.closed) == (1, 1)
        assert not daemon.rings
        assert list(daemon.channels) == []


def problem_of(guest: Guest) -> RingProblem:
    return RingProblem(guest.caller.index(RingCaller.ERROR))
