"""The backend's end of XenBus, over an xenstored in memory. Toolstack and frontend are played by a client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from backends import bus
from backends.bus import DeviceError, Link, run_connections
from dom0.xenstored import sockets
from dom0.xenstored.daemon import Daemon
from dom0.xenstored.xenstore import Xenstore
from hyper.guest import Hypervisor, xenstore
from hyper.guest.xenstore import XenstoreClient
from hyper.public.errors import BadArgument
from hyper.public.listening import listening
from hyper.public.xenbus import XenbusState as S
from tests.xenstore_kit import PATIENCE

BACK, FRONT = "/local/domain/0/backend/vbd/7/51712", "/local/domain/7/device/vbd/51712"


class Hyp:
    """Binds ports; `refusals` is how often a killed predecessor still has them."""

    refusals = 0

    async def bind_interdomain(self, domid: int, remote_port: int) -> str:
        if self.refusals:
            self.refusals -= 1
            raise BadArgument("evtchn")
        return f"port of {domid}.{remote_port}"


class World:
    """A store, the bus, and every life of a connection in `said`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Daemon(Xenstore())
        self.hyp = Hyp()
        self.said: list[str] = []
        self.links: list[Link] = []
        self.connecting: Callable[[Link], None] = lambda link: None

    @asynccontextmanager
    async def xenstored(self) -> AsyncIterator[None]:
        async def introduce() -> None:
            pass

        async with trio.open_nursery() as nursery:
            with listening(self.path) as listener:
                nursery.start_soon(sockets.serve, listener, self.store, introduce)
                yield
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def backend(self) -> AsyncIterator[None]:
        async with bus.xenstore_of(self.path) as store, trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                hyp = cast(Hypervisor, self.hyp)
                await bus.serve(store, hyp, kind="vbd", device=self.device, task_status=task_status)

            with trio.fail_after(PATIENCE):
                await nursery.start(serve)
            yield
            nursery.cancel_scope.cancel()

    async def device(self, link: Link) -> None:
        self.links.append(link)
        self.said.append(f"device resuming={link.resuming}")
        try:
            if (await link.read_config()).get("params") == "absent":
                raise DeviceError("absent: no such file")
            await link.hotplug_connected({"sectors": 2048})

            async def connection(*, task_status: trio.TaskStatus[None]) -> None:
                self.connecting(link)
                self.said.append(f"connect {await link.read_frontend()}")
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self.said.append("disconnect")

            await run_connections(link, connection)
        finally:
            self.said.append("end")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    yield World(tmp_path / "s")


class Actor:
    """Who writes xend's and the frontend's nodes."""

    def __init__(self, xs: XenstoreClient) -> None:
        self.xs = xs

    async def create(self, params: str = "disk", back: str = BACK, front: str = FRONT) -> None:
        async def write(tx: xenstore.Transaction) -> None:
            nodes = {"frontend": front, "params": params, "online": 1, "state": 1}
            for name, value in nodes.items():
                await tx.write(f"{back}/{name}", str(value))
            await tx.write(f"{front}/state", "1")

        await self.xs.transact(write)

    async def front(self, state: S, **nodes: str) -> None:
        for name, value in nodes.items():
            await self.xs.write(f"{FRONT}/{name.replace('_', '-')}", value)
        await self.xs.write(f"{FRONT}/state", str(int(state)))

    async def node(self, name: str) -> str | None:
        return await self.xs.read_if_exists(f"{BACK}/{name}")

    async def until(self, state: S) -> None:
        with trio.fail_after(PATIENCE):
            while await self.node("state") != str(int(state)):
                await trio.sleep(0.001)

    async def quiet(self) -> None:
        """Until whatever follows from the last write has happened."""
        for _ in range(5):
            await trio.sleep(0.005)


@asynccontextmanager
async def stage(world: World) -> AsyncIterator[Actor]:
    async with world.xenstored(), xenstore.connect(world.path) as xs, world.backend():
        yield Actor(xs)


