"""Runs a guest written in Python: a process domain, handed its connection and nothing else.

    python -m domu.run --fd N SPEC [words of extra=]

SPEC is `package.module[:attribute]` or `/path/to/file.py[:attribute]`; the attribute, `main` unless
named, is an `async def main(domain)` (domu/domain.py). On standard output the toolstack reads `isolation:
full` or `isolation: fault isolation only (why)`, and then `ready` or `failed: why`. Status 0: the domain
has shut down in order; 1: main has raised, the domain has crashed; 2: it was never started.

Two processes: the guest's, and a warden outside its PID namespace that ends it when the connection is
hung up (the domain is destroyed), and hands SIGTERM on, which is the power button. Without the warden a
guest that never returns to its event loop would outlive its domain.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import linecache
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import trio

import hyper.guest
from domu import confine
from domu.domain import Domain, ShutdownReason, domain
from domu.frontends.console import ConsoleFile
from hyper.public.errors import HypervisorGone, leaves

Main = Callable[[Domain], Awaitable[object]]

STARTED, CRASHED, NOT_STARTED = 0, 1, 2
DATA_BYTES = 512 << 20
"""Private memory of a guest's process, beside the domain's own."""
OPEN_FILES = 1024
_LAST_WORDS_SECONDS = 1.0
_GRACE_SECONDS = 2.0


class BadGuest(Exception):
    """There is no such guest. The text says why."""


# --- the guest's code


def source_files(spec: str) -> list[Path]:
    """What must be visible so that the guest can be imported. Imports nothing.

    Raises: BadGuest.
    """
    name = spec.partition(":")[0]
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise BadGuest(f"{path}: no such file")
        return [path]
    top = name.partition(".")[0]
    found = importlib.util.find_spec(top) if top.isidentifier() else None
    if found is None:
        raise BadGuest(f"no module named {name!r}; of files give the path, ending in .py")
    folders = list(found.submodule_search_locations or ())
    return [Path(place).resolve() for place in (folders or [found.origin or ""])]


def load(spec: str) -> Main:
    """Imports the guest: its code runs from here on.

    Raises: BadGuest; whatever the module raises.
    """
    name, _, attribute = spec.partition(":")
    attribute = attribute or "main"
    if name.endswith(".py"):
        found = importlib.util.spec_from_file_location(Path(name).stem, Path(name).resolve())
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module
        found.loader.exec_module(module)
    else:
        module = importlib.import_module(name)
    main: Main | None = getattr(module, attribute, None)
    if not callable(main):
        raise BadGuest(f"{name} has no function {attribute!r}")
    return main


# --- the guest's process


async def live(sock: socket.socket, spec: str, words: Sequence[str], told: TextIO, null: int) -> int:
    """The domain's whole life. Returns the exit status. `null` is an open /dev/null.

    Raises: HypervisorGone when the domain is destroyed under us.
    """
    power_button = trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT)
    with power_button as presses:
        async with hyper.guest.attach(sock) as hyp, domain(hyp, words) as here:
            sys.stdout = sys.stderr = ConsoleFile(here.console)
            confine.limit(DATA_BYTES, OPEN_FILES)
            confine.allow_imports()
            try:
                main = load(spec)
            except BaseException as error:
                _say(told, f"failed: {_one_line(error)}")
                print_error(error)
                await _shut_down(here, ShutdownReason.CRASH)
                return NOT_STARTED
            _keep_sources()
            _say(told, "ready")
            told.close()
            _silence(null)
            confine.allow_running()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_with, hyp)
                reason = await _run(main, here, presses)
                nursery.cancel_scope.cancel()
            await _shut_down(here, reason)
    return CRASHED if reason == ShutdownReason.CRASH else STARTED


async def _run(main: Main, here: Domain, presses: AsyncIterator[int]) -> ShutdownReason:
    """main() until it returns, raises, or somebody asks the domain to end: it is cancelled then."""
    reason = ShutdownReason.POWEROFF

    async def obey(scope: trio.CancelScope) -> None:
        nonlocal reason
        reason = await here.wait_shutdown()
        scope.cancel()

    async def obey_button(scope: trio.CancelScope) -> None:
        async for _ in presses:
            scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey, nursery.cancel_scope)
        nursery.start_soon(obey_button, nursery.cancel_scope)
        try:
            await main(here)
        except SystemExit as error:
            reason = ShutdownReason.CRASH if error.code else ShutdownReason.POWEROFF
        except BaseException as error:
            if all(isinstance(leaf, trio.Cancelled) for leaf in leaves(error)):
                raise  # asked to end, it has
            print_error(error)
            reason = ShutdownReason.CRASH
        nursery.cancel_scope.cancel()
    return reason


async def _shut_down(here: Domain, reason: ShutdownReason) -> None:
    with trio.CancelScope(shield=True):
        with trio.move_on_after(_LAST_WORDS_SECONDS):
            await here.console.drain()
        await here.shutdown(reason)


async def _end_with(hyp: hyper.guest.Hypervisor) -> None:
    """Raises: HypervisorGone."""
    raise HypervisorGone(await hyp.wait_gone())


def print_error(error: BaseException) -> None:
    """As Python does, from the guest's own code on."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith((__file__, "<frozen")):
        frame = frame.tb_next
    traceback.print_exception(error.with_traceback(frame))


