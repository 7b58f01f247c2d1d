"""What a domain should be: its configuration, checked, from the `(vm ...)` a client sends. Pure.

Every value has been through `DomainConfig.from_sxp`; nothing behind it looks at client data again.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolstack import sxp
from toolstack.sxp import Sxp
from toolstack.xend.cpuid import read_rules
from toolstack.xend.devices import config as device_config
from toolstack.xend.devices.config import Devices
from toolstack.xend.errors import NotBuilt, XendError
from toolstack.xend.processes import is_spec, spec_of

ACTIONS = ("destroy", "restart", "preserve", "rename-restart")
CRASH_ACTIONS = (*ACTIONS, "coredump-destroy", "coredump-restart")
MAX_VCPUS = 128
MAX_MEMORY = 1 << 24
MAX_CPU = 4095
DEFAULT_EVENT_CHANNELS, MAX_EVENT_CHANNELS = 1023, (1 << 17) - 1
"""The highest port of a domain; libxl's default, and what the FIFO ABI can count."""
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:+~")


def invalid(text: str) -> XendError:
    return XendError(f"Invalid Configuration: {text}")


def check_name(name: Any) -> str:
    """Raises: XendError."""
    if not isinstance(name, str) or not name:
        raise XendError("Missing VM Name")
    if len(name) > 128 or not _NAME.issuperset(name):
        raise XendError("Invalid VM Name")
    return name


def parse_cpus(text: str) -> tuple[int, ...]:
    """The CPUs of `0-3,^2`; later words win. Empty for no restriction.

    Raises: XendError.
    """
    cpus: set[int] = set()
    for word in filter(None, text.replace(" ", "").split(",")):
        low, dash, high = word.removeprefix("^").partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            raise XendError(f"'{word}' is no CPU and no range of CPUs") from None
        if not 0 <= first <= last <= MAX_CPU:
            raise XendError(f"'{word}' is no range of CPUs")
        chosen = set(range(first, last + 1))
        cpus = cpus - chosen if word.startswith("^") else cpus | chosen
    return tuple(sorted(cpus))


@dataclass(frozen=True)
class Image:
    """What the domain boots. `kind` is the head of the image expression."""

    kernel: str
    ramdisk: str = ""
    args: str = ""
    root: str = ""
    ip: str = ""
    kind: str = "linux"

    @property
    def cmdline(self) -> str:
        """The kernel's command line: ip, root, then the arguments, which may hold the first two."""
        words = []
        if self.ip and "ip=" not in self.args:
            words.append(f"ip={self.ip}")
        if self.root and "root=" not in self.args:
            words.append(f"root={self.root}")
        return " ".join([*words, self.args] if self.args else words)

    @property
    def process(self) -> str | None:
        """For a guest written in Python, where its code is; None for a kernel."""
        return spec_of(self.kernel)

    def words(self) -> list[str]:
        """The command line as the words of a shell. Raises: ValueError for quotes that do not close."""
        return shlex.split(self.cmdline)

    def to_sxp(self) -> list[Sxp]:
        out: list[Sxp] = [self.kind, ["kernel", self.kernel]]
        for key in ("ramdisk", "ip", "root", "args"):
            if getattr(self, key):
                out.append([key, getattr(self, key)])
        return out


