"""A virtual network interface: its expression, and its entries in xenstore. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

from toolstack.devices import DEFAULT_BRIDGE, DeviceError, parse_bridge, parse_mac, parse_rate
from toolstack.sxp import Sxp
from toolstack.xend.devices.fields import Fields
from toolstack.xend.errors import NotBuilt

HEADS = ("vif",)
MAX_DEVID = 255
MIN_MTU, MAX_MTU = 68, 65521


@dataclass(frozen=True)
class Vif:
    """`mac` is empty, and `devid` None, until they have been chosen."""

    kind: ClassVar[str] = "vif"

    uuid: UUID
    devid: int | None = None
    mac: str = ""
    bridge: str = DEFAULT_BRIDGE
    rate: str = ""
    ip: str = ""
    vifname: str = ""
    script: str = ""
    model: str = ""
    mtu: int = 1500

    @classmethod
    def from_sxp(cls, expression: Sxp) -> Vif:
        """Raises: XendError."""
        fields = Fields("network interface", expression)
        fields.check_backend()
        if fields.text("type") not in ("", "netfront", "vif"):
            raise NotBuilt("an emulated network card")
        for key in ("accel", "policy", "label"):
            if fields.text(key):
                raise NotBuilt(f"the setting '{key}' of a network interface")
        return cls(
            uuid=fields.uuid(),
            devid=fields.number("devid", 0, 0, MAX_DEVID) if fields.text("devid") else None,
            mac=fields.parsed("mac", lambda text: parse_mac(text) if text else ""),
            bridge=fields.parsed("bridge", lambda text: parse_bridge(text or DEFAULT_BRIDGE)),
            rate=fields.parsed("rate", _checked_rate),
            ip=fields.text("ip"),
            vifname=fields.parsed("vifname", _checked_name),
            script=fields.text("script"),
            model=fields.text("model"),
            mtu=fields.number("mtu", 1500, MIN_MTU, MAX_MTU),
        )

    def to_sxp(self) -> list[Sxp]:
        """What `from_sxp` turns into an equal interface."""
        out: list[Sxp] = ["vif", ["uuid", str(self.uuid)]]
        if self.devid is not None:
            out.append(["devid", self.devid])
        out += [["bridge", self.bridge], ["mac", self.mac]]
        texts = {"rate": self.rate, "ip": self.ip, "vifname": self.vifname, "script": self.script}
        out += [[key, value] for key, value in (texts | {"model": self.model}).items() if value]
        if self.mtu != 1500:
            out.append(["mtu", self.mtu])
        return [*out, ["backend", 0]]

    @property
    def label(self) -> str:
        """What a user calls it."""
        return str(self.devid)

    def backend(self) -> dict[str, str]:
        """What its backend finds, beyond what all devices have. `vifname` and `rate` are added when given."""
        found = {
            "handle": str(self.devid),
            "mac": self.mac,
            "bridge": self.bridge,
            "type": "vif",
            "mtu": str(self.mtu),
            "uuid": str(self.uuid),
        }
        if self.ip:
            found["ip"] = self.ip
        if self.vifname:
            found["vifname"] = self.vifname
        if self.rate:
            found["rate"] = "{},{}".format(*parse_rate(self.rate))
        return found

    def frontend(self) -> dict[str, str]:
        """What the guest finds, beyond what all devices have."""
        return {"handle": str(self.devid), "mac": self.mac, "mtu": str(self.mtu)}


def _checked_rate(text: str) -> str:
    if text:
        parse_rate(text)
    return text.strip()


def _checked_name(text: str) -> str:
    """What a host interface could be called; the switch shows it in lists and capture files."""
    allowed = all((char.isascii() and char.isalnum()) or char in "._-" for char in text)
    if len(text) > 15 or not allowed:
        raise DeviceError(
            f"'{text[:40]}' is no name of an interface: up to 15 letters, digits, '.', '_', '-'"
        )
    return text
