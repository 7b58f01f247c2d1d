"""netback.sock from both ends: what `umxen network` and `umxen capture` ask, against netback's answers."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
import trio
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from backends.netback.config import NetworkConfig
from backends.netback.control import Control, _Session
from backends.netback.networks import Networks
from hyper.public.paths import HostPaths
from tests.contract.test_uplinks import Store
from tests.vswitch_kit import BROADCAST, Bench, bench, frame, mac
from toolstack.lab import network
from toolstack.lab.network import NetworkError

T = TypeVar("T")
A = mac(1)


class Daemon:
    """netback without guests: a switch, networks, the control socket of host `x`."""

    def __init__(self, table: Bench, networks: Networks, paths: HostPaths) -> None:
        self.table = table
        self.networks = networks
        self.paths = paths

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return await self.call(network.ask, self.paths, op, **fields)

    async def call(self, work: Callable[..., T], *args: Any, **fields: Any) -> T:
        """From a thread: the client is synchronous."""
        return await trio.to_thread.run_sync(lambda: work(*args, **fields))


@asynccontextmanager
async def daemon(folder: Path) -> AsyncIterator[Daemon]:
    paths = HostPaths("x", folder, folder)
    with bench() as table:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.switch.follow_news)
            table.switch.start()
            networks = Networks(table.switch, paths.networks, Store(), nursery)
            await nursery.start(Control(networks, table.switch).listen, paths)
            yield Daemon(table, networks, paths)
            for plug in table.plugs:
                plug.port.close()
                plug.sock.close()
            table.plugs.clear()
            for running in networks.all():
                await networks.delete(running.config.name)
            nursery.cancel_scope.cancel()
        table.switch.stop()


async def test_networks_come_and_go_and_are_kept(tmp_path: Path) -> None:
    async with daemon(tmp_path) as made:
        assert await made.ask("list") == {"ret": 0, "networks": []}
        await made.call(network.create, made.paths, "lan", groups=["dmz,tag=5"], storm_pps=7)
        (listed,) = (await made.ask("list"))["networks"]
        assert listed["name"] == "lan"
        shown = await made.ask("show", name="lan")
        assert shown["config"]["storm_pps"] == 7 and shown["ports"] == []
        assert '"dmz,tag=5"' in made.paths.networks.read_text()
        for fields, why in (
            ({"op": "create", "network": {"name": "lan"}}, "there already"),
            ({"op": "create", "network": {"name": "1"}}, "want a letter"),
            ({"op": "create", "network": {"name": "x", "uplinks": ["modem"]}}, "there are user"),
            ({"op": "delete", "name": "wan"}, "no network 'wan'.*there are: lan"),
            ({"op": "show"}, "name: want a text"),
            ({"op": "forward", "name": "lan", "forward": "1-2"}, "no user-mode uplink"),
            ({"op": "unforward", "name": "lan", "forward": "1-2"}, "no forward '1-2'; there are: none"),
            ({"op": "dance"}, "knows no request 'dance'"),
            ({"op": "capture", "name": "lan"}, "one descriptor"),
            ({"op": "capture_state"}, "no capture"),
        ):
            with pytest.raises(NetworkError, match=why):
                await made.ask(**fields)
        await made.ask("delete", name="lan")
        assert made.paths.networks.read_text().strip() == "[]"


async def test_a_capture_by_the_client(tmp_path: Path) -> None:
    async with daemon(tmp_path) as made:
        running = await made.networks.create(NetworkConfig("lan"))
        one, other = made.table.plug(running.network), made.table.plug(running.network)
        with pytest.raises(NetworkError, match="no port 'vif9'"):
            await made.call(lambda: network.capturing(made.paths, "lan", "vif9").__enter__())
        capturing = network.capturing(made.paths, "lan")
        capture = await made.call(capturing.__enter__)
        one.send(frame(BROADCAST, A))
        await made.call(capture.wait_frames, 1)
        await made.call(capturing.__exit__, None, None, None)
        assert capture.frames == [frame(BROADCAST, A)] and (capture.written, capture.lost) == (1, 0)
        assert other.received() == [frame(BROADCAST, A)]


async def test_a_capture_into_a_file_is_refused(tmp_path: Path) -> None:
    async with daemon(tmp_path) as made:
        await made.networks.create(NetworkConfig("lan"))

        def ask() -> None:
            with network.NetworkClient(made.paths) as client, open(tmp_path / "f", "wb") as file:
                client.ask("capture", [file.fileno()], name="lan")

        with pytest.raises(NetworkError, match="not into a file"):
            await made.call(ask)


async def test_descriptors_and_nonsense_do_no_harm(tmp_path: Path) -> None:
    async with daemon(tmp_path) as made:

        def send(data: bytes, count: int) -> bytes:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(str(made.paths.netback))
                sock.settimeout(10)
                read_end, write_end = os.pipe()
                socket.send_fds(sock, [data], [write_end] * count)
                os.close(read_end), os.close(write_end)
                return sock.recv(65536)

        before = len(os.listdir("/proc/self/fd"))
        for data in (b"\xc1", b"\x80", msgpack.packb([1]), msgpack.packb({"op": 5})):
            assert msgpack.unpackb(await made.call(send, data, 2))["ret"] == -1
        assert await made.call(send, b"x", 9) == b""  # more descriptors than any request has
        await trio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        assert (await made.ask("list"))["networks"] == []


def _packed(fields: dict[str, Any]) -> bytes:
    try:
        return bytes(msgpack.packb(fields))
    except OverflowError:
        return b""


@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(["op", "name", "network", "forward", "port", "snaplen"]),
        st.sampled_from(["list", "show", "create", "delete", "forward", "unforward", "capture", "statistics"])
        | st.integers()
        | st.none()
        | st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2),
        max_size=6,
    ).map(_packed)
)
def test_any_bytes_get_an_answer(data: bytes) -> None:
    """Any request gets a map with `ret`, nothing else."""

    async def main() -> None:
        with bench() as table:
            async with trio.open_nursery() as nursery:
                networks = Networks(table.switch, Path("/nonexistent/x"), Store(), nursery)
                answer = msgpack.unpackb(await _Session(networks, table.switch).answer(data, []))
                assert answer["ret"] in (0, -1)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_pcap_streams() -> None:
    with pytest.raises(ValueError, match="not a pcap"):
        list(network.pcap_frames(BytesIO(b"x" * 30)))
    assert list(network.pcap_frames(BytesIO(b""))) == []


def test_the_command_without_a_host(tmp_path: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "UMXEN_HOST": "x"}
    result = CliRunner().invoke(network.network, ["list"], env=environment)
    assert isinstance(result.exception, NetworkError) and "is the host up?" in str(result.exception)
    for words in ([], ["create", "--help"], ["forward", "--help"]):
        assert "uplink" in CliRunner().invoke(network.network, words).output.lower() or "Lead a port" in (
            CliRunner().invoke(network.network, words).output
        )
