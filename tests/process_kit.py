"""Process domains of the real core behind a control socket, in this process."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import trio

import hyper.guest
from dom0.libxc import process
from dom0.libxc.control import XenControl
from dom0.libxc.info import DomainInfo
from dom0.libxc.process import ProcessSpec
from dom0.libxc.pv import PvImage
from hyper.guest import Hypervisor
from hyper.machine import Machine
from hyper.public.errors import XenError
from hyper.public.types import DomId
from hyper.server import Server, listen
from tests.core_kit import real_machine

MEMORY_KIB = 4096
PATIENCE = 10


@dataclass
class Host:
    """A host with Dom0's connection `hyp`."""

    machine: Machine
    path: Path
    hyp: Hypervisor
    domids: list[DomId] = field(default_factory=list)

    @property
    def xc(self) -> XenControl:
        return XenControl(self.hyp)

    async def create(
        self, memory_kib: int = MEMORY_KIB, unpause: bool = True
    ) -> tuple[PvImage, socket.socket]:
        """A process domain, and its socket."""
        domid = await self.xc.domain_create(uuid4(), 1)
        self.domids.append(domid)
        await self.xc.max_vcpus(domid, 1)
        await self.xc.max_mem(domid, memory_kib)
        image, sock = await process.build(self.xc, ProcessSpec(domid, memory_kib))
        if unpause:
            await self.xc.domain_unpause(domid)
        return image, sock

    @asynccontextmanager
    async def guest(self, memory_kib: int = MEMORY_KIB) -> AsyncIterator[Hypervisor]:
        """A running process domain as its own process sees it."""
        image, sock = await self.create(memory_kib)
        async with hyper.guest.attach(sock, 1 << 20) as guest:
            assert guest.domid == image.domid
            yield guest

    async def info(self, domid: int) -> DomainInfo | None:
        """None: it is gone."""
        try:
            return await self.xc.getdomaininfo(domid)
        except XenError:
            return None

    async def destroy_all(self) -> None:
        for domid in self.domids:
            if await self.info(domid):
                await self.xc.domain_destroy(domid)
        with trio.fail_after(PATIENCE):
            for domid in self.domids:
                while await self.info(domid):
                    await trio.sleep(0.001)


@asynccontextmanager
async def process_host(path: Path) -> AsyncIterator[Host]:
    """Nothing may be left of what the test has made."""
    with real_machine() as machine:
        before = machine.statistics()
        async with trio.open_nursery() as nursery:
            with listen(path) as listener:
                nursery.start_soon(Server(machine).serve, listener)
                async with hyper.guest.connect(path, 1 << 20) as hyp:
                    host = Host(machine, path, hyp)
                    yield host
                    await host.destroy_all()
                with trio.fail_after(PATIENCE):
                    while machine.statistics() != before:
                        await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
