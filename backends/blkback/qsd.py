"""qemu-storage-daemon: one for each disk in a format of QEMU's, or behind a network.

It opens the image (taking QEMU's locks), and serves it to us as NBD on a unix socket. It outlives us: a
format like qcow2 keeps tables in memory, and a write that was answered must not be lost with them when we are
killed. Who comes after us takes it over, and so waits until what it was doing for us is over. When hyper is
gone it is told to end, by a `flock` that waits for hyper's lock.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from backends.blkback import qmp
from backends.blkback.config import DiskConfig
from backends.blkback.nbd import Export, NbdError, connect
from backends.bus import DeviceError

PROGRAM = "qemu-storage-daemon"
EXPORT = "disk"
_EXPORT_ID = "e"
_START_SECONDS = 15.0
_ADOPT_SECONDS = 30.0
"""How long I/O that was under way for a killed predecessor may take."""
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.01
# The daemon, and beside it one that ends it when the lock of $0, hyper's, is free.
_GUARDED = """lock=$0
"$@" & daemon=$!
flock "$lock" kill "$daemon" & guard=$!
wait "$daemon"; status=$?
kill "$guard"; exit "$status"
"""

Node = dict[str, Any]
log = structlog.get_logger("blkback")


@dataclass(frozen=True)
class Place:
    """Where a daemon's socket, control socket and log are; and the lock that hyper holds while it lives."""

    folder: Path
    hyper_lock: Path

    @property
    def nbd(self) -> Path:
        return self.folder / "nbd"

    @property
    def control(self) -> Path:
        return self.folder / "qmp"

    @property
    def log(self) -> Path:
        return self.folder / "log"


class StorageDaemon:
    """The daemon of one disk."""

    def __init__(self, disk: DiskConfig, place: Place) -> None:
        self._disk = disk
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None

    async def open(self, *, resuming: bool) -> bool:
        """Starts one, or takes over what a killed predecessor has left. True: it was taken over.

        Raises: DeviceError, with what it said.
        """
        self._place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if resuming and await self._adopt():
            return True
        await self.close()
        await self._start()
        return False

    async def connect(self) -> tuple[int, Export]:
        """A socket for one queue. Raises: OSError, NbdError."""
        return await connect(str(self._place.nbd), EXPORT)

    async def restart(self) -> None:
        """After it has died, or broken a connection. Raises: DeviceError."""
        await self.close()
        await self._start()

    async def close(self) -> None:
        """Lets it write what it has to, and end; not interrupted. No daemon is left at this place."""
        with trio.CancelScope(shield=True):
            await end(self._place)
            while self._process is not None and self._process.poll() is None:  # noqa: ASYNC110
                await trio.sleep(_POLL_SECONDS)
            self._process = None

    async def _adopt(self) -> bool:
        try:
            with trio.fail_after(_ADOPT_SECONDS):
                async with qmp.connect(str(self._place.control)) as control:
                    # The export is gone when its last request is over, the predecessor's.
                    await control.command("block-export-del", id=_EXPORT_ID, mode="hard")
                    await control.wait_event("BLOCK_EXPORT_DELETED")
                    await control.command("block-export-add", **export(self._disk))
        except (OSError, qmp.QmpError, trio.TooSlowError) as error:
            log.warning(
                "a predecessor's daemon cannot be taken over", path=self._disk.target, reason=str(error)
            )
            return False
        return True

    async def _start(self) -> None:
        """Raises: DeviceError."""
        for path in (self._place.nbd, self._place.control):
            path.unlink(missing_ok=True)
        with self._place.log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220
                command(self._disk, self._place),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = trio.current_time() + _START_SECONDS
        while self._process.poll() is None:
            try:
                sock, _ = await self.connect()
                os.close(sock)
                return
            except (OSError, NbdError) as error:
                if trio.current_time() >= deadline:
                    raise DeviceError(f"{self._disk.target}: {PROGRAM} does not answer: {error}") from error
            await trio.sleep(_POLL_SECONDS)
        raise DeviceError(f"{self._disk.target}: {self._last_words()}")

    def _last_words(self) -> str:
        lines = self._place.log.read_text(errors="replace").strip().splitlines()
        said = next((line for line in lines if PROGRAM in line), "") or f"{PROGRAM} ended without a word"
        said = said.rpartition(f"{PROGRAM}: ")[2]
        if "nknown driver" in said or "nvalid parameter" in said:
            said += "; Debian's package qemu-block-extra has drivers for remote disks"
        return said


async def end(place: Place) -> None:
    """Ends the daemon at `place`, if there is one, gently at first."""
    try:
        async with qmp.connect(str(place.control)) as control:
            pid = control.pid
            pidfd = os.pidfd_open(pid)
            try:
                await control.command("quit")
            except qmp.QmpError:
                pass  # it has hung up: it does
    except (OSError, qmp.QmpError):
        return  # nobody is there
    try:
        for number in (signal.SIGTERM, signal.SIGKILL, 0):
            with trio.move_on_after(_STOP_SECONDS):
                await trio.lowlevel.wait_readable(pidfd)
                return
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def command(disk: DiskConfig, place: Place, which: Callable[[str], str | None] = shutil.which) -> list[str]:
    """The daemon's command line.

    Raises: DeviceError when it is not installed.
    """
    program = which(PROGRAM)
    if program is None:
        raise DeviceError(
            f"{disk.target}: this needs {PROGRAM}, which is not installed (Debian: qemu-system-common)"
        )
    guard = ["sh", "-c", _GUARDED, str(place.hyper_lock)] if which("flock") else []
    server = {"addr": {"type": "unix", "path": str(place.nbd)}, "max-connections": 0}
    return [
        *guard, program,
        *(word for node in blockdevs(disk) for word in ("--blockdev", json.dumps(node))),
        "--nbd-server", json.dumps(server),
        "--export", json.dumps(export(disk)),
        "--chardev", f"socket,id=qmp,path={str(place.control).replace(',', ',,')},server=on,wait=off",
        "--monitor", "chardev=qmp",
    ]  # fmt: skip


