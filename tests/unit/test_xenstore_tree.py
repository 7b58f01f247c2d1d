"""Paths, permissions, watches, shapes of payloads: the pure parts one by one."""

from __future__ import annotations

import time

import pytest

from dom0.xenstored.connection import Connection
from dom0.xenstored.errors import Refused
from dom0.xenstored.paths import absolute, parent_of, split
from dom0.xenstored.permissions import (
    ALL,
    NONE,
    OWNER,
    READ,
    WRITE,
    Permission,
    access_of,
    encode,
    made_by,
    parse,
    without_domain,
)
from dom0.xenstored.requests import number, one_string, strings
from dom0.xenstored.tree import Store
from dom0.xenstored.watches import WatchTable
from dom0.xenstored.xenstore import DomainState, Xenstore
from hyper.public.xenbus import XenbusState, backend_path, frontend_path, parse_state
from hyper.public.xs_wire import ERROR_NAMES, XsType
from tests.xenstore_kit import DirectCaller


def test_absolute() -> None:
    assert absolute(b"a/b", 3) == b"/local/domain/3/a/b"
    assert absolute(b"/a", 3) == b"/a"
    assert absolute(b"/", 3) == b"/"
    assert absolute(b"/local/domain/99/" + b"x" * 2048, 0)
    too_long = b"/local/domain/9/" + b"x" * 2049
    for bad in (b"", b"a//b", b"/a\0", b"/a\n", b"/\xc3\xbc", b"@introduceDomain", too_long):
        with pytest.raises(Refused, match="EINVAL"):
            absolute(bad, 0)


def test_split() -> None:
    assert split(b"/a") == (b"/", b"a")
    assert split(b"/a/b") == (b"/a", b"b")
    assert parent_of(b"/a/b/c") == b"/a/b"
    assert parent_of(b"/a") == b"/"


def test_access() -> None:
    perms = parse([b"r1", b"w2", b"n3", b"b2"])
    assert access_of(perms, 0) == ALL
    assert access_of(perms, 1) == ALL
    assert access_of(perms, 2) == WRITE  # the first entry of a domain counts
    assert access_of(perms, 3) == NONE
    assert access_of(perms, 4) == READ
    assert access_of(perms, 4, target=1) == READ | WRITE | OWNER
    assert access_of(perms, 4, target=2) == WRITE
    stale = without_domain(perms, 2)
    assert access_of(stale, 2) == READ
    assert encode(stale) == encode(perms) == b"r1\0w2\0n3\0b2\0"
    assert without_domain(perms, 7) is perms


def test_inheritance() -> None:
    perms = parse([b"r1", b"w2"])
    assert made_by(perms, 0) == perms
    assert made_by(perms, 5) == (Permission(READ, 5), Permission(WRITE, 2))


@pytest.mark.parametrize("entries", [[], [b""], [b"x1"], [b"r"], [b"r1 "], [b"rr1"], [b"r-1"], [b"r1", b""]])
def test_what_is_no_permission(entries: list[bytes]) -> None:
    with pytest.raises(Refused, match="EINVAL"):
        parse(entries)


def test_owner_must_be_a_possible_domain() -> None:
    with pytest.raises(Refused, match="ENOENT"):
        parse([b"n32752"])


def test_payload_shapes() -> None:
    assert one_string(b"abc\0") == b"abc"
    assert strings(b"a\0b\0rest", 2) == [b"a", b"b"]
    for bad in (b"", b"abc", b"a\0b\0", b"a\0\0"):
        with pytest.raises(Refused, match="EINVAL"):
            one_string(bad)
    with pytest.raises(Refused, match="EINVAL"):
        strings(b"a\0b", 2)
    assert [number(text) for text in (b"12", b" 12x", b"x", b"", b"-3", b"+4", b"9" * 5000)] == [
        12, 12, 0, 0, -3, 4, int("9" * 20),
    ]  # fmt: skip


def test_watch_table() -> None:
    table: WatchTable[str] = WatchTable()
    paths = (b"/a/b", b"/", b"/a", b"/a/bc", b"@x", b"/a/b/c")
    watches = [table.add("owner", path, b"t", 0) for path in paths]
    assert table.matching(b"/a/b") == watches[:3]
    assert table.matching(b"/a/b", exact=True) == watches[:1]
    assert table.matching(b"@x") == [watches[4]]
    assert table.matching(b"@y") == []
    for watch in watches:
        table.discard(watch)
    assert not list(table)
    assert table.matching(b"/a/b") == []


def test_relative_events() -> None:
    table: WatchTable[str] = WatchTable()
    watch = table.add("owner", b"/local/domain/7/a", b"t", len(b"/local/domain/7/"))
    assert watch.event(b"/local/domain/7/a/b") == b"a/b\0t\0"


