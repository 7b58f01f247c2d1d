"""Disks and network interfaces: as users write them (xm's forms and xl's), as xend and xenstore have them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolstack import devices, sxp
from toolstack.devices import DeviceError
from toolstack.xend.devices import config as device_config
from toolstack.xend.devices.config import Devices
from toolstack.xend.devices.controller import Owner, device_nodes
from toolstack.xend.devices.vbd import Vbd
from toolstack.xend.devices.vif import Vif
from toolstack.xend.errors import XendError
from toolstack.xm import devices as xm_devices

U = UUID(int=7)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("xvda", 51712), ("xvda1", 51713), ("xvda15", 51727), ("xvdb", 51728), ("xvdp", 51952),
        ("xvdp15", 51967), ("/dev/xvda", 51712), ("xvda16", (1 << 28) + 16), ("xvdq", (1 << 28) + (16 << 8)),
        ("xvdq3", (1 << 28) + (16 << 8) + 3), ("xvdaa", (1 << 28) + (26 << 8)),
        ("xvdba", (1 << 28) + (52 << 8)), ("hda", 768), ("hda1", 769), ("hdb", 832), ("hdc", 5632),
        ("hdd63", 5759), ("hde", 33 << 8), ("hdt", (91 << 8) + 64), ("sda", 2048), ("sda1", 2049),
        ("sdp", 2288), ("sdq", 65 << 8), ("sdiv15", (135 << 8) + 255), ("51712", 51712), ("0xca00", 51712),
        ("0XCA00", 51712),
    ],
)  # fmt: skip
def test_numbers(name: str, number: int) -> None:
    assert devices.device_number(name) == number


@pytest.mark.parametrize(
    "name",
    ["", "xvd", "xvda256", "xvda01", "xvd1", "xvdA", "sda16", "sdiw", "hda64", "hdu", "fd0", "xvda-1", "-1",
     "0x", "0xzz", "99999999999", "xvda 1", "xvdaé", "x", "xvdaaaaaaaaaa", "１", "xvda１"],
)  # fmt: skip
def test_what_is_no_disk(name: str) -> None:
    with pytest.raises(DeviceError):
        devices.device_number(name)


@given(st.text(max_size=12) | st.from_regex(r"(xvd|sd|hd)[a-z]{1,4}[0-9]{0,3}", fullmatch=True))
def test_any_name_has_one_number_or_none(name: str) -> None:
    try:
        number = devices.device_number(name)
    except DeviceError:
        return
    assert 0 <= number < 1 << 29


def test_names_of_a_kind_have_different_numbers() -> None:
    letters = [chr(ord("a") + index) for index in range(26)]
    disks = [*letters, *(f"a{letter}" for letter in letters)]
    names = [f"xvd{disk}{part or ''}" for disk in disks for part in range(256)]
    assert len({devices.device_number(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("uname", "place"),
    [
        ("", ("", "")), ("phy:vg0/root", ("phy", "/dev/vg0/root")), ("phy:/dev/sda", ("phy", "/dev/sda")),
        ("file:/a b.img", ("file", "/a b.img")), ("tap:aio:/i", ("tap", "aio:/i")),
        ("tap:tapdisk:qcow2:/i", ("tap", "qcow2:/i")), ("tap2:vhd:/i", ("tap", "vhd:/i")),
        ("tap:qcow2:nbd://h/x", ("tap", "qcow2:nbd://h/x")), ("nbd:h:10809", ("nbd", "nbd:h:10809")),
        ("nbd+unix:///x?socket=/s", ("nbd", "nbd+unix:///x?socket=/s")),
        ("rbd:pool/image", ("rbd", "rbd:pool/image")), ("iscsi://h/iqn/0", ("iscsi", "iscsi://h/iqn/0")),
    ],
)  # fmt: skip
def test_images(uname: str, place: tuple[str, str]) -> None:
    assert devices.parse_uname(uname) == place


@pytest.mark.parametrize(
    ("uname", "part"),
    [
        ("/disk.img", "write file:/disk.img"), ("file:", "no path"), ("file:disk.img", "must be absolute"),
        ("tap:/i", "no image format"), ("tap:zip:/i", "no image format"), ("tap:aio:i", "must be absolute"),
        ("nbd:", "no address"), ("drbd:x", "'drbd:' is not understood"), ("file:/a\nb", "control characters"),
        ("file:/" + "a" * 2000, "too long"),
    ],
)  # fmt: skip
def test_what_is_no_image(uname: str, part: str) -> None:
    with pytest.raises(DeviceError, match=part):
        devices.parse_uname(uname)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10Mb/s@20ms", (25_000, 20_000)), ("10Mb/s", (62_500, 50_000)), ("500KB/s", (25_000, 50_000)),
        ("1GB/s@1s", (1000**3, 1_000_000)), ("8000b/s@1s", (1000, 1_000_000)),
        ("1MB/s@250us", (250, 250)),
    ],
)  # fmt: skip
def test_rates(text: str, rate: tuple[int, int]) -> None:
    assert devices.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "10", "10Mb", "10M/s", "Mb/s", "10Tb/s", "10Mb/s@", "10Mb/s@5",
                                  "10Mb/s@0ms", "1b/s", "900GB/s@60s", "-1Mb/s", "10Mb/s@9999s"])  # fmt: skip
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(DeviceError):
        devices.parse_rate(text)


def test_macs() -> None:
    assert devices.parse_mac("00-16-3E-0A-0b-0C") == "00:16:3e:0a:0b:0c"
    for wrong in ("", "00:16:3e", "00:16:3e:00:00:0", "00:16:3e:00:00:zz", "01:00:5e:00:00:01",
                  "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"):  # fmt: skip
        with pytest.raises(DeviceError):
            devices.parse_mac(wrong)


# ---- xm's words


DISKS: list[tuple[str, list[Any]]] = [
    ("phy:vg0/root,xvda1,w", ["vbd", ["uname", "phy:vg0/root"], ["dev", "xvda1"], ["mode", "w"]]),
    ("file:/img,hda,r", ["vbd", ["uname", "file:/img"], ["dev", "hda"], ["mode", "r"]]),
    (" file:/img , ioemu:hda , w! ", ["vbd", ["uname", "file:/img"], ["dev", "hda"], ["mode", "w!"]]),
    ("file:img,xvda,w", ["vbd", ["uname", "file:/here/img"], ["dev", "xvda"], ["mode", "w"]]),
    ("tap:aio:img,xvda,w", ["tap", ["uname", "tap:aio:/here/img"], ["dev", "xvda"], ["mode", "w"]]),
    ("tap2:qcow2:/i,xvda,w", ["tap2", ["uname", "tap2:qcow2:/i"], ["dev", "xvda"], ["mode", "w"]]),
    ("tap:tapdisk:aio:i,xvda,w",
     ["tap", ["uname", "tap:tapdisk:aio:/here/i"], ["dev", "xvda"], ["mode", "w"]]),
    (",hdc:cdrom,r", ["vbd", ["uname", ""], ["dev", "hdc:cdrom"], ["mode", "r"]]),
    ("file:/i,xvda:disk,w,0",
     ["vbd", ["uname", "file:/i"], ["dev", "xvda:disk"], ["mode", "w"], ["backend", "0"]]),
    ("file:/i,xvda,w,Domain-0,x86_64-abi", ["vbd", ["uname", "file:/i"], ["dev", "xvda"], ["mode", "w"],
                                            ["backend", "Domain-0"], ["protocol", "x86_64-abi"]]),
    ("format=qcow2,vdev=xvda,access=rw,target=/a,b=c",
     ["tap", ["uname", "tap:qcow2:/a,b=c"], ["dev", "xvda:disk"], ["mode", "w"]]),
    ("vdev=xvda, target=/a", ["vbd", ["uname", "file:/a"], ["dev", "xvda:disk"], ["mode", "w"]]),
    ("vdev=xvda,format=raw,access=ro,target=/dev/vg/x",
     ["vbd", ["uname", "phy:/dev/vg/x"], ["dev", "xvda:disk"], ["mode", "r"]]),
    ("/i,raw,xvda,rw", ["vbd", ["uname", "file:/i"], ["dev", "xvda:disk"], ["mode", "w"]]),
    ("/i,,xvda,w,direct-io-safe,no-discard",
     ["vbd", ["uname", "file:/i"], ["dev", "xvda:disk"], ["mode", "w"], ["direct-io-safe", 1],
      ["discard-enable", 0]]),
    ("/i.iso,,hdc:cdrom,r", ["vbd", ["uname", "file:/i.iso"], ["dev", "hdc:cdrom"], ["mode", "r"]]),
    ("format=empty,vdev=hdc,devtype=cdrom", ["vbd", ["uname", ""], ["dev", "hdc:cdrom"], ["mode", "r"]]),
    ("vdev=xvda,target=nbd:h:1", ["vbd", ["uname", "nbd:h:1"], ["dev", "xvda:disk"], ["mode", "w"]]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), DISKS, ids=[text for text, _ in DISKS])
def test_disk_entries(text: str, expected: list[Any]) -> None:
    assert xm_devices.disk(text, "/here") == expected
    assert isinstance(device_config.parse(expected), Vbd)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "it must be UNAME,VDEV,MODE"), ("file:/i", "it must be"), ("file:/i,xvda", "it must be"),
        ("file:/i,xvda,w,0,x86_64-abi,y", "it must be"), ("file:/i,,w", "virtual disk is missing"),
        ("file:/i,xvda:tape,w", "'tape' is no type"), (",xvda,w", "only a cdrom"),
        ("file:/i,xvda,w,driver", r"backends in other domains \(driver\)"),
        ("vdev=xvda,script=block-x,target=y", "block scripts"), ("vdev=xvda,target=", "only a cdrom"),
        ("vdev=xvda,colour=red,target=/x", "'colour=red' is not understood"),
        ("vdev=xvda,format=zip,target=/x", "no image format"),
        ("vdev=xvda,devtype=tape,target=/x", "'tape' is no type"),
    ],
)  # fmt: skip
def test_what_is_no_disk_entry(text: str, part: str) -> None:
    with pytest.raises(DeviceError, match=part) as caught:
        xm_devices.disk(text, "/here")
    assert str(caught.value).startswith(f"Invalid disk specifier '{text}': ")


@given(st.text("phyfiletap:,=/ xvdaw!r-target\n0é'", max_size=40))
def test_any_text_is_a_disk_or_an_error(text: str) -> None:
    """And what xm takes for a disk, xend does too."""
    try:
        made = xm_devices.disk(text, "/here")
    except DeviceError:
        return
    device_config.parse(made)


@given(st.text("macbridgetype=,:0123456789 -\n", max_size=40))
def test_any_text_is_a_vif_or_an_error(text: str) -> None:
    try:
        made = xm_devices.vif(text)
    except DeviceError:
        return
    try:
        device_config.parse(made)
    except XendError:  # what only xend can tell, such as an MTU out of range
        pass


def test_vif_entries() -> None:
    assert xm_devices.vif("") == ["vif"]
    assert xm_devices.vif("mac=00:16:3E:00:00:01, bridge = xenbr0.7:8:9 ,rate=1MB/s,script=x") == [
        "vif", ["mac", "00:16:3E:00:00:01"], ["bridge", "xenbr0.7:8:9"], ["rate", "1MB/s"], ["script", "x"],
    ]  # fmt: skip
    for text, part in (
        ("x=1", "Invalid vif option: x"), ("mac=1,mac=2", "'1' is no MAC"), ("bridge=a b", "no name of a"),
        ("ip=1,ip=2", "ip is given twice"), ("accel=1", "'accel' is not built yet"), ("backend=net", "other"),
    ):  # fmt: skip
        with pytest.raises(DeviceError, match=part):
            xm_devices.vif(text)


# ---- xend's


def made(*expressions: list[Any]) -> Devices:
    return device_config.collect(map(device_config.parse, expressions))


def test_devices_of_a_domain() -> None:
    found = made(
        ["vbd", ["uname", "file:/a"], ["dev", "xvda"], ["mode", "w"]],
        ["tap", ["uname", "tap:qcow2:/b"], ["dev", "xvdb"]],
        ["vif", ["devid", 1]],
        ["vif"],
        ["vif", ["mac", "00:16:3E:00:00:09"]],
    )
    assert [device_config.key(device) for device in found] == [
        ("vbd", 51712), ("vbd", 51728), ("vif", 1), ("vif", 0), ("vif", 2),
    ]  # fmt: skip
    assert [disk.bootable for disk in found if isinstance(disk, Vbd)] == [True, False]
    found = device_config.with_macs(found, ())
    macs = [card.mac for card in found if isinstance(card, Vif)]
    assert len(set(macs)) == 3 and macs[2] == "00:16:3e:00:00:09"
    assert all(mac.startswith("00:16:3e:") and int(mac[9:11], 16) < 128 for mac in macs)
    (text,) = sxp.parse(sxp.to_string([device.to_sxp() for device in found]))
    assert tuple(map(device_config.parse, text)) == found
    for name in ("xvdb", "51728", "xvdb:disk", "0xca10"):
        assert device_config.find(found, "vbd", name) is found[1]
    assert device_config.find(found, "vif", "00:16:3E:00:00:09") is found[4]
    assert device_config.find(found, "vif", "0") is found[3]
    for kind, name in (("vbd", "xvdc"), ("vif", "9"), ("vif", ""), ("vbd", "nonsense"), ("vif", "-1")):
        assert device_config.find(found, kind, name) is None


@pytest.mark.parametrize(
    ("expressions", "part"),
    [
        ([["vbd", ["uname", "file:/a"], ["dev", "xvda"]]] * 2, "Device xvda is already connected"),
        ([["vif", ["devid", 0]]] * 2, "Device 0 is already connected"),
        ([["vif"]] * 257, "no room for another"),
        ([["vbd", ["dev", "xvda"]]], "xvda has no image"),
        ([["vbd", ["uname", "file:/a"]]], "name of the virtual disk is missing"),
        ([["vbd", ["uname", ["x"]], ["dev", "xvda"]]], "uname must be a string"),
        ([["vbd", ["uname", "file:/a\x1b"], ["dev", "xvda"]]], "control characters"),
        ([["vbd", ["uname", "file:/a"], ["dev", "xvda"], ["protocol", "x86_32-abi"]]], "is not spoken"),
        ([["vbd", ["uname", "file:/a"], ["dev", "xvda"], ["backend", "3"]]], "another domain is not built"),
        ([["vbd", ["uname", "file:/a"], ["dev", "xvda"], ["uuid", "x"]]], "uuid must be"),
        ([["vif", ["mtu", 10]]], "mtu must be from 68"),
        ([["vif", ["vifname", "a/b"]]], "no name of an interface"),
        ([["vif", ["type", "ioemu"]]], "emulated network card"),
        ([["vif", ["policy", "x"]]], "'policy' of a network interface is not built"),
        ([["vif", ["devid", "x"]]], "devid must be"),
        ([["vkbd"]], "virtual framebuffers are not built yet"),
        ([["pump"]], "devices of class pump are not built yet"),
        ([[]], "not built yet"),
        (["x"], "not built yet"),
    ],
)
def test_refused_devices(expressions: list[Any], part: str) -> None:
    with pytest.raises(XendError, match=part):
        made(*expressions)


def test_entries_in_xenstore() -> None:
    disk = Vbd("xvda", "tap:qcow2:/i", U, bootable=True, direct_io_safe=True, discard=False)
    card = Vif(U, 2, "00:16:3e:00:00:01", "xenbr0", rate="10Mb/s@20ms", ip="10.0.0.2")
    nodes = list(device_nodes(Owner(5, "deb", "/vm/x"), [disk, card]))
    found = {node.path.removeprefix("/local/domain/"): node.value for node in nodes if node.value}
    assert found == {
        "0/backend/vbd/5/51712/domain": "deb",
        "0/backend/vbd/5/51712/frontend": "/local/domain/5/device/vbd/51712",
        "0/backend/vbd/5/51712/frontend-id": "5",
        "0/backend/vbd/5/51712/online": "1",
        "0/backend/vbd/5/51712/state": "1",
        "0/backend/vbd/5/51712/dev": "xvda",
        "0/backend/vbd/5/51712/mode": "w",
        "0/backend/vbd/5/51712/device-type": "disk",
        "0/backend/vbd/5/51712/removable": "0",
        "0/backend/vbd/5/51712/bootable": "1",
        "0/backend/vbd/5/51712/uuid": str(U),
        "0/backend/vbd/5/51712/direct-io-safe": "1",
        "0/backend/vbd/5/51712/discard-enable": "0",
        "0/backend/vbd/5/51712/type": "tap",
        "0/backend/vbd/5/51712/params": "qcow2:/i",
        "5/device/vbd/51712/backend": "/local/domain/0/backend/vbd/5/51712",
        "5/device/vbd/51712/backend-id": "0",
        "5/device/vbd/51712/virtual-device": "51712",
        "5/device/vbd/51712/device-type": "disk",
        "5/device/vbd/51712/state": "1",
        "0/backend/vif/5/2/domain": "deb",
        "0/backend/vif/5/2/frontend": "/local/domain/5/device/vif/2",
        "0/backend/vif/5/2/frontend-id": "5",
        "0/backend/vif/5/2/online": "1",
        "0/backend/vif/5/2/state": "1",
        "0/backend/vif/5/2/handle": "2",
        "0/backend/vif/5/2/mac": "00:16:3e:00:00:01",
        "0/backend/vif/5/2/bridge": "xenbr0",
        "0/backend/vif/5/2/type": "vif",
        "0/backend/vif/5/2/mtu": "1500",
        "0/backend/vif/5/2/uuid": str(U),
        "0/backend/vif/5/2/ip": "10.0.0.2",
        "0/backend/vif/5/2/vifname": "vif5.2",
        "0/backend/vif/5/2/rate": "25000,20000",
        "5/device/vif/2/backend": "/local/domain/0/backend/vif/5/2",
        "5/device/vif/2/backend-id": "0",
        "5/device/vif/2/handle": "2",
        "5/device/vif/2/mac": "00:16:3e:00:00:01",
        "5/device/vif/2/mtu": "1500",
        "5/device/vif/2/state": "1",
    }
    permissions = {node.path.removeprefix("/local/domain/"): node.permissions for node in nodes}
    assert permissions["0/backend/vbd/5/51712"] == permissions["5/device/vbd"] == ("n0", "r5")
    assert permissions["5/device/vbd/51712"] == ("n5", "r0")
