"""The harness, built once, and how much to do: a few seconds by default, more with HYPOTHESIS_PROFILE=ci, and
with `deep` new seeds for UMXEN_DEEP_SECONDS (an hour) per test.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.translator import runner
from tests.translator.atoms.base import Program
from tests.translator.decoder import Decoder, build_library

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
SCALE = {"default": 1, "ci": 5}.get(PROFILE, 10)
DEEP_SECONDS = float(os.environ.get("UMXEN_DEEP_SECONDS", "3600"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deep runs have no time limit of their own."""
    for item in items:
        if PROFILE == "deep" and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness as the product is compiled."""
    return runner.build(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="session")
def sanitized_harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness and the translator's C under AddressSanitizer and UndefinedBehaviorSanitizer."""
    return runner.build(tmp_path_factory.mktemp("sanitized"), "-O1", "-fsanitize=address,undefined")


@pytest.fixture
def decoder(decoder_library: Path) -> Decoder:
    return Decoder(decoder_library)


@pytest.fixture(scope="session")
def decoder_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("decoder"))


def seeds(count: int) -> Iterator[range]:
    """Batches of seeds: one that is always the same, or new ones until the time of a deep run is over."""
    if PROFILE != "deep":
        yield range(1, 1 + count * SCALE)
        return
    start, end = time.time_ns() // 1000, time.monotonic() + DEEP_SECONDS
    while time.monotonic() < end:
        yield range(start, start + count)
        start += count


@dataclass(frozen=True)
class Checker:
    """Runs generated programs and fails with a small one."""

    harness: Path
    folder: Path

    def __call__(self, make: Callable[[int], Program], count: int, *options: str) -> None:
        """`count` programs, `make(seed)` each, scaled by the profile."""
        for batch in seeds(count):
            programs = [make(seed) for seed in batch]
            size = 500 if programs[0].align == 1 else 100  # the harness has 4 MiB for code
            for at in range(0, len(programs), size):
                self.check(programs[at : at + size], *options)

    def check(self, programs: Sequence[Program], *options: str) -> dict[str, int]:
        """These programs; returns the harness's totals."""
        outcome = runner.run(self.harness, runner.assemble(programs, self.folder), *options)
        if not outcome.ok:
            pytest.fail(runner.explain(self.harness, programs, outcome, self.folder, options), pytrace=False)
        return outcome.totals


@pytest.fixture
def checker(harness: Path, tmp_path: Path) -> Checker:
    return Checker(harness, tmp_path)


@pytest.fixture
def sanitized_checker(sanitized_harness: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checker:
    monkeypatch.setenv(
        "ASAN_OPTIONS",
        "handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0:use_sigaltstack=0:detect_leaks=0",
    )
    monkeypatch.setenv("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1")
    return Checker(sanitized_harness, tmp_path)
