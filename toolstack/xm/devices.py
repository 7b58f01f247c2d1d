"""The `disk` and `vif` entries of configuration files, and the words of block-attach and network-attach,
as the expressions that xend takes. Pure.
"""

from __future__ import annotations

from toolstack import devices
from toolstack.devices import DeviceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from toolstack.sxp import Sxp

_XL_KEYS = frozenset("format vdev access devtype backend backendtype script target".split())
_XL_FLAGS = frozenset("cdrom discard no-discard direct-io-safe readwrite".split())
_XL_FORMATS = {"": "raw", "raw": "raw", "aio": "raw", "empty": "empty"}


def disk(text: str, folder: str | None = None) -> list[Sxp]:
    """An entry of `disk`: xm's `UNAME,VDEV[:TYPE],MODE[,BACKEND[,PROTOCOL]]`, or one of xl's two forms.

    `folder` makes relative paths absolute; None refuses them.
    Raises: DeviceError.
    """
    fields = [field.strip() for field in text.split(",")]
    try:
        if _is_xl(fields):
            return _xl_disk(text, folder)
        if not 3 <= len(fields) <= 5:
            raise DeviceError("it must be UNAME,VDEV,MODE, such as file:/path/disk.img,xvda,w")
        return block(*fields, folder=folder)
    except DeviceError as error:
        raise DeviceError(f"Invalid disk specifier '{text[:200]}': {error}") from None


def block(
    uname: str, vdev: str, mode: str, backend: str = "", protocol: str = "", *, folder: str | None = None
) -> list[Sxp]:
    """A disk from its parts. Raises: DeviceError."""
    name, kind = devices.parse_vdev(vdev)
    uname = devices.with_folder(uname, folder) if folder else uname
    if not devices.parse_uname(uname)[0] and kind != "cdrom":
        raise DeviceError("only a cdrom may be without a medium")
    if not devices.is_dom0(backend):
        raise DeviceError(f"backends in other domains ({backend}) are not built yet")
    head = uname.partition(":")[0] if uname.startswith(("tap:", "tap2:")) else "vbd"
    out: list[Sxp] = [
        head,
        ["uname", uname],
        ["dev", f"{name}:{kind}" if vdev.strip().endswith(f":{kind}") else name],
    ]
    out.append(["mode", devices.parse_mode(mode)])
    if backend:
        out.append(["backend", backend])
    if protocol:
        out.append(["protocol", protocol])
    return out


def _is_xl(fields: list[str]) -> bool:
    """xl's forms have a key, or begin with a bare path (xm's begin with a scheme, or with nothing)."""
    named = any(field.partition("=")[0].strip() in _XL_KEYS and "=" in field for field in fields)
    return named or (fields[0].startswith("/") and ":" not in fields[0])


def _xl_disk(text: str, folder: str | None) -> list[Sxp]:
    found: dict[str, str] = {}
    flags: set[str] = set()
    left = list("target format vdev access".split())
    head, marker, target = text.partition("target=")  # the target takes the rest: it may hold commas
    for field in (head.rstrip().rstrip(",") if marker else text).split(","):
        key, equals, value = (part.strip() for part in field.partition("="))
        if equals and key in _XL_KEYS:
            found[key] = value
        elif key in _XL_FLAGS and not equals:
            flags.add(key)
        elif left and not equals:
            found.setdefault(left.pop(0), key)
        elif field.strip():
            raise DeviceError(f"'{field.strip()[:40]}' is not understood")
    if marker:
        found["target"] = target.strip()
    return _from_xl(found, flags, folder)


def _from_xl(found: dict[str, str], flags: set[str], folder: str | None) -> list[Sxp]:
    if found.get("script"):
        raise DeviceError("block scripts are not built yet")
    kind = "cdrom" if "cdrom" in flags or found.get("devtype") == "cdrom" else "disk"
    if found.get("devtype", kind) not in ("disk", "cdrom"):
        raise DeviceError(f"'{found['devtype'][:40]}' is no type of a virtual disk; disk and cdrom are")
    name = found.get("vdev", "").partition(":")
    vdev = f"{name[0]}:{name[2] or kind}"
    access = found.get("access") or ("r" if vdev.endswith(":cdrom") else "w")
    device = block(_xl_uname(found, folder), vdev, access, found.get("backend", ""), folder=folder)
    if "direct-io-safe" in flags:
        device.append(["direct-io-safe", 1])
    if "no-discard" in flags:
        device.append(["discard-enable", 0])
    return device


def _xl_uname(found: dict[str, str], folder: str | None) -> str:
    target, name = found.get("target", ""), found.get("format", "")
    name = _XL_FORMATS.get(name, name)
    if not target or name == "empty":
        return ""
    scheme = target.partition(":")[0].partition("+")[0]
    if scheme in devices.REMOTE:
        return target if name == "raw" else f"tap:{name}:{target}"
    if name == "raw":
        return f"phy:{target}" if target.startswith("/dev/") else f"file:{target}"
    return f"tap:{name}:{target}"


def vif(text: str) -> list[Sxp]:
    """An entry of `vif`: `key=value,...`; nothing stands for all defaults. Raises: DeviceError."""
    try:
        return interface(devices.pairs(text))
    except DeviceError as error:
        raise DeviceError(f"Invalid vif '{text[:200]}': {error}") from None


def interface(pairs: Iterable[tuple[str, str]]) -> list[Sxp]:
    """A network interface from (key, value) pairs. Raises: DeviceError."""
    out: list[Sxp] = ["vif"]
    seen: set[str] = set()
    for key, value in pairs:
        if key not in devices.VIF_KEYS:
            raise DeviceError(f"Invalid vif option: {key}")
        if key in seen:
            raise DeviceError(f"{key} is given twice")
        seen.add(key)
        _check_vif(key, value)
        out.append([key, value])
    return out


def _check_vif(key: str, value: str) -> None:
    checks = {
        "mac": devices.parse_mac,
        "rate": devices.parse_rate,
        "bridge": devices.parse_bridge,
    }
    if key in checks and value:
        checks[key](value)
    elif key == "type" and value == "ioemu":
        raise DeviceError("emulated network cards are not built yet")
    elif key in ("accel", "policy", "label") and value:
        raise DeviceError(f"'{key}' is not built yet")
    elif key == "backend" and not devices.is_dom0(value):
        raise DeviceError(f"backends in other domains ({value}) are not built yet")
