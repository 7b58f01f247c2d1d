"""xenstored: the wiring.

    python -m dom0.xenstored --host NAME [--ready-fd N]    for a running host
    python -m dom0.xenstored --standalone SOCKET           without a hypervisor: the socket only, nothing kept

Standalone, every domain exists and has no ring: for tests, and to compare with other xenstored programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog
import trio

from dom0.xenstored import sockets
from dom0.xenstored.daemon import Daemon
from dom0.xenstored.journal import JournalError
from dom0.xenstored.restart import fire_all_watches
from dom0.xenstored.xenstore import Xenstore
from hyper.public import daemon
from hyper.public.daemon import announce_ready, cancel_on_sigterm
from hyper.public.listening import listening
from hyper.public.paths import HostPaths

log = structlog.get_logger("xenstored")


async def serve_host(paths: HostPaths, ready_fd: int | None = None) -> None:
    """Serves a host until SIGTERM.

    Raises: HypervisorGone, XenError, JournalError, OSError.
    """
    import hyper.guest  # the built part: not needed to stand alone
    from dom0.xenstored import hypervisor

    async with hyper.guest.connect(paths.control) as hyp:
        xs, journal, known_rings, restarted = await hypervisor.open_store(hyp)
        daemon = Daemon(xs, journal)
        async with trio.open_nursery() as nursery:
            await nursery.start(cancel_on_sigterm, nursery.cancel_scope)
            rings = hypervisor.Rings(hyp, daemon, nursery)
            nursery.start_soon(daemon.keep_journal_short, partial(hyp.fd_put, hypervisor.STORE_NAME))
            if restarted:
                await rings.resume(known_rings)
                fire_all_watches(xs)
                daemon.settle()
            await nursery.start(hypervisor.watch_domains, hyp, daemon)
            with listening(paths.xenstored) as listener:
                nursery.start_soon(sockets.serve, listener, daemon, rings.introduce)
                log.info("serving", host=paths.name, nodes=len(xs.store.nodes), restarted=restarted)
                announce_ready(ready_fd)
                await trio.sleep_forever()
    log.info("stopped")


async def serve_standalone(path: Path, ready_fd: int | None = None) -> None:
    """Serves the socket alone until SIGTERM."""
    daemon = Daemon(Xenstore())

    async def introduce() -> None:
        while daemon.xs.introductions:
            daemon.xs.finish_introduction(daemon.xs.introductions.pop(0))

    async with trio.open_nursery() as nursery:
        await nursery.start(cancel_on_sigterm, nursery.cancel_scope)
        with listening(path) as listener:
            nursery.start_soon(sockets.serve, listener, daemon, introduce)
            announce_ready(ready_fd)
            await trio.sleep_forever()


def main(argv: Sequence[str] | None = None) -> int:
    parser = daemon.parser("dom0.xenstored", "The XenStore daemon.")
    parser.add_argument("--standalone", type=Path, metavar="SOCKET", help="no hypervisor: serve this socket")
    arguments = parser.parse_args(argv)
    if arguments.standalone and arguments.host:
        parser.error("--standalone has no host")

    async def serve() -> None:
        if arguments.standalone:
            await serve_standalone(arguments.standalone, arguments.ready_fd)
        else:
            await serve_host(HostPaths.from_environment(arguments.host), arguments.ready_fd)

    return daemon.run("xenstored", serve, expected=(JournalError,))
