"""What all tests share: hypothesis profiles, a host of one's own, and the rule that a test ends as it
began.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hyper.public.paths import HostPaths

settings.register_profile("default", max_examples=60, deadline=None)
settings.register_profile("ci", max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def host_paths(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> HostPaths:
    """Folders of a host that nobody else has; $XDG_RUNTIME_DIR and $XDG_STATE_HOME point there."""
    base = tmp_path_factory.mktemp("h")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    monkeypatch.setenv("XDG_STATE_HOME", str(base / "state"))
    monkeypatch.delenv("UMXEN_HOST", raising=False)
    paths = HostPaths.from_environment("t")
    paths.create()
    return paths


@pytest.fixture
def no_leaked_fds() -> Iterator[None]:
    """Fails when descriptors were opened and not closed."""
    before = open_fds()
    yield
    gc.collect()
    assert open_fds() == before


def open_fds() -> dict[str, str]:
    """Descriptor -> what it is."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except FileNotFoundError:
            continue  # the one that lists the folder
    return found
