"""A vif from its first node in xenstore to its last: negotiation, rings mapped, ports bound.

The data path is C (vif.c). What is shared with the guest is mapped here and handed over by address; it stays
mapped until the C side has let go. Each queue has a shadow page in a memfd that hyper keeps (fd store), so
that a successor of a killed netback knows which requests were under way.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace

import trio

from backends.bus import DeviceError, Link, number, run_connections
from backends.netback import binding
from backends.netback.binding import Connection, Netback, Queue, Vif, ffi
from backends.netback.config import ConfigError, parse_bridge, parse_mac, parse_vif_rate
from backends.netback.networks import Networks
from hyper.guest import Port
from hyper.public.errors import NoSuchNode

MAX_QUEUES = 4
"""Offered to frontends; they take as many as they have vCPUs."""
STATISTICS_SECONDS = 5.0
_MAX_GREF = 0xFFFFFFFF
_MAX_PORT = 0xFFFFFFFF

FEATURES: dict[str, int] = {
    "feature-rx-copy": 1,
    "feature-rx-flip": 0,
    "feature-sg": 1,
    "feature-gso-tcpv4": 1,
    "feature-gso-tcpv6": 1,
    "feature-ipv6-csum-offload": 1,
    "feature-multicast-control": 1,
    "feature-dynamic-multicast-control": 1,
    "feature-split-event-channels": 1,
    "feature-ctrl-ring": 1,
    "multi-queue-max-queues": MAX_QUEUES,
}


@dataclass(frozen=True)
class VifConfig:
    """What xend wrote about a vif."""

    name: str
    bridge: str
    mac: bytes
    rate: tuple[int, int] | None
    mtu: int


def vif_config(nodes: Mapping[str, str], domid: int, devid: int) -> VifConfig:
    """Raises: DeviceError."""
    try:
        return VifConfig(
            name=nodes.get("vifname") or f"vif{domid}.{devid}",
            bridge=nodes.get("bridge", ""),
            mac=parse_mac(nodes.get("mac", "")),
            rate=parse_vif_rate(nodes["rate"]) if nodes.get("rate") else None,
            mtu=number(nodes, "mtu", default=0, maximum=65521),
        )
    except ConfigError as error:
        raise DeviceError(str(error)) from error


@dataclass(frozen=True)
class FrontendQueue:
    """What a frontend says of one queue. One event channel for both directions is there twice."""

    tx_ring_ref: int
    rx_ring_ref: int
    tx_port: int
    rx_port: int


@dataclass(frozen=True)
class FrontendRequest:
    """What a frontend asks for, checked."""

    queues: tuple[FrontendQueue, ...]
    caps: int
    scatter_gather: bool
    multicast_control: bool
    ctrl: tuple[int, int] | None
    """Grant reference and event channel of the control ring."""


def frontend_request(nodes: Mapping[str, str]) -> FrontendRequest:
    """Raises: DeviceError."""
    if not number(nodes, "request-rx-copy", default=0, maximum=1):
        raise DeviceError("the frontend does not take copied packets (request-rx-copy)")
    count = number(nodes, "multi-queue-num-queues", default=1)
    if not 1 <= count <= MAX_QUEUES:
        raise DeviceError(f"multi-queue-num-queues is {count}; there are from 1 to {MAX_QUEUES}")
    prefixes = [f"queue-{index}/" for index in range(count)] if count > 1 else [""]
    if count == 1 and "queue-0/tx-ring-ref" in nodes:
        prefixes = ["queue-0/"]
    ctrl = None
    if "ctrl-ring-ref" in nodes:
        gref = number(nodes, "ctrl-ring-ref", maximum=_MAX_GREF)
        ctrl = gref, number(nodes, "event-channel-ctrl", maximum=_MAX_PORT)
    scatter_gather = _flag(nodes, "feature-sg")
    return FrontendRequest(
        queues=tuple(_queue(nodes, prefix) for prefix in prefixes),
        caps=_caps(nodes, scatter_gather),
        scatter_gather=scatter_gather,
        multicast_control=_flag(nodes, "request-multicast-control"),
        ctrl=ctrl,
    )


def _flag(nodes: Mapping[str, str], name: str) -> bool:
    return number(nodes, name, default=0) != 0


def _caps(nodes: Mapping[str, str], scatter_gather: bool) -> int:
    caps: int = 0 if _flag(nodes, "feature-no-csum-offload") else binding.CSUM4
    caps |= binding.CSUM6 if _flag(nodes, "feature-ipv6-csum-offload") else 0
    if scatter_gather:
        caps |= binding.TSO4 if _flag(nodes, "feature-gso-tcpv4") else 0
        caps |= binding.TSO6 if _flag(nodes, "feature-gso-tcpv6") else 0
    return caps


def _queue(nodes: Mapping[str, str], prefix: str) -> FrontendQueue:
    split = f"{prefix}event-channel-tx" in nodes
    tx_port = number(nodes, f"{prefix}event-channel{'-tx' if split else ''}", maximum=_MAX_PORT)
    return FrontendQueue(
        number(nodes, f"{prefix}tx-ring-ref", maximum=_MAX_GREF),
        number(nodes, f"{prefix}rx-ring-ref", maximum=_MAX_GREF),
        tx_port,
        number(nodes, f"{prefix}event-channel-rx", maximum=_MAX_PORT) if split else tx_port,
    )


class VifDevice:
    """One guest's interface, as `bus.serve` wants it: `VifDevice(netback, networks).run(link)` for each."""

    def __init__(self, netback: Netback, networks: Networks, link: Link) -> None:
        self._netback = netback
        self._networks = networks
        self._link = link

    async def run(self) -> None:
        """Serves the vif until it is closed for good.

        Raises: DeviceError and what else the bus takes for this device's end.
        """
        config = vif_config(await self._link.read_config(), self._link.frontend_domid, self._link.devid)
        try:
            spec = parse_bridge(config.bridge)
            network = self._networks.get(spec.network)
            membership = network.config.resolve(spec)
            if config.rate is not None:
                membership = replace(membership, rate=config.rate)
            with network.made_vif(self._netback, self._link.frontend_domid, config.name, membership) as vif:
                vif.apply(membership, config.mac, network.config.mtu or config.mtu)
                await self._serve(vif)
        except ConfigError as error:
            raise DeviceError(str(error)) from error

    async def _serve(self, vif: Vif) -> None:
        await self._link.publish(FEATURES)
        await self._link.hotplug_connected({})
        await run_connections(self._link, _VifConnection(self._link, vif))


