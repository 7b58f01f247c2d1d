"""What the daemons of a host do alike at their start and end: logging, readiness, SIGTERM, no core dumps."""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog
import trio

from hyper.public.errors import HypervisorGone, XenError, leaves
from hyper.public.paths import HostPaths

_PR_SET_DUMPABLE = 4


def configure_logging() -> None:
    """structlog: one line per event to stderr, exceptions below it. The supervisor redirects stderr to a
    file.
    """
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def harden() -> None:
    """No core dump, no ptrace and no /proc/PID/fd for siblings of the same uid. Before anything secret is
    opened.

    Raises: OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def raise_fd_limit() -> int:
    """Lifts the soft limit of open files to the hard one: a port costs two. Returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def announce_ready(ready_fd: int | None) -> None:
    """Tells who started us that we serve: one byte into `--ready-fd`, which is closed then. None: nobody
    asked.
    """
    if ready_fd is not None:
        os.write(ready_fd, b"\n")
        os.close(ready_fd)


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """What every daemon of a host is told: `--host` and `--ready-fd`."""
    options = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    options.add_argument("--host", help="host instance (default: $UMXEN_HOST, or 'default')")
    options.add_argument("--ready-fd", type=int, metavar="N", help="write a byte to fd N when serving")
    return options


def run(
    name: str, serve: Callable[[], Awaitable[None]], *, expected: tuple[type[Exception], ...] = ()
) -> int:
    """Run a daemon until `serve` returns: its exit status. What may go wrong anywhere, and `expected`, is a
    line each on stderr.
    """
    told: tuple[type[Exception], ...] = (OSError, ValueError, HypervisorGone, XenError, *expected)
    configure_logging()
    status = 0
    try:
        harden()
        raise_fd_limit()
        trio.run(serve)
    except* told as errors:
        for error in leaves(errors):
            print(f"{name}: {error}", file=sys.stderr)
        status = 1
    return status


def main(
    module: str,
    description: str,
    serve: Callable[[HostPaths, int | None], Awaitable[None]],
    argv: Sequence[str] | None = None,
    *,
    expected: tuple[type[Exception], ...] = (),
) -> int:
    """The whole of a daemon that serves a host and has no further options."""
    arguments = parser(module, description).parse_args(argv)

    async def serve_host() -> None:
        await serve(HostPaths.from_environment(arguments.host), arguments.ready_fd)

    return run(module.rpartition(".")[2], serve_host, expected=expected)


async def cancel_on_sigterm(
    scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Cancels `scope` at SIGTERM or SIGINT: `await nursery.start(cancel_on_sigterm,
    nursery.cancel_scope)`.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie. With its pid it is
    a name that no later process has.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
