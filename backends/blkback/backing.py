"""What is behind a disk: a file or device of this host, a qemu-storage-daemon, or nothing (an empty drive).

A backing says how large it is and gives each queue a descriptor for its data path.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from backends.blkback.config import SECTOR_BYTES, DiskConfig
from backends.blkback.locks import ImageLocked, life_byte, lock_image, take_life
from backends.blkback.nbd import Export, NbdError
from backends.blkback.qsd import Place, StorageDaemon
from backends.bus import DeviceError

log = structlog.get_logger("blkback")

_LIFE_SECONDS = 30.0
"""How long I/O of a killed predecessor may take to end."""
_BLKSSZGET, _BLKPBSZGET, _BLKGETSIZE64 = 0x1268, 0x127B, 0x80081272
_FALLOC_PUNCH_KEEP = 0x3
FILE_DISCARD_BYTES = 4096


class Backing(ABC):
    """`kind` is what the data path calls it."""

    kind = "file"
    sector_bytes = SECTOR_BYTES
    physical_bytes = SECTOR_BYTES
    discard_bytes = 0
    read_only = False
    identity: tuple[int, int] | None = None
    """Of the file, to find out who else has it."""
    path = ""
    caches_tables = False
    """Answered writes may be lost with its server's life, until they are flushed."""
    is_successor = False
    """Its server has died together with a predecessor of this daemon."""

    @abstractmethod
    async def nr_sectors(self) -> int:
        """Its present size in sectors of 512 bytes; a piece of a sector at its end does not count.

        Raises: OSError, DeviceError.
        """

    @abstractmethod
    async def queue_fd(self) -> int:
        """The data path's descriptor: ours, or with kind "nbd" a new socket that is the queue's."""

    async def restart(self) -> None:
        """Its server is gone: start another. Raises: DeviceError."""
        raise DeviceError("the disk is gone")

    async def close(self) -> None:
        """Lets go of it; no queue is left."""
        return


class NoMedium(Backing):
    """An empty drive: no sectors, every request fails."""

    read_only = True

    def __init__(self) -> None:
        self._fd = os.memfd_create("umxen-no-medium", os.MFD_CLOEXEC)

    async def nr_sectors(self) -> int:
        return 0

    async def queue_fd(self) -> int:
        return self._fd

    async def close(self) -> None:
        os.close(self._fd)


class FileBacking(Backing):
    """A raw image or a block device.

    phy:, file: and tap:aio: go past the page cache (O_DIRECT), as Xen's blkback and tapdisk do; tap:raw: goes
    through it, as xl's default for QEMU. file: was a loop device in Xen, cached; measured here, that costs a
    queue's thread fourteen times the CPU time of O_DIRECT for what is not in the cache yet, time that the
    guest's CPU needs, and the guest has a cache of its own. Where a file system has no O_DIRECT, or not of
    single sectors, all go through the cache.
    """

    def __init__(self, fd: int, disk: DiskConfig) -> None:
        status = os.fstat(fd)
        self._fd = fd
        self.path = disk.target
        self.read_only = disk.read_only
        self.identity = (status.st_dev, status.st_ino)
        if stat.S_ISBLK(status.st_mode):
            self.kind = "block device"
            self.sector_bytes = _ioctl_int(fd, _BLKSSZGET)
            self.physical_bytes = _ioctl_int(fd, _BLKPBSZGET)
            self.discard_bytes = _device_discard_bytes(status.st_rdev) if disk.discard else 0
        elif disk.discard and not disk.read_only and _can_punch(fd, status.st_size):
            self.discard_bytes = FILE_DISCARD_BYTES

    async def nr_sectors(self) -> int:
        if self.kind == "block device":
            nbytes = int.from_bytes(fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8)), "little")
        else:
            nbytes = os.fstat(self._fd).st_size
        return nbytes // self.sector_bytes * (self.sector_bytes // SECTOR_BYTES)

    async def queue_fd(self) -> int:
        return self._fd

    async def close(self) -> None:
        os.close(self._fd)


class NbdBacking(Backing):
    """Served by a qemu-storage-daemon of our own."""

    kind = "nbd"

    def __init__(self, disk: DiskConfig, place: Place) -> None:
        self.path = disk.target
        self.read_only = disk.read_only
        self.caches_tables = disk.format == "qcow2"
        self._daemon = StorageDaemon(disk, place)
        self._folder = place.folder

    async def open(self, *, resuming: bool) -> None:
        """Raises: DeviceError."""
        self.is_successor = not await self._daemon.open(resuming=resuming) and resuming
        sock, export = await self._connect()
        os.close(sock)
        self.read_only = self.read_only or export.read_only
        self.discard_bytes = FILE_DISCARD_BYTES if export.can_trim and not self.read_only else 0

    async def nr_sectors(self) -> int:
        sock, export = await self._connect()
        os.close(sock)
        return export.nbytes // SECTOR_BYTES

    async def queue_fd(self) -> int:
        sock, _ = await self._connect()
        return sock

    async def restart(self) -> None:
        await self._daemon.restart()

    async def close(self) -> None:
        await self._daemon.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _connect(self) -> tuple[int, Export]:
        try:
            return await self._daemon.connect()
        except (OSError, NbdError) as error:
            raise DeviceError(f"{self.path}: {error}") from error


