"""What goes wrong around guests: daemons killed, bad images, garbage on sockets. The others go on."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from toolstack.lab.guest import Guest
from toolstack.lab.host import Host
from toolstack.lab.images import Kernel

pytestmark = pytest.mark.timeout(300)

COUNT = "( i=0; while :; do i=$((i+1)); echo $i > /tmp/n; usleep 20000; done ) >/dev/null 2>&1 &"


@pytest.mark.parametrize("daemon", ["xend", "xenstored", "xenconsoled"])
def test_a_killed_daemon_does_not_disturb_a_guest(guest: Guest, host: Host, daemon: str) -> None:
    guest.run(f"echo 0 > /tmp/n; {COUNT}", check=True)
    before = guest.domid
    host.kill_daemon(daemon)
    if daemon == "xenconsoled":
        guest.console.reconnect()
    first = int(guest.run("cat /tmp/n", check=True).output)
    guest.run("usleep 300000")
    assert int(guest.run("cat /tmp/n", check=True).output) > first
    assert guest.domid == before and guest.state() == "running"
    environment = {**os.environ, "XENSTORED_PATH": str(host.paths.xenstored)}
    path = f"/local/domain/{before}/name"
    name = subprocess.run(
        ["xenstore-read", path], env=environment, capture_output=True, text=True, timeout=20
    )
    assert (name.returncode, name.stdout.strip()) == (0, guest.name), name.stderr
    guest.shutdown()
    assert guest.state() == "gone"


def test_all_daemons_killed_at_once(guest: Guest, host: Host) -> None:
    for daemon in ("xend", "xenstored", "xenconsoled"):
        host.kill_daemon(daemon)
    guest.console.reconnect()
    assert guest.run("echo alive").output == "alive\n"
    guest.shutdown()


def test_fifty_lives_leave_nothing(boot: Callable[..., Guest], host: Host, small_kernel: Path) -> None:
    def live(life: int) -> None:
        words, said = ("hello", "hello from domain") if life % 2 else ("idle", "umxen: idle")
        guest = boot(f"life{life}", kernel=small_kernel, memory=8, extra=words, on_poweroff="preserve")
        guest.console.expect(said)
        guest.destroy()

    for life in range(4):  # what is made once, at first use, is there now
        live(life)
    before = host.resources()
    for life in range(50):
        live(life)
    assert host.lost_since(before, everything=True) == []


def refused(host: Host, *words: str) -> str:
    """xm create that must fail with status 1 and one line; the line."""
    done = host.xm("create", *words, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert len(host.xm("list").stdout.splitlines()) == 2  # the header and Domain-0
    return errors[0]


@pytest.fixture
def config(tmp_path: Path, small_kernel: Path) -> Path:
    path = tmp_path / "bad.cfg"
    path.write_text(f'name = "bad"\nkernel = "{small_kernel}"\nmemory = 8\n')
    return path


def test_kernels_that_are_none(
    host: Host, config: Path, tmp_path: Path, debian_kernel: Kernel, small_kernel: Path
) -> None:
    bzimage, elf = debian_kernel.path.read_bytes(), small_kernel.read_bytes()
    other_machine = bytearray(elf)
    other_machine[18] = 183  # AArch64
    cases = {
        "empty": b"",
        "text": b"this is no kernel\n" * 100,
        "cut-bzimage": bzimage[: len(bzimage) // 2],
        "cut-elf": elf[:0x2000],  # in the middle of its only segment
        "other-machine": bytes(other_machine),
        "no-notes": elf.replace(b"Xen\0", b"Nex\0"),
        "garbage": random.Random(1).randbytes(100_000),
        "elf-and-garbage": elf[:64] + random.Random(2).randbytes(50_000),
    }
    said = {}
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        said[name] = refused(host, str(config), f"kernel={path}")
        assert name in said[name], said[name]
    busybox = shutil.which("busybox")
    if busybox:
        assert "note" in refused(host, str(config), f"kernel={busybox}")
    refused(host, str(config), f"kernel={tmp_path}/absent")


def test_images_that_do_not_fit(host: Host, config: Path, tmp_path: Path) -> None:
    big = tmp_path / "initrd"
    with big.open("wb") as file:
        file.truncate(64 << 20)
    assert "initrd" in refused(host, str(config), f"ramdisk={big}")
    refused(host, str(config), "memory=1000000")
    refused(host, str(config), "memory=0")


def test_a_name_that_is_taken(
    host: Host, config: Path, boot: Callable[..., Guest], small_kernel: Path
) -> None:
    boot("bad", kernel=small_kernel, memory=8, extra="idle")
    done = host.xm("create", str(config), check=False)
    assert done.returncode == 1 and "bad" in done.stderr


@pytest.mark.parametrize("which", ["control", "xenstored", "xend", "console"])
def test_garbage_on_sockets(host: Host, guest: Guest, which: str) -> None:
    path = host.paths.console(guest.domid) if which == "console" else getattr(host.paths, which)
    kind = socket.SOCK_SEQPACKET if which == "control" else socket.SOCK_STREAM
    source = random.Random(which)
    for size in (1, 16, 17, 100, 4096, 5000, 70_000):
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.settimeout(2)
            sock.connect(str(path))
            data = source.randbytes(size) if which != "console" else b"\0\x7f\n" * size
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(65536)
            except OSError:
                continue
    guest.console.drain()
    guest.console.send_line()
    assert guest.run("echo alive").output == "alive\n"
    assert guest.name in host.xm("list").stdout


def test_a_host_comes_back_after_its_supervisor_was_killed(
    umxen_host: Callable[..., Host], small_kernel: Path
) -> None:
    host = umxen_host("orphan", memory="256M")
    guest = host.create("survivor", kernel=small_kernel, memory=8, extra="shell")
    guest.console.expect("small> ")
    state = host.state()
    assert state is not None
    os.kill(state.supervisor.pid, 9)
    while host.is_up():
        time.sleep(0.01)
    guest.console.send_line("hello")
    guest.console.expect("hello from domain")
    host.start()
    assert host.daemon("hyper").pid == next(d.pid for d in state.daemons if d.name == "hyper")
    guest.console.send_line("hello")
    guest.console.expect("hello from domain")
    host.kill_daemon("xenconsoled")
    guest.destroy()
    assert host.stop()
    assert not any(daemon.alive() for daemon in state.daemons)


def test_hosts_side_by_side(umxen_host: Callable[..., Host], small_kernel: Path) -> None:
    hosts = [umxen_host(name, memory="256M", cpus=1) for name in ("left", "right")]
    guests = [host.create("same", kernel=small_kernel, memory=8, extra="shell") for host in hosts]
    for guest in guests:
        guest.console.expect("small> ")
    guests[0].destroy()
    guests[1].console.send_line("hello")
    guests[1].console.expect("hello from domain")
    for host in hosts:
        assert host.stop()
