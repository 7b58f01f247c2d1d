"""Domain configuration files, read without executing them. Pure but for the existence of kernel files.

The files have Python's syntax because xm once ran them as Python. Here they are parsed and only this much of
the language means something: assignments of strings, numbers, lists, tuples and dictionaries; names assigned
before; `+`; `%` with a string on its left; `str(x)` and `int(x)`. Anything else is an error that names file,
line and key.

Three steps, each a function: `evaluate` (text to settings), `check` (each key's type and range),
`make_config` (settings to the `(vm ...)` that xend takes).
"""

from __future__ import annotations

import ast
import os

from toolstack.xmlrpc import carried_by_xml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from toolstack.sxp import Sxp

MAX_FILE = 1 << 20
MAX_STRING = 1 << 16
MAX_NODES = 10_000
COMMAND_LINE = "command line"


class ConfigError(Exception):
    """A mistake in a configuration: `file:line: key: text`. Line 0 means the file as a whole."""

    def __init__(self, file: str, line: int, key: str, text: str) -> None:
        super().__init__(_place(file, line, key) + text)
        self.file = file
        self.line = line
        self.key = key


def _place(file: str, line: int, key: str) -> str:
    where = f"{file}:{line}: " if line else f"{file}: "
    return f"{where}{key}: " if key else where


class Setting:
    """A value and where it was set."""

    __slots__ = ("file", "line", "value")

    def __init__(self, value: Any, file: str, line: int) -> None:
        self.value = value
        self.file = file
        self.line = line

    def __repr__(self) -> str:
        return f"Setting({self.value!r}, {self.file!r}, {self.line})"


