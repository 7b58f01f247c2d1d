"""The host: facts for `xm info`, the hypervisor's messages, the log of xend."""

from __future__ import annotations

import os
from pathlib import Path

from dom0.libxc.info import PhysInfo
from toolstack.sxp import Sxp
from toolstack.xend.errors import XendError
from toolstack.xend.hypervisor import SCHEDULERS, Hypervisor, mebibytes

LOG_TAIL = 256 << 10
"""Bytes of the log a client gets, from its end."""
CONFIG_FORMAT = 4


class Node:
    """`log_path` is the file the supervisor writes our stderr to."""

    def __init__(self, hypervisor: Hypervisor, log_path: Path) -> None:
        self._hypervisor = hypervisor
        self._log_path = log_path

    async def info(self, numa: bool = True) -> list[Sxp]:
        """Pairs in the order scripts expect."""
        hypervisor = self._hypervisor
        physical, version = await hypervisor.physinfo(), await hypervisor.version()
        scheduler = await hypervisor.get_scheduler_id()
        system = os.uname()
        return [
            ["system", system.sysname],
            ["host", system.nodename],
            ["release", system.release],
            ["version", system.version],
            ["machine", system.machine],
            *_physical(physical),
            *(_topology(physical) if numa else []),
            ["xen_major", version.major],
            ["xen_minor", version.minor],
            ["xen_extra", version.extra],
            ["xen_caps", version.capabilities],
            ["xen_scheduler", SCHEDULERS.get(scheduler, "unknown")],
            ["xen_pagesize", version.pagesize],
            ["platform_params", f"virt_start={version.virt_start:#x}"],
            ["xen_changeset", version.changeset],
            ["xen_commandline", version.command_line],
            ["cc_compiler", version.compiler],
            ["cc_compile_by", version.compile_by],
            ["cc_compile_domain", version.compile_domain],
            ["cc_compile_date", version.compile_date],
            ["xend_config_format", CONFIG_FORMAT],
        ]

    async def dmesg(self, clear: bool = False) -> str:
        return await self._hypervisor.readconsole(clear)

    async def send_debug_keys(self, keys: str) -> None:
        """Raises: XendError, XenError."""
        if not keys or not keys.isascii() or not keys.isprintable() or len(keys) > 256:
            raise XendError("debug keys are letters and digits")
        await self._hypervisor.send_debug_keys(keys)

    def log(self) -> str:
        """The end of the log, from a line's beginning. Raises: XendError."""
        try:
            with self._log_path.open("rb") as file:
                file.seek(max(0, self._log_path.stat().st_size - LOG_TAIL))
                data = file.read(LOG_TAIL)
        except OSError as error:
            raise XendError(f"there is no log of xend: {error.strerror} ({self._log_path})") from None
        if len(data) == LOG_TAIL:
            data = data.partition(b"\n")[2]
        return data.decode(errors="replace")


def _physical(info: PhysInfo) -> list[Sxp]:
    return [
        ["nr_cpus", info.nr_cpus],
        ["nr_nodes", info.nr_nodes],
        ["cores_per_socket", info.cores_per_socket],
        ["threads_per_core", info.threads_per_core],
        ["cpu_mhz", info.cpu_khz // 1000],
        ["hw_caps", ":".join(f"{word:08x}" for word in info.hw_cap)],
        ["virt_caps", ""],
        ["total_memory", mebibytes(info.total_pages)],
        ["free_memory", mebibytes(info.free_pages)],
        ["free_cpus", 0],
    ]


def _topology(info: PhysInfo) -> list[Sxp]:
    """One socket and one memory node: physical CPUs are threads of one process."""
    rows = "".join(f"{cpu:3}:{cpu:8} {0:8} {0:8}\n" for cpu in range(info.nr_cpus))
    total, free = mebibytes(info.total_pages), mebibytes(info.free_pages)
    return [
        ["cpu_topology", f"\ncpu:    core    socket     node\n{rows}".rstrip("\n")],
        ["numa_info", f"\nnode: TotalMemory FreeMemory NodeDist\n{0:4}:  {total:8}MB {free:8}MB :  10"],
    ]
