"""What a review with an attacker's eye found in the core; each test says what used to happen.

Guests and races are C: the programs of core/, linked with the whole core under the address sanitizer. What a
single call shows is asked from here.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hyper.guest import abi
from hyper.machine import Machine
from hyper.public.errors import XenError
from tests.core_kit import Process, lib, readable

ROOT = Path(__file__).resolve().parents[2]
CORE, GUEST = ROOT / "hyper" / "core", ROOT / "hyper" / "guest"
SOURCES = sorted((Path(__file__).parent / "core").glob("*_tests.c"))
TESTS = [
    (source.stem, name)
    for source in SOURCES
    for name in re.findall(r"\bT\((\w{2,})\)", source.read_text().rpartition("PROGRAM(")[2])
]
GCC = "gcc -g1 -std=gnu11 -Wall -Wextra -fno-strict-aliasing -pthread -fsanitize=address".split()
FOLDERS = [f"-iquote{folder}" for folder in (CORE, CORE.parent / "public", CORE.parent)]
OUTSIDE = [f"-iquote{folder}" for folder in (CORE.parent / "public", GUEST, CORE)]  # its own names last
SELF = lib.DOMID_SELF


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a program for each source, by its name."""
    folder = tmp_path_factory.mktemp("hostile")

    def compiled(job: tuple[int, Path]) -> Path:
        number, source = job
        output = folder / f"{number}.o"
        level = "-O1" if source in SOURCES else "-O0"  # guests need their inline functions, we the time
        folders = FOLDERS if source.is_relative_to(CORE) else OUTSIDE
        subprocess.run([*GCC, level, *folders, "-c", source, "-o", output], check=True)
        return output

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, enumerate([*SOURCES, GUEST / "hcall.c", *CORE.rglob("*.c")])))
    for source, own in zip(SOURCES, objects):
        output = folder / source.stem
        subprocess.run([*GCC, own, *objects[len(SOURCES) :], "-o", output], check=True)
    return folder


def test_the_list_is_complete(programs: Path) -> None:
    def listed(name: str) -> list[str]:
        return subprocess.run([programs / name], check=True, capture_output=True, text=True).stdout.split()

    assert [(source.stem, name) for source in SOURCES for name in listed(source.stem)] == TESTS


@pytest.mark.parametrize(("program", "name"), TESTS)
def test_hostile(programs: Path, program: str, name: str) -> None:
    result = subprocess.run([programs / program, name], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# --- what one call shows


@pytest.fixture
def other(machine: Machine, dom0: Process) -> Iterator[Process]:
    """Another process of Dom0."""
    with Process(machine) as process:
        yield process


@pytest.fixture
def guest(dom0: Process) -> Iterator[int]:
    domid = dom0.create()
    yield domid
    dom0.destroy(domid)


@pytest.mark.parametrize("op", ["close", "send", "unmask", "bind_vcpu"])
def test_the_ports_of_another_process(dom0: Process, other: Process, op: str) -> None:
    """A process could close the ports of another process of its domain, ring and change them: any daemon of
    Dom0 could cut xenstored off from its guests.
    """
    port = dom0.evtchn("alloc_unbound", dom=SELF, remote_dom=0).port
    with pytest.raises(XenError) as error:
        other.evtchn(op, port=port)
    assert error.value.errno == lib.XEN_EPERM
    dom0.evtchn(op, port=port)


def test_a_reset_is_for_ones_own_ports(dom0: Process, other: Process) -> None:
    """EVTCHNOP_reset closed all ports of the domain, those of other processes too."""
    theirs = dom0.evtchn("bind_ipi", vcpu=0).port
    mine = other.evtchn("bind_ipi", vcpu=0).port
    other.evtchn("reset", dom=SELF)
    assert dom0.evtchn("status", dom=SELF, port=mine).status == lib.EVTCHNSTAT_closed
    assert dom0.evtchn("status", dom=SELF, port=theirs).status == lib.EVTCHNSTAT_ipi


def test_closing_a_port_that_has_just_rung(dom0: Process, other: Process) -> None:
    """A ring was lost when its port was closed before the doorbell thread had come to it."""
    for _ in range(100):
        theirs = dom0.evtchn("alloc_unbound", dom=SELF, remote_dom=0).port
        upcall, _ = dom0.port_fds(theirs)
        mine = other.evtchn("bind_interdomain", remote_dom=SELF, remote_port=theirs).local_port
        doorbell = other.port_fds(mine)[1]
        close, _ = other.new("struct evtchn_close", port=mine)
        os.eventfd_write(doorbell, 1)
        other.call(abi.nr.event_channel_op, lib.EVTCHNOP_close, close)
        assert readable(upcall)
        dom0.evtchn("close", port=theirs)


def test_readconsole_from_an_index_to_come(dom0: Process) -> None:
    """An index past the end was taken for one far behind: the answer was a whole ring, most of it memory that
    no line had been written to yet.
    """
    size = 100_000
    handle, view = dom0.buffer(size)
    end = dom0.sysctl("readconsole", buffer=handle, count=size).index
    answer = dom0.sysctl("readconsole", buffer=handle, count=size, incremental=1, index=end + 1)
    assert answer.count == end  # all there is
    assert b"\0" not in view[: answer.count].tobytes()


def test_a_bitmap_of_four_billion_bits(dom0: Process, guest: int) -> None:
    """A bitmap in an answer was filled up with zeros to the length that the caller had named: half a gigabyte
    in one call, or all of the arena behind it.
    """
    handle, _ = dom0.buffer(8)
    _, behind = dom0.buffer(64)
    behind[:] = b"x" * 64
    bitmap = {"bitmap": handle, "nr_bits": 2**32 - 1}
    with pytest.raises(XenError) as error:
        dom0.domctl("getnodeaffinity", guest, "nodeaffinity", nodemap=bitmap)
    assert error.value.errno == lib.XEN_EINVAL
    assert behind == b"x" * 64


@pytest.mark.parametrize("max_pfn", [2**64 - 1, 2**63 + 1, 2**64 - lib.XEN_ERESTART + 1])
def test_a_guests_max_pfn_is_no_error(dom0: Process, guest: int, max_pfn: int) -> None:
    """XENMEM_maximum_gpfn handed on what the guest had written. It could read as any error, and as ERESTART
    whoever asked did so again, for ever.
    """
    frame = dom0.frame(dom0.domctl("getdomaininfo", guest).u.getdomaininfo.shared_info_frame)
    abi.struct("struct shared_info", frame).arch.max_pfn = max_pfn
    handle, who = dom0.buffer(2)
    who.cast("H")[0] = guest
    call = (lib.XENMEM_maximum_gpfn, handle, 0, 0, 0, 0)
    assert dom0.connection.hypercall(abi.nr.memory_op, call) == 0
