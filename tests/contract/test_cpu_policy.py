"""CPU policies of the real core in Xen 4.17's layouts: the machine's, a domain's, and what may be changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hyper.guest import abi
from hyper.public.errors import XenError
from tests.core_kit import Process, lib

LEAF, MSR = "struct xen_cpuid_leaf", "struct xen_msr_entry"
NO_SUBLEAF = 0xFFFFFFFF
Leaves = dict[tuple[int, int], list[int]]


@pytest.fixture
def domid(dom0: Process) -> Iterator[int]:
    domid = dom0.create(max_vcpus=1)
    yield domid
    dom0.destroy(domid)


def machine_leaves(dom0: Process, index: int) -> Leaves:
    room = dom0.sysctl("get_cpu_policy", "cpu_policy", index=index)
    handle, leaves = dom0.new(LEAF, room.nr_leaves)
    msrs, _ = dom0.new(MSR, room.nr_msrs)
    answer = dom0.sysctl(
        "get_cpu_policy", "cpu_policy", index=index, nr_leaves=room.nr_leaves, leaves=handle,
        nr_msrs=room.nr_msrs, msrs=msrs,
    )  # fmt: skip
    return as_dict(leaves, answer.nr_leaves)


def as_dict(leaves: Any, count: int) -> Leaves:
    return {(leaf.leaf, leaf.subleaf): [leaf.a, leaf.b, leaf.c, leaf.d] for leaf in leaves[0:count]}


def domain_leaves(dom0: Process, domid: int) -> Leaves:
    handle, leaves = dom0.new(LEAF, 64)
    msrs, _ = dom0.new(MSR, 2)
    answer = dom0.domctl(
        "get_cpu_policy", domid, "cpu_policy", nr_leaves=64, leaves=handle, nr_msrs=2, msrs=msrs
    )
    return as_dict(leaves, answer.u.cpu_policy.nr_leaves)


def set_leaf(dom0: Process, domid: int, leaf: int, subleaf: int, words: list[int]) -> None:
    handle, entry = dom0.new(LEAF, leaf=leaf, subleaf=subleaf)
    entry.a, entry.b, entry.c, entry.d = words
    dom0.domctl("set_cpu_policy", domid, "cpu_policy", nr_leaves=1, leaves=handle)


def test_the_machine_offers_no_more_than_the_host_has(dom0: Process) -> None:
    most = machine_leaves(dom0, lib.XEN_SYSCTL_cpu_policy_pv_max)
    assert most == machine_leaves(dom0, lib.XEN_SYSCTL_cpu_policy_pv_default)
    host = machine_leaves(dom0, lib.XEN_SYSCTL_cpu_policy_host)
    hypervisor = 1 << 31
    assert most[1, NO_SUBLEAF][2] & ~host[1, NO_SUBLEAF][2] & ~hypervisor == 0
    assert most[7, 0][1] & ~host[7, 0][1] & ~(1 << 9) == 0  # rep movsb is fast here on any host
    assert most[0, NO_SUBLEAF][1:] == [0x756E6547, 0x6C65746E, 0x49656E69]


def test_indices(dom0: Process) -> None:
    for index, errno in ((lib.XEN_SYSCTL_cpu_policy_hvm_max, lib.XEN_EOPNOTSUPP), (17, lib.XEN_EINVAL)):
        with pytest.raises(XenError) as error:
            dom0.sysctl("get_cpu_policy", "cpu_policy", index=index)
        assert error.value.errno == errno


def test_no_room(dom0: Process, domid: int) -> None:
    handle, _ = dom0.new(LEAF, 3)
    with pytest.raises(XenError) as error:
        dom0.domctl("get_cpu_policy", domid, "cpu_policy", nr_leaves=3, leaves=handle)
    assert error.value.errno == lib.XEN_ENOBUFS


def test_a_domain_begins_with_everything(dom0: Process, domid: int) -> None:
    assert domain_leaves(dom0, domid) == machine_leaves(dom0, lib.XEN_SYSCTL_cpu_policy_pv_default)


def test_features_go_and_do_not_come(dom0: Process, domid: int) -> None:
    before = domain_leaves(dom0, domid)
    a, b, c, d = before[1, NO_SUBLEAF]
    sse42 = 1 << 20
    set_leaf(dom0, domid, 1, NO_SUBLEAF, [a, b, 0xFFFFFFFF & ~sse42, d])
    assert domain_leaves(dom0, domid)[1, NO_SUBLEAF] == [a, b, c & ~sse42, d]
    set_leaf(dom0, domid, 1, NO_SUBLEAF, [a, b, c, d])
    assert domain_leaves(dom0, domid) == before


def test_features_need_others(dom0: Process, domid: int) -> None:
    """Without SSSE3 there is no SSE4."""
    a, b, c, d = domain_leaves(dom0, domid)[1, NO_SUBLEAF]
    set_leaf(dom0, domid, 1, NO_SUBLEAF, [a, b, c & ~(1 << 9), d])
    assert domain_leaves(dom0, domid)[1, NO_SUBLEAF][2] == c & ~(1 << 9 | 1 << 19 | 1 << 20)


def test_names_may_be_anything(dom0: Process, domid: int) -> None:
    set_leaf(dom0, domid, 0x80000002, NO_SUBLEAF, [1, 2, 3, 4])
    assert domain_leaves(dom0, domid)[0x80000002, NO_SUBLEAF] == [1, 2, 3, 4]
    set_leaf(dom0, domid, 0, NO_SUBLEAF, [0x7FFFFFFF, 1, 2, 3])
    assert domain_leaves(dom0, domid)[0, NO_SUBLEAF] == [0x16, 1, 2, 3]


def test_there_is_no_such_leaf(dom0: Process, domid: int) -> None:
    handle, _ = dom0.new(LEAF, leaf=0x12345678, subleaf=9)
    with pytest.raises(XenError) as error:
        dom0.domctl("set_cpu_policy", domid, "cpu_policy", nr_leaves=1, leaves=handle)
    assert error.value.errno == lib.XEN_ERANGE


def test_not_once_it_has_run(dom0: Process, domid: int) -> None:
    dom0.domctl("unpausedomain", domid)
    with pytest.raises(XenError) as error:
        dom0.domctl("set_cpu_policy", domid, "cpu_policy")
    assert error.value.errno == lib.XEN_EEXIST


def test_msrs(dom0: Process, domid: int) -> None:
    handle, msr = dom0.new(MSR, idx=0x10A, val=0x131)
    dom0.domctl("set_cpu_policy", domid, "cpu_policy", nr_msrs=1, msrs=handle)
    msr.val = 0x133
    with pytest.raises(XenError) as error:
        dom0.domctl("set_cpu_policy", domid, "cpu_policy", nr_msrs=1, msrs=handle)
    assert error.value.errno == lib.XEN_EINVAL


def test_featuresets(dom0: Process) -> None:
    count = dom0.sysctl("get_cpu_featureset", "cpu_featureset", index=lib.XEN_SYSCTL_cpu_featureset_pv)
    handle, words = dom0.new("uint32_t", count.nr_features)
    dom0.sysctl(
        "get_cpu_featureset", "cpu_featureset", index=lib.XEN_SYSCTL_cpu_featureset_pv, nr_features=12,
        features=handle,
    )  # fmt: skip
    most = machine_leaves(dom0, lib.XEN_SYSCTL_cpu_policy_pv_max)
    assert [words[k] for k in range(12)][:2] == most[1, NO_SUBLEAF][:1:-1]
    assert words[5] == most[7, 0][1]


def test_sizes(dom0: Process) -> None:
    assert (abi.sizeof(LEAF), abi.sizeof(MSR)) == (24, 16)
