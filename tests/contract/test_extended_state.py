"""XEN_DOMCTL_get/setvcpuextstate of the real core: what goes in comes out, and what a domain may not have is
refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from hyper.public.errors import XenError
from tests.core_kit import Process, lib

X87, SSE, AVX = 1, 2, 4
AREA = 832


@pytest.fixture
def domid(dom0: Process) -> Iterator[int]:
    domid = dom0.create(max_vcpus=1)
    yield domid
    dom0.destroy(domid)


@pytest.fixture
def components(dom0: Process, domid: int) -> int:
    """XCR0's components that this machine has; tests need AVX."""
    room = dom0.domctl("getvcpuextstate", domid, "vcpuextstate").u.vcpuextstate
    if not room.xfeature_mask & AVX:
        pytest.skip("this host has no AVX")
    return int(room.xfeature_mask)


def area(present: int) -> bytearray:
    """An XSAVE area with something in each component."""
    image = bytearray(AREA)
    image[0:2] = struct.pack("<H", 0x27F)
    image[24:28] = struct.pack("<I", 0x1F80)
    for at in (32, 160, 576):
        image[at : at + 10] = bytes(range(1, 11))
    image[512:520] = struct.pack("<Q", present)
    return image


def put(dom0: Process, domid: int, xcr0: int, accum: int, image: bytes) -> None:
    data = struct.pack("<QQ", xcr0, accum) + image
    handle, view = dom0.buffer(len(data))
    view[:] = data
    dom0.domctl("setvcpuextstate", domid, "vcpuextstate", size=len(data), buffer=handle)


def fetch(dom0: Process, domid: int) -> bytes:
    room = dom0.domctl("getvcpuextstate", domid, "vcpuextstate").u.vcpuextstate
    handle, view = dom0.buffer(room.size)
    dom0.domctl(
        "getvcpuextstate", domid, "vcpuextstate", size=room.size, xfeature_mask=room.xfeature_mask,
        buffer=handle,
    )  # fmt: skip
    return bytes(view)


def test_a_vcpu_that_never_had_any(dom0: Process, domid: int, components: int) -> None:
    assert fetch(dom0, domid) == bytes(16)


def test_round_trip(dom0: Process, domid: int, components: int) -> None:
    image = area(X87 | SSE | AVX)
    put(dom0, domid, 7, 7, image)
    state = fetch(dom0, domid)
    assert struct.unpack("<QQ", state[:16]) == (7, 7)
    image[28:32] = state[16 + 28 : 16 + 32]  # MXCSR_MASK is the CPU's
    assert state[16:] == bytes(image)
    put(dom0, domid, 7, 7, state[16:])
    assert fetch(dom0, domid) == state


def test_components_that_are_not_present_are_initial(dom0: Process, domid: int, components: int) -> None:
    put(dom0, domid, 7, 7, area(X87 | SSE | AVX))
    put(dom0, domid, 3, 7, area(0))
    state = fetch(dom0, domid)
    assert struct.unpack("<QQ", state[:16]) == (3, 7)
    legacy, rest = state[16:528], state[528:]
    assert legacy[:2] == struct.pack("<H", 0x37F) and not any(legacy[32:416])
    assert not any(rest[64:])


@pytest.mark.parametrize(
    ("xcr0", "accum", "change"),
    [
        (4, 7, {}),  # without x87
        (5, 7, {}),  # AVX without SSE
        (7, 3, {}),  # more than it ever had
        (7, 0xE7, {}),  # more than the machine has
        (3, 3, {512: 7}),  # in the image what the vCPU cannot have
        (7, 7, {527: 0x80}),  # compact
        (7, 7, {530: 1}),  # reserved
    ],
)
def test_refused(
    dom0: Process, domid: int, components: int, xcr0: int, accum: int, change: dict[int, int]
) -> None:
    image = area(X87)
    for at, byte in change.items():
        image[at] = byte
    before = fetch(dom0, domid)
    with pytest.raises(XenError) as error:
        put(dom0, domid, xcr0, accum, image)
    assert error.value.errno == lib.XEN_EINVAL
    assert fetch(dom0, domid) == before


def test_sizes(dom0: Process, domid: int, components: int) -> None:
    for size in (0, 15, 16 + 575, 16 + AREA + 1):
        handle, view = dom0.buffer(max(size, 16))
        view[0] = view[8] = 7
        with pytest.raises(XenError) as error:
            dom0.domctl("setvcpuextstate", domid, "vcpuextstate", size=size, buffer=handle)
        assert error.value.errno == lib.XEN_EINVAL, size
    with pytest.raises(XenError) as error:
        dom0.domctl("getvcpuextstate", domid, "vcpuextstate", vcpu=3)
    assert error.value.errno == lib.XEN_ESRCH


def test_a_domain_without_avx(dom0: Process, domid: int, components: int) -> None:
    """Its state is refused more, the machine's size stays."""
    handle, leaf = dom0.new("struct xen_cpuid_leaf", leaf=1, subleaf=0xFFFFFFFF, a=0x306C1, d=0xFFFFFFFF)
    leaf.c = 0xFFFFFFFF & ~(1 << 28)
    dom0.domctl("set_cpu_policy", domid, "cpu_policy", nr_leaves=1, leaves=handle)
    with pytest.raises(XenError):
        put(dom0, domid, 7, 7, area(7))
    put(dom0, domid, 3, 3, area(3))
