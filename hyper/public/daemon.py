"""What the daemons of a host do alike at their start and end: logging, readiness, SIGTERM, no core dumps."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

import structlog
import trio

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
