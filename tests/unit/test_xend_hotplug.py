"""Devices that come and go, over a fake host: with the domain, while it runs, by force, under a xend that is
killed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.xend_kit import Host
from toolstack import sxp
from toolstack.sxp import Sxp, child_value
from toolstack.xend.devices.vbd import Vbd
from toolstack.xend.devices.vif import Vif
from toolstack.xend.errors import InvalidDomain, XendError
from toolstack.xend.store import HALTED

MAC = "00:16:3e:00:00:01"
DISK: list[Sxp] = ["vbd", ["uname", "file:/a"], ["dev", "xvda"], ["mode", "w"]]
OTHER: list[Sxp] = ["tap", ["uname", "tap:qcow2:/b"], ["dev", "xvdb"], ["mode", "w"]]
CDROM: list[Sxp] = ["vbd", ["uname", "file:/iso"], ["dev", "xvdd:cdrom"], ["mode", "r"]]
CARD: list[Sxp] = ["vif", ["mac", MAC], ["bridge", "lan"]]
BACKEND = "/local/domain/0/backend/vbd/1/51712"


def device(*items: Any) -> list[Sxp]:
    return ["device", list(items)]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def devids(host: Host, domid: int = 1) -> set[str]:
    """What is plugged in: `vbd/51712`."""
    parts = [path.split("/") for path in host.xenstore.nodes if path.startswith("/local/domain/0/backend/")]
    return {f"{path[5]}/{path[7]}" for path in parts if len(path) == 8 and path[6] == str(domid)}


class TestWithTheDomain:
    async def test_create_and_destroy(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create("deb", device(*DISK), device(*CARD), device("vif"), unpause=False)
            await xend.hotplug.wait("deb")
            assert devids(host) == {"vbd/51712", "vif/0", "vif/1"}
            described = await xend.control.describe("deb")
            (disk, first, second) = (item[1] for item in sxp.children(described, "device"))
            assert [child_value(disk, name) for name in ("dev", "uname", "mode", "bootable", "backend")] == [
                "xvda:disk", "file:/a", "w", 1, 0,
            ]  # fmt: skip
            assert [child_value(first, name) for name in ("mac", "bridge", "devid")] == [MAC, "lan", 0]
            assert child_value(second, "mac").startswith("00:16:3e:")
            await xend.life.destroy(domain)
            assert host.nothing_is_left()

    async def test_a_backend_that_refuses(self, host: Host) -> None:
        host.xenstore.backends.refuse["/a"] = "/a: No such file or directory"
        async with host.xend() as xend:
            domain = await xend.create("deb", device(*DISK), device(*OTHER), unpause=False)
            with pytest.raises(XendError) as caught:
                await xend.hotplug.wait("deb")
            assert str(caught.value) == (
                "Device 51712 (vbd) could not be connected. xvda: /a: No such file or directory"
            )
            await xend.life.destroy(domain)
            assert host.nothing_is_left()

    async def test_a_backend_that_says_nothing(self, host: Host, autojump_clock: MockClock) -> None:
        host.xenstore.backends.silent = True
        async with host.xend() as xend:
            domain = await xend.create("deb", device(*CARD), unpause=False)
            began = trio.current_time()
            with pytest.raises(XendError) as caught:
                await xend.hotplug.wait("deb")
            assert str(caught.value) == (
                "Device 0 (vif) could not be connected. netback has not answered within 10 s"
            )
            assert trio.current_time() - began == 10
            await xend.life.destroy(domain)
            assert trio.current_time() - began == 10, "nobody waits for a backend that never was there"
            assert host.nothing_is_left()

    async def test_a_backend_that_dies_holding_devices(self, host: Host, autojump_clock: MockClock) -> None:
        async with host.xend() as xend:
            domain = await xend.create("deb", device(*DISK), device(*CARD))
            host.xenstore.backends.silent = True
            began = trio.current_time()
            await xend.life.destroy(domain)
            assert trio.current_time() - began == 5
            assert host.nothing_is_left()

    async def test_addresses_last(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.life.new(host.config("a", device("vif"), device("vif")))
            domain = await xend.create("b", device("vif"), device(*DISK))
            cards = [card for known in xend.life.domains.values() for card in known.config.devices]
            macs = [card.mac for card in cards if isinstance(card, Vif)]
            assert len(set(macs)) == 3
            before = domain.config.devices
        host.now += 100
        async with host.xend() as xend:
            domain = xend.life.find("b")
            assert domain.config.devices == before
            await xend.end(domain, "reboot")
            assert domain.domid == 2
            assert domain.config.devices == before
            assert devids(host) == set() and devids(host, 2) == {"vbd/51712", "vif/0"}

    async def test_a_restart_whose_disk_is_gone(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create("deb", device(*DISK))
            host.now += 100
            host.xenstore.backends.refuse["/a"] = "gone"
            await xend.end(domain, "reboot")
            assert xend.names() == []
            assert host.nothing_is_left()

    async def test_a_domain_kept_after_its_end_gives_its_devices_up(self, host: Host) -> None:
        async with host.xend() as xend:
            old = await xend.create("deb", ["on_crash", "rename-restart"], device(*DISK), device(*CARD))
            before = old.config.devices
            host.now += 100
            await xend.end(old, "crash")
            assert xend.life.find("deb").config.devices == before
            assert old.config.devices == ()
            assert devids(host) == set() and devids(host, 2) == {"vbd/51712", "vif/0"}

    async def test_the_successor_of_a_kept_domain_whose_disk_is_gone(self, host: Host) -> None:
        async with host.xend() as xend:
            old = await xend.create("deb", ["on_crash", "rename-restart"], device(*DISK))
            host.now += 100
            host.xenstore.backends.refuse["/a"] = "gone"
            await xend.end(old, "crash")
            assert xend.names() == [old.name]

    async def test_managed_domains(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.life.new(host.config("man", device(*DISK)))
            host.xenstore.backends.refuse["/a"] = "gone"
            with pytest.raises(XendError, match="gone"):
                await xend.life.start_running(domain)
            assert domain.record.phase == HALTED
            assert host.nothing_is_left()
            host.xenstore.backends.refuse.clear()
            await xend.life.start_running(domain)
            assert host.hypervisor.domains[domain.domid].pauses == 0

    async def test_every_step_in_turn(self, host: Host, autojump_clock: MockClock) -> None:
        """Whatever fails while a domain with devices is made or unmade, another attempt leaves nothing."""
        async with host.xend() as xend:
            for step in range(1, 80):
                host.calls.names.clear()
                host.calls.fail_at = step
                try:
                    domain = await xend.create("deb", device(*DISK), device(*CARD), unpause=False)
                    await xend.hotplug.wait("deb")
                except XendError:
                    pass
                except Exception as error:
                    assert "fault injected" in str(error)
                if host.calls.fail_at > len(host.calls.names):
                    break
                for domain in list(xend.life.domains.values()):
                    host.calls.fail_at = 0
                    await xend.life.destroy(domain)
                assert host.nothing_is_left(), step
            else:
                pytest.fail("it never succeeds")
            assert step > 7


class TestAttaching:
    async def test_attach_and_detach(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK))
            made = await xend.hotplug.attach("deb", OTHER)
            assert made[0] == "vbd" and child_value(made, "dev") == "xvdb:disk"
            made = await xend.hotplug.attach("deb", ["device", CARD])
            assert child_value(made, "devid") == 0
            assert devids(host) == {"vbd/51712", "vbd/51728", "vif/0"}
            assert len(host.records()["deb"].config.devices) == 3
            assert await xend.hotplug.block_class("deb", "xvdb") == "vbd"
            assert await xend.hotplug.block_class("deb", "xvdz") is None
            await xend.hotplug.detach("deb", "tap", "xvdb", False, True)
            await xend.hotplug.detach("deb", "vif", MAC.upper(), False, True)
            assert devids(host) == {"vbd/51712"}
            assert [found.label for found in host.records()["deb"].config.devices] == ["xvda"]
            vm = f"/vm/{xend.life.find('deb').config.uuid}/device"
            assert [path for path in host.xenstore.nodes if path.startswith(vm)] == [f"{vm}/vbd/51712"]

    async def test_lists(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK), device(*CARD))
            await xend.hotplug.attach("deb", OTHER)
            host.xenstore.put("/local/domain/1/device/vbd/51712/queue-0/ring-ref", "7")
            host.xenstore.put("/local/domain/1/device/vbd/51712/queue-0", "")
            found = await xend.hotplug.describe("deb", "vbd")
            assert [devid for devid, _ in found] == [51712, 51728]  # type: ignore[misc, str-unpack]
            facts = dict(found[0][1])  # type: ignore[index, arg-type]
            assert facts == {
                "backend": BACKEND, "backend-id": "0", "device-type": "disk", "event-channel": "9",
                "queue-0": [["ring-ref", "7"]], "ring-ref": "8", "state": "4", "virtual-device": "51712",
            }  # fmt: skip
            ((index, facts),) = await xend.hotplug.describe("deb", "vif")  # type: ignore[misc, str-unpack]
            assert index == 0 and dict(facts)["mac"] == MAC
            assert await xend.hotplug.describe(0, "vif") == []
            await xend.life.new(host.config("man", device(*CARD), device(*DISK)))
            (((index, disk)),) = await xend.hotplug.describe("man", "tap2")  # type: ignore[misc, str-unpack]
            assert index == 0 and child_value(disk, "uname") == "file:/a"

    @pytest.mark.parametrize(
        ("expression", "part"),
        [
            (DISK, "Device xvda is already connected"),
            (["vbd", ["uname", "file:/c"], ["dev", "51712"]], "Device 51712 is already connected"),
            (["vbd", ["uname", "/c"], ["dev", "xvdc"]], "write file:/c"),
            (["vif", ["mac", "x"]], "is no MAC address"),
            (["vif", ["devid", 0]], "Device 0 is already connected"),
            (["pci"], "PCI pass-through is not built yet"),
            ([], "not built yet"),
        ],
    )
    async def test_refused(self, host: Host, expression: list[Sxp], part: str) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK), device(*CARD))
            before = dict(host.xenstore.nodes)
            with pytest.raises(XendError, match=part):
                await xend.hotplug.attach("deb", expression)
            assert host.xenstore.nodes == before

    async def test_nobody_to_attach_to(self, host: Host) -> None:
        async with host.xend() as xend:
            for key, part in ((0, "privileged domain 0"), ("nobody", "nobody")):
                with pytest.raises((XendError, InvalidDomain), match=part):
                    await xend.hotplug.attach(key, DISK)
            domain = await xend.create("deb", ["on_crash", "preserve"])
            await xend.end(domain, "crash")
            with pytest.raises(XendError, match="cannot be attached to domain 'deb': it has ended"):
                await xend.hotplug.attach("deb", DISK)
            assert devids(host) == set()

    async def test_a_backend_that_refuses(self, host: Host) -> None:
        host.xenstore.backends.refuse["/a"] = "/a is in use by domain 7"
        async with host.xend() as xend:
            await xend.create()
            before = dict(host.xenstore.nodes)
            with pytest.raises(
                XendError, match=r"^Device 51712 \(vbd\) could not .* xvda: /a is in use by dom"
            ):
                await xend.hotplug.attach("deb", DISK)
            assert devids(host) == set()
            kept = {path: value for path, value in host.xenstore.nodes.items() if value}
            assert kept == {path: value for path, value in before.items() if value}
            assert host.records()["deb"].config.devices == ()
            host.xenstore.backends.refuse.clear()
            await xend.hotplug.attach("deb", DISK)

    async def test_a_backend_that_says_nothing(self, host: Host, autojump_clock: MockClock) -> None:
        host.xenstore.backends.silent = True
        async with host.xend() as xend:
            await xend.create()
            with pytest.raises(XendError, match="blkback has not answered within 10 s"):
                await xend.hotplug.attach("deb", DISK)
            assert devids(host) == set()

    async def test_many_at_once(self, host: Host, autojump_clock: MockClock) -> None:
        async with host.xend() as xend:
            await xend.create()
            errors: list[str] = []

            async def attach(expression: list[Sxp]) -> None:
                try:
                    await xend.hotplug.attach("deb", expression)
                except XendError as error:
                    errors.append(str(error))

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(attach, DISK)
                    nursery.start_soon(attach, ["vif"])
            assert errors == ["Device xvda is already connected."] * 4
            assert devids(host) == {"vbd/51712", *(f"vif/{number}" for number in range(5))}
            cards = [card for card in xend.life.find("deb").config.devices if isinstance(card, Vif)]
            assert len({card.mac for card in cards}) == 5

    async def test_the_domain_ends_meanwhile(self, host: Host, autojump_clock: MockClock) -> None:
        host.xenstore.backends.silent = True
        async with host.xend() as xend:
            domain = await xend.create()
            async with trio.open_nursery() as nursery:
                errors: list[str] = []

                async def attach() -> None:
                    try:
                        await xend.hotplug.attach("deb", DISK)
                    except XendError as error:
                        errors.append(str(error))

                nursery.start_soon(attach)
                await trio.sleep(1)
                await xend.life.destroy(domain)
            assert errors == ["Device 51712 (vbd) could not be connected. xvda: Device not found."]
            assert host.nothing_is_left()

    async def test_fifty_times(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create()
            before = {path for path, value in host.xenstore.nodes.items() if value}
            for _ in range(50):
                await xend.hotplug.attach("deb", DISK)
                await xend.hotplug.attach("deb", CARD)
                await xend.hotplug.detach("deb", "vbd", "51712", False, True)
                await xend.hotplug.detach("deb", "vif", "0", False, True)
            await wait_all_tasks_blocked()
            assert {path for path, value in host.xenstore.nodes.items() if value} == before
            assert trio.lowlevel.current_statistics().tasks_living < 20


class TestDetaching:
    async def test_what_is_not_there(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK))
            for kind, name in (("vbd", "xvdb"), ("vif", "0"), ("vif", MAC), ("vbd", "")):
                with pytest.raises(XendError, match=f"^Device {name} not connected$"):
                    await xend.hotplug.detach("deb", kind, name, False, True)

    async def test_a_guest_that_holds_on(self, host: Host, autojump_clock: MockClock) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK))
            host.xenstore.backends.stubborn = True
            with pytest.raises(
                XendError, match=r"^Device 51712 \(vbd\) could not be disconnected\. 'deb' still"
            ):
                await xend.hotplug.detach("deb", "vbd", "xvda", False, True)
            assert devids(host) == {"vbd/51712"}
            with pytest.raises(XendError, match="already connected"):
                await xend.hotplug.attach("deb", DISK)
            host.xenstore.put(f"{BACKEND}/state", "6")  # it lets go at last
            await wait_all_tasks_blocked()
            assert devids(host) == set()
            host.xenstore.backends.stubborn = False
            await xend.hotplug.attach("deb", DISK)

    async def test_a_backend_that_connects_just_now(self, host: Host, autojump_clock: MockClock) -> None:
        """Its Connected was written over our Closing, and the guest never heard of that."""
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK))
            host.xenstore.backends.connects_late = True
            began = trio.current_time()
            await xend.hotplug.detach("deb", "vbd", "xvda", False, True)
            assert trio.current_time() == began
            assert devids(host) == set()

    async def test_force(self, host: Host, autojump_clock: MockClock) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK))
            host.xenstore.backends.stubborn = True
            with pytest.raises(XendError, match="by force"):
                await xend.hotplug.detach("deb", "vbd", "xvda", False, True)
            began = trio.current_time()
            await xend.hotplug.detach("deb", "vbd", "xvda", True, True)
            assert trio.current_time() == began
            assert devids(host) == set()
            await wait_all_tasks_blocked()
            await xend.hotplug.attach("deb", DISK)
            host.xenstore.backends.silent = True
            await xend.hotplug.detach("deb", "vbd", "xvda", True, True)
            assert trio.current_time() == began + 5, "a backend that does not let go has five seconds"
            assert devids(host) == set()

    async def test_a_guest_without_a_driver_does_not_hold_on(
        self, host: Host, autojump_clock: MockClock
    ) -> None:
        host.xenstore.backends.connects = False
        host.xenstore.backends.stubborn = True
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK))
            began = trio.current_time()
            await xend.hotplug.detach("deb", "vbd", "xvda", False, True)
            assert trio.current_time() == began
            assert devids(host) == set()

    async def test_a_guest_that_has_crashed_does_not_hold_on(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create("deb", ["on_crash", "preserve"], device(*DISK))
            host.xenstore.backends.stubborn = True
            await xend.end(domain, "crash")
            await xend.hotplug.detach("deb", "vbd", "xvda", False, True)
            assert devids(host) == set()

    async def test_without_forgetting(self, host: Host) -> None:
        """It is back in the domain's next life."""
        async with host.xend() as xend:
            domain = await xend.create("deb", device(*DISK))
            await xend.hotplug.detach("deb", "vbd", "xvda", False, False)
            assert devids(host) == set()
            host.now += 100
            await xend.end(domain, "reboot")
            assert devids(host, 2) == {"vbd/51712"}

    async def test_of_a_domain_that_is_halted(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.life.new(host.config("man", device(*DISK)))
            await xend.hotplug.attach("man", OTHER)
            await xend.hotplug.detach("man", "vbd", "xvda", False, True)
            assert [found.label for found in domain.config.devices] == ["xvdb"]
            await xend.life.start(domain)
            assert devids(host) == {"vbd/51728"}


class TestConfiguring:
    async def test_another_disc(self, host: Host) -> None:
        async with host.xend() as xend:
            domain = await xend.create("deb", device(*DISK), device(*CDROM))
            path = "/local/domain/0/backend/vbd/1/51760"
            for uname, place in (
                ("file:/other", ["file", "/other"]),
                ("", ["", ""]),
                ("nbd:h:1", ["nbd", "nbd:h:1"]),
            ):
                wanted = ["vbd", ["uname", uname], ["dev", "xvdd:cdrom"], ["mode", "r"]]
                await xend.hotplug.configure("deb", wanted, "")
                assert [host.xenstore.nodes[f"{path}/{name}"] for name in ("type", "params")] == place
                found = host.records()["deb"].config.devices[1]
                assert isinstance(found, Vbd) and found.uname == uname
            assert domain.config.devices[0].label == "xvda"

    async def test_a_disc_that_cannot_be_read(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*CDROM))
            host.xenstore.backends.refuse["/bad"] = "no such disc"
            wanted = ["vbd", ["uname", "file:/bad"], ["dev", "xvdd:cdrom"], ["mode", "r"]]
            with pytest.raises(XendError) as caught:
                await xend.hotplug.configure("deb", wanted, "")
            assert str(caught.value) == "Device 51760 (vbd) could not be changed. xvdd: no such disc"
            assert host.xenstore.nodes["/local/domain/0/backend/vbd/1/51760/params"] == "/iso"
            assert "(uname file:/iso)" in sxp.to_string(host.records()["deb"].config.to_sxp())

    async def test_another_size(self, host: Host, autojump_clock: MockClock) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK))
            await xend.hotplug.resize("deb", "xvda")
            await xend.hotplug.resize("deb", "51712")
            host.xenstore.backends.refuse["/a"] = "it is gone"
            with pytest.raises(
                XendError, match=r"^Device 51712 \(vbd\) could not be resized\. xvda: it is gone$"
            ):
                await xend.hotplug.resize("deb", "xvda")
            host.xenstore.backends.silent = True
            with pytest.raises(XendError, match="blkback has not answered within 10 s"):
                await xend.hotplug.resize("deb", "xvda")
            with pytest.raises(XendError, match="Device xvdb not connected"):
                await xend.hotplug.resize("deb", "xvdb")

    @pytest.mark.parametrize(
        ("wanted", "part"),
        [
            (["vbd", ["uname", "file:/b"], ["dev", "xvda"], ["mode", "w"]], "only the medium of a cdrom"),
            (["vbd", ["uname", "file:/a"], ["dev", "xvda"], ["mode", "r"]], "only the medium of a cdrom"),
            (
                ["vbd", ["uname", "file:/iso"], ["dev", "xvdd:cdrom"], ["mode", "w"]],
                "only the medium of a cdrom",
            ),
            (["vbd", ["uname", "file:/a"], ["dev", "xvdz"], ["mode", "r"]], "Device xvdz not connected"),
            (["vif"], "Device None not connected"),
        ],
    )
    async def test_anything_else_is_refused(self, host: Host, wanted: list[Sxp], part: str) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK), device(*CDROM))
            with pytest.raises(XendError, match=part):
                await xend.hotplug.configure("deb", wanted, "")

    async def test_the_same_again_is_no_error(self, host: Host) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK))
            await xend.hotplug.configure("deb", DISK, "xvda")


