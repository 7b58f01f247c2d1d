"""blkback's queues under the sanitizers: named tests of tests/unit/blkback, rings full of nonsense."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / "tests" / "unit" / "blkback"
BLKBACK = ROOT / "backends" / "blkback"
NAMES = re.findall(r"\bT\((\w+)\),", (HARNESS / "queue_tests.c").read_text())
RINGS = {"ci": 4000, "deep": 200_000}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 200)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("blkback") / "queue_tests"
    sources = [*HARNESS.glob("*.c"), *BLKBACK.glob("[!_]*.c"), ROOT / "hyper" / "guest" / "hcall.c"]
    command = [
        "gcc",
        "-g",
        "-O1",
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fno-strict-aliasing",
        "-pthread",
    ]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    for folder in (BLKBACK, ROOT / "hyper" / "public", ROOT / "hyper" / "guest", HARNESS):
        command += ["-iquote", str(folder)]
    subprocess.run([*command, *map(str, sources), "-o", str(output)], check=True)
    return output


def run(program: Path, *words: str) -> None:
    result = subprocess.run([program, *words], capture_output=True, text=True, timeout=3000)
    assert result.returncode == 0, result.stderr.rpartition("\r")[2]


@pytest.mark.parametrize("name", NAMES)
def test_queue(program: Path, name: str) -> None:
    run(program, name)


def test_the_list_is_complete(program: Path) -> None:
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout.split() == NAMES


@pytest.mark.timeout(3000)
def test_rings_full_of_nonsense(program: Path) -> None:
    """Any ring contents give responses or a queue that says why it stops, never a touch outside granted
    frames or the image.
    """
    run(program, "fuzz", "1", str(RINGS))
