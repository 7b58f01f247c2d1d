"""`python -m dom0.launch MODULE [options]` is `python -m MODULE [options]`, without one import.

structlog imports rich where that is installed, for colours that no log shows: 0.14 s of CPU, a third of what
most daemons need to start. Nothing that runs in a daemon uses rich otherwise.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any


def main() -> None:
    modules: dict[str, Any] = sys.modules
    modules["rich"] = None  # importing it is an ImportError from now on
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
