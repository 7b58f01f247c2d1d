"""The seam between xend and the hypervisor: what xend asks of it, as a Protocol, and the real one.

Tests put a fake in its place; everything else in xend knows the Protocol only.
"""

from __future__ import annotations

from collections.abc import Collection
from socket import socket
from typing import Protocol
from uuid import UUID

from dom0.libxc import process, pv
from dom0.libxc.control import XenControl
from dom0.libxc.cpuid import Leaves
from dom0.libxc.images import KernelCache
from dom0.libxc.info import CpuAffinity, CreditParameters, DomainInfo, PhysInfo, VcpuInfo, XenInfo
from dom0.libxc.process import ProcessSpec
from dom0.libxc.pv import PvImage, PvSpec
from hyper.guest import Hypervisor as Connection
from hyper.public.types import DomId

PAGES_PER_MIB = 256

SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_SUSPEND, SHUTDOWN_CRASH = range(4)
SHUTDOWN_WATCHDOG, SHUTDOWN_SOFT_RESET = 4, 5
REASONS = {
    SHUTDOWN_POWEROFF: "poweroff",
    SHUTDOWN_REBOOT: "reboot",
    SHUTDOWN_SUSPEND: "suspend",
    SHUTDOWN_CRASH: "crash",
    SHUTDOWN_WATCHDOG: "watchdog",
    SHUTDOWN_SOFT_RESET: "soft_reset",
}

SCHEDULERS = {5: "credit", 6: "credit2", 7: "arinc653", 8: "rtds", 9: "null"}
"""XEN_SCHEDULER_* by name. 4 was sedf."""


class Hypervisor(Protocol):
    """Names and meanings are XenControl's. Raises: XenError from every call; ImageError too from build."""

    async def domain_create(self, handle: UUID, max_vcpus: int, *, max_evtchn_port: int) -> DomId: ...
    async def max_vcpus(self, domid: int, max_vcpus: int) -> None: ...
    async def build(self, spec: PvSpec) -> PvImage: ...
    async def build_process(self, spec: ProcessSpec) -> tuple[PvImage, socket]: ...
    async def domain_destroy(self, domid: int) -> None: ...
    async def domain_pause(self, domid: int) -> None: ...
    async def domain_unpause(self, domid: int) -> None: ...
    async def getdomaininfo(self, domid: int) -> DomainInfo: ...
    async def getdomaininfolist(self) -> list[DomainInfo]: ...
    async def max_mem(self, domid: int, kib: int) -> None: ...
    async def getvcpuinfo(self, domid: int, vcpu_id: int) -> VcpuInfo: ...
    async def getvcpuaffinity(self, domid: int, vcpu_id: int) -> CpuAffinity: ...
    async def setvcpuaffinity(self, domid: int, vcpu_id: int, cpus: Collection[int]) -> frozenset[int]: ...
    async def sched_credit_get(self, domid: int) -> CreditParameters: ...
    async def sched_credit_set(self, domid: int, parameters: CreditParameters) -> None: ...
    async def get_cpu_policy(self, domid: int) -> Leaves: ...
    async def set_cpu_policy(self, domid: int, leaves: Leaves) -> None: ...
    async def host_cpu_policy(self) -> Leaves: ...
    async def physinfo(self) -> PhysInfo: ...
    async def get_scheduler_id(self) -> int: ...
    async def readconsole(self, clear: bool = False) -> str: ...
    async def send_debug_keys(self, keys: str) -> None: ...
    async def version(self) -> XenInfo: ...


class XenHypervisor(XenControl):
    """hyper, over one connection."""

    def __init__(self, connection: Connection, cache: KernelCache) -> None:
        super().__init__(connection)
        self._cache = cache

    async def build(self, spec: PvSpec) -> PvImage:
        """Loads kernel and ramdisk in a worker thread; other requests go on meanwhile."""
        return await pv.build(self, spec, self._cache)

    async def build_process(self, spec: ProcessSpec) -> tuple[PvImage, socket]:
        return await process.build(self, spec)


def state_letters(info: DomainInfo) -> str:
    """The six letters of `xm list`. A crashed domain is not also shown as shut down."""
    crashed = info.shutdown and info.shutdown_reason == SHUTDOWN_CRASH
    flags = {
        "r": info.running,
        "b": info.blocked,
        "p": info.paused,
        "s": info.shutdown and not crashed,
        "c": crashed,
        "d": info.dying,
    }
    return "".join(letter if flag else "-" for letter, flag in flags.items())


def mebibytes(pages: int) -> int:
    return pages // PAGES_PER_MIB
