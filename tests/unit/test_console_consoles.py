"""Which consoles are open: as xenstore says, over restarts of xenstored and of xenconsoled itself."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
import trio.testing

from dom0.xenconsoled.consoles import Consoles
from dom0.xenstored import sockets
from dom0.xenstored.daemon import Daemon
from dom0.xenstored.xenstore import Xenstore
from hyper.guest import Hypervisor, xenstore
from hyper.guest.xenstore import XenstoreClient
from hyper.public.errors import BadArgument, GrantError, NoSuchNode
from hyper.public.listening import listening
from hyper.public.paths import HostPaths
from tests.console_kit import ConsoleGuest
from tests.xenstore_kit import PATIENCE, MemoryPage, MemoryPort


class FakeHypervisor:
    """Domains' consoles and an fd store. `refusals` is how often a bind fails, as while a dead process is
    reaped.
    """

    def __init__(self) -> None:
        self.guests: dict[int, ConsoleGuest] = {}
        self.fds: dict[str, int] = {}
        self.refusals = 0

    async def map_grant(self, domid: int, gref: int) -> MemoryPage:
        if domid not in self.guests or gref != 0:
            raise GrantError("map_grant_ref", -3)
        return self.guests[domid].page

    async def bind_interdomain(self, domid: int, remote_port: int) -> MemoryPort:
        if self.refusals:
            self.refusals -= 1
            raise BadArgument("evtchn")
        return self.guests[domid].port

    async def fd_put(self, name: str, fd: int) -> None:
        if name in self.fds:
            os.close(self.fds[name])
        self.fds[name] = os.dup(fd)

    async def fd_get(self, name: str) -> int | None:
        return os.dup(self.fds[name]) if name in self.fds else None

    async def fd_del(self, name: str) -> None:
        if name not in self.fds:
            raise NoSuchNode("fd_del")
        os.close(self.fds.pop(name))


class Host:
    def __init__(self, paths: HostPaths) -> None:
        self.paths = paths
        self.hyp = FakeHypervisor()
        self.daemon = Daemon(Xenstore())

    @asynccontextmanager
    async def xenstored(self) -> AsyncIterator[None]:
        async def introduce() -> None:
            while self.daemon.xs.introductions:
                self.daemon.xs.finish_introduction(self.daemon.xs.introductions.pop(0))

        async with trio.open_nursery() as nursery:
            with listening(self.paths.xenstored) as listener:
                nursery.start_soon(sockets.serve, listener, self.daemon, introduce)
                yield
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def xenconsoled(self) -> AsyncIterator[None]:
        """Ends without any goodbye, as if killed: the guests' domains stay."""
        async with trio.open_nursery() as nursery:
            consoles = Consoles(cast(Hypervisor, self.hyp), self.paths, nursery)
            with trio.fail_after(PATIENCE):
                await nursery.start(consoles.follow)
            yield
            nursery.cancel_scope.cancel()

    async def boot(self, xs: XenstoreClient, domid: int) -> ConsoleGuest:
        guest = self.hyp.guests[domid] = ConsoleGuest()
        await xs.write(f"/local/domain/{domid}/name", f"guest {domid}")
        await xs.write(f"/local/domain/{domid}/console/port", "2")
        await xs.introduce(domid, 1, 1)
        return guest

    async def eventually(self, exists: bool, domid: int) -> None:
        with trio.fail_after(PATIENCE):
            while self.paths.console(domid).exists() != exists:
                await trio.sleep(0.001)
            await trio.testing.wait_all_tasks_blocked()

    async def look(self, domid: int, nbytes: int) -> bytes:
        data = b""
        with trio.fail_after(PATIENCE):
            async with await trio.open_unix_socket(str(self.paths.console(domid))) as viewer:
                while len(data) < nbytes:
                    data += bytes(await viewer.receive_some())
        return data


@pytest.fixture
def host(host_paths: HostPaths) -> Host:
    return Host(host_paths)


async def test_a_console_comes_and_goes_with_its_domain(host: Host) -> None:
    async with host.xenstored(), host.xenconsoled(), xenstore.connect(host.paths.xenstored) as xs:
        guest = await host.boot(xs, 1)
        await host.eventually(True, 1)
        with trio.fail_after(PATIENCE):
            async with xs.watch("/local/domain/1/console/tty") as tty:
                async for path in tty:
                    if await xs.read_if_exists(path):
                        break
        assert await xs.read("/local/domain/1/console/tty") == str(host.paths.console(1))
        guest.print(b"hello\r\n")
        assert await host.look(1, 7) == b"hello\r\n"
        await xs.release(1)
        await host.eventually(False, 1)
        assert host.hyp.fds.keys() == {"xenconsoled.domains"}
        assert (host.paths.logs / "console-guest_1.log").read_bytes() == b"hello\r\n"


async def test_domains_without_a_console_are_left_alone(host: Host) -> None:
    async with host.xenstored(), xenstore.connect(host.paths.xenstored) as xs:
        await xs.mkdir("/local/domain/1")
        await xs.introduce(1, 1, 1)
        await xs.write("/local/domain/2/console/port", "nonsense")
        await xs.introduce(2, 1, 1)
        await xs.write("/local/domain/3/console/port", "5")  # has no page
        await xs.introduce(3, 1, 1)
        await xs.mkdir("/local/domain/not-a-number")
        async with host.xenconsoled():
            guest = await host.boot(xs, 4)
            await host.eventually(True, 4)
            guest.print(b"!")
            assert await host.look(4, 1) == b"!"
            assert [path.name for path in host.paths.console_dir.iterdir()] == ["4.sock"]


async def test_xenconsoled_is_killed(host: Host) -> None:
    async with host.xenstored(), xenstore.connect(host.paths.xenstored) as xs:
        guest = await host.boot(xs, 1)
        await host.boot(xs, 2)
        async with host.xenconsoled():
            await host.eventually(True, 2)
            guest.print(b"before ")
            await host.look(1, 7)
        stale = host.paths.console(2)
        stale.touch()  # a killed process leaves its sockets
        guest.print(b"meanwhile ")
        await xs.release(2)
        host.hyp.refusals = 3
        async with host.xenconsoled():
            guest.print(b"after")
            assert await host.look(1, 22) == b"before meanwhile after"
            assert not stale.exists()
            assert host.hyp.fds.keys() == {"xenconsoled.domains", "xenconsoled.1"}


async def test_xenstored_is_restarted(host: Host) -> None:
    async with trio.open_nursery() as nursery:
        started = trio.Event()
        finish = trio.Event()

        async def console_daemon() -> None:
            async with host.xenconsoled():
                started.set()
                await finish.wait()

        nursery.start_soon(console_daemon)
        async with host.xenstored(), xenstore.connect(host.paths.xenstored) as xs:
            await started.wait()
            guest = await host.boot(xs, 1)
            await host.eventually(True, 1)
        guest.print(b"while xenstored is away")
        assert await host.look(1, 23) == b"while xenstored is away"
        async with host.xenstored(), xenstore.connect(host.paths.xenstored) as xs:
            await host.boot(xs, 2)
            await host.eventually(True, 2)
            await xs.release(1)
            await host.eventually(False, 1)
        finish.set()
