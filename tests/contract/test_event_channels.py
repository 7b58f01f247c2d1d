"""Event channels of the real core: Xen's checks and errno, ports that belong to processes, doorbells."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hyper.guest import abi
from hyper.machine import Machine
from hyper.public.errors import XenError
from tests.core_kit import Process, drain, lib, readable

SELF = lib.DOMID_SELF


@pytest.fixture
def guest(dom0: Process) -> Iterator[int]:
    domid = dom0.create(max_vcpus=2)
    yield domid
    dom0.destroy(domid)


def refused(errno: int, process: Process, op: str, **fields: int) -> None:
    with pytest.raises(XenError) as error:
        process.evtchn(op, **fields)
    assert error.value.errno == errno


def test_the_lowest_free_port_is_given(dom0: Process, guest: int) -> None:
    ports = [dom0.evtchn("alloc_unbound", dom=guest, remote_dom=0).port for _ in range(4)]
    assert ports == [1, 2, 3, 4]


def test_dom0_ports_are_reused(dom0: Process) -> None:
    ports = [dom0.evtchn("alloc_unbound", dom=SELF, remote_dom=0).port for _ in range(3)]
    dom0.evtchn("close", port=ports[1])
    assert dom0.evtchn("alloc_unbound", dom=SELF, remote_dom=0).port == ports[1]


REFUSALS = [
    # operation, fields, errno
    ("alloc_unbound", {"dom": 999}, lib.XEN_ESRCH),
    ("bind_interdomain", {"remote_dom": 999, "remote_port": 1}, lib.XEN_ESRCH),
    ("bind_interdomain", {"remote_dom": 0, "remote_port": 0}, lib.XEN_EINVAL),
    ("bind_interdomain", {"remote_dom": 0, "remote_port": 4000}, lib.XEN_EINVAL),
    ("bind_interdomain", {"remote_dom": 0, "remote_port": 0xFFFFFFFF}, lib.XEN_EINVAL),
    ("bind_virq", {"virq": 24}, lib.XEN_EINVAL),
    ("bind_virq", {"virq": lib.VIRQ_DOM_EXC, "vcpu": 1}, lib.XEN_EINVAL),
    ("bind_virq", {"virq": lib.VIRQ_TIMER, "vcpu": 1}, lib.XEN_ENOENT),
    ("bind_ipi", {"vcpu": 7}, lib.XEN_ENOENT),
    ("bind_vcpu", {"port": 1, "vcpu": 7}, lib.XEN_ENOENT),
    ("bind_vcpu", {"port": 4000}, lib.XEN_EINVAL),
    ("bind_pirq", {"pirq": 3}, lib.XEN_EINVAL),
    ("close", {"port": 0}, lib.XEN_EINVAL),
    ("close", {"port": 4095}, lib.XEN_EINVAL),
    ("close", {"port": 4096}, lib.XEN_EINVAL),
    ("send", {"port": 0}, lib.XEN_EINVAL),
    ("send", {"port": 77}, lib.XEN_EINVAL),
    ("unmask", {"port": 77}, lib.XEN_EINVAL),
    ("status", {"dom": 999, "port": 1}, lib.XEN_ESRCH),
    ("status", {"dom": SELF, "port": 4096}, lib.XEN_EINVAL),
    ("reset", {"dom": 999}, lib.XEN_ESRCH),
    ("init_control", {}, lib.XEN_ENOSYS),
    ("expand_array", {}, lib.XEN_ENOSYS),
    ("set_priority", {"port": 1}, lib.XEN_EINVAL),
]


@pytest.mark.parametrize(("op", "fields", "errno"), REFUSALS)
def test_refusals(dom0: Process, op: str, fields: dict[str, int], errno: int) -> None:
    refused(errno, dom0, op, **fields)


def test_an_unknown_operation(dom0: Process) -> None:
    assert dom0.raw(abi.nr.event_channel_op, 99, 4096) == -lib.XEN_ENOSYS


def test_a_bad_argument_address(dom0: Process) -> None:
    for handle in (0, 1 << 40, (1 << 20) - 2):
        assert dom0.raw(abi.nr.event_channel_op, lib.EVTCHNOP_send, handle) == -lib.XEN_EFAULT


def test_a_port_may_be_bound_only_by_whom_it_is_for(dom0: Process, guest: int) -> None:
    port = dom0.evtchn("alloc_unbound", dom=guest, remote_dom=guest).port
    refused(lib.XEN_EINVAL, dom0, "bind_interdomain", remote_dom=guest, remote_port=port)


def test_the_limit_of_ports(dom0: Process) -> None:
    domid = dom0.create(max_evtchn_port=3)
    for _ in range(3):
        dom0.evtchn("alloc_unbound", dom=domid, remote_dom=0)
    refused(lib.XEN_ENOSPC, dom0, "alloc_unbound", dom=domid, remote_dom=0)
    dom0.destroy(domid)


def test_all_ports_of_the_2_level_abi(dom0: Process) -> None:
    ports = []
    with pytest.raises(XenError) as error:
        while True:
            ports.append(dom0.evtchn("alloc_unbound", dom=SELF, remote_dom=0).port)
    assert error.value.errno == lib.XEN_ENOSPC
    assert max(ports) == 4095


def test_status_through_a_life(dom0: Process, guest: int) -> None:
    remote = dom0.evtchn("alloc_unbound", dom=guest, remote_dom=0).port
    status = dom0.evtchn("status", dom=guest, port=remote)
    assert (status.status, status.u.unbound.dom) == (lib.EVTCHNSTAT_unbound, 0)
    local = dom0.evtchn("bind_interdomain", remote_dom=guest, remote_port=remote).local_port
    status = dom0.evtchn("status", dom=guest, port=remote)
    assert status.status == lib.EVTCHNSTAT_interdomain
    assert (status.u.interdomain.dom, status.u.interdomain.port) == (0, local)
    refused(lib.XEN_EINVAL, dom0, "bind_interdomain", remote_dom=guest, remote_port=remote)
    dom0.evtchn("close", port=local)
    assert dom0.evtchn("status", dom=SELF, port=local).status == lib.EVTCHNSTAT_closed
    assert dom0.evtchn("status", dom=guest, port=remote).status == lib.EVTCHNSTAT_unbound
    again = dom0.evtchn("bind_interdomain", remote_dom=guest, remote_port=remote).local_port
    dom0.evtchn("close", port=again)


def test_status_of_virq_and_ipi(dom0: Process) -> None:
    virq = dom0.evtchn("bind_virq", virq=lib.VIRQ_DEBUG).port
    assert dom0.evtchn("status", dom=SELF, port=virq).u.virq == lib.VIRQ_DEBUG
    refused(lib.XEN_EEXIST, dom0, "bind_virq", virq=lib.VIRQ_DEBUG)
    refused(lib.XEN_EINVAL, dom0, "bind_vcpu", port=virq)
    refused(lib.XEN_EINVAL, dom0, "send", port=virq)
    ipi = dom0.evtchn("bind_ipi", vcpu=0).port
    assert dom0.evtchn("status", dom=SELF, port=ipi).status == lib.EVTCHNSTAT_ipi
    dom0.evtchn("close", port=virq)
    dom0.evtchn("bind_virq", virq=lib.VIRQ_DEBUG)


def test_binding_sets_the_port_pending(dom0: Process, guest: int) -> None:
    remote = dom0.evtchn("alloc_unbound", dom=guest, remote_dom=0).port
    port = dom0.evtchn("bind_interdomain", remote_dom=guest, remote_port=remote).local_port
    upcall, _ = dom0.port_fds(port)
    assert drain(upcall) == 1
    assert not readable(upcall)


def test_two_processes_of_dom0_talk(dom0: Process, machine: Machine) -> None:
    with Process(machine) as other:
        port = dom0.evtchn("alloc_unbound", dom=SELF, remote_dom=0).port
        peer = other.evtchn("bind_interdomain", remote_dom=SELF, remote_port=port).local_port
        upcall, doorbell = dom0.port_fds(port)
        peer_upcall, peer_doorbell = other.port_fds(peer)
        drain(peer_upcall)
        for _ in range(20):
            os.eventfd_write(doorbell, 1)
            assert readable(peer_upcall, 5)
            drain(peer_upcall)
            os.eventfd_write(peer_doorbell, 1)
            assert readable(upcall, 5)
            drain(upcall)
        other.evtchn("send", port=peer)
        assert drain(upcall) == 1


def test_a_port_belongs_to_its_process(dom0: Process, machine: Machine) -> None:
    port = dom0.evtchn("alloc_unbound", dom=SELF, remote_dom=0).port
    with Process(machine) as other, pytest.raises(XenError) as error:
        other.port_fds(port)
    assert error.value.errno == lib.XEN_EPERM


def test_hanging_up_unbinds_the_far_end(dom0: Process, machine: Machine, guest: int) -> None:
    remote = dom0.evtchn("alloc_unbound", dom=guest, remote_dom=0).port
    with Process(machine) as daemon:
        daemon.evtchn("bind_interdomain", remote_dom=guest, remote_port=remote)
        assert dom0.evtchn("status", dom=guest, port=remote).status == lib.EVTCHNSTAT_interdomain
    assert dom0.evtchn("status", dom=guest, port=remote).status == lib.EVTCHNSTAT_unbound


def test_a_dead_doorbell_rings_nobody(dom0: Process, machine: Machine) -> None:
    """A client keeps its duplicate of a closed port's doorbell; the port's next life must not hear it."""
    port = dom0.evtchn("alloc_unbound", dom=SELF, remote_dom=0).port
    old = os.dup(dom0.port_fds(port)[1])
    dom0.evtchn("close", port=port)
    assert dom0.evtchn("alloc_unbound", dom=SELF, remote_dom=0).port == port
    peer = dom0.evtchn("bind_interdomain", remote_dom=SELF, remote_port=port).local_port
    upcall, _ = dom0.port_fds(peer)
    drain(upcall)
    os.eventfd_write(old, 1)
    assert not readable(upcall, 0.05)
    os.eventfd_write(dom0.port_fds(port)[1], 1)
    assert readable(upcall, 5)
    os.close(old)


def test_dom_exc_when_a_domain_ends(dom0: Process) -> None:
    port = dom0.evtchn("bind_virq", virq=lib.VIRQ_DOM_EXC).port
    upcall, _ = dom0.port_fds(port)
    domid = dom0.create()
    assert not readable(upcall)
    handle, _ = dom0.new("struct sched_remote_shutdown", domain_id=domid, reason=lib.SHUTDOWN_reboot)
    dom0.call(abi.nr.sched_op, lib.SCHEDOP_remote_shutdown, handle)
    assert readable(upcall, 5)
    drain(upcall)
    flags = dom0.domctl("getdomaininfo", domid).u.getdomaininfo.flags
    assert flags & lib.XEN_DOMINF_shutdown
    assert flags >> lib.XEN_DOMINF_shutdownshift & 255 == lib.SHUTDOWN_reboot
    dom0.destroy(domid)
    assert readable(upcall, 5)


def test_events_of_a_guest_that_never_ran(dom0: Process, guest: int) -> None:
    """Its bits are set in shared_info for when it starts; masked ports don't raise the selector."""
    remote = dom0.evtchn("alloc_unbound", dom=guest, remote_dom=0).port
    port = dom0.evtchn("bind_interdomain", remote_dom=guest, remote_port=remote).local_port
    info = dom0.domctl("getdomaininfo", guest).u.getdomaininfo
    page = dom0.frame(info.shared_info_frame)
    shared = abi.struct("struct shared_info", page)
    assert shared.evtchn_mask[0] == 2**64 - 1
    dom0.evtchn("send", port=port)
    assert shared.evtchn_pending[0] == 1 << remote
    assert shared.vcpu_info[0].evtchn_pending_sel == 0
    shared.evtchn_pending[0] = 0
    shared.evtchn_mask[0] = 0
    dom0.evtchn("send", port=port)
    assert shared.vcpu_info[0].evtchn_pending_sel == 1
    assert shared.vcpu_info[0].evtchn_upcall_pending == 1


def test_reset_closes_everything(dom0: Process, guest: int) -> None:
    remote = dom0.evtchn("alloc_unbound", dom=guest, remote_dom=0).port
    port = dom0.evtchn("bind_interdomain", remote_dom=guest, remote_port=remote).local_port
    dom0.evtchn("reset", dom=guest)
    assert dom0.evtchn("status", dom=guest, port=remote).status == lib.EVTCHNSTAT_closed
    assert dom0.evtchn("status", dom=SELF, port=port).status == lib.EVTCHNSTAT_unbound
