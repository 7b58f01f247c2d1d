"""The legacy XML-RPC interface of xend: every method by name, with what it takes and gives.

Open `_table` first: it is the interface. Methods of the original that do not exist yet are known by name and
say so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from dom0.libxc.images import ImageError
from hyper.public.errors import HypervisorGone, XenError
from toolstack.sxp import child_value
from toolstack.xend.control import Control
from toolstack.xend.describe import STATE_NAMES
from toolstack.xend.errors import NotBuilt, UnknownMethod, XendError
from toolstack.xend.hotplug import Hotplug
from toolstack.xend.lifecycle import Lifecycle
from toolstack.xend.node import Node
from toolstack.xend.xenstore import XenstoreUnavailable

NOT_BUILT = frozenset(
    [
        f"xend.domain.{name}"
        for name in (
            "configure suspend resume reset save restore restore_fd migrate dump setVCpuCount"
            " sched_credit2_get sched_credit2_set cpu_sedf_get cpu_sedf_set send_trigger"
            " shadow_control shadow_mem_get shadow_mem_set ioport_range_enable ioport_range_disable"
            " usb_add usb_del lookup lookup_nr create_from_dict delete_by_dominfo"
        ).split()
    ]
    + [
        f"xend.node.{name}"
        for name in (
            "pciinfo tmem_list tmem_freeze tmem_thaw tmem_flush tmem_destroy tmem_set_weight tmem_set_cap"
            " tmem_set_compress tmem_query_freeable_mb tmem_shared_auth"
        ).split()
    ]
    + [
        f"xend.cpu_pool.{name}"
        for name in "new create start list destroy delete cpu_add cpu_remove migrate".split()
    ]
)

_REQUIRED = object()


@dataclass(frozen=True)
class Parameter:
    """`kind` is the XML-RPC type; `domain` takes a name or an id, `optional int` also nil."""

    name: str
    kind: str
    default: Any = _REQUIRED

    def convert(self, method: str, value: Any) -> Any:
        """Raises: XendError."""
        if self.kind == "optional int" and value is None:
            return None
        converted = _CONVERTERS[self.kind](value)
        if converted is None:
            raise XendError(f"{method}: {self.name} must be {_KINDS[self.kind]}")
        return converted


def _as_domain(value: Any) -> int | str | None:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return None


def _as_int(value: Any) -> int | None:
    try:
        return int(value) if isinstance(value, (int, str)) else None
    except ValueError:
        return None


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "domain": _as_domain,
    "int": _as_int,
    "optional int": _as_int,
    "boolean": lambda value: bool(value) if isinstance(value, int) else None,
    "flag": lambda value: bool(value) if value is None or isinstance(value, (int, str)) else None,
    "string": lambda value: value if isinstance(value, str) else None,
    "array": lambda value: value if isinstance(value, list) else None,
    "any": lambda value: value if isinstance(value, (int, str)) else None,
}
_KINDS = {
    "domain": "a name or an id",
    "int": "a number",
    "optional int": "a number or nil",
    "boolean": "a boolean",
    "flag": "a boolean, or nil",
    "string": "a string",
    "array": "an s-expression as an array",
    "any": "a number or a string",
}
_TYPES = {"domain": "string", "flag": "boolean", "optional int": "int", "any": "string"}


@dataclass(frozen=True)
class Method:
    call: Callable[..., Awaitable[Any]]
    parameters: tuple[Parameter, ...]
    result: str
    help: str

    def bind(self, name: str, values: list[Any]) -> list[Any]:
        """The arguments, checked and with defaults filled in. Raises: XendError."""
        most = len(self.parameters)
        least = sum(parameter.default is _REQUIRED for parameter in self.parameters)
        if not least <= len(values) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise XendError(f"{name} takes {wanted} arguments, not {len(values)}")
        bound = [parameter.convert(name, value) for parameter, value in zip(self.parameters, values)]
        return bound + [parameter.default for parameter in self.parameters[len(values) :]]

    def signature(self) -> list[str]:
        kinds = (parameter.kind for parameter in self.parameters)
        return [self.result, *(_TYPES.get(kind, kind) for kind in kinds)]


class Rpc:
    """Dispatches calls."""

    def __init__(self, life: Lifecycle, control: Control, hotplug: Hotplug, node: Node) -> None:
        self._life = life
        self._hotplug = hotplug
        self._control = control
        self._node = node
        self.methods = self._table()

    async def dispatch(self, name: str, values: list[Any]) -> Any:
        """The result of a method. Raises: XendError and its kind; anything else is a mistake of ours."""
        method = self.methods.get(name)
        if method is None:
            if name in NOT_BUILT or name.startswith("xend.security."):
                raise NotBuilt(name)
            raise UnknownMethod(name)
        arguments = method.bind(name, values)
        try:
            return await method.call(*arguments)
        except (XenError, ImageError, XenstoreUnavailable, HypervisorGone) as error:
            raise XendError(str(error)) from error

    def _table(self) -> dict[str, Method]:
        control, hotplug, node = self._control, self._hotplug, self._node
        domain = Parameter("domain", "domain")
        full = Parameter("full", "boolean", False)
        entries: list[tuple[str, Callable[..., Awaitable[Any]], tuple[Parameter, ...], str, str]] = [
            ("system.listMethods", self._list_methods, (), "array", "The names of all methods."),
            (
                "system.methodHelp",
                self._help,
                (Parameter("name", "string"),),
                "string",
                "What a method does.",
            ),
            (
                "system.methodSignature",
                self._signature,
                (Parameter("name", "string"),),
                "array",
                "Lists of the types a method gives and takes.",
            ),
            ("xend.domain", control.describe, (domain, full), "array", "A domain as an s-expression."),
            (
                "xend.domains",
                self._domains,
                (Parameter("detail", "boolean", True), full),
                "array",
                "The running domains, as s-expressions or names.",
            ),
            (
                "xend.domains_with_state",
                self._domains_with_state,
                (Parameter("detail", "boolean"), Parameter("state", "any"), full),
                "array",
                "The domains in a state (a name, a number or 'all'), as s-expressions or names.",
            ),
            (
                "xend.domain.create",
                self._create,
                (Parameter("config", "array"),),
                "array",
                "Creates a domain from a (vm ...) and leaves it paused; gives it as an s-expression.",
            ),
            (
                "xend.domain.new",
                self._new,
                (Parameter("config", "array"),),
                "nil",
                "Adds a managed domain that is not running.",
            ),
            (
                "xend.domain.start",
                self._start,
                (domain, Parameter("start_paused", "boolean", True)),
                "nil",
                "Starts a managed domain.",
            ),
            ("xend.domain.delete", self._delete, (domain,), "nil", "Forgets a managed domain."),
            ("xend.domain.destroy", self._destroy, (domain,), "nil", "Ends a domain at once."),
            (
                "xend.domain.waitForDevices",
                hotplug.wait,
                (domain,),
                "nil",
                "Waits until the backends of a domain are ready.",
            ),
            (
                "xend.domain.device_create",
                hotplug.attach,
                (domain, Parameter("config", "array")),
                "array",
                "Adds a device, such as (vbd ...) or (vif ...), and gives its whole expression.",
            ),
            (
                "xend.domain.device_configure",
                self._configure_device,
                (domain, Parameter("config", "array"), Parameter("devid", "any", "")),
                "nil",
                "Changes a device: the medium of a cdrom.",
            ),
            (
                "xend.domain.destroyDevice",
                self._destroy_device,
                (
                    domain,
                    Parameter("class", "string"),
                    Parameter("devid", "any"),
                    Parameter("force", "flag", False),
                    Parameter("rm_cfg", "flag", False),
                ),
                "nil",
                "Takes a device away; with rm_cfg it does not come back with the domain's next life.",
            ),
            (
                "xend.domain.device_resize",
                self._resize_device,
                (domain, Parameter("devid", "any")),
                "nil",
                "Lets a domain see the present size of a disk's image. Not in the original.",
            ),
            (
                "xend.domain.getDeviceSxprs",
                hotplug.describe,
                (domain, Parameter("class", "string")),
                "array",
                "The devices of a class, as pairs of id and facts.",
            ),
            (
                "xend.domain.getBlockDeviceClass",
                self._block_class,
                (domain, Parameter("devid", "any")),
                "string",
                "The class of a disk; nil when there is no such disk.",
            ),
            (
                "xend.domain.pause",
                self._pause,
                (domain, Parameter("state", "boolean", False)),
                "int",
                "Pauses a domain; gives the state it was in if asked to.",
            ),
            ("xend.domain.unpause", control.unpause, (domain,), "nil", "Lets a paused domain go on."),
            (
                "xend.domain.setpauseflag",
                control.set_pause_flag,
                (domain, Parameter("flag", "boolean", False)),
                "nil",
                "Notes whether an administrator paused a domain.",
            ),
            (
                "xend.domain.getpauseflag",
                control.pause_flag,
                (domain,),
                "boolean",
                "Whether an administrator paused a domain.",
            ),
            (
                "xend.domain.shutdown",
                control.shutdown,
                (domain, Parameter("reason", "string")),
                "nil",
                "Asks a domain for poweroff, reboot, halt or crash.",
            ),
            (
                "xend.domain.getRestartCount",
                control.restart_count,
                (domain,),
                "int",
                "How often a domain restarted.",
            ),
            (
                "xend.domain.setName",
                self._set_name,
                (domain, Parameter("name", "string")),
                "nil",
                "Renames a domain.",
            ),
            (
                "xend.domain.setMemoryTarget",
                control.set_memory,
                (domain, Parameter("mebibytes", "int")),
                "nil",
                "Sets how much memory a domain should have.",
            ),
            (
                "xend.domain.maxmem_set",
                control.set_max_memory,
                (domain, Parameter("mebibytes", "int")),
                "nil",
                "Sets the most memory a domain may have.",
            ),
            (
                "xend.domain.getVCPUInfo",
                control.vcpu_info,
                (domain,),
                "array",
                "The virtual CPUs of a domain.",
            ),
            (
                "xend.domain.pincpu",
                control.pin,
                (domain, Parameter("vcpu", "any"), Parameter("cpumap", "string")),
                "nil",
                "Sets the CPUs a virtual CPU, or all of them, may run on.",
            ),
            (
                "xend.domain.sched_credit_get",
                control.credit,
                (domain,),
                "struct",
                "Weight and cap of a domain in the credit scheduler.",
            ),
            (
                "xend.domain.sched_credit_set",
                control.set_credit,
                (domain, Parameter("weight", "optional int", None), Parameter("cap", "optional int", None)),
                "int",
                "Sets weight and cap; nil leaves one as it is.",
            ),
            (
                "xend.domain.send_sysrq",
                control.send_sysrq,
                (domain, Parameter("key", "string")),
                "nil",
                "Sends a SysRq letter to the kernel of a domain.",
            ),
            (
                "xend.node.info",
                node.info,
                (Parameter("show_numa", "boolean", True),),
                "array",
                "Facts about the host, as pairs.",
            ),
            ("xend.node.log", self._log, (), "string", "The end of the log of xend."),
            (
                "xend.node.send_debug_keys",
                node.send_debug_keys,
                (Parameter("keys", "string"),),
                "nil",
                "Sends debug keys to the hypervisor.",
            ),
            ("xend.node.dmesg.info", node.dmesg, (), "string", "The messages of the hypervisor."),
            ("xend.node.dmesg.clear", self._dmesg_clear, (), "string", "The same, and empties the buffer."),
        ]
        return {
            name: Method(call, parameters, result, text) for name, call, parameters, result, text in entries
        }

    # ---- methods that are more than one operation

    async def _list_methods(self) -> list[str]:
        return sorted(self.methods)

    async def _help(self, name: str) -> str:
        return self._known(name).help

    async def _signature(self, name: str) -> list[list[str]]:
        return [self._known(name).signature()]

    def _known(self, name: str) -> Method:
        if name not in self.methods:
            raise UnknownMethod(name)
        return self.methods[name]

    async def _domains(self, detail: bool, full: bool) -> list[Any]:
        return await self._domains_with_state(detail, "running", full)

    async def _domains_with_state(self, detail: bool, state: int | str, full: bool) -> list[Any]:
        if isinstance(state, int):
            state = STATE_NAMES[state] if 0 <= state < len(STATE_NAMES) else str(state)
        found = await self._control.describe_all(state.lower(), full)
        return list(found) if detail else [child_value(domain, "name") for domain in found]

    async def _create(self, config: list[Any]) -> list[Any]:
        domain = await self._life.create(config)
        return await self._control.describe(str(domain.config.uuid))

    async def _new(self, config: list[Any]) -> None:
        await self._life.new(config)

    async def _start(self, key: int | str, start_paused: bool) -> None:
        domain = await self._life.find_own(key, "start")
        if start_paused:
            await self._life.start(domain)
        else:
            await self._life.start_running(domain)

    async def _delete(self, key: int | str) -> None:
        self._life.delete(await self._life.find_own(key, "delete"))

    async def _destroy(self, key: int | str) -> None:
        await self._life.destroy(await self._life.find_any(key))

    async def _configure_device(self, key: int | str, config: list[Any], devid: int | str) -> None:
        await self._hotplug.configure(key, config, str(devid))

    async def _destroy_device(
        self, key: int | str, kind: str, devid: int | str, force: bool, rm_cfg: bool
    ) -> None:
        await self._hotplug.detach(key, kind, str(devid), force, rm_cfg)

    async def _resize_device(self, key: int | str, devid: int | str) -> None:
        await self._hotplug.resize(key, str(devid))

    async def _block_class(self, key: int | str, devid: int | str) -> str | None:
        return await self._hotplug.block_class(key, str(devid))

    async def _pause(self, key: int | str, state: bool) -> int | None:
        before = await self._control.pause(key)
        return before if state else None

    async def _set_name(self, key: int | str, name: str) -> None:
        await self._life.rename(await self._life.find_settled(key, "rename"), name)

    async def _log(self) -> str:
        return self._node.log()

    async def _dmesg_clear(self) -> str:
        return await self._node.dmesg(clear=True)
