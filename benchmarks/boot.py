"""How long a boot takes: starting `xm create` to the first line of the guest's /init, against QEMU TCG.

The same kernel, initramfs, memory and command line but for the console's name. QEMU boots the unpacked
vmlinux through PVH, on q35 and on microvm (which hangs now and then: such a run is counted and repeated),
and the bzImage. umxen boots the bzImage; it keeps unpacked kernels, so it is measured cold (its cache emptied
before each run) and warm. The ratio sets the warm figure against the best of QEMU's, which had its kernel
unpacked beforehand as well.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dom0.libxc.images import KernelCache, open_kernel
from toolstack.lab import images, progress
from toolstack.lab.host import Host
from toolstack.lab.initramfs import MARKER

PATIENCE_SECONDS = 60.0
MICROVM_SECONDS = 10.0
COLD, WARM, MICROVM = "umxen, cold", "umxen, warm", "QEMU TCG microvm, vmlinux (PVH)"


class Hung(Exception):
    """The marker did not come."""


@dataclass
class Contender:
    """One way to boot: `boot` returns the seconds it took. `prepare` is not timed."""

    name: str
    boot: Callable[[], float]
    prepare: Callable[[], None] = lambda: None
    attempts: int = 1
    seconds: list[float] = field(default_factory=list)
    hung: int = 0

    def run(self) -> None:
        """One boot, counted; one that hangs is repeated if that is allowed. Raises: Hung."""
        for _ in range(self.attempts):
            self.prepare()
            try:
                self.seconds.append(self.boot())
                return
            except Hung as error:
                self.hung += 1
                if self.attempts == 1:
                    raise Hung(f"{self.name} did not come up:\n{error}") from None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("inf")


def time_to_marker(
    command: Sequence[str], environment: dict[str, str] | None = None, patience: float = 60.0
) -> float:
    """Seconds from starting `command` until it prints the marker; it is ended then. Raises: Hung."""
    output = b""
    began = time.monotonic()
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        try:
            while MARKER.encode() not in output:
                left = began + patience - time.monotonic()
                ready = select.select([process.stdout], [], [], max(0.0, left))[0]
                new = os.read(process.stdout.fileno(), 65536) if ready else b""
                if not new:
                    raise Hung(output.decode(errors="replace")[-500:])
                output += new
            return time.monotonic() - began
        finally:
            process.kill()


def qemu(machine: str, kernel: Path, ramdisk: Path, memory: int, patience: float) -> Callable[[], float]:
    command = ["qemu-system-x86_64", "-accel", "tcg", "-machine", machine, "-m", str(memory), "-smp", "1"]
    command += ["-nographic", "-no-reboot", "-kernel", str(kernel), "-initrd", str(ramdisk)]
    command += ["-append", "console=ttyS0 panic=-1"]
    return lambda: time_to_marker(command, patience=patience)


def umxen(host: Host, config: Path) -> Callable[[], float]:
    def boot() -> float:
        try:
            create = [sys.executable, "-m", "toolstack.xm", "create", "-c", str(config)]
            return time_to_marker(create, host.xm_environment(), PATIENCE_SECONDS)
        finally:
            host.xm("destroy", "boot", check=False)

    return boot


def contenders(kernel: Path, host: Host, folder: Path, memory: int) -> list[Contender]:
    """All ways to boot `kernel`, with files they need put into `folder`."""
    ramdisk = images.initial_ramdisk(images.kernel(kernel))
    vmlinux = folder / "vmlinux"
    with open_kernel(kernel, KernelCache(folder / "unpacked")).file as unpacked:
        vmlinux.write_bytes(unpacked.read(0, unpacked.size))
    config = folder / "boot.cfg"
    config.write_text(
        f'name = "boot"\nkernel = "{kernel}"\nramdisk = "{ramdisk}"\nmemory = {memory}\n'
        'extra = "console=hvc0 panic=-1"\n'
    )
    cache = Path(host.environment["XDG_CACHE_HOME"]) / "umxen" / "kernels"
    return [
        # The cold boot fills the cache again, so the warm one comes behind it.
        Contender(COLD, umxen(host, config), lambda: shutil.rmtree(cache, ignore_errors=True)),
        Contender(WARM, umxen(host, config)),
        Contender("QEMU TCG q35, vmlinux (PVH)", qemu("q35", vmlinux, ramdisk, memory, PATIENCE_SECONDS)),
        Contender(MICROVM, qemu("microvm,rtc=on", vmlinux, ramdisk, memory, MICROVM_SECONDS), attempts=4),
        Contender("QEMU TCG q35, bzImage", qemu("q35", kernel, ramdisk, memory, PATIENCE_SECONDS)),
    ]


def measure(all_of_them: Sequence[Contender], runs: int) -> None:
    """`runs` rounds, each contender once in each."""
    for number in range(1, runs + 1):
        with progress.step(f"round {number} of {runs}") as step:
            for contender in all_of_them:
                step.detail = contender.name
                contender.run()


def table(all_of_them: Sequence[Contender]) -> str:
    lines = [f"{'to the first line of /init':<34} {'median s':>9} {'min':>7} {'max':>7}"]
    for contender in all_of_them:
        if contender.seconds:
            low, high = min(contender.seconds), max(contender.seconds)
            lines.append(f"{contender.name:<34} {contender.median:>9.2f} {low:>7.2f} {high:>7.2f}")
        if contender.hung:
            lines.append(f"{contender.name:<34} hung {contender.hung} times")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.boot", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="of each guest")
    parser.add_argument(
        "--flavour", choices=list(images.FLAVOURS), default="cloud", help="of Debian's kernel"
    )
    options = parser.parse_args(argv)
    if shutil.which("qemu-system-x86_64") is None:
        print("qemu-system-x86_64 is not here: apt-get install qemu-system-x86", file=sys.stderr)
        return 1
    host = Host.private("bench")
    with tempfile.TemporaryDirectory(prefix="umxen-bench-") as name:
        folder = Path(name)
        host.environment["XDG_CACHE_HOME"] = str(folder / "cache")
        try:
            kernel = images.kernel(flavour=options.flavour)
            everyone = contenders(kernel.path, host, folder, options.memory)
            host.start()
            measure(everyone, options.runs)
        except (Hung, images.ImageError) as error:
            print(f"benchmarks.boot: {error}", file=sys.stderr)
            return 1
        finally:
            host.stop()
    print(f"Linux {kernel.release}, {options.memory} MiB, 1 vCPU, {options.runs} rounds")
    print(table(everyone))
    best = min(contender.median for contender in everyone if contender.name.startswith("QEMU"))
    warm = next(contender.median for contender in everyone if contender.name == WARM)
    print(f"boot_vs_qemu_tcg {warm / best:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
