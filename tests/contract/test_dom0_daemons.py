"""hyper, xenstored and xenconsoled as they run: processes of one host. Guests are played through foreign
frames.

No vCPU runs here. A guest's half of its rings is written from this process; its event channel fires when a
daemon binds the port, so what has been put into a ring before is served then.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import pytest
import trio

import hyper.guest
from dom0.libxc.control import XenControl
from hyper.guest import Hypervisor, xenstore
from hyper.guest.xenstore import XenstoreClient, XenstoreGone
from hyper.public.errors import BadArgument, NoSuchNode
from hyper.public.paths import HostPaths
from hyper.public.xs_wire import Decoder, Message, XsType
from tests.console_kit import OUT, OUT_PROD
from tests.xenstore_kit import PATIENCE, RingCaller

PERMIT_ACCESS = 1
POWEROFF = 0


class Process:
    """A daemon, serving."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = [sys.executable, "-m", module, "--host", "t", *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        ready, ready_fd = os.pipe()
        command = [*self._command, "--ready-fd", str(ready_fd)]
        self._process = subprocess.Popen(command, pass_fds=[ready_fd], stderr=subprocess.PIPE)
        os.close(ready_fd)
        try:
            if not os.read(ready, 1):
                pytest.fail(f"{command} does not start: {self._process.communicate()}")
        finally:
            os.close(ready)

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.communicate()

    def stop(self) -> str:
        """SIGTERM. What there is to complain about its end."""
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        try:
            _, stderr = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, stderr = self._process.communicate()
        return f"{self._command}: {stderr.decode()}" if self._process.returncode else ""


@dataclass
class Domain:
    """One with two ring pages, which nothing runs in."""

    domid: int
    store: RingCaller
    store_gfn: int
    store_port: int
    console_page: memoryview

    def print(self, text: bytes) -> None:
        (prod,) = struct.unpack_from("<I", self.console_page, OUT_PROD)
        self.console_page[OUT + prod : OUT + prod + len(text)] = text
        struct.pack_into("<I", self.console_page, OUT_PROD, prod + len(text))

    def request(self, *messages: Message) -> None:
        data = b"".join(message.encode() for message in messages)
        assert self.store.send_some(data) == len(data)

    async def replies(self, count: int) -> list[Message]:
        decoder = Decoder()
        found: list[Message] = []
        with trio.fail_after(PATIENCE):
            while len(found) < count:
                decoder.feed(self.store.receive_some())
                found += decoder
                await trio.sleep(0.001)
        return found


class Host:
    def __init__(self, paths: HostPaths, hyp: Hypervisor, xenstored: Process, xenconsoled: Process) -> None:
        self.paths = paths
        self.hyp = hyp
        self.control = XenControl(hyp)
        self.xenstored = xenstored
        self.xenconsoled = xenconsoled

    async def create(self) -> Domain:
        """Up to what the toolstack does before INTRODUCE."""
        domid = await self.control.domain_create(UUID(int=1), 1)
        await self.control.max_mem(domid, 64)
        store_gfn, console_gfn = await self.control.populate_physmap(domid, [0, 1], 0)
        entries = await self.control.grant_table_frame(domid)
        struct.pack_into("<HHI", entries, 0, PERMIT_ACCESS, 0, console_gfn)
        struct.pack_into("<HHI", entries, 8, PERMIT_ACCESS, 0, store_gfn)
        store_port = await self.control.evtchn_alloc_unbound(domid, 0)
        console_port = await self.control.evtchn_alloc_unbound(domid, 0)
        store_page = self.control.foreign_frame(domid, store_gfn)
        caller = RingCaller(store_page, lambda: None, trio.lowlevel.checkpoint)
        async with xenstore.connect(self.paths.xenstored) as xs:
            base = f"/local/domain/{domid}"
            await xs.write(f"{base}/name", f"guest-{domid}")
            await xs.write(f"{base}/console/port", str(console_port))
            await xs.write(f"{base}/console/ring-ref", str(console_gfn))
            await xs.set_perms(base, [f"n{domid}"])
        page = self.control.foreign_frame(domid, console_gfn)
        return Domain(domid, caller, store_gfn, store_port, page)

    async def console(self, domid: int, text: bytes) -> None:
        """Waits until the console of a domain shows `text`."""
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    viewer = await trio.open_unix_socket(str(self.paths.console(domid)))
                except OSError:
                    await trio.sleep(0.01)
                    continue
                seen = b""
                async with viewer:
                    with trio.move_on_after(0.1):
                        while text not in seen:
                            seen += bytes(await viewer.receive_some())
                if text in seen:
                    return


    async def logged(self, domid: int, text: bytes) -> None:
        """Waits until that is what the console's log holds."""
        path = self.paths.logs / f"console-guest-{domid}.log"
        with trio.fail_after(PATIENCE):
            while not path.exists() or path.read_bytes() != text:
                await trio.sleep(0.005)


@pytest.fixture
async def host(host_paths: HostPaths) -> AsyncIterator[Host]:
    processes = [Process("hyper", "--memory", "64M", "--cpus", "1")]
    try:
        processes.append(Process("dom0.xenstored"))
        processes.append(Process("dom0.xenconsoled"))
        async with hyper.guest.connect(host_paths.control) as hyp:
            yield Host(host_paths, hyp, *processes[1:])
    finally:
        complaints = [complaint for process in reversed(processes) if (complaint := process.stop())]
    assert not complaints


