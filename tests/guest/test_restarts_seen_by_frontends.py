"""Backends killed under a frontend that counts: each request is answered once, and no state changes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from domu.frontends import blkfront
from domu.guests import ip
from tests.toolstack_kit import toolstack
from toolstack.lab.host import Host

pytestmark = pytest.mark.timeout(120)

KILLS = 2
"""More in ten seconds, and the supervisor waits before it starts a daemon again."""
WRITERS = 8
REGION = 256
"""Sectors of each writer."""


@pytest.mark.parametrize("persistent", [True, False])
async def test_a_disk_while_blkback_is_killed(host: Host, tmp_path: Path, persistent: bool) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(WRITERS * REGION * 512)
    last: dict[int, bytes] = {}
    done = False

    async def work(disk: blkfront.Disk, number: int) -> None:
        source = random.Random(number)
        rounds = 0
        while not done or rounds < 3:
            data = source.randbytes(source.randrange(1, REGION) * 512)
            await disk.write(number * REGION, data)
            assert await disk.read(number * REGION, len(data) // 512) == data
            last[number] = data
            rounds += 1

    async with toolstack(host.paths) as dom0, dom0.guest() as guest, dom0.vbd(guest, image):
        options = blkfront.Options(queues=2, persistent=persistent)
        async with guest.domain.disk("xvda", options) as disk:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for number in range(WRITERS):
                        nursery.start_soon(work, disk, number)
                    for _ in range(KILLS):
                        await trio.sleep(0.1)
                        await trio.to_thread.run_sync(host.kill_daemon, "blkback")
                    done = True
            await disk.flush()
            assert [queue.nr_strays for queue in disk.queues] == [0, 0]
            assert disk.statistics().errors == 0 and disk.statistics().in_flight == 0
            assert await disk.bus.read("state") == "4"
    for number, data in last.items():
        assert image.read_bytes()[number * REGION * 512 :][: len(data)] == data


async def test_ping_while_netback_is_killed(host: Host) -> None:
    """Frames may be lost, as on any wire; the card stays and the next ones arrive."""
    async with (
        toolstack(host.paths) as dom0,
        dom0.guest() as one,
        dom0.guest() as two,
        dom0.vif(one, "00:16:3e:67:00:01"),
        dom0.vif(two, "00:16:3e:67:00:02"),
        one.domain.nic() as first,
        two.domain.nic() as second,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(ip.serve, second, ip.Host(second.mac, "10.9.8.2"))
        us = ip.Host(first.mac, "10.9.8.1")
        for _ in range(KILLS):
            with trio.fail_after(20):
                for _ in range(20):
                    await ip.ping(first, us, "10.9.8.2", bytes(1200))
            await trio.to_thread.run_sync(host.kill_daemon, "netback")
        with trio.fail_after(20):
            await ip.ping(first, us, "10.9.8.2")
        assert await first.bus.read("state") == "4"
        nursery.cancel_scope.cancel()
