"""What control operations answer, as plain values. Times in ns, memory in pages of 4 KiB."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

from hyper.guest import abi
from hyper.public.types import DomId


@dataclass(frozen=True)
class DomainInfo:
    domid: DomId
    handle: UUID
    dying: bool
    hvm: bool
    shutdown: bool
    paused: bool
    blocked: bool
    running: bool
    debugged: bool
    shutdown_reason: int
    """SHUTDOWN_*; means something only with `shutdown`."""
    tot_pages: int
    max_pages: int
    shared_info_frame: int
    """gfn of the domain's shared_info."""
    cpu_time_ns: int
    nr_online_vcpus: int
    max_vcpu_id: int
    """-1 without vCPUs."""
    ssidref: int
    cpupool: int

    @classmethod
    def from_struct(cls, info: Any) -> Self:
        flags: int = info.flags
        lib = abi.lib
        without = info.max_vcpu_id == lib.XEN_INVALID_MAX_VCPU_ID
        return cls(
            domid=DomId(info.domain),
            handle=UUID(bytes=bytes(info.handle)),
            dying=bool(flags & lib.XEN_DOMINF_dying),
            hvm=bool(flags & lib.XEN_DOMINF_hvm_guest),
            shutdown=bool(flags & lib.XEN_DOMINF_shutdown),
            paused=bool(flags & lib.XEN_DOMINF_paused),
            blocked=bool(flags & lib.XEN_DOMINF_blocked),
            running=bool(flags & lib.XEN_DOMINF_running),
            debugged=bool(flags & lib.XEN_DOMINF_debugged),
            shutdown_reason=flags >> lib.XEN_DOMINF_shutdownshift & lib.XEN_DOMINF_shutdownmask,
            tot_pages=info.tot_pages,
            max_pages=info.max_pages,
            shared_info_frame=info.shared_info_frame,
            cpu_time_ns=info.cpu_time,
            nr_online_vcpus=info.nr_online_vcpus,
            max_vcpu_id=-1 if without else info.max_vcpu_id,
            ssidref=info.ssidref,
            cpupool=info.cpupool,
        )


@dataclass(frozen=True)
class VcpuInfo:
    online: bool
    blocked: bool
    running: bool
    cpu_time_ns: int
    cpu: int
    """Physical CPU it runs on, or ran on last."""

    @classmethod
    def from_struct(cls, info: Any) -> Self:
        return cls(bool(info.online), bool(info.blocked), bool(info.running), info.cpu_time, info.cpu)


@dataclass(frozen=True)
class CpuAffinity:
    hard: frozenset[int]
    soft: frozenset[int]


@dataclass(frozen=True)
class CreditParameters:
    weight: int
    """Share against others; 256 is the default."""
    cap: int
    """Percent of one physical CPU; 0 for none."""


@dataclass(frozen=True)
class PhysInfo:
    threads_per_core: int
    cores_per_socket: int
    nr_cpus: int
    max_cpu_id: int
    nr_nodes: int
    cpu_khz: int
    capabilities: int
    """XEN_SYSCTL_PHYSCAP_* bits."""
    total_pages: int
    free_pages: int
    scrub_pages: int
    outstanding_pages: int
    max_mfn: int
    hw_cap: tuple[int, ...]

    @classmethod
    def from_struct(cls, info: Any) -> Self:
        return cls(
            threads_per_core=info.threads_per_core,
            cores_per_socket=info.cores_per_socket,
            nr_cpus=info.nr_cpus,
            max_cpu_id=info.max_cpu_id,
            nr_nodes=info.nr_nodes,
            cpu_khz=info.cpu_khz,
            capabilities=info.capabilities,
            total_pages=info.total_pages,
            free_pages=info.free_pages,
            scrub_pages=info.scrub_pages,
            outstanding_pages=info.outstanding_pages,
            max_mfn=info.max_mfn,
            hw_cap=tuple(info.hw_cap),
        )


@dataclass(frozen=True)
class XenInfo:
    major: int
    minor: int
    extra: str
    """Follows major.minor directly, with its own dot."""
    capabilities: str
    changeset: str
    command_line: str
    virt_start: int
    pagesize: int
    compiler: str
    compile_by: str
    compile_domain: str
    compile_date: str


def c_string(data: bytes) -> str:
    """The text up to the first NUL."""
    return data.partition(b"\0")[0].decode(errors="replace")


def bits_of(bitmap: bytes) -> frozenset[int]:
    """Numbers of the bits that are set; bit 0 is the lowest of the first byte."""
    return frozenset(
        index * 8 + bit for index, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1
    )


def bytes_of_bits(numbers: Iterable[int], nr_bits: int) -> bytes:
    """The inverse of bits_of. Raises: ValueError for a number that is no bit of it."""
    value = 0
    for number in numbers:
        if not 0 <= number < nr_bits:
            raise ValueError(f"bit {number} of a bitmap of {nr_bits}")
        value |= 1 << number
    return value.to_bytes(nr_bits // 8, "little")
