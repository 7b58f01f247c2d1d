"""`xm create` and `xm new`: a configuration file becomes a domain."""

from __future__ import annotations

import os
import sys

from toolstack import sxp
from toolstack.xm import config
from toolstack.xm.client import Fault, ProtocolError
from toolstack.xm.errors import Failure, UsageError
from toolstack.xm.lifecycle import attach_and_unpause
from toolstack.xm.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from toolstack.xm.session import Session

CREATE = Options(
    "qf:F:npcxsh",
    {
        "quiet": "q",
        "path=": "path",
        "defconfig=": "f",
        "config=": "F",
        "dryrun": "n",
        "paused": "p",
        "console_autoconnect": "c",
        "xmldryrun": "x",
        "skipdtd": "s",
        "vncviewer": "v",
        "vncviewer-autopass": "v",
        "help_config": "help_config",
        "help": "h",
    },
)
SEARCH_PATH = ".:/etc/xen"
DEFAULT_FILE = "xmdefconfig"


def find(name: str, path: str) -> str:
    """The file `name` stands for: as it is when it has a folder, else from the first folder of `path` that
    has it.

    Raises: Failure.
    """
    for folder in [""] if "/" in name else path.split(":"):
        candidate = os.path.join(folder, name)
        if os.path.isfile(candidate):
            return candidate
    raise Failure(f'Cannot open config file "{name}"')


def read(path: str) -> str:
    """Raises: Failure."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(config.MAX_FILE + 1)
    except OSError as error:
        raise Failure(f"Cannot read file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(f"Cannot read file {path}: it is not text") from None


class _Request:
    """The words of a `create` command line, and the configuration they lead to."""

    def __init__(self, args: list[str]) -> None:
        self.options, rest = CREATE.parse(args)
        self.variables: dict[str, str] = {}
        files = []
        for word in rest:
            name, equals, text = word.partition("=")
            if equals:
                self.variables[name.strip()] = text.strip()
            else:
                files.append(word)
        if len(files) > 1:
            raise UsageError(f"more than one configuration file: {' '.join(files)}")
        self.file = files[0] if files else self.options.get("f", DEFAULT_FILE)
        if "v" in self.options:
            raise Failure("a VNC viewer cannot be started yet")
        if "x" in self.options:
            raise Failure("a dry run in XML is not built yet")

    def has(self, option: str) -> bool:
        return option in self.options

    def say(self, text: str) -> None:
        if not self.has("q"):
            sys.stdout.write(text + "\n")

    def load(self, check_files: bool) -> sxp.Sxp:
        """The `(vm ...)`. Raises: Failure."""
        if self.has("F"):
            return _parse_sxp(read(self.options["F"]), self.options["F"])
        path = find(self.file, self.options.get("path", SEARCH_PATH))
        self.say(f'Using config file "{path}".')
        try:
            vm, warnings = config.load(read(path), path, self.variables, check_files=check_files)
        except config.ConfigError as error:
            raise Failure(str(error)) from None
        for warning in warnings:
            sys.stderr.write(f"Warning: {warning}\n")
        return vm


def _parse_sxp(text: str, path: str) -> sxp.Sxp:
    try:
        found = sxp.parse(text)
    except sxp.SxpError as error:
        raise Failure(f"{path}: {error}") from None
    if len(found) != 1 or sxp.name(found[0]) not in ("vm", "domain"):
        raise Failure(f"{path}: must hold one (vm ...)")
    return found[0]


def _print_keys(session: Session) -> None:
    from toolstack.xm import manual

    session.print(manual.keys(config.KEYS))


def create(session: Session, args: list[str]) -> None:
    request = _Request(args)
    if request.has("help_config"):
        _print_keys(session)
        return
    vm = request.load(session.server.local)
    if request.has("n"):
        session.print(sxp.pretty(vm))
        return
    name = str(sxp.child_value(vm, "name", "domain"))
    made = session.call("xend.domain.create", vm, waiting=f"Creating {name}")
    name, domid = str(sxp.child_value(made, "name")), int(sxp.child_value(made, "domid"))
    isolation = str(sxp.child_value(made, "isolation", "full"))
    if isolation != "full":
        sys.stderr.write(f"Warning: {name}: {isolation}\n")
    paused, console = request.has("p"), request.has("c")
    try:
        session.call_again("xend.domain.waitForDevices", name, waiting=f"Waiting for the devices of {name}")
        if not paused and not console:
            session.call_again("xend.domain.unpause", name)
    except BaseException:
        _undo(session, name)
        raise
    request.say(f"Started domain {name} (id={domid})")
    if console:
        sys.stdout.flush()
        attach_and_unpause(session, name, None if paused else name)


def _undo(session: Session, name: str) -> None:
    try:
        session.call_again("xend.domain.destroy", name)
    except (Fault, ProtocolError, OSError):
        pass  # the first error is the one to report


def new(session: Session, args: list[str]) -> None:
    request = _Request(args)
    if request.has("help_config"):
        _print_keys(session)
        return
    vm = request.load(session.server.local)
    if request.has("n"):
        session.print(sxp.pretty(vm))
        return
    session.call("xend.domain.new", vm)
