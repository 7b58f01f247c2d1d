"""What xend and a frontend ask of blkback, locks on images, and QEMU's block nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.blkback import locks
from backends.blkback.config import DiskConfig, FrontendConfig
from backends.blkback.qsd import Place, blockdevs, command
from backends.bus import DeviceError


def disk(kind: str, params: str, **more: str) -> DiskConfig:
    return DiskConfig.from_nodes({"type": kind, "params": params, "mode": "w"} | more)


@pytest.mark.parametrize(
    ("kind", "params", "image_format", "target", "remote", "direct"),
    [
        ("phy", "/dev/vg/lv", "raw", "/dev/vg/lv", False, True),
        ("file", "/images/a b.img", "raw", "/images/a b.img", False, True),
        ("tap", "aio:/a.img", "raw", "/a.img", False, True),
        ("tap", "raw:/a.img", "raw", "/a.img", False, False),
        ("tap", "qcow2:/a.qcow2", "qcow2", "/a.qcow2", False, False),
        ("tap", "vhd:/a.vhd", "vpc", "/a.vhd", False, False),
        ("tap", "vmdk:/a:b.vmdk", "vmdk", "/a:b.vmdk", False, False),
        ("nbd", "nbd:host:10809", "raw", "nbd:host:10809", True, False),
        ("rbd", "rbd:pool/image", "raw", "rbd:pool/image", True, False),
    ],
)
def test_targets(kind: str, params: str, image_format: str, target: str, remote: bool, direct: bool) -> None:
    found = disk(kind, params)
    assert (found.format, found.target, found.remote, found.direct) == (image_format, target, remote, direct)


def test_modes_and_options() -> None:
    assert disk("file", "/a", mode="r").read_only
    assert disk("file", "/a").exclusive and not disk("file", "/a", mode="w!").exclusive
    assert disk("tap", "raw:/a", **{"direct-io-safe": "1"}).direct
    assert not disk("file", "/a", **{"discard-enable": "0"}).discard
    cdrom = disk("file", "/a.iso", **{"device-type": "cdrom"})
    assert cdrom.cdrom and cdrom.read_only
    assert disk("", "", **{"device-type": "cdrom"}).target == ""


@pytest.mark.parametrize(
    ("kind", "params", "said"),
    [("file", "", "no disk"), ("drbd", "x", "type"), ("tap", "zip:/a", "format"), ("file", "/a", "mode")],
)
def test_what_cannot_be(kind: str, params: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        disk(kind, params, mode="x" if said == "mode" else "w")


def test_frontends() -> None:
    one = FrontendConfig.from_nodes({"ring-ref": "8", "event-channel": "5", "feature-persistent": "1"})
    assert one.persistent and one.protocol == 0 and one.queues[0].ring_refs == (8,)
    nodes = {"ring-page-order": "1", "ring-ref0": "8", "ring-ref1": "9", "event-channel": "5"}
    assert FrontendConfig.from_nodes(nodes).queues[0].ring_refs == (8, 9)
    many = {"multi-queue-num-queues": "2", "protocol": "x86_32-abi"}
    for index in range(2):
        many |= {f"queue-{index}/ring-ref": str(index), f"queue-{index}/event-channel": "3"}
    found = FrontendConfig.from_nodes(many)
    assert found.protocol == 1 and [queue.ring_refs for queue in found.queues] == [(0,), (1,)]


NAMES = ["ring-ref", "ring-ref0", "event-channel", "ring-page-order", "multi-queue-num-queues", "protocol",
         "queue-0/ring-ref", "queue-1/event-channel", "feature-persistent"]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(["0", "1", "4", "5", "-1", "", "x86_64-abi", "9" * 30, "\u0663"]), st.text(max_size=20)
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_nodes(nodes: dict[str, str]) -> None:
    """Any nodes give rings within the limits, or a DeviceError."""
    try:
        found = FrontendConfig.from_nodes(nodes)
    except DeviceError:
        return
    assert 1 <= len(found.queues) <= 4
    for queue in found.queues:
        assert len(queue.ring_refs) in (1, 2, 4, 8, 16)
        assert all(0 <= ref < 1 << 32 for ref in queue.ring_refs)


@pytest.mark.parametrize(
    ("url", "node"),
    [
        ("nbd:h:10809", {"server": {"type": "inet", "host": "h", "port": "10809"}, "export": ""}),
        ("nbd:unix:/s:exportname=e", {"server": {"type": "unix", "path": "/s"}, "export": "e"}),
        ("nbd://h/e", {"server": {"type": "inet", "host": "h", "port": "10809"}, "export": "e"}),
        ("nbd+unix:///e?socket=/s", {"server": {"type": "unix", "path": "/s"}, "export": "e"}),
        ("iscsi://h/iqn.x:y/1", {"portal": "h:3260", "target": "iqn.x:y", "lun": 1}),
        ("nfs://h/a/b", {"server": {"type": "inet", "host": "h"}, "path": "/a/b"}),
        ("rbd:p/i:id=me", {"pool": "p", "image": "i", "user": "me"}),
    ],
)
def test_addresses(url: str, node: dict[str, object]) -> None:
    source = blockdevs(disk("nbd", url))[0]
    assert {key: source[key] for key in node} == node


@pytest.mark.parametrize("url", ["nbd:", "nbd:h:x", "nbd+unix:///e", "iscsi:h", "nfs:", "rbd:p", "http://h"])
def test_no_addresses(url: str) -> None:
    with pytest.raises(DeviceError, match=r"address|there are"):
        blockdevs(disk("nbd", url))


def test_a_missing_qemu_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"qemu-storage-daemon.*not installed"):
        command(disk("tap", "qcow2:/a"), Place(tmp_path, tmp_path), lambda name: None)


# --- locks


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def take(path: Path, mode: str) -> int:
    fd = os.open(path, os.O_RDONLY if mode == "r" else os.O_RDWR)
    try:
        assert locks.lock_image(fd, read_only=mode == "r", exclusive=mode != "w!")
    except BaseException:
        os.close(fd)
        raise
    return fd


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [("w", "w", False), ("w", "r", False), ("r", "w", False), ("r", "r", True), ("w", "w!", True),
     ("w!", "w", False), ("r", "w!", True), ("w!", "w!", True)],
)  # fmt: skip
def test_who_may_share(image: Path, first: str, second: str, together: bool) -> None:
    one = take(image, first)
    try:
        if together:
            os.close(take(image, second))
        else:
            with pytest.raises(locks.ImageLocked):
                take(image, second)
    finally:
        os.close(one)
    os.close(take(image, "w"))


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-utils")
@pytest.mark.parametrize("mode", ["r", "w"])
def test_qemu_respects_them(image: Path, mode: str) -> None:
    def works(*words: str) -> bool:
        return subprocess.run([*words, str(image)], capture_output=True, text=True).returncode == 0

    write = ("qemu-io", "-f", "raw", "-c", "write 0 512")
    fd = take(image, mode)
    assert not works(*write)
    os.close(fd)
    assert works(*write)


def test_a_life_ends_with_the_last_descriptor(image: Path) -> None:
    byte = locks.life_byte("host/1/51712")
    first, second = os.open(image, os.O_RDONLY), os.open(image, os.O_RDONLY)
    copy = os.dup(first)
    assert locks.take_life(first, byte)
    os.close(first)
    assert not locks.take_life(second, byte)  # the same open file, as an I/O under way holds it
    os.close(copy)
    assert locks.take_life(second, byte)
    os.close(second)