def export(disk: DiskConfig) -> Node:
    """The NBD export, as block-export-add has it."""
    return {
        "type": "nbd", "id": _EXPORT_ID, "node-name": EXPORT, "name": EXPORT, "writable": not disk.read_only,
    }  # fmt: skip


def blockdevs(disk: DiskConfig) -> list[Node]:
    """QEMU's block nodes: where the bytes are, and the format above. The last one is EXPORT.

    Raises: DeviceError for a URL we can't read.
    """
    source = _remote(disk.target) if disk.remote else _file(disk)
    common: Node = {
        "read-only": disk.read_only,
        "discard": "unmap" if disk.discard else "ignore",
        "cache": {"direct": disk.direct and not disk.remote, "no-flush": False},
    }
    node_below = {**source, "node-name": "source", **common}
    return [node_below, {"driver": disk.format, "file": "source", "node-name": EXPORT, **common}]


def _file(disk: DiskConfig) -> Node:
    driver = "host_device" if Path(disk.target).is_block_device() else "file"
    locking: Node = {} if disk.exclusive else {"locking": "off"}
    return {"driver": driver, "filename": disk.target, **locking}


def _remote(url: str) -> Node:
    readers = {"nbd": _nbd, "nbd+unix": _nbd, "iscsi": _iscsi, "nfs": _nfs, "rbd": _rbd}
    kind = url.partition(":")[0]
    if kind not in readers:
        raise DeviceError(f"{url}: there are nbd:, nbd+unix:, iscsi:, nfs: and rbd:")
    try:
        return readers[kind](url)
    except (ValueError, KeyError, IndexError) as error:
        raise DeviceError(f"{url}: this is no {kind} address ({error})") from error


def _inet(host: str | None, port: int | str | None, default: int) -> Node:
    if not host:
        raise ValueError("no host")
    return {"type": "inet", "host": host, "port": str(port or default)}


def _nbd(url: str) -> Node:
    """nbd://host[:port]/export, nbd+unix:///export?socket=path, nbd:host:port[:exportname=x],
    nbd:unix:path."""
    if "://" in url:
        parts = urllib.parse.urlsplit(url)
        export = urllib.parse.unquote(parts.path.removeprefix("/"))
        if parts.scheme == "nbd+unix":
            path = urllib.parse.parse_qs(parts.query)["socket"][0]
            return {"driver": "nbd", "server": {"type": "unix", "path": path}, "export": export}
        return {"driver": "nbd", "server": _inet(parts.hostname, parts.port, 10809), "export": export}
    rest, _, export = url.removeprefix("nbd:").partition(":exportname=")
    if rest.startswith("unix:"):
        server: Node = {"type": "unix", "path": rest.removeprefix("unix:")}
    else:
        host, _, port = rest.rpartition(":")
        server = _inet(host.strip("[]"), int(port), 10809)
    return {"driver": "nbd", "server": server, "export": export}


def _iscsi(url: str) -> Node:
    """iscsi://[user:password@]host[:port]/target/lun"""
    parts = urllib.parse.urlsplit(url if "://" in url else url.replace(":", "://", 1))
    target, _, lun = parts.path.removeprefix("/").rpartition("/")
    if not parts.hostname or not target:
        raise ValueError("want iscsi://host/target/lun")
    node: Node = {
        "driver": "iscsi", "transport": "tcp", "portal": f"{parts.hostname}:{parts.port or 3260}",
        "target": urllib.parse.unquote(target), "lun": int(lun),
    }  # fmt: skip
    if parts.username:
        node["user"] = urllib.parse.unquote(parts.username)
    return node


def _nfs(url: str) -> Node:
    """nfs://host/path"""
    parts = urllib.parse.urlsplit(url if "://" in url else url.replace(":", "://", 1))
    if not parts.hostname or not parts.path:
        raise ValueError("want nfs://host/path")
    server = {"type": "inet", "host": parts.hostname}
    return {"driver": "nfs", "server": server, "path": urllib.parse.unquote(parts.path)}


def _rbd(url: str) -> Node:
    """rbd:pool/image[:conf=file][:id=user]"""
    address, *options = url.removeprefix("rbd:").removeprefix("//").split(":")
    pool, _, image = address.partition("/")
    if not pool or not image:
        raise ValueError("want rbd:pool/image")
    known = {"conf": "conf", "id": "user"}
    found = dict(option.split("=", 1) for option in options)
    return {"driver": "rbd", "pool": pool, "image": image} | {known[key]: text for key, text in found.items()}
