"""All consoles of a host: opened and closed as xenstore says which domains there are.

xenstored may go and come back: consoles stay open meanwhile, and what has changed is seen afterwards. When
this daemon itself is killed, guests wait for room in their rings; its successor finds the scrollbacks again
in hyper's fd store and connects to the same ports.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

import structlog
import trio

from dom0.endpoints import REAP_SECONDS, when_reaped
from dom0.xenconsoled.console import Console
from dom0.xenconsoled.logfile import LogWriter, log_path
from dom0.xenconsoled.scrollback import Scrollback
from hyper.guest import Hypervisor, Mapping, Port, xenstore
from hyper.guest.xenstore import XenstoreClient, XenstoreGone
from hyper.public.errors import BadArgument, GrantError, NoSuchNode, XenError
from hyper.public.paths import HostPaths
from hyper.public.xs_wire import domain_path

log = structlog.get_logger("xenconsoled")

RESERVED_CONSOLE = 0
"""The grant reference every domain has for its console ring."""
INDEX_NAME = "xenconsoled.domains"
_RETRY_SECONDS = 0.1


def scrollback_name(domid: int) -> str:
    """In hyper's fd store."""
    return f"xenconsoled.{domid}"


class Consoles:
    """Opens consoles in `nursery`."""

    def __init__(self, hyp: Hypervisor, paths: HostPaths, nursery: trio.Nursery) -> None:
        self._hyp = hyp
        self._paths = paths
        self._nursery = nursery
        self._open: dict[int, Console] = {}
        self._announced: set[int] = set()
        self._index = Index(hyp)

    async def follow(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps consoles as xenstore wants them, for ever. Started when those of the present are open."""
        await self._index.find()
        away = False
        while True:
            try:
                async with (
                    xenstore.connect(self._paths.xenstored) as xs,
                    xs.watch("@introduceDomain", "@releaseDomain") as watch,
                ):
                    async for _ in watch:
                        away = False
                        await self._update(xs)
                        if task_status is not trio.TASK_STATUS_IGNORED:
                            await self._sweep()
                            task_status.started()
                            task_status = trio.TASK_STATUS_IGNORED
            except XenstoreGone as gone:
                if not away:
                    log.warning("xenstored is away", reason=str(gone))
                away = True
                await trio.sleep(_RETRY_SECONDS)

    async def _update(self, xs: XenstoreClient) -> None:
        """Raises: XenstoreGone."""
        wanted = await self._introduced(xs)
        for domid in self._open.keys() - wanted:
            self._announced.discard(domid)
            self._nursery.start_soon(self._close, domid, self._open.pop(domid))
        for domid in sorted(wanted - self._open.keys()):
            await self._connect(xs, domid)
        for domid in self._open.keys() - self._announced:
            await xs.write(f"{domain_path(domid)}/console/tty", str(self._paths.console(domid)))
            self._announced.add(domid)

    async def _introduced(self, xs: XenstoreClient) -> set[int]:
        try:
            names = await xs.directory("/local/domain")
        except NoSuchNode:
            return set()
        domids = [int(name) for name in names if name.isascii() and name.isdigit() and name != "0"]
        return {domid for domid in domids if await xs.is_domain_introduced(domid)}

    async def _connect(self, xs: XenstoreClient, domid: int) -> None:
        """Opens the domain's console, if it has one."""
        path = domain_path(domid)
        port = await xs.read_if_exists(f"{path}/console/port")
        if port is None or not port.isdigit():
            return
        name = await xs.read_if_exists(f"{path}/name") or str(domid)
        try:
            page, bound = await self._map_and_bind(domid, int(port))
        except (XenError, GrantError) as error:
            log.warning("console not connected", domid=domid, name=name, reason=str(error))
            return
        log_writer = LogWriter(log_path(self._paths.logs, name))
        console = Console(domid, page, bound, await self._scrollback(domid), log_writer)
        await self._nursery.start(console.run, self._paths.console(domid))
        self._open[domid] = console
        log.info("console open", domid=domid, name=name)

    async def _map_and_bind(self, domid: int, remote_port: int) -> tuple[Mapping, Port]:
        """Raises: XenError, GrantError."""
        page = await self._hyp.map_grant(domid, RESERVED_CONSOLE)
        try:
            bind = partial(self._hyp.bind_interdomain, domid, remote_port)
            patience = REAP_SECONDS if domid in self._index.inherited else 0.0
            return page, await when_reaped(bind, BadArgument, patience)
        except BaseException:
            await page.close()
            raise

    async def _scrollback(self, domid: int) -> Scrollback:
        """The one a killed predecessor has left, or a new one."""
        fd = await self._hyp.fd_get(scrollback_name(domid))
        if fd is not None:
            return Scrollback(fd)
        scrollback = Scrollback()
        self._index.add(domid)
        await self._hyp.fd_put(scrollback_name(domid), scrollback.fd)
        return scrollback

    async def _close(self, domid: int, console: Console) -> None:
        """The domain is gone. Takes a moment when a viewer is slow."""
        await console.stop()
        await self._forget(domid)
        log.info("console closed", domid=domid)

    async def _forget(self, domid: int) -> None:
        with suppress(NoSuchNode):
            await self._hyp.fd_del(scrollback_name(domid))
        self._index.remove(domid)

    async def _sweep(self) -> None:
        """Removes what a predecessor has left of domains that died meanwhile."""
        for domid in self._index.inherited - self._open.keys():
            await self._forget(domid)
        for path in self._paths.console_dir.glob("*.sock"):
            if path not in {self._paths.console(domid) for domid in self._open}:
                path.unlink(missing_ok=True)


class Index:
    """Which scrollbacks lie in hyper's fd store: a memfd with a domid per line. The store itself can't be
    listed.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp
        self._fd = -1
        self._domids: set[int] = set()
        self.inherited: set[int] = set()
        """Those a predecessor has left."""

    async def find(self) -> None:
        fd = await self._hyp.fd_get(INDEX_NAME)
        if fd is None:
            fd = os.memfd_create("umxen-consoles", os.MFD_CLOEXEC)
            await self._hyp.fd_put(INDEX_NAME, fd)
        self._fd = fd
        text = os.pread(fd, os.fstat(fd).st_size, 0)
        self.inherited = {int(line) for line in text.split() if line.isdigit()}
        self._domids = set(self.inherited)

    def add(self, domid: int) -> None:
        self._domids.add(domid)
        self._write()

    def remove(self, domid: int) -> None:
        self._domids.discard(domid)
        self._write()

    def _write(self) -> None:
        text = b"".join(b"%d\n" % domid for domid in sorted(self._domids))
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
