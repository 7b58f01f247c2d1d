"""The requests about domains, and CONTROL. All but GET_DOMAIN_PATH are for Dom0 only: the caller checks that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from dom0.xenstored.connection import Connection
from dom0.xenstored.errors import Refused
from dom0.xenstored.paths import domain_folder
from dom0.xenstored.permissions import DOM0, FIRST_RESERVED_DOMID
from dom0.xenstored.requests import OK, number, one_string, strings
from dom0.xenstored.tree import Store, View
from hyper.public.xs_wire import Message

if TYPE_CHECKING:
    from dom0.xenstored.xenstore import Xenstore

log = structlog.get_logger("xenstored")


def introduce(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes | None:
    """Begins to serve a domain's ring: domid, gfn of the ring, event channel port. The reply waits for the
    ring.
    """
    domid, gfn, port = map(number, strings(message.payload, at_least=3)[:3])
    if port <= 0:
        raise Refused("EINVAL")
    if not 0 <= domid < FIRST_RESERVED_DOMID:
        raise Refused("ENOENT")
    if domid == DOM0:
        return OK  # Dom0's processes use the socket
    xs.begin_introduction(conn, message, domid, gfn, port)
    return None


def release(xs: Xenstore, conn: Connection, view: View, message: Message) -> None:
    domid = number(one_string(message.payload))
    if domid == DOM0:
        raise Refused("EINVAL")
    if domid not in xs.domains:
        raise Refused("ENOENT")
    conn.reply(message, OK)
    xs.release(domid)


def is_domain_introduced(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    domid = number(one_string(message.payload))
    return b"T\0" if domid == DOM0 or domid in xs.domains else b"F\0"


def get_domain_path(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    return domain_folder(number(one_string(message.payload)) & 0xFFFF) + b"\0"


def resume(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    """The domain runs again after a shutdown: its next one is reported too."""
    domid = number(one_string(message.payload))
    if domid == DOM0:
        raise Refused("EINVAL")
    if domid not in xs.domains:
        raise Refused("ENOENT")
    xs.set_shutdown(domid, False)
    return OK


def set_target(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    """Gives a stub domain the rights of the domain it serves."""
    domid, target = map(number, strings(message.payload, at_least=2)[:2])
    if domid not in xs.domains or target not in xs.domains:
        raise Refused("ENOENT")
    xs.set_target(domid, target)
    return OK


def control(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    command, *arguments = strings(message.payload, at_least=1)
    if command == b"help" and not arguments:
        return b"help\ncheck\nprint\t<string>\nquota\0"
    if command == b"check" and not arguments:
        for problem in check(xs.store):
            log.error("check", problem=problem)
        return OK
    if command == b"print" and len(arguments) == 1:
        log.info("print", text=arguments[0].decode(errors="replace"))
        return OK
    if command == b"quota" and not arguments:
        return "".join(f"{name}: {value}\n" for name, value in vars(xs.limits).items()).encode() + b"\0"
    raise Refused("EINVAL")


def check(store: Store) -> list[str]:
    """What is wrong with the tree: nothing, unless we have a bug."""
    problems = []
    nr_found = 0
    pending = [b"/"]
    owned: dict[int, int] = {}
    while pending:
        path = pending.pop()
        node = store.nodes.get(path)
        if node is None:
            problems.append(f"{path.decode()}: listed by its parent, but missing")
            continue
        nr_found += 1
        owned[node.owner] = owned.get(node.owner, 0) + 1
        prefix = b"" if path == b"/" else path
        pending += (prefix + b"/" + name for name in node.children)
    if nr_found != len(store.nodes):
        problems.append(f"{len(store.nodes) - nr_found} nodes are not reachable")
    if owned != {domid: nr for domid, nr in store.nr_owned.items() if nr}:
        problems.append("the count of nodes by owner is wrong")
    return problems
