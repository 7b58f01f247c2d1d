"""Disks of real guests: what is written is there, whatever is killed; features, formats, locks."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from toolstack.lab import images
from toolstack.lab.guest import Guest
from toolstack.lab.host import Host
from toolstack.lab.images import Kernel

pytestmark = pytest.mark.timeout(300)

Boot = Callable[..., Guest]
HAMMER = Path(__file__).resolve().parent / "programs" / "hammer.c"
MIB = 1 << 20
KILLS = 4
"""In a row, before the supervisor takes its time."""
EXTRA = "console=hvc0 loglevel=4"


@pytest.fixture(scope="module")
def hammer_initramfs(debian_kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual initramfs with /bin/hammer."""
    folder = tmp_path_factory.mktemp("hammer")
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-o", folder / "hammer", HAMMER], check=True)
    files = {"bin/hammer": (folder / "hammer").read_bytes()}
    return images.initial_ramdisk(debian_kernel, files=files, output=folder / "initrd")


def image(folder: Path, image_format: str = "raw", name: str = "disk") -> Path:
    path = folder / f"{name}.{image_format}"
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, str(path), "64M"], check=True)
    return path


def closed(host: Host, guest: Guest) -> None:
    """Powers it off and waits until its disks are free."""
    domid = guest.domid
    guest.shutdown()
    deadline = time.monotonic() + 20
    while left := nodes(host, domid, ""):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def nodes(host: Host, domid: int, devid: str = "/51712") -> dict[str, str]:
    """The backend's nodes, those of a folder as "statistics/rd_req"."""
    environment = {**os.environ, "XENSTORED_PATH": str(host.paths.xenstored)}
    path = f"/local/domain/0/backend/vbd/{domid}{devid}"
    listed = subprocess.run(["xenstore-ls", "-f", path], env=environment, capture_output=True, text=True)
    return dict(re.findall(rf'^{path}/(\S+) = "(.*)"$', listed.stdout, re.MULTILINE))


def test_no_write_is_lost_or_torn_when_blkback_is_killed(
    boot: Boot, host: Host, debian_kernel: Kernel, hammer_initramfs: Path, tmp_path: Path
) -> None:
    """O_DIRECT, through the page cache, a format with tables in memory; I/O is in flight all the time."""
    direct, cached, qcow2 = (image(tmp_path, *what) for what in (("raw",), ("raw", "cached"), ("qcow2",)))
    disks = [f"file:{direct},xvda,w", f"tap:raw:{cached},xvdb,w", f"tap:qcow2:{qcow2},xvdc,w"]
    guest = boot(kernel=debian_kernel.path, ramdisk=hammer_initramfs, extra=EXTRA, disks=disks)
    guest.console.expect("# ", timeout=60)
    guest.console.send_line("for d in a b c; do hammer /dev/xvd$d 6 4 & done; wait")
    for _ in range(KILLS):
        time.sleep(random.uniform(0.1, 0.8))
        host.kill_daemon("blkback")
    said = ""
    for _ in disks:
        found = guest.console.expect(re.compile("hammer: all verified|hammer: failed"), timeout=90)
        said += found.before + found.text
    assert said.count("hammer: all verified") == 3, said
    assert sum(int(count) for count in re.findall(r"verified (\d+) writes", said)) > 100, said
    assert nodes(host, guest.domid)["state"] == "4" and "error" not in nodes(host, guest.domid)
    closed(host, guest)
    subprocess.run(["qemu-img", "check", "-q", str(qcow2)], check=True)


@pytest.mark.parametrize(("image_format", "kind"), [("vmdk", "vmdk"), ("vpc", "vhd"), ("vdi", "vdi")])
def test_formats(boot_debian: Boot, host: Host, tmp_path: Path, image_format: str, kind: str) -> None:
    path = image(tmp_path, image_format)
    guest = boot_debian(disks=[f"tap:{kind}:{path},xvda,w"])
    guest.run(
        "seq 1 20000 > /tmp/a; dd if=/tmp/a of=/dev/xvda bs=4k seek=5 conv=fsync 2>/dev/null", check=True
    )
    closed(host, guest)
    raw = tmp_path / "converted"
    subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", str(path), str(raw)], check=True)
    assert raw.read_bytes()[5 * 4096 :].startswith(b"1\n2\n3\n")


def test_an_nbd_server(boot_debian: Boot, host: Host, tmp_path: Path) -> None:
    path, socket = image(tmp_path), tmp_path / "s"
    server = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", str(socket), str(path)])
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        guest = boot_debian(disks=[f"nbd+unix:///?socket={socket},xvda,w"])
        guest.run("echo over the net | dd of=/dev/xvda bs=512 conv=sync,fsync 2>/dev/null", check=True)
        closed(host, guest)
    finally:
        server.terminate()
        server.wait(10)
    assert path.read_bytes().startswith(b"over the net")


