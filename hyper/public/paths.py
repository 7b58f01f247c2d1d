"""Where a host instance keeps its sockets (runtime folder) and what survives it (state folder)."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

DEFAULT_HOST = "default"
_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")
_MAX_SOCKET_PATH = 107  # struct sockaddr_un, without the closing NUL


@dataclass(frozen=True)
class HostPaths:
    """The files of host instance `name`. Paths only: nothing is created before create()."""

    name: str
    runtime: Path
    state: Path

    @classmethod
    def from_environment(cls, name: str | None = None) -> Self:
        """Paths of host `name`, or of $UMXEN_HOST, or of "default".

        Raises: ValueError for a name that is no file name of at most 31 characters, or a runtime folder too
        long for a socket address.
        """
        name = name or os.environ.get("UMXEN_HOST") or DEFAULT_HOST
        if not _HOST_NAME.fullmatch(name):
            raise ValueError(f"host name {name!r}: want up to 31 letters, digits, '.', '_' or '-'")
        paths = cls(name, _runtime_base() / name, _state_base() / name)
        longest = paths.console(0xFFFF)
        if len(os.fsencode(longest)) > _MAX_SOCKET_PATH:
            raise ValueError(
                f"{longest}: longer than the {_MAX_SOCKET_PATH} bytes of a socket address;"
                " set XDG_RUNTIME_DIR to a shorter folder"
            )
        return cls(name, paths.runtime, paths.state)

    @property
    def control(self) -> Path:
        """hyper's control socket."""
        return self.runtime / "control"

    @property
    def control_lock(self) -> Path:
        """Held (flock) by hyper as long as it runs."""
        return self.runtime / "control.lock"

    @property
    def xenstored(self) -> Path:
        return self.runtime / "xenstored.sock"

    @property
    def xend(self) -> Path:
        return self.runtime / "xend.sock"

    @property
    def netback(self) -> Path:
        """netback's control socket: networks and captures."""
        return self.runtime / "netback.sock"

    @property
    def networks(self) -> Path:
        """The networks of the host, as `umxen network` made them."""
        return self.state / "networks.json"

    @property
    def console_dir(self) -> Path:
        return self.runtime / "console"

    def console(self, domid: int) -> Path:
        """xenconsoled's stream socket for one domain."""
        return self.console_dir / f"{domid}.sock"

    @property
    def supervisor_lock(self) -> Path:
        return self.runtime / "supervisor.lock"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def database(self) -> Path:
        return self.state / "xend.sqlite"

    def create(self) -> None:
        """Makes the folders, 0700, and refuses a runtime folder that is not ours alone.

        Raises: OSError; PermissionError when another user owns a folder of ours.
        """
        for folder in (self.runtime.parent, self.runtime, self.console_dir, self.state, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.runtime.parent, self.runtime):
            status = folder.lstat()
            if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
                raise PermissionError(f"{folder} is not a folder of our own")
        self.runtime.chmod(0o700)


def _runtime_base() -> Path:
    if configured := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(configured) / "umxen"
    user = Path(f"/run/user/{os.geteuid()}")
    return user / "umxen" if os.access(user, os.W_OK) else Path(f"/tmp/umxen-{os.geteuid()}")


def _state_base() -> Path:
    configured = os.environ.get("XDG_STATE_HOME")
    return (Path(configured) if configured else Path.home() / ".local" / "state") / "umxen"