class _VifConnection:
    """From Connected to Closing: called by run_connections."""

    def __init__(self, link: Link, vif: Vif) -> None:
        self._link = link
        self._vif = vif

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> None:
        request = frontend_request(await self._link.read_frontend())
        async with AsyncExitStack() as stack:
            shadow = await stack.enter_async_context(self._shadows(len(request.queues)))
            queues = [
                await self._open_queue(stack, queue, shadow + index * binding.SHADOW_BYTES)
                for index, queue in enumerate(request.queues)
            ]
            ctrl = await self._open_ctrl(stack, request.ctrl) if request.ctrl else None
            stack.callback(self._vif.disconnect)
            try:
                self._vif.connect(
                    Connection(
                        queues,
                        request.caps,
                        request.scatter_gather,
                        request.multicast_control,
                        self._link.resuming,
                        ctrl,
                    )
                )
            except OSError as error:
                raise DeviceError(f"the rings cannot be served: {error.strerror}") from error
            self._link.log.info("vif connected", queues=len(queues), resumed=self._link.resuming)
            task_status.started()
            raise DeviceError(await self._vif.wait_fault())

    async def _open_queue(self, stack: AsyncExitStack, queue: FrontendQueue, shadow: int) -> Queue:
        tx = await self._map(stack, queue.tx_ring_ref)
        rx = await self._map(stack, queue.rx_ring_ref)
        tx_port = await self._bind(stack, queue.tx_port)
        rx_port = tx_port if queue.rx_port == queue.tx_port else await self._bind(stack, queue.rx_port)
        return Queue(
            tx, rx, shadow, tx_port.upcall_fd, tx_port.doorbell_fd, rx_port.upcall_fd, rx_port.doorbell_fd
        )

    async def _open_ctrl(self, stack: AsyncExitStack, ctrl: tuple[int, int]) -> tuple[int, int, int]:
        ring = await self._map(stack, ctrl[0])
        port = await self._bind(stack, ctrl[1])
        return ring, port.upcall_fd, port.doorbell_fd

    async def _map(self, stack: AsyncExitStack, gref: int) -> int:
        mapping = await self._link.hyp.map_grant(self._link.frontend_domid, gref)
        stack.push_async_callback(mapping.close)
        with ffi.from_buffer(mapping.view) as raw:
            return int(ffi.cast("uintptr_t", raw))

    async def _bind(self, stack: AsyncExitStack, remote_port: int) -> Port:
        port = await self._link.bind_port(remote_port)
        stack.push_async_callback(port.close)
        return port

    @asynccontextmanager
    async def _shadows(self, count: int) -> AsyncIterator[int]:
        """The address of `count` shadow pages, in a memfd that survives us; gone when we leave in order."""
        hyp, name = self._link.hyp, shadow_name(self._link)
        fd = await hyp.fd_get(name) if self._link.resuming else None
        if fd is None:
            fd = os.memfd_create("umxen-vif", os.MFD_CLOEXEC)
            os.ftruncate(fd, MAX_QUEUES * binding.SHADOW_BYTES)
            await hyp.fd_put(name, fd)
        try:
            memory = mmap.mmap(fd, MAX_QUEUES * binding.SHADOW_BYTES)
        finally:
            os.close(fd)
        with ffi.from_buffer(memory) as raw:
            address = int(ffi.cast("uintptr_t", raw))
        try:
            yield address
        finally:
            memory.close()
            with trio.CancelScope(shield=True), suppress(NoSuchNode):
                await hyp.fd_del(name)


def shadow_name(link: Link) -> str:
    """In hyper's fd store."""
    return f"netback.{link.frontend_domid}.{link.devid}"
