"""What xenstored asks of hyper: rings of domains, news of their end, and a place for the journal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

import structlog
import trio

from dom0.endpoints import REAP_SECONDS, when_reaped
from dom0.libxc.control import XenControl
from dom0.libxc.info import DomainInfo
from dom0.xenstored.daemon import Daemon
from dom0.xenstored.errors import Refused
from dom0.xenstored.journal import Journal, JournalError, new_file, read_back
from dom0.xenstored.restart import Restorer, RingState
from dom0.xenstored.rings import GuestRing
from dom0.xenstored.xenstore import DomainState, Introduction, Xenstore
from hyper.guest import Hypervisor, Port, abi
from hyper.guest import Mapping as MappedGrant
from hyper.public.errors import AlreadyExists, BadArgument, GrantError, NoSuchDomain, XenError

log = structlog.get_logger("xenstored")

STORE_NAME = "xenstored.journal"
RESERVED_XENSTORE = 1
"""The grant reference every domain has for its xenstore ring."""


async def open_store(hyp: Hypervisor) -> tuple[Xenstore, Journal, dict[int, RingState], bool]:
    """The state as a predecessor has left it, or a new one: and whether there was a predecessor.

    Raises: JournalError for a journal that makes no sense; XenError.
    """
    journal = Journal()
    xs = Xenstore(journal)
    restorer = Restorer(xs)
    fd = await hyp.fd_get(STORE_NAME)
    found = fd is not None
    if fd is None:
        fd, nbytes = new_file([])
        await hyp.fd_put(STORE_NAME, fd)
    else:
        journal.mute(True)
        try:
            restorer.run(read_back(fd))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            os.close(fd)
            raise JournalError(f"the journal makes no sense: {error!r}") from error
        journal.mute(False)
        nbytes = os.fstat(fd).st_size
    journal.begin(fd, nbytes)
    return xs, journal, restorer.rings, found


class Rings:
    """Connects domains' rings and serves them in `nursery`."""

    def __init__(self, hyp: Hypervisor, daemon: Daemon, nursery: trio.Nursery) -> None:
        self._hyp = hyp
        self._daemon = daemon
        self._nursery = nursery
        self._turn = trio.Lock()

    async def introduce(self) -> None:
        """Connects the rings that requests have asked for, and answers them."""
        daemon = self._daemon
        async with self._turn:
            while daemon.xs.introductions:
                asked = daemon.xs.introductions.pop(0)
                try:
                    await self._introduce(asked)
                except Refused as refused:
                    daemon.xs.finish_introduction(asked, refused.name)
                daemon.settle()

    async def _introduce(self, asked: Introduction) -> None:
        """Raises: Refused."""
        rest = b""
        if old := self._daemon.rings.pop(asked.domid, None):  # its port has changed
            await old.stop()
            rest = old.state().rest
        page, port = await self._connect(asked.domid, asked.port)
        self._daemon.xs.finish_introduction(asked)
        ring = GuestRing(self._daemon, self._daemon.xs.domains[asked.domid].conn, page, port)
        ring.start(rest)
        self._serve(ring)

    async def resume(self, known: Mapping[int, RingState]) -> None:
        """Connects the rings a killed predecessor has served. Domains that died meanwhile are left out."""
        for domid, domain in self._daemon.xs.domains.items():
            try:
                page, port = await self._connect(domid, domain.port, REAP_SECONDS)
            except Refused:
                continue
            ring = GuestRing(self._daemon, domain.conn, page, port)
            if state := known.get(domid):
                ring.resume(state)
            else:
                ring.start()
            self._serve(ring)

    def _serve(self, ring: GuestRing) -> None:
        self._daemon.rings[ring.domid] = ring
        self._nursery.start_soon(ring.run)

    async def _connect(self, domid: int, remote_port: int, patience: float = 0.0) -> tuple[MappedGrant, Port]:
        """Raises: Refused."""
        try:
            page = await self._hyp.map_grant(domid, RESERVED_XENSTORE)
            try:
                bind = partial(self._hyp.bind_interdomain, domid, remote_port)
                return page, await when_reaped(bind, BadArgument, patience)
            except BaseException:
                await page.close()
                raise
        except (XenError, GrantError) as error:
            log.warning("ring not connected", domid=domid, remote_port=remote_port, reason=str(error))
            raise Refused("ENOENT" if _no_such_domain(error) else "EINVAL") from error


def _no_such_domain(error: XenError | GrantError) -> bool:
    if isinstance(error, GrantError):
        return bool(error.status == abi.lib.GNTST_bad_domain)
    return isinstance(error, NoSuchDomain)


async def watch_domains(hyp: Hypervisor, daemon: Daemon, task_status: trio.TaskStatus[None]) -> None:
    """Reports shutdowns and lets go of domains that are gone, for ever. Started once the present is known."""
    control = XenControl(hyp)
    bind = partial(hyp.bind_virq, abi.lib.VIRQ_DOM_EXC)
    async with await when_reaped(bind, AlreadyExists) as port:
        while True:
            known = daemon.xs.known_domids()
            if known:
                states: dict[int, DomainState] = {}
                for info in await control.getdomaininfolist(1):
                    states[info.domid] = _state_of(info)
                daemon.xs.domain_states({domid: states.get(domid, DomainState.GONE) for domid in known})
                daemon.settle()
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await port.wait()


def _state_of(info: DomainInfo) -> DomainState:
    if info.dying:
        return DomainState.GONE
    return DomainState.SHUTDOWN if info.shutdown else DomainState.RUNNING