async def test_a_life(world: World) -> None:
    async with stage(world) as actor:
        await actor.create()
        await actor.until(S.INIT_WAIT)
        assert (await actor.node("hotplug-status"), await actor.node("sectors")) == ("connected", "2048")
        await actor.front(S.INITIALISED, ring_ref="8")
        await actor.until(S.CONNECTED)
        await actor.front(S.CONNECTED)
        await actor.xs.write(f"{BACK}/online", "0")
        await actor.xs.write(f"{BACK}/state", "5")
        await actor.front(S.CLOSING)
        await actor.quiet()
        assert "disconnect" not in world.said
        await actor.front(S.CLOSED)
        await actor.until(S.CLOSED)
        await actor.quiet()
        connect = "connect {'state': '3', 'ring-ref': '8'}"
        assert world.said == ["device resuming=False", connect, "disconnect", "end"]


async def test_queues_are_read(world: World) -> None:
    async with stage(world) as actor:
        await actor.create()
        await actor.until(S.INIT_WAIT)
        await actor.xs.write(f"{FRONT}/queue-1/ring-ref", "9")
        await actor.xs.write(f"{FRONT}/queue-1/deeper/still", "not read")
        await actor.front(S.INITIALISED)
        await actor.until(S.CONNECTED)
        found = await world.links[0].read_frontend()
        assert found["queue-1/ring-ref"] == "9" and "queue-1/deeper/still" not in found


async def test_a_frontend_that_begins_again(world: World) -> None:
    """With a goodbye, without one, and with one that xend did not ask for: each time it is served again."""
    async with stage(world) as actor:
        await actor.create()
        for goodbye in ((S.CLOSING, S.CLOSED, S.INITIALISING), (S.INITIALISING,), (S.CLOSED, S.INITIALISING)):
            await actor.until(S.INIT_WAIT)
            await actor.front(S.INITIALISED)
            await actor.until(S.CONNECTED)
            for state in goodbye:
                await actor.front(state)
                await actor.quiet()
        await actor.until(S.INIT_WAIT)
        assert [word.split()[0] for word in world.said] == ["device", *["connect", "disconnect"] * 3]


async def test_given_up_before_any_frontend(world: World) -> None:
    async with stage(world) as actor:
        await actor.create()
        await actor.until(S.INIT_WAIT)
        await actor.xs.write(f"{BACK}/online", "0")
        await actor.until(S.CLOSED)
        await actor.quiet()
        assert world.said[-1] == "end"


async def test_the_folder_goes(world: World) -> None:
    """Cancelled, nothing is written; and a new device under the same name is a new one."""
    async with stage(world) as actor:
        for _ in range(2):
            world.said.clear()
            await actor.create()
            await actor.until(S.INIT_WAIT)
            await actor.front(S.INITIALISED)
            await actor.until(S.CONNECTED)
            await actor.xs.rm(BACK)
            await actor.xs.rm(FRONT)
            await actor.quiet()
            assert [word.split()[0] for word in world.said] == ["device", "connect", "disconnect", "end"]
            assert not await actor.xs.exists(BACK)


async def test_a_new_device_in_the_place_of_another(world: World) -> None:
    async with stage(world) as actor:
        await actor.create()
        await actor.until(S.INIT_WAIT)
        await actor.front(S.INITIALISED)
        await actor.until(S.CONNECTED)
        await actor.create()
        await actor.until(S.INIT_WAIT)
        words = [word.split()[0] for word in world.said]
        assert words == ["device", "connect", "disconnect", "end", "device"]


async def test_a_device_that_cannot_be(world: World) -> None:
    async with stage(world) as actor:
        await actor.create("absent")
        await actor.until(S.CLOSING)
        assert await actor.node("hotplug-status") == "error"
        assert await actor.node("hotplug-error") == await actor.node("error") == "absent: no such file"
        await actor.front(S.CLOSED)
        await actor.until(S.CLOSED)


