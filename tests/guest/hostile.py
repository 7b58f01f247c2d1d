"""What a hostile frontend does: pieces for storms against a backend, each a small thing told by a tuple.

A storm is a list of such pieces. Hypothesis makes them up and makes them shorter again when one hurts.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import trio
import trio.lowlevel
from hypothesis import strategies as st

from domu.domain import Domain
from domu.faults import Faults, Node
from hyper.guest.front import RequestRing, RingIndex
from hyper.guest.ports import Port
from hyper.public.errors import HypervisorGone, NoFreeSlot, XenError

Piece = tuple[Any, ...]

NUMBERS = tuple(
    " 8|0x10|1_0|1e3|٣|abc||0|1|2|3|7|-1|+5|513|65535|65536|2147483647|2147483648|4294967295".split("|")
)
NUMBERS += ("4294967296", "18446744073709551616", "9" * 400)
"""What may stand where a number is expected. Python's int() takes more of them than one would think."""

INDEX_VALUES = (
    0,
    1,
    2,
    31,
    32,
    33,
    63,
    64,
    255,
    256,
    257,
    4096,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)
GREFS = (
    "free",
    "readonly",
    "foreign",
    "reserved",
    "huge",
    "frame 0",
    "frame of nobody",
    "frame of Dom0",
    "again",
)

seeds = st.integers(0, 1 << 16)
values = st.sampled_from(NUMBERS)
states = st.tuples(st.just("state"), st.sampled_from(NUMBERS[:14]))
indices = st.tuples(
    st.just("index"),
    st.sampled_from(RingIndex),
    st.booleans(),
    st.sampled_from(INDEX_VALUES),
)
common = st.one_of(
    st.tuples(st.just("garbage"), seeds, st.integers(1, 40)),
    st.tuples(st.just("mutated"), seeds, st.integers(1, 40)),
    st.tuples(st.just("scribble"), seeds),
    indices,
    st.tuples(st.just("notify"), st.integers(1, 50)),
    st.tuples(st.just("revoke"), seeds),
    st.tuples(st.just("regrant"), seeds, st.sampled_from(GREFS)),
    st.tuples(st.just("close port")),
    states,
    st.tuples(st.just("use")),
    st.tuples(st.just("wait")),
)


class Vandal:
    """Does pieces to a connected device. `rings` with the port of each; `valid` makes a raw request."""

    def __init__(
        self,
        domain: Domain,
        path: str,
        rings: Sequence[tuple[RequestRing, Port]],
        valid: Callable[[RequestRing, random.Random], bytes],
        use: Callable[[], Any],
    ) -> None:
        self.domain = domain
        self.path = path
        self.rings = rings
        self.valid = valid
        self.use = use
        own = domain.hyp.process_domain
        assert own is not None
        self.grants = domain.hyp.frames(own.grant_mfn, own.nr_grant_frames)

    async def do(self, piece: Piece) -> None:
        """What is refused to the guest is nothing to the vandal."""
        name, *arguments = piece
        try:
            await getattr(self, "_" + name.replace(" ", "_"))(*arguments)
        except (XenError, trio.ClosedResourceError, NoFreeSlot, ValueError):
            pass
        except HypervisorGone:
            raise AssertionError("hyper has hung up on this guest") from None

    def _send(self, ring: RequestRing, port: Port, raw: bytes) -> None:
        if ring.room:
            ring.put(raw)
        ring.push()
        port.notify()

    async def _garbage(self, seed: int, count: int) -> None:
        source = random.Random(seed)
        for _ in range(count):
            ring, port = source.choice(self.rings)
            self._send(ring, port, source.randbytes(ring.entry_bytes))
        await trio.lowlevel.checkpoint()

    async def _mutated(self, seed: int, count: int) -> None:
        source = random.Random(seed)
        for _ in range(count):
            ring, port = source.choice(self.rings)
            raw = bytearray(self.valid(ring, source))
            for _ in range(source.randrange(1, 4)):
                raw[source.randrange(len(raw))] = source.choice(
                    (0, 1, 7, 8, 11, 12, 127, 128, 255, source.randrange(256))
                )
            self._send(ring, port, bytes(raw))
        await trio.lowlevel.checkpoint()

    async def _scribble(self, seed: int) -> None:
        """Into requests that the backend may be reading."""
        source = random.Random(seed)
        for ring, port in self.rings:
            view = ring.view
            for _ in range(200):
                view[source.randrange(64, len(view))] = source.randrange(256)
            port.notify()

    async def _index(self, which: RingIndex, relative: bool, value: int) -> None:
        for ring, port in self.rings:
            ring.store(which, (ring.load(which) if relative else 0) + value)
            port.notify()
        await trio.sleep(0.001)

    async def _notify(self, count: int) -> None:
        for _ in range(count):
            for _, port in self.rings:
                port.notify()

    async def _revoke(self, seed: int) -> None:
        """Entries in use lose their flags, whoever maps their frames just now."""
        source = random.Random(seed)
        for _ in range(20):
            gref = source.randrange(8, 600)
            struct.pack_into("<H", self.grants, gref * 8, source.choice((0, 0, 1, 4, 0xFFFF)))

    async def _regrant(self, seed: int, how: str) -> None:
        source = random.Random(seed)
        for _ in range(20):
            plant(self.domain, self.grants, source.randrange(8, 600), how)

    async def _close_port(self) -> None:
        for _, port in self.rings:
            await port.close()

    async def _state(self, value: str) -> None:
        await self.domain.xs.write(f"{self.path}/state", value)

    async def _use(self) -> None:
        with trio.move_on_after(0.05):
            await self.use()

    async def _wait(self) -> None:
        await trio.sleep(0.01)

    async def _node(self, name: str, value: str) -> None:
        await self.domain.xs.write(f"{self.path}/{name}", value)

    async def _remove(self, name: str) -> None:
        await self.domain.xs.rm(f"{self.path}/{name}")


def plant(domain: Domain, grants: memoryview, gref: int, how: str) -> None:
    """Writes a grant entry that is wrong in this way."""
    own = domain.hyp.process_domain
    assert own is not None
    frame, flags, whom = own.first_free_mfn, 1, 0
    match how:
        case "free":
            flags = 0
        case "readonly":
            flags = 5
        case "foreign":
            whom = domain.domid + 1
        case "frame 0":
            frame = 0
        case "frame of Dom0":
            frame = 20_000
        case "frame of nobody":
            frame = 0xFFFFFFF0
        case _:
            flags = 0x1F
    struct.pack_into("<HHI", grants, gref * 8, flags, whom, frame)


def lies_of(lies: Sequence[tuple[str, str]]) -> Faults[Node]:
    """The handshake with these nodes changed; "-" leaves one out."""
    faults: Faults[Node] = Faults()
    told = dict(lies)

    def lie(node: Node) -> list[Node]:
        if node.name not in told:
            return [node]
        return [] if told[node.name] == "-" else [Node(node.name, told[node.name])]

    faults.always(lie)
    return faults
