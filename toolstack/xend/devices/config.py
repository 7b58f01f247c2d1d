"""The devices of one domain together: their ids and addresses, and finding one. Pure but for chance."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, TypeAlias

from toolstack import sxp
from toolstack.devices import DeviceError, device_number
from toolstack.sxp import Sxp
from toolstack.xend.devices import vbd, vif
from toolstack.xend.devices.vbd import Vbd
from toolstack.xend.devices.vif import Vif
from toolstack.xend.errors import XendError

Device: TypeAlias = Vbd | Vif
Devices: TypeAlias = tuple[Device, ...]

KINDS = ("vbd", "vif")
"""The classes there are, in the order their devices are shown."""
MAX_DEVICES = 256

_CLASSES: dict[str, type[Vbd] | type[Vif]] = {
    **dict.fromkeys(vbd.HEADS, Vbd),
    **dict.fromkeys(vif.HEADS, Vif),
}
_LATER = {
    "vif2": "virtual network interfaces of version 2 are",
    "vfb": "virtual framebuffers are",
    "vkbd": "virtual framebuffers are",
    "pci": "PCI pass-through is",
    "vscsi": "virtual SCSI is",
    "vusb": "virtual USB is",
    "irq": "interrupt pass-through is",
    "ioports": "I/O port pass-through is",
    "console": "further consoles are",
}


def kind_of(name: str) -> str:
    """The class that a client calls `name`: tap and tap2 are vbd. Raises: XendError."""
    found = _CLASSES.get(name)
    if found is None:
        raise XendError(f"{_LATER.get(name, f'devices of class {name[:40]} are')} not built yet")
    return found.kind


def parse(expression: Sxp) -> Device:
    """A device from `(vbd ...)`, or from `(device (vbd ...))`. Raises: XendError."""
    if sxp.name(expression) == "device" and isinstance(expression, list):
        expression = expression[1] if len(expression) > 1 else None
    name = str(sxp.name(expression))
    kind_of(name)
    return _CLASSES[name].from_sxp(expression)


def collect(found: Iterable[Device]) -> Devices:
    """The devices of a new domain: each with an id of its own, the first disk bootable unless one is.

    Raises: XendError.
    """
    devices: Devices = ()
    for device in found:
        devices = (*devices, with_devid(device, devices))
    if len(devices) > MAX_DEVICES:
        raise XendError(f"Invalid Configuration: more than {MAX_DEVICES} devices")
    disks = [device for device in devices if isinstance(device, Vbd)]
    if disks and not any(disk.bootable for disk in disks):
        first = replace(disks[0], bootable=True)
        devices = tuple(first if device is disks[0] else device for device in devices)
    return devices


def with_devid(device: Device, others: Devices, taken: Collection[tuple[str, int]] = ()) -> Device:
    """The device with an id that none of `others`, and nothing in `taken`, has. Raises: XendError."""
    used = {devid for kind, devid in (*taken, *map(key, others)) if kind == device.kind}
    if isinstance(device, Vif) and device.devid is None:
        free = next((number for number in range(vif.MAX_DEVID + 1) if number not in used), None)
        if free is None:
            raise XendError("the domain has no room for another network interface")
        return replace(device, devid=free)
    if device.devid in used:
        raise XendError(f"Device {device.label} is already connected.")
    return device


def with_macs(devices: Devices, taken: Collection[str]) -> Devices:
    """The devices, those without a MAC address with one that is not in `taken`."""
    used = {*taken, *macs(devices)}
    out: list[Any] = []
    for device in devices:
        if isinstance(device, Vif) and not device.mac:
            out.append(replace(device, mac=_fresh_mac(used)))
            used.add(out[-1].mac)
        else:
            out.append(device)
    return tuple(out)


def macs(devices: Iterable[Device]) -> set[str]:
    return {device.mac for device in devices if isinstance(device, Vif)} - {""}


def _fresh_mac(used: Collection[str]) -> str:
    """A random address in Xen's range; of 2^23 as in the original, which leaves the upper half to others."""
    while True:
        number = secrets.randbelow(1 << 23)
        mac = f"00:16:3e:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        if mac not in used:
            return mac


def key(device: Device) -> tuple[str, int]:
    """What tells it from the domain's other devices."""
    assert device.devid is not None
    return device.kind, device.devid


def find(devices: Devices, kind: str, name: str) -> Device | None:
    """A device by its id, its name in the guest or its MAC address."""
    number = devid_of(kind, name)
    for device in devices:
        mac = device.mac if isinstance(device, Vif) else ""
        if device.kind == kind and (device.devid == number or (mac and mac == name.lower())):
            return device
    return None


def devid_of(kind: str, name: str) -> int | None:
    """The id that `name` stands for by itself; None for a MAC address and for nonsense."""
    try:
        if kind == "vbd":
            return device_number(name.partition(":")[0])
        return int(name) if name.isascii() and name.isdigit() and len(name) < 9 else None
    except DeviceError:
        return None


def without(devices: Devices, gone: Device) -> Devices:
    return tuple(device for device in devices if key(device) != key(gone))


def macs_of_all(configs: Iterable[Devices]) -> set[str]:
    """The addresses that all of the host's domains use."""
    return {mac for devices in configs for mac in macs(devices)}
