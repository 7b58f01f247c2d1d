"""What Dom0's daemons share: sockets to listen on, ports a killed predecessor still has, how errors are told.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from hyper.public.errors import XenError

T = TypeVar("T")
log = structlog.get_logger()

REAP_SECONDS = 5.0
"""How long hyper may take to notice that a process of Dom0 is dead and to free its ports."""
_OUT_OF_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening stream socket, mode 0600, removed at the end. What a predecessor has left there is
    replaced.

    Raises: OSError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)
        old_umask = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(old_umask)
        listener.listen(128)
        listener.setblocking(False)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


async def clients(listener: socket.socket) -> AsyncIterator[socket.socket]:
    """Who connects, for ever, as non-blocking sockets. Out of file descriptors, waits for some to be closed.

    Raises: OSError.
    """
    while True:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            await trio.lowlevel.wait_readable(listener)
        except ConnectionAbortedError:
            continue
        except OSError as error:
            if error.errno not in _OUT_OF_ROOM:
                raise
            log.warning("no client can be accepted", error=error.strerror)
            await trio.sleep(0.1)
        else:
            client.setblocking(False)
            yield client


async def when_reaped(
    bind: Callable[[], Awaitable[T]], taken: type[XenError], patience: float = REAP_SECONDS
) -> T:
    """Tries again for `patience` seconds while `taken` says that a port still is our killed predecessor's.

    Raises: XenError.
    """
    deadline = trio.current_time() + patience
    while True:
        try:
            return await bind()
        except taken:
            if trio.current_time() >= deadline:
                raise
            await trio.sleep(0.02)
