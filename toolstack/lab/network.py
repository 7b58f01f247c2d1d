"""Networks of a host: `umxen network`, `umxen capture`, and the same for tests.

Speaks to netback over R/netback.sock (its requests are listed in backends/netback/control.py). Synchronous.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

import click
import msgpack

from hyper.public.paths import HostPaths

_MAX_MESSAGE = 128 << 10
_PATIENCE_SECONDS = 20.0
_CHUNK = 1 << 16
_PCAP_HEADER, _PCAP_RECORD = struct.Struct("<IHHiIII"), struct.Struct("<IIII")


class NetworkError(Exception):
    """netback refuses, or does not answer; the text says why."""


class NetworkClient:
    """A connection to the netback of a host. Use it with `with`."""

    def __init__(self, paths: HostPaths) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(_PATIENCE_SECONDS)
        try:
            self._sock.connect(str(paths.netback))
        except OSError as error:
            self._sock.close()
            raise NetworkError(
                f"host {paths.name}: netback does not answer ({error.strerror}); is the host up?"
            ) from error

    def __enter__(self) -> NetworkClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def ask(self, op: str, fds: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
        """One request. Raises: NetworkError."""
        try:
            socket.send_fds(self._sock, [msgpack.packb({"op": op, **fields})], list(fds))
            data = self._sock.recv(_MAX_MESSAGE)
        except TimeoutError as error:
            raise NetworkError(f"netback has not answered {op!r} within {_PATIENCE_SECONDS:g} s") from error
        except OSError as error:
            raise NetworkError(f"netback has hung up: {error.strerror}") from error
        if not data:
            raise NetworkError("netback has hung up")
        answer: dict[str, Any] = msgpack.unpackb(data)
        if answer["ret"]:
            raise NetworkError(answer["error"])
        return answer


def ask(paths: HostPaths, op: str, **fields: Any) -> dict[str, Any]:
    """One request on a connection of its own. Raises: NetworkError."""
    with NetworkClient(paths) as client:
        return client.ask(op, **fields)


def create(
    paths: HostPaths,
    name: str,
    uplinks: Sequence[str] = (),
    *,
    groups: Sequence[str] = (),
    forwards: Sequence[str] = (),
    mtu: int = 0,
    storm_pps: int = 5000,
    ageing_s: int = 300,
) -> list[dict[str, str]]:
    """Make a network; its uplinks and what they are at. Raises: NetworkError."""
    network: dict[str, Any] = {
        "name": name,
        "uplinks": list(uplinks),
        "groups": list(groups),
        "forwards": list(forwards),
    }
    network |= {"mtu": mtu, "storm_pps": storm_pps, "ageing_s": ageing_s}
    found: list[dict[str, str]] = ask(paths, "create", network=network)["uplinks"]
    return found


# --- captures


@dataclass
class Capture:
    """A capture that runs in the background of a test. `frames` grows; after the block it is complete."""

    frames: list[bytes] = field(default_factory=list)
    written: int = 0
    lost: int = 0

    def wait_frames(self, count: int, *, timeout: float = 10.0) -> list[bytes]:
        """The frames, as soon as there are `count`. Raises: NetworkError."""
        deadline = time.monotonic() + timeout
        while len(self.frames) < count:
            if time.monotonic() > deadline:
                raise NetworkError(f"{len(self.frames)} frames after {timeout:g} s, not {count}")
            time.sleep(0.01)
        return self.frames


@contextmanager
def capturing(paths: HostPaths, name: str, port: str | None = None) -> Iterator[Capture]:
    """Captures a network, or one port of it, in the block. Raises: NetworkError."""
    capture = Capture()
    with NetworkClient(paths) as client:
        read_end = _start(client, name, port, 0)
        reader = Thread(target=_collect, args=(read_end, capture), daemon=True)
        reader.start()
        yield capture
        state = client.ask("capture_state")
        capture.written, capture.lost = state["written"], state["lost"]
    reader.join()


def _start(client: NetworkClient, name: str, port: str | None, snaplen: int) -> int:
    """Starts the client's capture; the reading end of its pipe."""
    read_end, write_end = os.pipe()
    try:
        client.ask("capture", [write_end], name=name, port=port, snaplen=snaplen)
    except NetworkError:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    return read_end


def _collect(read_end: int, capture: Capture) -> None:
    with open(read_end, "rb") as stream:
        capture.frames.extend([])
        for frame in pcap_frames(stream):
            capture.frames.append(frame)


