"""A guest in a test: its life as xend sees it, its console, and commands in its shell."""

from __future__ import annotations

import base64
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolstack.lab.console import Console
from toolstack.sxp import child_value
from toolstack.xm.client import Fault
from toolstack.xmlrpc import FAULT_INVALID_DOMAIN

if TYPE_CHECKING:
    from toolstack.lab.host import Host

_LINE = 512
"""Characters of the command in one typed line; a terminal takes 4095 at most."""
_POLL_SECONDS = 0.02


class GuestError(Exception):
    """The guest did not do what was asked; the text says what it did."""


@dataclass(frozen=True)
class Result:
    """What a command in the guest printed (standard output and error together) and its exit status."""

    output: str
    status: int


class Guest:
    """The domain `name` of `host`. Its console is attached as soon as it is first used."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self._console: Console | None = None
        self._console_domid = -1

    def __repr__(self) -> str:
        return f"<Guest {self.name} {self.state()}>"

    @property
    def domid(self) -> int:
        """Its present number; another one after a reboot. Raises: GuestError when it has none."""
        domid = child_value(self._description(), "domid")
        if domid is None:
            raise GuestError(f"{self.name} has no domain id: it does not run")
        return int(domid)

    @property
    def console(self) -> Console:
        """The console of the present domain, from the first line on. After a reboot it is a fresh one."""
        if self._console is None:
            self.attach()
        assert self._console is not None
        return self._console

    def attach(self) -> Console:
        """Attach (anew) to the console of the domain as it is now."""
        domid = self.domid
        if self._console is not None:
            self._console.close()
        self._console = Console(self.host.paths.console(domid))
        self._console_domid = domid
        return self._console

    def console_text(self) -> str:
        """All that was read from the console so far; "" when it was never attached."""
        return self._console.text if self._console else ""

    def pause(self) -> None:
        """Stop its vCPUs where they are."""
        self.host.call("domain.pause", self.name)

    def unpause(self) -> None:
        """Let it run (on)."""
        self.host.call("domain.unpause", self.name)

    def shutdown(self, *, timeout: float = 60.0) -> None:
        """Ask it to power off and wait until it is gone; with on_poweroff="preserve", until it has shut down.

        Raises: GuestError.
        """
        kept = child_value(self._description(), "on_poweroff") == "preserve"
        self.host.call("domain.shutdown", self.name, "poweroff")
        self.wait_state("shutdown" if kept else "gone", timeout=timeout)

    def reboot(self, *, timeout: float = 60.0) -> None:
        """Ask it to restart, wait for its next life and attach to its console. Raises: GuestError."""
        before = self.domid
        self.host.call("domain.shutdown", self.name, "reboot")
        self.wait_reborn(before, timeout=timeout)

    def wait_reborn(self, domid: int, *, timeout: float = 60.0) -> None:
        """Wait until the guest has another domain id than `domid`, and attach to its console."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if child_value(self._description(), "domid") not in (None, domid) and self.state() == "running":
                self.attach()
                return
            time.sleep(_POLL_SECONDS)
        raise GuestError(f"{self.name} did not come back within {timeout:g} s: it is {self.state()}")

    def destroy(self) -> None:
        """End it now, as if its power were cut. It may be gone already."""
        try:
            self.host.call("domain.destroy", self.name)
        except Fault as fault:
            if fault.code != FAULT_INVALID_DOMAIN:
                raise
        self.close()

    def close(self) -> None:
        """Let go of the console. May be called twice."""
        if self._console is not None:
            self._console.close()

    def state(self) -> str:
        """`running` (or waiting for something), `paused`, `shutdown`, `crashed`, `dying` or `gone`."""
        description = self._description()
        if child_value(description, "domid") is None:
            return "gone"
        letters = str(child_value(description, "state", ""))
        for letter, name in (("d", "dying"), ("c", "crashed"), ("s", "shutdown"), ("p", "paused")):
            if letter in letters:
                return name
        return "running"

    def wait_state(self, *states: str, timeout: float = 30.0) -> str:
        """Wait until it is in one of `states`; which one. Raises: GuestError."""
        deadline = time.monotonic() + timeout
        while (state := self.state()) not in states:
            if time.monotonic() >= deadline:
                raise GuestError(f"{self.name} is {state}, not {' or '.join(states)}, after {timeout:g} s")
            time.sleep(_POLL_SECONDS)
        return state

    def run(self, command: str, *, timeout: float = 60.0, check: bool = False) -> Result:
        """Run shell text at the prompt on the console; its standard input is empty.

        The text travels as base64 and runs in a subshell, so nothing in it can upset the prompt. A mark is
        printed before and after; typed, both are in two pieces, so that an echo is never taken for them.
        Needs printf and base64 in the guest.

        Raises: ConsoleError when the marks do not come; GuestError on a status that is not 0, with `check`.
        """
        mark = secrets.token_hex(6)
        console = self.console
        for line in _typed(command, mark):
            console.send_line(line)
        console.expect(f"umxen-begin-{mark}\n", timeout)
        found = console.expect(re.compile(rf"\numxen-end-{mark} (\d+)\n"), timeout)
        result = Result(found.before, int(found.groups[0] or 0))
        if check and result.status:
            raise GuestError(f"{command!r} in {self.name}: status {result.status}: {result.output.strip()}")
        return result

    def _description(self) -> Any:
        """The domain's SXP; an empty one when xend knows no such domain."""
        try:
            return self.host.call("domain", self.name)
        except Fault as fault:
            if fault.code == FAULT_INVALID_DOMAIN:
                return []
            raise


def _typed(command: str, mark: str) -> list[str]:
    """The lines to type: the coded command in pieces, then the line that runs it between its marks."""
    coded = base64.b64encode(command.encode()).decode()
    pieces = [coded[at : at + _LINE] for at in range(0, len(coded), _LINE)]
    lines = [f"umxen_text={'${umxen_text}' if at else ''}{piece}" for at, piece in enumerate(pieces)]
    decode = '(eval "$(printf %s "$umxen_text" | base64 -d)") </dev/null'
    begin = f"printf '\\n%s%s\\n' umxen-begin- {mark}"
    end = f"printf '\\n%s%s %s\\n' umxen-end- {mark} $?"
    return [*lines, f"{begin}; {decode}; {end}"]
