"""Guests written in Python, in processes of their own: their lives, and that they cannot get out."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path

import pytest
import trio

from dom0.libxc.info import DomainInfo
from hyper.public.errors import NoSuchDomain
from tests.toolstack_kit import Running, Toolstack, toolstack
from toolstack.lab.console import Console
from toolstack.lab.host import Host

pytestmark = pytest.mark.timeout(120)

GUESTS = Path(__file__).parent / "guests"
MODES = {"namespaces": ("isolation: full", ()),
         "no namespaces": ("isolation: fault isolation only (not wanted)", ("--no-namespaces",))}  # fmt: skip
CRASHED, POWEROFF, REBOOT = 3, 0, 1


@pytest.fixture
def guest_file(tmp_path: Path) -> str:
    path = tmp_path / "a_guest.py"
    path.write_text(
        "import trio\n"
        "async def main(domain):\n"
        "    print('words', *domain.words)\n"
        "    if 'wait' in domain.words:\n"
        "        try:\n"
        "            await trio.sleep_forever()\n"
        "        finally:\n"
        "            print('the end')\n"
        "    if 'fail' in domain.words:\n"
        "        raise ValueError('on purpose')  # this line is shown\n"
        "    while 'spin' in domain.words:\n"
        "        pass\n"
        "    if 'echo' in domain.words:\n"
        "        print('got', await domain.console.readline())\n"
    )
    return str(path)


async def shut_down(dom0: Toolstack, guest: Running) -> DomainInfo:
    """Once the guest's process has ended."""
    while guest.process.poll() is None:
        await trio.sleep(0.01)
    return await dom0.xc.getdomaininfo(guest.domid)


def console(host: Host, guest: Running) -> closing[Console]:
    return closing(Console(host.paths.console(guest.domid)))


async def wait_ready(guest: Running) -> None:
    lines = await trio.to_thread.run_sync(guest.lines)
    assert lines == ["isolation: full", "ready"]


async def test_poweroff_and_words(host: Host, guest_file: str) -> None:
    async with toolstack(host.paths) as dom0, dom0.run(guest_file, "a", "b") as guest:
        with trio.fail_after(30):
            info = await shut_down(dom0, guest)
        assert (guest.process.returncode, info.shutdown, info.shutdown_reason) == (0, True, POWEROFF)
        with console(host, guest) as screen:
            await trio.to_thread.run_sync(screen.expect, "words a b")


async def test_a_crash_is_told_on_the_console(host: Host, guest_file: str) -> None:
    async with toolstack(host.paths) as dom0, dom0.run(guest_file, "fail") as guest:
        with trio.fail_after(30):
            info = await shut_down(dom0, guest)
        assert (guest.process.returncode, info.shutdown, info.shutdown_reason) == (1, True, CRASHED)
        with console(host, guest) as screen:
            await trio.to_thread.run_sync(screen.expect, "# this line is shown")
            await trio.to_thread.run_sync(screen.expect, "ValueError: on purpose")


@pytest.mark.parametrize("how", ["poweroff", "reboot", "SIGTERM"])
async def test_it_is_asked_to_end(host: Host, guest_file: str, how: str) -> None:
    async with toolstack(host.paths) as dom0, dom0.run(guest_file, "wait") as guest:
        with trio.fail_after(30), console(host, guest) as screen:
            await trio.to_thread.run_sync(screen.expect, "words wait")
            if how == "SIGTERM":
                guest.process.send_signal(signal.SIGTERM)
            else:
                await dom0.xs.write(f"/local/domain/{guest.domid}/control/shutdown", how)
            info = await shut_down(dom0, guest)
            await trio.to_thread.run_sync(screen.expect, "the end")
        reason = REBOOT if how == "reboot" else POWEROFF
        assert (guest.process.returncode, info.shutdown_reason) == (0, reason)


async def test_a_killed_process_is_a_crash(host: Host, guest_file: str) -> None:
    async with toolstack(host.paths) as dom0, dom0.run(guest_file, "spin") as guest:
        with trio.fail_after(30):
            await wait_ready(guest)
            guest.process.kill()
            await shut_down(dom0, guest)
            while not (info := await dom0.xc.getdomaininfo(guest.domid)).shutdown:
                await trio.sleep(0.01)
        assert info.shutdown_reason == CRASHED


async def test_a_spinning_guest_ends_with_its_domain(host: Host, guest_file: str) -> None:
    """Nobody may know the process any more: a guest that never looks at its connection used to live on."""
    async with toolstack(host.paths) as dom0, dom0.run(guest_file, "spin") as guest:
        with trio.fail_after(30):
            await wait_ready(guest)
            await dom0.xc.domain_destroy(guest.domid)
            with pytest.raises(NoSuchDomain):
                await shut_down(dom0, guest)


async def test_what_is_typed(host: Host, guest_file: str) -> None:
    async with toolstack(host.paths) as dom0, dom0.run(guest_file, "echo") as guest:
        with trio.fail_after(30), console(host, guest) as screen:
            await trio.to_thread.run_sync(screen.expect, "words echo")
            screen.send_line("abcd\x7fe")
            await trio.to_thread.run_sync(screen.expect, "got abce")


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("/nowhere/at_all.py", "no such file"),
        ("no_such_module", "no module named 'no_such_module'"),
        (f"{GUESTS}/escape.py:nothing", "has no function 'nothing'"),
    ],
)
async def test_guests_that_are_none(host: Host, spec: str, why: str) -> None:
    async with toolstack(host.paths) as dom0, dom0.run(spec) as guest:
        with trio.fail_after(30):
            lines = await trio.to_thread.run_sync(guest.lines)
            assert lines[-1].startswith("failed: ") and why in lines[-1]
            assert "ready" not in lines
            assert await trio.to_thread.run_sync(guest.process.wait) == 2


@pytest.mark.parametrize("mode", MODES)
async def test_a_guest_cannot_get_out(host: Host, mode: str) -> None:
    """Files, processes, sockets, other domains' memory, grants, ports and nodes: all are refused."""
    first, options = MODES[mode]
    state = host.state()
    assert state is not None
    pids = ",".join(str(daemon.pid) for daemon in state.daemons[:3]) + f",{os.getpid()}"
    async with toolstack(host.paths) as dom0, dom0.guest() as victim:
        words = (f"pids={pids}", f"runtime={host.paths.runtime}", f"victim={victim.domid}")
        gref = victim.domain.memory.share(1, 0).grefs[0]
        assert gref >= 8
        async with dom0.run(str(GUESTS / "escape.py"), *words, options=options) as guest:
            with trio.fail_after(60):
                lines = await trio.to_thread.run_sync(guest.lines)
                assert lines == [first, "ready"]
                with console(host, guest) as screen:
                    found = await trio.to_thread.run_sync(screen.expect, "escape done")
                await shut_down(dom0, guest)
        assert guest.process.returncode == 0, screen.text
        tried = [line for line in found.before.splitlines() if line.startswith("escape ")]
        assert len(tried) > 500
        open_doors = [line for line in tried if " refused " not in line]
        assert open_doors == []
        assert await dom0.xs.read(f"/local/domain/{victim.domid}/name") == f"guest{victim.domid}"
