"""The domain as its guest sees it: memory, xenstore, console, devices, and its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import IntEnum

import trio

from domu.faults import Faults, Node
from domu.frontends import blkfront, control, netfront
from domu.frontends.console import Console
from domu.memory import Memory
from hyper.guest import Hypervisor, abi, xenstore
from hyper.guest.xenstore import XenstoreClient
from hyper.public.errors import HypervisorGone


class ShutdownReason(IntEnum):
    """SHUTDOWN_* of sched.h."""

    POWEROFF = abi.lib.SHUTDOWN_poweroff
    REBOOT = abi.lib.SHUTDOWN_reboot
    CRASH = abi.lib.SHUTDOWN_crash


@asynccontextmanager
async def domain(hyp: Hypervisor, words: Sequence[str] = ()) -> AsyncIterator[Domain]:
    """The domain that `hyp` is a connection of, its xenstore and console at work.

    Raises: ValueError when it is Dom0's.
    """
    here = hyp.process_domain
    if here is None:
        raise ValueError("this connection is Dom0's, not that of a process domain")
    async with (
        await hyp.open_port(here.store_port) as store_port,
        await hyp.open_port(here.console_port) as console_port,
        xenstore.over_ring(hyp.frame(here.store_mfn), store_port) as xs,
    ):
        console = Console(hyp.frame(here.console_mfn), console_port)
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(console.run)
            found = Domain(hyp, xs, console, words)
            try:
                yield found
            except BaseException as error:  # raised again below: not as an exception group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


class Domain:
    """Given to a guest's `main`. Made by domain()."""

    def __init__(self, hyp: Hypervisor, xs: XenstoreClient, console: Console, words: Sequence[str]) -> None:
        self.hyp = hyp
        """The hypervisor: hypercalls, ports, grants."""
        self.xs = xs
        """xenstore; relative paths are below the domain's own folder."""
        self.console = console
        self.words = tuple(words)
        """The words of `extra` in the domain's configuration."""
        self.memory = Memory(hyp.memory, hyp.grant_table)

    @property
    def domid(self) -> int:
        return self.hyp.domid

    def disk(
        self,
        name: str | int,
        options: blkfront.Options | None = None,
        handshake: Faults[Node] | None = None,
    ) -> AbstractAsyncContextManager[blkfront.Disk]:
        """`async with domain.disk("xvda") as disk`; see frontends/blkfront."""
        return blkfront.disk(self, name, options, handshake)

    def nic(
        self,
        number: int = 0,
        options: netfront.Options | None = None,
        handshake: Faults[Node] | None = None,
    ) -> AbstractAsyncContextManager[netfront.Nic]:
        """`async with domain.nic(0) as nic`; see frontends/netfront."""
        return netfront.nic(self, number, options, handshake)

    async def wait_shutdown(self) -> ShutdownReason:
        """Until the toolstack asks us to power off or to reboot. domu.run does this for a guest."""
        send, receive = trio.open_memory_channel[str](1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.follow, self.xs, send.send_nowait)
            request = await receive.receive()
            nursery.cancel_scope.cancel()
        return ShutdownReason[request.upper()]

    async def shutdown(self, reason: ShutdownReason) -> None:
        """Ends the domain. Returns when hyper knows; there is nothing sensible to do after it."""
        with self.hyp.arena.new("struct sched_shutdown", reason=int(reason)) as buffer:
            try:
                await self.hyp.hypercall(abi.nr.sched_op, abi.lib.SCHEDOP_shutdown, buffer.addr)
            except HypervisorGone:
                pass  # it hangs up on a domain that is no more
