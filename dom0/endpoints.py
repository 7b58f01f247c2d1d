"""What Dom0's daemons share: ports that a killed predecessor still has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from hyper.public.errors import XenError

T = TypeVar("T")

REAP_SECONDS = 5.0
"""How long hyper may take to notice that a process of Dom0 is dead and to free its ports."""


async def when_reaped(
    bind: Callable[[], Awaitable[T]], taken: type[XenError], patience: float = REAP_SECONDS
) -> T:
    """Tries again for `patience` seconds while `taken` says that a port still is our killed predecessor's.

    Raises: XenError.
    """
    deadline = trio.current_time() + patience
    while True:
        try:
            return await bind()
        except taken:
            if trio.current_time() >= deadline:
                raise
            await trio.sleep(0.02)
