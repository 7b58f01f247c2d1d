"""The steps from a configuration to a paused domain with everything it needs in xenstore."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from socket import socket

import structlog
import trio

from dom0.libxc.info import CreditParameters
from dom0.libxc.process import ProcessSpec
from dom0.libxc.pv import PvSpec
from hyper.public.errors import BadArgument, OutOfFrames
from hyper.public.types import DomId
from toolstack.xend import cpuid, layout
from toolstack.xend.devices.controller import DeviceController, Owner
from toolstack.xend.errors import XendError
from toolstack.xend.hypervisor import SCHEDULERS, Hypervisor, mebibytes
from toolstack.xend.model import DomainConfig
from toolstack.xend.processes import Processes
from toolstack.xend.store import CREATING, RUNNING, DomainStore, Record
from toolstack.xend.xenstore import Xenstore

log = structlog.get_logger("xend")

SLACK_KIB = 1024
"""Memory a domain may take beyond its target, for what guests allocate before they balloon."""
DEFAULT_CREDIT = CreditParameters(256, 0)


def memory_limit_kib(target_mib: int) -> int:
    """What the hypervisor lets a domain have whose target this is."""
    return (target_mib << 10) + SLACK_KIB


@dataclass(frozen=True)
class Builder:
    """`wall` is the clock of start times, `console_path` where the console of a domain is attached to."""

    hypervisor: Hypervisor
    xenstore: Xenstore
    store: DomainStore
    devices: DeviceController
    processes: Processes
    console_path: Callable[[int], Path]
    wall: Callable[[], float] = time.time

    async def build(self, record: Record) -> None:
        """Makes the domain of a record. Leaves what it has made when it fails.

        The record is on disk before anything exists, and again as soon as the domain has its id.
        Raises: XenError, ImageError, XenstoreUnavailable, XendError.
        """
        config, hypervisor = record.config, self.hypervisor
        record.phase, record.handle = CREATING, config.uuid
        self.store.save(record)
        with trio.CancelScope(shield=True):  # a domain whose id nobody has written down is lost
            record.domid = await hypervisor.domain_create(
                config.uuid, config.vcpus, max_evtchn_port=config.max_event_channels
            )
        domid = record.domid
        assert domid is not None
        self.store.save(record)
        await hypervisor.max_vcpus(domid, config.vcpus)
        await hypervisor.max_mem(domid, memory_limit_kib(config.memory))
        await cpuid.apply(hypervisor, domid, config.cpuid, config.cpuid_check)
        await self._apply_scheduling(domid, config)
        record.start_time = self.wall()
        await self.xenstore.create(layout.vm_nodes(record))
        await self.xenstore.create(layout.domain_nodes(record, str(self.console_path(domid))))
        owner = Owner(domid, config.name, layout.vm_path(config))
        await self.devices.plug(owner, config.devices)  # backends open images while the kernel is loaded
        if config.image.process is None:
            image = await hypervisor.build(_spec(domid, config))
        else:
            image, sock = await hypervisor.build_process(ProcessSpec(DomId(domid), config.memory << 10))
            with sock:
                await self._start_process(record, config.image.process, sock)
        record.store_mfn, record.store_port = image.store_mfn, image.store_port
        record.console_mfn, record.console_port = image.console_mfn, image.console_port
        await self.xenstore.create(layout.ring_nodes(record))
        await self.xenstore.introduce(domid, image.store_mfn, image.store_port)
        record.phase = RUNNING
        self.store.save(record)
        log.info("domain is built", domain=config.name, domid=domid, memory_mib=config.memory)

    async def _start_process(self, record: Record, spec: str, sock: socket) -> None:
        config = record.config
        started = await self.processes.start(config.name, spec, config.image.words(), sock)
        record.process_pid, record.process_ticks = started.process.pid, started.process.start_ticks
        record.isolation = started.isolation
        self.store.save(record)
        log.info(
            "guest's process runs", domain=config.name, pid=record.process_pid, isolation=record.isolation
        )

    async def explain(self, error: Exception, config: DomainConfig) -> str:
        """What to tell a user of a failed build."""
        if not isinstance(error, OutOfFrames):
            return str(error)
        with trio.CancelScope(shield=True):
            free = mebibytes((await self.hypervisor.physinfo()).free_pages)
        return f"Not enough free memory: '{config.name}' needs {config.memory} MiB, {free} MiB are free"

    async def _apply_scheduling(self, domid: int, config: DomainConfig) -> None:
        for vcpu, cpus in enumerate(config.cpus):
            if cpus:
                try:
                    await self.hypervisor.setvcpuaffinity(domid, vcpu, cpus)
                except BadArgument:
                    raise XendError(f"vCPU {vcpu} may only run on CPUs that do not exist") from None
        credit = CreditParameters(config.cpu_weight, config.cpu_cap)
        if credit == DEFAULT_CREDIT:
            return
        if SCHEDULERS.get(await self.hypervisor.get_scheduler_id()) == "credit":
            await self.hypervisor.sched_credit_set(domid, credit)
        else:
            log.warning("cpu_weight and cpu_cap need the credit scheduler", domain=config.name)


def _spec(domid: int, config: DomainConfig) -> PvSpec:
    image = config.image
    return PvSpec(
        domid=DomId(domid),
        kernel=Path(image.kernel),
        memory_kib=config.memory << 10,
        ramdisk=Path(image.ramdisk) if image.ramdisk else None,
        cmdline=image.cmdline,
        maxmem_kib=config.maxmem << 10,
    )