class Settings(dict[str, Setting]):
    """The settings by key. `used` holds the names that only serve to build others."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.used: set[str] = set()

    def value(self, key: str, default: Any = None) -> Any:
        return self[key].value if key in self else default

    def error(self, key: str, text: str) -> ConfigError:
        if key not in self:
            return ConfigError(self.file, 0, key, text)
        return ConfigError(self[key].file, self[key].line, key, text)


# ---- step 1: text to settings


def _weigh(value: Any, budget: int) -> int:
    """What is left of `budget` after counting the nodes of `value`; negative once it is exceeded."""
    if isinstance(value, str):
        return budget - 1 if len(value) <= MAX_STRING else -1
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    budget -= 1
    if isinstance(value, (list, tuple)):
        for item in value:
            if budget < 0:
                break
            budget = _weigh(item, budget)
    return budget


class _Evaluator:
    def __init__(self, file: str, variables: dict[str, str]) -> None:
        self.settings = Settings(file)
        self.names: dict[str, Any] = {name: _visible(word) for name, word in variables.items()}
        self.key = ""

    def fail(self, node: Any, text: str) -> NoReturn:
        raise ConfigError(self.settings.file, getattr(node, "lineno", 0), self.key, text)

    def statement(self, node: ast.stmt) -> None:
        self.key = ""
        if isinstance(node, ast.Assign):
            self._assign(node)
        elif (
            isinstance(node, ast.AugAssign)
            and isinstance(node.op, ast.Add)
            and isinstance(node.target, ast.Name)
        ):
            self.key = node.target.id
            left = self.expression(ast.Name(node.target.id, ast.Load(), lineno=node.lineno))
            self._set(node.target, self._bounded(node, self._add(node, left, self.expression(node.value))))
        elif (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            pass  # a comment in quotes
        elif not isinstance(node, ast.Pass):
            self.fail(
                node, f"only assignments are understood here, not {_called(node)}; the file is not executed"
            )

    def _assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if not isinstance(target, ast.Name):
                self.fail(node, "only NAME = VALUE is understood")
            self.key = target.id
        value = self.expression(node.value)
        for target in node.targets:
            self._set(target, value)

    def _set(self, target: Any, value: Any) -> None:
        self.names[target.id] = value
        self.settings[target.id] = Setting(value, self.settings.file, target.lineno)

    def expression(self, node: ast.expr) -> Any:
        return self._bounded(node, self._expression(node))

    def _bounded(self, node: Any, value: Any) -> Any:
        if _weigh(value, MAX_NODES) < 0:
            self.fail(node, "this value is too large")
        return value

    def _expression(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            if node.value is None or isinstance(node.value, (str, int, float)):
                return node.value
        elif isinstance(node, ast.List):
            return [self.expression(item) for item in node.elts]
        elif isinstance(node, ast.Tuple):
            return tuple(self.expression(item) for item in node.elts)
        elif isinstance(node, ast.Dict):
            return self._dict(node)
        elif isinstance(node, ast.Name):
            if node.id not in self.names:
                self.fail(node, f"the name '{node.id}' is not set before this line")
            self.settings.used.add(node.id)
            return self.names[node.id]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
            left, right = self.expression(node.left), self.expression(node.right)
            return (
                self._add(node, left, right)
                if isinstance(node.op, ast.Add)
                else self._format(node, left, right)
            )
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
            value = self.expression(node.operand)
            if isinstance(value, (int, float)):
                return -value if isinstance(node.op, ast.USub) else value
        elif isinstance(node, ast.Call):
            return self._call(node)
        return self.fail(node, f"{_called(node)} is not understood; the file is not executed")

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        out = {}
        for key, value in zip(node.keys, node.values, strict=True):
            name = None if key is None else self.expression(key)
            if not isinstance(name, (str, int)):
                self.fail(node, "the keys of a dictionary must be strings or numbers")
            out[name] = self.expression(value)
        return out

    def _add(self, node: Any, left: Any, right: Any) -> Any:
        for kind in ((int, float), str, list, tuple):
            if isinstance(left, kind) and isinstance(right, kind):
                total: Any = left + right  # type: ignore[operator]
                return total
        return self.fail(node, f"{_kind(left)} + {_kind(right)} makes no sense")

    def _format(self, node: Any, left: Any, right: Any) -> str:
        if not isinstance(left, str):
            self.fail(node, "the left of % must be a string")
        for directive in left.split("%")[1:]:
            width = directive.lstrip("-+ #0")
            digits = width[: len(width) - len(width.lstrip("0123456789.*"))]
            if "*" in digits or any(len(part) > 3 for part in digits.split(".")):
                self.fail(node, "this format is too wide")
        try:
            return str(left % right)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            self.fail(node, f"the format does not fit its values ({error})")

    def _call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in ("str", "int") or len(node.args) != 1 or node.keywords:
            self.fail(node, "only str(x) and int(x) may be called; the file is not executed")
        value = self.expression(node.args[0])
        try:
            return str(value) if name == "str" else int(value)
        except (TypeError, ValueError, OverflowError):
            self.fail(node, f"{_kind(value)} is no number")


def _called(node: Any) -> str:
    """A construct of Python by a name its user knows."""
    names = {
        "FunctionDef": "a function",
        "ClassDef": "a class",
        "Import": "import",
        "ImportFrom": "import",
        "If": "if",
        "For": "for",
        "While": "while",
        "Call": "a call",
        "JoinedStr": "an f-string",
        "Attribute": "an attribute",
        "Subscript": "an index",
        "BinOp": "this operator",
        "UnaryOp": "this operator",
        "ListComp": "a list comprehension",
        "Constant": "this constant",
    }
    return names.get(type(node).__name__, f"'{type(node).__name__.lower()}'")


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", tuple: "a tuple", dict: "a dictionary", type(None): "None"}
    return names.get(type(value), "a number")


def _visible(word: str) -> str | int:
    """A word of the command line as the file sees it: `vmid=3` must suit `"vm%d" % vmid`."""
    return int(word) if word.isascii() and word.isdigit() and str(int(word)) == word else word


def evaluate(text: str, file: str, variables: dict[str, str] | None = None) -> Settings:
    """The settings of a file's text. `variables` are visible to it as names, whole numbers as numbers.

    Raises: ConfigError, whatever the text.
    """
    if len(text) > MAX_FILE:
        raise ConfigError(file, 0, "", "the file is longer than 1 MiB")
    evaluator = _Evaluator(file, variables or {})
    line = 0
    try:
        tree = ast.parse(text, file)
        for node in tree.body:
            line = node.lineno
            evaluator.statement(node)
    except SyntaxError as error:
        raise ConfigError(file, error.lineno or 1, "", f"syntax error: {error.msg}") from None
    except ValueError as error:  # a NUL, a number of too many digits
        raise ConfigError(file, line or 1, "", str(error)) from None
    except (RecursionError, MemoryError):
        raise ConfigError(file, line or 1, "", "nested too deeply") from None
    return evaluator.settings


def override(settings: Settings, variables: dict[str, str]) -> None:
    """Lets `name=value` words of the command line win over the file."""
    for name, text in variables.items():
        if name in LISTS:
            settings[name] = Setting([text] if text else [], COMMAND_LINE, 0)
        elif name in KEYS or name not in settings:
            settings[name] = Setting(text, COMMAND_LINE, 0)


# ---- step 2: types and ranges

ACTIONS = ("destroy", "restart", "preserve", "rename-restart")
CRASH_ACTIONS = (*ACTIONS, "coredump-destroy", "coredump-restart")
_RESTARTS = {
    "onreboot": ("destroy", "restart", "destroy"),
    "always": ("restart", "restart", "restart"),
    "never": ("destroy", "destroy", "destroy"),
}


class _Wrong(Exception):
    """A value is not what its key takes."""


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _Wrong(f"must be a string, not {_kind(value)}")
    text = str(value)
    for char in text:
        if ord(char) < 0x20 or ord(char) == 0x7F or not carried_by_xml(char):
            raise _Wrong(f"must not contain the character {ord(char):#x}")
    return text


def _number(low: int, high: int) -> Callable[[Any], int]:
    def check_number(value: Any) -> int:
        if isinstance(value, str):
            try:
                value = int(value)
            except ValueError:
                raise _Wrong(f"must be a number, not '{value[:40]}'") from None
        if isinstance(value, bool) or not isinstance(value, int):
            raise _Wrong(f"must be a whole number, not {_kind(value)}")
        if not low <= value <= high:
            raise _Wrong(f"must be from {low} to {high}")
        return value

    return check_number


def _choice(*words: str, later: tuple[str, ...] = ()) -> Callable[[Any], str]:
    def check_choice(value: Any) -> str:
        text = _text(value)
        if text in later:
            raise _Wrong(f"'{text}' is not built yet")
        if text not in words:
            raise _Wrong(f"must be one of {', '.join(words)}, not '{text[:40]}'")
        return text

    return check_choice


def _name(value: Any) -> str:
    text = _text(value)
    if not 0 < len(text) <= 128:
        raise _Wrong("must have 1 to 128 characters")
    for char in text:
        if not ((char.isascii() and char.isalnum()) or char in "_-.:+~"):
            raise _Wrong("may hold letters, digits and _ - . : + ~ only")
    return text


def _uuid(value: Any) -> str:
    text = _text(value).lower()
    digits = text.replace("-", "")
    if len(digits) != 32 or set(digits) - set("0123456789abcdef"):
        raise _Wrong("must be a UUID such as 5a2c9a2e-0c1b-4b0e-9b0c-3f8f6f1d2a10")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _cpu_words(text: str) -> str:
    for word in text.split(","):
        low, dash, high = word.strip().lstrip("^").partition("-")
        if not low.isascii() or not low.isdigit() or (dash and not (high.isascii() and high.isdigit())):
            raise _Wrong(f"'{word[:40]}' is no CPU and no range of CPUs")
        if len(low) > 4 or len(high) > 4 or (dash and int(low) > int(high)):
            raise _Wrong(f"'{word[:40]}' is no range of CPUs")
    return text


def _cpus(value: Any) -> str | list[str]:
    if isinstance(value, (list, tuple)):
        return [_cpu_words(_text(item)) for item in value]
    text = _text(value)
    return _cpu_words(text) if text else ""


def _later(what: str, *harmless: Any) -> Callable[[Any], Any]:
    """For a key whose feature does not exist yet: only values that ask for nothing are accepted."""

    def check_later(value: Any) -> Any:
        if value and value not in harmless and str(value) not in map(str, harmless):
            raise _Wrong(f"{what} not built yet")
        return value

    return check_later


def _entries(kind: str) -> Callable[[Any], Any]:
    """For a list of devices; `kind` is the function of toolstack.xm.devices that reads an entry."""

    def check_entries(value: Any) -> list[str]:
        if isinstance(value, str):
            value = [value] if value else []
        if not isinstance(value, (list, tuple)):
            raise _Wrong(f"must be a list of strings, not {_kind(value)}")
        entries = [_text(item) for item in value]
        for entry in entries:
            _device(kind, entry, "/")
        return entries

    return check_entries


def _device(kind: str, entry: str, folder: str | None) -> list[Sxp]:
    """The expression of a device. Raises: _Wrong."""
    from toolstack.devices import DeviceError  # only who has devices pays for these imports
    from toolstack.xm import devices

    try:
        return devices.disk(entry, folder) if kind == "disk" else devices.vif(entry)
    except DeviceError as error:
        raise _Wrong(str(error)) from None


def _cpuid(value: Any) -> list[str]:
    """Strings of either syntax of toolstack.xm.cpuid, as rules of xend's."""
    from toolstack.xm import cpuid  # only who restricts CPUID pays for this import

    entries = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)):
        raise _Wrong(f"must be a string or a list of strings, not {_kind(value)}")
    try:
        return cpuid.rules([_text(item) for item in entries])
    except ValueError as error:
        raise _Wrong(str(error)) from None


