"""All consoles of a host: opened and closed as xenstore says which domains there are.

xenstored may go and come back: consoles stay open meanwhile, and what has changed is seen afterwards. When this daemon
itself is killed, guests wait for room in their rings; its successor finds the scrollbacks again in hyper's fd store
and connects to the same ports.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

import structlog
import trio

from dom0.endpoints import REAP_SECONDS, when_reaped
from dom0.xenconsoled.console import Console
from dom0.xenconsoled.logfile import LogWriter, log_path
from dom0.xenconsoled.scrollback import Scrollback
from hyper.guest import Hypervisor
from hyper.guest import xenstore
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
        self._stored: set[int] = set()
        self._index = -1
        self._patience = REAP_SECONDS

    async def follow(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps consoles as xenstore wants them, for ever. Started when those of the present are open."""
        await self._find_stored()
        while True:
            try:
                async with xenstore.connect(self._paths.xenstored) as xs:
                    await self._follow(xs, task_status)
            except XenstoreGone as gone:
                log.warning("xenstored is away", reason=str(gone))
                await trio.sleep(_RETRY_SECONDS)
            task_status = trio.TASK_STATUS_IGNORED

    async def _follow(self, xs: XenstoreClient, task_status: trio.TaskStatus[None]) -> None:
        """Raises: XenstoreGone."""
        async with xs.watch("@introduceDomain") as introduced, xs.watch("@releaseDomain") as released:
            changed, hear = trio.open_memory_channel[str](1)

            async def listen(watch: xenstore.Watch) -> None:
                async for path in watch:
                    with suppress(trio.WouldBlock):
                        changed.send_nowait(path)
            ...
