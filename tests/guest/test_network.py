"""Stock netfront on the virtual switch: addresses, neighbours, TCP, the host, VLANs, a killed netback."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toolstack.lab import images
from toolstack.lab.guest import Guest
from toolstack.lab.host import Host
from toolstack.lab.images import Kernel

Boot = Callable[..., Guest]
EXTRA = "console=hvc0 loglevel=4"
UDHCPC = b"""#!/bin/sh
case $1 in
bound|renew)
    ifconfig "$interface" "$ip" netmask "$subnet"
    route add default gw "$router"
    echo "nameserver $dns" > /etc/resolv.conf ;;
esac
"""
# `send HOST PORT MIB`: sends random bytes and shows their md5.
SEND = b"""#!/bin/sh
dd if=/dev/urandom of=/tmp/data bs=1M count="$3" 2>/dev/null
md5sum < /tmp/data | cut -c1-32
nc "$1" "$2" < /tmp/data
"""


@pytest.fixture(scope="module")
def ramdisk(debian_kernel: Kernel) -> Path:
    return images.initial_ramdisk(
        debian_kernel, files={"/etc/udhcpc/default.script": UDHCPC, "/bin/send": SEND}
    )


def start(boot: Boot, kernel: Kernel, ramdisk: Path, *vifs: str, **settings: object) -> Guest:
    return boot(kernel=kernel.path, ramdisk=ramdisk, extra=EXTRA, vif=list(vifs), **settings)


def prompt(*guests: Guest) -> None:
    for guest in guests:
        guest.console.expect("# ", timeout=90)


def dhcp(guest: Guest) -> str:
    """The address it got."""
    guest.run("ifconfig eth0 up; udhcpc -i eth0 -n -q -t 10 -T 1", check=True)
    found = guest.run("ifconfig eth0 | sed -n 's/.*inet addr:\\([0-9.]*\\).*/\\1/p'", check=True)
    return found.output.strip()


def pings(guest: Guest, address: str) -> bool:
    return guest.run(f"ping -c 2 -W 2 -i 0.2 {address}").status == 0


def static(guest: Guest, address: str, interface: str = "eth0") -> None:
    guest.run(f"ifconfig {interface} {address} netmask 255.255.255.0", check=True)


def receive(guest: Guest) -> None:
    """In the background: what one connection to port 5001 brings. nc ends early when its input ends."""
    command = "sleep 90 | (nc -l -p 5001 > /tmp/got; touch /tmp/over)"
    guest.run(f"rm -f /tmp/over; ({command}) >/dev/null 2>&1 & sleep 0.3")


def received(guest: Guest) -> str:
    """The md5 of it, once it is complete."""
    guest.run("i=0; while [ ! -e /tmp/over -a $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done", timeout=60)
    return guest.run("md5sum < /tmp/got", check=True).output.split()[0]


def transfer(sender: Guest, receiver: Guest, address: str, mib: int) -> None:
    """A checksummed payload by TCP."""
    receive(receiver)
    sent = sender.run(f"send {address} 5001 {mib}", check=True, timeout=120).output.split()[0]
    assert received(receiver) == sent


@contextmanager
def web_server(content: bytes) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number: int = sock.getsockname()[1]
        return number


def test_two_guests_the_host_and_a_killed_netback(
    host: Host, boot: Boot, debian_kernel: Kernel, ramdisk: Path
) -> None:
    one, other = (start(boot, debian_kernel, ramdisk, "", vcpus=count, memory=192) for count in (2, 1))
    prompt(one, other)
    addresses = [dhcp(one), dhcp(other)]
    assert len(set(addresses)) == 2
    assert pings(one, addresses[1])
    with host.capture("xenbr0", f"vif{other.domid}.0") as capture:
        transfer(one, other, addresses[1], 8)
    assert max(map(len, capture.frames)) > 10000  # large packets went through uncut
    transfer(other, one, addresses[0], 8)

    content = os.urandom(2 << 20)
    digest = hashlib.md5(content).hexdigest()
    with web_server(content) as port:
        fetched = one.run(f"wget -q -O - http://10.0.2.2:{port}/x | md5sum", check=True, timeout=60)
    assert fetched.output.split()[0] == digest

    port = free_port()
    host.forward("xenbr0", f"{port}-{addresses[1]}:7000")
    other.run("(echo hello | nc -l -p 7000 > /tmp/from-host) >/dev/null 2>&1 & sleep 0.2")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        assert client.recv(100) == b"hello\n"

    # SIGKILL with a transfer under way: states stay, it comes to its end, connections by NAT go on.
    other.run("(sleep 60 | nc -l -p 7000 > /tmp/through-nat) >/dev/null 2>&1 & sleep 0.2")
    through_nat = socket.create_connection(("127.0.0.1", port), timeout=10)
    through_nat.sendall(b"before\n")
    receive(other)
    one.run(f"(send {addresses[1]} 5001 40 > /tmp/sum; echo done >> /tmp/sum) >/dev/null 2>&1 &")
    time.sleep(0.3)
    host.kill_daemon("netback")
    deadline = time.monotonic() + 60
    while "done" not in (text := one.run("cat /tmp/sum").output):
        assert time.monotonic() < deadline, "the transfer hangs"
        time.sleep(0.2)
    assert received(other) == text.split()[0]
    assert pings(one, addresses[1]) and pings(other, "10.0.2.2")
    through_nat.sendall(b"after\n")
    assert other.run("sleep 1; cat /tmp/through-nat").output == "before\nafter\n"
    through_nat.close()
    assert "connected" not in one.run("dmesg | grep -i 'xen_netfront.*error'").output


def test_vlans_rates_and_groups(host: Host, boot: Boot, debian_kernel: Kernel, ramdisk: Path) -> None:
    with host.network("lan", groups=["safe,tag=9,anti-spoof"]):
        vifs = (
            "bridge=lan.5",
            "bridge=lan.6",
            "bridge=lan:5:7",
            "bridge=lan.safe",
            "bridge=lan.5,rate=8Mb/s",
        )
        one = start(boot, debian_kernel, ramdisk, *vifs[:3])
        other = start(boot, debian_kernel, ramdisk, "bridge=lan.5", *vifs[3:])
        prompt(one, other)
        static(other, "10.5.0.2")
        static(one, "10.5.0.1", "eth1")  # VLAN 6: the wrong one
        assert not pings(one, "10.5.0.2")
        one.run("ifconfig eth1 0.0.0.0; ifconfig eth1 down")
        static(one, "10.5.0.1", "eth0")
        assert pings(one, "10.5.0.2")
        with host.capture("lan", f"vif{other.domid}.1") as spoofs:
            other.run(
                "ifconfig eth1 hw ether 02:00:00:00:00:99; ifconfig eth1 10.9.0.2 up; ping -c 1 -W 1 10.9.0.1"
            )
        assert spoofs.frames == []
        shown = host_network(host, "show", "lan").stdout
        assert "rx dropped spoof" in shown and "vlan 5" in shown
        other.run("ifconfig eth0 down")
        static(other, "10.5.0.3", "eth2")
        receive(one)
        began = time.monotonic()
        other.run("head -c 1500000 /dev/zero | nc 10.5.0.1 5001", check=True, timeout=60)
        assert time.monotonic() - began > 1.0  # 12 Mbit at 8 Mbit/s
        one.destroy()
        other.destroy()
        wait_unused(host, "lan")


def host_network(host: Host, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolstack.lab.cli", "network", *words]
    return subprocess.run(command, env=host.xm_environment(), capture_output=True, text=True, timeout=30)


def wait_unused(host: Host, name: str) -> None:
    deadline = time.monotonic() + 10
    while "vif" in host_network(host, "show", name).stdout and time.monotonic() < deadline:
        time.sleep(0.05)


def test_two_hosts_on_one_wire(
    host: Host, boot: Boot, umxen_host: Callable[..., Host], debian_kernel: Kernel, ramdisk: Path
) -> None:
    port = free_port()
    far = umxen_host("far")
    with host.network("wire", f"listen:127.0.0.1:{port}"), far.network("wire", f"connect:127.0.0.1:{port}"):
        here = start(boot, debian_kernel, ramdisk, "bridge=wire")
        there = far.create(kernel=debian_kernel.path, ramdisk=ramdisk, extra=EXTRA, vif=["bridge=wire"])
        try:
            prompt(here, there)
            static(here, "10.7.0.1")
            static(there, "10.7.0.2")
            assert pings(here, "10.7.0.2")
            transfer(here, there, "10.7.0.2", 4)
            transfer(there, here, "10.7.0.1", 4)
        finally:
            there.destroy()
            here.destroy()
            wait_unused(host, "wire")
            wait_unused(far, "wire")


def qemu_links(folder: Path) -> list[tuple[str, str]]:
    """Our uplink and QEMU's netdev for each way there is."""
    tcp, tcp2, udp, udp2, group = (free_port() for _ in range(5))
    here = "addr.type=unix,addr.path"
    return [
        (f"connect:127.0.0.1:{tcp}", f"socket,listen=127.0.0.1:{tcp}"),
        (f"listen:127.0.0.1:{tcp2}", f"socket,connect=127.0.0.1:{tcp2}"),
        (f"mcast:230.0.0.1:{group}", f"socket,mcast=230.0.0.1:{group},localaddr=127.0.0.1"),
        (
            f"udp:127.0.0.1:{udp},to=127.0.0.1:{udp2}",
            f"socket,udp=127.0.0.1:{udp},localaddr=127.0.0.1:{udp2}",
        ),
        (f"unix-listen:{folder}/s", f"stream,server=off,{here}={folder}/s"),
        (
            f"unix-dgram:{folder}/a,to={folder}/b",
            f"dgram,local.type=unix,local.path={folder}/b,remote.type=unix,remote.path={folder}/a",
        ),
    ]


def test_real_qemus(host: Host, tmp_path: Path) -> None:
    """iPXE in QEMU guests, one for each kind of socket, gets addresses from our user-mode uplink."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None or not Path("/usr/lib/ipxe/qemu").is_dir():
        pytest.skip("qemu-system-x86_64 and ipxe-qemu are not installed")
    links = qemu_links(tmp_path)
    machine = [qemu, "-accel", "tcg", "-m", "64", "-nographic", "-nodefaults", "-no-reboot", "-boot", "n"]
    with host.network("q", *(uplink for uplink, _ in links), "user"):
        running = [
            subprocess.Popen(
                [
                    *machine,
                    "-netdev",
                    f"{netdev},id=n",
                    "-device",
                    f"virtio-net-pci,netdev=n,mac=52:54:00:00:00:{i:02x}",
                ],
                stdin=subprocess.DEVNULL,
            )
            for i, (_, netdev) in enumerate(links)
        ]
        try:
            deadline = time.monotonic() + 60
            while (shown := host_network(host, "show", "q").stdout).count("lease 10.0.2.") < len(links):
                assert time.monotonic() < deadline, shown
                time.sleep(0.2)
        finally:
            for process in running:
                process.kill()
                process.wait()