@dataclass(frozen=True)
class DomainConfig:
    """Memory in MiB. `vcpus` is how many exist, `vcpu_avail` a bit for each that the guest may use."""

    name: str
    uuid: uuid.UUID
    image: Image
    memory: int = 128
    maxmem: int = 128
    vcpus: int = 1
    vcpu_avail: int = 1
    cpus: tuple[tuple[int, ...], ...] = ()
    """CPUs each vCPU may run on; empty for all. Shorter than `vcpus` when the rest is not restricted."""
    cpu_weight: int = 256
    cpu_cap: int = 0
    on_poweroff: str = "destroy"
    on_reboot: str = "restart"
    on_crash: str = "restart"
    on_xend_start: str = "ignore"
    on_xend_stop: str = "ignore"
    description: str = ""
    features: str = ""
    max_event_channels: int = DEFAULT_EVENT_CHANNELS
    cpuid: tuple[str, ...] = ()
    cpuid_check: tuple[str, ...] = ()
    """Rules of dom0.libxc.cpuid, in xend's syntax."""
    pool_name: str = "Pool-0"
    shadow_memory: int = 0
    devices: Devices = ()
    extra: tuple[tuple[str, str], ...] = ()
    """Settings that are kept and shown but mean nothing here, such as `localtime`."""

    @classmethod
    def from_sxp(cls, config: Sxp) -> DomainConfig:
        """Raises: XendError, whatever `config` is."""
        if sxp.name(config) not in ("vm", "domain"):
            raise invalid("it must be a (vm ...)")
        reader = _Reader(config)
        reader.refuse_unbuilt()
        vcpus = reader.number("vcpus", 1, 1, MAX_VCPUS)
        memory = reader.number("memory", 128, 1, MAX_MEMORY)
        return cls(
            name=check_name(reader.text("name", "Domain-Unnamed")),
            uuid=reader.uuid(),
            image=reader.image(),
            memory=memory,
            maxmem=reader.number("maxmem", memory, memory, MAX_MEMORY),
            vcpus=vcpus,
            vcpu_avail=reader.number("vcpu_avail", (1 << vcpus) - 1, 1, (1 << vcpus) - 1),
            cpus=reader.cpus(vcpus),
            cpu_weight=reader.number("cpu_weight", 256, 1, 65535),
            cpu_cap=reader.number("cpu_cap", 0, 0, vcpus * 100),
            on_poweroff=reader.choice("on_poweroff", "destroy", ACTIONS),
            on_reboot=reader.choice("on_reboot", "restart", ACTIONS),
            on_crash=reader.choice("on_crash", "restart", CRASH_ACTIONS),
            on_xend_start=reader.choice("on_xend_start", "ignore", ("ignore", "start")),
            on_xend_stop=reader.choice("on_xend_stop", "ignore", ("ignore", "shutdown")),
            description=reader.text("description", ""),
            features=reader.text("features", ""),
            max_event_channels=reader.number(
                "max_event_channels", DEFAULT_EVENT_CHANNELS, 1, MAX_EVENT_CHANNELS
            ),
            cpuid=read_rules("cpuid", reader.value("cpuid")),
            cpuid_check=read_rules("cpuid_check", reader.value("cpuid_check")),
            pool_name=reader.choice("pool_name", "Pool-0", ("Pool-0",)),
            shadow_memory=reader.number("shadow_memory", 0, 0, MAX_MEMORY),
            devices=reader.devices(),
            extra=reader.kept("localtime", "nomigrate", "s3_integrity", "oos", "rtc_timeoffset"),
        )

    def to_sxp(self) -> list[Sxp]:
        """The `(vm ...)` that `from_sxp` turns into an equal configuration."""
        out: list[Sxp] = ["vm", ["name", self.name], ["uuid", str(self.uuid)]]
        keys = (
            "memory maxmem shadow_memory vcpus vcpu_avail cpu_weight cpu_cap on_poweroff on_reboot on_crash"
            " on_xend_start on_xend_stop description features max_event_channels pool_name"
        )
        out += [[key, getattr(self, key)] for key in keys.split()]
        out.append(["cpus", self.cpus_sxp()])
        out += [[key, list(getattr(self, key))] for key in ("cpuid", "cpuid_check") if getattr(self, key)]
        out += [[key, value] for key, value in self.extra]
        out.append(["image", self.image.to_sxp()])
        return out + self.devices_sxp()

    def devices_sxp(self) -> list[Sxp]:
        """A `(device ...)` for each."""
        return [["device", device.to_sxp()] for device in self.devices]

    def cpus_sxp(self) -> list[Sxp]:
        return [list(cpus) for cpus in self.cpus]

    def changed(self, **fields: Any) -> DomainConfig:
        return replace(self, **fields)

    def action(self, reason: str) -> str:
        """What on_poweroff, on_reboot or on_crash says, by the reason of the end."""
        return {"poweroff": self.on_poweroff, "reboot": self.on_reboot}.get(reason, self.on_crash)


