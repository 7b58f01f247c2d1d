"""xend's process: `python -m toolstack.xend --host NAME`. Wires the parts together, serves, stops."""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import stat
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType

import structlog
import trio

from dom0.libxc.images import KernelCache
from hyper import guest
from hyper.public import daemon
from hyper.public.errors import HypervisorGone, leaves
from hyper.public.paths import HostPaths
from toolstack.xend import server
from toolstack.xend.control import Control
from toolstack.xend.hotplug import Hotplug
from toolstack.xend.hypervisor import Hypervisor, XenHypervisor
from toolstack.xend.lifecycle import MINIMUM_RESTART_SECONDS, Lifecycle
from toolstack.xend.node import Node
from toolstack.xend.processes import HostProcesses, Processes
from toolstack.xend.recovery import recover
from toolstack.xend.rpc import Rpc
from toolstack.xend.server import Network
from toolstack.xend.store import DomainStore, StoreError
from toolstack.xend.xenstore import Xenstore, XenstoreSession

log = structlog.get_logger("xend")

STOP_SECONDS = 5
"""After SIGTERM xend ends by force when a client that takes no reply holds it."""


class StartError(Exception):
    """xend can't start; the text says why and what to do."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="xend", description="The daemon that owns the domains of one umxen host."
    )
    parser.add_argument("--host", metavar="NAME", help="host instance (default: $UMXEN_HOST, or 'default')")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="one byte is written here once we serve")
    parser.add_argument(
        "--minimum-restart",
        type=float,
        metavar="SECONDS",
        default=float(os.environ.get("UMXEN_MINIMUM_RESTART", MINIMUM_RESTART_SECONDS)),
        help="a domain that would restart sooner after its last restart is destroyed (default: 60)",
    )
    network = parser.add_argument_group("TCP", "listening needs all four")
    network.add_argument("--listen", metavar="HOST:PORT", help="serve the network too")
    network.add_argument("--cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    network.add_argument("--key", type=Path, metavar="FILE", help="its private key, PEM")
    network.add_argument("--password-file", type=Path, metavar="FILE", help="holds the password, 0600")
    return parser.parse_args(argv)


def network_of(arguments: argparse.Namespace) -> Network | None:
    """Where to listen on TCP, if at all. Raises: StartError when a part is missing or open to others."""
    parts = {name: getattr(arguments, name) for name in ("listen", "cert", "key", "password_file")}
    if not any(parts.values()):
        return None
    missing = [f"--{name.replace('_', '-')}" for name, value in parts.items() if not value]
    if missing:
        raise StartError(
            f"the network is served with TLS and a password only: {', '.join(missing)} is missing"
        )
    for path in (arguments.key, arguments.password_file):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise StartError(f"{path}: {error.strerror}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise StartError(f"{path} may be read by others; chmod 600 it")
    password = arguments.password_file.read_text().strip()
    if len(password) < 8:
        raise StartError(f"{arguments.password_file}: the password must have at least 8 characters")
    return Network(arguments.listen, arguments.cert, arguments.key, password)


def open_store(path: Path) -> DomainStore:
    """The database. One that is damaged is put aside: running domains are found through xenstore then.

    Raises: StartError.
    """
    try:
        return DomainStore(path)
    except StoreError as error:
        raise StartError(str(error)) from None
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        log.error("the database is damaged and is put aside", reason=str(error), aside=str(aside))
        for suffix in ("", "-wal", "-shm"):
            damaged = Path(f"{path}{suffix}")
            if damaged.exists():
                damaged.rename(f"{aside}{suffix}")
        return DomainStore(path)


async def serve(
    hypervisor: Hypervisor,
    xenstore: Xenstore,
    store: DomainStore,
    paths: HostPaths,
    *,
    processes: Processes | None = None,
    minimum_restart: float = MINIMUM_RESTART_SECONDS,
    network: Network | None = None,
    ready_fd: int | None = None,
) -> None:
    """xend over whatever hypervisor and xenstore it is given, until SIGTERM."""
    life = Lifecycle(
        hypervisor,
        xenstore,
        store,
        processes=processes or HostProcesses(lambda name: paths.logs / f"guest-{name}.log"),
        console_path=paths.console,
        minimum_restart=minimum_restart,
    )
    rpc = Rpc(life, Control(life), Hotplug(life), Node(hypervisor, paths.logs / "xend.log"))
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.cancel_on_sigterm, nursery.cancel_scope)
        try:
            await nursery.start(life.run, recover)
            await nursery.start(server.serve_unix, rpc, paths.xend)
            if network is not None:
                await nursery.start(server.serve_network, rpc, network)
            daemon.announce_ready(ready_fd)
            log.info("xend serves", socket=str(paths.xend), domains=len(life.domains))
            await trio.sleep_forever()
        finally:
            _limit_stop()


def _limit_stop() -> None:
    """A reply that a client does not take cannot be cancelled; it must not keep us from ending."""

    def stop(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(STOP_SECONDS)


async def _end_with_hypervisor(connection: guest.Hypervisor) -> None:
    raise HypervisorGone(await connection.wait_gone())


async def run(arguments: argparse.Namespace, paths: HostPaths, network: Network | None) -> None:
    """The real thing. Raises: HypervisorGone, StartError, also in groups."""
    async with AsyncExitStack() as stack:
        store = stack.enter_context(open_store(paths.database))
        connection = await stack.enter_async_context(guest.connect(paths.control))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(_end_with_hypervisor, connection)
        xenstore = XenstoreSession(paths.xenstored)
        await nursery.start(xenstore.run)
        await serve(
            XenHypervisor(connection, KernelCache.from_environment()),
            xenstore,
            store,
            paths,
            minimum_restart=arguments.minimum_restart,
            network=network,
            ready_fd=arguments.ready_fd,
        )
        nursery.cancel_scope.cancel()


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    daemon.configure_logging()
    failures: list[BaseException] = []
    try:
        daemon.harden()
        daemon.raise_fd_limit()
        network = network_of(arguments)
        paths = HostPaths.from_environment(arguments.host)
        paths.create()
        trio.run(run, arguments, paths, network)
    except* (StartError, HypervisorGone, OSError, ValueError) as group:
        failures = leaves(group)
    for error in failures:
        print(f"xend: {error}", file=sys.stderr)
    log.info("xend has stopped")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
