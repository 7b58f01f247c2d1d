"""Configurations as clients send them, and what xend says of domains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.libxc.info import VcpuInfo
from tests.xend_fake import blank_info
from toolstack import sxp
from toolstack.sxp import child_value
from toolstack.xend import describe, hypervisor, layout
from toolstack.xend.describe import Stranger
from toolstack.xend.errors import XendError
from toolstack.xend.model import DomainConfig, Image, parse_cpus
from toolstack.xend.store import Record

IMAGE = ["image", ["linux", ["kernel", "/k"]]]
U = UUID("5a2c9a2e-0c1b-4b0e-9b0c-3f8f6f1d2a10")


def config(*items: Any) -> DomainConfig:
    given_keys = [item[0] for item in items]
    rest = [item for item in (["name", "deb"], ["uuid", str(U)], IMAGE) if item[0] not in given_keys]
    return DomainConfig.from_sxp(["vm", *rest, *items])


def test_defaults() -> None:
    made = config()
    assert made == DomainConfig("deb", U, Image("/k"))
    assert (made.memory, made.maxmem, made.vcpus, made.vcpu_avail) == (128, 128, 1, 1)
    assert (made.on_poweroff, made.on_reboot, made.on_crash) == ("destroy", "restart", "restart")


def test_strings_are_numbers_too() -> None:
    made = config(["memory", "256"], ["vcpus", "2"], ["cpu_weight", 512.0])
    assert (made.memory, made.maxmem, made.vcpus, made.vcpu_avail, made.cpu_weight) == (256, 256, 2, 3, 512)


def test_a_uuid_is_made_up() -> None:
    first, second = (DomainConfig.from_sxp(["vm", ["name", "x"], IMAGE]) for _ in range(2))
    assert first.uuid != second.uuid


@pytest.mark.parametrize(
    ("items", "cmdline"),
    [
        ([], ""),
        ([["args", "console=hvc0"]], "console=hvc0"),
        ([["root", "/dev/xvda ro"], ["args", "x"]], "root=/dev/xvda ro x"),
        ([["ip", "1::"], ["root", "/r"]], "ip=1:: root=/r"),
        ([["root", "/r"], ["args", "root=/other"]], "root=/other"),
    ],
)
def test_command_line(items: list[Any], cmdline: str) -> None:
    made = config(["image", ["linux", ["kernel", "/k"], *items]])
    assert made.image.cmdline == cmdline


@pytest.mark.parametrize(
    ("items", "cpus"),
    [
        ([["cpus", "0-1"]], ((0, 1), (0, 1))),
        ([["cpus", ["0", "1-3,^2"]]], ((0,), (1, 3))),
        ([["cpus", [["0", "2"], []]]], ((0, 2), ())),
        ([["cpus", [[0], [1]]]], ((0,), (1,))),
        ([["cpus", 3]], ((3,), (3,))),
        ([["cpu", 1]], ((1,),)),
        ([["cpu", "-1"]], ()),
        ([["cpus", ""]], ()),
    ],
)
def test_cpus(items: list[Any], cpus: Any) -> None:
    assert config(["vcpus", 2], *items).cpus == cpus


REFUSED = [
    ([["name", ""]], "Missing VM Name"),
    ([["name", "a b"]], "Invalid VM Name"),
    ([["name", ["x"]]], "name must be a string"),
    ([["uuid", "x"]], "uuid must be a UUID"),
    ([["memory", "x"]], "memory must be a number"),
    ([["memory", 1.5]], "memory must be a number"),
    ([["memory", float("inf")]], "memory must be a number"),
    ([["memory", 0]], "memory must be from 1"),
    ([["memory", 256], ["maxmem", 128]], "maxmem must be from 256"),
    ([["vcpus", 129]], "vcpus must be from 1 to 128"),
    ([["vcpus", 2], ["vcpu_avail", 4]], "vcpu_avail must be from 1 to 3"),
    ([["cpu_cap", 101]], "cpu_cap must be from 0 to 100"),
    ([["on_crash", "x"]], "on_crash must be one of"),
    ([["on_poweroff", []]], None),
    ([["pool_name", "other"]], "pool_name must be one of"),
    ([["image", ["hvm", ["kernel", "/k"]]]], "an HVM domain is not built yet"),
    ([["image", "x"]], "image must be"),
    ([["image", ["linux"]]], "Missing kernel image"),
    ([["image", ["linux", ["kernel", "k"]]]], "must be absolute"),
    ([["image", ["linux", ["kernel", "/k"], ["ramdisk", "r"]]]], "must be absolute"),
    ([["image", ["linux", ["kernel", "/k"], ["args", "a\nb"]]]], "control characters"),
    ([["image", ["linux", ["kernel", "/k"], ["args", "a" * 5000]]]], "too long"),
    ([["cpus", ["0", "1"]]], "names 2 vCPUs"),
    ([["cpus", "x"]], "is no CPU"),
    ([["cpus", [[["x"]]]]], "cpus must be"),
    ([["device", ["vfb"]]], "virtual framebuffers are not built yet"),
    ([["device", ["vbd", ["uname", "phy:x"]]]], "the name of the virtual disk is missing"),
    ([["device"]], "not built yet"),
    ([["device", "x"]], "not built yet"),
    ([["bootloader", "/x"]], "'bootloader' is not built yet"),
    ([["backend", ["blkif"]]], "'backend' is not built yet"),
    ([["tsc_mode", 2]], "'tsc_mode' is not built yet"),
    ([["on_xend_stop", "suspend"]], "on_xend_stop must be one of"),
]


@pytest.mark.parametrize(("items", "part"), REFUSED, ids=range(len(REFUSED)))
def test_refused(items: list[Any], part: str | None) -> None:
    if part is None:
        assert config(*items).on_poweroff == "destroy"
        return
    with pytest.raises(XendError, match=part):
        config(*items)


@pytest.mark.parametrize("what", [None, "vm", [], ["domain_of_mine"], {}, 5, [["vm"]]])
def test_what_is_no_configuration(what: Any) -> None:
    with pytest.raises(XendError):
        DomainConfig.from_sxp(what)


configs = st.builds(
    DomainConfig,
    name=st.text("abzAZ09_-.:+", min_size=1, max_size=10),
    uuid=st.uuids(),
    image=st.builds(
        Image,
        kernel=st.text("ab c'\"\\(é", max_size=9).map(lambda text: "/" + text),
        ramdisk=st.sampled_from(["", "/r"]),
        args=st.text("ab c'\"\\(#é=", max_size=9),
        root=st.text("ab /", max_size=5),
        ip=st.text("1.:", max_size=5),
        kind=st.sampled_from(["linux", "generic"]),
    ),
    memory=st.integers(1, 1000),
    maxmem=st.integers(1000, 2000),
    vcpus=st.just(3),
    vcpu_avail=st.integers(1, 7),
    cpus=st.lists(st.sets(st.integers(0, 8)).map(lambda cpus: tuple(sorted(cpus))), max_size=3).map(tuple),
    cpu_weight=st.integers(1, 65535),
    cpu_cap=st.integers(0, 300),
    on_poweroff=st.sampled_from(["destroy", "preserve"]),
    on_crash=st.sampled_from(["coredump-restart", "rename-restart"]),
    on_xend_start=st.sampled_from(["ignore", "start"]),
    description=st.text("ab ()'", max_size=9),
    extra=st.sampled_from([(), (("localtime", "1"),)]),
)


@given(configs)
def test_configurations_survive_being_text(made: DomainConfig) -> None:
    # Trailing empty sets of CPUs mean the same as none.
    made = made.changed(cpus=made.cpus if any(made.cpus) else ())
    (read,) = sxp.parse(sxp.to_string(made.to_sxp()))
    assert DomainConfig.from_sxp(read) == made


@given(configs, st.integers(1, 500))
def test_configurations_survive_xenstore(made: DomainConfig, domid: int) -> None:
    made = made.changed(cpus=made.cpus if any(made.cpus) else (), extra=())
    record = Record(made, domid=domid, start_time=1.5)
    base = layout.vm_path(made)
    values = {node.path.removeprefix(f"{base}/"): node.value for node in layout.vm_nodes(record)}
    assert DomainConfig.from_sxp(layout.config_from_vm(values)) == made


def test_cpu_sets() -> None:
    assert parse_cpus("0-3, ^2,7") == (0, 1, 3, 7)
    assert parse_cpus("") == ()
    for text in ("x", "1-", "-1", "3-1", "4096", "^"):
        with pytest.raises(XendError):
            parse_cpus(text)


# ---- what a guest finds in xenstore

RECORD = Record(
    config(["memory", 64], ["maxmem", 96], ["vcpus", 2], ["vcpu_avail", 1], ["description", "d"]),
    domid=7, start_time=5.0, store_mfn=101, store_port=1, console_mfn=102, console_port=2,
)  # fmt: skip


def test_domain_nodes() -> None:
    written = [*layout.domain_nodes(RECORD, "/run/7.sock"), *layout.ring_nodes(RECORD)]
    nodes = {node.path: node for node in written}
    base = "/local/domain/7"
    values = {path.removeprefix(f"{base}/"): node.value for path, node in nodes.items() if node.value}
    assert values == {
        "vm": f"/vm/{U}",
        "name": "deb",
        "domid": "7",
        "description": "d",
        "memory/target": "65536",
        "memory/static-max": "98304",
        "control/platform-feature-multiprocessor-suspend": "1",
        "control/platform-feature-xs_reset_watches": "1",
        "console/type": "xenconsoled",
        "console/limit": "1048576",
        "console/tty": "/run/7.sock",
        "console/ring-ref": "102",
        "console/port": "2",
        "store/ring-ref": "101",
        "store/port": "1",
        "cpu/0/availability": "online",
        "cpu/1/availability": "offline",
    }
    for path in (base, f"{base}/memory", f"{base}/control", f"{base}/device", f"{base}/console"):
        assert nodes[path].permissions == ("n0", "r7"), path
    for name in ("control/shutdown", "control/sysrq", "data", "error", "control/feature-poweroff"):
        assert nodes[f"{base}/{name}"].permissions == ("n7",), name
    order = list(nodes)
    for path in order:
        parent = path.rpartition("/")[0]
        assert parent not in nodes or order.index(parent) < order.index(path)


def test_vm_nodes_are_dom0s() -> None:
    nodes = {node.path.removeprefix(f"/vm/{U}"): node for node in layout.vm_nodes(RECORD)}
    assert nodes[""].permissions == ("n0",)
    readable = {name for name, node in nodes.items() if node.permissions and "r7" in node.permissions}
    assert readable == {"/uuid", "/name"}
    assert nodes["/image/kernel"].value == "/k"


# ---- what clients get

INFO = replace(blank_info(7, U, 1), paused=False, blocked=True, tot_pages=65 * 256, nr_online_vcpus=1)


def test_domain_sxp() -> None:
    found = describe.domain_sxp(RECORD, INFO)
    expected = {
        "domid": 7, "name": "deb", "uuid": str(U), "vcpus": 2, "online_vcpus": 1, "memory": 65, "maxmem": 96,
        "state": "-b----", "status": 2, "cpu_time": 1.5, "start_time": 5.0, "store_mfn": 101,
        "console_mfn": 102, "cpus": [[], []], "on_crash": "restart", "pool_name": "Pool-0",
    }  # fmt: skip
    assert {key: child_value(found, key) for key in expected} == expected
    assert child_value(found, "vcpu_avail") is None
    assert child_value(describe.domain_sxp(RECORD, INFO, full=True), "memory_static_max") == str(96 << 20)


def test_halted_domain_sxp() -> None:
    found = describe.domain_sxp(Record(RECORD.config), None)
    for key in ("domid", "state", "cpu_time", "online_vcpus", "start_time", "store_mfn"):
        assert sxp.child(found, key) is None
    assert (child_value(found, "status"), child_value(found, "memory")) == (0, 64)


@pytest.mark.parametrize(
    ("fields", "letters", "status"),
    [
        ({"running": True, "blocked": False}, "r-----", 2),
        ({}, "-b----", 2),
        ({"paused": True}, "-bp---", 1),
        ({"shutdown": True, "shutdown_reason": 0}, "-b-s--", 4),
        ({"shutdown": True, "shutdown_reason": 3}, "-b--c-", 5),
        ({"dying": True}, "-b---d", 2),
    ],
)
def test_states(fields: dict[str, Any], letters: str, status: int) -> None:
    info = replace(INFO, **fields)
    assert hypervisor.state_letters(info) == letters
    assert describe.status(info) == status
    assert describe.status(None) == 0


def test_strangers() -> None:
    dom0 = describe.stranger_sxp(Stranger(replace(INFO, domid=0)))  # type: ignore[arg-type]
    assert [child_value(dom0, key) for key in ("name", "state", "memory")] == ["Domain-0", "r-----", 65]
    other = describe.stranger_sxp(Stranger(INFO))
    assert [child_value(other, key) for key in ("name", "state", "domid")] == ["(unknown-7)", "-b----", 7]


def test_vcpus() -> None:
    vcpu = describe.vcpu_sxp(1, VcpuInfo(True, False, True, 2_000_000_000, 3), frozenset({3, 1}))
    assert vcpu == [
        "vcpu", ["number", 1], ["online", 1], ["blocked", 0], ["running", 1], ["cpu_time", 2.0], ["cpu", 3],
        ["cpumap", [1, 3]],
    ]  # fmt: skip
    assert child_value(describe.halted_vcpu_sxp(0, ()), "cpumap") == list(range(64))
    assert child_value(describe.halted_vcpu_sxp(0, (2,)), "cpumap") == [2]
