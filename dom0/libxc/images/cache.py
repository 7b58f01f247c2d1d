"""Unpacked kernels, kept by the SHA-256 of the packed file: a kernel is unpacked once, not per guest.

A cached file is the ELF image with holes where it is zero. Files appear by rename, so a reader sees a whole
one or none; two processes that unpack the same kernel at once write the same bytes. Any file may be deleted
at any time. Beside them, a link for each packed file (inode, size, times) leads to its unpacked form, so that
a known file is not even read. Where the folder can't be written a kernel is unpacked into memory, each time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dom0.libxc.images.errors import ImageError
from dom0.libxc.images.source import ImageFile

MAX_CACHED = 16
"""Kernels kept; the one not used for longest goes."""

_GRAIN = 64 << 10  # smallest hole
_ZEROS = bytes(_GRAIN)
_SETTLED_NS = 1_000_000_000  # a file changed less than this before it was read may change again unseen
_TEMPORARY = "unpacking-"
_STALE_SECONDS = 3600
_LINK = "file-"
_DIGEST_LETTERS = 64

_Unpack = Callable[[bytes], Iterator[bytes]]


class KernelCache:
    """One folder of unpacked kernels. Calls block: use a worker thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def from_environment(cls) -> KernelCache:
        """The user's: $XDG_CACHE_HOME/umxen/kernels, by default below ~/.cache."""
        base = os.environ.get("XDG_CACHE_HOME")
        return cls((Path(base) if base else Path.home() / ".cache") / "umxen" / "kernels")

    def open(self, packed: ImageFile, unpack: _Unpack) -> ImageFile:
        """The unpacked form of `packed`, under its name. `unpack` gets the whole file when it is a new one.

        Raises: ImageError from `unpack`, or when `packed` cannot be read.
        """
        link = self._folder / _identity(packed)
        if cached := self._open_cached(packed.name, link):
            return cached
        read_ns = time.time_ns()
        settled = read_ns - os.fstat(packed.fd).st_ctime_ns > _SETTLED_NS
        content = packed.read(0, packed.size)
        digest = hashlib.sha256(content).hexdigest()
        unpacked = self._open_cached(packed.name, self._folder / digest)
        if unpacked is None:
            unpacked = self._fill(packed.name, digest, unpack(content))
        if settled:
            self._remember(link, digest)
        return unpacked

    def _open_cached(self, name: str, path: Path) -> ImageFile | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            os.utime(fd)  # for _prune
        except OSError:
            pass
        return ImageFile(name, fd)

    def _fill(self, name: str, digest: str, pieces: Iterator[bytes]) -> ImageFile:
        temporary: Path | None = None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd, path = tempfile.mkstemp(prefix=_TEMPORARY, dir=self._folder)
            temporary = Path(path)
        except OSError:
            fd = os.memfd_create("unpacked-kernel", os.MFD_CLOEXEC)
        try:
            _write_sparse(fd, pieces)
            if temporary:
                os.fdatasync(fd)  # a power cut must not leave a name with half a kernel
                temporary.rename(self._folder / digest)
                temporary = None
                self._prune()
        except BaseException as exc:
            os.close(fd)
            if isinstance(exc, OSError):
                raise ImageError(name, f"cannot be unpacked in {self._folder}: {exc.strerror}") from exc
            raise
        finally:
            if temporary:
                temporary.unlink(missing_ok=True)
        return ImageFile(name, fd)

    def _remember(self, link: Path, digest: str) -> None:
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(digest)
        except OSError:
            return  # another process was faster, or there is no folder

    def _prune(self) -> None:
        kernels = []
        for path in self._folder.iterdir():
            try:
                used = path.lstat().st_mtime
                if path.name.startswith(_TEMPORARY) and used < time.time() - _STALE_SECONDS:
                    path.unlink()
                elif len(path.name) == _DIGEST_LETTERS:
                    kernels.append((used, path))
            except FileNotFoundError:
                continue  # another process was faster
        for _, path in sorted(kernels)[:-MAX_CACHED]:
            path.unlink(missing_ok=True)
        for path in self._folder.glob(_LINK + "*"):
            if not path.exists():
                path.unlink(missing_ok=True)


def _identity(file: ImageFile) -> str:
    """The name of the link for this file as it is now."""
    status = os.fstat(file.fd)
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return _LINK + "-".join(f"{number:x}" for number in numbers)


def _write_sparse(fd: int, pieces: Iterator[bytes]) -> None:
    """Writes the pieces one after the other, zeros as holes."""
    end = 0
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), _GRAIN):
            block = view[start : start + _GRAIN]
            if block != _ZEROS[: len(block)]:
                _write_all(fd, block, end + start)
        end += len(view)
    os.ftruncate(fd, end)


def _write_all(fd: int, block: memoryview, offset: int) -> None:
    while block:
        done = os.pwrite(fd, block, offset)
        block, offset = block[done:], offset + done
