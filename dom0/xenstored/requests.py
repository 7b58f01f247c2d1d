"""The requests about nodes, watches and transactions. Pure: each is checked, done, and returns its reply's
payload.

Every function takes the whole state, the client, the view its transaction id names (the store itself for 0)
and the payload. It raises Refused and has changed nothing then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dom0.xenstored import permissions
from dom0.xenstored.connection import Connection
from dom0.xenstored.errors import Refused
from dom0.xenstored.paths import SPECIAL, absolute, domain_folder, parent_of, split
from dom0.xenstored.permissions import OWNER, READ, WRITE, access_of
from dom0.xenstored.transactions import Transaction
from dom0.xenstored.tree import Node, View
from hyper.public.xs_wire import PAYLOAD_MAX, REL_PATH_MAX, Message

if TYPE_CHECKING:
    from dom0.xenstored.xenstore import Xenstore

OK = b"OK\0"


# --- payloads


def one_string(payload: bytes) -> bytes:
    """The only string of a payload, without its NUL.

    Raises: Refused EINVAL.
    """
    if payload.find(b"\0") != len(payload) - 1 or not payload:
        raise Refused("EINVAL")
    return payload[:-1]


def strings(payload: bytes, at_least: int) -> list[bytes]:
    """The NUL-terminated strings of a payload; what follows the last NUL is left out.

    Raises: Refused EINVAL when there are fewer than `at_least`.
    """
    parts = payload.split(b"\0")[:-1]
    if len(parts) < at_least:
        raise Refused("EINVAL")
    return parts


def number(text: bytes) -> int:
    """A decimal number as C's atoi takes it, and so Xen: leading digits count, none make 0."""
    text = text.lstrip(b" \t\n\r\v\f")
    negative = text.startswith(b"-")
    digits = text[1:] if negative or text.startswith(b"+") else text
    end = next((at for at, char in enumerate(digits[:20]) if not 48 <= char <= 57), min(20, len(digits)))
    value = int(digits[:end] or b"0")
    return -value if negative else value


# --- nodes


