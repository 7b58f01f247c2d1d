"""Random programs, translated and natively: what they leave behind is equal."""

from __future__ import annotations

import pytest

from tests.translator.conftest import Checker
from tests.translator.programs import generate

PROFILES = """integer records control strings sse x87 extended avx avx-records mixed self-modifying
    rewriting""".split()


@pytest.mark.parametrize("profile", PROFILES)
def test_programs(checker: Checker, profile: str) -> None:
    checker(lambda seed: generate(profile, seed), 300)


@pytest.mark.parametrize(
    "profile", ["faults", "straight-faults", "extended-faults", "avx-faults", "records-faults"]
)
def test_faults_are_precise(checker: Checker, profile: str) -> None:
    """Same instruction, registers, memory, error code, address; with the page repaired, the same end."""
    checker(lambda seed: generate(profile, seed), 250)


def test_each_step(checker: Checker) -> None:
    """With EFLAGS.TF the guest gets #DB after each instruction, with all flags in order."""
    checker(lambda seed: generate("traced", seed), 60, "--trace", "--runs", "2")


def test_flags_at_each_fault(checker: Checker) -> None:
    """The same with faults in between: the flags that the fault's frame shows are right, too."""
    checker(lambda seed: generate("traced-faults", seed), 60, "--trace", "--runs", "2")


@pytest.mark.parametrize(
    "profile",
    "control strings mixed records records-faults faults straight-faults avx-faults self-modifying".split(),
)
def test_disturbed_by_others(checker: Checker, profile: str) -> None:
    """Whenever the vCPU asks for the domain lock, somebody may have flushed its TLB or killed its code."""
    checker(lambda seed: generate(profile, seed), 120, "--disturb", "3")


@pytest.mark.parametrize(
    "profile", ["control", "mixed", "records-faults", "straight-faults", "self-modifying"]
)
def test_kicked_all_the_time(checker: Checker, profile: str) -> None:
    """A second thread kicks the vCPU, and once in a while somebody flushes."""
    checker(lambda seed: generate(profile, seed), 100, "--kick-us", "50", "--disturb", "30")


@pytest.mark.parametrize("profile", ["control", "mixed", "self-modifying"])
def test_a_cache_that_is_always_full(checker: Checker, profile: str) -> None:
    checker(lambda seed: generate(profile, seed), 100, "--cache-kib", "80")


SMP_OPTIONS = {
    "undisturbed": (),
    "disturbed": ("--disturb", "5"),
    "full cache": ("--cache-kib", "80"),
    "kicked": ("--kick-us", "50", "--disturb", "20"),
}


@pytest.mark.parametrize("options", SMP_OPTIONS)
@pytest.mark.parametrize("profile", ["mixed", "rewriting", "rewriting-records"])
def test_two_vcpus(checker: Checker, profile: str, options: str) -> None:
    """Two threads over the same code, each with data of its own."""
    checker(lambda seed: generate(profile, seed), 100, "--vcpus", "2", *SMP_OPTIONS[options])


@pytest.mark.parametrize("profile", ["mixed", "avx-faults", "records", "self-modifying"])
def test_under_sanitizers(sanitized_checker: Checker, profile: str) -> None:
    sanitized_checker(lambda seed: generate(profile, seed), 60)
    sanitized_checker(lambda seed: generate(profile, seed), 30, "--disturb", "3")
