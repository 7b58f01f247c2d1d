"""A xend over a fake host, in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from tests.xend_fake import Calls, FakeHypervisor, FakeProcesses, FakeXenstore
from toolstack.sxp import Sxp
from toolstack.xend.control import Control
from toolstack.xend.hotplug import Hotplug
from toolstack.xend.lifecycle import Domain, Lifecycle
from toolstack.xend.recovery import recover
from toolstack.xend.store import DomainStore, Record


@dataclass
class Host:
    """A fake host that outlives the xends over it."""

    folder: Path
    calls: Calls = field(default_factory=Calls)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.hypervisor = FakeHypervisor(self.calls)
        self.xenstore = FakeXenstore(self.hypervisor)
        self.processes = FakeProcesses()
        self.kernel = self.folder / "vmlinuz"
        self.kernel.write_text("")

    def config(self, name: str = "deb", *items: Any) -> list[Sxp]:
        image = ["linux", ["kernel", str(self.kernel)], ["args", "console=hvc0"]]
        return ["vm", ["name", name], ["memory", 64], ["image", image], *items]

    @property
    def store(self) -> DomainStore:
        return DomainStore(self.folder / "db")

    def records(self) -> dict[str, Record]:
        with self.store as store:
            return {record.config.name: record for record in store.load()[0]}

    @asynccontextmanager
    async def xend(self) -> AsyncIterator[Xend]:
        with self.store as store:
            life = Lifecycle(
                self.hypervisor,
                self.xenstore,
                store,
                processes=self.processes,
                console_path=lambda domid: Path(f"/run/{domid}.sock"),
                wall=lambda: self.now,
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(life.run, recover)
                yield Xend(self, life, Control(life), Hotplug(life))
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

    def nothing_is_left(self) -> bool:
        paths = [path for path in self.xenstore.nodes if path.startswith(("/vm/", "/local/domain/"))]
        return (
            not self.processes.running
            and list(self.hypervisor.domains) == [0]
            and not paths
            and not self.xenstore.introduced
        )


@dataclass
class Xend:
    host: Host
    life: Lifecycle
    control: Control
    hotplug: Hotplug

    async def create(self, name: str = "deb", *items: Any, unpause: bool = True) -> Domain:
        domain = await self.life.create(self.host.config(name, *items))
        if unpause:
            await self.control.unpause(name)
        return domain

    async def end(self, domain: Domain, reason: str) -> None:
        assert domain.record.domid is not None
        self.host.hypervisor.end(domain.record.domid, reason)
        await wait_all_tasks_blocked()

    def names(self) -> list[str]:
        return sorted(domain.name for domain in self.life.domains.values())
