"""What xend remembers: an SQLite file with one row per domain that runs or is managed.

Every call is one small transaction; with a write-ahead log and without syncing each commit it takes well
under a millisecond. A crash of the machine may lose the last of them; the guests are gone then anyway.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from toolstack import sxp
from toolstack.xend.model import DomainConfig
from toolstack.xend.processes import GuestProcess

VERSION = 2

HALTED, CREATING, RUNNING, RESTARTING = "halted", "creating", "running", "restarting"

_SCHEMA = """
CREATE TABLE domains (
    uuid TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    config TEXT NOT NULL,
    managed INTEGER NOT NULL,
    phase TEXT NOT NULL,
    domid INTEGER,
    handle TEXT,
    start_time REAL,
    store_mfn INTEGER,
    store_port INTEGER,
    console_mfn INTEGER,
    console_port INTEGER,
    restart_count INTEGER NOT NULL,
    paused_by_admin INTEGER NOT NULL,
    preserved INTEGER NOT NULL,
    process_pid INTEGER,
    process_ticks INTEGER,
    isolation TEXT
)
"""
_SINCE_1 = ("process_pid INTEGER", "process_ticks INTEGER", "isolation TEXT")
"""Columns that a file of version 1 has not."""


@dataclass
class Record:
    """A domain as it is remembered. The fields from `domid` on mean something only while it exists."""

    config: DomainConfig
    managed: bool = False
    phase: str = HALTED
    domid: int | None = None
    handle: uuid.UUID | None = None
    """The hypervisor's name for this incarnation; `config.uuid` may change while it is kept after its end."""
    start_time: float | None = None
    store_mfn: int | None = None
    store_port: int | None = None
    console_mfn: int | None = None
    console_port: int | None = None
    restart_count: int = 0
    paused_by_admin: bool = False
    preserved: bool = False
    """It has shut down and is kept for inspection."""
    process_pid: int | None = None
    process_ticks: int | None = None
    """The process of a guest written in Python, by its pid and start time."""
    isolation: str | None = None
    """What that process is confined by: `full`, or what is missing."""

    @property
    def process(self) -> GuestProcess | None:
        if self.process_pid is None or self.process_ticks is None:
            return None
        return GuestProcess(self.process_pid, self.process_ticks)


class StoreError(Exception):
    """The file cannot be used."""


class DomainStore:
    """The file at `path`; ":memory:" for none. A context manager."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._db = sqlite3.connect(self.path, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with self._transaction():
                self._db.execute(_SCHEMA)
                self._db.execute(f"PRAGMA user_version={VERSION}")
        elif version == 1:
            with self._transaction():
                for column in _SINCE_1:
                    self._db.execute(f"ALTER TABLE domains ADD COLUMN {column}")
                self._db.execute(f"PRAGMA user_version={VERSION}")
        elif version != VERSION:
            raise StoreError(f"{self.path} is of version {version}; this xend reads version {VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def load(self) -> tuple[list[Record], list[str]]:
        """All records, and the names of rows that cannot be read (they stay in the file)."""
        records, broken = [], []
        for row in self._db.execute("SELECT * FROM domains ORDER BY name"):
            try:
                records.append(_from_row(row))
            except Exception as error:  # a row of another make must not keep xend from starting
                broken.append(f"{row['name']}: {error}")
        return records, broken

    def save(self, *records: Record, old_uuid: uuid.UUID | None = None) -> None:
        """Adds records, or replaces those of the same UUID; all or none. `old_uuid` goes away with that.

        Raises: sqlite3.IntegrityError when another domain has one's name.
        """
        rows = [_to_row(record) for record in records]
        with self._transaction():
            for key in {str(old_uuid), *(row["uuid"] for row in rows)}:
                self._db.execute("DELETE FROM domains WHERE uuid = ?", (key,))
            for row in rows:
                columns, marks = ", ".join(row), ", ".join("?" * len(row))
                self._db.execute(f"INSERT INTO domains ({columns}) VALUES ({marks})", tuple(row.values()))

    def forget(self, key: uuid.UUID) -> None:
        """Removes a record, if there is one."""
        self._db.execute("DELETE FROM domains WHERE uuid = ?", (str(key),))

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> DomainStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_PLAIN = [field.name for field in fields(Record) if field.name not in ("config", "handle")]


def _to_row(record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in _PLAIN}
    row |= {name: int(row[name]) for name in ("managed", "paused_by_admin", "preserved")}
    row["handle"] = str(record.handle) if record.handle else None
    config = record.config
    return row | {
        "uuid": str(config.uuid),
        "name": config.name,
        "config": sxp.to_string(config.to_sxp()),
    }


def _from_row(row: sqlite3.Row) -> Record:
    (config,) = sxp.parse(row["config"])
    values = {name: row[name] for name in _PLAIN}
    values |= {name: bool(values[name]) for name in ("managed", "paused_by_admin", "preserved")}
    handle = uuid.UUID(row["handle"]) if row["handle"] else None
    return Record(config=DomainConfig.from_sxp(config), handle=handle, **values)
