"""The domains of a host and their lives.

A running domain is one task (`_run`): it builds the domain, waits in a nursery of the domain's own until it
ends, does what on_poweroff, on_reboot or on_crash says, and takes it apart. Destroying a domain is cancelling
that task's scope. When xend itself stops, the tasks end and the domains go on; the next xend finds them again
(recovery.py).

A domain's phase goes halted -> creating -> running (-> restarting -> creating -> running ...) -> halted, or
the record disappears when nobody manages the domain. It is on disk before each step that leaves something
behind in the hypervisor, so a xend that was killed half-way is cleaned up after by its successor.

State changes between two awaits, never across one: whoever wants a domain to change checks its phase and sets
the new one before the first await.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import structlog
import trio

from dom0.libxc.images import ImageError
from dom0.libxc.info import DomainInfo
from hyper.public.errors import NoSuchDomain, XenError
from toolstack.sxp import Sxp
from toolstack.xend import layout, teardown
from toolstack.xend.builder import Builder
from toolstack.xend.describe import DOM0_NAME, Stranger
from toolstack.xend.devices import config as device_config
from toolstack.xend.devices.controller import DeviceController, Owner, Plugged
from toolstack.xend.errors import InvalidDomain, XendError
from toolstack.xend.hypervisor import (
    REASONS,
    SHUTDOWN_SUSPEND,
    Hypervisor,
)
from toolstack.xend.model import DomainConfig, check_name
from toolstack.xend.nodes import Node
from toolstack.xend.processes import Processes
from toolstack.xend.store import CREATING, HALTED, RESTARTING, RUNNING, DomainStore, Record
from toolstack.xend.xenstore import Xenstore, XenstoreUnavailable

log = structlog.get_logger("xend")

MINIMUM_RESTART_SECONDS = 60.0
"""A domain that would restart sooner after its start is destroyed: it would do so for ever."""
SHUTDOWN_SECONDS = 300.0
"""After this a domain that was asked to shut down and did not is mentioned in the log."""
DESTROY, RESTART, PRESERVE, RENAME_RESTART = "destroy", "restart", "preserve", "rename-restart"


@dataclass(eq=False)
class Domain:
    """A domain xend knows, and the task of its present life."""

    record: Record
    turn: trio.Lock = field(default_factory=trio.Lock)
    """Held by whoever pauses or unpauses the domain: the hypervisor counts pauses, xend does not."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    nursery: trio.Nursery | None = None
    """Holds the tasks that serve the running domain; None while it does not run."""
    changed: trio.Event = field(default_factory=trio.Event)
    """Set to make the domain's task look at it again."""
    ended: trio.Event = field(default_factory=trio.Event)
    """Set when the present life is over and nothing of it is left."""
    in_hand: dict[tuple[str, int], str] = field(default_factory=dict)
    """MAC addresses ("" for disks) of the devices that are being attached or detached just now."""

    @property
    def name(self) -> str:
        return self.record.config.name

    @property
    def config(self) -> DomainConfig:
        return self.record.config

    @property
    def domid(self) -> int:
        """Raises: XendError when the domain is not running."""
        if self.record.domid is None or self.record.phase != RUNNING:
            raise XendError(f"Domain '{self.name}' is not started")
        return self.record.domid

    @property
    def owner(self) -> Owner:
        """Raises: XendError when the domain is not running."""
        return Owner(self.domid, self.name, layout.vm_path(self.config))


