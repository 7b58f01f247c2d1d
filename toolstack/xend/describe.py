"""The domain expressions that clients get. Pure: in goes what is remembered and what the hypervisor says."""

from __future__ import annotations

from dataclasses import dataclass

from dom0.libxc.info import DomainInfo, VcpuInfo
from toolstack.sxp import Sxp
from toolstack.xend.hypervisor import SHUTDOWN_CRASH, mebibytes, state_letters
from toolstack.xend.model import DomainConfig
from toolstack.xend.store import Record

HALTED, PAUSED, RUNNING, SUSPENDED, SHUTDOWN, CRASHED, UNKNOWN = range(7)
STATE_NAMES = ("halted", "paused", "running", "suspended", "shutdown", "crashed", "unknown")
"""Names of the numbers in `(status N)`."""

DOM0_NAME = "Domain-0"


@dataclass(frozen=True)
class Stranger:
    """A domain without a configuration: Domain-0, and what the hypervisor has but xend does not know."""

    info: DomainInfo

    @property
    def domid(self) -> int:
        return self.info.domid

    @property
    def name(self) -> str:
        return DOM0_NAME if self.domid == 0 else f"(unknown-{self.domid})"


def status(info: DomainInfo | None) -> int:
    if info is None:
        return HALTED
    if info.shutdown:
        return CRASHED if info.shutdown_reason == SHUTDOWN_CRASH else SHUTDOWN
    return PAUSED if info.paused else RUNNING


def domain_sxp(record: Record, info: DomainInfo | None, full: bool = False) -> list[Sxp]:
    """A domain with a configuration; `info` is None when it is not running.

    Memory is what a running domain has at the moment.
    """
    config = record.config
    out: list[Sxp] = ["domain"]
    if info is not None:
        out.append(["domid", info.domid])
    out += [
        ["cpu_weight", config.cpu_weight],
        ["cpu_cap", config.cpu_cap],
        ["uuid", str(config.uuid)],
        ["vcpus", config.vcpus],
        ["cpus", config.cpus_sxp() + [[] for _ in range(config.vcpus - len(config.cpus))]],
        ["name", config.name],
        ["on_poweroff", config.on_poweroff],
        ["on_reboot", config.on_reboot],
        ["on_crash", config.on_crash],
        ["bootloader", ""],
        ["bootloader_args", ""],
        ["description", config.description],
        ["pool_name", config.pool_name],
        ["maxmem", config.maxmem],
        ["memory", mebibytes(info.tot_pages) if info else config.memory],
        ["shadow_memory", config.shadow_memory],
        ["features", config.features],
        ["on_xend_start", config.on_xend_start],
        ["on_xend_stop", config.on_xend_stop],
    ]
    out += _running(info, record.start_time)
    out += [[key, value] for key, value in config.extra]
    out.append(["image", config.image.to_sxp()])
    out.append(["status", status(info)])
    if info is not None:
        out.append(["state", state_letters(info)])
        if record.isolation is not None:
            out.append(["isolation", record.isolation])
        out += [["store_mfn", record.store_mfn or 0], ["console_mfn", record.console_mfn or 0]]
    return out + config.devices_sxp() + (_full(config, info) if full else [])


def _running(info: DomainInfo | None, start_time: float | None) -> list[Sxp]:
    if info is None:
        return []
    started: list[Sxp] = [] if start_time is None else [["start_time", start_time]]
    return [*started, ["cpu_time", info.cpu_time_ns / 1e9], ["online_vcpus", info.nr_online_vcpus]]


def _full(config: DomainConfig, info: DomainInfo | None) -> list[Sxp]:
    """The keys of the Xen-API. Bytes are strings: XML-RPC has no numbers that large."""
    values = {
        "name_label": config.name,
        "name_description": config.description,
        "power_state": STATE_NAMES[status(info)].capitalize(),
        "memory_static_max": str(config.maxmem << 20),
        "memory_static_min": "0",
        "memory_dynamic_max": str(config.memory << 20),
        "memory_dynamic_min": str(config.memory << 20),
        "VCPUs_max": config.vcpus,
        "VCPUs_at_startup": config.vcpu_avail.bit_count(),
        "actions_after_shutdown": config.on_poweroff,
        "actions_after_reboot": config.on_reboot,
        "actions_after_crash": config.on_crash,
        "PV_kernel": config.image.kernel,
        "PV_ramdisk": config.image.ramdisk,
        "PV_args": config.image.cmdline,
    }
    return [[key, value] for key, value in values.items()]


def stranger_sxp(stranger: Stranger) -> list[Sxp]:
    """A domain without a configuration. Domain-0 always runs: its processes are the host's."""
    info = stranger.info
    state = "r-----" if info.domid == 0 else state_letters(info)
    return [
        "domain",
        ["domid", info.domid],
        ["uuid", str(info.handle)],
        ["vcpus", info.max_vcpu_id + 1],
        ["name", stranger.name],
        ["on_poweroff", "destroy"],
        ["on_reboot", "restart"],
        ["on_crash", "restart"],
        ["pool_name", "Pool-0"],
        ["maxmem", mebibytes(min(info.max_pages, (1 << 31) - 1))],
        ["memory", mebibytes(info.tot_pages)],
        *_running(info, None),
        ["status", RUNNING if info.domid == 0 else status(info)],
        ["state", state],
    ]


def vcpu_sxp(number: int, info: VcpuInfo, cpus: frozenset[int]) -> list[Sxp]:
    """One vCPU of getVCPUInfo."""
    return [
        "vcpu",
        ["number", number],
        ["online", int(info.online)],
        ["blocked", int(info.blocked)],
        ["running", int(info.running)],
        ["cpu_time", info.cpu_time_ns / 1e9],
        ["cpu", info.cpu],
        ["cpumap", sorted(cpus)],
    ]


def halted_vcpu_sxp(number: int, cpus: tuple[int, ...]) -> list[Sxp]:
    """The same for a domain that is not running."""
    return [
        "vcpu",
        ["number", number],
        ["online", 0],
        ["blocked", 0],
        ["running", 0],
        ["cpu_time", 0.0],
        ["cpu", -1],
        ["cpumap", list(cpus) or list(range(64))],
    ]
