"""Paths of the store: which are valid, and what a relative one means. Bytes, as on the wire."""

from __future__ import annotations

import re

from dom0.xenstored.errors import Refused
from hyper.public.xs_wire import ABS_PATH_MAX, REL_PATH_MAX

INTRODUCE_DOMAIN = b"@introduceDomain"
RELEASE_DOMAIN = b"@releaseDomain"
SPECIAL = (INTRODUCE_DOMAIN, RELEASE_DOMAIN)
"""Watched like paths, but no nodes."""

_VALID = re.compile(rb"/|(?:/[-A-Za-z0-9_@]+)+")
_DOMAIN_FOLDER = re.compile(rb"/local/domain/[0-9]+/")


def domain_folder(domid: int) -> bytes:
    return b"/local/domain/%d" % domid


def absolute(path: bytes, domid: int) -> bytes:
    """The node's full path: a path without a leading slash is below the caller's domain folder.

    The limit of 2048 bytes does not count a domain folder in front, so it is the same for both ways to write
    a path.
    Raises: Refused EINVAL.
    """
    if path.startswith(b"@"):
        raise Refused("EINVAL")
    if not path.startswith(b"/"):
        path = b"/local/domain/%d/%b" % (domid, path)
    if len(path) > REL_PATH_MAX:
        folder = _DOMAIN_FOLDER.match(path)
        below = len(path) - (folder.end() if folder else 0)
        if below > REL_PATH_MAX or len(path) >= ABS_PATH_MAX:
            raise Refused("EINVAL")
    if not _VALID.fullmatch(path):
        raise Refused("EINVAL")
    return path


def split(path: bytes) -> tuple[bytes, bytes]:
    """Parent and last component. Not for the root."""
    parent, _, name = path.rpartition(b"/")
    return parent or b"/", name


def parent_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or b"/"
