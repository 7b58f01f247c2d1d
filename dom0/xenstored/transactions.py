"""Transactions: a view of the store that is its own until it is committed.

Optimistic: the transaction notes the generation of each node it looks at (0: there was none). At the end,
when one of them has another generation now, somebody interfered: EAGAIN, and nothing of it has happened.
Otherwise its operations are done once more, in order, on the store itself, with the same result, since
nothing it has seen has changed.

Looking at a node means looking at its list of children too, so two transactions which make different nodes in
one folder do conflict, as they do in Xen.
"""

from __future__ import annotations

from typing import NamedTuple

from dom0.xenstored.errors import Refused
from dom0.xenstored.permissions import Permissions
from dom0.xenstored.tree import Node, Removed, Store, View


class Change(NamedTuple):
    """What the watchers of a path are told at the commit. `exact`: only those of this very path."""

    exact: bool
    old_perms: Permissions | None


class Transaction(View):
    def __init__(self, store: Store, max_nodes: int | None = None, doomed_by: str | None = None) -> None:
        """`max_nodes` is how many it may look at. `doomed_by`: the error it will end with, whatever happens.
        """
        super().__init__()
        self._store = store
        self._max_nodes = max_nodes
        self._doomed_by = doomed_by
        self._seen: dict[bytes, int] = {}
        self._nodes: dict[bytes, Node | None] = {}
        self._generation = 0
        self._operations: list[tuple[bytes, bytes, Permissions] | bytes] = []  # of put, or the path of remove
        self._changes: dict[bytes, Change] = {}

    def get(self, path: bytes) -> Node | None:
        try:
            return self._nodes[path]
        except KeyError:
            if self._max_nodes is not None and len(self._seen) >= self._max_nodes:
                self._doomed_by = "ENOSPC"  # it may have been in the middle of something
                raise Refused("ENOSPC") from None
            node = self._nodes[path] = self._store.get(path)
            self._seen[path] = node.generation if node else 0
            return node

    def _set(self, path: bytes, node: Node | None) -> None:
        self._nodes[path] = node

    def _next_generation(self) -> int:
        self._generation -= 1  # never one of the store's
        return self._generation

    def put(self, path: bytes, value: bytes, perms: Permissions) -> None:
        super().put(path, value, perms)
        self._operations.append((path, value, perms))

    def remove(self, path: bytes) -> list[Removed]:
        removed = super().remove(path)
        self._operations.append(path)
        return removed

    def note_change(self, path: bytes, exact: bool = False, old_perms: Permissions | None = None) -> None:
        """A watch event for the commit. Several for one path are one: the widest, with the first known
        permissions.
        """
        before = self._changes.get(path)
        if before:
            exact = exact and before.exact
            old_perms = before.old_perms or old_perms
        self._changes[path] = Change(exact, old_perms)

    def commit(self, limits: dict[int, int] | None = None) -> dict[bytes, Change]:
        """Makes it true. `limits`: the most nodes each of these domains may own afterwards.

        Returns: what watchers must hear, in the order in which the paths were first looked at.
        Raises: Refused EAGAIN or ENOSPC, with the store as before.
        """
        if self._doomed_by:
            raise Refused(self._doomed_by)
        store = self._store
        for path, generation in self._seen.items():
            now = store.nodes.get(path)
            if (now.generation if now else 0) != generation:
                raise Refused("EAGAIN")
        for domid, most in (limits or {}).items():
            grown = self.nr_owned[domid]
            if grown > 0 and store.nr_owned[domid] + grown > most:
                raise Refused("ENOSPC")
        for operation in self._operations:
            if isinstance(operation, bytes):
                store.remove(operation)
            else:
                store.put(*operation)
        changes = self._changes
        return {path: changes[path] for path in self._seen if path in changes and self._concerns(path)}

    def _concerns(self, path: bytes) -> bool:
        """Others: not a node that was made and removed again in between."""
        return self._seen[path] != 0 or self._nodes[path] is not None
