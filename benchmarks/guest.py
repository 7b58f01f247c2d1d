"""How fast programs run inside a guest: CPU seconds natively, in our PV guest, and in a guest of QEMU's TCG.

The same statically linked busybox, C program and python3 (with the libraries and modules it needs) do the
same work in all three; the two guests have the same kernel, initramfs and memory. CPU time is what the
kernel that runs the program says it took, with its children; each workload includes whatever its engine
needs to translate it. One round is one boot of each. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import math
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dom0.libxc.images import KernelCache, open_kernel
from toolstack.lab import images, initramfs, progress
from toolstack.lab.host import Host

INSIDE = Path(__file__).resolve().parent / "inside"
TOOLS = "/bench"
PATIENCE_SECONDS = 120.0
"""Without a line of output; the longest workload takes QEMU 5 to 10 s."""
SYSTEM_CALLS = 400_000
"""Of `dd bs=1`."""
BEGINS, ENDS = "clock: begins", "clock: ends"
NATIVE, OURS, QEMU = "native", "umxen", "QEMU TCG"


class BenchmarkError(Exception):
    """The benchmark cannot go on; the text is one line that says why."""


@dataclass
class Machine:
    """Where the workloads run: `command` starts it and prints what run.sh prints."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    after: Callable[[], object] = lambda: None
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, step: progress.Step) -> None:
        """One round. Raises: BenchmarkError."""
        try:
            for line in lines(self.command, self.environment):
                self.take(line, step)
                if line == ENDS:
                    return
        finally:
            self.after()
        raise BenchmarkError(f"{self.name} ended early; its last line: {line!r}")

    def take(self, line: str, step: progress.Step) -> None:
        name, _, number = line.removeprefix("clock: ").rpartition(" ")
        step.detail = f"{self.name}: after {name or 'boot'}"
        if not line.startswith("clock: ") or line in (BEGINS, ENDS):
            return
        try:
            self.seconds.setdefault(name, []).append(float(number))
        except ValueError:
            raise BenchmarkError(f"{self.name}: {line}") from None

    def median(self, workload: str) -> float:
        return statistics.median(self.seconds[workload])

    def spread(self, workload: str) -> str:
        low, high = min(self.seconds[workload]), max(self.seconds[workload])
        return f"{low:.2f}-{high:.2f}"


def lines(command: Sequence[str], environment: Mapping[str, str]) -> Generator[str, None, None]:
    """What a command prints, line by line; it is ended when nobody wants more. Raises: BenchmarkError."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        try:
            rest, last = b"", time.monotonic()
            while True:
                left = max(0.0, last + PATIENCE_SECONDS - time.monotonic())
                if not select.select([process.stdout], [], [], left)[0]:
                    raise BenchmarkError(
                        f"{command[0]}: silent for {PATIENCE_SECONDS:g} s after {rest[-80:]!r}"
                    )
                new = os.read(process.stdout.fileno(), 65536)
                *whole, rest = (rest + new).split(b"\n")
                last = time.monotonic()
                for line in whole:
                    yield line.decode(errors="replace").strip()
                if not new:
                    return
        finally:
            process.kill()


# --- what runs


def tools(folder: Path) -> Path:
    """busybox with its applets' names, clock, the scripts: PATH natively, /bench in a guest."""
    folder.mkdir()
    busybox = images.busybox()
    shutil.copy(busybox, folder / "busybox")
    for applet in initramfs.applets(busybox):
        (folder / applet).symlink_to("busybox")
    for name in ("run.sh", "pystone.py"):
        shutil.copy(INSIDE / name, folder)
    build = ["gcc", "-O2", "-static", "-o", str(folder / "clock"), str(INSIDE / "clock.c")]
    made = subprocess.run(build, capture_output=True, check=False, text=True)
    if made.returncode:
        raise BenchmarkError(f"clock.c does not build: {made.stderr.strip().splitlines()[-1]}")
    return folder


def python() -> Path:
    """An interpreter: the system's, else the one that runs this."""
    system = Path("/usr/bin/python3")
    return system.resolve() if system.exists() else Path(sys.executable).resolve()


def python_files(interpreter: Path) -> dict[str, bytes]:
    """The interpreter, its shared libraries, the modules it loads: by their paths, without the first /."""
    show = "import os, sys; [print(m.__file__) for m in sys.modules.values() if getattr(m, '__file__', None)]"
    modules = subprocess.run(
        [interpreter, "-S", "-I", "-c", show], capture_output=True, check=True, text=True
    )
    libraries = subprocess.run(["ldd", interpreter], capture_output=True, check=True, text=True)
    wanted = [str(interpreter), *modules.stdout.split()]
    wanted += [word for word in libraries.stdout.split() if word.startswith("/")]
    return {name.lstrip("/"): Path(name).read_bytes() for name in wanted}


def guest_files(folder: Path, interpreter: Path) -> dict[str, bytes]:
    """What the initramfs needs besides busybox."""
    own = {
        f"{TOOLS}/{name}": (folder / name).read_bytes()
        for name in ("clock", "run.sh", "pystone.py", "busybox")
    }
    return {name.lstrip("/"): data for name, data in (own | python_files(interpreter)).items()}


