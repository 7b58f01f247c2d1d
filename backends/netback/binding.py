"""The switch and the guests' rings as Python objects: the only file that sees the extension's ffi and lib.

Objects are closed by their owner, children before parents; nothing here blocks for longer than a burst.
Addresses are integers: of memory that the caller keeps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from backends.netback._netback import ffi as _ffi
from backends.netback._netback import lib as _lib
from backends.netback.config import Membership, VlanMode

ffi: Any = _ffi
lib: Any = _lib

MAX_QUEUES: int = lib.NB_MAX_QUEUES
SHADOW_BYTES: int = lib.NB_SHADOW_BYTES
PAGE: int = lib.VS_PAGE
CSUM4, CSUM6, TSO4, TSO6 = lib.VS_CSUM4, lib.VS_CSUM6, lib.VS_TSO4, lib.VS_TSO6
BIG, VNET = lib.VS_BIG, lib.VS_VNET
STREAM, DATAGRAM, MULTICAST = lib.VS_STREAM, lib.VS_DATAGRAM, lib.VS_MULTICAST
_MODES = {VlanMode.ACCESS: lib.VS_ACCESS, VlanMode.TRUNK: lib.VS_TRUNK, VlanMode.NATIVE: lib.VS_NATIVE}
_FDB_MAX = 4096


@dataclass(frozen=True)
class Learned:
    """An address the switch has learned, and the port behind which it is."""

    mac: bytes
    vlan: int
    age_s: int
    port: Port | None


class Switch:
    """A switch whose packets lie in `nbytes` at `address` (page-aligned), which the caller keeps."""

    def __init__(self, address: int, nbytes: int) -> None:
        out = ffi.new("vswitch_t **")
        _check(lib.vs_create(ffi.cast("void *", address), nbytes, out), "switch")
        self._switch = out[0]
        self._news = trio.Event()
        self.ports: dict[int, Port] = {}

    def start(self) -> None:
        """Serve by a thread of the switch's own."""
        _check(lib.vs_start(self._switch), "switch thread")

    def step(self, timeout_ms: int = 0) -> bool:
        """One turn of the loop without a thread, for tests; whether there is more to do at once."""
        return bool(_check(lib.vs_step(self._switch, timeout_ms), "switch"))

    def stop(self) -> None:
        """Ends the thread. May be called twice."""
        lib.vs_stop(self._switch)

    def close(self) -> None:
        """May be called twice."""
        if self._switch is not None:
            self.stop()
            switch, self._switch = self._switch, None
            lib.vs_destroy(switch)

    async def follow_news(self) -> None:
        """Wakes who waits in wait_news(), for ever."""
        fd = lib.vs_news_fd(self._switch)
        while True:
            await trio.lowlevel.wait_readable(fd)
            os.read(fd, 8)
            news, self._news = self._news, trio.Event()
            news.set()

    async def wait_news(self) -> None:
        """Returns when some port or capture has died, or some vif's guest broke its rings."""
        await self._news.wait()

    def statistics(self) -> dict[str, int]:
        """nr_pages, nr_free_pages, nr_ports, nr_networks, turns, naps."""
        out = ffi.new("struct vs_statistics *")
        lib.vs_statistics(self._switch, out)
        return _fields(out)


