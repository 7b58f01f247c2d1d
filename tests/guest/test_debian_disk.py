"""A whole Debian system on a disk image: systemd, a login, the network, apt, fio, a compiler, iperf3."""

from __future__ import annotations

import hashlib
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from toolstack.lab import images, rootfs
from toolstack.lab.guest import Guest
from toolstack.lab.images import Kernel

pytestmark = pytest.mark.timeout(300)

PACKAGES = ("fio", "gcc", "iperf3", "libc6-dev", "make", "openssl", "python3")
HOST_AS_SEEN = "10.0.2.2"

BootSystem = Callable[..., Guest]


@pytest.fixture(scope="session")
def root_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pristine; a test that writes has a copy."""
    disk = tmp_path_factory.mktemp("root") / "debian.img"
    return rootfs.debian_disk(disk, include=PACKAGES, size_mib=3072)


@pytest.fixture(scope="session")
def root_initramfs(debian_kernel: Kernel) -> Path:
    return images.initial_ramdisk(debian_kernel, root=True)


@pytest.fixture
def boot_system(
    boot: Callable[..., Guest], debian_kernel: Kernel, root_disk: Path, root_initramfs: Path, tmp_path: Path
) -> BootSystem:
    """Boot a copy of the disk and log in: `boot_system(vcpus=2, disk=[...])`."""

    def start(*, disk: tuple[str, ...] = (), **settings: object) -> Guest:
        own = tmp_path / "root.img"
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", root_disk, own], check=True)
        guest = boot(
            kernel=debian_kernel.path, ramdisk=root_initramfs, memory=512, vif=[""],
            extra="console=hvc0 root=LABEL=root rw loglevel=4",
            disk=[f"file:{own},xvda,w", *disk], **settings,
        )  # fmt: skip
        guest.console.expect("login: ", timeout=120)
        guest.console.send_line("root")
        guest.console.expect("# ", timeout=60)
        return guest

    return start


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[int]:
    """An apt repository with one package, served on the host's loopback: its port."""
    folder, tree = tmp_path / "repository", tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr" / "share" / "greeting").mkdir(parents=True)
    (tree / "usr" / "share" / "greeting" / "text").write_text("hello from the host\n")
    control = "Package: greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: a test <a@b.c>\n"
    control += "Description: one\n"
    (tree / "DEBIAN" / "control").write_text(control)
    folder.mkdir()
    package = folder / "greeting_1.0_all.deb"
    build = ["dpkg-deb", "--root-owner-group", "--build", tree, package]
    subprocess.run(build, check=True, capture_output=True)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    index = f"{control}Filename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n"
    (folder / "Packages").write_text(index)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_system_with_network_and_disks(boot_system: BootSystem, repository: int, tmp_path: Path) -> None:
    second = tmp_path / "second.img"
    with second.open("wb") as file:
        file.truncate(96 << 20)
    guest = boot_system(disk=(f"file:{second},xvdb,w",))
    assert guest.run("systemctl is-system-running --wait").output.strip() == "running"
    assert "10.0.2." in guest.run("ip -4 -br addr", check=True).output
    source = f"deb [trusted=yes] http://{HOST_AS_SEEN}:{repository} ./"
    guest.run(f"rm -f /etc/apt/sources.list.d/*; echo '{source}' > /etc/apt/sources.list", check=True)
    guest.run("apt-get -qq update && apt-get -qq -y install greeting", check=True)
    assert guest.run("cat /usr/share/greeting/text").output == "hello from the host\n"
    verify = (
        "fio --name=verify --filename=/dev/xvdb --rw=randrw --bsrange=512-128k --size=64M --direct=1"
        " --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --end_fsync=1 --minimal"
    )
    guest.run(verify, check=True, timeout=120)
    guest.run("poweroff")
    guest.wait_state("gone", timeout=60)


SOURCE = r"""
#include <math.h>
#include <stdio.h>
double part(int n) { double s = 0; for (int i = 1; i <= 100000; i++) s += sin(i * (double)n) / i; return s; }
"""
BUILD = rf"""
cd "$(mktemp -d)"
for n in 1 2 3 4 5 6; do cat > part$n.c <<'END'
{SOURCE}
END
sed -i "s/double part/double part$n/" part$n.c; done
cat > main.c <<'END'
#include <stdio.h>
double part1(int), part2(int), part3(int), part4(int), part5(int), part6(int);
int main(void)
{{
    printf("%.6f\n", part1(1) + part2(2) + part3(3) + part4(4) + part5(5) + part6(6));
    return 0;
}}
END
printf 'CFLAGS := -O2\nparts := main.o part1.o part2.o part3.o part4.o part5.o part6.o\n' > Makefile
printf 'sum: $(parts)\n\tgcc -o $@ $^ -lm\n' >> Makefile
make -s -j2 sum && ./sum
"""


def test_programs_of_a_distribution(boot_system: BootSystem, tmp_path: Path) -> None:
    """A compiler on two vCPUs, python, openssl: what they compute is what they compute here."""
    guest = boot_system(vcpus=2)
    built = guest.run(BUILD, check=True, timeout=200).output
    assert float(built) == pytest.approx(float(_here("sh", "-c", BUILD)), abs=1e-6)
    program = "import hashlib, json; print(hashlib.md5(json.dumps(list(range(5000))).encode()).hexdigest())"
    assert guest.run(f'python3 -c "{program}"', check=True).output == _here(sys.executable, "-c", program)
    hashed = guest.run("head -c 1000000 /dev/zero | openssl dgst -sha512 -r", check=True).output.split()[0]
    assert hashed == hashlib.sha512(bytes(1000000)).hexdigest()
    guest.run("openssl speed -seconds 1 -bytes 1024 aes-128-cbc 2>&1 | tail -1", check=True)


def _here(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_guests_that_share_a_disk_and_a_network(
    boot: Callable[..., Guest], debian_kernel: Kernel, root_disk: Path, root_initramfs: Path
) -> None:
    """Two systems on one disk, which both only read, and TCP from one to the other."""

    def start(address: str) -> Guest:
        guest = boot(
            kernel=debian_kernel.path, ramdisk=root_initramfs, memory=256, vif=[""],
            extra="console=hvc0 root=/dev/xvda ro init=/bin/bash loglevel=4",
            disk=[f"file:{root_disk},xvda,r"],
        )  # fmt: skip
        guest.console.expect("# ", timeout=60)
        guest.run("mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp", check=True)
        guest.run(f"ip link set lo up; ip link set eth0 up; ip addr add {address}/24 dev eth0", check=True)
        return guest

    server, client = start("192.168.77.1"), start("192.168.77.2")
    server.run("iperf3 -s -D -I /tmp/iperf3.pid", check=True)
    report = client.run("iperf3 -c 192.168.77.1 -t 2 -f m", check=True, timeout=60).output
    received = re.search(r"([\d.]+) Mbits/sec\s+receiver", report)
    assert received is not None and float(received[1]) > 1, report
