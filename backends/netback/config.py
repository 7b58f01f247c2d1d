"""What users write about networks, read and checked: a vif's `bridge` and `rate`, uplinks, groups, forwards.

    bridge=xenbr0                  VLAN of untagged frames
    bridge=xenbr0.7                access port of VLAN 7
    bridge=xenbr0:7:8              trunk of VLANs 7 and 8, tagged
    bridge=xenbr0.7:8:9            the same with untagged frames in VLAN 7
    bridge=xenbr0.dmz              as the network's group `dmz` says

Everything here is pure; a ConfigError's text is shown to the user as it is.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any

MAX_VLAN = 4094
ALL_VLANS = frozenset(range(MAX_VLAN + 1))
DEFAULT_NETWORK = "xenbr0"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")
_RATE = re.compile(r"(\d+)([GMK]?)(b|B)/s(?:@(\d+)(ms|us|s))?", re.IGNORECASE)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


class ConfigError(ValueError):
    """Something was asked for that makes no sense; the text says what and what would."""


class VlanMode(Enum):
    """How a port treats tags."""

    ACCESS = "access"
    TRUNK = "trunk"
    NATIVE = "native"


Rate = tuple[int, int]
"""Bytes, and the microseconds in which they may be sent."""


@dataclass(frozen=True)
class Membership:
    """What a port is to its network."""

    mode: VlanMode = VlanMode.ACCESS
    tag: int = 0
    trunks: frozenset[int] = frozenset()
    isolated: bool = False
    anti_spoof: bool = False
    rate: Rate | None = None

    def describe(self) -> str:
        """In a few words, for lists."""
        words = []
        if self.mode is not VlanMode.TRUNK and self.tag:
            words.append(f"vlan {self.tag}")
        if self.mode is not VlanMode.ACCESS:
            words.append("trunk " + ("all" if self.trunks >= ALL_VLANS else _vlan_list(self.trunks)))
        words += [name for name in ("isolated", "anti_spoof") if getattr(self, name)]
        if self.rate:
            words.append(f"rate {self.rate[0]} bytes in {self.rate[1]} us")
        return ", ".join(words).replace("_", "-")


TRUNK_ALL = Membership(VlanMode.TRUNK, trunks=ALL_VLANS)


def _vlan_list(vlans: frozenset[int]) -> str:
    return "+".join(map(str, sorted(vlans)))


def membership(tag: int | None, trunks: frozenset[int], **more: Any) -> Membership:
    """An access port, a trunk, or one with a native VLAN, as the two say."""
    if not trunks:
        return Membership(VlanMode.ACCESS, tag or 0, **more)
    if tag is None:
        return Membership(VlanMode.TRUNK, 0, trunks, **more)
    return Membership(VlanMode.NATIVE, tag, trunks, **more)


def parse_vlan(text: str) -> int:
    """Raises: ConfigError."""
    if not text.isascii() or not text.isdigit() or len(text) > 4 or int(text) > MAX_VLAN:
        raise ConfigError(f"VLAN {text!r}: want a number from 0 to {MAX_VLAN}")
    return int(text)


@dataclass(frozen=True)
class BridgeSpec:
    """A vif's `bridge`: the network, and either a group of it or VLANs."""

    network: str
    group: str | None = None
    membership: Membership = Membership()


def parse_bridge(text: str) -> BridgeSpec:
    """`NAME[.TAG|.GROUP][:TRUNK...]`; empty: the default network. Raises: ConfigError."""
    head, *trunk_texts = (text or DEFAULT_NETWORK).split(":")
    name, dot, suffix = head.partition(".")
    check_name(name, "bridge")
    trunks = frozenset(map(parse_vlan, trunk_texts))
    if dot and not suffix.isdigit():
        check_name(suffix, "port group")
        if trunks:
            raise ConfigError(f"bridge {text!r}: a port group has its own trunks")
        return BridgeSpec(name, group=suffix)
    return BridgeSpec(name, membership=membership(parse_vlan(suffix) if dot else None, trunks))


def check_name(text: str, what: str) -> str:
    """Raises: ConfigError."""
    if not _NAME.fullmatch(text):
        raise ConfigError(f"{what} {text!r}: want a letter, then up to 30 letters, digits, '-' or '_'")
    return text


def parse_mac(text: str) -> bytes:
    """Raises: ConfigError."""
    if not _MAC.fullmatch(text):
        raise ConfigError(f"mac {text!r}: want six bytes such as 00:16:3e:12:34:56")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise ConfigError(f"mac {text!r}: not an address of one interface")
    return mac


