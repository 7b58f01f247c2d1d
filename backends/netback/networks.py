"""The networks of a host: made, listed, deleted, kept in networks.json, and who is on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
import trio

from backends.netback.binding import Netback, Network, Port, Switch, Vif
from backends.netback.config import (
    DEFAULT,
    DEFAULT_NETWORK,
    ConfigError,
    Forward,
    Membership,
    NetworkConfig,
    network_from,
    parse_forward,
    parse_uplink,
)
from backends.netback.nat import FdStore, NatError
from backends.netback.uplinks import RunningUplink

log = structlog.get_logger("netback")

_ATTEMPT_SECONDS = 8.0


@dataclass(frozen=True)
class Attached:
    """Who is on a network."""

    name: str
    port: Port
    membership: Membership
    uplink: bool


class RunningNetwork:
    """A network with its ports. `network` is the switch's."""

    def __init__(self, config: NetworkConfig, switch: Switch, store: FdStore) -> None:
        self.config = config
        self.store = store
        self.network = Network(switch, ageing_s=config.ageing_s, storm_pps=config.storm_pps)
        self.attachments: dict[str, Attached] = {}
        self.uplinks = self._make_uplinks()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @contextmanager
    def attached(
        self, name: str, port: Port, membership: Membership, *, uplink: bool = False
    ) -> Iterator[None]:
        """`port` is on the network, by this name, for the block. Raises: ConfigError."""
        if name in self.attachments:
            raise ConfigError(f"network {self.config.name} has a port {name!r} already")
        self.attachments[name] = Attached(name, port, membership, uplink)
        try:
            yield
        finally:
            del self.attachments[name]

    @contextmanager
    def made_vif(self, netback: Netback, domid: int, name: str, membership: Membership) -> Iterator[Vif]:
        """A guest's interface as a port of the network, for the block. Raises: ConfigError."""
        vif = Vif(netback, self.network, domid)
        try:
            with self.attached(name, vif, membership):
                yield vif
        finally:
            vif.close()

    def vifs(self) -> list[str]:
        """Names of the guests' interfaces on it."""
        return [item.name for item in self.attachments.values() if not item.uplink]

    def forwards(self) -> list[Forward]:
        return [parse_forward(text) for text in self.config.forwards]

    @property
    def user(self) -> RunningUplink | None:
        """The user-mode uplink, if there is one."""
        return next((uplink for uplink in self.uplinks if uplink.uplink.kind == "user"), None)

    def _make_uplinks(self) -> list[RunningUplink]:
        used: dict[str, int] = {}
        made = []
        for text in self.config.uplinks:
            uplink = parse_uplink(text)
            used[uplink.kind] = count = used.get(uplink.kind, 0) + 1
            made.append(RunningUplink(uplink, f"{uplink.kind}{count if count > 1 else ''}", self))
        return made

    async def run(self) -> None:
        """Its uplinks, until stop()."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for running in self.uplinks:
                        nursery.start_soon(running.run)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Uplinks and their ports are gone when this returns."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def first_failures(self) -> list[str]:
        """What the uplinks' first attempts came to, once all have come out."""
        with trio.move_on_after(_ATTEMPT_SECONDS):
            for uplink in self.uplinks:
                await uplink.attempted.wait()
        return [f"uplink {uplink.uplink.text}: {uplink.failure}" for uplink in self.uplinks if uplink.failure]


