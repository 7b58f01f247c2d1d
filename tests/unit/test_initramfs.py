"""The initramfs: the archive's format against our own reader and busybox's cpio, and what is in it."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolstack.lab import initramfs
from toolstack.lab.initramfs import CpioArchive, Entry, read_archive

BUSYBOX = shutil.which("busybox")
needs_busybox = pytest.mark.skipif(BUSYBOX is None, reason="no busybox on this machine")

names = st.from_regex(r"[A-Za-z0-9._+-]{1,40}", fullmatch=True).filter(lambda name: name not in (".", ".."))


def members(data: bytes) -> dict[str, Entry]:
    return {entry.name: entry for entry in read_archive(data)}


def test_every_kind_of_member_comes_back() -> None:
    archive = CpioArchive()
    archive.directory("tmp", 0o1777)
    archive.file("/a/b/file", b"12345", 0o640)
    archive.symlink("a/link", "b/file")
    archive.character_device("dev/console", 5, 1)
    data = archive.to_bytes()
    found = members(data)
    assert list(found) == ["tmp", "a", "a/b", "a/b/file", "a/link", "dev", "dev/console"]
    assert found["tmp"].mode == stat.S_IFDIR | 0o1777
    assert found["a/b"].mode == stat.S_IFDIR | 0o755
    assert (found["a/b/file"].mode, found["a/b/file"].data) == (stat.S_IFREG | 0o640, b"12345")
    assert (found["a/link"].mode, found["a/link"].data) == (stat.S_IFLNK | 0o777, b"b/file")
    assert (found["dev/console"].mode, found["dev/console"].device) == (stat.S_IFCHR | 0o600, (5, 1))
    assert len(data) % 512 == 0


@given(st.dictionaries(names, st.binary(max_size=300), max_size=8))
def test_any_files_come_back(files: dict[str, bytes]) -> None:
    archive = CpioArchive()
    for name, content in files.items():
        archive.file(name, content)
    assert {name: entry.data for name, entry in members(archive.to_bytes()).items()} == files


@given(st.binary(max_size=400))
def test_any_bytes_are_an_archive_or_a_value_error(data: bytes) -> None:
    try:
        list(read_archive(data))
    except ValueError:
        pass


def test_an_archive_that_is_cut_short_is_refused() -> None:
    archive = CpioArchive()
    archive.file("file", b"content")
    data = archive.to_bytes().rstrip(b"\0")
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"newc header|announced"):
            list(read_archive(data[:length]))


@pytest.mark.parametrize("name", ["", "/", "..", "a/../b", "a\0b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        CpioArchive().file(name, b"")


@needs_busybox
def test_busybox_reads_the_archive(tmp_path: Path) -> None:
    data = initramfs.build(Path(BUSYBOX or ""), files={"extra/data": b"x" * 1001})
    listed = subprocess.run([str(BUSYBOX), "cpio", "-t"], input=data, capture_output=True, check=True)
    assert listed.stdout.decode().split() == list(members(data))
    subprocess.run(
        [str(BUSYBOX), "cpio", "-idm", "extra/data"],
        input=data,
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "extra/data").read_bytes() == b"x" * 1001


@needs_busybox
def test_what_is_in_it(tmp_path: Path) -> None:
    modules = [tmp_path / "b.ko", tmp_path / "a.ko"]
    for path in modules:
        path.write_bytes(path.name.encode())
    data = initramfs.build(
        Path(BUSYBOX or ""), modules={"6.1": modules}, run="echo hi\n", files={"tool": b"#!/bin/sh"}
    )
    found = members(data)
    assert found["init"].mode == stat.S_IFREG | 0o755
    assert found["dev/console"].device == (5, 1)
    assert found["bin/busybox"].data == Path(BUSYBOX or "").read_bytes()
    for applet in ("sh", "mount", "poweroff", "insmod", "base64", "setsid", "cttyhack", "hostname"):
        assert found[f"bin/{applet}"].data == b"busybox"
    assert found["sbin/poweroff"].data == b"/bin/busybox"  # the kernel runs this on `xm shutdown`
    assert found["lib/modules/6.1/order"].data == b"b.ko a.ko\n"
    assert found["lib/modules/6.1/a.ko"].data == b"a.ko"
    assert found["run.sh"].data == b"echo hi\n"
    assert found["tool"].mode & 0o111
    assert initramfs.build(Path(BUSYBOX or "")) == initramfs.build(Path(BUSYBOX or ""))


@needs_busybox
def test_the_scripts_are_shell() -> None:
    for text in (initramfs.INIT, initramfs.PROFILE):
        subprocess.run([str(BUSYBOX), "sh", "-n"], input=text, text=True, check=True)
    first = initramfs.INIT.splitlines()[1]
    assert first == f"echo '{initramfs.MARKER}'"  # before all else: boots are timed by it


def test_a_busybox_that_is_none() -> None:
    with pytest.raises(ValueError, match="not a busybox"):
        initramfs.build(Path("/bin/false"))
