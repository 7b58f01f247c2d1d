"""What clients may do to the devices of a domain: attach, detach, change, list, wait for them.

A device is in the domain's record from the moment its backend has it, and no longer once it is asked to go.
Only one change of a device happens at a time; others of the domain's devices may change meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import structlog

from hyper.public.errors import XenError
from toolstack.sxp import Sxp
from toolstack.xend import layout
from toolstack.xend.describe import Stranger
from toolstack.xend.devices import config as device_config
from toolstack.xend.devices.config import Device
from toolstack.xend.devices.controller import DETACH_SECONDS, Plugged
from toolstack.xend.devices.vbd import Vbd
from toolstack.xend.devices.vif import Vif
from toolstack.xend.errors import XendError
from toolstack.xend.lifecycle import Domain, Lifecycle
from toolstack.xend.store import RUNNING
from toolstack.xend.xenstore import XenstoreUnavailable

log = structlog.get_logger("xend")

Key = int | str


class Hotplug:
    """Raises, from every call: InvalidDomain, XendError, XenError, XenstoreUnavailable."""

    def __init__(self, life: Lifecycle) -> None:
        self._life = life
        self._devices = life.devices
        self._xenstore = life.xenstore

    # ---- looking

    async def wait(self, key: Key) -> None:
        """Waits until the backends have all devices of a domain."""
        domain = await self._life.find_any(key)
        if isinstance(domain, Domain) and domain.record.phase == RUNNING:
            await self._devices.wait_connected(domain.domid, domain.config.devices)

    async def describe(self, key: Key, kind: str) -> list[Sxp]:
        """`[devid, [[key, value], ...]]` for each device of a class: the frontend's entries.

        For a domain that is not running, the expressions.
        """
        kind = device_config.kind_of(kind)
        domain = await self._life.find_any(key)
        if isinstance(domain, Stranger):
            return await self._devices.frontends(domain.domid, kind)
        if domain.record.phase == RUNNING:
            return await self._devices.frontends(domain.domid, kind)
        found = [device for device in domain.config.devices if device.kind == kind]
        return [[index, device.to_sxp()] for index, device in enumerate(found)]

    async def block_class(self, key: Key, name: str) -> str | None:
        """The class of a disk, None when there is no such disk."""
        domain = await self._life.find_settled(key, "look at the devices of")
        try:
            await self._find(domain, "vbd", name)
        except XendError:
            return None
        return "vbd"

    # ---- attaching

    async def attach(self, key: Key, expression: Sxp) -> list[Sxp]:
        """Adds a device and waits until its backend has it. Returns: its expression."""
        domain = await self._life.find_settled(key, "attach a device to")
        device = device_config.parse(expression)
        device = device_config.with_devid(device, domain.config.devices, domain.in_hand)
        (device,) = device_config.with_macs((device,), self._life.macs())
        with _in_hand(domain, device):
            if domain.record.phase == RUNNING:
                await self._plug(domain, device)
            self._life.change(domain, devices=(*domain.config.devices, device))
        return device.to_sxp()

    async def _plug(self, domain: Domain, device: Device) -> None:
        await self._refuse_dead(domain, "attached to")
        owner = domain.owner
        await self._devices.plug(owner, [device])
        try:
            await self._devices.wait_connected(owner.domid, [device])
            await self._xenstore.create(layout.vm_device_nodes(domain.config, (device,)))
            if domain.record.domid != owner.domid:
                raise XendError(f"Domain '{domain.name}' has ended")
        except (XendError, XenError, XenstoreUnavailable):
            await self._devices.unplug(
                owner.domid, *device_config.key(device), force=True, seconds=DETACH_SECONDS
            )
            raise
        log.info("device is attached", domain=domain.name, kind=device.kind, device=device.label)

    async def _refuse_dead(self, domain: Domain, verb: str) -> None:
        info = await self._life.info_of(domain.record)
        if info is None or info.shutdown or info.dying:
            raise XendError(f"Devices cannot be {verb} domain '{domain.name}': it has ended")

    # ---- detaching

    async def detach(self, key: Key, kind: str, name: str, force: bool, forget: bool) -> None:
        """Takes a device away; by `force` even if the guest holds it.

        With `forget` it does not come back with the domain's next life either.
        """
        domain = await self._life.find_settled(key, "detach a device from")
        kind = device_config.kind_of(kind)
        recorded, plugged = await self._find(domain, kind, name)
        devid = plugged.devid if plugged else recorded.devid if recorded else None
        assert devid is not None
        if (kind, devid) in domain.in_hand:
            raise XendError(f"Device {name} is being attached or detached")
        with _in_hand(domain, plugged or recorded):
            if recorded is not None and (forget or plugged is None):
                left = device_config.without(domain.config.devices, recorded)
                self._life.change(domain, devices=left)
            if plugged is not None:
                await self._unplug(domain, plugged, name, force)

    async def _unplug(self, domain: Domain, plugged: Plugged, name: str, force: bool) -> None:
        domid, kind, devid = domain.domid, plugged.kind, plugged.devid
        await self._xenstore.remove(layout.vm_device_path(domain.config, kind, devid))
        info = await self._life.info_of(domain.record)
        force = force or info is None or info.shutdown
        if not await self._devices.unplug(domid, kind, devid, force=force, seconds=DETACH_SECONDS):
            self._life.wait_detached(domain, plugged)
            raise XendError(
                f"Device {devid} ({kind}) could not be disconnected. '{domain.name}' still uses {name};"
                " it goes when the domain lets go of it, or at once by force (-f)"
            )
        log.info("device is detached", domain=domain.name, kind=kind, device=name)

    async def _find(self, domain: Domain, kind: str, name: str) -> tuple[Device | None, Plugged | None]:
        """What there is of a device: its record, its entries. Raises: XendError when neither."""
        recorded = device_config.find(domain.config.devices, kind, name)
        devid = recorded.devid if recorded else device_config.devid_of(kind, name)
        found = await self._devices.plugged(domain.domid) if domain.record.phase == RUNNING else []
        plugged = next((one for one in found if (one.kind, one.devid) == (kind, devid)), None)
        if recorded is None and plugged is None:
            raise XendError(f"Device {name} not connected")
        return recorded, plugged

    # ---- changing

    async def configure(self, key: Key, expression: Sxp, name: str) -> None:
        """Changes the medium of a drive for removable ones. Any other change of a device is refused."""
        domain = await self._life.find_settled(key, "configure a device of")
        wanted = device_config.parse(expression)
        name = name or wanted.label
        before = device_config.find(domain.config.devices, wanted.kind, name)
        if before is None:
            raise XendError(f"Device {name} not connected")
        if isinstance(before, Vbd) and isinstance(wanted, Vbd):
            after = replace(before, uname=wanted.uname)
            same = wanted == replace(after, uuid=wanted.uuid, bootable=wanted.bootable)
            if same and (before.device_type == "cdrom" or after == before):
                await self._change_medium(domain, before, after)
                return
        raise XendError(f"Refusing to reconfigure device {name}: only the medium of a cdrom can change")

    async def _change_medium(self, domain: Domain, before: Vbd, after: Vbd) -> None:
        with _in_hand(domain, before):
            if domain.record.phase == RUNNING:
                await self._devices.change_medium(domain.domid, before, after)
                await self._xenstore.create(layout.vm_device_nodes(domain.config, (after,)))
            devices = tuple(after if device is before else device for device in domain.config.devices)
            self._life.change(domain, devices=devices)

    async def resize(self, key: Key, name: str) -> None:
        """Lets a domain see the present size of a disk's image."""
        domain = await self._life.find_own(key, "resize a disk of")
        owner = domain.owner
        recorded, plugged = await self._find(domain, "vbd", name)
        if not isinstance(recorded, Vbd) or plugged is None:
            raise XendError(f"Device {name} not connected")
        with _in_hand(domain, recorded):
            await self._devices.resize(owner.domid, recorded)


@contextmanager
def _in_hand(domain: Domain, device: Device | Plugged | None) -> Iterator[None]:
    """Marks a device as one that is being changed. Raises: XendError when it is already."""
    assert device is not None
    mark = (device.kind, device.devid or 0)
    if mark in domain.in_hand:
        raise XendError(f"Device {mark[1]} ({mark[0]}) is being attached or detached")
    domain.in_hand[mark] = device.mac if isinstance(device, Vif) else ""
    try:
        yield
    finally:
        del domain.in_hand[mark]
