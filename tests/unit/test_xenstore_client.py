"""The asynchronous client, on our own daemon in the same process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from dom0.xenstored import sockets
from dom0.xenstored.daemon import Daemon
from dom0.xenstored.xenstore import Xenstore
from hyper.guest import xenstore
from hyper.guest.xenstore import Transaction, XenstoreClient, XenstoreGone
from hyper.public.errors import AlreadyExists, BadArgument, NoSuchNode, TooBig, TryAgain, XenErrno
from hyper.public.listening import listening
from hyper.public.xs_wire import HEADER
from tests.xenstore_kit import PATIENCE


class Server:
    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.path = path
        self.daemon = Daemon(Xenstore())
        self.nursery = nursery

    async def introduce(self) -> None:
        while self.daemon.xs.introductions:
            self.daemon.xs.finish_introduction(self.daemon.xs.introductions.pop(0))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            with listening(self.path) as listener:
                nursery.start_soon(sockets.serve, listener, self.daemon, self.introduce)
                yield
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[XenstoreClient, XenstoreClient]]:
    """Two clients of one daemon."""
    async with trio.open_nursery() as nursery:
        server = Server(folder / "s", nursery)
        async with (
            server.serving(),
            xenstore.connect(server.path) as one,
            xenstore.connect(server.path) as two,
        ):
            with trio.fail_after(PATIENCE):
                yield one, two


async def test_operations(tmp_path: Path, no_leaked_fds: None) -> None:
    async with connected(tmp_path) as (xs, _):
        await xs.write("/a/b", "text with ü")
        await xs.write("/a/raw", b"\xff\0")
        await xs.mkdir("/a/c")
        assert await xs.read("/a/b") == "text with ü"
        assert (await xs.read("/a/raw")).encode(errors="surrogateescape") == b"\xff\0"
        assert await xs.directory("/a") == ["b", "raw", "c"]
        assert await xs.directory("/a/b") == []
        assert await xs.exists("/a")
        assert not await xs.exists("/b")
        assert await xs.read_if_exists("/b") is None
        await xs.set_perms("/a", ["n1", "r2"])
        assert await xs.get_perms("/a") == ["n1", "r2"]
        await xs.rm("/a")
        with pytest.raises(NoSuchNode) as refused:
            await xs.read("/a/b")
        assert refused.value.errno == XenErrno.ENOENT
        assert refused.value.context == {"path": "/a/b"}
        with pytest.raises(BadArgument):
            await xs.read("/a b")
        with pytest.raises(TooBig):
            await xs.write("/big", "x" * 4093)
        with pytest.raises(ValueError, match="NUL"):
            await xs.read("/a\0b")
        assert await xs.get_domain_path(3) == "/local/domain/3"


async def test_domains(tmp_path: Path) -> None:
    async with connected(tmp_path) as (xs, _):
        await xs.introduce(5, 1, 2)
        await xs.introduce(6, 1, 2)
        assert await xs.is_domain_introduced(5)
        await xs.set_target(6, 5)
        await xs.resume(5)
        await xs.release(5)
        assert not await xs.is_domain_introduced(5)
        with pytest.raises(NoSuchNode):
            await xs.release(5)


async def test_a_long_directory(tmp_path: Path) -> None:
    async with connected(tmp_path) as (xs, _):
        names = [f"quite-a-long-name-{number}" for number in range(500)]
        for name in names:
            await xs.mkdir(f"/big/{name}")
        assert await xs.directory("/big") == names


async def test_many_tasks_share_a_client(tmp_path: Path) -> None:
    async with connected(tmp_path) as (xs, _):

        async def work(number: int) -> None:
            for turn in range(20):
                await xs.write(f"/n/{number}", f"{number}.{turn}")
                assert await xs.read(f"/n/{number}") == f"{number}.{turn}"

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(work, number)
        assert len(await xs.directory("/n")) == 20


async def test_transactions(tmp_path: Path) -> None:
    async with connected(tmp_path) as (xs, other):
        async with xs.transaction() as tx:
            await tx.write("/t/a", "1")
            assert not await xs.exists("/t/a")
        assert await xs.read("/t/a") == "1"
        with pytest.raises(KeyError):
            async with xs.transaction() as tx:
                await tx.write("/t/a", "2")
                raise KeyError
        assert await xs.read("/t/a") == "1"
        with pytest.raises(TryAgain):
            async with xs.transaction() as tx:
                await tx.read("/t/a")
                await other.write("/t/a", "3")
        assert not xs._answers


async def test_transact_tries_again(tmp_path: Path) -> None:
    async with connected(tmp_path) as clients:
        await clients[0].write("/count", "0")

        async def increment(tx: Transaction) -> int:
            count = int(await tx.read("/count")) + 1
            await tx.write("/count", str(count))
            return count

        results: list[int] = []

        async def work(xs: XenstoreClient) -> None:
            for _ in range(25):
                results.append(await xs.transact(increment))

        async with trio.open_nursery() as nursery:
            for xs in clients:
                nursery.start_soon(work, xs)
        assert sorted(results) == list(range(1, 51))


async def test_a_refusal_inside_a_transaction_forgets_it(tmp_path: Path) -> None:
    async with connected(tmp_path) as (xs, _):

        async def work(tx: Transaction) -> None:
            await tx.write("/made", "1")
            await tx.read("/missing")

        with pytest.raises(NoSuchNode):
            await xs.transact(work)
        assert not await xs.exists("/made")


async def test_watches(tmp_path: Path) -> None:
    async with connected(tmp_path) as (xs, other):
        async with xs.watch("/w", "@introduceDomain") as watch, xs.watch("/v") as unheard:
            assert [await anext(watch), await anext(watch)] == ["/w", "@introduceDomain"]
            await other.write("/w/x", "1")
            assert await anext(watch) == "/w/x"
            await other.introduce(1, 1, 1)
            assert await anext(watch) == "@introduceDomain"
            for _ in range(3):
                await other.write("/w/x", "1")  # said once, if it was not heard yet
            await other.write("/w/y", "1")
            await xs.read("/w")
            assert [await anext(watch), await anext(watch)] == ["/w/x", "/w/y"]
            assert await anext(unheard) == "/v"
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        await other.write("/w/x", "2")
        assert not xs._watches
        with pytest.raises(BadArgument):
            async with xs.watch("/a b"):
                pass
        assert not xs._watches


async def test_watch_ends_its_wait_when_cancelled(tmp_path: Path) -> None:
    async with connected(tmp_path) as (xs, _):
        with trio.move_on_after(0.01) as scope:
            async with xs.watch("/w") as watch:
                async for _ in watch:
                    pass
        assert scope.cancelled_caught
        assert await xs.directory("/") == ["tool"]


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(XenstoreGone, match="No such file"):
        async with xenstore.connect(tmp_path / "nobody"):
            pass


async def test_the_daemon_goes_away(tmp_path: Path, no_leaked_fds: None) -> None:
    async with trio.open_nursery() as nursery:
        server = Server(tmp_path / "s", nursery)
        stop, stopped = trio.Event(), trio.Event()

        async def serve() -> None:
            async with server.serving():
                await stop.wait()
            stopped.set()

        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        heard: list[str] = []

        async def watch(xs: XenstoreClient) -> None:
            with pytest.raises(XenstoreGone):
                async with xs.watch("/w") as watch:
                    async for path in watch:
                        heard.append(path)

        async with xenstore.connect(server.path) as xs:
            async with trio.open_nursery() as inner:
                inner.start_soon(watch, xs)
                await trio.testing.wait_all_tasks_blocked()
                stop.set()
                await stopped.wait()
            assert "hung up" in await xs.wait_gone()
            with pytest.raises(XenstoreGone):
                await xs.read("/w")
            with pytest.raises(XenstoreGone):
                async with xs.transaction():
                    pass
        assert heard == ["/w"]


async def test_a_request_under_way_is_told(tmp_path: Path) -> None:
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(tmp_path / "s"))
    listener.listen()
    with listener:
        async with trio.open_nursery() as nursery:

            async def hang_up() -> None:
                peer, _ = await listener.accept()
                await peer.recv(1000)
                peer.close()

            nursery.start_soon(hang_up)
            async with xenstore.connect(tmp_path / "s") as xs:
                with pytest.raises(XenstoreGone):
                    await xs.read("/x")


@pytest.mark.parametrize(
    "answer", [b"\xff" * 4000, HEADER.pack(2, 99, 0, 3) + b"abc", HEADER.pack(15, 0, 0, 0)]
)
async def test_a_daemon_that_talks_nonsense(answer: bytes, tmp_path: Path) -> None:
    """Too large a message ends the connection; replies and events nobody waits for are passed over."""
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(tmp_path / "s"))
    listener.listen()
    with listener:
        async with trio.open_nursery() as nursery:

            async def talk() -> None:
                peer, _ = await listener.accept()
                with peer:
                    await peer.recv(1000)
                    await peer.send(answer)
                    if answer[:1] != b"\xff":
                        await peer.send(HEADER.pack(2, 1, 0, 2) + b"ok")
                    await trio.sleep_forever()

            nursery.start_soon(talk)
            async with xenstore.connect(tmp_path / "s") as xs:
                if answer[:1] == b"\xff":
                    with pytest.raises(XenstoreGone, match="announced"):
                        await xs.read("/x")
                else:
                    assert await xs.read("/x") == "ok"
            nursery.cancel_scope.cancel()


async def test_a_cancelled_request_leaves_the_client_in_step(tmp_path: Path) -> None:
    async with connected(tmp_path) as (xs, _):
        await xs.write("/a", "1")
        with trio.CancelScope() as scope:
            scope.cancel()
            await xs.write("/a", "2")
        for _ in range(3):
            with trio.move_on_after(0):
                await xs.read("/a")
        assert await xs.directory("/") == ["tool", "a"]
        with pytest.raises((AlreadyExists, NoSuchNode)):
            await xs.read("/b")