@asynccontextmanager
async def open_backing(
    disk: DiskConfig, name: str, place: Place, *, resuming: bool, stays: Callable[[], bool]
) -> AsyncIterator[Backing]:
    """Opens and locks the disk of device `name` (unique on this machine); `place` is for its server if it
    needs one. At the end that goes too, unless `stays`: a successor of ours will take it over.

    Raises: DeviceError; ImageLocked.
    """
    backing = await _open(disk, name, place, resuming)
    try:
        yield backing
    finally:
        with trio.CancelScope(shield=True):
            if not (isinstance(backing, NbdBacking) and stays()):
                await backing.close()


async def _open(disk: DiskConfig, name: str, place: Place, resuming: bool) -> Backing:
    if not disk.target:
        return NoMedium()
    if disk.remote or disk.format != "raw":
        if not disk.remote and not os.path.exists(disk.target):  # noqa: ASYNC240
            raise DeviceError(f"{disk.target}: no such file")
        backing = NbdBacking(disk, place)
        try:
            await backing.open(resuming=resuming)
        except BaseException:
            with trio.CancelScope(shield=True):
                await backing.close()
            raise
        return backing
    fd = _open_file(disk)
    try:
        await _lock(fd, disk, name, _LIFE_SECONDS if resuming else 0)
        return FileBacking(fd, disk)
    except BaseException:
        os.close(fd)
        raise


def _open_file(disk: DiskConfig) -> int:
    flags = os.O_CLOEXEC | os.O_NOCTTY | (os.O_RDONLY if disk.read_only else os.O_RDWR)
    try:
        mode = os.stat(disk.target).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DeviceError(f"{disk.target}: neither a file nor a block device")
        if disk.direct or stat.S_ISBLK(mode):
            fd = _open_direct(disk.target, flags)
            if fd is not None:
                return fd
            log.warning("no O_DIRECT of single sectors here; through the page cache", path=disk.target)
        return os.open(disk.target, flags)
    except OSError as error:
        raise DeviceError(f"{disk.target}: {error.strerror}") from error


def _open_direct(path: str, flags: int) -> int | None:
    """Raises: OSError."""
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
    if _takes_sectors(fd):
        return fd
    os.close(fd)
    return None


async def _lock(fd: int, disk: DiskConfig, name: str, patience: float) -> None:
    """Waits for a predecessor's last I/O, and then `patience` seconds for who has used its absence.

    Raises: DeviceError, ImageLocked.
    """
    byte, deadline = life_byte(name), trio.current_time() + _LIFE_SECONDS
    while not take_life(fd, byte):
        if trio.current_time() >= deadline:
            raise DeviceError(f"{disk.target}: I/O of this device's last life has not ended")
        await trio.sleep(0.005)
    deadline = trio.current_time() + patience
    while True:
        try:
            has_locks = lock_image(fd, read_only=disk.read_only, exclusive=disk.exclusive)
            break
        except ImageLocked:
            if trio.current_time() >= deadline:
                raise
            await trio.sleep(0.05)
    if not has_locks:
        log.warning("this file system has no locks: nobody is kept from using the image", path=disk.target)


def _ioctl_int(fd: int, request: int) -> int:
    (value,) = struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))
    return int(value)


def _device_discard_bytes(device: int) -> int:
    queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue")
    try:
        if int((queue / "discard_max_bytes").read_text()):
            return max(SECTOR_BYTES, int((queue / "discard_granularity").read_text()))
    except (OSError, ValueError):
        pass  # a partition has no queue folder of its own
    return 0


def _can_punch(fd: int, nbytes: int) -> bool:
    """Asks by punching a hole beyond the end, where there is nothing."""
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(fallocate(fd, _FALLOC_PUNCH_KEEP, nbytes, FILE_DISCARD_BYTES) == 0)


def _takes_sectors(fd: int) -> bool:
    """Whether O_DIRECT takes single sectors, from any sector's place in a page: a guest may ask for that."""
    is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
    nbytes = _ioctl_int(fd, _BLKSSZGET) if is_device else SECTOR_BYTES
    with mmap.mmap(-1, 2 * nbytes) as memory, memoryview(memory) as view, view[nbytes:] as place:
        try:
            os.preadv(fd, [place], 0)
        except OSError as error:
            return error.errno != errno.EINVAL
    return True
