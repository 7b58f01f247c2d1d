"""A host without a hypervisor, for tests of xend: both of its seams in Python, and a process that serves
them.

Guests do as they are told at once: what is written to control/shutdown ends them. `calls` counts the calls
that change something, and `fail_at` makes the n-th one fail.

    python tests/xend_fake.py --host NAME [--ready-fd FD] ...   # xend's options
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import trio

from dom0.libxc.cpuid import NO_SUBLEAF, Leaves
from dom0.libxc.images import ImageError
from dom0.libxc.info import CpuAffinity, CreditParameters, DomainInfo, PhysInfo, VcpuInfo, XenInfo
from dom0.libxc.process import ProcessSpec
from dom0.libxc.pv import PvImage, PvSpec
from hyper.public import daemon
from hyper.public.errors import BadArgument, Busy, NoSuchDomain, OutOfFrames
from hyper.public.paths import HostPaths
from hyper.public.types import DomId, EvtchnPort, Gfn
from toolstack.xend.__main__ import network_of, parse_arguments, serve
from toolstack.xend.errors import XendError
from toolstack.xend.hypervisor import REASONS
from toolstack.xend.nodes import Node, Transaction
from toolstack.xend.processes import GuestProcess, Started
from toolstack.xend.store import DomainStore

T = TypeVar("T")
NR_CPUS = 4
TOTAL_PAGES = 262144
HOST_LEAVES: Leaves = {(1, NO_SUBLEAF): (0x306C1, 0x800, 0x9FFFFFFF, 0x178BFBFF), (7, 0): (0, 0x128, 0, 0)}
CODES = {name: code for code, name in REASONS.items()} | {"halt": 0}


class Calls:
    """Counts what is asked of the host, and fails when it is told to."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fail_at = 0

    def note(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self.fail_at:
            raise Busy(f"fault injected into {name}")


@dataclass
class FakeDomain:
    info: DomainInfo
    max_kib: int = 0
    credit: CreditParameters = field(default_factory=lambda: CreditParameters(256, 0))
    affinity: dict[int, frozenset[int]] = field(default_factory=dict)
    pauses: int = 1
    spec: PvSpec | None = None
    leaves: Leaves = field(default_factory=dict)


def blank_info(domid: int, handle: UUID, max_vcpu_id: int = -1) -> DomainInfo:
    return DomainInfo(
        domid=DomId(domid), handle=handle, dying=False, hvm=False, shutdown=False, paused=True, blocked=False,
        running=False, debugged=False, shutdown_reason=0, tot_pages=0, max_pages=0, shared_info_frame=0,
        cpu_time_ns=1_500_000_000, nr_online_vcpus=1, max_vcpu_id=max_vcpu_id, ssidref=0, cpupool=0,
    )  # fmt: skip


class FakeHypervisor:
    """toolstack.xend.hypervisor.Hypervisor."""

    def __init__(self, calls: Calls | None = None) -> None:
        self.calls = calls or Calls()
        dom0 = replace(blank_info(0, UUID(int=0), 0), paused=False, running=True, tot_pages=65536)
        self.domains: dict[int, FakeDomain] = {0: FakeDomain(dom0, pauses=0)}
        self.next_domid = 1
        self.scheduler = 5
        self.console = "(XEN) hello\n"
        self.keys = ""
        self.build_seconds = 0.0
        self.released: Callable[[], None] = lambda: None

    @property
    def free_pages(self) -> int:
        return TOTAL_PAGES - sum(domain.info.tot_pages for domain in self.domains.values())

    def _domain(self, domid: int, call: str) -> FakeDomain:
        self.calls.note(call)
        if domid not in self.domains:
            raise NoSuchDomain(call, domid=domid)
        return self.domains[domid]

    def end(self, domid: int, reason: str) -> None:
        """The guest shuts down."""
        domain = self.domains[domid]
        domain.info = replace(domain.info, shutdown=True, shutdown_reason=CODES[reason])
        self.released()

    async def domain_create(self, handle: UUID, max_vcpus: int, *, max_evtchn_port: int = 1023) -> DomId:
        self.calls.note("domain_create")
        domid, self.next_domid = self.next_domid, self.next_domid + 1
        self.domains[domid] = FakeDomain(blank_info(domid, handle, max_vcpus - 1))
        await trio.lowlevel.checkpoint()
        return DomId(domid)

    async def max_vcpus(self, domid: int, max_vcpus: int) -> None:
        self._domain(domid, "max_vcpus")

    async def build(self, spec: PvSpec) -> PvImage:
        domain = self._domain(spec.domid, "build")
        await trio.sleep(self.build_seconds)
        if not spec.kernel.exists():
            raise ImageError(str(spec.kernel), "cannot be opened: No such file or directory")
        pages = spec.memory_kib // 4
        if pages > self.free_pages:
            raise OutOfFrames("populate_physmap", domid=spec.domid)
        domain.info, domain.spec = replace(domain.info, tot_pages=pages), spec
        base = spec.domid * 1000
        ports = EvtchnPort(1), EvtchnPort(2)
        return PvImage(spec.domid, pages, Gfn(base + 1), ports[0], Gfn(base + 2), ports[1])

    async def build_process(self, spec: ProcessSpec) -> tuple[PvImage, socket.socket]:
        self._domain(spec.domid, "build_process").info = replace(
            self.domains[spec.domid].info, tot_pages=spec.memory_kib // 4
        )
        base = spec.domid * 1000
        image = PvImage(
            spec.domid, spec.memory_kib // 4, Gfn(base + 1), EvtchnPort(1), Gfn(base + 2), EvtchnPort(2)
        )
        return image, socket.socket()

    async def domain_destroy(self, domid: int) -> None:
        self._domain(domid, "domain_destroy")
        del self.domains[domid]
        self.released()

    async def domain_pause(self, domid: int) -> None:
        await trio.lowlevel.checkpoint()
        self._paused(self._domain(domid, "domain_pause"), 1)

    async def domain_unpause(self, domid: int) -> None:
        await trio.lowlevel.checkpoint()
        self._paused(self._domain(domid, "domain_unpause"), -1)

    @staticmethod
    def _paused(domain: FakeDomain, step: int) -> None:
        domain.pauses += step
        assert domain.pauses >= 0
        domain.info = replace(domain.info, paused=domain.pauses > 0, blocked=domain.pauses == 0)

    async def getdomaininfo(self, domid: int) -> DomainInfo:
        await trio.lowlevel.checkpoint()
        if domid not in self.domains:
            raise NoSuchDomain("getdomaininfo", domid=domid)
        return self.domains[domid].info

    async def getdomaininfolist(self) -> list[DomainInfo]:
        await trio.lowlevel.checkpoint()
        return [self.domains[domid].info for domid in sorted(self.domains)]

    async def max_mem(self, domid: int, kib: int) -> None:
        self._domain(domid, "max_mem").max_kib = kib

    async def getvcpuinfo(self, domid: int, vcpu_id: int) -> VcpuInfo:
        domain = self._domain(domid, "getvcpuinfo")
        if vcpu_id > domain.info.max_vcpu_id:
            raise BadArgument("getvcpuinfo")
        return VcpuInfo(vcpu_id == 0, True, False, 750_000_000, vcpu_id % NR_CPUS)

    async def getvcpuaffinity(self, domid: int, vcpu_id: int) -> CpuAffinity:
        every = frozenset(range(256))
        hard = self._domain(domid, "getvcpuaffinity").affinity.get(vcpu_id, every)
        return CpuAffinity(hard, every)

    async def setvcpuaffinity(self, domid: int, vcpu_id: int, cpus: Collection[int]) -> frozenset[int]:
        domain = self._domain(domid, "setvcpuaffinity")
        if not set(cpus) & set(range(NR_CPUS)):
            raise BadArgument("setvcpuaffinity", domid=domid)
        domain.affinity[vcpu_id] = frozenset(cpus)
        return domain.affinity[vcpu_id]

    async def sched_credit_get(self, domid: int) -> CreditParameters:
        return self._domain(domid, "sched_credit_get").credit

    async def sched_credit_set(self, domid: int, parameters: CreditParameters) -> None:
        self._domain(domid, "sched_credit_set").credit = parameters

    async def host_cpu_policy(self) -> Leaves:
        return dict(HOST_LEAVES)

    async def get_cpu_policy(self, domid: int) -> Leaves:
        return HOST_LEAVES | self._domain(domid, "get_cpu_policy").leaves

    async def set_cpu_policy(self, domid: int, leaves: Leaves) -> None:
        self._domain(domid, "set_cpu_policy").leaves |= leaves

    async def physinfo(self) -> PhysInfo:
        return PhysInfo(
            threads_per_core=1, cores_per_socket=NR_CPUS, nr_cpus=NR_CPUS, max_cpu_id=NR_CPUS - 1, nr_nodes=1,
            cpu_khz=2_400_000, capabilities=4, total_pages=TOTAL_PAGES, free_pages=self.free_pages,
            scrub_pages=0, outstanding_pages=0, max_mfn=TOTAL_PAGES, hw_cap=(1, 0xABCDEF01),
        )  # fmt: skip

    async def get_scheduler_id(self) -> int:
        return self.scheduler

    async def readconsole(self, clear: bool = False) -> str:
        text = self.console
        if clear:
            self.console = ""
        return text

    async def send_debug_keys(self, keys: str) -> None:
        self.keys += keys

    async def version(self) -> XenInfo:
        return XenInfo(
            major=4, minor=17, extra=".0-umxen", capabilities="xen-3.0-x86_64", changeset="",
            command_line="", virt_start=0xFFFF800000000000, pagesize=4096, compiler="cc", compile_by="us",
            compile_domain="here", compile_date="today",
        )  # fmt: skip


class FakeProcesses:
    """toolstack.xend.processes.Processes. `refuse` is what a guest says to its spec."""

    def __init__(self) -> None:
        self.running: dict[int, tuple[str, list[str]]] = {}
        self.stopped: set[int] = set()
        self.refuse: dict[str, str] = {}
        self.isolation = "full"
        self._pids = count(100)

    async def start(self, name: str, spec: str, words: Sequence[str], sock: socket.socket) -> Started:
        await trio.lowlevel.checkpoint()
        assert sock.fileno() >= 0
        if spec in self.refuse:
            raise XendError(f"python:{spec}: {self.refuse[spec]}")
        pid = next(self._pids)
        self.running[pid] = (spec, list(words))
        return Started(GuestProcess(pid, 1), self.isolation)

    def stop(self, process: GuestProcess) -> None:
        self.stopped.add(process.pid)

    def resume(self, process: GuestProcess) -> None:
        self.stopped.discard(process.pid)

    async def kill(self, process: GuestProcess) -> None:
        await trio.lowlevel.checkpoint()
        self.running.pop(process.pid, None)


class FakeXenstore:
    """toolstack.xend.xenstore.Xenstore: a dictionary of paths, with the permissions each was given."""

    def __init__(self, hypervisor: FakeHypervisor, calls: Calls | None = None) -> None:
        self.calls = calls or hypervisor.calls
        self.nodes: dict[str, str] = {}
        self.permissions: dict[str, tuple[str, ...]] = {}
        self.introduced: dict[int, tuple[int, int]] = {}
        self.obedient = True
        self._hypervisor = hypervisor
        self.backends = Backends(self)
        self._followers: list[tuple[str, Callable[[], None]]] = []
        hypervisor.released = self.fire_release

    def fire_release(self) -> None:
        self._fire("@releaseDomain")

    def _fire(self, path: str) -> None:
        for watched, changed in list(self._followers):
            if path == watched or path.startswith(f"{watched}/") or watched.startswith(f"{path}/"):
                changed()

    def put(self, path: str, value: str) -> None:
        """A node changes; whoever watches hears of it, the backends first."""
        self.nodes[path] = value
        self.backends.hear(path, value)
        self._fire(path)

    def drop(self, path: str) -> None:
        for name in [name for name in self.nodes if name == path or name.startswith(f"{path}/")]:
            del self.nodes[name]
        self.backends.hear(path, None)
        self._fire(path)

    async def read(self, path: str) -> str | None:
        self.calls.note("xs read")
        return self.nodes.get(path)

    async def write(self, path: str, value: str) -> None:
        self.calls.note("xs write")
        await trio.lowlevel.checkpoint()
        self.put(path, value)
        parts = path.split("/")
        if self.obedient and parts[-2:] == ["control", "shutdown"] and value in CODES:
            self._hypervisor.end(int(parts[3]), value)

    async def create(self, nodes: Iterable[Node]) -> None:
        wanted = list(nodes)

        async def work(transaction: Transaction) -> None:
            for node in wanted:
                await node.write(transaction)

        await self._transact("xs create", work)

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._transact("xs transact", work)

    async def _transact(self, call: str, work: Callable[[Transaction], Awaitable[T]]) -> T:
        self.calls.note(call)
        transaction = FakeTransaction(self)
        result = await work(transaction)
        for path, permissions in transaction.permissions.items():
            self.permissions[path] = permissions
        for path, value in transaction.written.items():
            self.put(path, value)
        return result

    async def remove(self, path: str) -> None:
        self.calls.note("xs remove")
        self.drop(path)

    async def subtree(self, path: str) -> dict[str, str]:
        prefix = f"{path}/"
        return {
            name.removeprefix(prefix): value for name, value in self.nodes.items() if name.startswith(prefix)
        }

    async def introduce(self, domid: int, mfn: int, port: int) -> None:
        self.calls.note("xs introduce")
        self.introduced[domid] = (mfn, port)

    async def release(self, domid: int) -> None:
        self.calls.note("xs release")
        self.introduced.pop(domid, None)

    async def follow(
        self,
        path: str,
        changed: Callable[[], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        follower = (path, changed)
        self._followers.append(follower)
        task_status.started()
        changed()
        try:
            await trio.sleep_forever()
        finally:
            self._followers.remove(follower)


class FakeTransaction:
    """toolstack.xend.nodes.Transaction: nothing is seen before its end, and nothing interferes."""

    def __init__(self, xenstore: FakeXenstore) -> None:
        self._xenstore = xenstore
        self.written: dict[str, str] = {}
        self.permissions: dict[str, tuple[str, ...]] = {}

    async def read_if_exists(self, path: str) -> str | None:
        return self.written.get(path, self._xenstore.nodes.get(path))

    async def exists(self, path: str) -> bool:
        return await self.read_if_exists(path) is not None

    async def write(self, path: str, value: str) -> None:
        self.written[path] = value

    async def set_perms(self, path: str, perms: Sequence[str]) -> None:
        self.permissions[path] = tuple(perms)

    async def rm(self, path: str) -> None:
        self.written.pop(path, None)
        self._xenstore.drop(path)


class Backends:
    """Both halves of all devices: blkback, netback and the guests' drivers, which answer at once.

    `refuse` is what a backend says to a device's `params` or `bridge`, and `silent` whether it says nothing;
    `stubborn` guests do not let go; `connects_late`: a backend that is asked to close says, once, that it has
    connected; `connects`: whether guests have drivers.
    """

    def __init__(self, xenstore: FakeXenstore) -> None:
        self._xenstore = xenstore
        self.refuse: dict[str, str] = {}
        self.silent = self.stubborn = self.connects_late = False
        self.connects = True

    def hear(self, path: str, value: str | None) -> None:
        parts = path.split("/")
        if parts[:5] != ["", "local", "domain", "0", "backend"] or len(parts) < 8 or self.silent:
            return self._hear_frontend(parts, value)
        backend, nodes = "/".join(parts[:8]), self._xenstore.nodes
        if parts[8:] == ["resize-request"] and value is not None:
            if refusal := self.refuse.get(nodes.get(f"{backend}/params", "")):
                self._xenstore.put(f"{backend}/error", refusal)
            self._xenstore.put(f"{backend}/resize-done", value)
        if parts[8:] == ["state"] and value == "5" and self.connects_late:
            self.connects_late = False
            self._xenstore.put(f"{backend}/state", "4")
        elif parts[8:] == ["state"] and value == "5":
            frontend = nodes[f"{backend}/frontend"]
            if not (self.stubborn and f"{frontend}/state" in nodes):
                if f"{frontend}/state" in nodes:
                    self._xenstore.put(f"{frontend}/state", "6")
                self._xenstore.put(f"{backend}/state", "6")
        return None

    def _hear_frontend(self, parts: list[str], value: str | None) -> None:
        """A device is there as soon as its frontend's last entry is; one whose frontend has gone ends."""
        if parts[4:5] != ["device"] or len(parts) < 7 or self.silent:
            return
        backend = f"/local/domain/0/backend/{parts[5]}/{parts[3]}/{parts[6]}"
        if parts[7:] == ["state"] and value == "1":
            self._connect(backend)
        elif len(parts) == 7 and value is None and f"{backend}/state" in self._xenstore.nodes:
            self._xenstore.put(f"{backend}/state", "6")

    def _connect(self, backend: str) -> None:
        nodes = self._xenstore.nodes
        asked = nodes.get(f"{backend}/params", nodes.get(f"{backend}/bridge", ""))
        if asked in self.refuse:
            self._xenstore.put(f"{backend}/hotplug-error", self.refuse[asked])
            self._xenstore.put(f"{backend}/hotplug-status", "error")
            return
        self._xenstore.put(f"{backend}/hotplug-status", "connected")
        self._xenstore.put(f"{backend}/state", "4" if self.connects else "2")
        if self.connects:
            frontend = nodes[f"{backend}/frontend"]
            self._xenstore.put(f"{frontend}/event-channel", "9")
            self._xenstore.put(f"{frontend}/ring-ref", "8")
            self._xenstore.put(f"{frontend}/state", "4")


def main() -> None:
    """xend over a fake host."""
    arguments = parse_arguments()
    daemon.configure_logging()
    paths = HostPaths.from_environment(arguments.host)
    paths.create()
    hypervisor = FakeHypervisor()

    async def run() -> None:
        with DomainStore(paths.database) as store:
            await serve(
                hypervisor,
                FakeXenstore(hypervisor),
                store,
                paths,
                processes=FakeProcesses(),
                minimum_restart=arguments.minimum_restart,
                network=network_of(arguments),
                ready_fd=arguments.ready_fd,
            )

    trio.run(run)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
