"""Uplinks: descriptors made from what users wrote, kept as ports of their network, made again when lost.

Each uplink is a task. Its first attempt's error is told to whoever created it; afterwards it tries again once
a second, and `status` says what it is at. A peer of QEMU's is any of listen, connect, udp, mcast (its
`-netdev socket`), unix-* and listen/connect again (its `-netdev stream`, `-netdev dgram`).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from backends.netback import binding
from backends.netback.config import Forward, Uplink, parse_endpoint, user_network
from backends.netback.nat import FdStore, NatError, UserNetProcess, user_net

if TYPE_CHECKING:
    from backends.netback.networks import RunningNetwork

RETRY_SECONDS = 1.0
_BUFFER_BYTES = 1 << 20
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_OFFLOADS = 0x01 | 0x02 | 0x04  # TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_UP = 0x0002, 0x1000, 0x4000, 0x1
_VDE_MAGIC, _VDE_VERSION, _VDE_NEW = 0xFEEDFACE, 3, 0


class UplinkError(Exception):
    """The uplink cannot be had; the text says why and what would help."""


class RunningUplink:
    """An uplink of a network, as long as the network has it."""

    def __init__(self, uplink: Uplink, name: str, network: RunningNetwork) -> None:
        self.uplink = uplink
        self.name = name
        self.status = "starting"
        self.user: UserNetProcess | None = None
        self.attempted = trio.Event()
        """The first attempt has come out, one way or the other; `failure` says which."""
        self.failure: str | None = None
        self._network = network
        self._ports = 0

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await _RUN[self.uplink.kind](self)
            except (OSError, UplinkError, NatError) as error:
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self.status = f"error: {text}"
                if not self.attempted.is_set():
                    self.failure = text
            self.attempted.set()
            await trio.sleep(RETRY_SECONDS)

    def works(self, status: str) -> None:
        """Whoever waits for the first attempt goes on."""
        self.status = status
        self.attempted.set()

    @contextmanager
    def port(
        self, kind: int, fd: int, *, send_fd: int = -1, caps: int = 0, name: str = ""
    ) -> Iterator[binding.Port]:
        """A port on the descriptors, which are closed with it."""
        try:
            port = self._network.network.add_fd(kind, fd, send_fd, caps)
        except BaseException:
            for each in {fd, send_fd} - {-1}:
                os.close(each)
            raise
        try:
            with self._network.attached(name or self.name, port, self.uplink.membership, uplink=True):
                port.apply(self.uplink.membership)
                yield port
        finally:
            port.close()

    async def serve(self, kind: int, sock: socket.socket, status: str, name: str = "") -> None:
        """A socket as a port until it dies."""
        with suppress(OSError):  # what the kernel allows
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        with self.port(kind, sock.detach(), name=name) as port:
            self.works(status)
            error = await port.wait_error()
            self.status = f"lost: {os.strerror(error)}"

    async def forward(self, forward: Forward) -> None:
        """Raises: NatError."""
        if self.user is None:
            raise NatError(f"{forward}: the user-mode uplink is not up: {self.status}")
        await self.user.forward(forward)

    async def unforward(self, forward: Forward) -> None:
        """Raises: NatError."""
        if self.user is not None:
            await self.user.unforward(forward)

    def next_name(self) -> str:
        """For the ports of a listener."""
        self._ports += 1
        return f"{self.name}.{self._ports}"

    @property
    def store(self) -> FdStore:
        """Where descriptors survive us."""
        return self._network.store

    @property
    def network_name(self) -> str:
        return self._network.config.name

    def forwards(self) -> list[Forward]:
        """What the network wants forwarded."""
        return self._network.forwards()


# --- streams: QEMU's framing, a port for each connection


async def _accept(run: RunningUplink, listener: socket.socket, where: str) -> None:
    listener.listen(16)
    listener.setblocking(False)
    run.works(f"listening on {where}")
    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(listener)
            with suppress(BlockingIOError, ConnectionAbortedError):
                client, _ = listener.accept()
                nursery.start_soon(_serve_client, run, client, f"listening on {where}")


async def _serve_client(run: RunningUplink, client: socket.socket, status: str) -> None:
    if client.family != socket.AF_UNIX:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await run.serve(binding.STREAM, client, status, run.next_name())
    run.status = status


async def _listen(run: RunningUplink) -> None:
    address, port = parse_endpoint(run.uplink.address)
    family, at = await _resolve(address or "0.0.0.0", port, socket.SOCK_STREAM)
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(at)
        await _accept(run, listener, f"{at[0]}:{listener.getsockname()[1]}")


async def _connect(run: RunningUplink) -> None:
    address, port = parse_endpoint(run.uplink.address)
    run.works(f"connecting to {run.uplink.address}")
    stream = await trio.open_tcp_stream(address or "127.0.0.1", port)
    sock = _take(stream.socket)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await run.serve(binding.STREAM, sock, f"connected to {run.uplink.address}")


async def _unix_listen(run: RunningUplink) -> None:
    with _unix_socket(socket.SOCK_STREAM, run.uplink.address) as listener:
        await _accept(run, listener, run.uplink.address)


async def _unix_connect(run: RunningUplink) -> None:
    run.works(f"connecting to {run.uplink.address}")
    stream = await trio.open_unix_socket(run.uplink.address)
    await run.serve(binding.STREAM, _take(stream.socket), f"connected to {run.uplink.address}")


# --- datagrams


async def _udp(run: RunningUplink) -> None:
    address, port = parse_endpoint(run.uplink.address)
    peer_address, peer_port = parse_endpoint(run.uplink.options["to"])
    family, at = await _resolve(address or "0.0.0.0", port, socket.SOCK_DGRAM)
    _, peer = await _resolve(peer_address or "127.0.0.1", peer_port, socket.SOCK_DGRAM)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(at)
        sock.connect(peer)
        await run.serve(binding.DATAGRAM, sock, f"{run.uplink.address} to {run.uplink.options['to']}")


async def _mcast(run: RunningUplink) -> None:
    group, port = parse_endpoint(run.uplink.address)
    local = run.uplink.options.get("local", "127.0.0.1")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        receiver.bind((group, port))
        joined = socket.inet_aton(group) + socket.inet_aton(local)
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        # A sender of our own: what comes back from it is known by its address.
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(local))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        sender.bind((local, 0))
        sender.connect((group, port))
        with run.port(binding.MULTICAST, receiver.detach(), send_fd=sender.detach()) as opened:
            run.works(f"in group {run.uplink.address}")
            await opened.wait_error()


async def _unix_dgram(run: RunningUplink) -> None:
    peer = run.uplink.options["to"]
    with _unix_socket(socket.SOCK_DGRAM, run.uplink.address) as sock:
        try:
            run.works(f"waiting for {peer}")
            while True:
                with suppress(FileNotFoundError, ConnectionRefusedError):
                    sock.connect(peer)
                    break
                await trio.sleep(RETRY_SECONDS / 4)
            await run.serve(binding.DATAGRAM, sock, f"{run.uplink.address} to {peer}")
        finally:
            _unlink(run.uplink.address)


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)


@contextmanager
def _unix_socket(kind: int, path: str) -> Iterator[socket.socket]:
    """Bound to `path`, 0600, what a dead process left there removed; the path is removed at the end."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        if Path(path).is_socket():
            with socket.socket(socket.AF_UNIX, kind) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    Path(path).unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(old)
        try:
            yield sock
        finally:
            Path(path).unlink(missing_ok=True)


