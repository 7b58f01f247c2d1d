"""netback: the wiring. Guests' interfaces, the virtual switch and its uplinks, in one process.

python -m backends.netback --host NAME [--ready-fd N]
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

import hyper.guest
from backends import bus
from backends.netback.binding import Netback, Switch, ffi
from backends.netback.config import ConfigError
from backends.netback.control import Control
from backends.netback.device import VifDevice
from backends.netback.networks import Networks
from hyper.public import daemon
from hyper.public.daemon import announce_ready, cancel_on_sigterm
from hyper.public.errors import HypervisorGone
from hyper.public.paths import HostPaths
from hyper.public.types import PAGE_SHIFT

log = structlog.get_logger("netback")

POOL_BYTES = 48 << 20
"""Of packets that wait somewhere; touched as far as needed."""
_ARENA_BYTES = 64 << 20


async def serve(paths: HostPaths, ready_fd: int | None = None) -> None:
    """Serves every vif until SIGTERM.

    Raises: HypervisorGone, XenError, OSError, ConfigError.
    """
    async with (
        hyper.guest.connect(paths.control, arena_bytes=_ARENA_BYTES) as hyp,
        hyp.hypercall_ring() as ring,
    ):
        pool = hyp.arena.alloc(POOL_BYTES, align=1 << PAGE_SHIFT)
        with ffi.from_buffer(pool.view) as raw:
            address = int(ffi.cast("uintptr_t", raw))
        switch = Switch(address, POOL_BYTES)
        window = (ring.memfd, ring.doorbell, ring.window_address, ring.window_addr, ring.window_bytes)
        netback = Netback(switch, window, pool.addr >> PAGE_SHIFT)
        try:
            switch.start()
            await _serve(paths, hyp, switch, netback, ready_fd)
        finally:
            switch.stop()
            netback.close()
            switch.close()
    log.info("stopped")


async def _serve(
    paths: HostPaths, hyp: hyper.guest.Hypervisor, switch: Switch, netback: Netback, ready_fd: int | None
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(cancel_on_sigterm, nursery.cancel_scope)
        nursery.start_soon(_fail_without, hyp)
        nursery.start_soon(switch.follow_news)
        networks = Networks(switch, paths.networks, hyp, nursery)
        networks.load()
        await nursery.start(Control(networks, switch).listen, paths)
        async with bus.xenstore_of(paths.xenstored) as store:

            async def device(link: bus.Link) -> None:
                await VifDevice(netback, networks, link).run()

            async def devices(task_status: trio.TaskStatus[None]) -> None:
                await bus.serve(store, hyp, kind="vif", device=device, task_status=task_status)

            await nursery.start(devices)
            log.info("serving", host=paths.name)
            announce_ready(ready_fd)
            await trio.sleep_forever()


async def _fail_without(hyp: hyper.guest.Hypervisor) -> None:
    """Raises: HypervisorGone."""
    raise HypervisorGone(await hyp.wait_gone())



def main(argv: Sequence[str] | None = None) -> int:
    return daemon.main("backends.netback", "The network daemon.", serve, argv, expected=(ConfigError,))
