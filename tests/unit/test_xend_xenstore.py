"""xend's connection to xenstore, against our xenstored on a socket: what it reads, and how it outlives a
restart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dom0.xenstored import sockets
from hyper.guest import xenstore
from hyper.public.listening import listening
from tests.xenstore_kit import memory_daemon
from toolstack.xend import layout
from toolstack.xend import xenstore as xend_xenstore
from toolstack.xend.model import DomainConfig, Image
from toolstack.xend.nodes import Node
from toolstack.xend.store import Record
from toolstack.xend.xenstore import XenstoreSession, XenstoreUnavailable

PATIENCE = 10.0


@asynccontextmanager
async def xenstored(path: Path) -> AsyncIterator[None]:
    """A fresh xenstored on `path`; introductions succeed without a hypervisor."""
    ours = memory_daemon()

    async def introduce() -> None:
        while ours.xs.introductions:
            ours.xs.finish_introduction(ours.xs.introductions.pop(0))

    async with trio.open_nursery() as nursery:
        with listening(path) as listener:
            nursery.start_soon(sockets.serve, listener, ours, introduce)
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def session(path: Path) -> AsyncIterator[XenstoreSession]:
    found = XenstoreSession(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.run)
        with trio.fail_after(PATIENCE):
            yield found
        nursery.cancel_scope.cancel()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


RECORD = Record(
    DomainConfig("deb", UUID(int=5), Image("/k", args="a 'b'"), vcpus=2),
    domid=7, start_time=1.5, store_mfn=101, store_port=1, console_mfn=102, console_port=2,
)  # fmt: skip


async def test_a_domains_entries(path: Path) -> None:
    async with xenstored(path), session(path) as xs:
        await xs.create(layout.vm_nodes(RECORD))
        await xs.create(layout.domain_nodes(RECORD, "/c"))
        await xs.create(layout.ring_nodes(RECORD))
        assert await xs.read("/local/domain/7/name") == "deb"
        assert await xs.read("/local/domain/7/nothing") is None
        found = await xs.subtree(f"/vm/{UUID(int=5)}")
        assert DomainConfig.from_sxp(layout.config_from_vm(found)) == RECORD.config
        assert await xs.subtree("/vm/absent") == {}
        async with xenstore.connect(path) as client:
            for name, permissions in {
                "": ["n0", "r7"],
                "/memory/target": ["n0", "r7"],
                "/console/ring-ref": ["n0", "r7"],
                "/cpu/1/availability": ["n0", "r7"],
                "/control/shutdown": ["n7"],
                "/data": ["n7"],
                "/device/suspend/event-channel": ["n7"],
            }.items():
                assert await client.get_perms(f"/local/domain/7{name}") == permissions
            assert await client.get_perms(f"/vm/{UUID(int=5)}/image") == ["n0"]
            assert await client.get_perms(f"/vm/{UUID(int=5)}/uuid") == ["n0", "r7"]
        await xs.write("/local/domain/7/control/shutdown", "poweroff")
        await xs.remove("/local/domain/7")
        await xs.remove("/local/domain/7")
        await xs.remove("/never/was")
        assert await xs.subtree("/local/domain") == {}


async def test_introductions_may_be_repeated(path: Path) -> None:
    async with xenstored(path), session(path) as xs:
        await xs.release(7)
        await xs.introduce(7, 101, 1)
        await xs.introduce(7, 101, 1)
        await xs.release(7)
        await xs.release(7)


async def test_all_or_nothing(path: Path) -> None:
    async with xenstored(path), session(path) as xs:
        nodes = [Node("/a", "1"), Node("/b", "x" * 5000)]
        with pytest.raises(Exception, match="E2BIG"):
            await xs.create(nodes)
        assert await xs.read("/a") is None


async def test_it_outlives_xenstored(path: Path) -> None:
    news = 0

    def changed() -> None:
        nonlocal news
        news += 1

    async with session(path) as xs, trio.open_nursery() as nursery:
        async with xenstored(path):
            await nursery.start(xs.follow, "@releaseDomain", changed)
            await xs.write("/a", "1")
            await xs.introduce(7, 101, 1)
            await xs.release(7)
            while news < 2:
                await trio.sleep(0.001)
        before = news
        with trio.move_on_after(0.2):
            await xs.read("/a")
            pytest.fail("nobody is there to answer")
        async with xenstored(path):
            assert await xs.read("/a") is None
            while news == before:
                await trio.sleep(0.001)
            await xs.write("/a", "2")
            assert await xs.read("/a") == "2"
        nursery.cancel_scope.cancel()


async def test_patience_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xend_xenstore, "PATIENCE_SECONDS", 0.05)
    async with session(path) as xs:
        await wait_all_tasks_blocked()
        with pytest.raises(XenstoreUnavailable, match="xenstored cannot be reached at"):
            await xs.read("/a")
