"""`umxen stats`: a guest's counters, as a script reads them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from toolstack.lab.guest import Guest
from toolstack.lab.host import Host

pytestmark = pytest.mark.timeout(120)


def stats(host: Host, *words: str) -> str:
    command = [sys.executable, "-c", "from toolstack.lab.cli import main; main()", "stats", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=host.environment)
    return done.stdout


def test_counters_of_a_guest(guest: Guest, host: Host) -> None:
    lines = dict(line.split() for line in stats(host).splitlines())
    domain = f"d{guest.domid}"
    assert int(lines["machine.nr_domains"]) >= 2
    assert int(lines[f"{domain}.blocks"]) > 10_000
    assert int(lines[f"{domain}.instructions"]) > int(lines[f"{domain}.blocks"])
    assert int(lines[f"{domain}.memory_bytes"]) > int(lines[f"{domain}.code_bytes"]) > 1 << 20
    assert int(lines[f"{domain}.exits.system_call"]) > 1000
    before = json.loads(stats(host, "--json"))["domains"][str(guest.domid)]
    guest.run("dd if=/dev/zero of=/dev/null bs=1 count=2000")
    after = json.loads(stats(host, "--json", str(guest.domid)))["domains"][str(guest.domid)]
    assert after["exits.system_call"] - before["exits.system_call"] >= 4000
    assert all(after[name] >= count for name, count in before.items() if name != "code_bytes")
