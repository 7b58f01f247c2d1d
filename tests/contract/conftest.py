"""The real core in this process, for the tests that ask it directly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hyper.machine import Machine
from tests.core_kit import Process, real_machine


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with real_machine() as machine:
        yield machine


@pytest.fixture
def dom0(machine: Machine) -> Iterator[Process]:
    """A process of Dom0. Afterwards the machine has the ports, domains and frames it had before."""
    before = machine.statistics()
    with Process(machine) as process:
        yield process
    assert machine.statistics() == before
