"""Taking a domain apart: all that it has outside xend, in steps of which each may find its work done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

import structlog
import trio

from dom0.libxc.info import DomainInfo
from hyper.public.errors import NoSuchDomain, XenError
from toolstack.xend import layout
from toolstack.xend.devices.controller import DeviceController
from toolstack.xend.hypervisor import Hypervisor
from toolstack.xend.xenstore import Xenstore, XenstoreUnavailable

log = structlog.get_logger("xend")

DEADLINE_SECONDS = 30.0
REAP_SECONDS = 5.0
"""How long a destroyed domain may stay dying, because a backend holds its pages, before nobody waits for it.
"""


def same_domain(info: DomainInfo, handle: UUID | None) -> bool:
    """Whether the hypervisor's domain is the one remembered: ids are used again, handles are not."""
    return handle is not None and info.handle == handle


async def domain_info(hypervisor: Hypervisor, domid: int, handle: UUID | None) -> DomainInfo | None:
    """What the hypervisor has for a domain; None when it has gone, or its id to another domain."""
    try:
        info = await hypervisor.getdomaininfo(domid)
    except NoSuchDomain:
        return None
    return info if same_domain(info, handle) else None


async def take_apart(
    hypervisor: Hypervisor,
    xenstore: Xenstore,
    devices: DeviceController,
    domid: int | None,
    handle: UUID | None,
    vm_path: str,
) -> None:
    """Removes a domain from the hypervisor and from xenstore. Never fails, is not cancelled.

    A step that fails is mentioned in the log and the next one is taken.
    """
    steps: list[tuple[str, Callable[[], Awaitable[None]]]] = []
    with trio.move_on_after(DEADLINE_SECONDS, shield=True) as scope:
        if domid is not None and await _is_ours_or_gone(hypervisor, domid, handle):
            steps.append(("domain", partial(hypervisor.domain_destroy, domid)))
            steps.append(("xenstore ring", partial(xenstore.release, domid)))
            steps.append(("xenstore entries", partial(xenstore.remove, layout.domain_path(domid))))
            steps.append(("devices", partial(devices.remove_all, domid)))
            steps.append(("pages", partial(_wait_reaped, hypervisor, domid, handle)))
        steps.append(("vm entries", partial(xenstore.remove, vm_path)))
        for what, step in steps:
            try:
                await step()
            except NoSuchDomain:
                continue
            except (XenError, XenstoreUnavailable) as error:
                log.error("a domain is not wholly taken apart", what=what, domid=domid, reason=str(error))
    if scope.cancelled_caught:
        log.error("a domain is not wholly taken apart", domid=domid, reason="it took too long")


async def _is_ours_or_gone(hypervisor: Hypervisor, domid: int, handle: UUID | None) -> bool:
    """False when the id has gone to a domain that is not the one remembered."""
    try:
        return same_domain(await hypervisor.getdomaininfo(domid), handle)
    except NoSuchDomain:
        return True
    except XenError as error:
        log.error("a domain is not taken apart", domid=domid, reason=str(error))
        return False


async def _wait_reaped(hypervisor: Hypervisor, domid: int, handle: UUID | None) -> None:
    """Waits until the hypervisor has given up the domain, which backends may delay."""
    delay = 0.001
    with trio.move_on_after(REAP_SECONDS):
        while await domain_info(hypervisor, domid, handle) is not None:
            await trio.sleep(delay)
            delay = min(delay * 2, 0.05)
        return
    log.warning("something still holds pages of a domain", domid=domid)