KEYS: dict[str, Callable[[Any], Any]] = {
    "name": _name,
    "uuid": _uuid,
    "description": _text,
    "builder": _choice("linux", "generic", later=("hvm",)),
    "type": _choice("pv", later=("hvm", "pvh")),
    "kernel": _text,
    "ramdisk": _text,
    "loader": _text,
    "root": _text,
    "extra": _text,
    "cmdline": _text,
    "ip": _text,
    "gateway": _text,
    "netmask": _text,
    "hostname": _text,
    "interface": _text,
    "dhcp": _text,
    "nfs_server": _text,
    "nfs_root": _text,
    "memory": _number(1, 1 << 24),
    "maxmem": _number(1, 1 << 24),
    "shadow_memory": _number(0, 1 << 24),
    "vcpus": _number(1, 128),
    "maxvcpus": _number(1, 128),
    "max_event_channels": _number(1, (1 << 17) - 1),
    "vcpu_avail": _number(1, (1 << 128) - 1),
    "cpu": _number(-1, 4095),
    "cpus": _cpus,
    "cpu_weight": _number(1, 65535),
    "cpu_cap": _number(0, 12800),
    "pool": _choice("", "Pool-0"),
    "restart": _choice(*_RESTARTS),
    "on_poweroff": _choice(*ACTIONS),
    "on_reboot": _choice(*ACTIONS),
    "on_crash": _choice(*CRASH_ACTIONS),
    "on_xend_start": _choice("ignore", "start"),
    "on_xend_stop": _choice("ignore", "shutdown", later=("suspend",)),
    "features": _text,
    "bootloader": _later("boot loaders are"),
    "bootargs": _text,
    "bootentry": _text,
    "blkif": _later("block backends in other domains are", "no"),
    "netif": _later("network backends in other domains are", "no"),
    "disk": _entries("disk"),
    "vif": _entries("vif"),
    "vif2": _later("virtual network interfaces of version 2 are"),
    "vfb": _later("virtual framebuffers are"),
    "pci": _later("PCI pass-through is"),
    "vscsi": _later("virtual SCSI is"),
    "vusb": _later("virtual USB is"),
    "ioports": _later("I/O port pass-through is"),
    "irq": _later("interrupt pass-through is"),
    "nics": _number(0, 16),
    "tsc_mode": _later("TSC modes are"),
    "superpages": _later("superpages are"),
    "machine_address_size": _later("a limit on machine addresses is"),
    "suppress_spurious_page_faults": _later("suppressing spurious page faults is"),
    "access_control": _later("security labels are"),
    "cpuid": _cpuid,
    "cpuid_check": _cpuid,
    "target": _later("stub domains are"),
    "nomigrate": _number(0, 1),
    "s3_integrity": _number(0, 1),
    "oos": _number(0, 1),
    "localtime": _number(0, 1),
    "rtc_timeoffset": _number(-(1 << 31), (1 << 31) - 1),
}
"""Every key of a PV domain and the check of its value; a check returns the value or raises _Wrong."""

