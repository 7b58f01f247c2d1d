"""qemu-storage-daemon: a child of ours for each disk in a format of QEMU's, or behind a network.

It opens the image (taking QEMU's locks), and serves it to us as NBD on a unix socket. It dies with us; who
comes after us starts another, which gets the image's lock when the old one's I/O is over.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from backends.blkback.config import DiskConfig
from backends.blkback.nbd import Export, NbdError, connect
from backends.bus import DeviceError

PROGRAM = "qemu-storage-daemon"
EXPORT = "disk"
_START_SECONDS = 15.0
_LOCK_SECONDS = 5.0
"""How long a killed predecessor's image may stay locked."""
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.01

Node = dict[str, Any]


class StorageDaemon:
    """One child. `start`, then any number of connect(); `stop` at the end."""

    def __init__(self, disk: DiskConfig, folder: Path) -> None:
        self._disk = disk
        self._folder = folder
        self._socket = folder / "nbd.sock"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Returns when it serves. Waits for a lock that a predecessor may still have.

        Raises: DeviceError, with what it said.
        """
        deadline = trio.current_time() + _LOCK_SECONDS
        while True:
            said = await self._try()
            if said is None:
                return
            if "lock" not in said or trio.current_time() >= deadline:
                raise DeviceError(f"{self._disk.target}: {said}")
            await trio.sleep(0.05)

    async def connect(self) -> tuple[int, Export]:
        """A socket for one queue. Raises: OSError, NbdError."""
        return await connect(str(self._socket), EXPORT)

    async def restart(self) -> None:
        """After it has died, or has stopped answering. Raises: DeviceError."""
        await self._end()
        await self.start()

    async def stop(self) -> None:
        """Lets it finish and write what it has to; not interrupted."""
        with trio.CancelScope(shield=True):
            await self._end()

    async def _try(self) -> str | None:
        """None when it serves, else what it said at its end."""
        self._socket.unlink(missing_ok=True)
        with self._log.open("wb") as log:
            # By ourselves and not by trio: the parent-death signal is that of the thread that started it.
            self._process = subprocess.Popen(  # noqa: ASYNC220
                command(self._disk, self._socket),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, close_fds=True, start_new_session=True,
            )  # fmt: skip
        deadline = trio.current_time() + _START_SECONDS
        while self._process.poll() is None:
            try:
                await self._probe()
                return None
            except (OSError, NbdError) as error:
                if trio.current_time() >= deadline:
                    await self._end()
                    return f"{PROGRAM} does not answer: {error}"
            await trio.sleep(_POLL_SECONDS)
        return self._last_words()

    async def _probe(self) -> None:
        sock, _ = await self.connect()
        os.close(sock)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        said = lines[-1].removeprefix(f"{PROGRAM}: ") if lines else f"{PROGRAM} ended without a word"
        if "nknown driver" in said or "nvalid parameter" in said:
            said += "; Debian's package qemu-block-extra has drivers for remote disks"
        return said

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for kill, seconds in ((process.terminate, _STOP_SECONDS), (process.kill, _STOP_SECONDS)):
            if process.poll() is None:
                kill()
            if await _ended_within(process, seconds):
                return


async def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    with trio.move_on_after(seconds):
        while process.poll() is None:  # noqa: ASYNC110
            await trio.sleep(_POLL_SECONDS)
    return process.poll() is not None


def make_folder(parent: Path) -> Path:
    """A folder for one child's socket and log."""
    parent.mkdir(mode=0o700, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=parent))


def command(
    disk: DiskConfig, nbd_socket: Path, which: Callable[[str], str | None] = shutil.which
) -> list[str]:
    """The child's command line.

    Raises: DeviceError when it is not installed.
    """
    program, setpriv = which(PROGRAM), which("setpriv")
    if program is None:
        raise DeviceError(
            f"{disk.target}: this needs {PROGRAM}, which is not installed (Debian: qemu-system-common)"
        )
    dying = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    export = {"type": "nbd", "id": "e", "node-name": EXPORT, "name": EXPORT, "writable": not disk.read_only}
    server = {"addr": {"type": "unix", "path": str(nbd_socket)}, "max-connections": 0}
    return [
        *dying, program,
        *(word for node in blockdevs(disk) for word in ("--blockdev", json.dumps(node))),
        "--nbd-server", json.dumps(server),
        "--export", json.dumps(export),
    ]  # fmt: skip


def blockdevs(disk: DiskConfig) -> list[Node]:
    """QEMU's block nodes: where the bytes are, and the format above. The last one is EXPORT.

    Raises: DeviceError for a URL we can't read.
    """
    source = _remote(disk.target) if disk.remote else _file(disk)
    common: Node = {
        "read-only": disk.read_only,
        "discard": "unmap" if disk.discard else "ignore",
        "cache": {"direct": disk.direct, "no-flush": False},
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
