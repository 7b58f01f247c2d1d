"""Disks and network interfaces of real guests, through xm: with the domain, while it runs and works, and when
something is wrong with an image, a backend or xend.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from toolstack.lab.guest import Guest
from toolstack.lab.host import Host
from toolstack.xm.client import Fault

pytestmark = pytest.mark.timeout(300)

Boot = Callable[..., Guest]


def image(folder: Path, name: str = "disk.img", mebibytes: int = 8) -> Path:
    path = folder / name
    with path.open("wb") as file:
        file.truncate(mebibytes << 20)
    return path


def backends(host: Host) -> list[str]:
    """Every entry of a backend that has a value."""
    environment = {**os.environ, "XENSTORED_PATH": str(host.paths.xenstored)}
    done = subprocess.run(
        ["xenstore-ls", "-f", "/local/domain/0/backend"], env=environment, capture_output=True, text=True
    )
    return [line for line in done.stdout.splitlines() if not line.endswith('= ""')]


def wait_no_backends(host: Host) -> None:
    deadline = time.monotonic() + 20
    while left := backends(host):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def states(host: Host, command: str, name: str) -> dict[str, str]:
    """State by the first column of block-list or network-list."""
    lines = host.xm(command, name).stdout.splitlines()[1:]
    column = 4 if command == "network-list" else 3
    return {line.split()[0]: line.split()[column] for line in lines}


@contextmanager
def stopped(host: Host, daemon: str) -> Iterator[None]:
    """A daemon that does not answer."""
    pid = host.daemon(daemon).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_life_with_devices(boot_debian: Boot, host: Host, tmp_path: Path) -> None:
    disk = image(tmp_path)
    guest = boot_debian(
        "deb", disks=[disk, f"file:{image(tmp_path, 'ro.img')},xvdb,r"], vifs=["", "rate=10Mb/s"]
    )
    assert states(host, "block-list", "deb") == {"51712": "4", "51728": "4"}
    assert states(host, "network-list", "deb") == {"0": "4", "1": "4"}
    macs = guest.run("cat /sys/class/net/eth*/address", check=True).output.split()
    assert len(set(macs)) == 2 and all(mac.startswith("00:16:3e:") for mac in macs)
    long = " ".join(host.xm("list", "-l", "deb").stdout.replace("'", "").split())
    assert all(part in long for part in (f"(uname file:{disk}", f"(mac {macs[0]}", "(rate 10Mb/s"))
    guest.run("echo kept | dd of=/dev/xvda bs=512 conv=sync 2>/dev/null; sync", check=True)
    assert guest.run("echo x > /dev/xvdb").status != 0
    guest.reboot()
    guest.console.expect("# ", timeout=60)
    assert guest.run("cat /sys/class/net/eth*/address", check=True).output.split() == macs
    assert guest.run("head -c 4 /dev/xvda", check=True).output == "kept"
    assert states(host, "block-list", str(guest.domid)) == {"51712": "4", "51728": "4"}
    guest.shutdown()
    wait_no_backends(host)
    assert disk.read_bytes().startswith(b"kept\n")


def test_under_load(boot_debian: Boot, host: Host, tmp_path: Path) -> None:
    """One disk is written and read without a pause while others come and go beside it."""
    guest = boot_debian(disks=[image(tmp_path)])
    work = "while dd if=/dev/urandom of=/tmp/r bs=64k count=4 2>/dev/null && cp /tmp/r /dev/xvda" \
        " && sync && echo 3 > /proc/sys/vm/drop_caches && cmp -n 262144 /tmp/r /dev/xvda" \
        " && echo >> /tmp/rounds" \
        "; do :; done; echo failed >> /tmp/failed"  # fmt: skip
    guest.run(f"({work}) >/dev/null 2>&1 &", check=True)
    other = image(tmp_path, "other.img")
    for round_ in range(6):
        host.xm("block-attach", guest.name, f"file:{other}", "xvdb", "w")
        host.xm("network-attach", guest.name, "bridge=xenbr0")
        seen = f"until [ -b /dev/xvdb ] && [ -e /sys/class/net/eth0 ]; do usleep 20000; done; echo {round_}"
        assert guest.run(f"{seen} > /dev/xvdb; sync", timeout=20).status == 0
        assert states(host, "block-list", guest.name)["51712"] == "4"
        host.xm("block-detach", guest.name, "xvdb")
        host.xm("network-detach", guest.name, "0")
        assert host.xm("network-list", guest.name).stdout == ""
        assert other.read_bytes().startswith(f"{round_}\n".encode())
    assert guest.run("ls /dev/xvdb /sys/class/net/eth0").status != 0
    assert guest.run("cat /tmp/failed").status != 0
    assert int(guest.run("wc -l < /tmp/rounds", check=True).output) > 3


def test_fifty_times_leaves_nothing(boot_debian: Boot, host: Host, tmp_path: Path) -> None:
    guest = boot_debian()
    disk: list[object] = ["vbd", ["uname", f"file:{image(tmp_path)}"], ["dev", "xvda"], ["mode", "w"]]

    def come_and_go(times: int, device: list[object], devid: object) -> None:
        for _ in range(times):
            host.call("domain.device_create", guest.name, device)
            host.call("domain.destroyDevice", guest.name, device[0], devid, False, True)

    def both(times: int) -> None:
        with ThreadPoolExecutor() as threads:
            for done in [
                threads.submit(come_and_go, times, disk, "xvda"),
                threads.submit(come_and_go, times, ["vif"], 0),
            ]:
                done.result()

    both(5)  # what is made once, at first use, is there now
    before = host.resources()
    both(50)
    assert backends(host) == []
    assert host.lost_since(before, everything=True) == []


def test_a_bigger_disk(boot_debian: Boot, host: Host, tmp_path: Path) -> None:
    disk = image(tmp_path)
    guest = boot_debian(disks=[disk])
    os.truncate(disk, 12 << 20)
    host.xm("block-resize", guest.name, "xvda")
    size = guest.run("until [ $(cat /sys/block/xvda/size) = 24576 ]; do usleep 20000; done", timeout=20)
    assert size.status == 0


def test_another_disc(boot_debian: Boot, host: Host, tmp_path: Path) -> None:
    first, second = image(tmp_path, "1.iso", 1), image(tmp_path, "2.iso", 2)
    guest = boot_debian(disks=[f"file:{first},xvdd:cdrom,r"])
    assert guest.run("cat /sys/block/xvdd/size /sys/block/xvdd/ro", check=True).output == "2048\n1\n"
    host.xm("block-configure", guest.name, f"file:{second}", "xvdd:cdrom", "r")
    changed = guest.run("until [ $(cat /sys/block/xvdd/size) = 4096 ]; do usleep 20000; done", timeout=20)
    assert changed.status == 0
    host.xm("block-configure", guest.name, "", "xvdd:cdrom", "r")
    gone = guest.run("until [ $(cat /sys/block/xvdd/size) = 0 ]; do usleep 20000; done", timeout=20)
    assert gone.status == 0
    absent = host.xm("block-configure", guest.name, "file:/absent", "xvdd:cdrom", "r", check=False)
    assert absent.returncode == 1 and "could not be changed. xvdd: /absent: No such file" in absent.stderr
    refused = host.xm("block-configure", guest.name, f"file:{first}", "xvdd", "w", check=False)
    assert refused.returncode == 1 and "only the medium of a cdrom can change" in refused.stderr


# ---- what goes wrong


def failed_create(host: Host, folder: Path, kernel: Path, disk: str) -> str:
    """xm create that must fail; its last words. Nothing is left."""
    config = {"name": "broken", "kernel": str(kernel), "memory": 8, "extra": "idle", "disk": [disk]}
    path = folder / "broken.cfg"
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in config.items()))
    done = host.xm("create", str(path), check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "broken" not in host.xm("list").stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    return errors[0].removeprefix("Error: ")


def test_wrong_images(boot_debian: Boot, host: Host, small_kernel: Path, tmp_path: Path) -> None:
    good, garbage = image(tmp_path), image(tmp_path, "garbage.qcow2")
    boot_debian("owner", disks=[good])
    for disk, part in (
        (f"file:{tmp_path}/absent,xvda,w", "No such file or directory"),
        (f"file:{tmp_path},xvda,w", "xvda: "),
        (f"tap:qcow2:{garbage},xvda,w", "xvda: "),
        (f"file:{good},xvda,w", "is written by another user of it (domain "),
        ("nbd:127.0.0.1:1,xvda,w", "xvda: "),
    ):
        text = failed_create(host, tmp_path, small_kernel, disk)
        assert text.startswith("Device 51712 (vbd) could not be connected. xvda: "), text
        assert part in text
    assert all("/vbd/" in line or "/vif/" in line for line in backends(host))
    attached = host.xm("block-attach", "owner", f"file:{tmp_path}/absent", "xvdb", "w", check=False)
    assert attached.returncode == 1 and "No such file" in attached.stderr
    assert states(host, "block-list", "owner") == {"51712": "4"}


def test_a_backend_that_does_not_answer(
    boot_debian: Boot, host: Host, small_kernel: Path, tmp_path: Path
) -> None:
    """Two are refused after ten seconds, at the same time; a third is not there, for xend is killed."""
    disk = image(tmp_path)
    guest = boot_debian()
    command = [sys.executable, "-m", "toolstack.xm", "block-attach", guest.name, f"file:{disk}", "xvdb", "w"]
    with stopped(host, "blkback"):
        attach = subprocess.Popen(command, env=host.xm_environment(), stderr=subprocess.PIPE, text=True)
        began = time.monotonic()
        text = failed_create(host, tmp_path, small_kernel, f"file:{disk},xvda,w")
        assert text == (
            "Device 51712 (vbd) could not be connected. xvda: blkback has not answered within 10 s"
        )
        assert 9 < time.monotonic() - began < 20
        assert "xvdb: blkback has not answered within 10 s" in attach.communicate(timeout=20)[1]
        assert attach.returncode == 1
        attach = subprocess.Popen(command, env=host.xm_environment(), stderr=subprocess.PIPE, text=True)
        while not backends(host):
            time.sleep(0.02)
        host.kill_daemon("xend")
        assert attach.wait(timeout=20) == 1
    assert attach.stderr is not None
    attach.stderr.close()
    wait_no_backends(host)
    assert states(host, "block-list", guest.name) == {}
    host.xm("block-attach", guest.name, f"file:{disk}", "xvdb", "w")
    assert states(host, "block-list", guest.name).keys() == {"51728"}


def test_a_paused_guest_does_not_let_go(boot_debian: Boot, host: Host, tmp_path: Path) -> None:
    guest = boot_debian(disks=[image(tmp_path)], vifs=1)
    guest.pause()
    with ThreadPoolExecutor() as threads:
        calls = [
            threads.submit(host.call, "domain.destroyDevice", guest.name, kind, devid, False, True)
            for kind, devid in (("vbd", "xvda"), ("vif", 0))
        ]
        for call, kind in zip(calls, ("51712 (vbd)", "0 (vif)")):
            with pytest.raises(Fault) as caught:
                call.result()
            assert caught.value.text.startswith(
                f"Device {kind} could not be disconnected. '{guest.name}' still"
            )
    began = time.monotonic()
    host.call("domain.destroyDevice", guest.name, "vif", 0, True, True)
    assert time.monotonic() - began < 4
    assert states(host, "block-list", guest.name).keys() == {"51712"}
    assert states(host, "network-list", guest.name) == {}
    guest.unpause()
    gone = "while [ -e /sys/block/xvda -o -e /sys/class/net/eth0 ]; do usleep 20000; done"
    assert guest.run(gone, timeout=20).status == 0
    wait_no_backends(host)
    assert states(host, "block-list", guest.name) == {}
