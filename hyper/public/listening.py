"""Unix sockets that a host's daemons listen on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import trio

log = structlog.get_logger()

_OUT_OF_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


@contextmanager
def listening(path: Path, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """A listening unix socket, mode 0600, removed at the end. What a predecessor has left there is
    replaced.

    Raises: OSError.
    """
    with socket.socket(socket.AF_UNIX, kind) as listener:
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
