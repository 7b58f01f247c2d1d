"""Where the daemons of a host listen.

The same rule as `hyper.public.paths`, without its imports: this file is on the path of every xm command. A
unit test compares the two.
"""

from __future__ import annotations

import os

from toolstack.xm.errors import Failure


def host_name(given: str | None) -> str:
    """Raises: Failure for a name that can be no folder."""
    name = given or os.environ.get("UMXEN_HOST") or "default"
    if len(name) > 31 or not name[0].isalnum() or not name.isascii():
        raise Failure(f"'{name}' is no name of a host")
    if any(not (char.isalnum() or char in "._-") for char in name):
        raise Failure(f"'{name}' is no name of a host")
    return name


def runtime_dir(host: str) -> str:
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return f"{base}/umxen/{host}"
    user = f"/run/user/{os.geteuid()}"
    return f"{user}/umxen/{host}" if os.access(user, os.W_OK) else f"/tmp/umxen-{os.geteuid()}/{host}"
