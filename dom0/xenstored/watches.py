"""Watches: who wants to hear of changes at or below a path. Pure; what to send is returned, not sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

from dom0.xenstored.paths import parent_of

Owner = TypeVar("Owner")


@dataclass(frozen=True, eq=False, slots=True)
class Watch(Generic[Owner]):
    """`prefix` is the length of what is cut from paths in events: the domain's folder, for a relative watch.
    """

    owner: Owner
    path: bytes
    token: bytes
    prefix: int
    order: int

    def event(self, path: bytes) -> bytes:
        """The payload of the message about `path`."""
        return b"%b\0%b\0" % (path[self.prefix :], self.token)


class WatchTable(Generic[Owner]):
    """All watches, found by path in as many steps as the path has components."""

    def __init__(self) -> None:
        self._by_path: dict[bytes, list[Watch[Owner]]] = {}
        self._order = count()

    def add(self, owner: Owner, path: bytes, token: bytes, prefix: int) -> Watch[Owner]:
        watch = Watch(owner, path, token, prefix, next(self._order))
        self._by_path.setdefault(path, []).append(watch)
        return watch

    def discard(self, watch: Watch[Owner]) -> None:
        """Forgets a watch of this table."""
        here = self._by_path[watch.path]
        here.remove(watch)
        if not here:
            del self._by_path[watch.path]

    def matching(self, path: bytes, exact: bool = False) -> list[Watch[Owner]]:
        """The watches a change of `path` concerns, oldest first. `exact`: without those of the folders above.
        """
        by_path = self._by_path
        if not by_path:
            return []
        if exact or path.startswith(b"@"):
            return by_path.get(path, [])
        found = [watch for at in _self_and_above(path) if at in by_path for watch in by_path[at]]
        found.sort(key=lambda watch: watch.order)
        return found

    def __iter__(self) -> Iterator[Watch[Owner]]:
        for watches in self._by_path.values():
            yield from watches


def _self_and_above(path: bytes) -> Iterator[bytes]:
    while path != b"/":
        yield path
        path = parent_of(path)
    yield path