class Lifecycle:
    """All domains. `run` must be running for anything else to work; `wall` is the clock of start times."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        xenstore: Xenstore,
        store: DomainStore,
        *,
        processes: Processes,
        console_path: Callable[[int], Path],
        wall: Callable[[], float] = time.time,
        minimum_restart: float = MINIMUM_RESTART_SECONDS,
    ) -> None:
        self.hypervisor = hypervisor
        self.xenstore = xenstore
        self.domains: dict[UUID, Domain] = {}
        self.store = store
        self.devices = DeviceController(xenstore)
        self.processes = processes
        self._builder = Builder(hypervisor, xenstore, store, self.devices, processes, console_path, wall)
        self._wall = wall
        self._minimum_restart = minimum_restart
        self._nursery: trio.Nursery
        self._news = trio.Event()

    async def run(
        self,
        begin: Callable[[Lifecycle], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keeps the domains until it is cancelled; they go on running after that.

        `begin` is called when their tasks can be started, before anything else is asked: recovery.recover.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                await self._nursery.start(self.xenstore.follow, "@releaseDomain", self._hear_of_release)
                await begin(self)
                self._nursery.start_soon(self._watch_releases)
                task_status.started()
        finally:
            with trio.move_on_after(5, shield=True):
                await self._shut_down_with_us()

    # ---- looking up

    def find(self, key: int | str) -> Domain:
        """A domain by name, id or UUID. Raises: InvalidDomain."""
        text = str(key)
        for domain in self.domains.values():
            if domain.name == text:
                return domain
        for domain in self.domains.values():
            domid = domain.record.domid
            if text == str(domain.config.uuid) or (domid is not None and text == str(domid)):
                return domain
        raise InvalidDomain(text)

    async def find_any(self, key: int | str) -> Domain | Stranger:
        """The same, also for Domain-0 and domains xend does not know. Raises: InvalidDomain."""
        try:
            return self.find(key)
        except InvalidDomain:
            text = str(key)
        number = {DOM0_NAME: "0"}.get(text, text.removeprefix("(unknown-").removesuffix(")"))
        if not number.isascii() or not number.isdigit() or len(number) > 5:
            raise InvalidDomain(text)
        try:
            return Stranger(await self.hypervisor.getdomaininfo(int(number)))
        except NoSuchDomain:
            raise InvalidDomain(text) from None

    async def find_own(self, key: int | str, verb: str) -> Domain:
        """A domain to which `verb` may be done. Raises: InvalidDomain; XendError for any other."""
        found = await self.find_any(key)
        if isinstance(found, Domain):
            return found
        if found.domid == 0:
            raise XendError(f"Cannot {verb} privileged domain {key}")
        raise XendError(f"Cannot {verb} {found.name}: xend does not know it; it can be destroyed")

    async def find_settled(self, key: int | str, verb: str) -> Domain:
        """The same, refusing a domain that is being built: it would not notice a change."""
        domain = await self.find_own(key, verb)
        if domain.record.phase not in (HALTED, RUNNING):
            raise XendError(f"Cannot {verb} '{domain.name}': it is being built")
        return domain

    async def info_of(self, record: Record) -> DomainInfo | None:
        """What the hypervisor has for a record; None when it is not running."""
        if record.domid is None:
            return None
        return await teardown.domain_info(self.hypervisor, record.domid, record.handle)

    # ---- changing

    async def create(self, config: Sxp) -> Domain:
        """A new domain that nobody manages, paused. Raises: XendError."""
        domain = self._admit(DomainConfig.from_sxp(config), managed=False)
        await self.launch(domain)
        return domain

    async def new(self, config: Sxp) -> Domain:
        """A new managed domain, not running. Raises: XendError."""
        domain = self._admit(DomainConfig.from_sxp(config), managed=True)
        domain.ended.set()
        self.store.save(domain.record)
        return domain

    async def start(self, domain: Domain) -> None:
        """Starts a managed domain, paused. Raises: XendError."""
        if domain.record.phase != HALTED:
            raise XendError("Domain is already running")
        await self.launch(domain)

    async def start_running(self, domain: Domain) -> None:
        """Starts a managed domain and lets it run once its devices are there.

        Raises: XendError, XenError, XenstoreUnavailable; the domain is halted then.
        """
        await self.start(domain)
        try:
            await self.devices.wait_connected(domain.domid, domain.config.devices)
            await self.hypervisor.domain_unpause(domain.domid)
        except BaseException:
            await self.destroy(domain)
            raise

    async def destroy(self, found: Domain | Stranger) -> None:
        """Ends a domain and waits until nothing is left of it. Does nothing to one that is not running."""
        if isinstance(found, Domain):
            found.scope.cancel()
            await found.ended.wait()
            return
        if found.domid == 0:
            raise XendError(f"Cannot destroy privileged domain {found.name}")
        handle = found.info.handle
        await teardown.take_apart(
            self.hypervisor, self.xenstore, self.devices, found.domid, handle, f"/vm/{handle}"
        )

    def delete(self, domain: Domain) -> None:
        """Forgets a managed domain. Raises: XendError when it is not halted."""
        if domain.record.phase != HALTED:
            raise XendError("Domain is not halted.")
        del self.domains[domain.config.uuid]
        self.store.forget(domain.config.uuid)

    async def rename(self, domain: Domain, name: str) -> None:
        """Raises: XendError for a bad name or one that is taken."""
        self.check_free(check_name(name), domain)
        self.change(domain, name=name)
        if domain.record.phase == RUNNING:
            await self.xenstore.write(f"{layout.vm_path(domain.config)}/name", name)
            await self.xenstore.write(f"{layout.domain_path(domain.domid)}/name", name)

    def change(self, domain: Domain, **fields: object) -> None:
        """Changes and remembers fields of a domain's configuration."""
        domain.record.config = domain.config.changed(**fields)
        self.store.save(domain.record)

    def remember(self, domain: Domain) -> None:
        self.store.save(domain.record)

    def start_in_background(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        self._nursery.start_soon(task, *args)

    async def ask_to_shut_down(self, domain: Domain, reason: str) -> None:
        """Tells the guest; what follows its end is for on_poweroff and the others. Raises: XendError."""
        path = layout.domain_path(domain.domid)
        await self.xenstore.write(f"{path}/control/shutdown", reason)
        if domain.nursery is not None:
            domain.nursery.start_soon(self._mention_deafness, domain, reason)

    @staticmethod
    async def _mention_deafness(domain: Domain, reason: str) -> None:
        await trio.sleep(SHUTDOWN_SECONDS)
        log.warning("domain has not followed a request", domain=domain.name, request=reason)

    # ---- admission

    def check_free(self, name: str, myself: Domain | None) -> None:
        other = next((domain for domain in self.domains.values() if domain.name == name), None)
        if name == DOM0_NAME or (other is not None and other is not myself):
            domid = 0 if other is None else other.record.domid
            suffix = "" if domid is None else f" as domain {domid}"
            raise XendError(f"VM name '{name}' already exists{suffix}")

    def _admit(self, config: DomainConfig, *, managed: bool) -> Domain:
        """Gives a new domain its name and UUID, from now on."""
        self.check_free(config.name, None)
        if config.uuid in self.domains:
            other = self.domains[config.uuid].name
            raise XendError(f"Domain UUID '{config.uuid}' is already in use by '{other}'")
        config = config.changed(devices=device_config.with_macs(config.devices, self.macs()))
        domain = Domain(Record(config, managed=managed))
        self.domains[config.uuid] = domain
        return domain

    def macs(self) -> set[str]:
        """The MAC addresses in use on the host."""
        known = {mac for domain in self.domains.values() for mac in domain.in_hand.values()}
        return known | device_config.macs_of_all(domain.config.devices for domain in self.domains.values())

    # ---- a domain's lives

    async def launch(self, domain: Domain, *, adopt: bool = False) -> None:
        """Starts the task of a domain and waits until the domain is built.

        Raises: XendError; nothing of the domain is left then.
        """
        if not adopt:
            domain.record.phase = CREATING
        if domain.ended.is_set():  # otherwise this is its first life, and somebody may have ended it already
            domain.scope, domain.ended = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._run, domain, adopt)

    async def _run(self, domain: Domain, adopt: bool, *, task_status: trio.TaskStatus[None]) -> None:
        built = False
        try:
            with domain.scope:
                if not adopt:
                    await self._construct(domain)
                built = True
                task_status.started()
                while await self._stay(domain, adopt) == RESTART and await self._restart(domain):
                    adopt = False
            if domain.record.phase != HALTED:
                await self.put_away(domain)
        finally:
            domain.ended.set()
        if not built:
            raise XendError(f"Domain '{domain.name}' was destroyed while it was being built")

    async def _construct(self, domain: Domain) -> None:
        """Builds a domain, paused. Whatever goes wrong, nothing is left of it. Raises: XendError."""
        try:
            await self._builder.build(domain.record)
        except BaseException as error:
            await self.put_away(domain)
            if isinstance(error, (XenError, ImageError, XenstoreUnavailable)):
                raise XendError(await self._builder.explain(error, domain.config)) from error
            raise

    async def _stay(self, domain: Domain, adopted: bool) -> str:
        """Waits until a domain's life is over. Returns: RESTART or DESTROY."""
        async with trio.open_nursery() as domain.nursery:
            if adopted:
                domain.nursery.start_soon(self._finish_detaching, domain)
            verdict = await self._wait_ended(domain)
            domain.nursery.cancel_scope.cancel()
        domain.nursery = None
        return verdict

    async def _wait_ended(self, domain: Domain) -> str:
        while True:
            changed = domain.changed = trio.Event()
            info = await self.info_of(domain.record)
            if info is None or info.dying:
                log.info("domain has gone", domain=domain.name, domid=domain.record.domid)
                return DESTROY
            if info.shutdown and not domain.record.preserved:
                verdict = self._judge(domain, info.shutdown_reason)
                if verdict in (DESTROY, RESTART):
                    return verdict
                if verdict == RENAME_RESTART:
                    await self._rename_restart(domain)
                else:
                    await self._preserve(domain)
            await changed.wait()

    def _judge(self, domain: Domain, code: int) -> str:
        """What becomes of a domain that has shut down: DESTROY, RESTART, PRESERVE or RENAME_RESTART."""
        reason = REASONS.get(code, f"reason {code}")
        log.info("domain has shut down", domain=domain.name, domid=domain.record.domid, reason=reason)
        if code == SHUTDOWN_SUSPEND:
            log.warning("suspending is not built yet; the domain is kept", domain=domain.name)
            return PRESERVE
        action = domain.config.action(reason)
        if action.startswith("coredump-"):
            log.warning("core dumps are not built yet; there is none", domain=domain.name)
            action = action.removeprefix("coredump-")
        elapsed = self._wall() - (domain.record.start_time or -math.inf)
        again = domain.record.restart_count > 0  # the first restart is always granted, as in the original
        if action in (RESTART, RENAME_RESTART) and again and elapsed < self._minimum_restart:
            log.error(
                "domain is restarting too fast and is destroyed instead",
                domain=domain.name,
                seconds=round(elapsed, 1),
                minimum=self._minimum_restart,
            )
            return DESTROY
        return action

    async def _restart(self, domain: Domain) -> bool:
        """Replaces a domain that has ended. Returns: False when that failed; it is put away then."""
        domain.record.phase = RESTARTING
        self.store.save(domain.record)
        await self.take_apart(domain.record)
        return await self.again(domain, self._construct)

    async def again(self, domain: Domain, begin: Callable[[Domain], Awaitable[None]]) -> bool:
        """A further life: built by `begin`, then running. Returns: False, and says why in the log, if not."""
        try:
            await begin(domain)
            await self.devices.wait_connected(domain.domid, domain.config.devices)
            domain.record.restart_count += 1
            self.store.save(domain.record)
            await self.hypervisor.domain_unpause(domain.domid)
            await self.xenstore.write(
                f"{layout.vm_path(domain.config)}/xend/restart_count", str(domain.record.restart_count)
            )
        except (XendError, XenError, XenstoreUnavailable) as error:
            log.error("domain could not be restarted", domain=domain.name, reason=str(error))
            return False
        log.info("domain has restarted", domain=domain.name, domid=domain.record.domid)
        return True

    async def relaunch(self, domain: Domain) -> None:
        """A further life of a domain without a task. Says so in the log, and leaves nothing, if not."""
        if not await self.again(domain, self.launch):
            await self.destroy(domain)

    async def _preserve(self, domain: Domain) -> None:
        log.info("domain is kept after its end", domain=domain.name, domid=domain.record.domid)
        domain.record.preserved = True
        self.store.save(domain.record)
        path = layout.domain_path(domain.record.domid or 0)
        await self.xenstore.write(f"{path}/xend/shutdown_completed", "True")

    async def _rename_restart(self, domain: Domain) -> None:
        """Keeps a dead domain under a new name and UUID and starts another in its place."""
        record, config = domain.record, domain.config
        successor = Domain(Record(config, record.managed, RESTARTING, restart_count=record.restart_count))
        fresh = uuid4()
        record.config = config.changed(name=f"Domain-{fresh}", uuid=fresh, devices=())  # its successor's now
        record.managed, record.preserved = False, True
        self.domains[fresh], self.domains[config.uuid] = domain, successor
        self.store.save(record, successor.record, old_uuid=config.uuid)
        log.info("domain is kept after its end", domain=config.name, domid=record.domid, name=domain.name)
        try:
            await self.devices.remove_all(domain.domid)
            await self._rename_nodes(record, config)
        finally:  # also when the dead domain is destroyed at this moment
            self.start_in_background(self.relaunch, successor)

    async def _rename_nodes(self, record: Record, old: DomainConfig) -> None:
        path = layout.domain_path(record.domid or 0)
        await self.xenstore.remove(layout.vm_path(old))
        await self.xenstore.create(layout.vm_nodes(record))
        await self.xenstore.create(
            [
                Node(f"{path}/vm", layout.vm_path(record.config)),
                Node(f"{path}/name", record.config.name),
                Node(f"{path}/xend/shutdown_completed", "True"),
            ]
        )

    # ---- devices

    async def _finish_detaching(self, domain: Domain) -> None:
        """Takes away what an earlier xend was about to: devices not recorded, or asked to go."""
        recorded = set(map(device_config.key, domain.config.devices))
        try:
            for found in await self.devices.plugged(domain.domid):
                if not found.online or (found.kind, found.devid) not in recorded:
                    log.info("taking a device away", domain=domain.name, kind=found.kind, devid=found.devid)
                    self.wait_detached(domain, found)
        except (XendError, XenError, XenstoreUnavailable) as error:
            log.error("devices are not looked after", domain=domain.name, reason=str(error))

    def wait_detached(self, domain: Domain, device: Plugged) -> None:
        """Goes on, for as long as the domain lives, with taking a device away that the guest still holds."""

        async def wait(domid: int) -> None:
            try:
                await self.devices.wait_unplugged(domid, device.kind, device.devid)
            except (XenError, XenstoreUnavailable) as error:
                log.error("a device is not taken away", domain=domain.name, reason=str(error))

        if domain.nursery is not None:
            domain.nursery.start_soon(wait, domain.domid)

    # ---- taking apart

    async def put_away(self, domain: Domain) -> None:
        """Takes a domain apart and goes back to what is there of it when it does not run. Never fails."""
        await self.take_apart(domain.record)
        domain.record.phase = HALTED
        if domain.record.managed:
            self.store.save(domain.record)
        else:
            self.domains.pop(domain.config.uuid, None)
            self.store.forget(domain.config.uuid)

    async def take_apart(self, record: Record) -> None:
        """Ends an incarnation and clears what the record says of it. Never fails, is not cancelled."""
        vm_path = layout.vm_path(record.config)
        await teardown.take_apart(
            self.hypervisor, self.xenstore, self.devices, record.domid, record.handle, vm_path
        )
        if record.process is not None:
            with trio.CancelScope(shield=True):
                await self.processes.kill(record.process)
        record.process_pid = record.process_ticks = record.isolation = None
        record.domid = record.handle = record.start_time = None
        record.store_mfn = record.store_port = record.console_mfn = record.console_port = None
        record.preserved = record.paused_by_admin = False

    # ---- news

    def _hear_of_release(self) -> None:
        self._news.set()

    async def _watch_releases(self) -> None:
        """Wakes the tasks of the domains that have shut down or gone, all with one look at the hypervisor."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            infos: dict[int, DomainInfo] = {
                info.domid: info for info in await self.hypervisor.getdomaininfolist()
            }
            for domain in self.domains.values():
                info = None if domain.record.domid is None else infos.get(domain.record.domid)
                if info is None or info.shutdown or info.dying:
                    domain.changed.set()

    async def _shut_down_with_us(self) -> None:
        """Asks the domains with on_xend_stop=shutdown to end."""
        for domain in self.domains.values():
            if domain.config.on_xend_stop == "shutdown" and domain.record.phase == RUNNING:
                try:
                    path = layout.domain_path(domain.record.domid or 0)
                    await self.xenstore.write(f"{path}/control/shutdown", "poweroff")
                except XenstoreUnavailable as error:
                    log.error("domain could not be shut down", domain=domain.name, reason=str(error))
