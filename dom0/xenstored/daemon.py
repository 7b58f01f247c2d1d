"""Between the pure Xenstore and its clients: after each piece of work, write it down, then let it be seen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from dom0.xenstored.connection import Connection
from dom0.xenstored.journal import Journal, Operation, new_file
from dom0.xenstored.restart import RingState, snapshot
from dom0.xenstored.xenstore import Xenstore


class Channel(Protocol):
    """Where a connection's bytes go."""

    def flush(self) -> None:
        """Sends what can be sent now, and sees to the rest. Never blocks, never raises."""


class RingChannel(Channel, Protocol):
    def state(self) -> RingState: ...

    async def stop(self) -> None:
        """close(), and waits until it is done."""

    def close(self) -> None:
        """The ring is let go as soon as its task gets to run. What the connection is still owed is dropped.
        """


class Daemon:
    """Holds the state and who listens. All of it runs in one task at a time; only what is `async` lets others
    in.
    """

    def __init__(self, xs: Xenstore, journal: Journal | None = None) -> None:
        self.xs = xs
        self.journal = journal
        self.channels: dict[Connection, Channel] = {}
        self.rings: dict[int, RingChannel] = {}
        self._compact = trio.Event()

    def settle(self) -> None:
        """Ends a piece of work: writes the journal, then sends replies and events.

        Raises: JournalError. The daemon must end.
        """
        xs = self.xs
        while xs.with_output or xs.released:
            if self.journal:
                self.journal.commit()
                if self.journal.due:
                    self._compact.set()
            waiting, xs.with_output = xs.with_output, {}
            for conn in waiting:
                if channel := self.channels.get(conn):
                    channel.flush()
            released, xs.released = xs.released, []
            for domid in released:
                if ring := self.rings.pop(domid, None):
                    ring.close()
        if self.journal:
            self.journal.commit()

    def forget(self, conn: Connection) -> None:
        """The client has gone, or is cut off."""
        self.channels.pop(conn, None)
        if not conn.closed:
            self.xs.disconnect(conn)
            self.settle()

    def ring_states(self) -> dict[int, RingState]:
        return {domid: ring.state() for domid, ring in self.rings.items()}

    def snapshot(self) -> list[Operation]:
        return snapshot(self.xs, self.ring_states())

    async def keep_journal_short(self, put: Callable[[int], Awaitable[None]]) -> None:
        """Compacts the journal whenever it is due. `put` gives hyper the new file."""
        journal = self.journal
        assert journal is not None
        while True:
            await self._compact.wait()
            self._compact = trio.Event()
            journal.commit()  # what the snapshot holds must not come again behind it
            old = journal.files[0]
            fd, nbytes = new_file(self.snapshot())
            journal.begin(fd, nbytes)
            await put(fd)
            journal.end(old)