# --- VDE: a stream to ask for a port, datagrams for the frames


async def _vde(run: RunningUplink) -> None:
    folder = Path(run.uplink.address)
    try:
        control = await trio.open_unix_socket(str(folder / "ctl"))
    except OSError as error:
        raise UplinkError(f"no vde_switch serves {folder}: {error.strerror or error}") from error
    local = folder / f".umxen.{os.getpid()}.{id(run):x}"
    with _unix_socket(socket.SOCK_DGRAM, str(local)) as data, _take(control.socket) as asking:
        asking.setblocking(True)
        asking.settimeout(5.0)
        request = struct.pack("=III", _VDE_MAGIC, _VDE_VERSION, _VDE_NEW) + _sockaddr(local)
        asking.sendall(request + b"umxen".ljust(128, b"\0"))
        answer = await trio.to_thread.run_sync(asking.recv, 110)
        if len(answer) < 3:
            raise UplinkError(f"vde_switch at {folder} gives no port")
        data.connect(answer[2:].split(b"\0")[0])
        asking.settimeout(None)
        asking.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_hung_up, asking, nursery.cancel_scope)
            await run.serve(binding.DATAGRAM, data, f"a port of {folder}")
            nursery.cancel_scope.cancel()
    run.status = "lost: the vde_switch has gone"


