"""A virtual disk: its expression, and its entries in xenstore. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

from toolstack.devices import device_number, parse_mode, parse_uname, parse_vdev
from toolstack.sxp import Sxp
from toolstack.xend.devices.fields import Fields

HEADS = ("vbd", "tap", "tap2")
"""Heads of its expression. All are of class `vbd` here: one backend serves all images."""
PROTOCOLS = ("", "x86_64-abi")


@dataclass(frozen=True)
class Vbd:
    """`dev` is its name in the guest, `uname` says where the image is (empty: a drive without medium)."""

    kind: ClassVar[str] = "vbd"

    dev: str
    uname: str
    uuid: UUID
    mode: str = "w"
    device_type: str = "disk"
    bootable: bool = False
    protocol: str = ""
    direct_io_safe: bool = False
    discard: bool = True

    @classmethod
    def from_sxp(cls, expression: Sxp) -> Vbd:
        """Raises: XendError."""
        fields = Fields("disk", expression)
        fields.check_backend()
        dev, device_type = fields.parsed("dev", parse_vdev)
        if not fields.parsed("uname", parse_uname)[0] and device_type != "cdrom":
            raise fields.invalid(f"{dev} has no image; only a cdrom may be without a medium")
        protocol = fields.text("protocol")
        if protocol not in PROTOCOLS:
            raise fields.invalid(f"the protocol '{protocol}' is not spoken; {PROTOCOLS[1]} is")
        return cls(
            dev=dev,
            uname=fields.text("uname").strip(),
            uuid=fields.uuid(),
            mode=fields.parsed("mode", parse_mode, "r" if device_type == "cdrom" else "w"),
            device_type=device_type,
            bootable=fields.flag("bootable"),
            protocol=protocol,
            direct_io_safe=fields.flag("direct-io-safe"),
            discard=fields.flag("discard-enable", True),
        )

    def to_sxp(self) -> list[Sxp]:
        """What `from_sxp` turns into an equal disk."""
        out: list[Sxp] = ["vbd", ["uuid", str(self.uuid)], ["bootable", int(self.bootable)]]
        out += [["dev", f"{self.dev}:{self.device_type}"], ["uname", self.uname], ["mode", self.mode]]
        if self.protocol:
            out.append(["protocol", self.protocol])
        if self.direct_io_safe:
            out.append(["direct-io-safe", 1])
        if not self.discard:
            out.append(["discard-enable", 0])
        return [*out, ["backend", 0]]

    @property
    def devid(self) -> int:
        return device_number(self.dev)

    @property
    def label(self) -> str:
        """What a user calls it."""
        return self.dev

    def place(self) -> dict[str, str]:
        """The part of the backend's entries that a change of medium changes."""
        kind, params = parse_uname(self.uname)
        return {"type": kind, "params": params}

    def backend(self) -> dict[str, str]:
        """What its backend finds, beyond what all devices have."""
        found = {
            "dev": self.dev,
            "mode": self.mode,
            "device-type": self.device_type,
            "removable": str(int(self.device_type == "cdrom")),
            "bootable": str(int(self.bootable)),
            "uuid": str(self.uuid),
        }
        if self.direct_io_safe:
            found["direct-io-safe"] = "1"
        if not self.discard:
            found["discard-enable"] = "0"
        return found | self.place()

    def frontend(self) -> dict[str, str]:
        """What the guest finds, beyond what all devices have."""
        found = {"virtual-device": str(self.devid), "device-type": self.device_type}
        return found | ({"protocol": self.protocol} if self.protocol else {})
