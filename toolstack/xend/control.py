"""What may be done to a domain while it lives: pausing, memory, vCPUs, scheduling, requests to its kernel.

Each operation finds the domain by what the client gave (name, id or UUID), checks the arguments, does it and
remembers it. A change to a domain that is not running only changes its configuration.
"""

from __future__ import annotations

from typing import Any

from dom0.libxc.info import CreditParameters, DomainInfo
from hyper.public.errors import BadArgument, NoSuchDomain
from toolstack.sxp import Sxp
from toolstack.xend import describe, layout
from toolstack.xend.builder import memory_limit_kib
from toolstack.xend.describe import Stranger
from toolstack.xend.errors import NotBuilt, XendError
from toolstack.xend.lifecycle import Domain, Lifecycle
from toolstack.xend.model import MAX_MEMORY, parse_cpus
from toolstack.xend.store import HALTED, RUNNING

SHUTDOWN_REASONS = ("poweroff", "reboot", "halt", "suspend", "crash")

Key = int | str


class Control:
    """Raises, from every call: InvalidDomain, XendError; XenError when the hypervisor refuses."""

    def __init__(self, life: Lifecycle) -> None:
        self._life = life
        self._hypervisor = life.hypervisor
        self._xenstore = life.xenstore

    # ---- looking

    async def describe(self, key: Key, full: bool = False) -> list[Sxp]:
        """The domain expression of one domain."""
        found = await self._life.find_any(key)
        if isinstance(found, Stranger):
            return describe.stranger_sxp(found)
        return describe.domain_sxp(found.record, await self._life.info_of(found.record), full)

    async def describe_all(self, state: str = "all", full: bool = False) -> list[list[Sxp]]:
        """All domains in a state (a name of `describe.STATE_NAMES`, or `all`), by name."""
        if state != "all" and state not in describe.STATE_NAMES:
            raise XendError(f"there is no state '{state}'")
        infos: dict[int, DomainInfo] = {
            info.domid: info for info in await self._hypervisor.getdomaininfolist()
        }
        rows: list[tuple[str, int, list[Sxp]]] = []
        for domain in self._life.domains.values():
            record = domain.record
            info = None if record.domid is None else infos.get(record.domid)
            info = info if info is not None and info.handle == record.handle else None
            if info is not None:
                del infos[info.domid]
            rows.append((domain.name, describe.status(info), describe.domain_sxp(record, info, full)))
        for info in infos.values():
            stranger = Stranger(info)
            status = describe.RUNNING if info.domid == 0 else describe.status(info)
            rows.append((stranger.name, status, describe.stranger_sxp(stranger)))
        rows.sort(key=lambda row: row[0])
        return [row for _, status, row in rows if state in ("all", describe.STATE_NAMES[status])]

    async def vcpu_info(self, key: Key) -> list[Sxp]:
        """The reply of getVCPUInfo."""
        found = await self._life.find_any(key)
        count = found.info.max_vcpu_id + 1 if isinstance(found, Stranger) else found.config.vcpus
        domid = found.domid if isinstance(found, Stranger) else found.record.domid
        head: list[Sxp] = ["domain", ["domid", domid], ["name", found.name], ["vcpu_count", count]]
        for vcpu in range(count):
            head.append(await self._vcpu(found, domid, vcpu))
        return head

    async def _vcpu(self, found: Domain | Stranger, domid: int | None, vcpu: int) -> Sxp:
        if domid is not None:
            try:
                info = await self._hypervisor.getvcpuinfo(domid, vcpu)
                affinity = await self._hypervisor.getvcpuaffinity(domid, vcpu)
                return describe.vcpu_sxp(vcpu, info, affinity.hard)
            except (NoSuchDomain, BadArgument):
                pass  # it is ending, or is Dom0's, which has no CPU of its own
        cpus = () if isinstance(found, Stranger) else found.config.cpus
        return describe.halted_vcpu_sxp(vcpu, cpus[vcpu] if vcpu < len(cpus) else ())

    # ---- running and pausing

    async def pause(self, key: Key) -> int:
        """Returns: the state it was in, as in `(status N)`. Pausing a paused domain does nothing."""
        domain = await self._life.find_own(key, "pause")
        async with domain.turn:
            before = describe.status(await self._life.info_of(domain.record))
            if before not in (describe.RUNNING, describe.PAUSED, describe.CRASHED):
                raise XendError(f"Domain '{domain.name}' is not started")
            if before == describe.RUNNING:
                await self._hypervisor.domain_pause(domain.domid)
                if domain.record.process is not None:
                    self._life.processes.stop(domain.record.process)
            return before

    async def unpause(self, key: Key) -> None:
        domain = await self._life.find_own(key, "unpause")
        async with domain.turn:
            info = await self._life.info_of(domain.record)
            if info is not None and info.paused:
                if domain.record.process is not None:
                    self._life.processes.resume(domain.record.process)
                await self._hypervisor.domain_unpause(domain.domid)
            elif describe.status(info) != describe.RUNNING:
                raise XendError(f"Domain '{domain.name}' is not started")

    async def set_pause_flag(self, key: Key, flag: bool) -> None:
        domain = await self._life.find_own(key, "pause")
        domain.record.paused_by_admin = flag
        self._life.remember(domain)

    async def pause_flag(self, key: Key) -> bool:
        return (await self._life.find_own(key, "pause")).record.paused_by_admin

    async def shutdown(self, key: Key, reason: str) -> None:
        domain = await self._life.find_own(key, "shut down")
        if reason not in SHUTDOWN_REASONS:
            raise XendError(f"Invalid reason: {reason}")
        if reason == "suspend":
            raise NotBuilt("suspending a domain")
        info = await self._life.info_of(domain.record)
        if info is None or info.shutdown:
            raise XendError(f"Domain '{domain.name}' cannot be shut down: it is not running")
        await self._life.ask_to_shut_down(domain, reason)

    async def send_sysrq(self, key: Key, letter: str) -> None:
        domain = await self._life.find_own(key, "send a SysRq to")
        if len(letter) != 1 or not letter.isascii() or not letter.isprintable():
            raise XendError("a SysRq is one letter")
        await self._xenstore.write(f"{layout.domain_path(domain.domid)}/control/sysrq", letter)

    async def restart_count(self, key: Key) -> int:
        found = await self._life.find_any(key)
        return found.record.restart_count if isinstance(found, Domain) else 0

    # ---- memory

    async def set_memory(self, key: Key, mebibytes: int) -> None:
        """Moves the target of the guest's balloon. It may grow at once; giving up memory takes the guest's
        time.
        """
        domain = await self._life.find_settled(key, "set the memory of")
        _refuse_process(domain, "it has no balloon")
        if not 1 <= mebibytes <= domain.config.maxmem:
            raise XendError(
                f"Memory of '{domain.name}' must be from 1 to {domain.config.maxmem} MiB, its maximum"
            )
        if domain.record.phase == RUNNING:
            domid = domain.domid
            await self._hypervisor.max_mem(domid, memory_limit_kib(mebibytes))
            await self._xenstore.write(f"{layout.domain_path(domid)}/memory/target", str(mebibytes << 10))
            await self._xenstore.write(f"{layout.vm_path(domain.config)}/memory", str(mebibytes))
        self._life.change(domain, memory=mebibytes)

    async def set_max_memory(self, key: Key, mebibytes: int) -> None:
        domain = await self._life.find_settled(key, "set the maximum memory of")
        if not domain.config.memory <= mebibytes <= MAX_MEMORY:
            raise XendError(
                f"The maximum of '{domain.name}' must be from {domain.config.memory} MiB, what it has,"
                f" to {MAX_MEMORY} MiB"
            )
        if domain.record.phase == RUNNING:
            domid = domain.domid
            await self._hypervisor.max_mem(domid, memory_limit_kib(mebibytes))
            await self._xenstore.write(f"{layout.domain_path(domid)}/memory/static-max", str(mebibytes << 10))
            await self._xenstore.write(f"{layout.vm_path(domain.config)}/maxmem", str(mebibytes))
        self._life.change(domain, maxmem=mebibytes)

    # ---- scheduling

    async def pin(self, key: Key, vcpu: Any, cpumap: str) -> None:
        """Sets the CPUs of one vCPU, or of `all`."""
        domain = await self._life.find_settled(key, "pin")
        _refuse_process(domain, "the host's scheduler places it")
        cpus = parse_cpus(cpumap)
        vcpus = range(domain.config.vcpus) if str(vcpu).lower() == "all" else [_number(vcpu, "a vCPU")]
        if not cpus or any(number not in range(domain.config.vcpus) for number in vcpus):
            raise XendError(f"Cannot pin vcpu: {vcpu} to cpu: {cpumap} - there is no such vCPU or CPU")
        now = list(domain.config.cpus) + [()] * (domain.config.vcpus - len(domain.config.cpus))
        for number in vcpus:
            if domain.record.phase == RUNNING:
                try:
                    await self._hypervisor.setvcpuaffinity(domain.domid, number, cpus)
                except (BadArgument, ValueError) as error:
                    raise XendError(f"Cannot pin vcpu: {number} to cpu: {cpumap} - {error}") from None
            now[number] = cpus
        self._life.change(domain, cpus=tuple(now))

    async def credit(self, key: Key) -> dict[str, int]:
        found = await self._life.find_any(key)
        if isinstance(found, Domain) and found.record.phase == HALTED:
            return {"weight": found.config.cpu_weight, "cap": found.config.cpu_cap}
        found_now = await self._hypervisor.sched_credit_get(found.domid)
        return {"weight": found_now.weight, "cap": found_now.cap}

    async def set_credit(self, key: Key, weight: int | None, cap: int | None) -> int:
        domain = await self._life.find_settled(key, "set the scheduling of")
        _refuse_process(domain, "the host's scheduler shares out its time")
        if weight is not None and not 1 <= weight <= 65535:
            raise XendError("Cpu weight out of range, valid values are within range from 1 to 65535")
        most = domain.config.vcpus * 100
        if cap is not None and not 0 <= cap <= most:
            raise XendError(
                f"Cpu cap out of range, valid range is from 0 to {most} for specified number of vcpus"
            )
        weight = domain.config.cpu_weight if weight is None else weight
        cap = domain.config.cpu_cap if cap is None else cap
        if domain.record.phase == RUNNING:
            await self._hypervisor.sched_credit_set(domain.domid, CreditParameters(weight, cap))
        self._life.change(domain, cpu_weight=weight, cpu_cap=cap)
        return 0


def _refuse_process(domain: Domain, why: str) -> None:
    """Raises: XendError for a guest written in Python."""
    if domain.config.image.process is not None:
        raise XendError(f"'{domain.name}' is a process of the host: {why}")


def _number(value: Any, what: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise XendError(f"'{value}' is no number of {what}") from None