class _Reader:
    """Takes typed values out of a client's expression. Each method raises XendError."""

    def __init__(self, config: Sxp) -> None:
        self.config = config

    def value(self, key: str, default: Any = None) -> Any:
        return sxp.child_value(self.config, key, default)

    def text(self, key: str, default: str) -> str:
        value = self.value(key, default)
        if isinstance(value, (list, dict)) or value is None:
            raise invalid(f"{key} must be a string")
        text = str(value)
        if any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
            raise invalid(f"{key} must not contain control characters")
        if len(text) > 4096:
            raise invalid(f"{key} is too long")
        return text

    def number(self, key: str, default: int, low: int, high: int) -> int:
        value = self.value(key, default)
        try:
            number = int(value) if not isinstance(value, float) or value.is_integer() else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None:
            raise invalid(f"{key} must be a number")
        if not low <= number <= high:
            raise invalid(f"{key} must be from {low} to {high}")
        return number

    def choice(self, key: str, default: str, words: tuple[str, ...]) -> str:
        value = self.value(key, default) or default
        if value not in words:
            raise invalid(f"{key} must be one of {', '.join(words)}")
        return str(value)

    def uuid(self) -> uuid.UUID:
        value = self.value("uuid")
        if value in (None, ""):
            return uuid.uuid4()
        try:
            return uuid.UUID(str(value))
        except ValueError:
            raise invalid("uuid must be a UUID") from None

    def cpus(self, vcpus: int) -> tuple[tuple[int, ...], ...]:
        """`(cpus 0-3)` for all vCPUs, a list for one after the other, or `(cpu N)` for the first."""
        value = self.value("cpus")
        if value in (None, "", []):
            cpu = self.number("cpu", -1, -1, MAX_CPU)
            return ((cpu,),) if cpu >= 0 else ()
        if not isinstance(value, list):
            return (parse_cpus(str(value)),) * vcpus
        if len(value) > vcpus:
            raise invalid(f"cpus names {len(value)} vCPUs, the domain has {vcpus}")
        return tuple(self._cpu_list(item) for item in value)

    @staticmethod
    def _cpu_list(item: Any) -> tuple[int, ...]:
        words = item if isinstance(item, list) else [item]
        if any(isinstance(word, list) for word in words):
            raise invalid("cpus must be numbers, ranges or lists of them")
        return parse_cpus(",".join(str(word) for word in words))

    def image(self) -> Image:
        image = self.value("image")
        if sxp.name(image) == "hvm":
            raise NotBuilt("an HVM domain")
        if sxp.name(image) not in ("linux", "generic"):
            raise invalid("image must be (linux ...)")
        inner = _Reader(image)
        kernel = inner.text("kernel", "")
        if not kernel:
            raise XendError("Missing kernel image")
        ramdisk = inner.text("ramdisk", "")
        words = {key: inner.text(key, "") for key in ("args", "root", "ip")}
        made = Image(kernel, ramdisk, kind=str(sxp.name(image)), **words)
        if made.process is not None:
            self._check_process(made)
            return made
        for path in filter(None, (kernel, ramdisk)):
            if not Path(path).is_absolute():
                raise invalid(f"the path '{path}' must be absolute")
        return made

    def _check_process(self, image: Image) -> None:
        """What cannot be with a guest written in Python."""
        if not is_spec(image.process or ""):
            raise invalid(f"'{image.kernel}' is no python:module[:attribute] and no python:/path/to/file.py")
        if image.ramdisk:
            raise invalid("a guest written in Python has no ramdisk")
        if self.number("vcpus", 1, 1, MAX_VCPUS) != 1:
            raise invalid("a guest written in Python has one vCPU")
        try:
            image.words()
        except ValueError as error:
            raise invalid(f"its arguments cannot be taken apart: {error}") from None

    def devices(self) -> Devices:
        return device_config.collect(map(device_config.parse, sxp.children(self.config, "device")))

    def kept(self, *keys: str) -> tuple[tuple[str, str], ...]:
        return tuple((key, self.text(key, "")) for key in keys if self.value(key) is not None)

    def refuse_unbuilt(self) -> None:
        """Nothing a client asks for is dropped silently."""
        features: dict[str, Callable[[Any], bool]] = {
            "bootloader": bool,
            "backend": bool,
            "target": lambda value: str(value) != "0",
            "tsc_mode": lambda value: str(value) != "0",
            "superpages": lambda value: str(value) != "0",
            "security": bool,
            "machine_address_size": bool,
            "suppress_spurious_page_faults": bool,
        }
        for key, asks in features.items():
            value = self.value(key)
            if value is not None and asks(value):
                raise NotBuilt(f"the setting '{key}'")
