"""What both ends agree on about disks and network interfaces: numbers, names, where an image is, rates. Pure.

xm reads configuration files with it and xend checks what any client sends. It is on the path of xm, so it
imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = frozenset("aio raw qcow qcow2 qed vdi vhd vhdx vmdk vpc".split())
"""Image formats of `tap:FORMAT:/path`. `aio` and `raw` are the same: a plain file."""
REMOTE = frozenset("nbd iscsi nfs rbd".split())
"""Protocols of images elsewhere: `nbd:host:port`, `nbd+unix:///export?socket=...`, `iscsi://...`, ..."""
MODES = {"r": "r", "ro": "r", "w": "w", "rw": "w", "w!": "w!", "!": "w!"}
"""The modes of a disk as they may be written, and as xenstore has them."""
VIF_KEYS = tuple("type mac bridge ip script backend vifname rate model accel policy label mtu".split())
DEFAULT_BRIDGE = "xenbr0"
UNLIMITED = (0xFFFFFFFF, 0)


class DeviceError(ValueError):
    """A device cannot be what the text says."""


# ---- numbers of virtual block devices

_XVD, _EXTENDED = 202, 1 << 28
_SD_MAJORS: tuple[int, ...] = (8, *range(65, 72), *range(128, 136))
_HD_MAJORS: tuple[int, ...] = (3, 22, 33, 34, 56, 57, 88, 89, 90, 91)
_MAX_EXTENDED = 1 << 20


def device_number(name: str) -> int:
    """The number of `xvda1`, `sdb`, `hdc`, `/dev/xvda`, `51712` or `0xca00`, in Xen's numbering.

    Raises: DeviceError.
    """
    text = name.removeprefix("/dev/")
    number = _literal(text)
    if number is not None:
        return number
    kind, disk, partition = _split(text)
    if kind == "xvd" and partition <= 255 and disk < _MAX_EXTENDED:
        if disk < 16 and partition < 16:
            return _XVD << 8 | disk << 4 | partition
        return _EXTENDED | disk << 8 | partition
    if kind == "sd" and disk < 16 * len(_SD_MAJORS) and partition < 16:
        return _SD_MAJORS[disk >> 4] << 8 | (disk & 15) << 4 | partition
    if kind == "hd" and disk < 2 * len(_HD_MAJORS) and partition < 64:
        return _HD_MAJORS[disk >> 1] << 8 | (disk & 1) << 6 | partition
    raise DeviceError(f"'{name[:40]}' is no name of a virtual disk; xvda, xvdb1, sda or hdc are")


def _literal(text: str) -> int | None:
    digits, base = (text[2:], 16) if text[:2].lower() == "0x" else (text, 10)
    if not digits or len(digits) > 10 or not digits.isascii() or not digits.isalnum():
        return None
    try:
        number = int(digits, base)
    except ValueError:
        return None
    return number if number < 1 << 29 else None


def _split(text: str) -> tuple[str, int, int]:
    """`xvdc2` as ("xvd", 2, 2). The kind is "" for what is no name."""
    letters = text.rstrip("0123456789")
    digits = text[len(letters) :]
    kind = next((kind for kind in ("xvd", "sd", "hd") if letters.startswith(kind)), "")
    disk = -1
    for char in letters[len(kind) :]:
        if not "a" <= char <= "z" or disk >= _MAX_EXTENDED:
            return "", 0, 0
        disk = (disk + 1) * 26 + ord(char) - ord("a")
    if disk < 0 or len(digits) > 3 or (digits and digits[0] == "0") or not digits.isascii():
        return "", 0, 0
    return kind, disk, int(digits or "0")


def parse_vdev(text: str) -> tuple[str, str]:
    """`hdc:cdrom` as ("hdc", "cdrom"). The old prefix `ioemu:` means nothing.

    Raises: DeviceError.
    """
    name, colon, kind = text.strip().removeprefix("ioemu:").partition(":")
    if not name:
        raise DeviceError("the name of the virtual disk is missing, such as xvda")
    if colon and kind not in ("disk", "cdrom"):
        raise DeviceError(f"'{kind[:40]}' is no type of a virtual disk; disk and cdrom are")
    device_number(name)
    return name.removeprefix("/dev/"), kind or "disk"


# ---- where an image is


def parse_uname(text: str) -> tuple[str, str]:
    """What blkback is told, its `type` and `params`: ("file", "/img"), ("tap", "qcow2:/img"),
    ("nbd", "nbd:host:10809"), ("phy", "/dev/vg0/root"); ("", "") for no medium.

    Raises: DeviceError.
    """
    text = _plain(text, "the image")
    if not text:
        return "", ""
    kind, colon, rest = text.partition(":")
    if not colon:
        raise DeviceError(f"'{text}' does not say what it is; write file:{text} or tap:FORMAT:{text}")
    if kind in ("phy", "file"):
        if not rest:
            raise DeviceError(f"there is no path in '{text}'")
        path = f"/dev/{rest}" if kind == "phy" and not rest.startswith("/") else rest
        return kind, _absolute(path, text)
    if kind in ("tap", "tap2"):
        return "tap", _tap(rest, text)
    if kind.partition("+")[0] in REMOTE:
        if not rest:
            raise DeviceError(f"there is no address in '{text}'")
        return kind.partition("+")[0], text
    raise DeviceError(f"'{kind}:' is not understood in '{text}'; phy: file: tap:FORMAT: nbd: and iscsi: are")


def _tap(rest: str, text: str) -> str:
    name, colon, path = rest.removeprefix("tapdisk:").partition(":")
    if not colon or name not in FORMATS:
        formats = ", ".join(sorted(FORMATS))
        raise DeviceError(f"'{name}' in '{text}' is no image format; {formats} are")
    if path.partition(":")[0].partition("+")[0] in REMOTE:
        return f"{name}:{path}"
    return f"{name}:{_absolute(path, text)}"


def _absolute(path: str, text: str) -> str:
    if not path.startswith("/"):
        raise DeviceError(f"the path in '{text}' must be absolute")
    return path


def with_folder(uname: str, folder: str) -> str:
    """The image with a relative path in it made absolute by `folder`; anything else as it is."""
    kind, colon, rest = uname.partition(":")
    if kind == "file" and rest and not rest.startswith("/"):
        return f"{kind}{colon}{folder}/{rest}"
    if kind in ("tap", "tap2") and colon:
        driver = "tapdisk:" if rest.startswith("tapdisk:") else ""
        name, second, path = rest.removeprefix("tapdisk:").partition(":")
        remote = path.partition(":")[0].partition("+")[0] in REMOTE
        if second and path and not path.startswith("/") and not remote:
            return f"{kind}:{driver}{name}:{folder}/{path}"
    return uname


def parse_mode(text: str) -> str:
    """Raises: DeviceError."""
    mode = MODES.get(text.strip())
    if mode is None:
        raise DeviceError(f"'{text[:40]}' is no mode of a disk; r (read only), w and w! (shared) are")
    return mode


def _plain(text: str, what: str) -> str:
    text = text.strip()
    if len(text) > 1024:
        raise DeviceError(f"{what} is too long")
    if any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
        raise DeviceError(f"{what} must not contain control characters")
    return text


# ---- network interfaces


def parse_mac(text: str) -> str:
    """`00:16:3e:00:00:01`, from that or with dashes, in small letters.

    Raises: DeviceError; also for a group's address, and for 0.
    """
    parts = text.strip().lower().replace("-", ":").split(":")
    if len(parts) != 6 or not all(len(part) == 2 and set(part) <= set("0123456789abcdef") for part in parts):
        raise DeviceError(f"'{text[:40]}' is no MAC address such as 00:16:3e:12:34:56")
    if int(parts[0], 16) & 1:
        raise DeviceError(f"{':'.join(parts)} is the address of a group, not of an interface")
    if not any(int(part, 16) for part in parts):
        raise DeviceError("the MAC address must not be 0")
    return ":".join(parts)


_DECIMAL = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}
_INTERVALS = {"us": 1, "ms": 1000, "s": 1000_000}
DEFAULT_INTERVAL_US = 50_000


def parse_rate(text: str) -> tuple[int, int]:
    """`10Mb/s@20ms` as (bytes in an interval, microseconds of it); b are bits, B bytes.

    Raises: DeviceError.
    """
    amount, at, interval = text.strip().partition("@")
    usecs = _interval(interval, text) if at else DEFAULT_INTERVAL_US
    number, unit = _number_and_unit(amount.removesuffix("/s"))
    if number is None or not amount.endswith("/s") or unit[-1:] not in ("b", "B"):
        raise _bad_rate(text)
    scale = _DECIMAL.get(unit[:-1].upper())
    if scale is None:
        raise _bad_rate(text)
    per_second = number * scale // (8 if unit[-1] == "b" else 1)
    count = per_second * usecs // 1000_000
    if not 0 < count < 1 << 32:
        raise DeviceError(f"the rate '{text}' is too {'large' if count else 'small'} for its interval")
    return count, usecs


def _interval(text: str, whole: str) -> int:
    number, unit = _number_and_unit(text)
    if not number or unit not in _INTERVALS or number * _INTERVALS[unit] >= 1 << 32:
        raise _bad_rate(whole)
    return number * _INTERVALS[unit]


def _number_and_unit(text: str) -> tuple[int | None, str]:
    unit = text.lstrip("0123456789")
    digits = text[: len(text) - len(unit)]
    return (int(digits) if digits and digits.isascii() and len(digits) < 15 else None), unit


def _bad_rate(text: str) -> DeviceError:
    return DeviceError(f"'{text[:40]}' is no rate such as 10Mb/s or 500KB/s@20ms")


def parse_bridge(text: str) -> str:
    """A network's name with its port: `NAME`, `NAME.TAG`, `NAME.GROUP`, `NAME:TRUNK:TRUNK`.

    Raises: DeviceError.
    """
    text = text.strip()
    allowed = all((char.isascii() and char.isalnum()) or char in "._-:" for char in text)
    if not text or not allowed or len(text) > 128 or not text[0].isalnum():
        raise DeviceError(f"'{text[:40]}' is no name of a network")
    return text


def is_dom0(text: str) -> bool:
    """Whether a device's backend is the domain that has all of them."""
    return text.strip() in ("", "0", "Domain-0")


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """The pairs of `key=value,key=value`, stripped. Raises: DeviceError."""
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not item.strip():
            continue
        if not equals:
            raise DeviceError(f"'{item.strip()[:40]}' is no key=value")
        yield key.strip(), value.strip()
