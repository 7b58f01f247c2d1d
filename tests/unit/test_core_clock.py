"""Runs the named tests of tests/unit/clock/clock_tests.c under the sanitizers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "hyper" / "core"
SOURCE = ROOT / "tests" / "unit" / "clock" / "clock_tests.c"
NAMES = re.findall(r"\bT\((\w{2,})\)", SOURCE.read_text().split("#define T(name)")[1])


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("clock") / "clock_tests"
    command = "gcc -O1 -g -std=gnu11 -Wall -Wextra -fno-strict-aliasing -pthread".split()
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    for folder in (CORE, CORE.parent / "public", CORE.parent):
        command += ["-iquote", str(folder)]
    subprocess.run([*command, SOURCE, CORE / "timer.c", CORE / "time.c", "-o", output], check=True)
    return output


def test_the_list_is_complete(program: Path) -> None:
    listed = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    assert listed == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_clock(program: Path, name: str) -> None:
    result = subprocess.run([program, name], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