class TestKilled:
    """A xend that ends at some await, and the next one."""

    async def _killed_while(self, host: Host, work: str) -> None:
        async with host.xend() as xend, trio.open_nursery() as nursery:

            async def run() -> None:
                if work == "attach":
                    await xend.hotplug.attach("deb", DISK)
                else:
                    await xend.hotplug.detach("deb", "vbd", "xvda", False, work == "detach")

            nursery.start_soon(run)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    async def test_while_attaching(self, host: Host, autojump_clock: MockClock) -> None:
        async with host.xend() as xend:
            await xend.create()
        host.xenstore.backends.silent = True
        await self._killed_while(host, "attach")
        assert devids(host) == {"vbd/51712"}
        host.xenstore.backends.silent = False
        host.xenstore.put(f"{BACKEND}/hotplug-status", "connected")  # the backend had it after all
        async with host.xend() as xend:
            await wait_all_tasks_blocked()
            assert devids(host) == set()
            await xend.hotplug.attach("deb", DISK)

    @pytest.mark.parametrize("work", ["detach", "keep"])
    async def test_while_detaching(self, host: Host, work: str, autojump_clock: MockClock) -> None:
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK))
            host.xenstore.backends.stubborn = True
        await self._killed_while(host, work)
        assert devids(host) == {"vbd/51712"}
        host.xenstore.backends.stubborn = False
        async with host.xend() as xend:
            await wait_all_tasks_blocked()
            host.xenstore.put(f"{BACKEND}/state", "6")
            await wait_all_tasks_blocked()
            assert devids(host) == set()
            recorded = [found.label for found in xend.life.find("deb").config.devices]
            assert recorded == ([] if work == "detach" else ["xvda"])

    async def test_while_devices_connect(self, host: Host, autojump_clock: MockClock) -> None:
        """They stay: somebody may wait for them again."""
        host.xenstore.backends.silent = True
        async with host.xend() as xend:
            await xend.create("deb", device(*DISK), unpause=False)
        async with host.xend() as xend:
            await wait_all_tasks_blocked()
            assert devids(host) == {"vbd/51712"}
            host.xenstore.put(f"{BACKEND}/hotplug-status", "connected")
            await xend.hotplug.wait("deb")

    async def test_xenstore_knows_what_the_database_does_not(self, host: Host) -> None:
        async with host.xend() as xend:
            before = (await xend.create("deb", device(*DISK), device("vif"))).record
            await xend.hotplug.attach("deb", OTHER)
        (host.folder / "db").unlink()
        async with host.xend() as xend:
            after = xend.life.find("deb").record
            assert sorted(map(str, after.config.devices)) == sorted(map(str, before.config.devices))
