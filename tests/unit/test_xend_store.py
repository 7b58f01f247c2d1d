"""The database of xend."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from toolstack.xend.__main__ import open_store
from toolstack.xend.model import DomainConfig, Image
from toolstack.xend.store import RUNNING, DomainStore, Record, StoreError


def record(name: str, **fields: object) -> Record:
    return Record(DomainConfig(name, uuid4(), Image("/k")), **fields)  # type: ignore[arg-type]


FULL = Record(
    DomainConfig("full", UUID(int=5), Image("/k", "/r", "a 'b'"), memory=256, maxmem=512, cpus=((0, 1),)),
    managed=True, phase=RUNNING, domid=7, handle=UUID(int=6), start_time=1.25, store_mfn=1, store_port=2,
    console_mfn=3, console_port=4, restart_count=5, paused_by_admin=True, preserved=True,
)  # fmt: skip


def test_records_come_back(tmp_path: Path) -> None:
    empty = record("empty")
    with DomainStore(tmp_path / "db") as store:
        store.save(FULL)
        store.save(empty)
        store.save(FULL)
    with DomainStore(tmp_path / "db") as store:
        assert store.load() == ([empty, FULL], [])
        store.forget(empty.config.uuid)
        store.forget(uuid4())
        assert store.load() == ([FULL], [])


def test_names_are_unique() -> None:
    with DomainStore(":memory:") as store:
        store.save(record("a"))
        with pytest.raises(sqlite3.IntegrityError):
            store.save(record("a"))
        assert len(store.load()[0]) == 1


def test_a_domain_and_its_successor_change_places_at_once() -> None:
    with DomainStore(":memory:") as store:
        old = record("a")
        store.save(old)
        before = old.config
        old.config = before.changed(name="Domain-x", uuid=uuid4())
        successor = Record(before)
        store.save(old, successor, old_uuid=before.uuid)
        assert store.load() == ([old, successor], [])


def test_a_row_that_cannot_be_read_stays(tmp_path: Path) -> None:
    with DomainStore(tmp_path / "db") as store:
        store.save(record("a"))
        store.save(record("b"))
    db = sqlite3.connect(tmp_path / "db")
    db.execute("UPDATE domains SET config = '(nonsense' WHERE name = 'a'")
    db.commit()
    db.close()
    with DomainStore(tmp_path / "db") as store:
        records, broken = store.load()
        assert [found.config.name for found in records] == ["b"]
        assert broken[0].startswith("a: line 1")


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    DomainStore(tmp_path / "db").close()
    db = sqlite3.connect(tmp_path / "db")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match="is of version 99"):
        DomainStore(tmp_path / "db")


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "xend.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with open_store(path) as store:
        store.save(record("a"))
    (aside,) = tmp_path.glob("xend.sqlite.damaged-*")
    assert aside.read_bytes().startswith(b"this is no database")