class Networks:
    """All of them. Changes are written to `path` before they are answered."""

    def __init__(self, switch: Switch, path: Path, store: FdStore, nursery: trio.Nursery) -> None:
        self._switch = switch
        self._store = store
        self._path = path
        self._nursery = nursery
        self._running: dict[str, RunningNetwork] = {}
        self._turn = trio.Lock()

    def load(self) -> None:
        """Starts what networks.json has; without one, the default network. A broken file is an error.

        Raises: ConfigError, OSError.
        """
        for config in read_networks(self._path):
            self._start(config)

    def get(self, name: str) -> RunningNetwork:
        """Raises: ConfigError."""
        if name not in self._running:
            known = ", ".join(sorted(self._running)) or "none"
            raise ConfigError(
                f"there is no network {name!r} (umxen network create makes one); there are: {known}"
            )
        return self._running[name]

    def all(self) -> list[RunningNetwork]:
        return [self._running[name] for name in sorted(self._running)]

    async def create(self, config: NetworkConfig) -> RunningNetwork:
        """Raises: ConfigError, also when an uplink cannot be had; nothing is left then."""
        async with self._turn:
            if config.name in self._running:
                raise ConfigError(f"network {config.name} is there already")
            running = self._start(config)
            if failures := await running.first_failures():
                await self._remove(running)
                raise ConfigError("; ".join(failures))
            self._write()
            return running

    async def delete(self, name: str) -> None:
        """Raises: ConfigError while guests are on it."""
        async with self._turn:
            running = self.get(name)
            if vifs := running.vifs():
                raise ConfigError(f"network {name} is in use by {', '.join(sorted(vifs))}")
            await self._remove(running)
            self._write()

    async def add_forward(self, name: str, forward: Forward) -> None:
        """Raises: ConfigError, NatError."""
        async with self._turn:
            running = self.get(name)
            if running.user is None:
                raise ConfigError(f"network {name} has no user-mode uplink; only those forward ports")
            if any(_same_host_port(forward, other) for other in running.forwards()):
                raise ConfigError(
                    f"{forward.protocol} port {forward.host}:{forward.host_port} is forwarded already"
                )
            await running.user.attempted.wait()
            await running.user.forward(forward)
            self._set_forwards(running, (*running.config.forwards, str(forward)))

    async def remove_forward(self, name: str, text: str) -> None:
        """`text` is the whole forward or its host's side. Raises: ConfigError, NatError."""
        async with self._turn:
            running = self.get(name)
            found = [item for item in running.forwards() if _means(text, item)]
            if not found:
                known = ", ".join(running.config.forwards) or "none"
                raise ConfigError(f"network {name} has no forward {text!r}; there are: {known}")
            if running.user is not None:
                await running.user.unforward(found[0])
            self._set_forwards(running, tuple(t for t in running.config.forwards if t != str(found[0])))

    def _set_forwards(self, running: RunningNetwork, forwards: tuple[str, ...]) -> None:
        running.config = replace(running.config, forwards=forwards)
        self._write()

    def _start(self, config: NetworkConfig) -> RunningNetwork:
        running = RunningNetwork(config, self._switch, self._store)
        self._running[config.name] = running
        self._nursery.start_soon(running.run)
        return running

    async def _remove(self, running: RunningNetwork) -> None:
        await running.stop()
        running.network.close()
        del self._running[running.config.name]

    def _write(self) -> None:
        write_networks(self._path, [running.config for running in self.all()])


def _same_host_port(one: Forward, other: Forward) -> bool:
    return (one.protocol, one.host, one.host_port) == (other.protocol, other.host, other.host_port)


def _means(text: str, forward: Forward) -> bool:
    whole = str(forward)
    return text in (whole, str(forward.host_port), f"{forward.host}:{forward.host_port}") or whole.startswith(
        f"{text}-"
    )


def read_networks(path: Path) -> list[NetworkConfig]:
    """What the file has; the default network where there is none. Raises: ConfigError, OSError."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return [DEFAULT]
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, list):
        raise ConfigError(f"{path}: want a list of networks")
    try:
        return [network_from(item) for item in values]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def write_networks(path: Path, configs: list[NetworkConfig]) -> None:
    """In one step."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps([config.to_json() for config in configs], indent=1) + "\n")
    fresh.replace(path)


def describe_port(item: Attached) -> dict[str, Any]:
    """For `show`: plain values."""
    found: dict[str, Any] = {
        "name": item.name, "uplink": item.uplink, "membership": item.membership.describe(),
        "counters": item.port.counters(),
    }  # fmt: skip
    if isinstance(item.port, Vif):
        found["vif"] = item.port.state()
    return found


__all__ = ["DEFAULT_NETWORK", "Attached", "NatError", "Networks", "RunningNetwork", "describe_port"]
