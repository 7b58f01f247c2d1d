"""Process domains that live in the test's own process, on a real host: one test plays several guests and
the toolstack.

    async with toolstack(host.paths) as dom0, dom0.guest() as guest:
        async with dom0.vbd(guest, image) , guest.domain.disk("xvda") as disk:
            ...

What xend does for its own domains is done here by hand, so that nodes can be as wrong as one likes.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

import hyper.guest
from dom0.libxc import process
from dom0.libxc.control import XenControl
from dom0.libxc.process import ProcessSpec
from domu.domain import Domain, domain
from hyper.guest import xenstore
from hyper.guest.xenstore import XenstoreClient
from hyper.public.errors import NoSuchDomain, XenError
from hyper.public.paths import HostPaths

XVDA = 51712
GONE_SECONDS = 10
"""How long a backend may take to let go of a device."""


@dataclass
class Guest:
    """A process domain: `domain` is what its main would be given."""

    domain: Domain
    domid: int


@dataclass
class Running:
    """A guest in a process of its own."""

    domid: int
    process: subprocess.Popen[str]

    def lines(self) -> list[str]:
        """What it tells the toolstack. Waits until it has told all."""
        assert self.process.stdout is not None
        return self.process.stdout.read().splitlines()


class BackendStuck(Exception):
    """A backend has not let go of a device in time."""


class Toolstack:
    """Dom0 as a toolstack."""

    def __init__(self, hyp: hyper.guest.Hypervisor, xs: XenstoreClient) -> None:
        self.hyp = hyp
        self.xs = xs
        self.xc = XenControl(hyp)

    @asynccontextmanager
    async def guest(self, memory_kib: int = 16 << 10) -> AsyncIterator[Guest]:
        """A domain that this process is, destroyed at the end of the block."""
        failure: BaseException | None = None
        async with (
            self.empty(memory_kib) as (domid, sock),
            hyper.guest.attach(sock) as hyp,
            domain(hyp) as here,
        ):
            await self.xc.domain_unpause(domid)
            try:
                yield Guest(here, domid)
            except BaseException as error:  # raised again below: not as an exception group
                failure = error
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def empty(self, memory_kib: int = 16 << 10) -> AsyncIterator[tuple[int, socket.socket]]:
        """A domain, paused, and the socket that it is. Destroyed at the end of the block."""
        domid = await self.xc.domain_create(uuid.uuid4(), 1)
        base = f"/local/domain/{domid}"
        try:
            await self.xc.max_vcpus(domid, 1)
            await self.xc.max_mem(domid, memory_kib + 1024)
            image, sock = await process.build(self.xc, ProcessSpec(domid, memory_kib))
            await self.xs.mkdir(base)
            await self.xs.set_perms(base, ["n0", f"r{domid}"])
            for name, value in (("name", f"guest{domid}"), ("domid", str(domid)), ("device", "")):
                await self.xs.write(f"{base}/{name}", value)
            for name in ("data", "control/shutdown"):
                await self.xs.mkdir(f"{base}/{name}")
                await self.xs.set_perms(f"{base}/{name}", [f"n{domid}"])
            await self.xs.write(f"{base}/console/port", str(image.console_port))
            await self.xs.write(f"{base}/console/ring-ref", str(image.console_mfn))
            await self.xs.introduce(domid, image.store_mfn, image.store_port)
            yield domid, sock
        finally:
            with trio.CancelScope(shield=True):
                await self._end(domid)

    @asynccontextmanager
    async def run(self, spec: str, *words: str, options: Sequence[str] = ()) -> AsyncIterator[Running]:
        """A domain with a process of its own, as xend starts it."""
        async with self.empty() as (domid, sock):
            number = str(sock.fileno())
            command = [sys.executable, "-m", "domu.run", *options, "--fd", number, spec, *words]
            started = subprocess.Popen(  # noqa: ASYNC220
                command, pass_fds=[sock.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={},
                cwd="/", text=True,
            )  # fmt: skip
            sock.close()
            await self.xc.domain_unpause(domid)
            try:
                yield Running(domid, started)
            finally:
                started.kill()
                started.communicate()

    async def _end(self, domid: int) -> None:
        with suppress(NoSuchDomain):  # the test has destroyed it
            await self.xc.domain_destroy(domid)
        with suppress(XenError):
            await self.xs.release(domid)
        for kind in ("vbd", "vif"):
            with suppress(XenError):
                for devid in await self.xs.directory(f"/local/domain/0/backend/{kind}/{domid}"):
                    await self.remove_device(domid, kind, int(devid))
                await self.xs.rm(f"/local/domain/0/backend/{kind}/{domid}")
        await self.xs.rm(f"/local/domain/{domid}")

    @asynccontextmanager
    async def vbd(
        self, guest: Guest, image: Path, devid: int = XVDA, mode: str = "w", **more: str
    ) -> AsyncIterator[None]:
        """A raw image as a disk of the guest. At the end the backend must let go of it.

        Raises: BackendStuck.
        """
        backend = {"type": "file", "params": str(image), "mode": mode, "dev": "xvda", "bootable": "0"}
        backend |= {"removable": "0", "device-type": "disk"} | more
        frontend = {"virtual-device": str(devid), "device-type": "disk"}
        async with self._device(guest, "vbd", devid, backend, frontend):
            yield

    @asynccontextmanager
    async def vif(self, guest: Guest, mac: str, devid: int = 0, **more: str) -> AsyncIterator[None]:
        """A network card on the default network. At the end the backend must let go of it.

        Raises: BackendStuck.
        """
        backend = {"mac": mac, "handle": str(devid), "bridge": "xenbr0", "type": "vif", "mtu": "1500"}
        backend |= {"vifname": f"vif{guest.domid}.{devid}"} | more
        frontend = {"mac": mac, "handle": str(devid), "mtu": "1500"}
        async with self._device(guest, "vif", devid, backend, frontend):
            yield

    @asynccontextmanager
    async def _device(
        self, guest: Guest, kind: str, devid: int, backend: dict[str, str], frontend: dict[str, str]
    ) -> AsyncIterator[None]:
        await self.add_device(guest.domid, kind, devid, backend, frontend)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self.remove_device(guest.domid, kind, devid)

    async def add_device(
        self, domid: int, kind: str, devid: int, backend: dict[str, str], frontend: dict[str, str]
    ) -> None:
        """Writes both folders at once, as xend does, and waits for the backend's own half.

        Raises: BackendStuck with what the backend says.
        """
        there = f"/local/domain/0/backend/{kind}/{domid}/{devid}"
        here = f"/local/domain/{domid}/device/{kind}/{devid}"
        backend = {"frontend": here, "frontend-id": str(domid), "online": "1", "state": "1"} | backend
        frontend = {"backend": there, "backend-id": "0", "state": "1"} | frontend

        async def write(tx: xenstore.Transaction) -> None:
            for folder, owner, reader, nodes in ((here, domid, 0, frontend), (there, 0, domid, backend)):
                await tx.mkdir(folder)
                await tx.set_perms(folder, [f"n{owner}", f"r{reader}"])
                for name, value in nodes.items():
                    await tx.write(f"{folder}/{name}", value)
                    await tx.set_perms(f"{folder}/{name}", [f"n{owner}", f"r{reader}"])

        await self.xs.transact(write)
        with trio.move_on_after(GONE_SECONDS):
            while (status := await self.xs.read_if_exists(f"{there}/hotplug-status")) is None:
                await trio.sleep(0.005)
            if status == "connected":
                return
        raise BackendStuck(f"{there}: {await self.xs.read_if_exists(f'{there}/hotplug-error')}")

    async def remove_device(self, domid: int, kind: str, devid: int) -> None:
        """As after a domain's end: the frontend's folder goes, the backend closes, its folder goes.

        Raises: BackendStuck.
        """
        there = f"/local/domain/0/backend/{kind}/{domid}/{devid}"
        with suppress(XenError):
            await self.xs.rm(f"/local/domain/{domid}/device/{kind}/{devid}")
        if await self.xs.exists(f"{there}/state"):
            await self.xs.write(f"{there}/online", "0")
            with trio.move_on_after(GONE_SECONDS) as scope:
                while await self.xs.read_if_exists(f"{there}/state") not in ("6", None):
                    await trio.sleep(0.005)
            if scope.cancelled_caught:
                raise BackendStuck(f"{there}: state {await self.xs.read_if_exists(f'{there}/state')}")
        with suppress(XenError):
            await self.xs.rm(there)


@asynccontextmanager
async def toolstack(paths: HostPaths) -> AsyncIterator[Toolstack]:
    """Dom0 on a running host."""
    async with hyper.guest.connect(paths.control) as hyp, xenstore.connect(paths.xenstored) as xs:
        yield Toolstack(hyp, xs)