def pcap_frames(stream: BinaryIO) -> Iterator[bytes]:
    """The frames of a pcap stream, as they come. Raises: ValueError when it is none."""
    header = stream.read(_PCAP_HEADER.size)
    if not header:
        return
    if len(header) < _PCAP_HEADER.size or _PCAP_HEADER.unpack(header)[0] != 0xA1B23C4D:
        raise ValueError("not a pcap stream with nanoseconds")
    while len(record := stream.read(_PCAP_RECORD.size)) == _PCAP_RECORD.size:
        kept = _PCAP_RECORD.unpack(record)[2]
        if len(data := stream.read(kept)) < kept:
            return
        yield data


# --- the command


host_option = click.option(
    "--host",
    "host_name",
    metavar="NAME",
    default=None,
    help="The host instance (default: $UMXEN_HOST, else `default`).",
)


@click.group()
def network() -> None:
    """Networks of a host: virtual switches that guests' `vif` lines name as `bridge=`.

    A host starts with one, xenbr0: guests get addresses by DHCP (10.0.2.15 on), reach the outside by NAT
    where libslirp is installed, and the host itself at 10.0.2.2.

    \b
    In a vif:  bridge=NAME             untagged frames of VLAN 0
               bridge=NAME.7           access port of VLAN 7
               bridge=NAME:7:8         trunk: VLANs 7 and 8, tagged
               bridge=NAME.GROUP       as a port group of the network says
    """


@network.command("list")
@host_option
def network_list(host_name: str | None) -> None:
    """List the networks, their guests, uplinks and forwards."""
    for found in ask(_paths(host_name), "list")["networks"]:
        click.echo(f"{found['name']}: {found['ports']} ports" + _words(", guests", found["vifs"]))
        for text in found["uplinks"]:
            click.echo(f"  uplink {text}")
        for text in found["forwards"]:
            click.echo(f"  forward {text}")


@network.command("show")
@click.argument("name")
@host_option
def network_show(name: str, host_name: str | None) -> None:
    """Show a network: settings, uplinks, ports with their counters, learned addresses, leases."""
    found = ask(_paths(host_name), "show", name=name)
    config = found["config"]
    mtu = config["mtu"] or "any"
    storm = config["storm_pps"] or "no"
    click.echo(f"network {name}: MTU {mtu}, storm limit {storm} frames/s, ageing {config['ageing_s']} s")
    for text in config["groups"]:
        click.echo(f"  group {text}")
    for uplink in found["uplinks"]:
        click.echo(f"  uplink {uplink['text']}: {uplink['status']}")
    for text in config["forwards"]:
        click.echo(f"  forward {text}")
    for port in found["ports"]:
        _show_port(port)
    for learned in found["learned"]:
        vlan = f" vlan {learned['vlan']}" if learned["vlan"] else ""
        click.echo(f"  {learned['mac']}{vlan} at {learned['port']}, seen {learned['age']} s ago")
    for mac, address in found["leases"].items():
        click.echo(f"  lease {address} to {mac}")


@network.command("create")
@click.argument("name")
@click.option(
    "--uplink",
    "uplinks",
    multiple=True,
    metavar="KIND[:ADDRESS][,OPTION=VALUE...]",
    help="How it goes on elsewhere; may be given more than once (see below).",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME[,OPTION...]",
    help="A port group: tag=N, trunks=A+B or trunks=all, isolated, anti-spoof, rate=10Mb/s.",
)
@click.option(
    "--forward", "forwards", multiple=True, metavar="PORT-GUEST:PORT", help="As `umxen network forward` does."
)
@click.option("--mtu", type=int, default=0, help="Longest packets (default: any).")
@click.option(
    "--storm",
    type=int,
    default=5000,
    show_default=True,
    metavar="N",
    help="Broadcasts a second of a port; 0: any.",
)
@click.option("--ageing", type=int, default=300, show_default=True, metavar="SECONDS", help="Of addresses.")
@host_option
def network_create(
    name: str,
    uplinks: tuple[str, ...],
    groups: tuple[str, ...],
    forwards: tuple[str, ...],
    mtu: int,
    storm: int,
    ageing: int,
    host_name: str | None,
) -> None:
    """Make a network. It stays until it is deleted, restarts of the host included.

    \b
    Uplinks:
      user                       DHCP, DNS, and NAT by libslirp; net=10.0.2.0/24 host= dns= dhcp-start=
                                 domain= mtu=, no-host (guests don't reach this machine's own servers)
      listen:ADDRESS:PORT        QEMU's `-netdev socket,connect=` and `stream`; a port for each peer
      connect:ADDRESS:PORT       QEMU's `-netdev socket,listen=`; tried again until it is there
      udp:LOCAL:PORT,to=H:PORT   QEMU's `-netdev socket,udp=...,localaddr=...`
      mcast:GROUP:PORT           QEMU's `-netdev socket,mcast=`; local=ADDRESS
      unix-listen:PATH, unix-connect:PATH, unix-dgram:PATH,to=PATH
                                 QEMU's `-netdev stream` and `dgram`
      vde:PATH                   a vde_switch
      tap[:NAME]                 a TAP interface of the host, where that is permitted
    With each: tag=N, trunks=A+B, rate=10Mb/s. All but `user` carry every VLAN, tagged, if nothing is said.
    """
    made = create(
        _paths(host_name),
        name,
        uplinks,
        groups=groups,
        forwards=forwards,
        mtu=mtu,
        storm_pps=storm,
        ageing_s=ageing,
    )
    click.echo(f"Network {name} is there.")
    for uplink in made:
        click.echo(f"  uplink {uplink['text']}: {uplink['status']}")


