"""What takes more than a second says so: one line on stderr for each step, alive on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_TICK_SECONDS = 0.2


class Step:
    """A step under way. Set `detail` to show how far it is; the text is read by another thread."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.detail = ""
        self.began = time.monotonic()

    def line(self) -> str:
        """The step in one line, with its time so far."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.what}{detail} {time.monotonic() - self.began:.1f} s"


@contextmanager
def step(what: str, stream: TextIO | None = None) -> Iterator[Step]:
    """Show `what` while the block runs. A failure shows in the exception only."""
    out = stream or sys.stderr
    current = Step(what)
    if not out.isatty():
        print(f"{what} ...", file=out, flush=True)
        yield current
        return
    done = threading.Event()

    def draw() -> None:
        while not done.wait(_TICK_SECONDS):
            print(f"\r\x1b[K{current.line()} ...", end="", file=out, flush=True)

    drawer = threading.Thread(target=draw, name="progress", daemon=True)
    drawer.start()
    try:
        yield current
    finally:
        done.set()
        drawer.join()
        print(f"\r\x1b[K{current.line()}", file=out, flush=True)