def test_output_is_kept_until_it_is_sent() -> None:
    conn = Connection(1)
    conn.queue_event(b"a\0t\0")
    conn.queue_event(b"a\0t\0")
    conn.queue_event(b"b\0t\0")
    assert len(conn.output()) == 2 * 20
    conn.sent(15)
    conn.queue_event(b"a\0t\0")  # still on its way
    assert len(conn.output()) == 25
    conn.sent(5)
    conn.queue_event(b"a\0t\0")  # the reader has the first one: this is news
    assert conn.output()[16:] == b"b\0t\0" + conn.output()[20:]
    assert len(conn.output()) == conn.output_bytes == 40
    conn.sent(40)
    assert conn.output() == b""


def test_a_part_of_a_long_queue() -> None:
    conn = Connection(1)
    for serial in range(50):
        conn.queue_event(b"%02d\0t\0" % serial)
    whole = conn.output()
    for enough in (1, 21, 22, 100, len(whole), len(whole) + 1):
        part = conn.output(enough)
        assert whole.startswith(part)
        assert len(part) >= min(enough, len(whole))
        assert len(part) < enough + 22
    conn.sent(30)
    assert conn.output(60) == whole[30:105]


def test_a_deep_tree_is_removed() -> None:
    """A recursive removal met Python's limit at about a thousand levels."""
    store = Store()
    root = store.nodes[b"/"].perms
    path = b""
    for _ in range(1020):
        path += b"/a"
        store.put(path, b"", root)
    store.remove(b"/a")
    assert list(store.nodes) == [b"/"]
    assert store.nr_owned[0] == 1


def test_dead_root_owner() -> None:
    store = Store()
    store.put(b"/", b"", parse([b"r5", b"w5"]))
    store.forget_domain(5)
    assert store.nodes[b"/"].perms == (Permission(READ, 0), Permission(WRITE, 5, stale=True))


async def test_domain_states() -> None:
    xs = Xenstore()
    dom0 = DirectCaller(xs, Connection(0))
    await dom0.ask(XsType.WATCH, b"@releaseDomain", b"t")
    for domid in (1, 2):
        xs.introduce(domid, 1, 1)
    await dom0.ask(XsType.WRITE, b"/never-introduced", raw=b"")
    await dom0.ask(XsType.SET_PERMS, b"/never-introduced", b"n9")
    assert xs.known_domids() == {1, 2, 9}
    await dom0.events()
    running, shut, gone = DomainState.RUNNING, DomainState.SHUTDOWN, DomainState.GONE
    fired = [b"@releaseDomain\0t\0"]
    xs.domain_states({1: running, 2: running, 9: running})
    assert await dom0.events() == []
    xs.domain_states({1: shut, 2: running, 9: running})
    assert await dom0.events() == fired
    xs.domain_states({1: shut, 2: running, 9: running})
    assert await dom0.events() == []
    assert await dom0.ask(XsType.RESUME, b"1") == b"OK\0"
    xs.domain_states({1: shut, 2: gone, 9: gone})
    assert set(await dom0.events()) == set(fired)
    assert xs.known_domids() == {1}
    assert await dom0.ask(XsType.READ, b"/never-introduced") == "ENOENT"
    xs.domain_states({1: gone})
    assert await dom0.events() == fired
    assert not xs.domains


async def test_a_ring_that_failed_can_be_introduced_again() -> None:
    xs = Xenstore()
    xs.introduce(1, 1, 1)
    xs.disconnect(xs.domains[1].conn)
    xs.introduce(1, 1, 2)
    assert not xs.domains[1].conn.closed


def test_xenbus() -> None:
    assert parse_state("4") is XenbusState.CONNECTED
    assert parse_state(b"6") is XenbusState.CLOSED
    for nonsense in (None, "", "x", "77", b"\xff"):
        assert parse_state(nonsense) is XenbusState.UNKNOWN
    assert frontend_path(3, "vbd", 51712) == "/local/domain/3/device/vbd/51712"
    assert backend_path(0, "vif", 3, 0) == "/local/domain/0/backend/vif/3/0"


def test_every_refusal_has_a_name_on_the_wire() -> None:
    import re
    from pathlib import Path

    import dom0.xenstored

    for path in Path(dom0.xenstored.__file__).parent.glob("*.py"):
        for name in re.findall(r'Refused\("(\w+)"', path.read_text()):
            assert name in ERROR_NAMES


async def test_a_thousand_domains_stay_fast() -> None:
    """A write fires the watches on its path, in a time that does not depend on how many others there are."""
    xs = Xenstore()
    dom0 = DirectCaller(xs, Connection(0))
    for domid in range(1, 1001):
        xs.introduce(domid, 1, 1)
        xs.add_watch(xs.domains[domid].conn, b"/local/domain/%d/x" % domid, b"t", 0)
    begin = time.perf_counter()
    for _ in range(200):
        await dom0.ask(XsType.WRITE, b"/local/domain/500/x", raw=b"")
    assert (time.perf_counter() - begin) / 200 < 0.001
