"""blkback: the wiring.

python -m backends.blkback --host NAME [--ready-fd N]
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import structlog
import trio

import hyper.guest
from backends import bus
from backends.blkback.config import MAX_QUEUES
from backends.blkback.datapath import engine
from backends.blkback.device import BlockDevice, Environment
from backends.blkback.journals import Journals
from hyper.public import daemon
from hyper.public.daemon import announce_ready
from hyper.public.errors import HypervisorGone
from hyper.public.paths import HostPaths

log = structlog.get_logger("blkback")

_WINDOW_BYTES = 65536


async def serve(paths: HostPaths, ready_fd: int | None = None) -> None:
    """Serves every guest's disks until SIGTERM. Devices then stay connected, for a successor.

    Raises: HypervisorGone, XenError, OSError.
    """
    async with hyper.guest.connect(paths.control) as hyp, hyp.hypercall_ring(_WINDOW_BYTES) as ring:
        address, _ = hyp.bank
        with engine(ring, address, hyp.max_mfn) as shared:
            journals = Journals(hyp)
            await journals.open()
            max_queues = min(MAX_QUEUES, len(os.sched_getaffinity(0)))
            env = Environment(
                paths.name, shared, journals, paths.runtime / "blkback", paths.control_lock, max_queues
            )
            async with bus.xenstore_of(paths.xenstored) as store, trio.open_nursery() as nursery:
                await nursery.start(_cancel_on_signal, env, nursery.cancel_scope)
                nursery.start_soon(_fail_without, hyp)
                await nursery.start(_serve_devices, store, hyp, env)
                await env.sweep(await bus.devices(store, "vbd"))
                log.info("serving", host=paths.name, io_uring=shared.io_uring)
                announce_ready(ready_fd)
            journals.close()
    log.info("stopped")


async def _serve_devices(
    store: bus.Store, hyp: hyper.guest.Hypervisor, env: Environment, task_status: trio.TaskStatus[None]
) -> None:
    async def device(link: bus.Link) -> None:
        await BlockDevice(env, link).run()

    await bus.serve(store, hyp, kind="vbd", device=device, task_status=task_status)


async def _cancel_on_signal(
    env: Environment, scope: trio.CancelScope, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            env.ending = True
            scope.cancel()


async def _fail_without(hyp: hyper.guest.Hypervisor) -> None:
    """Raises: HypervisorGone."""
    raise HypervisorGone(await hyp.wait_gone())


def main(argv: Sequence[str] | None = None) -> int:
    return daemon.main("backends.blkback", "Serves block devices.", serve, argv)
