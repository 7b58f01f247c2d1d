"""The whole state of the store and what may happen to it: pure, no I/O.

    xs = Xenstore()
    conn = Connection(domid)
    xs.request(conn, message)      # changes the state, queues the reply and watch events at each connection
    conn.output()                  # what to send

Whoever does the I/O looks at three things after each call: `with_output` (connections to send something to),
`introductions` (rings to be connected, answered by finish_introduction) and `released` (rings to be let go).

`journal` is told of every change of what must outlive the daemon, as operations that make it again on an
empty store: journal.py keeps them, restart.py does them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from dom0.xenstored import domain_requests, requests
from dom0.xenstored.connection import Connection
from dom0.xenstored.errors import Refused
from dom0.xenstored.limits import Limits
from dom0.xenstored.paths import INTRODUCE_DOMAIN, RELEASE_DOMAIN, parent_of
from dom0.xenstored.permissions import DOM0_ONLY, READ, Permissions, access_of
from dom0.xenstored.transactions import Change, Transaction
from dom0.xenstored.tree import Removed, Store, View
from dom0.xenstored.watches import Watch, WatchTable
from hyper.public.xs_wire import Message, XsType

Handler = Callable[["Xenstore", Connection, View, Message], bytes | None]

_HANDLERS: dict[int, Handler] = {
    XsType.CONTROL: domain_requests.control,
    XsType.DIRECTORY: requests.directory,
    XsType.READ: requests.read,
    XsType.GET_PERMS: requests.get_perms,
    XsType.WATCH: requests.watch,
    XsType.UNWATCH: requests.unwatch,
    XsType.TRANSACTION_START: requests.transaction_start,
    XsType.TRANSACTION_END: requests.transaction_end,
    XsType.INTRODUCE: domain_requests.introduce,
    XsType.RELEASE: domain_requests.release,
    XsType.GET_DOMAIN_PATH: domain_requests.get_domain_path,
    XsType.WRITE: requests.write,
    XsType.MKDIR: requests.mkdir,
    XsType.RM: requests.rm,
    XsType.SET_PERMS: requests.set_perms,
    XsType.IS_DOMAIN_INTRODUCED: domain_requests.is_domain_introduced,
    XsType.RESUME: domain_requests.resume,
    XsType.SET_TARGET: domain_requests.set_target,
    XsType.RESET_WATCHES: requests.reset_watches,
    XsType.DIRECTORY_PART: requests.directory_part,
}
_DOM0_ONLY = frozenset(
    {XsType.CONTROL, XsType.INTRODUCE, XsType.RELEASE, XsType.IS_DOMAIN_INTRODUCED, XsType.RESUME}
    | {XsType.SET_TARGET}
)
_WITHOUT_TRANSACTION = frozenset({XsType.WATCH, XsType.UNWATCH})
"""These leave their transaction id unread, as in Xen."""

OWN_NODES = (b"/tool", b"/tool/xenstored")
"""In every store from its beginning, so not in the journal."""


class DomainState(Enum):
    RUNNING = "running"
    SHUTDOWN = "shutdown"
    GONE = "gone"


@dataclass
class Domain:
    """An introduced domain. `shutdown`: its last shutdown has been reported."""

    domid: int
    gfn: int
    port: int
    conn: Connection
    shutdown: bool = False


@dataclass(frozen=True)
class Introduction:
    """A ring that somebody wants to be served. Pass it to finish_introduction."""

    conn: Connection
    message: Message
    domid: int
    gfn: int
    port: int


@dataclass
class Xenstore:
    journal: Callable[..., None] | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.store = Store()
        for path in OWN_NODES:
            self.store.put(path, b"", DOM0_ONLY)
        self.store.journal = self.journal
        self.watches: WatchTable[Connection] = WatchTable()
        self.domains: dict[int, Domain] = {}
        self.with_output: dict[Connection, None] = {}
        self.introductions: list[Introduction] = []
        self.released: list[int] = []

    # --- requests

    def request(self, conn: Connection, message: Message) -> None:
        """Serves one request. Never raises: what is refused is answered with an error."""
        self.with_output[conn] = None
        try:
            handler = _HANDLERS.get(message.type)
            if handler is None:
                raise Refused("ENOSYS")
            if message.type in _DOM0_ONLY and not conn.privileged:
                raise Refused("EACCES")
            payload = handler(self, conn, self._view(conn, message), message)
        except Refused as refused:
            conn.refuse(message, refused.name)
        else:
            if payload is not None:
                conn.reply(message, payload)

    def _view(self, conn: Connection, message: Message) -> View:
        """Raises: Refused ENOENT."""
        if message.tx_id == 0 or message.type in _WITHOUT_TRANSACTION:
            return self.store
        transaction = conn.transactions.get(message.tx_id)
        if transaction is None:
            raise Refused("ENOENT")
        return transaction

    def disconnect(self, conn: Connection) -> None:
        """The client is gone: so are its watches and transactions."""
        self.forget_registrations(conn)
        conn.closed = True
        self.with_output.pop(conn, None)

    # --- changes of the tree

    def changed(self, view: View, path: bytes, old_perms: Permissions | None = None) -> None:
        """Tells watchers of a node that was written, or had `old_perms` before; in a transaction, at its
        commit.
        """
        if isinstance(view, Transaction):
            view.note_change(path, old_perms=old_perms)
        else:
            self._fire_now(path, Change(False, old_perms))

    def removed(self, view: View, removed: list[Removed]) -> None:
        """Tells watchers of nodes that went; `removed` ends with the one that took the others with it."""
        for gone in removed:
            exact = gone is not removed[-1]
            if isinstance(view, Transaction):
                view.note_change(gone.path, exact, gone.perms)
            else:
                self._fire(gone.path, exact, (gone.perms, gone.parent_perms))

    def committed(self, changes: Mapping[bytes, Change]) -> None:
        for path, change in changes.items():
            self._fire_now(path, change)

    def _fire_now(self, path: bytes, change: Change) -> None:
        node = self.store.get(path)
        readers = [change.old_perms] if change.old_perms else []
        if node is not None:
            readers.append(node.perms)
            if path != b"/":
                readers.append(self.store.nodes[parent_of(path)].perms)
        self._fire(path, change.exact, readers)

    def _fire(self, path: bytes, exact: bool, readers: list[Permissions] | tuple[Permissions, ...]) -> None:
        """An event for each watcher that may read the node, as it is or was, or its parent."""
        for watch in self.watches.matching(path, exact):
            conn = watch.owner
            if conn.privileged or any(access_of(perms, conn.domid, conn.target) & READ for perms in readers):
                conn.queue_event(watch.event(path))
                self.with_output[conn] = None

    def _fire_special(self, name: bytes) -> None:
        self._fire(name, True, (self.store.special_perms[name],))

    # --- registrations of a client; those of a guest's ring are journalled

    def add_watch(self, conn: Connection, path: bytes, token: bytes, prefix: int) -> Watch[Connection]:
        watch = conn.watches[path, token] = self.watches.add(conn, path, token, prefix)
        self._note(conn, "watch", path, token, prefix)
        return watch

    def remove_watch(self, conn: Connection, path: bytes, token: bytes) -> None:
        self.watches.discard(conn.watches.pop((path, token)))
        self._note(conn, "unwatch", path, token)

    def start_transaction(self, conn: Connection) -> int:
        tx_id = conn.last_tx_id
        while True:
            tx_id = tx_id % 0xFFFFFFFF + 1
            if tx_id not in conn.transactions:
                break
        conn.last_tx_id = tx_id
        max_nodes = None if conn.privileged else self.limits.transaction_nodes
        conn.transactions[tx_id] = Transaction(self.store, max_nodes)
        self._note(conn, "transaction_start", tx_id)
        return tx_id

    def end_transaction(self, conn: Connection, transaction: Transaction) -> None:
        tx_id = next(tx_id for tx_id, known in conn.transactions.items() if known is transaction)
        del conn.transactions[tx_id]
        self._note(conn, "transaction_end", tx_id)

    def forget_registrations(self, conn: Connection) -> None:
        for watch in conn.watches.values():
            self.watches.discard(watch)
        conn.watches.clear()
        conn.transactions.clear()
        self._note(conn, "reset_watches")

    def _note(self, conn: Connection, operation: str, *arguments: object) -> None:
        if conn.journal:
            conn.journal(operation, conn.domid, *arguments)

    # --- domains

    def begin_introduction(self, conn: Connection, message: Message, domid: int, gfn: int, port: int) -> None:
        self.introductions.append(Introduction(conn, message, domid, gfn, port))

    def finish_introduction(self, introduction: Introduction, error: str | None = None) -> None:
        """The ring is connected, or could not be: `error` is then one of xs_wire.ERROR_NAMES. Answers the
        client.
        """
        conn, message = introduction.conn, introduction.message
        if error:
            conn.refuse(message, error)
        else:
            self.introduce(introduction.domid, introduction.gfn, introduction.port)
            conn.reply(message, requests.OK)
        self.with_output[conn] = None

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """A domain that is known already may come with another port."""
        domain = self.domains.get(domid)
        if domain is not None:
            domain.gfn, domain.port = gfn, port
            if domain.conn.closed:  # its ring had failed
                domain.conn = Connection(domid, self.journal)
        else:
            self.domains[domid] = Domain(domid, gfn, port, Connection(domid, self.journal))
        if self.journal:
            self.journal("introduce", domid, gfn, port)
        if domain is None:
            self._fire_special(INTRODUCE_DOMAIN)

    def release(self, domid: int) -> None:
        """The domain is gone, with its nodes and rights."""
        domain = self.domains.pop(domid)
        self.disconnect(domain.conn)
        if self.journal:
            self.journal("release", domid)
        self.forget_domain(domid)
        self.released.append(domid)
        self._fire_special(RELEASE_DOMAIN)

    def forget_domain(self, domid: int) -> None:
        """Removes what a domain owns, introduced or not."""
        for removed in self.store.forget_domain(domid):
            self.removed(self.store, removed)

    def set_shutdown(self, domid: int, shutdown: bool) -> None:
        self.domains[domid].shutdown = shutdown
        if self.journal:
            self.journal("set_shutdown", domid, shutdown)

    def set_target(self, domid: int, target: int) -> None:
        self.domains[domid].conn.target = target
        if self.journal:
            self.journal("set_target", domid, target)

    def known_domids(self) -> set[int]:
        """Domains whose end concerns us: the introduced ones, and those which own nodes."""
        owners = {domid for domid, nr_nodes in self.store.nr_owned.items() if nr_nodes}
        return (owners | self.domains.keys()) - {DOM0_ONLY[0].domid}

    def domain_states(self, states: Mapping[int, DomainState]) -> None:
        """What the hypervisor says of known_domids(). A shutdown is reported once, an end releases the
        domain.
        """
        report_shutdown = False
        for domid, state in states.items():
            domain = self.domains.get(domid)
            if state is DomainState.GONE:
                if domain is not None:
                    self.release(domid)
                else:
                    self.forget_domain(domid)
            elif state is DomainState.SHUTDOWN and domain is not None and not domain.shutdown:
                self.set_shutdown(domid, True)
                report_shutdown = True
        if report_shutdown:
            self._fire_special(RELEASE_DOMAIN)
