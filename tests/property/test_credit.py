"""The credit scheduler in a simulated machine, against the shares that weights and caps promise."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "hyper" / "core"
SIMULATOR = ROOT / "tests" / "unit" / "sched" / "simulator.c"

MS = 1_000_000
SECOND = 1000 * MS
ANY_CPU = (1 << 64) - 1


@dataclass(frozen=True)
class Domain:
    """`vcpus` of them, all busy for ever."""

    weight: int = 256
    cap: int = 0
    vcpus: int = 1


class Simulator:
    """tests/unit/sched/simulator.c."""

    def __init__(self, lib: ctypes.CDLL, nr_pcpus: int) -> None:
        self._lib = lib
        self.nr_pcpus = nr_pcpus
        self._sim = lib.sim_new(nr_pcpus)

    def domain(self, weight: int = 256, cap: int = 0) -> int:
        return self._lib.sim_domain(self._sim, weight, cap)

    def vcpu(self, domain: int, affinity: int = ANY_CPU, busy: int = 0, rest: int = 0) -> int:
        """Runs for `busy` ns, sleeps for `rest`, and again; busy 0: always runs."""
        return self._lib.sim_vcpu(self._sim, domain, affinity, busy, rest)

    def run(self, ns: int) -> None:
        self._lib.sim_run(self._sim, ns)

    def ran(self, vcpu: int) -> int:
        return self._lib.sim_ran(self._sim, vcpu)

    def worst_wait(self, vcpu: int) -> int:
        return self._lib.sim_worst_wait(self._sim, vcpu)

    def shares(self, vcpus: list[int], seconds: int) -> list[float]:
        """CPUs' worth of time each got over the next `seconds`."""
        before = [self.ran(vcpu) for vcpu in vcpus]
        self.run(seconds * SECOND)
        return [(self.ran(vcpu) - start) / (seconds * SECOND) for vcpu, start in zip(vcpus, before)]

    def close(self) -> None:
        self._lib.sim_free(self._sim)


def build(folder: Path) -> ctypes.CDLL:
    path = folder / "simulator.so"
    command = "gcc -O1 -g -std=gnu11 -Wall -Wextra -fno-strict-aliasing -shared -fPIC".split()
    for include in (CORE, CORE.parent / "public", CORE.parent):
        command += ["-iquote", str(include)]
    subprocess.run([*command, str(SIMULATOR), str(CORE / "sched" / "credit.c"), "-o", str(path)], check=True)
    lib = ctypes.CDLL(str(path))
    pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    for name, result, arguments in (
        ("sim_new", pointer, [u32]),
        ("sim_free", None, [pointer]),
        ("sim_domain", u32, [pointer, u32, u32]),
        ("sim_vcpu", u32, [pointer, u32, u64, u64, u64]),
        ("sim_run", None, [pointer, u64]),
        ("sim_ran", u64, [pointer, u32]),
        ("sim_worst_wait", u64, [pointer, u32]),
    ):
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    return lib


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("credit"))


@contextmanager
def machine(lib: ctypes.CDLL, nr_pcpus: int) -> Iterator[Simulator]:
    simulator = Simulator(lib, nr_pcpus)
    try:
        yield simulator
    finally:
        simulator.close()


def fair_shares(domains: list[Domain], nr_pcpus: int) -> list[float]:
    """What each domain should get, in CPUs: time flows to all in proportion to weight until each is full.

    A vCPU is full at one CPU, a domain at its cap.
    """
    full = [min(d.vcpus, d.cap / 100 if d.cap else d.vcpus) for d in domains]
    got = [0.0] * len(domains)
    left = float(nr_pcpus)
    while left > 1e-9:
        thirsty = [i for i in range(len(domains)) if got[i] < full[i] - 1e-9]
        if not thirsty:
            break
        weight = sum(domains[i].weight for i in thirsty)
        drop = min(left / weight, *((full[i] - got[i]) / domains[i].weight for i in thirsty))
        for i in thirsty:
            got[i] += drop * domains[i].weight
        left -= drop * weight
    return got


WEIGHTS = st.integers(32, 2048)
DOMAINS = st.lists(st.builds(Domain, weight=WEIGHTS, vcpus=st.integers(1, 4)), min_size=1, max_size=6)


@given(domains=DOMAINS, nr_pcpus=st.integers(1, 4))
def test_busy_domains_get_their_fair_shares(
    library: ctypes.CDLL, domains: list[Domain], nr_pcpus: int
) -> None:
    with machine(library, nr_pcpus) as sim:
        vcpus = []
        for d in domains:
            domid = sim.domain(d.weight)
            vcpus.append([sim.vcpu(domid) for _ in range(d.vcpus)])
        sim.run(SECOND)
        # So long that a slice more or less doesn't show, however many vCPUs take turns.
        flat = sim.shares([vcpu for group in vcpus for vcpu in group], 20)
        wanted = fair_shares(domains, nr_pcpus)
        for group, share in zip(vcpus, wanted):
            got = sum(flat[: len(group)])
            flat = flat[len(group) :]
            assert got == pytest.approx(share, abs=0.02 * nr_pcpus), (wanted, got)