def _keep_sources() -> None:
    """Reads the lines that tracebacks show, as files cannot be opened later."""
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None) or ""
        if name.endswith(".py") and not name.startswith((sys.prefix, sys.base_prefix)):
            lines = linecache.getlines(name)
            linecache.cache[name] = (sum(map(len, lines)), None, lines, name)  # None: is never checked
    gc.collect()


def _one_line(error: BaseException) -> str:
    text = str(error) if isinstance(error, BadGuest) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]


def _say(told: TextIO, line: str) -> None:
    """To the toolstack, which may have stopped to listen."""
    with suppress(OSError, ValueError):
        print(line, file=told, flush=True)


def _silence(null: int) -> None:
    """What is written past sys.stdout goes nowhere from here on."""
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def guest_process(sock: socket.socket, spec: str, words: Sequence[str], null: int) -> int:
    """Returns the exit status."""
    told = os.fdopen(os.dup(1), "w")
    try:
        return trio.run(live, sock, spec, words, told, null)
    except Exception as error:
        if any(isinstance(leaf, HypervisorGone) for leaf in leaves(error)):
            return STARTED  # destroyed: nobody is there to be told
        _say(told, f"failed: {_one_line(leaves(error)[0])}")
        return NOT_STARTED


# --- the warden


def warden(pid: int, sock: socket.socket) -> int:
    """Waits for the guest's process, and ends it when hyper hangs up. Returns its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    signal.signal(signal.SIGINT, lambda *_: os.kill(pid, signal.SIGTERM))
    poll, pidfd = select.poll(), os.pidfd_open(pid)
    poll.register(pidfd, select.POLLIN)
    poll.register(sock, 0)  # the hang-up alone
    ready = {fd for fd, _ in poll.poll()}
    if pidfd not in ready:
        poll.unregister(sock)
        if not poll.poll(_GRACE_SECONDS * 1000):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else CRASHED


def _close_others(keep: int) -> None:
    os.closerange(3, keep)
    os.closerange(keep + 1, 1 << 16)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m domu.run", description="Runs a guest written in Python.")
    parser.add_argument("--fd", type=int, required=True, metavar="N", help="the domain's connection")
    parser.add_argument("--no-namespaces", action="store_true", help="do without them, for tests")
    parser.add_argument("spec", help="package.module[:attribute] or /path/to/file.py[:attribute]")
    parser.add_argument("words", nargs="*", help="the words of extra=")
    arguments = parser.parse_args(argv)
    try:
        files = source_files(arguments.spec)
    except BadGuest as error:
        print(f"failed: {error}", flush=True)
        return NOT_STARTED
    _close_others(arguments.fd)
    os.environ.clear()
    null = os.open(os.devnull, os.O_RDWR)
    sock = socket.socket(fileno=arguments.fd)
    sys.path[:] = [entry for entry in sys.path if entry and entry != os.getcwd()]
    why = confine.jail(files, namespaces=not arguments.no_namespaces)
    print(f"isolation: {f'fault isolation only ({why})' if why else 'full'}", flush=True)
    if pid := os.fork():
        os.dup2(null, 1)  # the guest's end is the end of what the toolstack reads
        return warden(pid, sock)
    confine.die_with_parent(signal.SIGKILL)
    os._exit(guest_process(sock, arguments.spec, arguments.words, null))


if __name__ == "__main__":
    sys.exit(main())
