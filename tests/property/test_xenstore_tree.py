"""Tree and transactions against an obvious model: a dict of values, copied whole at the start of a
transaction.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from dom0.xenstored.connection import Connection
from dom0.xenstored.domain_requests import check
from dom0.xenstored.journal import Journal
from dom0.xenstored.restart import Restorer, snapshot
from dom0.xenstored.xenstore import Xenstore
from hyper.public.xs_wire import Decoder, Message, XsType

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: "/" + "/".join(names))
VALUES = st.binary(max_size=4)
Model = dict[str, bytes]


def parent_of(path: str) -> str:
    return path.rpartition("/")[0] or "/"


class ModelTree:
    """What every operation should do."""

    def __init__(self, nodes: Model) -> None:
        self.nodes = nodes

    def write(self, path: str, value: bytes) -> str | bytes:
        self.mkdir(path)
        self.nodes[path] = value
        return b"OK\0"

    def mkdir(self, path: str) -> str | bytes:
        while path not in self.nodes:
            self.nodes[path] = b""
            path = parent_of(path)
        return b"OK\0"

    def rm(self, path: str) -> str | bytes:
        if path not in self.nodes:
            return b"OK\0" if parent_of(path) in self.nodes else "ENOENT"
        for known in list(self.nodes):
            if known == path or known.startswith(path + "/"):
                del self.nodes[known]
        return b"OK\0"

    def read(self, path: str) -> str | bytes:
        return self.nodes.get(path, "ENOENT")

    def directory(self, path: str) -> str | set[str]:
        if path not in self.nodes:
            return "ENOENT"
        return {known.rpartition("/")[2] for known in self.nodes if known != "/" and parent_of(known) == path}


class ModelTransaction:
    """Its own copy of the tree, and what it has done since. Loses when what it has looked at is another now.
    """

    def __init__(self, tx_id: int, nodes: Model) -> None:
        self.tx_id = tx_id
        self.start = dict(nodes)
        self.tree = ModelTree(dict(nodes))
        self.nr_changes_outside = 0
        self.log: list[tuple[str, str, bytes]] = []


class StoreMachine(RuleBasedStateMachine):
    transactions: Bundle[ModelTransaction] = Bundle("transactions")

    @initialize()
    def begin(self) -> None:
        self.journal = Journal()
        self.operations: list[tuple[object, ...]] = []
        self.xs = Xenstore(self.journal)
        self.conn = Connection(0)
        self.decoder = Decoder()
        self.model = ModelTree({"/": b"", "/tool": b"", "/tool/xenstored": b""})
        self.open: list[ModelTransaction] = []

    def ask(self, kind: XsType, path: str, raw: bytes = b"", tx_id: int = 0) -> str | bytes:
        self.xs.request(self.conn, Message(kind, 1, tx_id, path.encode() + b"\0" + raw))
        output = self.conn.output()
        self.conn.sent(len(output))
        self.decoder.feed(output)
        reply = self.decoder.next_message()
        assert reply is not None
        assert self.decoder.rest == b""
        return reply.payload[:-1].decode() if reply.type == XsType.ERROR else reply.payload

    def outside(self) -> None:
        for transaction in self.open:
            transaction.nr_changes_outside += 1

    # --- directly

    @rule(path=PATHS, value=VALUES)
    def write(self, path: str, value: bytes) -> None:
        assert self.ask(XsType.WRITE, path, value) == self.model.write(path, value)
        self.outside()

    @rule(path=PATHS)
    def mkdir(self, path: str) -> None:
        if path not in self.model.nodes:
            self.outside()
        assert self.ask(XsType.MKDIR, path) == self.model.mkdir(path)

    @rule(path=PATHS)
    def rm(self, path: str) -> None:
        if path in self.model.nodes:
            self.outside()
        assert self.ask(XsType.RM, path) == self.model.rm(path)

    @rule(path=PATHS | st.just("/"))
    def look(self, path: str) -> None:
        assert self.ask(XsType.READ, path) == self.model.read(path)
        listed = self.ask(XsType.DIRECTORY, path)
        assert self.names(listed) == self.model.directory(path)

    def names(self, listed: str | bytes) -> str | set[str]:
        return listed if isinstance(listed, str) else set(listed.decode().split("\0")) - {""}

    # --- in a transaction

    @rule(target=transactions)
    def start(self) -> ModelTransaction:
        reply = self.ask(XsType.TRANSACTION_START, "")
        assert isinstance(reply, bytes)
        transaction = ModelTransaction(int(reply[:-1]), self.model.nodes)
        self.open.append(transaction)
        return transaction

    @rule(tx=transactions, kind=st.sampled_from(["write", "mkdir", "rm", "read"]), path=PATHS, value=VALUES)
    def inside(self, tx: ModelTransaction, kind: str, path: str, value: bytes) -> None:
        raw = value if kind == "write" else b""
        reply = self.ask(XsType[kind.upper()], path, raw, tx.tx_id)
        arguments = (path, value) if kind == "write" else (path,)
        expected = getattr(tx.tree, kind)(*arguments)
        if not tx.nr_changes_outside:  # else it may see some of the changes, and will lose for it
            assert reply == expected
        tx.log.append((kind, path, value))

    @rule(tx=consumes(transactions))
    def forget(self, tx: ModelTransaction) -> None:
        assert self.ask(XsType.TRANSACTION_END, "F", tx_id=tx.tx_id) == b"OK\0"
        self.open.remove(tx)

    @rule(tx=consumes(transactions))
    def commit(self, tx: ModelTransaction) -> None:
        """It wins when nobody interfered. When it wins though others changed something, then as if it had
        happened now, all at once.
        """
        reply = self.ask(XsType.TRANSACTION_END, "T", tx_id=tx.tx_id)
        self.open.remove(tx)
        if reply == "EAGAIN":
            assert tx.nr_changes_outside
            return
        assert reply == b"OK\0"
        for kind, path, value in tx.log:
            if kind == "write":
                self.model.write(path, value)
            elif kind != "read":
                getattr(self.model, kind)(path)
        if any(kind != "read" for kind, *_ in tx.log):
            self.outside()

    # --- always

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "xs"):
            return
        store = self.xs.store
        assert {path.decode(): node.value for path, node in store.nodes.items()} == self.model.nodes
        assert check(store) == []

    @invariant()
    def journal_makes_the_same_tree(self) -> None:
        if not hasattr(self, "xs"):
            return
        self.operations += self.journal._operations
        self.journal._operations.clear()
        for operations in (self.operations, snapshot(self.xs, {})):
            copy = Xenstore()
            Restorer(copy).run(operations)
            assert state(copy) == state(self.xs)


def state(xs: Xenstore) -> object:
    return {path: (node.value, node.perms, list(node.children)) for path, node in xs.store.nodes.items()}


StoreMachine.TestCase.settings = settings(stateful_step_count=40)
TestStore = StoreMachine.TestCase