class Network:
    """A network of `switch`: ports on different ones never meet."""

    def __init__(self, switch: Switch, *, ageing_s: int = 300, storm_pps: int = 0) -> None:
        out = ffi.new("vs_network_t **")
        limits = ffi.new("struct vs_limits *", {"ageing_s": ageing_s, "storm_pps": storm_pps})
        _check(lib.vs_network_create(switch._switch, limits, out), "network")
        self.switch = switch
        self._network = out[0]

    def close(self) -> None:
        """Raises: OSError EBUSY while it has ports. May be called twice."""
        if self._network is not None:
            _check(lib.vs_network_destroy(self._network), "network")
            self._network = None

    def add_fd(self, kind: int, fd: int, send_fd: int = -1, caps: int = 0) -> Port:
        """A port on a descriptor, which becomes the port's: STREAM, DATAGRAM or MULTICAST.

        Raises: OSError; the descriptors stay the caller's then.
        """
        out = ffi.new("vs_port_t **")
        _check(lib.vs_port_create(self._network, kind, fd, send_fd, caps, out), "port")
        return Port(self, out[0])

    def learned(self) -> list[Learned]:
        """The table of addresses, at most 4096."""
        out = ffi.new("struct vs_fdb_entry[]", _FDB_MAX)
        count = lib.vs_fdb_list(self._network, out, _FDB_MAX)
        ports = self.switch.ports
        return [
            Learned(bytes(out[i].mac), out[i].vlan, out[i].age_s, ports.get(_address(out[i].port)))
            for i in range(count)
        ]

    def capture(self, fd: int, port: Port | None = None, snaplen: int = 0) -> Capture:
        """A pcap stream into `fd`, a pipe or socket that becomes the capture's. Raises: OSError."""
        out = ffi.new("vs_capture_t **")
        where = port._port if port else ffi.NULL
        _check(lib.vs_capture_create(self._network, where, fd, snaplen, out), "capture")
        return Capture(out[0])