def _sockaddr(path: Path) -> bytes:
    return struct.pack("=H", socket.AF_UNIX) + os.fsencode(path).ljust(108, b"\0")


async def _until_hung_up(sock: socket.socket, scope: trio.CancelScope) -> None:
    while True:
        await trio.lowlevel.wait_readable(sock)
        if not sock.recv(4096):
            scope.cancel()
            return


# --- TAP


async def _tap(run: RunningUplink) -> None:
    wanted = run.uplink.address or f"umxen{os.getpid() % 10000}"
    if len(wanted.encode()) > 15:
        raise UplinkError(f"tap {wanted!r}: an interface's name has at most 15 bytes")
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UplinkError(
            f"no TAP here: /dev/net/tun: {error.strerror}; user-mode uplinks need none"
        ) from error
    try:
        request = struct.pack("16sH22x", wanted.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        name = fcntl.ioctl(fd, _TUNSETIFF, request)[:16].rstrip(b"\0").decode()
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)
        _bring_up(name)
    except OSError as error:
        os.close(fd)
        hint = "it takes CAP_NET_ADMIN, or a TAP made for this user by `ip tuntap add mode tap user ...`"
        raise UplinkError(f"no TAP {wanted}: {error.strerror}; {hint}") from error
    caps = binding.VNET | binding.CSUM4 | binding.CSUM6 | binding.TSO4 | binding.TSO6
    with run.port(binding.DATAGRAM, fd, caps=caps) as port:
        run.works(f"interface {name}")
        await port.wait_error()


def _bring_up(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(PermissionError):
        request = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh22x", name.encode(), 0))
        (flags,) = struct.unpack_from("h", request, 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", name.encode(), flags | _IFF_UP))


# --- user mode


async def _user(run: RunningUplink) -> None:
    async with user_net(run.store, run.network_name, user_network(run.uplink.options)) as process:
        caps = binding.VNET | (binding.BIG if process.nat else 0)
        with run.port(binding.DATAGRAM, process.take_frames(), caps=caps) as port:
            run.user = process
            try:
                refused = await _apply_forwards(run, process)
                run.works((f"NAT by libslirp {process.nat}" if process.nat else process.why) + refused)
                await port.wait_error()
            finally:
                run.user = None
    raise UplinkError("the user-mode uplink's process has ended")


async def _apply_forwards(run: RunningUplink, process: UserNetProcess) -> str:
    refused = []
    for forward in run.forwards():
        try:
            await process.forward(forward)
        except NatError as error:
            refused.append(str(error))
    return "".join(f"; {text}" for text in refused)


# --- small


def _take(sock: trio.socket.SocketType) -> socket.socket:
    return socket.socket(fileno=sock.detach())


async def _resolve(address: str, port: int, kind: int) -> tuple[int, tuple[str, int]]:
    try:
        found = await trio.socket.getaddrinfo(address, port, type=kind)
    except OSError as error:
        raise UplinkError(f"{address}: {error.strerror or error}") from error
    family, _, _, _, at = found[0]
    return family, (str(at[0]), int(at[1]))


_RUN: dict[str, Callable[[RunningUplink], Awaitable[None]]] = {
    "user": _user, "listen": _listen, "connect": _connect, "udp": _udp, "mcast": _mcast, "vde": _vde,
    "unix-listen": _unix_listen, "unix-connect": _unix_connect, "unix-dgram": _unix_dgram, "tap": _tap,
}  # fmt: skip