def read(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    _, node = _get(conn, view, one_string(message.payload), READ)
    return node.value


def directory(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    _, node = _get(conn, view, one_string(message.payload), READ)
    names = _names(node)
    if len(names) > PAYLOAD_MAX:
        raise Refused("E2BIG")
    return names


def directory_part(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    """The children from byte `offset` of their list on: the node's generation, as many whole names as fit,
    and an empty name when these were the last. A client starts again when the generation has changed in
    between.
    """
    parts = message.payload.split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise Refused("EINVAL")
    _, node = _get(conn, view, parts[0], READ)
    offset = number(parts[1])
    generation = b"%d\0" % (node.generation & 0xFFFFFFFFFFFFFFFF)
    names = _names(node)[max(offset, 0) :]
    room = PAYLOAD_MAX - len(generation) - 1
    if len(names) <= room:
        return generation + names + b"\0"
    return generation + names[: names.rfind(b"\0", 0, room) + 1]


def write(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    path, separator, value = message.payload.partition(b"\0")
    if not separator:
        raise Refused("EINVAL")
    path = absolute(path, conn.domid)
    node = _find(conn, view, path, WRITE)
    if node is None:
        _create(xs, conn, view, path, value)
    else:
        if not conn.privileged:
            _check_size(xs, conn, node.size() - len(node.value) + len(value))
        view.put(path, value, node.perms)
    xs.changed(view, path)
    return OK


def mkdir(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    path = absolute(one_string(message.payload), conn.domid)
    if _find(conn, view, path, WRITE) is None:
        _create(xs, conn, view, path, b"")
        xs.changed(view, path)
    return OK


def rm(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    """Removing what is not there succeeds where its parent is."""
    path = absolute(one_string(message.payload), conn.domid)
    node = _find(conn, view, path, WRITE)
    if node is None:
        if view.get(parent_of(path)) is None:
            raise Refused("ENOENT")
        return OK
    if path == b"/":
        raise Refused("EINVAL")
    xs.removed(view, view.remove(path))
    return OK


def get_perms(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    _, node = _get(conn, view, one_string(message.payload), READ)
    return permissions.encode(node.perms)


def set_perms(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    path, *entries = strings(message.payload, at_least=2)
    perms = permissions.parse(entries)
    if not conn.privileged and len(perms) > xs.limits.permissions:
        raise Refused("ENOSPC")
    if path.startswith(b"@"):
        return _set_special_perms(xs, conn, path, perms)
    path, node = _get(conn, view, path, WRITE | OWNER)
    if not conn.privileged and perms[0].domid != node.owner:
        raise Refused("EPERM")
    _check_size(xs, conn, node._replace(perms=perms).size())
    view.put(path, node.value, perms)
    xs.changed(view, path, old_perms=node.perms)
    return OK


def _set_special_perms(xs: Xenstore, conn: Connection, name: bytes, perms: permissions.Permissions) -> bytes:
    if name not in SPECIAL:
        raise Refused("ENOENT" if conn.privileged else "EACCES")
    old = xs.store.special_perms[name]
    if access_of(old, conn.domid, conn.target) & (WRITE | OWNER) != WRITE | OWNER:
        raise Refused("EACCES")
    if not conn.privileged and perms[0].domid != old[0].domid:
        raise Refused("EPERM")
    xs.store.set_special_perms(name, perms)
    return OK


def _names(node: Node) -> bytes:
    return b"\0".join((*node.children, b""))


def _get(conn: Connection, view: View, path: bytes, need: int) -> tuple[bytes, Node]:
    """The full path and its node.

    Raises: Refused EINVAL, ENOENT, EACCES.
    """
    path = absolute(path, conn.domid)
    node = _find(conn, view, path, need)
    if node is None:
        raise Refused("ENOENT")
    return path, node


def _find(conn: Connection, view: View, path: bytes, need: int) -> Node | None:
    """The node, or None where there is none and the caller may know that: the nearest folder above decides.

    Raises: Refused EACCES.
    """
    node = view.get(path)
    if node is not None:
        if not conn.privileged and access_of(node.perms, conn.domid, conn.target) & need != need:
            view.get(parent_of(path))  # a transaction depends on it from now on, as in Xen
            raise Refused("EACCES")
        return node
    above = path
    while node is None:
        above = parent_of(above)
        node = view.get(above)
    if not conn.privileged and not access_of(node.perms, conn.domid, conn.target) & need:
        raise Refused("EACCES")
    return None


def _create(xs: Xenstore, conn: Connection, view: View, path: bytes, value: bytes) -> None:
    """Makes the node and the missing folders above it; each inherits its parent's permissions.

    Raises: Refused ENOSPC.
    """
    missing = [path]
    while (node := view.get(parent_of(missing[-1]))) is None:
        missing.append(parent_of(missing[-1]))
    perms = permissions.made_by(node.perms, conn.domid)
    if not conn.privileged:
        _check_room(xs, conn, view, node, missing, len(value), perms)
    for made in reversed(missing):
        view.put(made, value if made is path else b"", perms)


def _check_room(
    xs: Xenstore,
    conn: Connection,
    view: View,
    above: Node,
    missing: list[bytes],
    value_bytes: int,
    perms: permissions.Permissions,
) -> None:
    owned = view.nr_owned[conn.domid]
    if view is not xs.store:
        owned += xs.store.nr_owned[conn.domid]
    if owned + len(missing) > xs.limits.nodes:
        raise Refused("ENOSPC")
    _check_size(xs, conn, above.size() + len(split(missing[-1])[1]) + 1)
    empty = Node(b"", perms, {}, 0).size()
    _check_size(xs, conn, empty + value_bytes)
    for path in missing[:-1]:
        _check_size(xs, conn, empty + len(split(path)[1]) + 1)


def _check_size(xs: Xenstore, conn: Connection, size: int) -> None:
    if not conn.privileged and size >= xs.limits.node_size:
        raise Refused("ENOSPC")


# --- watches


def watch(xs: Xenstore, conn: Connection, view: View, message: Message) -> None:
    """Acknowledges, then fires once."""
    raw_path, token = _watch_arguments(message.payload)
    path, prefix = _watched(conn, raw_path)
    if (path, token) in conn.watches:
        raise Refused("EEXIST")
    if not conn.privileged and len(conn.watches) > xs.limits.watches:
        raise Refused("E2BIG")
    added = xs.add_watch(conn, path, token, prefix)
    conn.reply(message, OK)
    conn.queue_event(added.event(path))


def unwatch(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    raw_path, token = _watch_arguments(message.payload)
    try:
        path, _ = _watched(conn, raw_path)
    except Refused:
        raise Refused("ENOENT") from None
    if (path, token) not in conn.watches:
        raise Refused("ENOENT")
    xs.remove_watch(conn, path, token)
    return OK


def reset_watches(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    """Forgets the client's watches and its open transactions."""
    xs.forget_registrations(conn)
    return OK


def _watch_arguments(payload: bytes) -> tuple[bytes, bytes]:
    parts = payload.split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise Refused("EINVAL")
    return parts[0], parts[1]


def _watched(conn: Connection, path: bytes) -> tuple[bytes, int]:
    """The full path, and how much of paths in front is cut from events of a relative watch."""
    if path.startswith(b"@"):
        if len(path) > REL_PATH_MAX:
            raise Refused("EINVAL")
        return path, 0
    full = absolute(path, conn.domid)
    return full, 0 if path.startswith(b"/") else len(domain_folder(conn.domid)) + 1


# --- transactions


def transaction_start(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    if view is not xs.store:
        raise Refused("EBUSY")
    if not conn.privileged and len(conn.transactions) > xs.limits.transactions:
        raise Refused("ENOSPC")
    return b"%d\0" % xs.start_transaction(conn)


def transaction_end(xs: Xenstore, conn: Connection, view: View, message: Message) -> bytes:
    """"T" commits, "F" forgets. Either way the transaction is over."""
    how = one_string(message.payload)
    if how not in (b"T", b"F"):
        raise Refused("EINVAL")
    if not isinstance(view, Transaction):
        raise Refused("ENOENT")
    xs.end_transaction(conn, view)
    if how == b"T":
        changes = view.commit({} if conn.privileged else {conn.domid: xs.limits.nodes})
        xs.committed(changes)
    return OK


