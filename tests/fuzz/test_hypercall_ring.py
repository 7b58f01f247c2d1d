"""Invariant: whatever a client writes into its ring's page, its arena and its doorbell, other rings are
served, and the end of its connection leaves nothing behind.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper.guest import abi
from hyper.machine import Machine
from tests.core_kit import Process, nr_threads, real_machine
from tests.ring_kit import open_ring, raw_ring

VERSION = 4 << 16 | 17
CALLS = [
    abi.nr.grant_table_op,
    abi.nr.event_channel_op,
    abi.nr.xen_version,
    abi.nr.multicall,
    abi.nr.memory_op,
]

numbers = (
    st.sampled_from([0, 1, 4096, 0xFFFF, 0x7FF0, 1 << 20, (1 << 32) - 1, (1 << 64) - 1])
    | st.integers(0, 300)
    | st.integers(0, (1 << 64) - 1)
)
words = st.lists(numbers, min_size=1, max_size=8).map(
    lambda row: b"".join(n.to_bytes(8, "little") for n in row)
)
entries = st.tuples(st.sampled_from(CALLS) | numbers, st.lists(numbers, min_size=5, max_size=5)).map(
    lambda row: b"".join(n.to_bytes(8, "little") for n in (row[0], *row[1]))
)
steps = st.lists(
    st.tuples(st.just("call"), st.integers(0, 15), entries)
    | st.tuples(st.just("page"), st.integers(0, 1140), st.binary(max_size=12))
    | st.tuples(st.just("arena"), st.integers(0, 8000), words)
    | st.tuples(st.just("bell"), st.integers(1, 70), st.just(b"")),
    max_size=12,
)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with real_machine() as machine:
        yield machine


@pytest.fixture(scope="module")
def domid(machine: Machine) -> int:
    with Process(machine) as dom0:
        return dom0.create_process_domain()


@settings(max_examples=60)
@given(steps=steps, privileged=st.booleans())
def test_a_ring(machine: Machine, domid: int, steps: list[tuple[str, int, bytes]], privileged: bool) -> None:
    before, threads = machine.statistics(), nr_threads()
    who = 0 if privileged else domid
    with Process(machine) as other, open_ring(other) as ring, Process(machine, who) as hostile:
        page, bell = raw_ring(hostile)
        bell.setblocking(False)
        _, arena = hostile.buffer(8192)
        prod = 0
        for kind, at, data in steps:
            if kind == "call":
                page[128 + 64 * (prod % 16) : 128 + 64 * (prod % 16) + len(data)] = data
                prod += 1
                page[0:4] = prod.to_bytes(4, "little")
                _ring(bell, 1)
            elif kind == "page":
                page[at : at + len(data)] = data[: 1152 - at]
            elif kind == "arena":
                arena[at : at + len(data)] = data
            else:
                _ring(bell, at)
        assert ring.hypercall(abi.nr.xen_version, 0, 0) == VERSION
        page.close()
        bell.close()
    assert machine.statistics() == before
    assert nr_threads() == threads


def _ring(bell: object, count: int) -> None:
    try:
        bell.send(b"x" * count)  # type: ignore[attr-defined]
    except OSError:
        pass  # it has ended already, or does not read just now


def test_every_call_of_a_process_domain(machine: Machine, domid: int) -> None:
    """Each number and command, on zeroes and on noise in the arena: an answer, and Dom0 goes on."""
    noise = random.Random(1)
    with Process(machine) as dom0, open_ring(dom0) as ring, Process(machine, domid) as hostile:
        at, arena = hostile.buffer(64 << 10)
        for nr in range(64):
            for command in [*range(64), -1]:
                for fill in (bytes(256), noise.randbytes(256), bytes([noise.randrange(4), 0]) * 128):
                    arena[:256] = fill
                    for args in ((command, at, 1, 0x7FF0), (at, command, 0, 0), (command, 1, at, 0)):
                        hostile.raw(nr, *(arg & (1 << 64) - 1 for arg in args))
        assert ring.hypercall(abi.nr.xen_version, 0, 0) == VERSION
        info = dom0.domctl("getdomaininfo", domid).u.getdomaininfo
        assert info.domain == domid
