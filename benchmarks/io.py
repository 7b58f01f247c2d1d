"""How fast a guest's disk and network are: fio against the host's own, both against QEMU's TCG with virtio.

The disk is a raw file on the file system of --folder. fio runs with O_DIRECT and libaio in all three places,
for sequential 1 MiB requests (4 at a time) and random 4 KiB ones (32 at a time). The network is iperf3, TCP,
one stream: guest to host and back through user-mode networking, and guest to guest through umxen's switch
or QEMU's socket netdev. The same kernel, initramfs and root disk in both kinds of guest, one vCPU each.

blk_seq_vs_host and blk_rand_vs_host are geometric means of reading and writing, net_vs_qemu_tcg of the three
directions. Each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.guest import BenchmarkError, geometric_mean, lines
from toolstack.lab import images, progress, rootfs
from toolstack.lab.host import Host, HostError

INSIDE = Path(__file__).resolve().parent / "inside"
SEQUENTIAL, RANDOM = ("seq-read", "seq-write"), ("rand-read", "rand-write")
NETWORK = ("to-host", "from-host", "guest-to-guest")
JOBS = {
    "seq-write": ("--rw=write", "--bs=1M", "--iodepth=4"),
    "seq-read": ("--rw=read", "--bs=1M", "--iodepth=4"),
    "rand-write": ("--rw=randwrite", "--bs=4k", "--iodepth=32"),
    "rand-read": ("--rw=randread", "--bs=4k", "--iodepth=32"),
}
SERVER, CLIENT = "192.168.77.1", "192.168.77.2"
ROLES = ("disk", "host", "server", "client")
HOST_AS_SEEN = "10.0.2.2"
"""The host's address in user-mode networking, umxen's and QEMU's."""
SERVES, ENDS = "clock: serves", "clock: ends"


@dataclass
class Results:
    """Bytes per second of the disk, bits per second of the network; by workload, a figure for each round."""

    name: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, workload: str, figure: float) -> None:
        self.figures.setdefault(workload, []).append(figure)

    def median(self, workload: str) -> float:
        return statistics.median(self.figures[workload])

    def follow(self, output: Iterator[str], until: str) -> None:
        """Take the results a guest prints until it prints `until`. Raises: BenchmarkError."""
        line = ""
        for line in output:
            if line.startswith("result: "):
                _, workload, figure = line.split()
                self.add(workload, float(figure))
            if line == until:
                return
        raise BenchmarkError(f"{self.name}: the guest ended early; its last line: {line!r}")


@dataclass
class Lab:
    """What all guests have in common. fio writes on `disk`; iperf3 listens at `port` of the host."""

    kernel: images.Kernel
    ramdisk: Path
    root: Path
    disk: Path
    port: int
    seconds: int
    memory: int
    folder: Path
    host: Host

    def command_line(self, console: str, role: str, **words: str) -> str:
        words |= {"role": role, "seconds": str(self.seconds), "port": str(self.port)}
        return f"console={console} panic=-1 " + " ".join(f"bench.{key}={word}" for key, word in words.items())

    @contextlib.contextmanager
    def umxen(self, role: str, **words: str) -> Iterator[Iterator[str]]:
        """A guest of ours: what it prints."""
        name = f"io-{role}"
        config = self.folder / f"{name}.cfg"
        disks = [f"file:{self.root},xvda,r"] + [f"file:{self.disk},xvdb,w"] * (role == "disk")
        config.write_text(
            f'name = "{name}"\nkernel = "{self.kernel.path}"\nramdisk = "{self.ramdisk}"\n'
            f"memory = {self.memory}\nextra = {self.command_line('hvc0', role, **words)!r}\n"
            f"disk = {disks!r}\nvif = ['']\n"
        )
        command = [sys.executable, "-m", "toolstack.xm", "create", "-c", str(config)]
        try:
            with contextlib.closing(lines(command, self.host.xm_environment())) as output:
                yield output
        finally:
            self.host.xm("destroy", name, check=False)

    @contextlib.contextmanager
    def qemu(self, role: str, network: str, **words: str) -> Iterator[Iterator[str]]:
        """The same guest in QEMU."""
        command = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-m", str(self.memory)]
        command += ["-smp", "1", "-nographic", "-no-reboot", "-kernel", str(self.kernel.path)]
        command += ["-initrd", str(self.ramdisk), "-append", self.command_line("ttyS0", role, **words)]
        command += ["-drive", f"file={self.root},format=raw,if=virtio,readonly=on"]
        if role == "disk":
            command += ["-drive", f"file={self.disk},format=raw,if=virtio,cache=none,aio=io_uring"]
        mac = f"52:54:00:00:00:{ROLES.index(role):02x}"
        command += ["-netdev", f"{network},id=net", "-device", f"virtio-net-pci,netdev=net,mac={mac}"]
        with contextlib.closing(lines(command, dict(os.environ))) as output:
            yield output


def fio_on_host(lab: Lab, results: Results) -> None:
    for workload, job in JOBS.items():
        command = ["fio", "--name=io", f"--filename={lab.disk}", "--direct=1", "--ioengine=libaio"]
        command += ["--time_based", f"--runtime={lab.seconds}", "--size=100%", "--minimal", *job]
        ran = subprocess.run(command, capture_output=True, check=False, text=True)
        columns = ran.stdout.strip().split(";")
        if ran.returncode or len(columns) < 48:
            raise BenchmarkError(f"fio has failed on {lab.disk}: {(ran.stderr or ran.stdout).strip()[:200]}")
        results.add(workload, (float(columns[6]) + float(columns[47])) * 1024)


Start = Callable[..., contextlib.AbstractContextManager[Iterator[str]]]


