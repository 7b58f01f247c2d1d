"""Runs the named tests of tests/unit/core/memory_tests.c under the sanitizers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.core_harness import HARNESS, compile_harness

NAMES = re.findall(r"\bT\((\w{2,})\)", (HARNESS / "memory_tests.c").read_text())


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("core") / "memory_tests"
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    return compile_harness(output, [HARNESS / "memory_tests.c"], *flags)


def test_the_list_is_complete(program: Path) -> None:
    listed = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    assert listed == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_memory(program: Path, name: str) -> None:
    result = subprocess.run([program, name], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
