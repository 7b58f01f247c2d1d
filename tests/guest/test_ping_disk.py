"""examples/ping_disk.cfg: reads a disk, answers ping."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path

import pytest
import trio

from domu.guests import ip
from tests.toolstack_kit import toolstack
from toolstack.lab.guest import Guest
from toolstack.lab.host import Host

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.timeout(120)
async def test_the_example(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "disk.img"
    data = random.Random(1).randbytes(4 << 20)
    image.write_bytes(data)
    monkeypatch.chdir(EXAMPLES.parent)
    host.xm("create", "examples/ping_disk.cfg", f"image={image}")
    guest = Guest(host, "ping-disk")
    try:
        expect = guest.console.expect
        await trio.to_thread.run_sync(expect, f"sha256 {hashlib.sha256(data).hexdigest()}")
        found = await trio.to_thread.run_sync(expect, re.compile(r"eth0: (\S+), answering ping"))
        address = found.groups[0]
        assert address is not None and address.startswith("10.0.2.")
        async with (
            toolstack(host.paths) as dom0,
            dom0.guest() as other,
            dom0.vif(other, "00:16:3e:77:00:01"),
            other.domain.nic() as nic,
        ):
            with trio.fail_after(30):
                us = ip.Host(nic.mac, (await ip.dhcp(nic)).address)
                for _ in range(10):
                    assert await ip.ping(nic, us, address, bytes(1200)) < 5
        await trio.to_thread.run_sync(guest.shutdown)
        assert guest.state() == "gone"
    finally:
        guest.destroy()