@given(domains=DOMAINS, capped=st.builds(Domain, weight=WEIGHTS, cap=st.integers(5, 100)))
def test_a_capped_domain_gets_its_share_up_to_its_cap(
    library: ctypes.CDLL, domains: list[Domain], capped: Domain
) -> None:
    """Where the cap lies near its share it gets a little less: its budget may come when it's not its turn."""
    with machine(library, 1) as sim:
        for d in domains:
            domid = sim.domain(d.weight)
            for _ in range(d.vcpus):
                sim.vcpu(domid)
        vcpu = sim.vcpu(sim.domain(capped.weight, capped.cap))
        sim.run(SECOND)
        [got] = sim.shares([vcpu], 20)
        wanted = fair_shares([*domains, capped], 1)[-1]
        assert 0.75 * wanted - 0.02 < got < wanted + 0.02


@given(domains=DOMAINS, nr_pcpus=st.integers(1, 4))
def test_no_cpu_is_idle_while_somebody_may_run(
    library: ctypes.CDLL, domains: list[Domain], nr_pcpus: int
) -> None:
    with machine(library, nr_pcpus) as sim:
        vcpus = [sim.vcpu(domid) for d in domains for domid in [sim.domain(d.weight)] for _ in range(d.vcpus)]
        shares = sim.shares(vcpus, 2)
        assert sum(shares) == pytest.approx(min(nr_pcpus, len(vcpus)), abs=0.01)


@given(weights=st.lists(st.integers(64, 1024), min_size=2, max_size=5))
def test_vcpus_pinned_to_one_cpu_share_it_by_weight(library: ctypes.CDLL, weights: list[int]) -> None:
    """They used to be told apart from a machine with a CPU for each, where weights don't matter."""
    with machine(library, 8) as sim:
        pinned = [sim.vcpu(sim.domain(weight), affinity=1) for weight in weights]
        alone = sim.vcpu(sim.domain(), affinity=2)
        sim.run(SECOND)
        *shares, other = sim.shares([*pinned, alone], 5)
        for weight, share in zip(weights, shares):
            assert share == pytest.approx(weight / sum(weights), abs=0.02)
        assert other == pytest.approx(1, abs=0.001)


@given(
    busy=st.integers(MS // 10, 3 * MS),
    rest=st.integers(20 * MS, 100 * MS),
    hogs=st.integers(1, 6),
    nr_pcpus=st.integers(1, 3),
)
def test_who_needs_little_gets_it_soon(
    library: ctypes.CDLL, busy: int, rest: int, hogs: int, nr_pcpus: int
) -> None:
    """A vCPU that mostly sleeps preempts the busy ones within the rate limit, and is never held back."""
    with machine(library, nr_pcpus) as sim:
        for _ in range(hogs):
            sim.vcpu(sim.domain())
        light = sim.vcpu(sim.domain(), busy=busy, rest=rest)
        sim.run(SECOND)
        sim.worst_wait(light)  # at the start nobody is owed anything
        sim.run(3 * SECOND)
        if busy / (busy + rest) < 0.5 * nr_pcpus / (hogs + 1):
            assert sim.worst_wait(light) < 2 * MS


@given(sleepers=st.integers(1, 4), busy=st.integers(MS, 40 * MS))
def test_sleeping_is_no_way_to_get_more(library: ctypes.CDLL, sleepers: int, busy: int) -> None:
    """vCPUs that nap for a moment after each run don't take more than their share."""
    with machine(library, 1) as sim:
        honest = sim.vcpu(sim.domain())
        for _ in range(sleepers):
            sim.vcpu(sim.domain(), busy=busy, rest=MS // 10)
        sim.run(SECOND)
        [share] = sim.shares([honest], 5)
        assert share > 1 / (sleepers + 1) - 0.02


@given(cap=st.integers(5, 200), vcpus=st.integers(1, 4), nr_pcpus=st.integers(1, 4))
def test_a_cap_holds_within_every_second(library: ctypes.CDLL, cap: int, vcpus: int, nr_pcpus: int) -> None:
    with machine(library, nr_pcpus) as sim:
        domid = sim.domain(cap=cap)
        capped = [sim.vcpu(domid) for _ in range(vcpus)]
        sim.run(SECOND)
        for _ in range(3):
            wanted = min(cap / 100, vcpus, nr_pcpus)
            # 33.3 periods of 30 ms: a second may hold one budget more or less.
            assert sum(sim.shares(capped, 1)) == pytest.approx(wanted, abs=0.035 * max(1, wanted))


def test_a_weight_beyond_one_cpu_leaves_the_rest_in_proportion(library: ctypes.CDLL) -> None:
    with machine(library, 2) as sim:
        heavy, one, two = (sim.vcpu(sim.domain(weight)) for weight in (60000, 100, 200))
        sim.run(SECOND)
        shares = sim.shares([heavy, one, two], 5)
        assert shares == pytest.approx([1, 1 / 3, 2 / 3], abs=0.02)
