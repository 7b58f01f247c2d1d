"""Root disks: what is refused, what is cached, what a failure says. The real thing boots in tests/guest."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from toolstack.lab import rootfs
from toolstack.lab.images import ImageError

# Stands in for mmdebstrap: says what it was asked, and writes the disk that the last hook would have written.
_FAKE = """#!/bin/sh
echo "$@" >> {log}
echo 'I: working' >&2
for hook; do
    image=$(printf '%s' "$hook" | sed -n 's/^.*export image=//p')
    [ -n "$image" ] && {disk}
done
exit {status}
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that puts such a mmdebstrap first in PATH; returns the file with its command lines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log, tools = tmp_path / "log", tmp_path / "tools"
    tools.mkdir()
    log.touch()

    def install(disk: str = 'printf disk > "$image"', status: int = 0) -> Path:
        script = tools / "mmdebstrap"
        script.write_text(_FAKE.format(log=log, disk=disk, status=status))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        return log

    return install


def test_one_installation_serves_all_disks_of_a_kind(fake, tmp_path: Path) -> None:
    log = fake()
    first = rootfs.debian_disk(tmp_path / "one.img", include=["fio", "gdb"])
    second = rootfs.debian_disk(tmp_path / "two.img", include=["gdb", "fio"])
    assert first.read_text() == second.read_text() == "disk"
    assert stat.S_IMODE(first.stat().st_mode) == 0o644
    assert len([line for line in log.read_text().splitlines() if "--variant" in line]) == 1
    rootfs.debian_disk(tmp_path / "three.img", include=["fio"])
    assert len([line for line in log.read_text().splitlines() if "--variant" in line]) == 2


def test_a_failed_installation_tells_why_and_leaves_nothing(fake, tmp_path: Path) -> None:
    fake(disk="echo 'E: Unable to locate package nonsense' >&2", status=25)
    with pytest.raises(ImageError, match="Unable to locate package nonsense"):
        rootfs.debian_disk(tmp_path / "disk.img", include=["nonsense"])
    assert not (tmp_path / "disk.img").exists()
    assert list((tmp_path / "cache" / "umxen" / "rootfs").iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"release": "Woody; rm"}, "is no release of Debian"),
        ({"include": ["a b"]}, "is no package of Debian"),
        ({"size_mib": 1}, "256 to"),
    ],
)
def test_what_is_refused(asked, text: str, fake, tmp_path: Path) -> None:
    fake()
    with pytest.raises(ImageError, match=text):
        rootfs.debian_disk(tmp_path / "disk.img", **asked)


def test_a_missing_tool_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "_path", lambda: str(tmp_path))
    with pytest.raises(ImageError, match="apt-get install mmdebstrap"):
        rootfs.debian_disk(tmp_path / "disk.img")


def test_a_folder_that_is_not_there(fake, tmp_path: Path) -> None:
    fake()
    with pytest.raises(ImageError, match="cannot write"):
        rootfs.debian_disk(tmp_path / "nowhere" / "disk.img")
