"""The commands for virtual network interfaces: network-attach, network-detach, network-list."""

from __future__ import annotations

from toolstack import sxp
from toolstack.devices import DeviceError
from toolstack.xm import devices, render
from toolstack.xm.block import detach_device, listed
from toolstack.xm.errors import UsageError
from toolstack.xm.options import check_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from toolstack.xm.session import Session


def attach(session: Session, args: list[str]) -> None:
    check_count(args, "network-attach", 1, 14)
    pairs = [word.partition("=") for word in args[1:]]
    for (key, equals, value), word in zip(pairs, args[1:]):
        if not (key and equals and value):
            raise UsageError(f"Invalid argument: {word}")
    try:
        vif = devices.interface((key, value) for key, _, value in pairs)
    except DeviceError as error:
        raise UsageError(str(error)) from None
    session.call(
        "xend.domain.device_create", args[0], vif, waiting=f"Attaching a network interface to {args[0]}"
    )


def detach(session: Session, args: list[str]) -> None:
    detach_device(session, args, "network-detach", "vif")


def show(session: Session, args: list[str]) -> None:
    found, use_long = listed(session, args, "vif")
    session.print((sxp.pretty(device) for device in found) if use_long else render.network_list(found))
