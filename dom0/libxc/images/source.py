"""An open file, read by offset."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from dom0.libxc.images.errors import ImageError

_IOV_MAX = 1024


class ImageFile:
    """Owns the descriptor of a kernel, ramdisk or unpacked kernel; a context manager.

    `name` is what the user called the file, also when the bytes come from the cache.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.size = os.fstat(fd).st_size

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises: ImageError when it cannot be read, is no regular file, or is empty."""
        name = str(path)
        try:
            # O_NONBLOCK: opening a fifo must not wait for its writer.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
            reason = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise ImageError(name, f"cannot be opened: {reason}") from exc
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ImageError(name, "is not a regular file")
            file = cls(name, fd)
            if not file.size:
                raise ImageError(name, "is empty")
        except BaseException:
            os.close(fd)
            raise
        return file

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Blocks on the disk.

        Raises: ImageError when the file ends before.
        """
        if offset + size > self.size:
            raise self.truncated(offset + size)
        data = self._pread(size, offset)
        while len(data) < size:
            more = self._pread(size - len(data), offset + len(data))
            if not more:
                raise ImageError(self.name, "became shorter while it was read")
            data += more
        return data

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fills `buffers`, one after the other, with the bytes from `offset` on. Blocks, without the GIL.

        Raises: ImageError when the file ends before.
        """
        pending = list(buffers)
        pending.reverse()
        while pending:
            batch = pending[: -_IOV_MAX - 1 : -1]
            try:
                done = os.preadv(self.fd, batch, offset)
            except OSError as exc:
                raise ImageError(self.name, f"cannot be read: {exc.strerror}") from exc
            if not done:
                raise ImageError(self.name, "became shorter while it was read")
            offset += done
            while pending and done >= len(pending[-1]):
                done -= len(pending.pop())
            if done:
                pending.append(pending.pop()[done:])

    def data_extents(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """(offset, size) of the parts of this range that are not holes, in order. A hole reads as zeros."""
        end = min(offset + size, self.size)
        while offset < end:
            try:
                offset = os.lseek(self.fd, offset, os.SEEK_DATA)
                hole = os.lseek(self.fd, offset, os.SEEK_HOLE)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                hole = end  # a file system without holes
            if offset >= end:
                return
            yield offset, min(hole, end) - offset
            offset = hole

    def truncated(self, wanted: int) -> ImageError:
        return ImageError(self.name, f"is truncated: has {self.size} bytes of at least {wanted}")

    def close(self) -> None:
        """Never fails; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _pread(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self.fd, size, offset)
        except OSError as exc:
            raise ImageError(self.name, f"cannot be read: {exc.strerror}") from exc
