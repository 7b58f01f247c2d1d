"""The umxen command where no host comes up: help, errors, exit statuses; nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def umxen(tmp_path: Path) -> Run:
    """Runs the command with folders of its own: `umxen("up", "--host", "x")`."""
    environment = dict(os.environ)
    environment |= {
        f"XDG_{name}": str(tmp_path / name) for name in ("RUNTIME_DIR", "STATE_HOME", "CACHE_HOME")
    }
    for name in ("UMXEN_HOST", "KERNEL"):
        environment.pop(name, None)

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "toolstack.lab.cli", *words]
        return subprocess.run(
            command,
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.mark.parametrize(
    "words", [[], ["up"], ["down"], ["status"], ["demo"], ["image"], ["image", "initramfs"]]
)
def test_every_command_has_help(umxen: Run, words: list[str]) -> None:
    done = umxen(*words, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: umxen {' '.join(words)}".strip())
    assert len(done.stdout.splitlines()) > 6


def test_status_and_down_without_a_host(umxen: Run) -> None:
    status = umxen("status")
    assert (status.returncode, status.stdout) == (1, "No host is up; `umxen up` starts one.\n")
    status = umxen("status", "--host", "other")
    assert (status.returncode, status.stdout) == (1, "Host other is not up.\n")
    down = umxen("down", UMXEN_HOST="third")
    assert (down.returncode, down.stdout) == (0, "Host third was not up.\n")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["up", "--host", "../evil"], 1, "umxen: host name '../evil'"),
        (["up", "--cpus", "0"], 2, "0 is not in the range"),
        (["image", "kernel", "--flavour", "arm"], 2, "'arm' is not one of"),
        (["image", "initramfs", "--kernel", "/nonexistent"], 1, "umxen: kernel /nonexistent: No such file"),
        (["image", "initramfs", "--kernel", "/bin/true", "--add", "/nonexistent"], 1, "No such file"),
        (["demo", "--kernel", "/nonexistent"], 1, "umxen: kernel /nonexistent: No such file"),
        (["bogus"], 2, "No such command 'bogus'"),
    ],
)
def test_mistakes_are_told(umxen: Run, words: list[str], status: int, said: str) -> None:
    done = umxen(*words)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_daemon_that_does_not_start_says_why(umxen: Run, tmp_path: Path) -> None:
    done = umxen("up", "--memory", "lots")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[1].startswith("umxen: hyper exit status ")
    assert lines[-1].startswith("  hyper.log: ")
    assert not (tmp_path / "RUNTIME_DIR/umxen/default").exists()
    assert "up" not in umxen("status").stdout.split()


def test_an_initramfs_of_ones_own(umxen: Run, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo hi\n")
    out = tmp_path / "made.cpio"
    done = umxen(
        "image", "initramfs", "--kernel", "/bin/true", "--run", str(tmp_path / "script"),
        "--add", f"{tmp_path}/script:etc/mine", "-o", str(out),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    from toolstack.lab.initramfs import read_archive

    found = {entry.name: entry.data for entry in read_archive(out.read_bytes())}
    assert found["run.sh"] == found["etc/mine"] == b"echo hi\n"
