"""Entry point of xm: finds the command, runs it, turns what went wrong into a line and an exit code.

Nothing here imports a command before it is known which one runs.
"""

from __future__ import annotations

import os
import sys

from toolstack.xm.errors import Failure, UsageError

BUILT = {
    "block-attach": "block:attach",
    "block-configure": "block:configure",
    "block-detach": "block:detach",
    "block-list": "block:show",
    "block-resize": "block:resize",
    "console": "console:attach",
    "create": "create:create",
    "debug-keys": "tuning:debug_keys",
    "delete": "lifecycle:delete",
    "destroy": "lifecycle:destroy",
    "dmesg": "query:dmesg",
    "domid": "query:domid",
    "domname": "query:domname",
    "domstate": "query:domstate",
    "info": "query:info",
    "list": "query:list_domains",
    "log": "query:log",
    "mem-max": "tuning:mem_max",
    "mem-set": "tuning:mem_set",
    "network-attach": "network:attach",
    "network-detach": "network:detach",
    "network-list": "network:show",
    "new": "create:new",
    "pause": "lifecycle:pause",
    "reboot": "lifecycle:reboot",
    "rename": "lifecycle:rename",
    "sched-credit": "tuning:sched_credit",
    "shutdown": "lifecycle:shutdown",
    "start": "lifecycle:start",
    "sysrq": "tuning:sysrq",
    "unpause": "lifecycle:unpause",
    "uptime": "query:uptime",
    "vcpu-list": "query:vcpu_list",
    "vcpu-pin": "tuning:vcpu_pin",
}
"""Module and function of each command that exists."""

NOT_BUILT = frozenset(
    "suspend resume reset save restore migrate dump-core top shell event-monitor serve vncviewer vcpu-set"
    " sched-credit2 sched-sedf trigger"
    " network2-attach network2-detach network2-list"
    " vnet-create vnet-delete vnet-list"
    " pci-attach pci-detach pci-list pci-list-assignable-devices scsi-attach scsi-detach scsi-list"
    " usb-add usb-del usb-attach usb-detach usb-list usb-list-assignable-devices usb-hc-create usb-hc-destroy"
    " cpupool-create cpupool-new cpupool-start cpupool-list cpupool-destroy cpupool-delete cpupool-cpu-add"
    " cpupool-cpu-remove cpupool-migrate"
    " tmem-list tmem-thaw tmem-freeze tmem-destroy tmem-set tmem-freeable tmem-shared-auth"
    " setpolicy getpolicy resetpolicy labels addlabel rmlabel getlabel dry-run resources dumppolicy"
    " getenforce setenforce".split()
)
"""Commands of the original xm that answer in one line that they do not exist yet."""

ALIASES = {
    "balloon": "mem-set",
    "set-vcpus": "vcpu-set",
    "vif-list": "network-list",
    "vbd-create": "block-attach",
    "vbd-destroy": "block-detach",
    "vbd-list": "block-list",
} | {
    f"pool-{verb}": f"cpupool-{verb}"
    for verb in "create new start list destroy delete cpu-add cpu-remove migrate".split()
}
"""Deprecated names; using one prints a warning."""


def find_command(word: str) -> str | None:
    """The command a word stands for: itself, an alias, or the only command it is a prefix of."""
    if word in BUILT or word in NOT_BUILT or word == "help":
        return word
    if word in ALIASES:
        sys.stderr.write(f"Command {word} is deprecated.  Please use xm {ALIASES[word]} instead.\n")
        return ALIASES[word]
    found = [name for name in (*BUILT, *NOT_BUILT, "help") if name.startswith(word)] if len(word) > 1 else []
    return found[0] if len(found) == 1 else None


def _error(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"Error: {text}\n")


def _show_usage(command: str) -> None:
    from toolstack.xm import manual

    print(manual.page(command))


def _short_help() -> int:
    from toolstack.xm import manual

    print(manual.short_help())
    return 1


def _help(args: list[str]) -> int:
    from toolstack.xm import manual

    if not args:
        print(manual.long_help())
        return 0
    command = find_command(args[0])
    if command is None:
        _error(f"Subcommand {args[0]} not found!")
        return _short_help()
    print(manual.page(command))
    return 0


def _host_option(args: list[str]) -> str | None:
    """Takes `--host NAME` or `--host=NAME` from the front of the words. Raises: Failure."""
    if args and args[0].startswith("--host="):
        return args.pop(0).partition("=")[2]
    if args and args[0] == "--host":
        if len(args) < 2:
            raise Failure("option --host requires argument")
        del args[0]
        return args.pop(0)
    return None


def dispatch(args: list[str]) -> int:
    """Runs a command line. Raises: whatever the command raises."""
    host = _host_option(args)
    if not args:
        return _short_help()
    if args[0] in ("--help", "-h"):
        return _help([])
    command = find_command(args[0])
    if command is None:
        _error(f"Subcommand {args[0]} not found!")
        return _short_help()
    if "--help" in args[1:] or "-h" in args[1:]:
        _show_usage(command)
        return 1
    if command == "help":
        return _help(args[1:])
    if command in NOT_BUILT:
        raise Failure(f"'xm {command}' is not built yet")
    return _run(command, args[1:], host)


def _run(command: str, args: list[str], host: str | None) -> int:
    from importlib import import_module

    from toolstack.xm.session import open_session

    module, _, function = BUILT[command].partition(":")
    session = open_session(host)
    try:
        getattr(import_module(f"toolstack.xm.{module}"), function)(session, args)
    except UsageError as error:
        _error(str(error.text))
        _show_usage(command)
        return error.status
    except Exception as error:
        return _explain(error, session.server.uri)
    return 0


def _explain(error: Exception, uri: str) -> int:
    """The exit code of a failed command, after its line on stderr. Raises what is no ordinary failure."""
    from toolstack.xm.client import Fault, ProtocolError
    from toolstack.xmlrpc import FAULT_INVALID_DOMAIN

    if isinstance(error, Fault) and error.code == FAULT_INVALID_DOMAIN:
        _error(f"Domain '{error.text}' does not exist.")
        return FAULT_INVALID_DOMAIN
    if isinstance(error, (Fault, ProtocolError)):
        _error(str(error))
        return 1
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        _error(f"Unable to connect to xend: {error.strerror or error} ({uri}). Is xend running?")
        return 1
    raise error


def main(argv: list[str] | None = None) -> int:
    """The console script. Returns: the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        status = dispatch(args)
        sys.stdout.flush()
        return status
    except Failure as failure:
        if failure.text is not None:
            _error(failure.text)
        return failure.status
    except KeyboardInterrupt:
        sys.stdout.write("Interrupted.\n")
        return 1
    except BrokenPipeError:  # the reader of our output has gone: say nothing, now or at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
