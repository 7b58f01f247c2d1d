"""The lives of domains over a fake host: building, ending, what follows an end, recovery, and that nothing is
left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock, wait_all_tasks_blocked

from hyper.public.errors import NoSuchDomain
from tests.xend_fake import FakeDomain, blank_info
from tests.xend_kit import Host
from toolstack.sxp import child_value
from toolstack.xend.describe import Stranger
from toolstack.xend.errors import InvalidDomain, XendError
from toolstack.xend.model import DomainConfig
from toolstack.xend.store import CREATING, HALTED, RESTARTING, RUNNING, Record


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_create(host: Host) -> None:
    async with host.xend() as xend:
        items = (["maxmem", 96], ["vcpus", 2], ["cpus", ["0", "1"]], ["cpu_weight", 512], ["cpu_cap", 50])
        domain = await xend.create("deb", *items, unpause=False)
        found = host.hypervisor.domains[1]
        assert found.pauses == 1
        assert found.info.handle == domain.config.uuid
        assert found.spec is not None
        assert (found.spec.memory_kib, found.spec.maxmem_kib, found.spec.cmdline) == (
            65536,
            98304,
            "console=hvc0",
        )
        assert found.max_kib == 65536 + 1024
        assert found.affinity == {0: frozenset({0}), 1: frozenset({1})}
        assert (found.credit.weight, found.credit.cap) == (512, 50)
        assert host.xenstore.introduced == {1: (1001, 1)}
        nodes = host.xenstore.nodes
        assert nodes["/local/domain/1/console/ring-ref"] == "1002"
        assert nodes["/local/domain/1/vm"] == f"/vm/{domain.config.uuid}"
        record = host.records()["deb"]
        assert (record.phase, record.domid, record.start_time) == (RUNNING, 1, 1000.0)
        await xend.life.destroy(domain)
        assert host.nothing_is_left()
        assert host.records() == {}
        assert xend.names() == []


async def test_names_and_uuids_are_taken_once(host: Host) -> None:
    async with host.xend() as xend:
        await xend.create("deb", ["uuid", str(UUID(int=9))])
        with pytest.raises(XendError, match="VM name 'deb' already exists as domain 1"):
            await xend.create("deb")
        with pytest.raises(XendError, match="is already in use by 'deb'"):
            await xend.create("other", ["uuid", str(UUID(int=9))])
        with pytest.raises(XendError, match="VM name 'Domain-0' already exists as domain 0"):
            await xend.create("Domain-0")
        await xend.life.new(host.config("man"))
        with pytest.raises(XendError, match=r"VM name 'man' already exists$"):
            await xend.create("man")


async def test_finding(host: Host) -> None:
    async with host.xend() as xend:
        domain = await xend.create("deb")
        named_like_an_id = await xend.life.new(host.config("7"))
        for key in ("deb", "1", 1, str(domain.config.uuid)):
            assert await xend.life.find_any(key) is domain
        assert await xend.life.find_any(7) is named_like_an_id
        dom0 = await xend.life.find_any("Domain-0")
        assert isinstance(dom0, Stranger)
        assert (await xend.life.find_any(0)).name == "Domain-0"
        for key in ("nobody", "None", 5, "-1", "(unknown-9)", "", "१", "99999999"):
            with pytest.raises(InvalidDomain) as caught:
                await xend.life.find_any(key)
            assert str(caught.value) == str(key)


class TestFailedBuilds:
    @pytest.mark.parametrize(
        ("break_it", "text"),
        [
            (lambda host: host.kernel.unlink(), "vmlinuz: cannot be opened: No such file"),
            (lambda host: setattr(host.hypervisor, "next_domid", 1), None),
        ],
    )
    async def test_bad_kernel(self, host: Host, break_it: Callable[[Host], None], text: str | None) -> None:
        async with host.xend() as xend:
            break_it(host)
            if text is None:
                await xend.create()
                return
            with pytest.raises(XendError, match=text):
                await xend.create()
            assert host.nothing_is_left()
            assert host.records() == {}
            host.kernel.write_text("")
            await xend.create()

    async def test_no_memory(self, host: Host) -> None:
        async with host.xend() as xend:
            with pytest.raises(
                XendError, match=r"^Not enough free memory: 'big' needs 4096 MiB, 768 MiB are free$"
            ):
                await xend.life.create(["vm", ["memory", 4096], *host.config("big")[1:]])
            assert host.nothing_is_left()

    async def test_cpus_that_do_not_exist(self, host: Host) -> None:
        async with host.xend() as xend:
            with pytest.raises(XendError, match="vCPU 0 may only run on CPUs that do not exist"):
                await xend.create("deb", ["cpus", "100"])
            assert host.nothing_is_left()

    async def test_every_step_in_turn(self, host: Host) -> None:
        """Whatever fails, nothing is left; until nothing fails any more."""
        async with host.xend() as xend:
            for step in range(1, 60):
                host.calls.names.clear()
                host.calls.fail_at = step
                try:
                    domain = await xend.create("deb", ["cpu_weight", 300], ["cpus", "0"], unpause=False)
                except XendError as error:
                    assert "fault injected" in str(error)
                    assert host.nothing_is_left(), host.calls.names
                    assert host.records() == {}
                    assert xend.names() == []
                    continue
                break
            else:
                pytest.fail("it never succeeds")
            assert step > 8
            host.calls.fail_at = 0
            await xend.life.destroy(domain)
            assert host.nothing_is_left()

    async def test_destroyed_while_it_is_built(self, host: Host, autojump_clock: MockClock) -> None:
        host.hypervisor.build_seconds = 5
        async with host.xend() as xend, trio.open_nursery() as nursery:
            errors: list[str] = []

            async def create() -> None:
                try:
                    await xend.create("slow", unpause=False)
                except XendError as error:
                    errors.append(str(error))

            nursery.start_soon(create)
            await trio.sleep(1)
            assert (await xend.control.describe_all())[1][1] == ["domid", 1]
            with pytest.raises(XendError, match="Cannot set the memory of 'slow': it is being built"):
                await xend.control.set_memory("slow", 32)
            await xend.life.destroy(xend.life.find("slow"))
            assert host.nothing_is_left()
            await wait_all_tasks_blocked()
            assert errors == ["Domain 'slow' was destroyed while it was being built"]

    async def test_builds_do_not_wait_for_each_other(self, host: Host, autojump_clock: MockClock) -> None:
        host.hypervisor.build_seconds = 5
        async with host.xend() as xend:
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for name in ("a", "b", "c"):
                    nursery.start_soon(xend.create, name)
                await trio.sleep(1)
                await xend.control.describe_all()
                assert trio.current_time() - began == 1
            assert trio.current_time() - began == 5
            assert len(host.hypervisor.domains) == 4

    async def test_xend_stops_while_a_domain_is_built(self, host: Host, autojump_clock: MockClock) -> None:
        host.hypervisor.build_seconds = 50
        async with host.xend() as xend, trio.open_nursery() as nursery:
            nursery.start_soon(xend.create)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert host.nothing_is_left()
        assert host.records() == {}


class TestTeardown:
    @pytest.mark.parametrize("step", range(1, 6))
    async def test_a_step_that_fails_does_not_stop_the_others(
        self, host: Host, step: int, autojump_clock: MockClock
    ) -> None:
        async with host.xend() as xend:
            domain = await xend.create()
            host.calls.names.clear()
            host.calls.fail_at = step
            await xend.life.destroy(domain)
            assert xend.names() == []
            assert host.records() == {}
            leftovers = {path.split("/")[1] for path in host.xenstore.nodes}
            assert len(host.hypervisor.domains) - 1 + len(host.xenstore.introduced) + len(leftovers) <= 1

    async def test_an_id_that_went_to_somebody_else_is_left_alone(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create()
            found = host.hypervisor.domains[1]
            found.info = replace(found.info, handle=uuid4())
            await xend.life.destroy(domain)
            assert 1 in host.hypervisor.domains
            assert "/local/domain/1/name" in host.xenstore.nodes

    async def test_a_domain_that_stays_dying(self, host: Host, autojump_clock: MockClock) -> None:
        async def destroy(domid: int) -> None:
            found = host.hypervisor.domains[domid]
            found.info = replace(found.info, dying=True)

        async with host.xend() as xend:
            domain = await xend.create()
            host.hypervisor.domain_destroy = destroy  # type: ignore[method-assign]
            await xend.life.destroy(domain)
            assert [child_value(found, "name") for found in await xend.control.describe_all()] == [
                "(unknown-1)",
                "Domain-0",
            ]


class TestEnds:
    @pytest.mark.parametrize(
        ("reason", "key", "action", "expected"),
        [
            ("poweroff", "on_poweroff", "destroy", []),
            ("poweroff", "on_poweroff", "restart", ["deb"]),
            ("reboot", "on_reboot", "restart", ["deb"]),
            ("reboot", "on_reboot", "destroy", []),
            ("crash", "on_crash", "restart", ["deb"]),
            ("crash", "on_crash", "coredump-restart", ["deb"]),
            ("crash", "on_crash", "coredump-destroy", []),
            ("watchdog", "on_crash", "destroy", []),
        ],
    )
    async def test_actions(self, host: Host, reason: str, key: str, action: str, expected: list[str]) -> None:
        async with host.xend() as xend:
            domain = await xend.create("deb", [key, action])
            before = host.hypervisor.domains[1].info.handle
            host.now += 100
            await xend.end(domain, reason)
            assert xend.names() == expected
            if not expected:
                assert host.nothing_is_left()
                return
            assert xend.life.find("deb") is domain
            assert list(host.hypervisor.domains) == [0, 2]
            found = host.hypervisor.domains[2]
            assert (found.info.handle, found.pauses) == (before, 0)
            assert await xend.control.restart_count("deb") == 1
            assert host.xenstore.nodes[f"/vm/{before}/xend/restart_count"] == "1"
            assert not [path for path in host.xenstore.nodes if path.startswith("/local/domain/1/")]

    async def test_restarting_again_and_again(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create("deb", ["on_crash", "destroy"])
            for count in range(1, 5):
                host.now += 61
                await xend.end(domain, "reboot")
                assert await xend.control.restart_count("deb") == count
            await xend.end(domain, "crash")
            assert host.nothing_is_left()

    async def test_restarting_too_fast(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create()
            await xend.end(domain, "reboot")
            host.now += 60
            await xend.end(domain, "reboot")
            assert xend.names() == ["deb"]
            host.now += 59.9
            await xend.end(domain, "reboot")
            assert xend.names() == []

    async def test_preserve(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create("deb", ["on_crash", "preserve"])
            await xend.end(domain, "crash")
            found = await xend.control.describe("deb")
            assert (child_value(found, "state"), child_value(found, "status")) == ("-b--c-", 5)
            host.hypervisor.released()
            await wait_all_tasks_blocked()
            assert host.records()["deb"].preserved
            assert host.xenstore.nodes["/local/domain/1/xend/shutdown_completed"] == "True"
            with pytest.raises(XendError, match="cannot be shut down: it is not running"):
                await xend.control.shutdown("deb", "poweroff")
            await xend.life.destroy(domain)
            assert host.nothing_is_left()

    async def test_rename_restart(self, host: Host) -> None:
        async with host.xend() as xend:
            old = await xend.create("deb", ["on_crash", "rename-restart"])
            uuid = old.config.uuid
            host.now += 100
            await xend.end(old, "crash")
            new = xend.life.find("deb")
            assert new is not old
            assert (new.config.uuid, new.record.domid, new.record.restart_count) == (uuid, 2, 1)
            assert old.name == f"Domain-{old.config.uuid}"
            assert old.config.uuid != uuid
            assert host.xenstore.nodes["/local/domain/1/vm"] == f"/vm/{old.config.uuid}"
            assert host.xenstore.nodes[f"/vm/{old.config.uuid}/name"] == old.name
            assert {name: record.preserved for name, record in host.records().items()} == {
                "deb": False,
                old.name: True,
            }
            await xend.life.destroy(old)
            assert list(host.hypervisor.domains) == [0, 2]
            await xend.life.destroy(new)
            assert host.nothing_is_left()

    async def test_a_managed_domain_stays_known(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.life.new(host.config("man"))
            for _ in range(2):
                await xend.life.start(domain)
                with pytest.raises(XendError, match="already running"):
                    await xend.life.start(domain)
                with pytest.raises(XendError, match="not halted"):
                    xend.life.delete(domain)
                await xend.end(domain, "poweroff")
                assert host.nothing_is_left()
                assert host.records()["man"].phase == HALTED
            xend.life.delete(domain)
            assert host.records() == {}

    async def test_a_restart_that_fails(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create()
            host.now += 100
            host.kernel.unlink()
            await xend.end(domain, "reboot")
            assert host.nothing_is_left()
            assert xend.names() == []

    async def test_a_domain_that_vanishes(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create()
            await host.hypervisor.domain_destroy(1)
            await wait_all_tasks_blocked()
            assert host.nothing_is_left()
            assert xend.names() == []

    async def test_destroyed_while_it_restarts(self, host: Host, autojump_clock: MockClock) -> None:
        async with host.xend() as xend:
            domain = await xend.create()
            host.now += 100
            host.hypervisor.build_seconds = 5
            host.hypervisor.end(1, "reboot")
            await trio.sleep(1)
            assert domain.record.phase == CREATING
            await xend.life.destroy(domain)
            assert host.nothing_is_left()

    async def test_the_successor_is_destroyed_before_it_begins(
        self, host: Host, autojump_clock: MockClock
    ) -> None:
        async with host.xend() as xend:
            old = await xend.create("deb", ["on_crash", "rename-restart"])
            host.now += 100
            host.hypervisor.build_seconds = 5
            host.hypervisor.end(1, "crash")
            while old.name == "deb":
                await trio.lowlevel.checkpoint()
            with trio.fail_after(20):
                await xend.life.destroy(xend.life.find("deb"))
            await xend.life.destroy(old)
            assert host.nothing_is_left()

    async def test_suspended_is_kept(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create()
            await xend.end(domain, "suspend")
            assert domain.record.preserved


class TestRecovery:
    async def test_running_domains_are_found_again(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("deb")
            await xend.life.new(host.config("man"))
        assert list(host.hypervisor.domains) == [0, 1]
        async with host.xend() as xend:
            assert xend.names() == ["deb", "man"]
            domain = xend.life.find("deb")
            assert (domain.domid, domain.record.start_time) == (1, 1000.0)
            host.now += 100
            await xend.end(domain, "reboot")
            assert xend.life.find("deb").domid == 2

    async def test_a_domain_that_ended_meanwhile(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("deb")
            await xend.create("off")
        host.now += 100
        host.hypervisor.end(1, "reboot")
        host.hypervisor.end(2, "poweroff")
        async with host.xend() as xend:
            await wait_all_tasks_blocked()
            assert xend.names() == ["deb"]
            assert list(host.hypervisor.domains) == [0, 3]

    async def test_a_host_that_was_started_anew(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("deb")
            managed = await xend.life.new(host.config("man"))
            await xend.life.start(managed)
        host.hypervisor.domains = {0: host.hypervisor.domains[0], 1: FakeDomain(blank_info(1, uuid4(), 0))}
        host.xenstore.nodes.clear()
        async with host.xend() as xend:
            assert xend.names() == ["man"]
            assert xend.life.find("man").record.phase == HALTED
            assert 1 in host.hypervisor.domains, "it is somebody else's"

    @pytest.mark.parametrize("with_id", [True, False])
    async def test_killed_while_creating(self, host: Host, with_id: bool) -> None:
        config = DomainConfig.from_sxp(host.config())
        domid = await host.hypervisor.domain_create(config.uuid, 1)
        with host.store as store:
            store.save(Record(config, phase=CREATING, handle=config.uuid, domid=domid if with_id else None))
        async with host.xend() as xend:
            assert host.nothing_is_left()
            assert xend.names() == []
            await xend.create()

    async def test_killed_while_restarting(self, host: Host) -> None:
        config = DomainConfig.from_sxp(host.config())
        domid = await host.hypervisor.domain_create(config.uuid, 1)
        with host.store as store:
            store.save(Record(config, phase=RESTARTING, handle=config.uuid, domid=domid, restart_count=3))
        async with host.xend() as xend:
            await wait_all_tasks_blocked()
            assert list(host.hypervisor.domains) == [0, 2]
            assert await xend.control.restart_count("deb") == 4

    async def test_a_preserved_domain_stays_preserved(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create("deb", ["on_crash", "preserve"])
            await xend.end(domain, "crash")
        async with host.xend() as xend:
            await wait_all_tasks_blocked()
            assert xend.life.find("deb").record.preserved

    async def test_xenstore_knows_what_the_database_does_not(self, host: Host) -> None:
        async with host.xend() as xend:
            before = (await xend.create("deb", ["vcpus", 2], ["cpus", "0-1"])).record
        (host.folder / "db").unlink()
        async with host.xend() as xend:
            after = xend.life.find("deb").record
            assert after == before
            host.now += 100
            await xend.end(xend.life.find("deb"), "reboot")
            assert xend.life.find("deb").domid == 2

    async def test_strangers(self, host: Host) -> None:
        await host.hypervisor.domain_create(uuid4(), 2)
        host.xenstore.nodes["/local/domain/1/vm"] = "/vm/x"
        host.xenstore.nodes["/vm/x/name"] = "half"
        async with host.xend() as xend:
            assert xend.names() == []
            rows = await xend.control.describe_all()
            assert [child_value(row, "name") for row in rows] == ["(unknown-1)", "Domain-0"]
            assert child_value(await xend.control.describe("(unknown-1)"), "domid") == 1
            with pytest.raises(XendError, match=r"Cannot pause \(unknown-1\): xend does not know it"):
                await xend.control.pause(1)
            await xend.life.destroy(await xend.life.find_any("(unknown-1)"))
            assert list(host.hypervisor.domains) == [0]

    async def test_on_xend_start_and_stop(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.life.new(host.config("auto", ["on_xend_start", "start"], ["on_xend_stop", "shutdown"]))
        async with host.xend() as xend:
            await wait_all_tasks_blocked()
            assert host.hypervisor.domains[xend.life.find("auto").domid].pauses == 0
            host.xenstore.obedient = False
        assert host.xenstore.nodes["/local/domain/1/control/shutdown"] == "poweroff"


class TestControl:
    async def test_pausing_does_not_nest(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create()
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(xend.control.pause, "deb")
            assert host.hypervisor.domains[1].pauses == 1
            assert await xend.control.pause("deb") == 1
            await xend.control.unpause("deb")
            await xend.control.unpause("deb")
            assert host.hypervisor.domains[1].pauses == 0

    async def test_privileged(self, host: Host) -> None:
        async with host.xend() as xend:
            for call in (
                xend.control.pause,
                xend.control.unpause,
                lambda key: xend.control.shutdown(key, "halt"),
            ):
                with pytest.raises(XendError, match="privileged domain 0"):
                    await call(0)
            with pytest.raises(XendError, match="Cannot destroy privileged domain Domain-0"):
                await xend.life.destroy(await xend.life.find_any(0))

    async def test_memory(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("deb", ["maxmem", 128])
            await xend.control.set_memory("deb", 128)
            assert host.hypervisor.domains[1].max_kib == (128 << 10) + 1024
            assert host.xenstore.nodes["/local/domain/1/memory/target"] == str(128 << 10)
            assert host.records()["deb"].config.memory == 128
            for wrong in (0, 129, -1):
                with pytest.raises(XendError, match="must be from 1 to 128 MiB"):
                    await xend.control.set_memory("deb", wrong)
            with pytest.raises(XendError, match="must be from 128 MiB"):
                await xend.control.set_max_memory("deb", 127)
            await xend.control.set_max_memory("deb", 256)
            await xend.control.set_memory("deb", 200)
            assert host.xenstore.nodes["/local/domain/1/memory/static-max"] == str(256 << 10)

    async def test_scheduling(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create("deb", ["vcpus", 2])
            await xend.control.pin("deb", "1", "0,1")
            await xend.control.pin("deb", "all", "2")
            assert domain.config.cpus == ((2,), (2,))
            for vcpu, cpus in (("2", "0"), ("x", "0"), ("0", ""), ("0", "999")):
                with pytest.raises(XendError):
                    await xend.control.pin("deb", vcpu, cpus)
            await xend.control.set_credit("deb", 512, None)
            assert await xend.control.credit("deb") == {"weight": 512, "cap": 0}
            for weight, cap in ((0, None), (65536, None), (None, 201), (None, -1)):
                with pytest.raises(XendError, match="out of range"):
                    await xend.control.set_credit("deb", weight, cap)

    async def test_changes_to_a_halted_domain_last(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.life.new(host.config("man", ["maxmem", 128]))
            await xend.control.set_memory("man", 100)
            await xend.control.pin("man", "0", "1")
            await xend.control.set_credit("man", 300, 20)
            await xend.life.rename(domain, "other")
            assert await xend.control.credit("other") == {"weight": 300, "cap": 20}
            with pytest.raises(XendError, match="is not started"):
                await xend.control.send_sysrq("other", "s")
        async with host.xend() as xend:
            config = xend.life.find("other").config
            assert (config.memory, config.cpus, config.cpu_weight, config.cpu_cap) == (100, ((1,),), 300, 20)

    async def test_requests_to_the_guest(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create()
            host.xenstore.obedient = False
            await xend.control.shutdown("deb", "halt")
            await xend.control.send_sysrq("deb", "s")
            assert host.xenstore.nodes["/local/domain/1/control/shutdown"] == "halt"
            assert host.xenstore.nodes["/local/domain/1/control/sysrq"] == "s"
            for wrong in ("", "ss", "\n", "é"):
                with pytest.raises(XendError, match="one letter"):
                    await xend.control.send_sysrq("deb", wrong)
            with pytest.raises(XendError, match="Invalid reason: explode"):
                await xend.control.shutdown("deb", "explode")
            with pytest.raises(XendError, match="suspending a domain is not built yet"):
                await xend.control.shutdown("deb", "suspend")

    async def test_renaming(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create()
            await xend.life.new(host.config("man"))
            await xend.life.rename(domain, "web")
            await xend.life.rename(domain, "web")
            assert host.xenstore.nodes["/local/domain/1/name"] == "web"
            assert host.xenstore.nodes[f"/vm/{domain.config.uuid}/name"] == "web"
            for wrong in ("man", "", "a b", "Domain-0"):
                with pytest.raises(XendError):
                    await xend.life.rename(domain, wrong)

    async def test_lists(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("b")
            await xend.create("c", unpause=False)
            await xend.life.new(host.config("a"))
            for state, names in {
                "all": ["Domain-0", "a", "b", "c"],
                "running": ["Domain-0", "b"],
                "paused": ["c"],
                "halted": ["a"],
                "crashed": [],
            }.items():
                rows = await xend.control.describe_all(state)
                assert [child_value(row, "name") for row in rows] == names
            with pytest.raises(XendError, match="there is no state 'x'"):
                await xend.control.describe_all("x")

    async def test_vcpus(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("deb", ["vcpus", 2])
            info = await xend.control.vcpu_info("deb")
            assert [child_value(info, key) for key in ("domid", "name", "vcpu_count")] == [1, "deb", 2]
            assert len(info) == 6
            await xend.life.new(host.config("man", ["cpus", "1"]))
            assert child_value((await xend.control.vcpu_info("man"))[4], "cpumap") == [1]
            assert len(await xend.control.vcpu_info(0)) == 5


async def test_fifty_lives_leave_nothing(host: Host) -> None:
    async with host.xend() as xend:
        for _ in range(50):
            domain = await xend.create()
            await xend.life.destroy(domain)
        assert host.nothing_is_left()
        assert trio.lowlevel.current_statistics().tasks_living < 20
        with pytest.raises(NoSuchDomain):
            await host.hypervisor.getdomaininfo(50)
