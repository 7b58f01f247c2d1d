"""xend's view of xenstore: a Protocol for the rest of xend, and the real one, which outlives xenstored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
import trio

from hyper.guest import xenstore
from hyper.guest.xenstore import XenstoreClient, XenstoreGone
from hyper.public.errors import NoSuchNode
from toolstack.xend.nodes import Node, Transaction

T = TypeVar("T")
log = structlog.get_logger("xend")

PATIENCE_SECONDS = 10.0
"""How long a call waits for xenstored to come back."""
RETRY_SECONDS = 0.05


class XenstoreUnavailable(Exception):
    """xenstored cannot be reached."""


class Xenstore(Protocol):
    """Raises: XenstoreUnavailable from every call when xenstored stays away; XenError when it refuses."""

    async def read(self, path: str) -> str | None:
        """The value, None when there is no such node."""

    async def write(self, path: str, value: str) -> None: ...

    async def create(self, nodes: Iterable[Node]) -> None:
        """Writes all of the nodes or none."""

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Does `work` in a transaction, again and again if need be. Returns: what it returned at last."""

    async def remove(self, path: str) -> None:
        """Removes a node and all below it, if there is one."""

    async def subtree(self, path: str) -> dict[str, str]:
        """Every node below `path` by its relative path; empty when there is no such node."""

    async def introduce(self, domid: int, mfn: int, port: int) -> None: ...

    async def release(self, domid: int) -> None:
        """Does nothing for a domain that is not introduced."""

    async def follow(
        self,
        path: str,
        changed: Callable[[], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Calls `changed` at first, whenever a watch on `path` fires, and after every interruption."""


class XenstoreSession:
    """A connection to the xenstored at `path` that is made again whenever it is lost.

    `run` keeps it. Any operation may be done twice, when the answer to the first was lost: all are such
    that this does no harm.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._client: XenstoreClient | None = None
        self._connected = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the connection until it is cancelled; has started when there is one."""
        first = True
        while True:
            try:
                async with xenstore.connect(self._path) as client:
                    self._client = client
                    self._connected.set()
                    if first:
                        task_status.started()
                        first = False
                    reason = await client.wait_gone()
                    log.warning("connection to xenstored is lost", reason=reason)
                    self._lose(client)
            except XenstoreGone:
                await trio.sleep(RETRY_SECONDS)

    def _lose(self, client: XenstoreClient) -> None:
        if self._client is client:
            self._client = None
            self._connected = trio.Event()

    async def _wait_client(self) -> XenstoreClient:
        while self._client is None:
            await self._connected.wait()
        return self._client

    async def _do(self, work: Callable[[XenstoreClient], Awaitable[T]]) -> T:
        """Does `work` on a connection that holds until it is done. Raises: XenstoreUnavailable."""
        with trio.move_on_after(PATIENCE_SECONDS):
            while True:
                client = await self._wait_client()
                try:
                    return await work(client)
                except XenstoreGone:
                    self._lose(client)
        raise XenstoreUnavailable(f"xenstored cannot be reached at {self._path}")

    async def read(self, path: str) -> str | None:
        return await self._do(lambda client: client.read_if_exists(path))

    async def write(self, path: str, value: str) -> None:
        await self._do(lambda client: client.write(path, value))

    async def create(self, nodes: Iterable[Node]) -> None:
        wanted = list(nodes)

        async def work(transaction: Transaction) -> None:
            for node in wanted:
                await node.write(transaction)

        await self.transact(work)

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._do(lambda client: client.transact(work))

    async def remove(self, path: str) -> None:
        async def work(client: XenstoreClient) -> None:
            try:
                await client.rm(path)
            except NoSuchNode:
                pass

        await self._do(work)

    async def subtree(self, path: str) -> dict[str, str]:
        return await self._do(lambda client: _subtree(client, path))

    async def introduce(self, domid: int, mfn: int, port: int) -> None:
        async def work(client: XenstoreClient) -> None:
            if not await client.is_domain_introduced(domid):
                await client.introduce(domid, mfn, port)

        await self._do(work)

    async def release(self, domid: int) -> None:
        async def work(client: XenstoreClient) -> None:
            try:
                await client.release(domid)
            except NoSuchNode:
                pass

        await self._do(work)

    async def follow(
        self,
        path: str,
        changed: Callable[[], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        first = True
        while True:
            client = await self._wait_client()
            try:
                async with client.watch(path) as watch:
                    if first:
                        task_status.started()
                        first = False
                    async for _ in watch:
                        changed()
            except XenstoreGone:
                self._lose(client)


async def _subtree(client: XenstoreClient, top: str) -> dict[str, str]:
    found: dict[str, str] = {}
    queue = [""]
    while queue:
        relative = queue.pop()
        try:
            names = await client.directory(f"{top}/{relative}".rstrip("/"))
        except NoSuchNode:
            continue
        for name in names:
            child = f"{relative}/{name}".lstrip("/")
            queue.append(child)
            found[child] = await client.read_if_exists(f"{top}/{child}") or ""
    return found
