"""One client: a process of Dom0 on the socket, or a guest on its ring. What it has registered and what it is
owed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import accumulate, islice

from dom0.xenstored.permissions import DOM0
from dom0.xenstored.transactions import Transaction
from dom0.xenstored.watches import Watch
from hyper.public.xs_wire import HEADER, Message, XsType

CONGESTED_BYTES = 16 << 10
"""A client that leaves this much unread gets no further request served until it reads."""
MAX_OUTPUT_BYTES = 2_621_440
"""Watch events can't be held back; a client that leaves this much unread (Xen's memory quota) is cut off."""


class Connection:
    """`domid` says who asks; 0 is privileged. `journal` is set for a guest's ring, which outlives the daemon.
    """

    def __init__(self, domid: int, journal: Callable[..., None] | None = None) -> None:
        self.domid = domid
        self.target: int | None = None
        self.journal = journal
        self.watches: dict[tuple[bytes, bytes], Watch[Connection]] = {}
        self.transactions: dict[int, Transaction] = {}
        self.last_tx_id = 0
        self.closed = False
        self.output_bytes = 0
        self._output: deque[bytes] = deque()
        self._first_sent = 0  # bytes of the first message that are gone already
        self._events: set[bytes] = set()  # the watch events in _output

    @property
    def privileged(self) -> bool:
        return self.domid == DOM0

    @property
    def congested(self) -> bool:
        return self.output_bytes >= CONGESTED_BYTES

    @property
    def overflowed(self) -> bool:
        return self.output_bytes > MAX_OUTPUT_BYTES

    def reply(self, request: Message, payload: bytes) -> None:
        self._queue(HEADER.pack(request.type, request.req_id, request.tx_id, len(payload)) + payload)

    def refuse(self, request: Message, error: str) -> None:
        """`error` is one of xs_wire.ERROR_NAMES."""
        payload = error.encode() + b"\0"
        self._queue(HEADER.pack(XsType.ERROR, request.req_id, request.tx_id, len(payload)) + payload)

    def queue_event(self, payload: bytes) -> None:
        """A watch event, to be sent unless the same one still waits to be sent."""
        message = HEADER.pack(XsType.WATCH_EVENT, 0, 0, len(payload)) + payload
        if message not in self._events:
            self._events.add(message)
            self._queue(message)

    def _queue(self, message: bytes) -> None:
        if self.closed:
            return
        self._output.append(message)
        self.output_bytes += len(message)
        if self.journal:
            self.journal("queue", self.domid, message)

    def output(self, enough: int | None = None) -> bytes:
        """All that waits to be sent, or, of a long queue, at least the first `enough` bytes."""
        if not self._output:
            return b""
        if len(self._output) == 1:
            waiting = self._output[0]
        elif enough is None or self.output_bytes <= enough:
            waiting = b"".join(self._output)
        else:
            sizes = accumulate(map(len, self._output))
            needed = enough + self._first_sent
            nr_messages = next(number for number, size in enumerate(sizes, 1) if size >= needed)
            waiting = b"".join(islice(self._output, nr_messages))
        return waiting[self._first_sent :] if self._first_sent else waiting

    def sent(self, nbytes: int) -> None:
        """The first `nbytes` of output() are on their way."""
        self.output_bytes -= nbytes
        self._first_sent += nbytes
        while self._output and self._first_sent >= len(self._output[0]):
            message = self._output.popleft()
            self._first_sent -= len(message)
            self._events.discard(message)

    def restore_output(self, unsent: bytes) -> None:
        """What was owed when the daemon died; the first bytes may be the end of a message."""
        if unsent:
            self._output.append(unsent)
            self.output_bytes += len(unsent)