@pytest.mark.parametrize("error", [DeviceError("bad ring-ref"), ZeroDivisionError("bad ring-ref")])
async def test_an_error_closes_one_device(world: World, error: Exception) -> None:
    def connecting(link: Link) -> None:
        if link.devid == 51712:
            raise error

    world.connecting = connecting
    async with stage(world) as actor:
        other, front = BACK.replace("712", "728"), FRONT.replace("712", "728")
        await actor.create(back=other, front=front)
        await actor.create()
        await actor.until(S.INIT_WAIT)
        await actor.front(S.INITIALISED)
        await actor.until(S.CLOSING)
        assert await actor.node("error") == "bad ring-ref"
        assert await actor.node("hotplug-status") == "connected"
        await actor.front(S.CLOSED)
        await actor.until(S.CLOSED)
        await actor.xs.write(f"{front}/state", "3")
        await actor.quiet()
        assert await actor.xs.read(f"{other}/state") == "4"


async def test_goes_on_after_a_kill(world: World) -> None:
    async with world.xenstored(), xenstore.connect(world.path) as xs:
        actor = Actor(xs)
        async with world.backend():
            await actor.create()
            await actor.until(S.INIT_WAIT)
            await actor.front(S.INITIALISED)
            await actor.until(S.CONNECTED)
            await actor.front(S.CONNECTED)
            await actor.quiet()
        states: list[str | None] = []
        world.said.clear()
        world.hyp.refusals = 3

        async def record(_: str) -> None:
            states.append(await actor.node("state"))

        async with trio.open_nursery() as nursery, bus.xenstore_of(world.path) as store:
            nursery.start_soon(store.follow, (f"{BACK}/state",), record)
            async with world.backend():
                await actor.quiet()
                assert world.said[0] == "device resuming=True" and world.said[1].startswith("connect")
                assert set(states) == {"4"}
                world.links[-1].resuming = True
                assert cast(str, await world.links[-1].bind_port(4)) == "port of 7.4"
                await actor.front(S.CLOSED)
                await actor.until(S.CLOSED)
            nursery.cancel_scope.cancel()


async def test_xenstored_goes_and_comes_back(world: World) -> None:
    async with world.xenstored(), xenstore.connect(world.path) as xs:
        await Actor(xs).create()
    async with trio.open_nursery() as nursery:
        up = trio.Event()

        async def first_life() -> None:
            async with world.xenstored():
                up.set()
                await down.wait()

        down = trio.Event()
        nursery.start_soon(first_life)
        await up.wait()
        async with world.backend():
            await trio.sleep(0.01)
            down.set()
            await trio.sleep(0.01)
            async with world.xenstored(), xenstore.connect(world.path) as xs:
                actor = Actor(xs)
                await actor.until(S.INIT_WAIT)
                await actor.front(S.INITIALISED)
                await actor.until(S.CONNECTED)
                assert [word.split()[0] for word in world.said] == ["device", "connect"]


async def test_a_guest_that_writes_without_end(world: World) -> None:
    """More changed paths than a watch keeps: its own device is looked at, and nobody loses the connection."""
    async with stage(world) as actor:
        await actor.create()
        await actor.until(S.INIT_WAIT)
        async with trio.open_nursery() as nursery:
            for name in range(50):

                async def spam(name: int = name) -> None:
                    for turn in range(90):
                        await actor.xs.write(f"{FRONT}/{name}-{turn}", "x")

                nursery.start_soon(spam)
        await actor.front(S.INITIALISED)
        await actor.until(S.CONNECTED)
        assert [word.split()[0] for word in world.said] == ["device", "connect"]


def test_numbers() -> None:
    nodes = {"a": "5", "b": "-1", "c": "9" * 30, "d": ""}
    assert bus.number(nodes, "a", maximum=5) == 5
    assert bus.number(nodes, "x", default=3) == 3
    for name, said in {"x": "missing", "b": "not a number", "c": "not a number", "d": "not a number"}.items():
        with pytest.raises(DeviceError, match=said):
            bus.number(nodes, name)
    with pytest.raises(DeviceError, match="limit is 4"):
        bus.number(nodes, "a", maximum=4)
