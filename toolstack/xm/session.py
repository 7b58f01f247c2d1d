"""What every command of xm is given: the server, the host's places, the way to print."""

from __future__ import annotations

import os
import sys
import time

from toolstack.sxp import child_value
from toolstack.xm import where
from toolstack.xm.client import ProtocolError, Server
from toolstack.xm.errors import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from toolstack.sxp import Sxp


PATIENCE = 10.0
"""Seconds a command waits for a xend that is being started again."""


class Session:
    """`server` may be anything with `call`, `uri` and `local` (tests pass a fake)."""

    def __init__(self, server: Server, console_dir: str, environ: dict[str, str]) -> None:
        self.server = server
        self.console_dir = console_dir
        self.environ = environ

    def call(self, method: str, *params: Any, waiting: str | None = None) -> Any:
        return self.server.call(method, *params, waiting=waiting)

    def call_again(self, method: str, *params: Any, waiting: str | None = None) -> Any:
        """A call that does no harm when it is made twice: when xend dies under it, its successor is asked."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.call(method, *params, waiting=waiting)
            except (OSError, ProtocolError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def domain(self, name: str) -> Sxp:
        """Raises: Fault 3 when there is no such domain."""
        found: Sxp = self.call("xend.domain", name)
        return found

    def running_domid(self, name: str) -> int:
        """Raises: Fault 3, Failure."""
        domid = child_value(self.domain(name), "domid")
        if domid is None:
            raise Failure(f"Domain '{name}' is not started")
        return int(domid)

    def domains(self, state: str = "all", full: bool = False) -> list[Sxp]:
        found: list[Sxp] = self.call("xend.domains_with_state", True, state, full)
        return found

    def console_socket(self, domid: int) -> str:
        if not self.server.local:
            raise Failure("a console can only be attached on the host itself")
        return f"{self.console_dir}/{domid}.sock"

    def print(self, lines: str | Iterable[str]) -> None:
        for line in [lines] if isinstance(lines, str) else lines:
            sys.stdout.write(line + "\n")


def open_session(host: str | None) -> Session:
    """The session of this process: XM_SERVER if set, else the unix socket of the host.

    Raises: Failure.
    """
    uri = os.environ.get("XM_SERVER", "")
    runtime = where.runtime_dir(where.host_name(host))
    if host or not uri:
        uri = f"httpu://{runtime}/xend.sock"
    try:
        server = Server(uri)
    except ValueError as error:
        raise Failure(str(error)) from None
    directory = os.path.dirname(server.path) if server.path else runtime
    return Session(server, f"{directory}/console", dict(os.environ))
