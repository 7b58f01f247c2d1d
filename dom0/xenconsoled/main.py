"""xenconsoled: the wiring.

    python -m dom0.xenconsoled --host NAME [--ready-fd N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import structlog
import trio

import hyper.guest
from dom0.endpoints import leaves
from dom0.xenconsoled.consoles import Consoles
from hyper.public.daemon import announce_ready, cancel_on_sigterm, configure_logging, harden, raise_fd_limit
from hyper.public.errors import HypervisorGone, XenError
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
    parser = argparse.ArgumentParser(prog="python -m dom0.xenconsoled", description="The console daemon.")
    parser.add_argument("--host", help="host instance (default: $UMXEN_HOST, or 'default')")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="write a byte to fd N when serving")
    arguments = parser.parse_args(argv)
    configure_logging()
    status = 0
    try:
        harden()
        raise_fd_limit()
        trio.run(serve, HostPaths.from_environment(arguments.host), arguments.ready_fd)
    except* (OSError, ValueError, HypervisorGone, XenError) as errors:
        for error in leaves(errors):
            print(f"xenconsoled: {error}", file=sys.stderr)
        status = 1
    return status
