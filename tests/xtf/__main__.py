"""Run the images of the Xen Test Framework, from anyone's build of it, against expected.toml.

`python -m tests.xtf DIR` looks for tests/NAME/test-ENV-NAME[~VARIATION].cfg below DIR (an XTF source tree
after `make`), gives each to `xm create` on a private host, reads its console, and prints one line for it. A
last line counts:

    xtf pv64: success 30 skip 5 failure 0 error 0 crash 1

The exit status is 0 when every outcome is the expected one; an unexpected success is not expected either.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolstack.lab.console import Console, ConsoleError
from toolstack.lab.guest import Guest
from toolstack.lab.host import Host, HostError

EXPECTED = Path(__file__).with_name("expected.toml")
OUTCOMES = ("success", "skip", "failure", "error", "crash")
PATIENCE_SECONDS = 20.0
_RESULT = re.compile(r"Test result: (SUCCESS|SKIP|FAILURE|ERROR)")


@dataclass(frozen=True)
class Expected:
    """What a test comes to here, and why when that is not success."""

    outcome: str
    reason: str = ""


def expectations(path: Path = EXPECTED) -> Mapping[str, Expected]:
    """By the test's name (`test-pv64-xsa-122`). Raises: ValueError for an entry that is none."""
    table = tomllib.loads(path.read_text())
    found = {}
    for name, entry in table.items():
        outcome, reason = entry["outcome"], entry.get("reason", "")
        if outcome not in OUTCOMES or (outcome == "success") == bool(reason):
            raise ValueError(f"{path.name}: {name}: an outcome, and a reason exactly when it is not success")
        found[name] = Expected(outcome, reason)
    return found


def configs(folder: Path, environment: str, wanted: Sequence[str]) -> list[Path]:
    """The configuration files of the tests, by name; where some are `wanted` (`xsa-122`), of those only."""
    found = sorted(folder.glob(f"tests/*/test-{environment}-*.cfg"))
    return [path for path in found if not wanted or path.parent.name in wanted]


def run(host: Host, config: Path) -> tuple[str, str]:
    """One test: its outcome, and what its console showed. Raises: HostError when xm refuses it."""
    host.xm("create", "-p", str(config))
    guest = Guest(host, config.stem)
    try:
        console = guest.attach()
        guest.unpause()
        return outcome(guest, console), console.text
    finally:
        guest.destroy()


def outcome(guest: Guest, console: Console) -> str:
    """What the test says of itself; `crash` where it ends, or is silent, without a word of that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        ended = guest.state() in ("gone", "crashed", "shutdown")
        try:
            return str(console.expect(_RESULT, 0.2).groups[0]).lower()
        except ConsoleError:
            if ended or time.monotonic() > deadline:
                return "crash"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.xtf", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="XTF's source tree after `make`")
    parser.add_argument("tests", nargs="*", metavar="TEST", help="only these, such as xsa-122")
    parser.add_argument("--environment", default="pv64", choices=["pv64"], help="which of its images")
    parser.add_argument("--verbose", action="store_true", help="show the console of what was not expected")
    options = parser.parse_args(argv)
    chosen = configs(options.folder, options.environment, options.tests)
    if not chosen:
        missing = f"tests/*/test-{options.environment}-*.cfg"
        print(f"{options.folder} holds no {missing}: is it built?", file=sys.stderr)
        return 2
    expected = expectations()
    host = Host.private("xtf")
    counts: Counter[str] = Counter()
    surprises = 0
    try:
        host.start()
        for config in chosen:
            try:
                got, text = run(host, config)
            except HostError as error:
                got, text = "error", str(error)
            counts[got] += 1
            want = expected.get(config.stem, Expected("success"))
            remark = want.reason if got == want.outcome else f"expected {want.outcome}"
            print(f"{config.stem:<40} {got:<8} {remark}".rstrip())
            if got != want.outcome:
                surprises += 1
                if options.verbose:
                    print(*(f"    {line}" for line in text.splitlines()), sep="\n")
    finally:
        host.stop()
    print(f"xtf {options.environment}: " + " ".join(f"{name} {counts[name]}" for name in OUTCOMES))
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
