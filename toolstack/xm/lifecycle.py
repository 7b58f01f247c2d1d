"""The commands that move a domain through its life: pause, shutdown, destroy, start, delete, rename and
theirs.
"""

from __future__ import annotations

import os
import sys
import time

from toolstack import sxp
from toolstack.xm.client import Fault, Waiting
from toolstack.xm.errors import Failure, UsageError
from toolstack.xm.options import Options, check_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from toolstack.xm.session import Session

SHUTDOWN = Options("awHR", {"all": "a", "wait": "w", "halt": "H", "reboot": "R"})
START = Options(
    "pc", {"paused": "p", "console_autoconnect": "c", "vncviewer": "v", "vncviewer-autopass": "v"}
)

POLL = 0.2
RECREATING = 30.0
"""Seconds a domain may be absent while it reboots before `reboot -w` gives it up."""


def pause(session: Session, args: list[str]) -> None:
    check_count(args, "pause", 1)
    session.call("xend.domain.pause", args[0])
    session.call("xend.domain.setpauseflag", args[0], True)


def unpause(session: Session, args: list[str]) -> None:
    check_count(args, "unpause", 1)
    session.call("xend.domain.unpause", args[0])
    session.call("xend.domain.setpauseflag", args[0], False)


def destroy(session: Session, args: list[str]) -> None:
    check_count(args, "destroy", 1)
    session.call("xend.domain.destroy", args[0], waiting=f"Destroying {args[0]}")


def delete(session: Session, args: list[str]) -> None:
    check_count(args, "delete", 1)
    session.call("xend.domain.delete", args[0])


def rename(session: Session, args: list[str]) -> None:
    check_count(args, "rename", 2)
    session.call("xend.domain.setName", args[0], args[1])


def shutdown(session: Session, args: list[str]) -> None:
    check_count(args, "shutdown", 1, 4)
    _shutdown(session, args, "poweroff")


def reboot(session: Session, args: list[str]) -> None:
    check_count(args, "reboot", 1, 3)
    _shutdown(session, args, "reboot")


def _shutdown(session: Session, args: list[str], reason: str) -> None:
    options, rest = SHUTDOWN.parse(args)
    if "H" in options and ("R" in options or reason == "reboot"):
        raise Failure("Can't specify halt and reboot")
    reason = "halt" if "H" in options else "reboot" if "R" in options else reason
    if "a" in options:
        if rest:
            raise Failure("Either all domains or one, not both")
        names = [name for name in _alive(session) if name != "Domain-0"]
    elif not rest:
        raise Failure("No domain parameter given")
    elif len(rest) > 1:
        raise Failure("No multiple domain parameters allowed")
    else:
        names = [str(sxp.child_value(session.domain(rest[0]), "name"))]
    counts = {}
    for name in names:
        counts[name] = session.call("xend.domain.getRestartCount", name)
        session.call("xend.domain.shutdown", name, reason)
    if "w" not in options:
        return
    if reason == "reboot":
        _wait_rebooted(session, counts)
    else:
        _wait_terminated(session, names)


def _alive(session: Session) -> list[str]:
    """Names of the domains that exist in the hypervisor and have not shut down."""
    names = []
    for domain in session.domains():
        state = str(sxp.child_value(domain, "state", ""))
        if sxp.child_value(domain, "domid") is not None and not set(state) & set("scd"):
            names.append(str(sxp.child_value(domain, "name")))
    return names


class _Poll:
    """A wait by polling that reports progress like a long call does."""

    def __init__(self, text: str) -> None:
        self.progress = Waiting(text)
        self.start = time.monotonic()

    def pause(self) -> None:
        time.sleep(POLL)
        if time.monotonic() - self.start >= self.progress.seconds + 1:
            self.progress.tick()

    def say(self, text: str) -> None:
        self.progress.done()
        self.progress.seconds = int(time.monotonic() - self.start)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _wait_terminated(session: Session, names: list[str]) -> None:
    poll = _Poll("Waiting for " + ", ".join(names))
    left = list(names)
    while left:
        alive = _alive(session)
        for name in [name for name in left if name not in alive]:
            poll.say(f"Domain {name} terminated")
            left.remove(name)
        if left:
            poll.pause()
    poll.say("All domains terminated")


def _wait_rebooted(session: Session, counts: dict[str, int]) -> None:
    poll = _Poll("Waiting for " + ", ".join(counts))
    left = dict(counts)
    missing: dict[str, float] = {}
    while left:
        alive = _alive(session)
        for name in list(left):
            if name in alive:
                missing.pop(name, None)
                if _restart_count(session, name, left[name]) != left[name]:
                    poll.say(f"Domain {name} rebooted")
                    del left[name]
            elif time.monotonic() - missing.setdefault(name, time.monotonic()) > RECREATING:
                poll.say(f"Domain {name} destroyed for failing to reboot")
                del left[name]
        if left:
            poll.pause()
    poll.say("All domains rebooted")


def _restart_count(session: Session, name: str, default: int) -> int:
    try:
        return int(session.call("xend.domain.getRestartCount", name))
    except Fault:  # gone since the list was made
        return default


def start(session: Session, args: list[str]) -> None:
    options, rest = START.parse(args)
    if len(rest) != 1:
        raise UsageError("Expects 1 argument")
    if "v" in options:
        raise UsageError("a VNC viewer cannot be started yet")
    name = rest[0]
    paused = "p" in options
    console = "c" in options
    session.call("xend.domain.start", name, paused or console, waiting=f"Starting {name}")
    if console:
        attach_and_unpause(session, name, None if paused else name)


def attach_and_unpause(session: Session, name: str, unpause: str | None) -> None:
    """Attach to the console of a domain that does not run yet, then let it run: nothing of its output is
    missed.

    Raises: Failure when there is no console; the domain runs all the same.
    """
    from toolstack.xm import console

    path = session.console_socket(session.running_domid(name))
    try:
        attached = console.connect(path, wait=5.0)
    finally:
        if unpause is not None:
            session.call("xend.domain.unpause", unpause)
    sys.stdout.flush()
    sys.stderr.flush()
    console.interact(attached, os.isatty(0))
