"""xenconsoled: the wiring.

    python -m dom0.xenconsoled --host NAME [--ready-fd N]
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

import hyper.guest
from dom0.xenconsoled.consoles import Consoles
from hyper.public import daemon
from hyper.public.daemon import announce_ready, cancel_on_sigterm
from hyper.public.errors import HypervisorGone
from hyper.public.paths import HostPaths

log = structlog.get_logger("xenconsoled")


async def serve(paths: HostPaths, ready_fd: int | None = None) -> None:
    """Serves every guest's console until SIGTERM.

    Raises: HypervisorGone, XenError, OSError.
    """
    async with hyper.guest.connect(paths.control) as hyp, trio.open_nursery() as nursery:
        await nursery.start(cancel_on_sigterm, nursery.cancel_scope)
        nursery.start_soon(_fail_without, hyp)
        await nursery.start(Consoles(hyp, paths, nursery).follow)
        log.info("serving", host=paths.name)
        announce_ready(ready_fd)
    log.info("stopped")


async def _fail_without(hyp: hyper.guest.Hypervisor) -> None:
    """Raises: HypervisorGone."""
    raise HypervisorGone(await hyp.wait_gone())


def main(argv: Sequence[str] | None = None) -> int:
    return daemon.main("dom0.xenconsoled", "The console daemon.", serve, argv)