class Port:
    """A port of a network."""

    def __init__(self, network: Network, port: Any) -> None:
        self.network = network
        self._port = port
        network.switch.ports[_address(port)] = self

    def apply(self, membership: Membership, mac: bytes = bytes(6), mtu: int = 0) -> None:
        """Who may send what by it, and what reaches it. `mac` is what anti-spoof insists on."""
        settings = ffi.new("struct vs_port_settings *")
        settings.vlan_mode = _MODES[membership.mode]
        settings.tag = membership.tag
        for vlan in membership.trunks:
            settings.trunks[vlan // 64] |= 1 << vlan % 64
        settings.isolated = membership.isolated
        settings.anti_spoof = membership.anti_spoof
        settings.mac = list(mac)
        settings.mtu = mtu
        if membership.rate is not None:
            settings.rate_bytes, settings.rate_usec = membership.rate
        _check(lib.vs_port_set(self._port, settings), "port settings")

    def error(self) -> int:
        """The errno that ended it, or 0."""
        return int(lib.vs_port_error(self._port))

    def counters(self) -> dict[str, int]:
        """rx_ is from the port into the switch, tx_ from the switch to the port."""
        out = ffi.new("struct vs_counters *")
        lib.vs_port_counters(self._port, out)
        return _fields(out)

    async def wait_error(self) -> int:
        """Returns the errno when the port has died."""
        while not (error := self.error()):
            await self.network.switch.wait_news()
        return error

    def close(self) -> None:
        """May be called twice."""
        if self._port is not None:
            del self.network.switch.ports[_address(self._port)]
            port, self._port = self._port, None
            lib.vs_port_destroy(port)


class Capture:
    """Made by Network.capture()."""

    def __init__(self, capture: Any) -> None:
        self._capture = capture

    def state(self) -> tuple[int, int, int]:
        """Frames written, frames lost because the reader was slow, and the errno that ended it, or 0."""
        written, lost = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        error = lib.vs_capture_state(self._capture, written, lost)
        return written[0], lost[0], error

    def close(self) -> None:
        """May be called twice."""
        if self._capture is not None:
            capture, self._capture = self._capture, None
            lib.vs_capture_destroy(capture)


@dataclass(frozen=True)
class Queue:
    """Addresses of the shared pages and of the shadow; descriptors of the event channels."""

    tx_ring: int
    rx_ring: int
    shadow: int
    tx_upcall: int
    tx_doorbell: int
    rx_upcall: int
    rx_doorbell: int


@dataclass(frozen=True)
class Connection:
    """What a guest's frontend has asked for. `caps` of CSUM4...; `ctrl` is (ring, upcall, doorbell)."""

    queues: Sequence[Queue]
    caps: int = 0
    scatter_gather: bool = False
    multicast_control: bool = False
    resume: bool = False
    ctrl: tuple[int, int, int] | None = field(default=None)


class Netback:
    """The guests' rings, served in the switch's turns. `first_gmfn`: of the switch's memory in our arena.

    `ring` has the arguments of hcall_open(); it is this object's until close().
    """

    def __init__(self, switch: Switch, ring: tuple[int, int, int, int, int], first_gmfn: int) -> None:
        memfd, doorbell, window, window_addr, window_bytes = ring
        window_at = ffi.cast("void *", window)
        self._ring = lib.hcall_open(memfd, doorbell, window_at, window_addr, window_bytes)
        if not self._ring:
            raise MemoryError("hypercall ring")
        out = ffi.new("netback_t **")
        copy = ffi.addressof(lib, "nb_copy_by_hcall")
        _check(lib.nb_create(switch._switch, copy, self._ring, first_gmfn, out), "netback")
        self.switch = switch
        self._netback = out[0]

    def gone(self) -> bool:
        """Whether copies fail because the hypervisor has ended."""
        return bool(lib.nb_gone(self._netback))

    def close(self) -> None:
        """After its vifs and the switch's thread, before the switch. May be called twice."""
        if self._netback is not None:
            lib.nb_destroy(self._netback)
            lib.hcall_close(self._ring)
            self._netback = None


class Vif(Port):
    """A guest's interface as a port; without carrier until it is connected."""

    def __init__(self, netback: Netback, network: Network, domid: int) -> None:
        out = ffi.new("nb_vif_t **")
        _check(lib.nb_vif_create(netback._netback, network._network, domid, out), "vif")
        self._vif = out[0]
        super().__init__(network, lib.nb_vif_port(self._vif))

    def connect(self, connection: Connection) -> None:
        """Serves these rings. Raises: OSError; ERANGE when indices make no sense."""
        c = ffi.new("struct nb_connection *")
        c.nr_queues = len(connection.queues)
        c.resume, c.caps = connection.resume, connection.caps
        c.scatter_gather, c.multicast_control = connection.scatter_gather, connection.multicast_control
        for to, queue in zip(c.queue, connection.queues):
            to.tx_ring, to.rx_ring = (ffi.cast("void *", at) for at in (queue.tx_ring, queue.rx_ring))
            to.shadow = ffi.cast("void *", queue.shadow)
            to.tx_upcall, to.tx_doorbell = queue.tx_upcall, queue.tx_doorbell
            to.rx_upcall, to.rx_doorbell = queue.rx_upcall, queue.rx_doorbell
        if connection.ctrl:
            ring, c.ctrl_upcall, c.ctrl_doorbell = connection.ctrl
            c.ctrl_ring = ffi.cast("void *", ring)
        _check(lib.nb_vif_connect(self._vif, c), "vif")

    def disconnect(self) -> None:
        """Lets go of rings and descriptors. May be called without a connection."""
        if self._port is not None:
            lib.nb_vif_disconnect(self._vif)

    def fault(self) -> str | None:
        """What the guest did to its rings, or None while they are served."""
        text = lib.nb_vif_fault(self._vif)
        return ffi.string(text).decode() if text else None

    async def wait_fault(self) -> str:
        """Returns when the guest has broken its rings: how."""
        while (fault := self.fault()) is None:
            await self.network.switch.wait_news()
        return fault

    def state(self) -> dict[str, int]:
        """connected, stalled, tx_errors, rx_copy_errors, throttled, batches, copies, notifications."""
        out = ffi.new("struct nb_vif_state *")
        lib.nb_vif_state(self._vif, out)
        return _fields(out)


def _fields(struct: Any) -> dict[str, int]:
    return {name: int(getattr(struct, name)) for name, _ in ffi.typeof(struct).item.fields}


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result