def machines(folder: Path, kernel: images.Kernel, host: Host, memory: int) -> list[Machine]:
    """The three, with the files they need in `folder`."""
    here, interpreter = tools(folder / "tools"), python()
    scratch = folder / "scratch"
    scratch.mkdir()
    ramdisk = images.initial_ramdisk(
        kernel,
        run=f"sh {TOOLS}/run.sh {TOOLS} /tmp {interpreter}",
        files=guest_files(here, interpreter),
        output=folder / "initramfs",
    )
    vmlinux = folder / "vmlinux"
    with open_kernel(kernel.path, KernelCache(folder / "unpacked")).file as unpacked:
        vmlinux.write_bytes(unpacked.read(0, unpacked.size))
    config = folder / "guest.cfg"
    config.write_text(
        f'name = "bench"\nkernel = "{kernel.path}"\nramdisk = "{ramdisk}"\nmemory = {memory}\n'
        'extra = "console=hvc0 panic=-1"\n'
    )
    qemu = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-machine",
        "q35",
        "-m",
        str(memory),
        "-smp",
        "1",
        "-nographic",
    ]
    qemu += [
        "-no-reboot",
        "-kernel",
        str(vmlinux),
        "-initrd",
        str(ramdisk),
        "-append",
        "console=ttyS0 panic=-1",
    ]
    native = [str(here / "sh"), str(here / "run.sh"), str(here), str(scratch), str(interpreter)]
    return [
        Machine(NATIVE, native, dict(os.environ) | {"PATH": str(here)}),
        Machine(
            OURS,
            [sys.executable, "-m", "toolstack.xm", "create", "-c", str(config)],
            host.xm_environment(),
            lambda: host.xm("destroy", "bench", check=False),
        ),
        Machine(QEMU, qemu),
    ]


# --- what comes out


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def table(native: Machine, ours: Machine, qemu: Machine) -> str:
    rows = [
        f"{'CPU seconds':<12} {NATIVE:>8} {OURS:>8} {QEMU:>9} {'/native':>8} {'/QEMU':>7}   umxen, QEMU range"
    ]
    for name in native.seconds:
        a, b, c = (machine.median(name) for machine in (native, ours, qemu))
        spread = f"{ours.spread(name)}, {qemu.spread(name)}"
        rows.append(f"{name:<12} {a:>8.3f} {b:>8.3f} {c:>9.3f} {b / a:>8.2f} {b / c:>7.3f}   {spread}")
    call = [1e6 * machine.median("dd bs=1") / SYSTEM_CALLS for machine in (native, ours, qemu)]
    rows.append(
        "us per system call: " + ", ".join(f"{m} {t:.2f}" for m, t in zip((NATIVE, OURS, QEMU), call))
    )
    mean = geometric_mean([ours.median(name) / native.median(name) for name in native.seconds])
    rows.append(f"geomean_vs_native {mean:.2f}")
    return "\n".join(rows)


def missing_tools() -> str:
    """The Debian packages that would bring what is not here."""
    packages = {"qemu-system-x86_64": "qemu-system-x86", "gcc": "gcc libc6-dev", "ldd": "libc-bin"}
    return " ".join(package for tool, package in packages.items() if shutil.which(tool) is None)


def measure(everyone: Sequence[Machine], rounds: int) -> None:
    for number in range(1, rounds + 1):
        with progress.step(f"round {number} of {rounds}") as step:
            for machine in everyone:
                machine.run(step)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guest", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="of each guest")
    parser.add_argument(
        "--flavour", choices=list(images.FLAVOURS), default="cloud", help="of Debian's kernel"
    )
    parser.add_argument(
        "--without-qemu", action="store_true", help="only native and umxen, for work on umxen"
    )
    options = parser.parse_args(argv)
    if missing := missing_tools():
        print(f"not everything is here: apt-get install {missing}", file=sys.stderr)
        return 1
    host = Host.private("bench")
    with tempfile.TemporaryDirectory(prefix="umxen-bench-") as name:
        try:
            kernel = images.kernel(flavour=options.flavour)
            everyone = machines(Path(name), kernel, host, options.memory)
            if options.without_qemu:
                del everyone[2]
            host.start()
            measure(everyone, options.runs)
        except (BenchmarkError, images.ImageError) as error:
            print(f"benchmarks.guest: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("benchmarks.guest: interrupted", file=sys.stderr)
            return 130
        finally:
            host.stop()
    native, ours, qemu = everyone[0], everyone[1], everyone[-1]
    print(f"Linux {kernel.release}, {options.memory} MiB, 1 vCPU, {options.runs} rounds")
    print(table(native, ours, qemu))
    if not options.without_qemu:
        ratio = geometric_mean([ours.median(name) / qemu.median(name) for name in native.seconds])
        print(f"geomean_vs_qemu_tcg {ratio:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