def storage_daemon(path: Path) -> int:
    found = subprocess.run(
        ["pgrep", "-f", f"^[^ ]*qemu-storage-daemon.*{path}"], capture_output=True, text=True
    )
    (pid,) = found.stdout.split()
    return int(pid)


def test_a_killed_storage_daemon(boot_debian: Boot, host: Host, tmp_path: Path) -> None:
    """Another takes over, and requests under way are sent again."""
    path = image(tmp_path, "qcow2")
    guest = boot_debian(disks=[f"tap:qcow2:{path},xvda,w"])
    guest.run(
        "dd if=/dev/urandom of=/tmp/r bs=1M count=8; dd if=/tmp/r of=/dev/xvda bs=1M conv=fsync", check=True
    )
    cmp = "echo 3 > /proc/sys/vm/drop_caches; cmp -n 8388608 /tmp/r /dev/xvda || exit 1; n=$((n+1))"
    reads = f"n=0; while [ $n -lt 6 ]; do {cmp}; done; echo same > /tmp/same"
    guest.run(f"( {reads} ) > /tmp/out 2>&1 &", check=True)
    for _ in range(3):
        time.sleep(0.3)
        os.kill(storage_daemon(path), signal.SIGKILL)
        time.sleep(0.5)
    assert (
        guest.run("wait; until [ -e /tmp/same ]; do usleep 50000; done; cat /tmp/same", timeout=30).output
        == "same\n"
    )
    assert "error" not in nodes(host, guest.domid)


def test_what_a_stock_frontend_uses(boot_debian: Boot, host: Host, tmp_path: Path) -> None:
    path = image(tmp_path)
    guest = boot_debian(disks=[path], vcpus=2)
    assert guest.run("ls /sys/block/xvda/mq | wc -l").output.strip() == "2"
    said = guest.run("dmesg | grep 'blkfront: xvda'").output
    for feature in (
        "flush diskcache: enabled",
        "persistent grants: enabled",
        "indirect descriptors: enabled",
    ):
        assert feature in said
    guest.run("dd if=/dev/zero of=/dev/xvda bs=1M count=16 conv=fsync 2>/dev/null", check=True)
    used = path.stat().st_blocks
    guest.run("blkdiscard -o 4194304 -l 8388608 /dev/xvda", check=True)
    assert used * 512 - path.stat().st_blocks * 512 == 8 * MIB
    deadline = time.monotonic() + 15
    wanted = {"wr_sect": 16 * MIB // 512, "f_req": 1, "ds_req": 1}
    while any(
        int(nodes(host, guest.domid).get(f"statistics/{name}", "0")) < count for name, count in wanted.items()
    ):
        assert time.monotonic() < deadline, nodes(host, guest.domid)
        time.sleep(0.2)


def test_who_else_has_the_image(boot_debian: Boot, host: Host, tmp_path: Path) -> None:
    path = image(tmp_path)
    first, second = boot_debian("first", disks=[path]), boot_debian("second")
    done = host.xm("block-attach", "second", f"file:{path}", "xvdb", "w", check=False)
    assert done.returncode != 0
    assert str(path) in done.stderr and f"domain {first.domid} has it as xvda" in done.stderr
    assert host.xm("block-attach", "second", f"file:{path}", "xvdb", "w!").returncode == 0
    second.destroy()
    host.kill_daemon("blkback")  # its successor has the lock again
    resize = ["qemu-img", "resize", "-q", "-f", "raw", "--shrink", str(path), "32M"]
    deadline = time.monotonic() + 10
    while subprocess.run(resize, capture_output=True).returncode == 0:
        assert time.monotonic() < deadline, "nobody has the lock"
        time.sleep(0.05)
    assert first.run("dd if=/dev/xvda of=/dev/null bs=1M count=1").status == 0
    first.destroy()
    assert subprocess.run(resize, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("disk", "said"),
    [
        ("file:{tmp}/absent", "absent: No such file"),
        ("file:{tmp}", "neither a file nor a block device"),
        ("tap:qcow2:{tmp}/rubbish", "not in qcow2 format"),
        ("nbd+unix:///?socket={tmp}/nobody", "nobody"),
    ],
)
def test_disks_that_cannot_be(boot_debian: Boot, host: Host, tmp_path: Path, disk: str, said: str) -> None:
    (tmp_path / "rubbish").write_bytes(b"rubbish" * 1000)
    guest = boot_debian()
    done = host.xm("block-attach", guest.name, disk.format(tmp=tmp_path), "xvda", "w", check=False)
    assert done.returncode != 0
    assert said.lower() in done.stderr.lower()
