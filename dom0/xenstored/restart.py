"""The state as journal operations, and back. The only place that knows what each operation of the journal
means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dom0.xenstored.connection import Connection
from dom0.xenstored.journal import Operation
from dom0.xenstored.permissions import Permission, Permissions
from dom0.xenstored.transactions import Transaction
from dom0.xenstored.xenstore import OWN_NODES, Domain, Xenstore

_U32 = 1 << 32


@dataclass
class RingState:
    """What the journal knows of a domain's ring. `consumed` and `produced` count modulo 2^32, as the ring
    does; `unsent` was queued and begins at `produced`.
    """

    consumed: int
    produced: int
    rest: bytes = b""
    unsent: bytearray = field(default_factory=bytearray)

    def catch_up(self, consumed: int, produced: int) -> int:
        """The ring itself stands at `consumed` and `produced`. Drops what is in the ring already.

        Returns: bytes to be consumed, since they were served.
        Raises: ValueError when the ring can't be at that place: the guest has changed our indices.
        """
        served = (self.consumed - consumed) % _U32
        sent = (produced - self.produced) % _U32
        if sent > len(self.unsent):
            raise ValueError(f"{sent} bytes of replies in the ring, {len(self.unsent)} were made")
        del self.unsent[:sent]
        self.produced = produced
        return served


class Restorer:
    """Does the operations of a journal on a new Xenstore. Each method is one operation."""

    def __init__(self, xs: Xenstore) -> None:
        self.xs = xs
        self.rings: dict[int, RingState] = {}

    def run(self, operations: Iterable[Operation]) -> None:
        """Raises: AttributeError, TypeError, KeyError for what is no journal of ours."""
        for name, *arguments in operations:
            getattr(self, f"do_{name}")(*arguments)

    def do_generation(self, generation: int) -> None:
        self.xs.store.generation = generation

    def do_put(self, path: bytes, value: bytes, perms: Iterable[Any]) -> None:
        self.xs.store.put(path, value, _permissions(perms))

    def do_remove(self, path: bytes) -> None:
        self.xs.store.remove(path)

    def do_set_special_perms(self, name: bytes, perms: Iterable[Any]) -> None:
        self.xs.store.set_special_perms(name, _permissions(perms))

    def do_forget_domain(self, domid: int) -> None:
        self.xs.store.forget_domain(domid)

    def do_introduce(self, domid: int, gfn: int, port: int) -> None:
        known = self.xs.domains.get(domid)
        conn = known.conn if known else Connection(domid, self.xs.journal)
        self.xs.domains[domid] = Domain(domid, gfn, port, conn, known.shutdown if known else False)

    def do_release(self, domid: int) -> None:
        self.xs.disconnect(self.xs.domains.pop(domid).conn)
        self.rings.pop(domid, None)

    def do_set_shutdown(self, domid: int, shutdown: bool) -> None:
        self.xs.set_shutdown(domid, shutdown)

    def do_set_target(self, domid: int, target: int) -> None:
        self.xs.set_target(domid, target)

    def do_watch(self, domid: int, path: bytes, token: bytes, prefix: int) -> None:
        self.xs.add_watch(self.xs.domains[domid].conn, path, token, prefix)

    def do_unwatch(self, domid: int, path: bytes, token: bytes) -> None:
        self.xs.remove_watch(self.xs.domains[domid].conn, path, token)

    def do_reset_watches(self, domid: int) -> None:
        if domain := self.xs.domains.get(domid):
            self.xs.forget_registrations(domain.conn)

    def do_transaction_start(self, domid: int, tx_id: int) -> None:
        conn = self.xs.domains[domid].conn
        max_nodes = self.xs.limits.transaction_nodes
        conn.transactions[tx_id] = Transaction(self.xs.store, max_nodes, doomed_by="EAGAIN")
        conn.last_tx_id = tx_id

    def do_last_tx_id(self, domid: int, tx_id: int) -> None:
        self.xs.domains[domid].conn.last_tx_id = tx_id

    def do_transaction_end(self, domid: int, tx_id: int) -> None:
        del self.xs.domains[domid].conn.transactions[tx_id]

    def do_ring(self, domid: int, consumed: int, produced: int) -> None:
        self.rings[domid] = RingState(consumed, produced)

    def do_consumed(self, domid: int, nbytes: int, rest: bytes) -> None:
        ring = self.rings[domid]
        ring.consumed = (ring.consumed + nbytes) % _U32
        ring.rest = rest

    def do_queue(self, domid: int, message: bytes) -> None:
        if domid in self.rings:
            self.rings[domid].unsent += message


def snapshot(xs: Xenstore, rings: Mapping[int, RingState]) -> list[Operation]:
    """Operations that make the present state out of nothing."""
    operations: list[Operation] = [("generation", xs.store.generation)]
    missing = [path for path in OWN_NODES if path not in xs.store.nodes]
    operations += (("remove", path) for path in missing[:1])  # with it goes the other, which is below
    pending = [b"/"]
    while pending:
        path = pending.pop()
        node = xs.store.nodes[path]
        operations.append(("put", path, node.value, node.perms))
        prefix = b"" if path == b"/" else path
        pending += (prefix + b"/" + name for name in reversed(node.children))
    operations += (("set_special_perms", *item) for item in xs.store.special_perms.items())
    for domid, domain in xs.domains.items():
        operations.append(("introduce", domid, domain.gfn, domain.port))
        operations.append(("set_shutdown", domid, domain.shutdown))
    for domid, domain in xs.domains.items():
        conn = domain.conn
        if conn.target is not None:
            operations.append(("set_target", domid, conn.target))
        operations += (("transaction_start", domid, tx_id) for tx_id in conn.transactions)
        operations.append(("last_tx_id", domid, conn.last_tx_id))
        if ring := rings.get(domid):
            operations.append(("ring", domid, ring.consumed, ring.produced))
            operations.append(("consumed", domid, 0, ring.rest))
            operations.append(("queue", domid, bytes(ring.unsent)))
    for watch in sorted(xs.watches, key=lambda watch: watch.order):
        if watch.owner.journal:
            operations.append(("watch", watch.owner.domid, watch.path, watch.token, watch.prefix))
    return operations


def fire_all_watches(xs: Xenstore) -> None:
    """Each watch once: what changed while nobody was there is looked at again."""
    for watch in sorted(xs.watches, key=lambda watch: watch.order):
        watch.owner.queue_event(watch.event(watch.path))
        xs.with_output[watch.owner] = None


def _permissions(perms: Iterable[Any]) -> Permissions:
    return tuple(Permission(*entry) for entry in perms)
