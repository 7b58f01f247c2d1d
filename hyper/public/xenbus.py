"""XenBus: how the two halves of a PV driver find each other in XenStore (public/io/xenbus.h). Names only, no
I/O.
"""

from __future__ import annotations

from enum import IntEnum

from hyper.public.xs_wire import domain_path


class XenbusState(IntEnum):
    """What each half writes into its own `state` node."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    """Backend: waits for the frontend's ring and port."""
    INITIALISED = 3
    """Frontend: ring and port are published."""
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


def parse_state(value: str | bytes | None) -> XenbusState:
    """A `state` node's value; UNKNOWN where there is none or it makes no sense, for it is the other half's to
    write.
    """
    try:
        return XenbusState(int(value)) if value is not None else XenbusState.UNKNOWN
    except ValueError:
        return XenbusState.UNKNOWN


def frontend_path(domid: int, kind: str, devid: int) -> str:
    """The frontend's folder of device `devid` of `kind` ("vbd", "vif", ...), in its own domain's folder."""
    return f"{domain_path(domid)}/device/{kind}/{devid}"


def backend_path(backend_domid: int, kind: str, frontend_domid: int, devid: int) -> str:
    """The backend's folder of the same device, in the folder of the domain that serves it."""
    return f"{domain_path(backend_domid)}/backend/{kind}/{frontend_domid}/{devid}"
