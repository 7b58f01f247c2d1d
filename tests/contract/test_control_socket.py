"""The control socket as its clients see it: one table and one set of stories, over every core there is."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

import hyper.guest
from hyper.binding import Core, CoreConfig, load
from hyper.guest import abi
from hyper.machine import Machine
from hyper.public import wire
from hyper.public.errors import (
    BadArgument,
    GrantError,
    HypervisorGone,
    NoSuchNode,
    NoSuchOp,
    NotPrivileged,
    OutOfRange,
    XenErrno,
)
from hyper.public.packets import as_packet_socket, close_fds, receive_packet, send_packet
from hyper.server import MAX_STORED_FDS, Server, listen
from tests.conftest import open_fds
from tests.fake_core import FAILS, PRIVATE_GREF, RESTARTS, FakeCore

CONFIG = CoreConfig(
    nr_pcpus=1, memory_bytes=64 << 20, console_bytes=0, command_line="test", scheduler="credit"
)
HELLO = wire.encode_request(wire.Hello(1))
VERSION = 4 << 16 | 17


@pytest.fixture(params=["fake", "core"])
def any_core(request: pytest.FixtureRequest) -> Core:
    return FakeCore() if request.param == "fake" else load()


@dataclass
class Host:
    path: Path
    machine: Machine
    stop: trio.CancelScope

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[socket.socket]:
        """A connection that says what it wants."""
        connecting = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        await connecting.connect(os.fspath(self.path))
        with as_packet_socket(connecting) as sock:
            yield sock

    def connect(self) -> Any:
        return hyper.guest.connect(self.path)


@asynccontextmanager
async def serving(core: Core, path: Path) -> AsyncIterator[Host]:
    with Machine(core, CONFIG) as machine, listen(path) as listener:
        async with trio.open_nursery() as nursery:
            host = Host(path, machine, trio.CancelScope())

            async def serve() -> None:
                with host.stop:
                    await Server(machine).serve(listener)

            nursery.start_soon(serve)
            yield host
            nursery.cancel_scope.cancel()


@pytest.fixture
async def host(any_core: Core, tmp_path: Path) -> AsyncIterator[Host]:
    async with serving(any_core, tmp_path / "control") as host:
        yield host


@pytest.fixture
async def fake_host(tmp_path: Path) -> AsyncIterator[Host]:
    async with serving(FakeCore(), tmp_path / "control") as host:
        yield host


@pytest.fixture
def spare_fd() -> Iterator[int]:
    fd = os.memfd_create("spare")
    yield fd
    os.close(fd)


async def exchange(sock: socket.socket, packet: bytes, fds: list[int] | None = None) -> dict[str, Any]:
    """The answer; descriptors beside it are counted and closed."""
    await send_packet(sock, packet, fds or [])
    answer, answer_fds = await receive_packet(sock)
    close_fds(answer_fds)
    fields: dict[str, Any] = msgpack.unpackb(answer)
    return fields | {"fds": len(answer_fds)} if answer_fds else fields


CALLS: list[tuple[wire.Request, dict[str, Any]]] = [
    (wire.Hypercall(abi.nr.xen_version, (0, 0)), {"ret": VERSION}),
    (wire.Hypercall(60, ()), {"ret": -XenErrno.ENOSYS}),
    (wire.Hypercall(1 << 63, (0, 0, 0, 0, 0, 0)), {"ret": -XenErrno.ENOSYS}),
    (wire.Hypercall(abi.nr.event_channel_op, (abi.lib.EVTCHNOP_close, 0)), {"ret": -XenErrno.EFAULT}),
    (
        wire.Hypercall(abi.nr.event_channel_op, (abi.lib.EVTCHNOP_close, (1 << 64) - 1)),
        {"ret": -XenErrno.EFAULT},
    ),
    (wire.Port(0), {"ret": -XenErrno.EINVAL}),
    (wire.Port(4095), {"ret": -XenErrno.EINVAL}),
    (wire.Port((1 << 32) - 1), {"ret": -XenErrno.EINVAL}),
    (wire.FdGet("nothing"), {"ret": -XenErrno.ENOENT}),
    (wire.FdDel("nothing"), {"ret": -XenErrno.ENOENT}),
]


@pytest.mark.parametrize(("request_", "expected"), CALLS, ids=lambda value: str(value)[:60])
async def test_calls(host: Host, request_: wire.Request, expected: dict[str, Any]) -> None:
    async with host.raw() as sock:
        hello = await exchange(sock, HELLO)
        assert hello.pop("max_mfn") >= (64 << 20) >> 12
        assert hello == {"ret": 0, "domid": 0, "bank_bytes": 64 << 20, "fds": 1}
        assert await exchange(sock, wire.encode_request(request_)) == expected
        assert await exchange(sock, wire.encode_request(request_)) == expected  # and it still serves


REFUSED: list[tuple[str, bytes, int, str]] = [
    ("no hello", wire.encode_request(wire.Statistics()), 0, "hello comes first"),
    ("old version", wire.encode_request(wire.Hello(0)), 0, "version 0"),
    ("garbage", b"\xc1garbage", 0, "not msgpack"),
    ("oversized", b"\x00" * 4097, 0, "over 4096 bytes"),
    ("huge", b"\x00" * 60000, 0, "over 4096 bytes"),
    ("unknown", msgpack.packb({"op": "format_disk"}), 0, "unknown operation"),
    ("descriptor not asked for", HELLO, 1, "want 0 file descriptors, got 1"),
    ("many descriptors", HELLO, 9, "more than 2 descriptors"),
]


@pytest.mark.parametrize(
    ("packet", "nr_fds", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
async def test_refused_frames_end_their_connection_only(
    fake_host: Host, spare_fd: int, packet: bytes, nr_fds: int, reason: str
) -> None:
    async with fake_host.connect() as other:
        before = open_fds()
        async with fake_host.raw() as sock:
            assert reason in (await exchange(sock, packet, [spare_fd] * nr_fds))["error"]
            assert await receive_packet(sock) == (b"", [])
        await trio.testing.wait_all_tasks_blocked()
        assert open_fds() == before
        assert await other.hypercall(abi.nr.xen_version, 0, 0) == VERSION


async def test_second_hello_is_refused(fake_host: Host) -> None:
    async with fake_host.raw() as sock:
        await exchange(sock, HELLO)
        assert "once" in (await exchange(sock, HELLO))["error"]


async def test_an_exception_of_ours_ends_that_connection_only(fake_host: Host) -> None:
    async with fake_host.connect() as other:
        with pytest.raises(HypervisorGone, match="an error of hyper"):
            async with fake_host.connect() as hyp:
                await hyp.hypercall(FAILS)
        assert await other.hypercall(abi.nr.xen_version, 0, 0) == VERSION


async def test_hypercalls(host: Host) -> None:
    async with host.connect() as hyp:
        assert hyp.domid == 0
        assert await hyp.hypercall(abi.nr.xen_version, 0, 0) == VERSION
        with pytest.raises(NoSuchOp, match="hypercall 60: ENOSYS"):
            await hyp.hypercall(60)
        statistics = await hyp.statistics()
        assert statistics["nr_conns"] == 1
        assert 0 < statistics["total_frames"] <= (64 << 20) >> 12


async def test_restarted_hypercalls_leave_room_for_others(fake_host: Host) -> None:
    done = []

    async def call(hyp: hyper.guest.Hypervisor, times: int) -> None:
        done.append(await hyp.hypercall(RESTARTS, times))

    async with fake_host.connect() as one, fake_host.connect() as other, trio.open_nursery() as nursery:
        nursery.start_soon(call, one, 300)
        nursery.start_soon(call, other, 1)
    assert done == [1, 300]


async def test_cancelled_caller_waits_for_its_answer(fake_host: Host) -> None:
    """Its arena buffer must not be reused while the core may still write to it, nor its answer be
    another's.
    """
    async with fake_host.connect() as hyp:
        with trio.move_on_after(0):
            await hyp.hypercall(RESTARTS, 50)
        assert await hyp.hypercall(abi.nr.xen_version, 0, 0) == VERSION


async def test_tasks_take_turns(host: Host) -> None:
    async with host.connect() as hyp, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(hyp.hypercall, abi.nr.xen_version, 0, 0)


async def test_foreign_frames(host: Host) -> None:
    async with host.connect() as hyp, host.connect() as other:
        last = (64 << 20 >> 12) - 1
        frame = hyp.frame(last)
        assert (len(frame), frame.readonly) == (4096, False)
        frame[:4] = b"\xfe\xed\xfa\xce"
        assert bytes(other.frames(last - 1, 2)[4096:4100]) == b"\xfe\xed\xfa\xce"
        frame[:4] = bytes(4)
        for mfn, count in ((last + 1, 1), (-1, 1), (0, last + 2), (5, -1)):
            with pytest.raises(OutOfRange):
                hyp.frames(mfn, count)


async def test_events_both_ways(host: Host) -> None:
    async with host.connect() as hyp, host.connect() as other:
        near = await hyp.alloc_port(0)
        far = await other.bind_interdomain(0, near.number)
        await far.wait()  # a bind sets it pending: notifications before it may have been lost
        near.notify()
        await far.wait()
        for _ in range(2):  # through the hypercall: both are done when it returns
            with hyp.arena.new("struct evtchn_send", port=near.number) as send:
                await hyp.hypercall(abi.nr.event_channel_op, abi.lib.EVTCHNOP_send, send.addr)
        await far.wait()
        with trio.move_on_after(0.05) as scope:
            await far.wait()
        assert scope.cancelled_caught, "two notifications are one event"
        far.notify()
        await near.wait()
        await far.close()
        await near.close()
        await near.close()
        with pytest.raises(trio.ClosedResourceError):
            near.notify()
        with pytest.raises(trio.ClosedResourceError):
            await near.wait()
        assert (await hyp.statistics())["nr_ports"] == 0


async def test_closing_a_port_wakes_its_waiter(host: Host) -> None:
    async with host.connect() as hyp, trio.open_nursery() as nursery:
        port = await hyp.alloc_port(0)

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await port.wait()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await port.close()


async def test_ports_end_with_their_connection(host: Host) -> None:
    async with host.connect() as hyp:
        async with host.connect() as other:
            port = await other.alloc_port(0)
            with pytest.raises(NotPrivileged):
                await hyp._request_port(port.number)
        with trio.fail_after(5):
            while (await hyp.statistics())["nr_conns"] > 1:
                await trio.sleep(0.01)
        assert (await hyp.statistics())["nr_ports"] == 0


async def test_bind_refusals(host: Host) -> None:
    async with host.connect() as hyp:
        with pytest.raises(BadArgument, match="remote_port=77"):
            await hyp.bind_interdomain(0, 77)
        assert hyp.arena.free_bytes == hyp.arena.bytes - 64


async def test_grants(fake_host: Host) -> None:
    async with fake_host.connect() as hyp:
        async with await hyp.map_grant(3, 5) as mapping:
            mapping.view[:5] = b"hello"
            assert bytes(hyp.frame(5)[:5]) == b"hello"
            assert (await hyp.statistics())["nr_grant_maps"] == 1
        await mapping.close()
        async with await hyp.map_grant(3, 5, readonly=True) as mapping:
            assert mapping.view.readonly
        with pytest.raises(GrantError, match=r"inappropriate grant reference \(domid=3, gref=900\)"):
            await hyp.map_grant(3, PRIVATE_GREF)
        assert (await hyp.statistics())["nr_grant_maps"] == 0


async def test_fd_store(host: Host) -> None:
    fd = os.memfd_create("kept")
    os.write(fd, b"state")
    async with host.connect() as hyp:
        assert await hyp.fd_get("daemon/state") is None
        await hyp.fd_put("daemon/state", fd)
        os.close(fd)
    async with host.connect() as hyp:
        found = await hyp.fd_get("daemon/state")
        assert found is not None
        assert os.pread(found, 10, 0) == b"state"
        await hyp.fd_put("daemon/state", found)  # replaced, not doubled
        os.close(found)
        await hyp.fd_del("daemon/state")
        with pytest.raises(NoSuchNode, match="name=daemon/state"):
            await hyp.fd_del("daemon/state")


async def test_fd_store_is_limited(fake_host: Host, spare_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyper.server.MAX_STORED_FDS", 3)
    assert MAX_STORED_FDS == 1024
    async with fake_host.connect() as hyp:
        for number in range(3):
            await hyp.fd_put(f"fd{number}", spare_fd)
        with pytest.raises(hyper.guest.XenError, match="ENOSPC"):
            await hyp.fd_put("one more", spare_fd)
        await hyp.fd_put("fd0", spare_fd)


async def test_arena_must_be_sealed_and_as_long_as_said(host: Host, spare_fd: int) -> None:
    os.ftruncate(spare_fd, 4096)
    async with host.raw() as sock:
        await exchange(sock, HELLO)
        answer = await exchange(sock, wire.encode_request(wire.Arena(4096)), [spare_fd])
        assert answer == {"ret": -XenErrno.EINVAL}
        with hyper.guest.Arena(8192) as arena:
            answer = await exchange(sock, wire.encode_request(wire.Arena(1 << 40)), [arena.fd])
            assert answer == {"ret": -XenErrno.EINVAL}


async def test_a_lost_hypervisor_is_told_to_everyone(any_core: Core, tmp_path: Path) -> None:
    failures = []

    async def expect_gone(wait: Any, *args: Any) -> None:
        try:
            await wait(*args)
        except HypervisorGone as error:
            failures.append(str(error))

    async with (
        serving(any_core, tmp_path / "control") as host,
        host.connect() as hyp,
        trio.open_nursery() as nursery,
    ):
        port = await hyp.alloc_port(0)
        nursery.start_soon(expect_gone, port.wait)
        await trio.testing.wait_all_tasks_blocked()
        host.stop.cancel()
        assert await hyp.wait_gone() == "hyper has hung up"
        await expect_gone(hyp.hypercall, abi.nr.xen_version, 0)
        await expect_gone(port.wait)
        await port.close()
    assert failures == ["hyper has hung up"] * 3
    with pytest.raises(HypervisorGone, match="is the host up"):
        async with hyper.guest.connect(tmp_path / "control"):
            pass


async def test_errors_of_the_user_leave_connect_as_they_are(fake_host: Host) -> None:
    with pytest.raises(ZeroDivisionError):
        async with fake_host.connect():
            raise ZeroDivisionError
    with trio.move_on_after(0) as scope:
        async with fake_host.connect():
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_nothing_is_left(fake_host: Host) -> None:
    before = open_fds()
    for _ in range(3):
        async with fake_host.connect() as hyp:
            near = await hyp.alloc_port(0)
            await hyp.bind_interdomain(0, near.number)
            await hyp.map_grant(0, 1)
        del near, hyp
    await trio.testing.wait_all_tasks_blocked()
    assert open_fds() == before
    assert fake_host.machine.statistics()["nr_conns"] == 0


async def test_socket_is_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "control"
    for _ in range(2):  # the second time over a stale one
        listener = listen(path)
        assert path.stat().st_mode & 0o777 == 0o600
        listener.close()