@network.command("delete")
@click.argument("name")
@host_option
def network_delete(name: str, host_name: str | None) -> None:
    """Delete a network that no guest is on."""
    ask(_paths(host_name), "delete", name=name)
    click.echo(f"Network {name} is gone.")


@network.command("forward")
@click.argument("name")
@click.argument("forward", required=False)
@click.option("--remove", is_flag=True, help="End this forward (its host's port is enough to name it).")
@host_option
def network_forward(name: str, forward: str | None, remove: bool, host_name: str | None) -> None:
    """Lead a port of this machine to a guest: [tcp|udp:][ADDRESS:]PORT-[GUEST:]PORT.

    `umxen network forward xenbr0 8080-10.0.2.15:80`: connections to 127.0.0.1:8080 reach the guest's port 80.
    Without a guest's address it is the one DHCP gives first. Without a forward those there are listed.
    """
    paths = _paths(host_name)
    if forward is None:
        forwards = ask(paths, "show", name=name)["config"]["forwards"]
    else:
        forwards = ask(paths, "unforward" if remove else "forward", name=name, forward=forward)["forwards"]
    for text in forwards:
        click.echo(text)


@click.command()
@click.argument("name", default="xenbr0")
@click.option("--port", metavar="PORT", default=None, help="One port, such as vif1.0 or user.")
@click.option("--write", "-w", "target", metavar="FILE", default="-", help="Default: standard output.")
@click.option("--snaplen", type=int, default=0, metavar="BYTES", help="Keep that many of each frame.")
@click.option("--seconds", type=float, default=None, metavar="S", help="End after that long.")
@host_option
def capture(
    name: str, port: str | None, target: str, snaplen: int, seconds: float | None, host_name: str | None
) -> None:
    """Capture what enters network NAME (default: xenbr0), or passes one port, as pcap, until Ctrl-C.

    `umxen capture | tcpdump -n -r -` shows it live. A reader that is too slow loses frames, not the network;
    how many is told at the end.
    """
    if target == "-" and sys.stdout.isatty():
        raise NetworkError("pcap is no text: give a file with -w, or pipe it into `tcpdump -n -r -`")
    with NetworkClient(_paths(host_name)) as client:
        read_end = _start(client, name, port, snaplen)
        try:
            with open(read_end, "rb", buffering=0) as stream, _output(target) as output:
                _copy(stream, output, seconds)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        state = client.ask("capture_state")
    lost = f", {state['lost']} lost" if state["lost"] else ""
    click.echo(f"{state['written']} frames{lost}", err=True)


def _copy(stream: BinaryIO, output: BinaryIO, seconds: float | None) -> None:
    import select

    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        if select.select([stream], [], [], patience)[0]:
            data = stream.read(_CHUNK)
            if not data:
                return
            output.write(data)
            output.flush()


@contextmanager
def _output(target: str) -> Iterator[BinaryIO]:
    if target == "-":
        yield sys.stdout.buffer
        return
    with Path(target).open("wb") as file:
        yield file


def _show_port(port: dict[str, Any]) -> None:
    counters = port["counters"]
    words = [f"in {counters['rx_packets']} ({counters['rx_bytes']} bytes)"]
    words.append(f"out {counters['tx_packets']} ({counters['tx_bytes']} bytes)")
    words += [
        f"{name.replace('_', ' ')} {value}"
        for name, value in counters.items()
        if value and ("dropped" in name or name in ("checksums", "segments"))
    ]
    vif = port.get("vif")
    if vif is not None and not vif["connected"]:
        words.append("not connected")
    if vif is not None and vif["stalled"]:
        words.append("stalled: the guest takes nothing")
    membership = f" [{port['membership']}]" if port["membership"] else ""
    click.echo(f"  port {port['name']}{membership}: {', '.join(words)}")


def _words(label: str, words: list[str]) -> str:
    return f"{label} {', '.join(words)}" if words else ""


def _paths(name: str | None) -> HostPaths:
    return HostPaths.from_environment(name)
