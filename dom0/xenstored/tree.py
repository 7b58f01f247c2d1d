"""The tree of nodes: pure, no I/O, no notion of a caller.

A node never changes: to change it is to put a new one in its place. So a transaction keeps what it has read
by keeping the node, and what it changes stays its own (transactions.py). A node's generation is the number of
the last change to its value, its permissions or its list of children; numbers are never used again.

Everything that changes the store is one of four operations: put, remove, set_special_perms, forget_domain.
The journal sees each of them, and doing the same operations again on an empty store gives the same store
(journal.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dom0.xenstored.paths import SPECIAL, split
from dom0.xenstored.permissions import DOM0, DOM0_ONLY, Permission, Permissions, without_domain

_NODE_OVERHEAD, _PERM_BYTES = 24, 8  # Xen's node record: its header, and one permission


class Node(NamedTuple):
    value: bytes
    perms: Permissions
    children: dict[bytes, None]
    """Names in the order of their creation. Never changed in place."""
    generation: int

    @property
    def owner(self) -> int:
        return self.perms[0].domid

    def size(self) -> int:
        """Bytes as the quota counts them."""
        names = sum(map(len, self.children)) + len(self.children)
        return _NODE_OVERHEAD + _PERM_BYTES * len(self.perms) + len(self.value) + names


class Removed(NamedTuple):
    """A node that is gone: who may hear of it depends on its permissions and its parent's."""

    path: bytes
    perms: Permissions
    parent_perms: Permissions


class View:
    """What a request works on: the store itself, or a transaction's view of it."""

    def __init__(self) -> None:
        self.nr_owned: Counter[int] = Counter()
        """Nodes by owner."""

    def get(self, path: bytes) -> Node | None:
        raise NotImplementedError

    def _set(self, path: bytes, node: Node | None) -> None:
        raise NotImplementedError

    def _next_generation(self) -> int:
        raise NotImplementedError

    def put(self, path: bytes, value: bytes, perms: Permissions) -> None:
        """Makes the node, or replaces its value and permissions. The parent must exist."""
        old = self.get(path)
        generation = self._next_generation()
        if old is None:
            parent_path, name = split(path)
            parent = self.get(parent_path)
            assert parent is not None, path
            children = {**parent.children, name: None}
            self._set(parent_path, Node(parent.value, parent.perms, children, generation))
            self._set(path, Node(value, perms, {}, generation))
        else:
            self._set(path, Node(value, perms, old.children, generation))
            if perms is old.perms:
                return
            self.nr_owned[old.owner] -= 1
        self.nr_owned[perms[0].domid] += 1

    def remove(self, path: bytes) -> list[Removed]:
        """Removes an existing node with all below it. Not for the root. What is gone, children before
        parents. A transaction that has lost already may find a node its parent does not know, or the reverse.
        """
        generation = self._next_generation()
        parent_path, name = split(path)
        parent = self.get(parent_path)
        removed = list(self._remove_below(path, parent.perms if parent else DOM0_ONLY))
        if parent:
            children = parent.children.copy()
            children.pop(name, None)
            self._set(parent_path, Node(parent.value, parent.perms, children, generation))
        return removed

    def _remove_below(self, path: bytes, parent_perms: Permissions) -> Iterator[Removed]:
        """Without recursion: a path may have a thousand components."""
        pending: list[tuple[bytes, Permissions, bool]] = [(path, parent_perms, False)]
        while pending:
            path, parent_perms, children_are_gone = pending.pop()
            node = self.get(path)
            if node is None:
                continue
            if node.children and not children_are_gone:
                pending.append((path, parent_perms, True))
                pending += ((path + b"/" + name, node.perms, False) for name in reversed(node.children))
                continue
            self._set(path, None)
            self.nr_owned[node.owner] -= 1
            yield Removed(path, node.perms, parent_perms)


class Store(View):
    """The committed tree. `journal` is told of every change, as the name of the operation and its arguments.
    """

    def __init__(self, journal: Callable[..., None] | None = None) -> None:
        super().__init__()
        self.nodes: dict[bytes, Node] = {b"/": Node(b"", DOM0_ONLY, {}, 1)}
        self.nr_owned[0] = 1
        self.generation = 1
        self.special_perms: dict[bytes, Permissions] = dict.fromkeys(SPECIAL, DOM0_ONLY)
        self.journal = journal

    def get(self, path: bytes) -> Node | None:
        return self.nodes.get(path)

    def _set(self, path: bytes, node: Node | None) -> None:
        if node is None:
            del self.nodes[path]
        else:
            self.nodes[path] = node

    def _next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def put(self, path: bytes, value: bytes, perms: Permissions) -> None:
        super().put(path, value, perms)
        if self.journal:
            self.journal("put", path, value, perms)

    def remove(self, path: bytes) -> list[Removed]:
        removed = super().remove(path)
        if self.journal:
            self.journal("remove", path)
        return removed

    def set_special_perms(self, name: bytes, perms: Permissions) -> None:
        """Who may watch @introduceDomain or @releaseDomain."""
        self.special_perms[name] = perms
        if self.journal:
            self.journal("set_special_perms", name, perms)

    def forget_domain(self, domid: int) -> list[list[Removed]]:
        """The domain is gone: what it owns is removed with all below, its rights elsewhere become void.

        Returns: for each topmost node removed, what went with it. As Xen's since XSA-322: a later domain of
        the same number must not find the rights or the nodes of this one.
        """
        journal, self.journal = self.journal, None  # one operation, not its parts
        try:
            root = self.nodes[b"/"]
            if root.owner == domid:
                self.put(b"/", root.value, (Permission(root.perms[0].access, DOM0), *root.perms[1:]))
            removed = [self.remove(path) for path in self._topmost_owned(domid)]
            for path, node in self.nodes.items():
                perms = without_domain(node.perms, domid)
                if perms is not node.perms:
                    self.nodes[path] = node._replace(perms=perms)
            for name, perms in self.special_perms.items():
                self.special_perms[name] = without_domain(perms, domid)
        finally:
            self.journal = journal
        if self.journal:
            self.journal("forget_domain", domid)
        return removed

    def _topmost_owned(self, domid: int) -> list[bytes]:
        found = []
        pending = [b"/"]
        while pending:
            path = pending.pop()
            node = self.nodes[path]
            if node.owner == domid:
                found.append(path)
            else:
                prefix = b"" if path == b"/" else path
                pending += (prefix + b"/" + name for name in reversed(node.children))
        return found
