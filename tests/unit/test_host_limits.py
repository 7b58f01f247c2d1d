"""Sizes a host takes, and where it keeps its sockets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hyper import limits
from hyper.guest import abi
from hyper.public import errors
from hyper.public.paths import HostPaths


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("512M", 512),
        ("512", 512),
        ("4G", 4096),
        ("1g", 1024),
        ("65MiB", 64),
        ("1T", 1 << 20),
        ("131072k", 128),
    ],
)
def test_memory(text: str, mib: int) -> None:
    assert limits.parse_memory(text) == mib << 20


@pytest.mark.parametrize("text", ["", "M", "-1G", "1.5G", "lots", "1M", "999999T", "١G"])
def test_memory_refused(text: str) -> None:
    with pytest.raises(ValueError, match="memory"):
        limits.parse_memory(text)


def test_defaults_fit_this_machine() -> None:
    assert 1 <= limits.default_cpus() <= len(os.sched_getaffinity(0))
    assert limits.default_memory() % limits.MEMORY_STEP == 0
    assert limits.default_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_cgroup_limits(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "memory/old").mkdir(parents=True)
    (tmp_path / "a/memory.max").write_text("1000\n")
    (tmp_path / "a/b/memory.max").write_text("max\n")
    (tmp_path / "memory/old/memory.limit_in_bytes").write_text("3000\n")
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    assert limits._cgroup_limits(tmp_path, own) == [1000]
    own.write_text("5:cpu,memory:/old\n4:pids:/old\n")
    assert limits._cgroup_limits(tmp_path, own) == [3000]
    assert limits._cgroup_limits(tmp_path, tmp_path / "none") == []


def test_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("UMXEN_HOST", "lab")
    paths = HostPaths.from_environment()
    assert paths.control == tmp_path / "run/umxen/lab/control"
    assert paths.console(3) == tmp_path / "run/umxen/lab/console/3.sock"
    assert paths.database == tmp_path / "state/umxen/lab/xend.sqlite"
    assert HostPaths.from_environment("other").name == "other"
    paths.create()
    paths.create()
    assert paths.runtime.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("UMXEN_HOST")
    assert HostPaths.from_environment().name == "default"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "x" * 32, "a b", "-x"])
def test_bad_host_names(name: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        HostPaths.from_environment(name)


def test_runtime_folder_must_be_ours_and_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "x" * 100)
    with pytest.raises(ValueError, match="XDG_RUNTIME_DIR"):
        HostPaths.from_environment()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "umxen").mkdir()
    (tmp_path / "umxen/default").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        HostPaths.from_environment().create()


def test_error_numbers_are_the_headers() -> None:
    in_header = dict(abi.ffi.typeof("enum xen_errno").relements)
    aliases = {"XEN_EWOULDBLOCK", "XEN_EDEADLOCK"}
    assert {f"XEN_{e.name}": e.value for e in errors.XenErrno} == {
        name: value for name, value in in_header.items() if name not in aliases
    }
    statuses = {getattr(abi.lib, name) for name in dir(abi.lib) if name.startswith("GNTST_")}
    assert set(errors.GRANT_STATUS) == statuses - {0}


def test_errors() -> None:
    error = errors.xen_error("map", 28, gref=900, nr_grants=512)
    assert isinstance(error, errors.NoFreeSlot)
    assert str(error) == "map: ENOSPC (gref=900, nr_grants=512)"
    assert not isinstance(error, OSError)
    assert type(errors.xen_error("x", 5)) is errors.XenError
    assert errors.xen_error("x", 4711).name == "E4711"
    assert errors.Busy("x").errno == errors.XenErrno.EBUSY
