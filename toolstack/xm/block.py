"""The commands for virtual disks: block-attach, block-detach, block-list, block-configure, block-resize."""

from __future__ import annotations

import os

from toolstack import sxp
from toolstack.devices import DeviceError
from toolstack.xm import devices, render
from toolstack.xm.errors import UsageError
from toolstack.xm.options import Options, check_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from toolstack.sxp import Sxp
    from toolstack.xm.session import Session

LIST = Options("l", {"long": "l"})
DETACH = Options("f", {"force": "f"})


def _disk(session: Session, args: list[str]) -> list[Sxp]:
    """The expression of `BACKDEV FRONTDEV MODE [BACKDOM]`. Raises: UsageError."""
    folder = os.getcwd() if session.server.local else None
    try:
        return devices.block(*args, folder=folder)
    except DeviceError as error:
        raise UsageError(str(error)) from None


def attach(session: Session, args: list[str]) -> None:
    check_count(args, "block-attach", 4, 5)
    session.call(
        "xend.domain.device_create", args[0], _disk(session, args[1:]), waiting=f"Attaching {args[2]}"
    )


def configure(session: Session, args: list[str]) -> None:
    check_count(args, "block-configure", 4, 5)
    session.call("xend.domain.device_configure", args[0], _disk(session, args[1:]))


def detach(session: Session, args: list[str]) -> None:
    detach_device(session, args, "block-detach", "vbd")


def detach_device(session: Session, args: list[str], command: str, kind: str) -> None:
    """`<Domain> <DevId> [-f]` of any class. Raises: UsageError."""
    options, rest = DETACH.parse(args)
    check_count(rest, command, 2)
    name, devid = rest
    force = "f" in options
    session.call("xend.domain.destroyDevice", name, kind, devid, force, True, waiting=f"Detaching {devid}")


def resize(session: Session, args: list[str]) -> None:
    check_count(args, "block-resize", 2)
    session.call("xend.domain.device_resize", args[0], args[1], waiting=f"Resizing {args[1]}")


def show(session: Session, args: list[str]) -> None:
    found, use_long = listed(session, args, "vbd")
    session.print((sxp.pretty(device) for device in found) if use_long else render.block_list(found))


def listed(session: Session, args: list[str], kind: str) -> tuple[list[Sxp], bool]:
    """The devices that `[-l] <Domain>` names, and whether all of them is wanted. Raises: UsageError."""
    options, names = LIST.parse(args)
    if not names:
        raise UsageError("No domain parameter given")
    if len(names) > 1:
        raise UsageError("No multiple domain parameters allowed")
    return session.call("xend.domain.getDeviceSxprs", names[0], kind), "l" in options