def parse_vif_rate(text: str) -> Rate | None:
    """`BYTES,USECS` as Xen writes it into the backend's folder; None: no limit. Raises: ConfigError."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
        raise ConfigError(f"rate {text!r}: want BYTES,MICROSECONDS")
    amount, interval = map(int, parts)
    if interval >= 1 << 32:
        raise ConfigError(f"rate {text!r}: an interval of at most 4294 seconds")
    return (amount, interval) if amount and interval else None


def parse_rate(text: str) -> Rate:
    """`10Mb/s`, `2MB/s@20ms`: as in a vif's `rate`. Raises: ConfigError."""
    found = _RATE.fullmatch(text)
    if not found or not int(found[1]):
        raise ConfigError(f"rate {text!r}: want for example 10Mb/s, 2MB/s or 100Kb/s@20ms")
    unit = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}[found[2].upper()]
    usecs = int(found[4] or 50) * {"us": 1, "ms": 1000, "s": 1000000}[(found[5] or "ms").lower()]
    per_second = int(found[1]) * unit // (1 if found[3] == "B" else 8)
    amount = per_second * usecs // 1000000
    if not amount or not 0 < usecs < 1 << 32:
        raise ConfigError(f"rate {text!r}: less than a byte in its interval")
    return amount, usecs


# --- groups


def parse_group(text: str) -> tuple[str, Membership]:
    """`NAME[,tag=N][,trunks=A+B][,isolated][,anti-spoof][,rate=R]`. Raises: ConfigError."""
    name, *options = text.split(",")
    check_name(name, "port group")
    values = _options(options, {"tag", "trunks", "isolated", "anti-spoof", "rate"}, f"group {name}")
    return name, _membership_of(values)


def _membership_of(values: Mapping[str, str]) -> Membership:
    trunks = values.get("trunks", "")
    return membership(
        parse_vlan(values["tag"]) if "tag" in values else None,
        ALL_VLANS if trunks == "all" else frozenset(map(parse_vlan, trunks.split("+") if trunks else [])),
        isolated="isolated" in values,
        anti_spoof="anti-spoof" in values,
        rate=parse_rate(values["rate"]) if "rate" in values else None,
    )


def _options(words: list[str], known: set[str], what: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in known:
            raise ConfigError(f"{what}: unknown option {key!r}; there are {', '.join(sorted(known))}")
        values[key] = value
    return values


# --- uplinks


@dataclass(frozen=True)
class Uplink:
    """How a network goes on elsewhere. `text` is what the user wrote, and what is kept."""

    text: str
    kind: str
    address: str = ""
    membership: Membership = TRUNK_ALL
    options: Mapping[str, str] = field(default_factory=dict)


_PORT_OPTIONS = {"tag", "trunks", "rate"}
_UPLINKS: dict[str, tuple[str, set[str]]] = {
    # kind: (what its address looks like, its own options)
    "user": ("", {"net", "host", "dns", "dhcp-start", "domain", "no-host", "mtu"}),
    "listen": ("ADDRESS:PORT", set()),
    "connect": ("ADDRESS:PORT", set()),
    "udp": ("LOCAL:PORT", {"to"}),
    "mcast": ("GROUP:PORT", {"local"}),
    "unix-listen": ("/PATH", set()),
    "unix-connect": ("/PATH", set()),
    "unix-dgram": ("/PATH", {"to"}),
    "vde": ("/PATH", set()),
    "tap": ("[NAME]", set()),
}
UPLINK_HELP = ", ".join(f"{kind}:{shape}" if shape else kind for kind, (shape, _) in _UPLINKS.items())


def parse_uplink(text: str) -> Uplink:
    """`KIND[:ADDRESS][,option=value...]`. Raises: ConfigError."""
    head, *words = text.split(",")
    kind, _, address = head.partition(":")
    if kind not in _UPLINKS:
        raise ConfigError(f"uplink {text!r}: there are {UPLINK_HELP}")
    shape, own = _UPLINKS[kind]
    options = _options(words, own | _PORT_OPTIONS, f"uplink {kind}")
    if bool(address) != bool(shape) and shape != "[NAME]":
        raise ConfigError(f"uplink {text!r}: want {kind}{':' + shape if shape else ''}")
    if "PORT" in shape:
        parse_endpoint(address)
    elif shape == "/PATH" and not address.startswith("/"):
        raise ConfigError(f"uplink {text!r}: want an absolute path")
    if kind in ("udp", "unix-dgram") and "to" not in options:
        raise ConfigError(f"uplink {text!r}: say who the peer is with ,to=...")
    if kind == "user":
        user_network(options)
    default = Membership() if kind == "user" else TRUNK_ALL
    if {"tag", "trunks"} & options.keys():
        chosen = _membership_of({key: options[key] for key in _PORT_OPTIONS & options.keys()})
    else:
        chosen = replace(default, rate=parse_rate(options["rate"]) if "rate" in options else None)
    return Uplink(text, kind, address, chosen, {key: options[key] for key in own & options.keys()})


def parse_endpoint(text: str) -> tuple[str, int]:
    """`ADDRESS:PORT`, IPv6 in brackets. Raises: ConfigError."""
    address, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{text!r}: want ADDRESS:PORT")
    return address.strip("[]"), int(port)


@dataclass(frozen=True)
class UserNetwork:
    """Addresses of a user-mode uplink; the same as QEMU's by default."""

    net: ipaddress.IPv4Network
    host: ipaddress.IPv4Address
    dns: ipaddress.IPv4Address
    dhcp_start: ipaddress.IPv4Address
    domain: str = ""
    no_host: bool = False
    mtu: int = 1500


def user_network(options: Mapping[str, str]) -> UserNetwork:
    """Raises: ConfigError."""
    try:
        net = ipaddress.IPv4Network(options.get("net", "10.0.2.0/24"))
        if net.prefixlen > 28:
            raise ConfigError(f"net {net}: too few addresses for guests; /28 is the least")
        host, dns, start = (
            ipaddress.IPv4Address(options[key]) if key in options else net[offset]
            for key, offset in (("host", 2), ("dns", 3), ("dhcp-start", 15 if net.prefixlen <= 26 else 4))
        )
        mtu = int(options.get("mtu", "1500"))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"user network: {error}") from error
    outside = [str(address) for address in (host, dns, start) if address not in net]
    if outside:
        raise ConfigError(f"user network: {', '.join(outside)} not in {net}")
    if not 576 <= mtu <= 65521:
        raise ConfigError(f"mtu {mtu}: want 576 to 65521")
    return UserNetwork(net, host, dns, start, options.get("domain", ""), "no-host" in options, mtu)


