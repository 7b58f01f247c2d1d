"""Debian's own xenstored as an oracle: fetched without installing it, and run without a hypervisor."""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.xenstore_kit import PATIENCE, RingCaller, SocketCaller

PACKAGE = "xen-utils-4.17"
INSTALLED = Path("/usr/lib/xen-4.17/bin")
PRELOAD = Path(__file__).parent / "contract" / "xenstored_oracle.c"


def xen_utils() -> Path:
    """The folder with xenstored and test-xenstore: installed, or unpacked into the cache."""
    if (INSTALLED / "xenstored").exists():
        return INSTALLED
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umxen" / PACKAGE
    if not cache.exists():
        _unpack(cache)
    return cache / INSTALLED.relative_to("/")


def _unpack(cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
        try:
            subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True, capture_output=True)
            (package,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", package, f"{folder}/root"], check=True, capture_output=True)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            hint = "installed, or to be had by apt-get download"
            pytest.fail(f"this test needs Debian's package {PACKAGE}, {hint} ({error})")
        if not cache.exists():
            shutil.move(f"{folder}/root", cache)


def build_preload(folder: Path) -> Path:
    """Compiles the library that stands for the hypervisor. Needs libxen-dev."""
    library = folder / "oracle.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o", str(library), str(PRELOAD), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{PRELOAD.name} does not compile (it needs Debian's libxen-dev): {done.stderr}")
    return library


class Oracle:
    """A running one. Domains 1 to 3 exist."""

    VIRQ_PORT = 1
    GUEST_PORT = 5
    """What guests are introduced with; theirs is domid * 100 + 5 then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "socket"

    def set_domains(self, states: str) -> None:
        """`states`: one letter per domain from 0 on: r(unning), s(hut down), d(ying), or - for none."""
        new = self.folder / "domains.new"
        new.write_text("".join(f"{domid} {state}\n" for domid, state in enumerate(states) if state != "-"))
        new.rename(self.folder / "domains")

    def kick(self, port: int) -> None:
        fd = os.open(self.folder / "evt.in", os.O_RDWR)
        os.write(fd, struct.pack("<I", port))
        os.close(fd)

    def guest(self, domid: int) -> RingCaller:
        with (self.folder / f"ring.{domid}").open("r+b") as file:
            page = mmap.mmap(file.fileno(), 4096)

        def kick() -> None:
            self.kick(domid * 100 + self.GUEST_PORT)

        async def poll() -> None:
            await trio.sleep(0.0005)
            if next(polls) % 20 == 0:
                kick()  # once more: the FIFO stands for an event channel, which forgets nothing

        polls = itertools.count(1)
        return RingCaller(page, kick, poll)


@asynccontextmanager
async def run_oracle(folder: Path, library: Path) -> AsyncIterator[Oracle]:
    oracle = Oracle(folder)
    for name in ("evt.in", "evt.out"):
        os.mkfifo(folder / name)
    (folder / "port").write_text("7\n")
    for domid in range(4):
        (folder / f"ring.{domid}").write_bytes(bytes(4096))
    oracle.set_domains("rrrr")
    environment = {"ORACLE_DIR": str(folder), "XENSTORED_RUNDIR": str(folder), "LD_PRELOAD": str(library)}
    process = await trio.lowlevel.open_process(
        [str(xen_utils() / "xenstored"), "-N"], env={**os.environ, **environment},
        stdout=subprocess.DEVNULL, stderr=(folder / "stderr").open("wb"),
    )  # fmt: skip
    try:
        with trio.move_on_after(PATIENCE):
            while process.poll() is None:
                try:
                    (await SocketCaller.connect(oracle.socket)).stream.socket.close()
                    break
                except OSError:
                    await trio.sleep(0.01)
        if process.poll() is not None:
            said = (folder / "stderr").read_text()
            pytest.fail(f"Xen's xenstored does not start (libxenmisc4.17 missing?): {said}")
        yield oracle
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
