"""Builds a process domain: a guest whose "vCPU" is a host process.

    domid = await xc.domain_create(...)          # the toolstack's part, as for any guest
    await xc.max_vcpus(domid, 1)
    await xc.max_mem(domid, maxmem_kib)
    image, sock = await process.build(xc, ProcessSpec(domid, memory_kib))
    # introduce image.store_mfn and image.store_port to xenstored, fill xenstore, hand `sock` to the guest's
    # process, close our copy, unpause

After a failure the domain exists, perhaps without what it had: the toolstack destroys it. When the last copy
of `sock` is closed before the guest has shut down, it has crashed; destroying the domain hangs `sock` up.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from dom0.libxc.control import XenControl
from dom0.libxc.pv import PvImage
from hyper.public.types import PAGE_SHIFT, DomId, EvtchnPort, Gfn

MAX_MEMORY_KIB = 1000 << 10
"""A bank has at most 1 GiB, its grant table and shared_info included."""

_GRANTS_PER_FRAME = 512
_MIN_GRANT_FRAMES, _MAX_GRANT_FRAMES = 2, 64
_SHARED_INFO_FRAMES = 1


@dataclass(frozen=True)
class ProcessSpec:
    """What domain `domid`, which has its limit of memory already, gets."""

    domid: DomId
    memory_kib: int
    """RAM; the pages of xenstore and console are part of it."""


async def build(xc: XenControl, spec: ProcessSpec) -> tuple[PvImage, socket.socket]:
    """Makes the domain a process domain with its own bank. It stays paused.

    Returns: what a toolstack must know; the socket that is the domain (`hyper.guest.attach`).
    Raises: XenError: OutOfFrames when the domain's limit or the host has less; BadArgument.
    """
    start, sock = await xc.adopt(spec.domid, bank_bytes(spec.memory_kib))
    image = PvImage(
        domid=spec.domid,
        nr_pages=start.base_mfn + start.nr_frames - start.store_mfn,
        store_mfn=Gfn(start.store_mfn),
        store_port=EvtchnPort(start.store_port),
        console_mfn=Gfn(start.console_mfn),
        console_port=EvtchnPort(start.console_port),
    )
    return image, sock


def bank_bytes(memory_kib: int) -> int:
    """The size of the bank with so much RAM: hyper takes shared_info and a grant entry per frame from it."""
    ram = memory_kib >> (PAGE_SHIFT - 10)
    frames = ram
    while frames - _SHARED_INFO_FRAMES - _grant_frames(frames) < ram:
        frames += 1
    return frames << PAGE_SHIFT


def _grant_frames(nr_frames: int) -> int:
    return min(max(-(-nr_frames // _GRANTS_PER_FRAME), _MIN_GRANT_FRAMES), _MAX_GRANT_FRAMES)