@dataclass(frozen=True)
class Forward:
    """A port of the host that leads to a guest's. An empty guest address is the first one DHCP gives."""

    protocol: str
    host: str
    host_port: int
    guest: str
    guest_port: int

    def __str__(self) -> str:
        return f"{self.protocol}:{self.host}:{self.host_port}-{self.guest}:{self.guest_port}"


def parse_forward(text: str) -> Forward:
    """`[tcp|udp:][HOST:]PORT-[GUEST:]PORT`. Raises: ConfigError."""
    protocol, rest = ("tcp", text)
    for name in ("tcp", "udp"):
        if text.startswith(f"{name}:"):
            protocol, rest = name, text[4:]
    left, dash, right = rest.partition("-")
    if not dash:
        raise ConfigError(f"forward {text!r}: want [tcp|udp:][ADDRESS:]PORT-[GUEST:]PORT")
    host, host_port = parse_endpoint(left if ":" in left else f"127.0.0.1:{left}")
    guest, guest_port = parse_endpoint(right if ":" in right else f":{right}")
    try:
        ipaddress.IPv4Address(host)
        if guest:
            ipaddress.IPv4Address(guest)
    except ValueError as error:
        raise ConfigError(f"forward {text!r}: {error}") from error
    if not host_port or not guest_port:
        raise ConfigError(f"forward {text!r}: port 0 is none")
    return Forward(protocol, host, host_port, guest, guest_port)


# --- whole networks


@dataclass(frozen=True)
class NetworkConfig:
    """A network as it is kept in networks.json."""

    name: str
    uplinks: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    forwards: tuple[str, ...] = ()
    ageing_s: int = 300
    storm_pps: int = 5000
    mtu: int = 0

    def check(self) -> NetworkConfig:
        """Itself. Raises: ConfigError."""
        check_name(self.name, "network")
        uplinks = [parse_uplink(text) for text in self.uplinks]
        if len(set(self.uplinks)) != len(uplinks):
            raise ConfigError("the same uplink twice")
        if sum(uplink.kind == "user" for uplink in uplinks) > 1:
            raise ConfigError("one user-mode uplink is enough")
        names = [parse_group(text)[0] for text in self.groups]
        if len(set(names)) != len(names):
            raise ConfigError("a port group twice")
        for text in self.forwards:
            parse_forward(text)
        if not 1 <= self.ageing_s <= 1000000 or not 0 <= self.storm_pps < 1 << 32:
            raise ConfigError("ageing is from 1 to 1000000 s, a storm limit from 0")
        if self.mtu and not 68 <= self.mtu <= 65521:
            raise ConfigError(f"mtu {self.mtu}: want 68 to 65521")
        return self

    def group(self, name: str) -> Membership:
        """Raises: ConfigError."""
        groups = dict(parse_group(text) for text in self.groups)
        if name not in groups:
            known = ", ".join(groups) or "none"
            raise ConfigError(f"network {self.name} has no port group {name!r}; there are: {known}")
        return groups[name]

    def resolve(self, spec: BridgeSpec) -> Membership:
        """What a vif with this `bridge` is to the network. Raises: ConfigError."""
        return self.group(spec.group) if spec.group else spec.membership

    def to_json(self) -> dict[str, Any]:
        """Plain values; the inverse of network_from()."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def network_from(values: Any) -> NetworkConfig:
    """A network out of JSON or msgpack. Raises: ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError("a network is a map")
    kinds: dict[str, type] = {item.name: int for item in fields(NetworkConfig)}
    kinds |= {"name": str, "uplinks": list, "groups": list, "forwards": list}
    for key, value in values.items():
        if key not in kinds or type(value) is not kinds[key]:
            raise ConfigError(f"network: {key!r} is unknown or of the wrong kind")
        if isinstance(value, list) and not all(type(item) is str and len(item) < 1000 for item in value):
            raise ConfigError(f"network: {key!r} is a list of texts")
    if "name" not in values:
        raise ConfigError("a network has a name")
    plain: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return NetworkConfig(**plain).check()


DEFAULT = NetworkConfig(DEFAULT_NETWORK, uplinks=("user",))
