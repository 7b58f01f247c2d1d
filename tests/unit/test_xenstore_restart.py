"""xenstored is killed at every possible moment, and its successor goes on: no request is served twice or
lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from dom0.xenstored import journal as journal_module
from dom0.xenstored.connection import Connection
from dom0.xenstored.daemon import Daemon
from dom0.xenstored.domain_requests import check
from dom0.xenstored.journal import Journal, JournalError, append, encode, new_file, read_back
from dom0.xenstored.permissions import NONE, Permission
from dom0.xenstored.restart import Restorer, RingState, fire_all_watches, snapshot
from dom0.xenstored.xenstore import Xenstore
from hyper.guest.rings import XenstoreRing
from hyper.public.xs_wire import Decoder, Message
from hyper.public.xs_wire import XsType as X
from tests.xenstore_kit import DirectCaller, Guest, MemoryPage, MemoryPort, RingCaller

OK = b"OK\0"


class Killed(Exception):
    """Stands for SIGKILL: nothing of ours runs after it but what would have been done before."""


class Killer:
    """Counts the moments at which it matters whether we are dead, and kills at the chosen one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = -1
        self.count = 0
        for owner, name in ((XenstoreRing, "consume_requests"), (XenstoreRing, "write_responses"),
                            (MemoryPort, "notify")):  # fmt: skip
            monkeypatch.setattr(owner, name, self._around(getattr(owner, name)))
        monkeypatch.setattr(journal_module, "append", self._append)

    def moment(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise Killed

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def killing(*arguments: Any) -> Any:
            self.moment()
            result = function(*arguments)
            self.moment()
            return result

        return killing

    def _append(self, fd: int, record: bytes) -> None:
        self.count += 1
        if self.count == self.at:
            append(fd, record[: len(record) // 2])  # a signal may cut a write short
            raise Killed
        append(fd, record)
        self.moment()


# Requests of a guest. Each would be answered differently, or make a difference, if it were served twice.
SCRIPT: list[tuple[X, int, bytes, bytes]] = [
    (X.WATCH, 0, b"w\0t\0", OK),
    (X.WATCH, 0, b"gone\0t\0", OK),
    (X.UNWATCH, 0, b"gone\0t\0", OK),
    (X.WRITE, 0, b"w/a\0" + b"1" * 700, OK),
    (X.READ, 0, b"w/a\0", b"1" * 700),
    (X.TRANSACTION_START, 0, b"\0", b"1\0"),
    (X.WRITE, 1, b"in-transaction\0x", OK),
    (X.TRANSACTION_END, 1, b"F\0", OK),
    (X.TRANSACTION_END, 1, b"F\0", b"ENOENT\0"),
    (X.MKDIR, 0, b"dir/sub\0", OK),
    (X.SET_PERMS, 0, b"dir\0n1\0r2\0", OK),
    (X.DIRECTORY, 0, b"dir\0", b"sub\0"),
    (X.RM, 0, b"dir\0", OK),
    (X.READ, 0, b"dir\0", b"ENOENT\0"),
    (X.TRANSACTION_START, 0, b"\0", b"2\0"),
    (X.TRANSACTION_END, 2, b"F\0", OK),
    (X.WRITE, 0, b"last\0" + b"z" * 1500, OK),
    (X.READ, 0, b"last\0", b"z" * 1500),
]


class Host:
    """What outlives xenstored: hyper's fd store, and a guest in the middle of its script."""

    def __init__(self) -> None:
        self.fd, _ = new_file([])
        self.page = MemoryPage()
        self.caller = RingCaller(self.page.view, lambda: None, trio.testing.wait_all_tasks_blocked)
        self.stream = b"".join(
            Message(kind, number, tx_id, payload).encode()
            for number, (kind, tx_id, payload, _) in enumerate(SCRIPT)
        )
        self.decoder = Decoder()
        self.replies: list[Message] = []
        self.events: list[bytes] = []
        self.nr_lives = 0

    async def live(self) -> None:
        """One life of xenstored: until the script is done, or it is killed."""
        self.nr_lives += 1
        daemon, known = restored(self.fd)
        try:
            async with trio.open_nursery() as nursery:
                guest = Guest(daemon, 1, nursery, known.get(1), self.page)
                fire_all_watches(daemon.xs)
                daemon.settle()
                await self._play(guest)
                nursery.cancel_scope.cancel()
        finally:
            for fd in daemon.journal.files if daemon.journal else ():
                os.close(fd)

    async def _play(self, guest: Guest) -> None:
        idle = 0
        while len(self.replies) < len(SCRIPT):
            sent = guest.caller.send_some(self.stream[:50])  # in parts
            self.stream = self.stream[sent:]
            received = guest.caller.receive_some()
            self.decoder.feed(received)
            for message in self.decoder:
                if message.type == X.WATCH_EVENT:
                    self.events.append(message.payload)
                else:
                    self.replies.append(message)
            guest.port.kick()
            await trio.testing.wait_all_tasks_blocked()
            idle = 0 if sent or received else idle + 1
            assert idle < 10, "the guest waits for ever"


def restored(fd: int) -> tuple[Daemon, dict[int, RingState]]:
    """What a new xenstored makes of the journal."""
    journal = Journal()
    xs = Xenstore(journal)
    restorer = Restorer(xs)
    journal.mute(True)
    restorer.run(read_back(fd))
    journal.mute(False)
    journal.begin(os.dup(fd), os.fstat(fd).st_size)
    return Daemon(xs, journal), restorer.rings


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    return Killer(monkeypatch)


async def play(killer: Killer, kill_at: list[int]) -> Host:
    """The script with a kill at each of these moments, counted from the one before."""
    killer.at = -1
    host = Host()
    prepare(host)
    try:
        for at in [*kill_at, -1]:
            killer.at, killer.count = at, 0
            try:
                await host.live()
                break
            except* (Killed, JournalError):  # the dying task may try to write once more
                pass
    finally:
        os.close(host.fd)
    return host


def prepare(host: Host) -> None:
    xs = Xenstore()
    xs.introduce(1, 1, 1)
    xs.store.put(b"/local", b"", xs.store.nodes[b"/"].perms)
    xs.store.put(b"/local/domain", b"", xs.store.nodes[b"/"].perms)
    xs.store.put(b"/local/domain/1", b"", (Permission(NONE, 1),))
    record = encode([*snapshot(xs, {}), ("ring", 1, 0, 0)])
    append(host.fd, record)


def verify(host: Host) -> None:
    assert [(reply.req_id, reply.payload) for reply in host.replies] == [
        (number, expected) for number, (*_, expected) in enumerate(SCRIPT)
    ]
    assert host.stream == b""
    once = [b"w\0t\0", b"gone\0t\0", b"w/a\0t\0"]
    for event in once:
        assert event in host.events
    again = len(host.events) - len(once)
    assert 0 <= again <= 2 * (host.nr_lives - 1)


async def test_killed_once_at_every_moment(killer: Killer) -> None:
    undisturbed = await play(killer, [])
    verify(undisturbed)
    nr_moments = killer.count
    assert nr_moments > 100
    for at in range(1, nr_moments + 1):
        verify(await play(killer, [at]))


async def test_killed_again_and_again(killer: Killer) -> None:
    for period in (1, 2, 3, 5, 8, 13, 21):
        verify(await play(killer, [period + 3 * life for life in range(60)]))


# --- the journal and what it restores


@pytest.fixture
def full_store() -> Iterator[tuple[Daemon, DirectCaller]]:
    """A journalled store with something of everything in it."""
    fd, nbytes = new_file([])
    journal = Journal()
    journal.begin(fd, nbytes)
    xs = Xenstore(journal)
    yield Daemon(xs, journal), DirectCaller(xs, Connection(0))
    journal.close()


async def fill(daemon: Daemon, dom0: DirectCaller) -> None:
    xs = daemon.xs
    for domid in (1, 2, 3):
        xs.introduce(domid, 10 + domid, 20 + domid)
        await dom0.ask(X.MKDIR, b"/local/domain/%d" % domid)
        await dom0.ask(X.SET_PERMS, b"/local/domain/%d" % domid, b"n%d" % domid, b"r3")
        daemon.journal("ring", domid, 100 * domid, 200 * domid)  # type: ignore[misc]
    guest = DirectCaller(xs, xs.domains[1].conn)
    await guest.ask(X.WRITE, b"x", raw=b"value \xff\0")
    await guest.ask(X.WATCH, b"x", b"token")
    await guest.ask(X.WATCH, b"/local", b"token2")
    await guest.start()
    await dom0.ask(X.SET_PERMS, b"@releaseDomain", b"n0", b"r1")
    await dom0.ask(X.SET_TARGET, b"2", b"1")
    tx = await dom0.start()
    await dom0.ask(X.WRITE, b"/by-transaction/z", raw=b"1", tx=tx)
    await dom0.ask(X.WRITE, b"/by-transaction/a", raw=b"1", tx=tx)
    await dom0.ask(X.TRANSACTION_END, b"T", tx=tx)
    await dom0.ask(X.RELEASE, b"3")
    xs.set_shutdown(2, True)
    daemon.settle()


def state_of(xs: Xenstore) -> object:
    return (
        {path: (node.value, node.perms, list(node.children)) for path, node in xs.store.nodes.items()},
        xs.store.special_perms,
        +xs.store.nr_owned,
        {
            domid: (
                domain.gfn, domain.port, domain.shutdown, domain.conn.target, domain.conn.last_tx_id,
                list(domain.conn.transactions), list(domain.conn.watches),
            )
            for domid, domain in xs.domains.items()
        },
    )  # fmt: skip


async def test_journal_restores_the_state(full_store: tuple[Daemon, DirectCaller]) -> None:
    daemon, dom0 = full_store
    await fill(daemon, dom0)
    assert daemon.journal
    found, rings = restored(daemon.journal.files[0])
    assert state_of(found.xs) == state_of(daemon.xs)
    assert check(found.xs.store) == []
    assert found.xs.store.generation == daemon.xs.store.generation
    assert rings.keys() == {1, 2}
    found.journal.close()  # type: ignore[union-attr]


async def test_compacted_journal_restores_the_same(full_store: tuple[Daemon, DirectCaller]) -> None:
    daemon, dom0 = full_store
    await fill(daemon, dom0)
    fd, _ = new_file(snapshot(daemon.xs, {1: RingState(5, 6, b"rest", bytearray(b"unsent"))}))
    found, rings = restored(fd)
    assert state_of(found.xs) == state_of(daemon.xs)
    assert found.xs.store.generation >= daemon.xs.store.generation
    assert rings == {1: RingState(5, 6, b"rest", bytearray(b"unsent"))}
    found.journal.close()  # type: ignore[union-attr]
    os.close(fd)


async def test_own_nodes_stay_removed(full_store: tuple[Daemon, DirectCaller]) -> None:
    daemon, dom0 = full_store
    for path in (b"/tool/xenstored", b"/tool"):
        await dom0.ask(X.RM, path)
        fd, _ = new_file(snapshot(daemon.xs, {}))
        found, _ = restored(fd)
        assert state_of(found.xs) == state_of(daemon.xs)
        found.journal.close()  # type: ignore[union-attr]
        os.close(fd)


async def test_open_transactions_end_with_eagain(full_store: tuple[Daemon, DirectCaller]) -> None:
    daemon, dom0 = full_store
    await fill(daemon, dom0)
    assert daemon.journal
    found, _ = restored(daemon.journal.files[0])
    guest = DirectCaller(found.xs, found.xs.domains[1].conn)
    assert await guest.ask(X.READ, b"x", tx=1) == b"value \xff\0"
    assert await guest.ask(X.WRITE, b"x", raw=b"new", tx=1) == OK
    assert await guest.ask(X.TRANSACTION_END, b"T", tx=1) == "EAGAIN"
    assert await guest.ask(X.READ, b"x") == b"value \xff\0"
    assert await guest.start() == 2
    found.journal.close()  # type: ignore[union-attr]


async def test_journal_is_compacted_while_requests_go_on(
    full_store: tuple[Daemon, DirectCaller], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MIN_COMPACT_BYTES", 4096)
    daemon, dom0 = full_store
    await fill(daemon, dom0)
    assert daemon.journal
    daemon.journal.compact_at = 4096
    put: list[int] = []

    async def slow_put(fd: int) -> None:
        put.append(os.dup(fd))
        await trio.testing.wait_all_tasks_blocked()
        await dom0.ask(X.WRITE, b"/while-hyper-is-asked", raw=b"")
        daemon.xs.with_output[dom0.conn] = None
        daemon.settle()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.keep_journal_short, slow_put)
        for number in range(300):
            await dom0.ask(X.WRITE, b"/count", raw=b"%d" % number)
            await dom0.ask(X.INTRODUCE, b"9", b"1", b"1")
            daemon.xs.with_output[dom0.conn] = None
            daemon.settle()
            await dom0.ask(X.RELEASE, b"9")  # not settled while the journal is compacted
            await trio.testing.wait_all_tasks_blocked()
        daemon.settle()
        nursery.cancel_scope.cancel()
    assert put
    assert os.fstat(daemon.journal.files[0]).st_size < 20_000
    found, _ = restored(put[-1])
    assert state_of(found.xs) == state_of(daemon.xs)
    found.journal.close()  # type: ignore[union-attr]
    for fd in put:
        os.close(fd)


def test_a_record_cut_short_never_happened() -> None:
    whole = encode([("generation", 5)]) + encode([("generation", 6)])
    for length in range(len(whole)):
        fd, _ = new_file([])
        empty = os.fstat(fd).st_size
        append(fd, whole[:length])
        found = list(read_back(fd))
        assert found == [("generation", 5)] * (length >= len(whole) // 2)
        assert os.fstat(fd).st_size == empty + len(whole) // 2 * len(found)
        os.close(fd)


def test_catch_up() -> None:
    state = RingState(consumed=3, produced=0xFFFFFFFE, unsent=bytearray(b"0123456789"))
    assert state.catch_up(consumed=0xFFFFFFFF, produced=4) == 4  # both wrapped
    assert state.unsent == b"6789"
    with pytest.raises(ValueError, match="replies"):
        state.catch_up(consumed=3, produced=9)
