"""hyper's process: `python -m hyper --host NAME --cpus N --memory SIZE`. Wires the parts together, serves,
stops.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import trio

from hyper import binding, limits
from hyper.confine import confine
from hyper.machine import Machine
from hyper.public import daemon
from hyper.public.errors import XenError
from hyper.public.paths import HostPaths
from hyper.server import Server, listen

log = structlog.get_logger()


class StartError(Exception):
    """hyper can't start; the text says why and what to do."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hyper", description="The hypervisor of one umxen host.")
    parser.add_argument("--host", metavar="NAME", help="host instance (default: $UMXEN_HOST, or 'default')")
    parser.add_argument(
        "--cpus",
        type=_cpus,
        default=limits.default_cpus(),
        metavar="N",
        help="physical CPUs, a thread each (default: all we may run on)",
    )
    parser.add_argument(
        "--memory",
        type=_memory,
        default=limits.default_memory(),
        metavar="SIZE",
        help="machine memory, such as 512M or 4G; sparse (default: half of what we may use)",
    )
    parser.add_argument("--scheduler", choices=("credit", "null"), default="credit")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="one byte is written here once we serve")
    return parser.parse_args(argv)  # fmt: skip


def _cpus(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= limits.MAX_CPUS:
        raise argparse.ArgumentTypeError(f"{text!r}: want 1 to {limits.MAX_CPUS}")
    return int(text)


def _memory(text: str) -> int:
    try:
        return limits.parse_memory(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@contextmanager
def host_lock(paths: HostPaths) -> Iterator[None]:
    """Held while a hyper runs for this host.

    Raises: StartError when another one does.
    """
    fd = os.open(paths.control_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"host '{paths.name}' already runs (its lock is {paths.control_lock})") from None
        yield
    finally:
        os.close(fd)


async def serve(machine: Machine, paths: HostPaths, ready_fd: int | None) -> None:
    """Serves until SIGTERM."""
    with listen(paths.control) as listener:
        try:
            confine()
        except OSError as error:
            log.warning("hyper runs without a seccomp filter", reason=str(error))
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.cancel_on_sigterm, nursery.cancel_scope)
            nursery.start_soon(Server(machine).serve, listener)
            daemon.announce_ready(ready_fd)
            size = {"cpus": machine.config.nr_pcpus, "memory_mib": machine.bank_bytes >> 20}
            log.info("hyper serves", host=paths.name, **size)
    paths.control.unlink(missing_ok=True)


def run(arguments: argparse.Namespace, core: binding.Core) -> None:
    """Raises: StartError, XenError, OSError."""
    daemon.harden()
    daemon.raise_fd_limit()
    paths = HostPaths.from_environment(arguments.host)
    paths.create()
    config = binding.CoreConfig(
        nr_pcpus=arguments.cpus,
        memory_bytes=arguments.memory,
        console_bytes=0,
        command_line=f"host={paths.name} cpus={arguments.cpus} memory={arguments.memory >> 20}M"
        f" sched={arguments.scheduler}",
        scheduler=arguments.scheduler,
    )
    with host_lock(paths), Machine(core, config) as machine:
        trio.run(serve, machine, paths, arguments.ready_fd)
    log.info("hyper has stopped", host=paths.name)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    daemon.configure_logging()
    try:
        run(arguments, binding.load())
    except (StartError, XenError, OSError, ValueError) as error:
        print(f"hyper: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"hyper: the core is not built: {error}; run `pip install -e .`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
