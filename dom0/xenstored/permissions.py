"""Who may do what with a node.

The first entry names the owner, who may do everything, and what everybody else may do; each further entry
says what one domain may do instead. On the wire an entry is a letter (n, r, w, b: none, read, write, both)
and a domid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from dom0.xenstored.errors import Refused

NONE, READ, WRITE, OWNER = 0, 1, 2, 4
ALL = READ | WRITE | OWNER
DOM0 = 0
FIRST_RESERVED_DOMID = 0x7FF0

_LETTERS = {ord("n"): NONE, ord("r"): READ, ord("w"): WRITE, ord("b"): READ | WRITE}
_LETTER_OF = {access: letter for letter, access in _LETTERS.items()}
_DOMID = re.compile(rb"\s*\+?([0-9]{1,9})")


class Permission(NamedTuple):
    """One entry. `stale`: its domain died after it was written; still shown, never applied to a later domain.
    """

    access: int
    domid: int
    stale: bool = False


Permissions = tuple[Permission, ...]

DOM0_ONLY: Permissions = (Permission(NONE, DOM0),)


def access_of(perms: Permissions, domid: int, target: int | None = None) -> int:
    """What a domain may do: READ, WRITE, OWNER or-ed. A stub domain also has the rights of its target.

    Dom0 may do everything.
    """
    owner = perms[0]
    if domid in (DOM0, owner.domid) or (target is not None and target == owner.domid):
        return ALL
    for entry in perms[1:]:
        if not entry.stale and (entry.domid == domid or entry.domid == target):
            return entry.access
    return owner.access


def parse(entries: Sequence[bytes]) -> Permissions:
    """Entries as on the wire.

    Raises: Refused EINVAL for what is no entry or no list; ENOENT for an owner that is no possible domain.
    """
    if not entries:
        raise Refused("EINVAL")
    perms = []
    for entry in entries:
        domid = _DOMID.fullmatch(entry, 1)
        if domid is None or entry[0] not in _LETTERS:
            raise Refused("EINVAL")
        perms.append(Permission(_LETTERS[entry[0]], int(domid[1])))
    if perms[0].domid >= FIRST_RESERVED_DOMID:
        raise Refused("ENOENT")
    return tuple(perms)


def encode(perms: Permissions) -> bytes:
    """Entries as on the wire, each with its NUL."""
    return b"".join(b"%c%d\0" % (_LETTER_OF[entry.access], entry.domid) for entry in perms)


def made_by(perms: Permissions, domid: int) -> Permissions:
    """What a new node inherits from its parent: all, but a domain owns what it makes. Dom0 leaves the owner.
    """
    if domid in (DOM0, perms[0].domid):
        return perms
    return (Permission(perms[0].access, domid), *perms[1:])


def without_domain(perms: Permissions, domid: int) -> Permissions:
    """The same once `domid` has died: its entries are stale. The owner is not looked at."""
    if all(entry.domid != domid for entry in perms[1:]):
        return perms
    return (perms[0], *(entry._replace(stale=True) if entry.domid == domid else entry for entry in perms[1:]))