LISTS = frozenset("disk vif vif2 vfb pci vscsi vusb ioports irq access_control cpuid cpuid_check".split())

HVM_KEYS = frozenset(
    "device_model acpi apic pae hap hpet viridian nestedhvm timer_mode vpt_align xen_platform_pci boot fda"
    " fdb serial parallel monitor monitor_path usb usbdevice soundhw keymap isa stdvga videoram nographic"
    " gfx_passthru guest_os_type vnc vncdisplay vnclisten vncunused vncpasswd vncconsole vncviewer sdl opengl"
    " display xauthority vhpt memory_sharing pci_msitranslate pci_power_mgmt xen_extended_power_mgmt".split()
)


def check(settings: Settings) -> list[str]:
    """Checks each known key and puts its value into its final type.

    Returns: warnings, one line each: keys nobody knows, keys without meaning for a PV domain.
    Raises: ConfigError.
    """
    warnings = []
    for key, setting in settings.items():
        if key in KEYS:
            try:
                setting.value = KEYS[key](setting.value)
            except _Wrong as error:
                raise settings.error(key, str(error)) from None
        elif key in HVM_KEYS:
            warnings.append(str(settings.error(key, "is for HVM domains only; ignored")))
        elif key not in settings.used:
            warnings.append(str(settings.error(key, "unknown key, ignored" + _suggestion(key))))
    _check_together(settings)
    return warnings


