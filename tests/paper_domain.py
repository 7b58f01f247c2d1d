"""A process domain on paper: what the frontends ask of hyper, in the plainest Python, and Dom0's side of it.

    async with paper_host(tmp_path) as host:
        host.domain                               # for a frontend host.dom0
        # xenstore client of Dom0: nodes of devices, backends' states host.frame(gref),
        host.bind(port.number)  # a backend's way to the guest

xenstore is our own daemon, over a real socket for Dom0 and a real ring for the guest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import trio

from dom0.xenstored import sockets
from dom0.xenstored.rings import GuestRing
from domu.domain import Domain
from domu.frontends.console import Console
from hyper.guest import Port, xenstore
from hyper.guest.rings import ConsoleRing
from hyper.guest.xenstore import XenstoreClient
from hyper.public.errors import OutOfFrames
from hyper.public.listening import listening
from tests.paper_ports import PaperPort, bind, pair
from tests.xenstore_kit import memory_daemon

DOMID = 5
PAGE = 4096
PATIENCE = 20


class PaperPages:
    def __init__(self, memory: PaperMemory, mfn: int, count: int) -> None:
        self.mfn = mfn
        self.count = count
        self.view = memoryview(memory.bytes)[mfn * PAGE : (mfn + count) * PAGE]
        self._memory = memory

    def free(self) -> None:
        self._memory.used -= set(range(self.mfn, self.mfn + self.count))


class PaperMemory:
    """`used` are the frames that were allocated."""

    def __init__(self, nr_frames: int) -> None:
        self.bytes = bytearray(nr_frames * PAGE)
        self.used: set[int] = set()
        self._nr_frames = nr_frames

    def alloc(self, count: int = 1) -> PaperPages:
        for mfn in range(1, self._nr_frames - count + 1):
            frames = set(range(mfn, mfn + count))
            if not frames & self.used:
                self.used |= frames
                pages = PaperPages(self, mfn, count)
                pages.view[:] = bytes(len(pages.view))
                return pages
        raise OutOfFrames("alloc", count=count)


@dataclass
class PaperGrant:
    domid: int
    mfn: int
    readonly: bool
    maps: int = 0


class PaperGrants:
    """`live` are the entries in use by the granter."""

    def __init__(self) -> None:
        self.live: dict[int, PaperGrant] = {}

    def grant_access(self, domid: int, gfn: int, readonly: bool = False) -> int:
        gref = next(number for number in range(8, 1 << 16) if number not in self.live)
        self.live[gref] = PaperGrant(domid, gfn, readonly)
        return gref

    def end_access(self, gref: int) -> bool:
        if self.live[gref].maps:
            return False
        del self.live[gref]
        return True


class PaperHypervisor:
    domid = DOMID

    def __init__(self, nr_frames: int) -> None:
        self.memory = PaperMemory(nr_frames)
        self.grant_table = PaperGrants()
        self.ports: dict[int, PaperPort] = {}

    async def alloc_port(self, remote_domid: int) -> PaperPort:
        await trio.lowlevel.checkpoint()
        assert remote_domid == 0
        port = PaperPort()
        self.ports[port.number] = port
        return port


class _Page:
    def __init__(self) -> None:
        self.view = memoryview(bytearray(PAGE))

    async def close(self) -> None:
        pass


class PaperHost:
    def __init__(self, hyp: PaperHypervisor, dom0: XenstoreClient, domain: Domain) -> None:
        self.hyp = hyp
        self.dom0 = dom0
        self.domain = domain
        self.console = ConsoleRing(memoryview(bytearray(PAGE)))

    def frame(self, gref: int, write: bool = True) -> memoryview:
        """Raises: KeyError when it is not granted like this."""
        grant = self.hyp.grant_table.live[gref]
        if grant.readonly and write:
            raise KeyError(gref)
        return memoryview(self.hyp.memory.bytes)[grant.mfn * PAGE : (grant.mfn + 1) * PAGE]

    def frames(self, grefs: list[int]) -> memoryview:
        """Frames that lie in a row, as a frontend of ours makes its rings."""
        mfns = [self.hyp.grant_table.live[gref].mfn for gref in grefs]
        assert mfns == list(range(mfns[0], mfns[0] + len(mfns)))
        return memoryview(self.hyp.memory.bytes)[mfns[0] * PAGE : (mfns[-1] + 1) * PAGE]

    def bind(self, number: int) -> PaperPort:
        port = PaperPort()
        bind(self.hyp.ports[number], port)
        return port

    async def add_device(
        self, kind: str, devid: int, backend: dict[str, str], frontend: dict[str, str]
    ) -> str:
        """The nodes as xend writes them; returns the backend's folder."""
        there = f"/local/domain/0/backend/{kind}/{DOMID}/{devid}"
        here = f"/local/domain/{DOMID}/device/{kind}/{devid}"
        for name, value in ({"frontend": here, "frontend-id": str(DOMID), "online": "1"} | backend).items():
            await self.dom0.write(f"{there}/{name}", value)
        await self.dom0.set_perms(there, ["n0", f"r{DOMID}"])
        for name, value in ({"backend": there, "backend-id": "0", "state": "1"} | frontend).items():
            await self.dom0.write(f"{here}/{name}", value)
            await self.dom0.set_perms(f"{here}/{name}", [f"n{DOMID}"])
        await self.dom0.set_perms(here, [f"n{DOMID}"])
        for name in ("state", *backend):
            await self.dom0.set_perms(f"{there}/{name}", ["n0", f"r{DOMID}"])
        return there


@asynccontextmanager
async def paper_host(folder: Path, nr_frames: int = 2048) -> AsyncIterator[PaperHost]:
    """One guest. What it has shared must be given back at the end."""
    daemon = memory_daemon()
    daemon.xs.introduce(DOMID, 0, 0)
    page, hyp = _Page(), PaperHypervisor(nr_frames)
    ours, theirs = pair()
    ring = GuestRing(daemon, daemon.xs.domains[DOMID].conn, page, theirs)
    daemon.rings[DOMID] = ring
    ring.start()

    async def introduce() -> None:
        raise AssertionError("nobody introduces anybody here")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.run)
        with trio.fail_after(PATIENCE), listening(folder / "xs") as listener:
            nursery.start_soon(sockets.serve, listener, daemon, introduce)
            async with (
                xenstore.connect(folder / "xs") as dom0,
                xenstore.over_ring(page.view, cast(Port, ours)) as xs,
            ):
                await dom0.mkdir(f"/local/domain/{DOMID}")
                await dom0.set_perms(f"/local/domain/{DOMID}", ["n0", f"r{DOMID}"])
                console_page = memoryview(bytearray(PAGE))
                console = Console(console_page, cast(Port, pair()[0]))
                host = PaperHost(hyp, dom0, Domain(cast(Any, hyp), xs, console, ()))
                host.console = ConsoleRing(console_page)
                yield host
        nursery.cancel_scope.cancel()
    host.domain.memory.reap()
    assert hyp.memory.used == set()
    assert hyp.grant_table.live == {}