def one_guest(results: Results, start: Start, role: str, *more: str, **words: str) -> None:
    with start(role, *more, **words) as output:
        results.follow(output, ENDS)


def two_guests(
    results: Results, start: Start, server: Sequence[str] = (), client: Sequence[str] = ()
) -> None:
    with start("server", *server, own=SERVER) as serving:
        results.follow(serving, SERVES)
        with start("client", *client, own=CLIENT, peer=SERVER) as output:
            results.follow(output, ENDS)


def one_round(lab: Lab, native: Results, ours: Results, qemu: Results, step: progress.Step) -> None:
    socket_port = free_port()
    steps: list[tuple[str, Callable[[], None]]] = [
        ("fio on the host", lambda: fio_on_host(lab, native)),
        ("fio in umxen", lambda: one_guest(ours, lab.umxen, "disk")),
        ("fio in QEMU", lambda: one_guest(qemu, lab.qemu, "disk", "user")),
        ("umxen and host", lambda: one_guest(ours, lab.umxen, "host", peer=HOST_AS_SEEN)),
        ("QEMU and host", lambda: one_guest(qemu, lab.qemu, "host", "user", peer=HOST_AS_SEEN)),
        ("two guests of umxen", lambda: two_guests(ours, lab.umxen)),
        (
            "two guests of QEMU",
            lambda: two_guests(
                qemu,
                lab.qemu,
                [f"socket,listen=127.0.0.1:{socket_port}"],
                [f"socket,connect=127.0.0.1:{socket_port}"],
            ),
        ),
    ]
    for step.detail, run in steps:
        run()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def table(native: Results, ours: Results, qemu: Results) -> str:
    rows = [f"{'':<16} {'host':>9} {'umxen':>9} {'QEMU TCG':>9} {'/host':>7} {'/QEMU':>7}   umxen from-to"]
    for workload in (*SEQUENTIAL, *RANDOM, *NETWORK):
        of_host = native.median(workload) if workload in native.figures else None
        a, b = ours.median(workload), qemu.median(workload)
        shown = f"{of_host / 1e6:>9.0f}" if of_host else f"{'':>9}"
        ratio = f"{a / of_host:>7.2f}" if of_host else f"{'':>7}"
        low, high = min(ours.figures[workload]), max(ours.figures[workload])
        rows.append(
            f"{workload:<16} {shown} {a / 1e6:>9.0f} {b / 1e6:>9.0f} {ratio} {a / b:>7.2f}"
            f"   {low / 1e6:.0f}-{high / 1e6:.0f}"
        )
    return "\n".join([*rows, "MB/s of the disk, Mbit/s of the network"])


def missing_tools() -> str:
    """The Debian packages that would bring what is not here."""
    packages = {"qemu-system-x86_64": "qemu-system-x86", "fio": "fio", "iperf3": "iperf3"}
    return " ".join(package for tool, package in packages.items() if shutil.which(tool) is None)


def prepare(folder: Path, options: argparse.Namespace, host: Host) -> Lab:
    kernel = images.kernel(flavour=options.flavour)
    files = {
        "bench/io.sh": (INSIDE / "io.sh").read_bytes(),
        "dhcp.sh": b'#!/bin/sh\n[ "$1" = bound ] && ifconfig "$interface" "$ip" netmask "$subnet"\nexit 0\n',
    }
    ramdisk = images.initial_ramdisk(
        kernel, root=True, run=". /bench/io.sh", files=files, output=folder / "initramfs"
    )
    root = rootfs.debian_disk(folder / "root.img", include=("fio", "iperf3"))
    disk = folder / "disk.img"
    with progress.step(f"writing a disk of {options.size} MiB"), disk.open("wb") as file:
        for _ in range(options.size):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    return Lab(kernel, ramdisk, root, disk, free_port(), options.seconds, options.memory, folder, host)


@contextlib.contextmanager
def iperf3_server(port: int) -> Iterator[None]:
    server = subprocess.Popen(
        ["iperf3", "-s", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        server.kill()
        server.wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.io", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    parser.add_argument("--seconds", type=int, default=4, metavar="N", help="of each workload")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the disk")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="of each guest")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="for the disks (default: $TMPDIR)")
    parser.add_argument("--flavour", choices=list(images.FLAVOURS), default="cloud", help="Debian's kernel")
    options = parser.parse_args(argv)
    if missing := missing_tools():
        print(f"not everything is here: apt-get install {missing}", file=sys.stderr)
        return 1
    host = Host.private("bench")
    native, ours, qemu = Results("host"), Results("umxen"), Results("QEMU TCG")
    with tempfile.TemporaryDirectory(prefix="umxen-bench-", dir=options.folder) as name:
        try:
            lab = prepare(Path(name), options, host)
            host.start()
            with iperf3_server(lab.port):
                for number in range(1, options.runs + 1):
                    with progress.step(f"round {number} of {options.runs}") as step:
                        one_round(lab, native, ours, qemu, step)
        except (BenchmarkError, HostError, images.ImageError) as error:
            print(f"benchmarks.io: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("benchmarks.io: interrupted", file=sys.stderr)
            return 130
        finally:
            host.stop()
    print(f"Linux {lab.kernel.release}, {options.memory} MiB, 1 vCPU, {options.runs} rounds")
    print(table(native, ours, qemu))
    for name, workloads, peer in (
        ("blk_seq_vs_host", SEQUENTIAL, native),
        ("blk_rand_vs_host", RANDOM, native),
        ("net_vs_qemu_tcg", NETWORK, qemu),
    ):
        print(f"{name} {geometric_mean([ours.median(w) / peer.median(w) for w in workloads]):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