def _check_together(settings: Settings) -> None:
    if settings.value("maxmem", 1 << 24) < settings.value("memory", 128):
        raise settings.error("maxmem", f"must not be less than memory ({settings.value('memory', 128)} MiB)")
    if settings.value("maxvcpus", 128) < settings.value("vcpus", 1):
        raise settings.error("maxvcpus", f"must not be less than vcpus ({settings.value('vcpus')})")
    if settings.value("nfs_root") and not settings.value("nfs_server"):
        raise settings.error("nfs_root", "needs nfs_server")


def _suggestion(key: str) -> str:
    from difflib import get_close_matches  # only a mistake pays for this import

    found = get_close_matches(key.lower(), [*KEYS, *HVM_KEYS], n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


# ---- step 3: settings to SXP


def make_config(settings: Settings, *, check_files: bool = True) -> list[Sxp]:
    """The `(vm ...)` of checked settings.

    `check_files` False leaves the paths of kernel and ramdisk alone, for a server on another machine.
    Raises: ConfigError.
    """
    value = settings.value
    config: list[Sxp] = ["vm", ["name", value("name")], ["memory", value("memory", 128)]]
    for key in ("maxmem", "shadow_memory"):
        if value(key):
            config.append([key, value(key)])
    config += [[key, action] for key, action in _actions(settings).items()]
    for key in ("features", "max_event_channels", "on_xend_start", "on_xend_stop", "description"):
        if value(key):
            config.append([key, value(key)])
    config += _vcpus(settings)
    for key in ("uuid", "cpu", "cpus", "cpu_cap", "cpu_weight"):
        if value(key) is not None:
            config.append([key, value(key)])
    for key in ("cpuid", "cpuid_check"):
        if value(key):
            config.append([key, value(key)])
    if value("localtime"):
        config.append(["localtime", 1])
    if value("pool"):
        config.append(["pool_name", value("pool")])
    config.append(["image", _image(settings, check_files)])
    config.append(["s3_integrity", value("s3_integrity", 1)])
    config += [["device", device] for device in _devices(settings, check_files)]
    return config


def _devices(settings: Settings, check_files: bool) -> list[list[Sxp]]:
    """Disks and network interfaces; a relative path is one of the folder we are in."""
    folder = os.getcwd() if check_files else None
    found = []
    for key in ("disk", "vif"):
        entries = settings.value(key) or []
        if key == "vif":
            entries = [*entries, *[""] * (settings.value("nics", 0) - len(entries))]
        try:
            found += [_device(key, entry, folder) for entry in entries]
        except _Wrong as error:
            raise settings.error(key, str(error)) from None
    return found


def _actions(settings: Settings) -> dict[str, str]:
    keys = ("on_poweroff", "on_reboot", "on_crash")
    old = _RESTARTS.get(settings.value("restart", ""), (None, None, None))
    found = {key: settings.value(key) or default for key, default in zip(keys, old, strict=True)}
    return {key: action for key, action in found.items() if action}


def _vcpus(settings: Settings) -> list[Sxp]:
    vcpus, most = settings.value("vcpus", 1), settings.value("maxvcpus")
    if most is None:
        available = settings.value("vcpu_avail")
        return [["vcpus", vcpus]] if available is None else [["vcpus", vcpus], ["vcpu_avail", available]]
    if "vcpus" not in settings:
        return [["vcpus", most]]
    return [["vcpu_avail", (1 << vcpus) - 1], ["vcpus", most]]


def _image(settings: Settings, check_files: bool) -> list[Sxp]:
    value = settings.value
    image: list[Sxp] = [value("builder", "linux")]
    if not value("kernel"):
        raise settings.error("kernel", "a PV domain needs a kernel")
    for key in ("kernel", "ramdisk", "loader"):
        if key == "loader" and value(key) == "generic":
            continue  # an old word of xl's for what every PV kernel is
        if key == "kernel" and value(key).startswith("python:"):
            image.append([key, _python(settings, check_files)])
        elif value(key):
            image.append([key, _file(settings, key) if check_files else value(key)])
    if value("ip") or value("dhcp", "off") != "off":
        image.append(["ip", _kernel_ip(settings)])
    if value("root"):
        image.append(["root", value("root").removeprefix("root=")])
    extra = value("extra") or value("cmdline", "")
    if value("nfs_root"):
        extra = f"nfsroot={value('nfs_server')}:{value('nfs_root')} {extra}"
    if extra:
        image.append(["args", extra])
    return image


def _file(settings: Settings, key: str) -> str:
    path: str = os.path.abspath(settings.value(key))
    if not os.path.isfile(path):
        reason = "is a directory" if os.path.isdir(path) else "does not exist"
        raise settings.error(key, f"the file '{settings.value(key)}' {reason}")
    return path


def _python(settings: Settings, check_files: bool) -> str:
    """`python:module[:attribute]` as it is; a file of Python's gets its whole path."""
    spec = settings.value("kernel").removeprefix("python:")
    name, colon, attribute = spec.partition(":")
    if not name:
        raise settings.error("kernel", "'python:' names no module; python:package.module does")
    if not name.endswith(".py") or not check_files:
        return f"python:{spec}"
    path = os.path.abspath(name)
    if not os.path.isfile(path):
        raise settings.error("kernel", f"the file '{name}' does not exist")
    return f"python:{path}{colon}{attribute}"


def _kernel_ip(settings: Settings) -> str:
    value = settings.value
    fields = [value("ip", "").removeprefix("ip="), value("nfs_server") or "127.0.255.255"]
    fields += [value(key, "") for key in ("gateway", "netmask", "hostname")]
    return ":".join(map(str, [*fields, value("interface", "eth0"), value("dhcp", "off")]))


def load(
    text: str, file: str, variables: dict[str, str], *, check_files: bool = True
) -> tuple[list[Sxp], list[str]]:
    """All three steps; a domain without a name gets the file's.

    Returns: the `(vm ...)`, and warnings to print.
    Raises: ConfigError.
    """
    settings = evaluate(text, file, variables)
    override(settings, variables)
    if not settings.value("name"):
        settings["name"] = Setting(os.path.basename(file), file, 0)
    warnings = check(settings)
    return make_config(settings, check_files=check_files), warnings
