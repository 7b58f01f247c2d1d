"""Journals of queues in hyper's fd store, and an index of them there: the store itself can't be listed."""

from __future__ import annotations

import os
from contextlib import suppress

from hyper.guest import Hypervisor
from hyper.public.errors import NoSuchNode

INDEX_NAME = "blkback.index"


def journal_name(domid: int, devid: int, queue: int) -> str:
    """In hyper's fd store."""
    return f"blkback.{domid}.{devid}.{queue}"


class Journals:
    """Those of all devices. The memfds' contents are the data path's business."""

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp
        self._index = -1
        self._names: set[str] = set()
        self._inherited: set[str] = set()

    async def open(self) -> None:
        """Finds out what a predecessor has left."""
        fd = await self._hyp.fd_get(INDEX_NAME)
        if fd is None:
            fd = os.memfd_create("umxen-blkback-index", os.MFD_CLOEXEC)
            await self._hyp.fd_put(INDEX_NAME, fd)
        self._index = fd
        self._names = set(os.pread(fd, os.fstat(fd).st_size, 0).decode().split())
        self._inherited = set(self._names)

    async def make(self, name: str, nbytes: int) -> int:
        """A new journal, all zeros, in place of any other. The caller closes the descriptor."""
        fd = os.memfd_create("umxen-blkback", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, nbytes)
            self._names.add(name)  # first: what is not in the index could never be removed
            self._inherited.discard(name)
            self._write()
            await self._hyp.fd_put(name, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    async def find(self, name: str, nbytes: int) -> int | None:
        """A predecessor's, if it is as long as it should be. The caller closes the descriptor."""
        fd = await self._hyp.fd_get(name)
        if fd is None:
            return None
        self._inherited.discard(name)
        if os.fstat(fd).st_size == nbytes:
            return fd
        os.close(fd)
        return None

    async def remove(self, name: str) -> None:
        """May be there or not."""
        with suppress(NoSuchNode):
            await self._hyp.fd_del(name)
        self._names.discard(name)
        self._inherited.discard(name)
        self._write()

    async def sweep(self, in_use: set[tuple[int, int]]) -> None:
        """Removes what a predecessor has left of devices that are not there any more."""
        for name in list(self._inherited):
            _, domid, devid, _ = name.split(".")
            if (int(domid), int(devid)) not in in_use:
                await self.remove(name)

    def _write(self) -> None:
        text = "".join(f"{name}\n" for name in sorted(self._names)).encode()
        os.pwrite(self._index, text, 0)
        os.ftruncate(self._index, len(text))

    def close(self) -> None:
        if self._index >= 0:
            os.close(self._index)
            self._index = -1
