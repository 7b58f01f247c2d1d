"""What the toolstack asks of the domain through its `control` nodes: to power off, to reboot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from hyper.guest.xenstore import XenstoreClient
from hyper.public.errors import XenError

SHUTDOWN = "control/shutdown"
FEATURES = ("poweroff", "reboot")
"""What we say we can; the rest is acknowledged and ignored, as a kernel without it would."""


async def follow(xs: XenstoreClient, requested: Callable[[str], None]) -> None:
    """Calls `requested` with "poweroff" or "reboot" when the toolstack asks; "halt" is poweroff too."""
    for feature in FEATURES:
        with suppress(XenError):  # a toolstack that made no such node gets no answer
            await xs.write(f"control/feature-{feature}", "1")
    async with xs.watch(SHUTDOWN) as changes:
        async for _ in changes:
            request = await xs.read_if_exists(SHUTDOWN)
            if not request:
                continue
            with suppress(XenError):
                await xs.write(SHUTDOWN, "")
            request = "poweroff" if request == "halt" else request
            if request in FEATURES:
                requested(request)
