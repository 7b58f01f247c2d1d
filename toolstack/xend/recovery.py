"""What a starting xend does with what an earlier one left: in its database, in the hypervisor, in xenstore.

A domain that runs is taken up again. One that was being created when xend died is removed, one that was
between two lives gets its next. A domain of the hypervisor that the database does not have is taken up if
xenstore knows enough of it; else it stays a stranger, to be seen in the list and destroyed.
"""

from __future__ import annotations

from uuid import UUID

import structlog

from dom0.libxc.info import DomainInfo
from hyper.public.errors import XenError
from toolstack.sxp import SxpError
from toolstack.xend import layout
from toolstack.xend.errors import XendError
from toolstack.xend.lifecycle import Domain, Lifecycle
from toolstack.xend.model import DomainConfig
from toolstack.xend.store import CREATING, HALTED, RESTARTING, RUNNING, Record
from toolstack.xend.teardown import same_domain
from toolstack.xend.xenstore import XenstoreUnavailable

log = structlog.get_logger("xend")


class Found:
    """The hypervisor's domains, by id and by handle, without Domain-0."""

    def __init__(self, infos: list[DomainInfo]) -> None:
        self.by_id: dict[int, DomainInfo] = {info.domid: info for info in infos if info.domid}
        self.by_handle: dict[UUID, DomainInfo] = {info.handle: info for info in self.by_id.values()}

    def runs(self, record: Record) -> bool:
        info = None if record.domid is None else self.by_id.get(record.domid)
        return info is not None and same_domain(info, record.handle)


async def recover(life: Lifecycle) -> None:
    """Fills `life` before the first request. What takes long goes on in its background."""
    records, broken = life.store.load()
    for text in broken:
        log.error("a domain in the database cannot be read", domain=text)
    found = Found(await life.hypervisor.getdomaininfolist())
    for record in records:
        domain = Domain(record)
        life.domains[record.config.uuid] = domain
        await _take_up(life, domain, found)
    known = {domain.record.domid for domain in life.domains.values()}
    for domid in sorted(found.by_id.keys() - known):
        await _adopt(life, found.by_id[domid])
    for domain in list(life.domains.values()):
        if domain.record.phase == HALTED and domain.config.on_xend_start == "start":
            life.start_in_background(_autostart, life, domain)


async def _take_up(life: Lifecycle, domain: Domain, found: Found) -> None:
    record = domain.record
    if record.phase == HALTED:
        domain.ended.set()
    elif record.phase == RUNNING and found.runs(record):
        log.info("found a running domain again", domain=domain.name, domid=record.domid)
        await life.launch(domain, adopt=True)
    elif record.phase == RESTARTING:
        await life.take_apart(record)
        life.start_in_background(life.relaunch, domain)
    else:
        log.info("removing what is left of a domain", domain=domain.name, phase=record.phase)
        if record.phase == CREATING and record.domid is None and record.handle in found.by_handle:
            record.domid = found.by_handle[record.handle].domid  # xend died before it could write the id down
        await life.put_away(domain)
        domain.ended.set()


async def _adopt(life: Lifecycle, info: DomainInfo) -> None:
    """Takes up a domain the database does not have."""
    path = await life.xenstore.read(f"{layout.domain_path(info.domid)}/vm")
    vm = await life.xenstore.subtree(path) if path else {}
    own = await life.xenstore.subtree(layout.domain_path(info.domid)) if vm else {}
    try:
        config = DomainConfig.from_sxp(layout.config_from_vm(vm))
        life.check_free(config.name, None)
        record = Record(
            config,
            phase=RUNNING,
            domid=info.domid,
            handle=info.handle,
            start_time=float(vm["start_time"]),
            store_mfn=int(own["store/ring-ref"]),
            store_port=int(own["store/port"]),
            console_mfn=int(own["console/ring-ref"]),
            console_port=int(own["console/port"]),
            restart_count=int(vm["xend/restart_count"]),
            preserved="xend/shutdown_completed" in own,
        )
    except (KeyError, ValueError, SxpError, XendError):
        log.warning("the hypervisor has a domain that xend does not know", domid=info.domid)
        return
    log.warning("took up a domain that was not in the database", domain=config.name, domid=info.domid)
    domain = Domain(record)
    life.domains[config.uuid] = domain
    life.remember(domain)
    await life.launch(domain, adopt=True)


async def _autostart(life: Lifecycle, domain: Domain) -> None:
    try:
        await life.start_running(domain)
    except (XendError, XenError, XenstoreUnavailable) as error:
        log.error("domain could not be started with xend", domain=domain.name, reason=str(error))
