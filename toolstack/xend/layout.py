"""The entries xend keeps in xenstore for a domain. Pure: records in, nodes out.

`/local/domain/<domid>` is what the guest sees of itself. Dom0 owns it and the guest may read it; the guest
may also write where a frontend or the kernel answers (control/shutdown and its friends, data, error, ...), as
with xl. `/vm/<uuid>` is the toolstack's own and outlives an incarnation; of it the guest may read its UUID
and name only.
"""

from __future__ import annotations

from collections.abc import Iterator

from toolstack import sxp
from toolstack.xend.devices.config import KINDS, Devices, key
from toolstack.xend.model import DomainConfig
from toolstack.xend.nodes import Node
from toolstack.xend.store import Record

CONSOLE_LIMIT = 1 << 20
"""Bytes xenconsoled may keep of one guest's output."""

_WRITABLE = (
    "control/shutdown",
    "control/sysrq",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "device/suspend/event-channel",
    "data",
    "error",
)
"""What belongs to the guest."""


def domain_path(domid: int) -> str:
    return f"/local/domain/{domid}"


def vm_path(config: DomainConfig) -> str:
    return f"/vm/{config.uuid}"


def domain_nodes(record: Record, console: str) -> Iterator[Node]:
    """What is known below /local/domain/<domid> before the domain is built, parents first; without devices.

    `console` is where one attaches to its console.
    """
    domid, config = record.domid, record.config
    assert domid is not None
    base = domain_path(domid)
    readable, owned = ("n0", f"r{domid}"), (f"n{domid}",)
    yield Node(base, "", readable)
    for name in ("cpu", "memory", "device", "control", "console", "store"):
        yield Node(f"{base}/{name}", "", readable)
    for name in _WRITABLE:
        yield Node(f"{base}/{name}", "", owned)
    for name, value in _domain_values(record, config, console).items():
        yield Node(f"{base}/{name}", value)


def _domain_values(record: Record, config: DomainConfig, console: str) -> dict[str, str]:
    values = {
        "vm": vm_path(config),
        "name": config.name,
        "domid": str(record.domid),
        "description": config.description,
        "memory/target": str(config.memory << 10),
        "memory/static-max": str(config.maxmem << 10),
        "control/platform-feature-multiprocessor-suspend": "1",
        "control/platform-feature-xs_reset_watches": "1",
        "console/type": "xenconsoled",
        "console/limit": str(CONSOLE_LIMIT),
        "console/tty": console,
    }
    return values | availability(config)


def ring_nodes(record: Record) -> Iterator[Node]:
    """What is known of the domain once it is built."""
    assert record.domid is not None
    values = {
        "console/ring-ref": record.console_mfn,
        "console/port": record.console_port,
        "store/ring-ref": record.store_mfn,
        "store/port": record.store_port,
    }
    for name, value in values.items():
        yield Node(f"{domain_path(record.domid)}/{name}", str(value))


def availability(config: DomainConfig) -> dict[str, str]:
    """Which vCPUs the guest should use, below its domain path."""
    return {
        f"cpu/{vcpu}/availability": "online" if config.vcpu_avail >> vcpu & 1 else "offline"
        for vcpu in range(config.vcpus)
    }


def vm_nodes(record: Record) -> Iterator[Node]:
    """Everything below /vm/<uuid>, parents first; enough to make the configuration again from it."""
    config = record.config
    base = vm_path(config)
    guest = ("n0", f"r{record.domid}")
    yield Node(base, "", ("n0",))
    yield Node(f"{base}/uuid", str(config.uuid), guest)
    yield Node(f"{base}/name", config.name, guest)
    for name, value in _vm_values(record, config).items():
        yield Node(f"{base}/{name}", value)
    yield from vm_device_nodes(config, config.devices)


def vm_device_nodes(config: DomainConfig, devices: Devices) -> Iterator[Node]:
    """The entries below /vm/<uuid> of some devices of a domain."""
    for device in devices:
        yield Node(vm_device_path(config, *key(device)), sxp.to_string(device.to_sxp()))


def vm_device_path(config: DomainConfig, kind: str, devid: int) -> str:
    return f"{vm_path(config)}/device/{kind}/{devid}"


VM_KEYS = (
    "memory maxmem shadow_memory vcpus vcpu_avail on_poweroff on_reboot on_crash on_xend_start on_xend_stop"
    " pool_name cpu_weight cpu_cap description features"
).split()


def _vm_values(record: Record, config: DomainConfig) -> dict[str, str]:
    image = config.image
    values = {name: str(getattr(config, name)) for name in VM_KEYS}
    values |= {
        "cpus": sxp.to_string(config.cpus_sxp()),
        "start_time": repr(record.start_time),
        "image": sxp.to_string(image.to_sxp()),
        "image/ostype": image.kind,
        "image/kernel": image.kernel,
        "image/cmdline": image.cmdline,
        "image/ramdisk": image.ramdisk,
        "xend/restart_count": str(record.restart_count),
    }
    return values


def config_from_vm(values: dict[str, str]) -> list[sxp.Sxp]:
    """The `(vm ...)` that /vm/<uuid> tells of; `values` by name below it.

    Raises: SxpError, ValueError, KeyError when it is not what `vm_nodes` wrote.
    """
    config: list[sxp.Sxp] = ["vm", ["name", values["name"]], ["uuid", values["uuid"]]]
    config += [[name, values[name]] for name in VM_KEYS if name in values]
    for name in ("cpus", "image"):
        (value,) = sxp.parse(values[name])
        config.append([name, value])
    for kind in KINDS:
        devids = [path for path in values if path.startswith(f"device/{kind}/")]
        for path in sorted(devids, key=lambda path: int(path.rpartition("/")[2])):
            (value,) = sxp.parse(values[path])
            config.append(["device", value])
    return config
