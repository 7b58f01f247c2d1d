"""Console, control nodes, and what domu.run does before a guest exists."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from domu.domain import ShutdownReason
from domu.frontends.console import BUFFER_BYTES, Console, ConsoleFile
from domu.run import BadGuest, load, source_files
from hyper.guest import Port
from hyper.guest.rings import ConsoleRing
from hyper.public.errors import leaves
from tests.paper_domain import DOMID, paper_host
from tests.paper_ports import pair


async def test_console() -> None:
    page = memoryview(bytearray(4096))
    ours, theirs = pair()
    console, dom0 = Console(page, cast(Port, ours)), ConsoleRing(page)
    lines = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.run)
        console.print("hello", 1, end="!\n")
        assert dom0.read_output(100) == b"hello 1!\r\n"
        print("x" * 5000, file=ConsoleFile(console), end="")
        with trio.move_on_after(0.01) as scope:
            await console.drain()
        assert scope.cancelled_caught
        got = b""
        while len(got) < 5000:
            got += dom0.read_output(4096)
            theirs.notify()
            await trio.testing.wait_all_tasks_blocked()
        await console.drain()
        dom0.write_input(b"ab\x7fc\rline two\n")
        theirs.notify()
        lines = [await console.readline(), await console.readline()]
        assert dom0.read_output(100) == b"ab\b \bc\r\nline two\r\n"
        console.echo = False
        dom0.write_input(b"secret\n")
        theirs.notify()
        assert await console.readline() == "secret"
        assert dom0.read_output(100) == b""
        console.write("y" * (BUFFER_BYTES + 100))
        assert console.nr_lost == 100
        nursery.cancel_scope.cancel()
    assert lines == ["ac", "line two"]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ("poweroff", ShutdownReason.POWEROFF),
        ("halt", ShutdownReason.POWEROFF),
        ("reboot", ShutdownReason.REBOOT),
    ],
)
async def test_shutdown_requests(tmp_path: Path, request_: str, reason: ShutdownReason) -> None:
    async with paper_host(tmp_path) as host:
        node = f"/local/domain/{DOMID}/control/shutdown"
        for name in ("shutdown", "feature-poweroff", "feature-reboot"):
            await host.dom0.write(f"/local/domain/{DOMID}/control/{name}", "")
            await host.dom0.set_perms(f"/local/domain/{DOMID}/control/{name}", [f"n{DOMID}"])

        async def ask() -> None:
            for word in ("suspend", "nonsense", request_):
                await host.dom0.write(node, word)
                while await host.dom0.read(node):
                    await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            assert await host.domain.wait_shutdown() is reason
        assert await host.dom0.read(f"/local/domain/{DOMID}/control/feature-reboot") == "1"


def test_guests_are_found_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some_guest.py"
    path.write_text("async def main(domain): pass\nasync def other(domain): return 5\nnot_one = 3\n")
    assert source_files(f"{path}:other") == [path]
    assert load(f"{path}:other").__name__ == "other"
    assert load(str(path)).__name__ == "main"
    with pytest.raises(BadGuest, match="has no function 'not_one'"):
        load(f"{path}:not_one")
    with pytest.raises(BadGuest, match="no such file"):
        source_files("/nowhere/x.py")
    for name in ("no_such_module_at_all", "not a name", "../x"):
        with pytest.raises(BadGuest, match="no module named"):
            source_files(name)
    package = tmp_path / "a_package_of_guests"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert source_files("a_package_of_guests.inner:main") == [package]  # not imported to find it
    with pytest.raises(SystemExit, match="imported"):
        load("a_package_of_guests.inner")
    sys.modules.pop("some_guest")


def test_leaves() -> None:
    inner = ValueError("x")
    group = BaseExceptionGroup("a", [ExceptionGroup("b", [inner]), SystemExit(1)])
    assert [type(leaf) for leaf in leaves(group)] == [ValueError, SystemExit]
    assert leaves(inner) == [inner]