@asynccontextmanager
async def connected(host: Host) -> AsyncIterator[XenstoreClient]:
    """Also while xenstored is on its way back."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                async with xenstore.connect(host.paths.xenstored) as xs:
                    yield xs
                return
            except XenstoreGone:
                await trio.sleep(0.01)


async def test_a_guest_is_served(host: Host) -> None:
    domain = await host.create()
    domain.request(
        Message(XsType.WRITE, 1, 0, b"x\0value"),
        Message(XsType.READ, 2, 0, b"x\0"),
        Message(XsType.READ, 3, 0, b"/\0"),
    )
    domain.print(b"printed before it was introduced\r\n")
    async with connected(host) as xs:
        with pytest.raises(NoSuchNode):
            await xs.introduce(domain.domid + 1, domain.store_gfn, domain.store_port)
        with pytest.raises(BadArgument):
            await xs.introduce(domain.domid, domain.store_gfn, domain.store_port + 77)
        assert not await xs.is_domain_introduced(domain.domid)
        await xs.introduce(domain.domid, domain.store_gfn, domain.store_port)
        replies = await domain.replies(3)
        assert [reply.payload for reply in replies] == [b"OK\0", b"value", b"EACCES\0"]
        assert await xs.read(f"/local/domain/{domain.domid}/x") == "value"
        await host.console(domain.domid, b"printed before it was introduced\r\n")
        with trio.fail_after(PATIENCE):
            while not (tty := await xs.read_if_exists(f"/local/domain/{domain.domid}/console/tty")):
                await trio.sleep(0.005)
        assert tty == str(host.paths.console(domain.domid))
    await host.control.domain_destroy(domain.domid)


async def test_shutdown_and_end_are_reported(host: Host) -> None:
    domain = await host.create()
    async with connected(host) as xs:
        await xs.introduce(domain.domid, domain.store_gfn, domain.store_port)
        await host.console(domain.domid, b"")
        async with xs.watch("@releaseDomain") as released:
            assert await anext(released)
            with trio.fail_after(PATIENCE):
                await host.control.domain_shutdown(domain.domid, POWEROFF)
                await anext(released)
                assert await xs.is_domain_introduced(domain.domid)
                await host.control.domain_destroy(domain.domid)
                await anext(released)
                assert not await xs.is_domain_introduced(domain.domid)
                assert not await xs.exists(f"/local/domain/{domain.domid}")
                while host.paths.console(domain.domid).exists():
                    await trio.sleep(0.01)
                while domain.domid in {info.domid for info in await host.control.getdomaininfolist()}:
                    await trio.sleep(0.01)  # nobody holds its frames any more


async def test_xenstored_is_killed(host: Host) -> None:
    domain = await host.create()
    async with connected(host) as xs:
        domain.request(Message(XsType.WATCH, 1, 0, b"w\0t\0"), Message(XsType.TRANSACTION_START, 2, 0, b"\0"))
        await xs.introduce(domain.domid, domain.store_gfn, domain.store_port)
        await domain.replies(3)
        host.xenstored.kill()
        domain.request(
            Message(XsType.TRANSACTION_END, 3, 1, b"T\0"),
            Message(XsType.WATCH, 4, 0, b"w\0t\0"),
            Message(XsType.WRITE, 5, 0, b"w\0new"),
        )
        host.xenstored.start()
    replies = await domain.replies(5)
    assert [(reply.type, reply.payload) for reply in replies] == [
        (XsType.WATCH_EVENT, b"w\0t\0"),
        (XsType.ERROR, b"EAGAIN\0"),
        (XsType.ERROR, b"EEXIST\0"),
        (XsType.WATCH_EVENT, b"w\0t\0"),
        (XsType.WRITE, b"OK\0"),
    ]
    async with connected(host) as xs:
        assert await xs.is_domain_introduced(domain.domid)
        assert await xs.read(f"/local/domain/{domain.domid}/w") == "new"
        async with xs.watch("@releaseDomain") as released:
            await anext(released)
            host.xenstored.kill()
        await host.control.domain_destroy(domain.domid)  # while nobody listens
        host.xenstored.start()
    async with connected(host) as xs:
        assert not await xs.is_domain_introduced(domain.domid)
        assert not await xs.exists(f"/local/domain/{domain.domid}")


async def test_xenconsoled_is_killed(host: Host) -> None:
    domain = await host.create()
    domain.print(b"one ")
    async with connected(host) as xs:
        await xs.introduce(domain.domid, domain.store_gfn, domain.store_port)
        await host.console(domain.domid, b"one ")
        await host.logged(domain.domid, b"one ")
        host.xenconsoled.kill()
        domain.print(b"two ")
        host.xenconsoled.start()
        await host.console(domain.domid, b"one two ")
        await host.logged(domain.domid, b"one two ")
        host.xenconsoled.kill()
        await xs.release(domain.domid)
        await host.control.domain_destroy(domain.domid)
        host.xenconsoled.start()
        assert not host.paths.console(domain.domid).exists()


async def test_nothing_is_left_of_many_domains(host: Host) -> None:
    async with connected(host) as xs:
        after: list[dict[str, int]] = []
        for _ in range(12):
            domain = await host.create()
            await xs.introduce(domain.domid, domain.store_gfn, domain.store_port)
            await host.console(domain.domid, b"")
            await host.control.domain_destroy(domain.domid)
            path = host.paths.console(domain.domid)
            with trio.fail_after(PATIENCE):
                while await xs.is_domain_introduced(domain.domid) or path.exists():
                    await trio.sleep(0.005)
                while domain.domid in {info.domid for info in await host.control.getdomaininfolist()}:
                    await trio.sleep(0.005)
                while after and await host.hyp.statistics() != after[0]:
                    await trio.sleep(0.005)
            after.append(await host.hyp.statistics())
        assert await xs.directory("/local/domain") in ([], [""])
