"""Command line options the way GNU getopt reads them. Pure.

The stdlib's getopt and argparse cost 5 and 15 ms of start-up, as much as all the rest of `xm list`.
"""

from __future__ import annotations

from toolstack.xm.errors import UsageError


class Options:
    """What a command accepts.

    `short` is a string as for getopt (`"d:w:"`: a colon means "takes a value"); `long` maps long names to the
    short name they stand for, or to themselves; a long name ending in `=` takes a value.
    """

    def __init__(self, short: str = "", long: dict[str, str] | None = None) -> None:
        self.short = {char: short[at + 1 : at + 2] == ":" for at, char in enumerate(short) if char != ":"}
        self.long = long or {}

    def parse(self, args: list[str]) -> tuple[dict[str, str], list[str]]:
        """Options may stand among the arguments; `--` ends them.

        Returns: option name (the short one where there is one) -> value or "", and the other arguments.
        Raises: UsageError.
        """
        found: dict[str, str] = {}
        rest: list[str] = []
        queue = list(args)
        while queue:
            arg = queue.pop(0)
            if arg == "--":
                return found, rest + queue
            if arg.startswith("--"):
                self._parse_long(arg[2:], queue, found)
            elif arg.startswith("-") and len(arg) > 1:
                self._parse_short(arg[1:], queue, found)
            else:
                rest.append(arg)
        return found, rest

    def _parse_long(self, text: str, queue: list[str], found: dict[str, str]) -> None:
        given, equals, value = text.partition("=")
        names = [name for name in self.long if name.rstrip("=").startswith(given)]
        exact = [name for name in names if name.rstrip("=") == given]
        if not names:
            raise UsageError(f"option --{given} not recognized")
        if len(names) > 1 and not exact:
            raise UsageError(f"option --{given} not a unique prefix")
        name = (exact or names)[0]
        if not name.endswith("="):
            if equals:
                raise UsageError(f"option --{name} must not have an argument")
        elif not equals:
            value = self._next(queue, f"--{given}")
        found[self.long[name]] = value

    def _parse_short(self, text: str, queue: list[str], found: dict[str, str]) -> None:
        while text:
            char, text = text[0], text[1:]
            if char not in self.short:
                raise UsageError(f"option -{char} not recognized")
            found[char] = ""
            if self.short[char]:
                found[char] = text or self._next(queue, f"-{char}")
                return

    @staticmethod
    def _next(queue: list[str], name: str) -> str:
        if not queue:
            raise UsageError(f"option {name} requires argument")
        return queue.pop(0)


def check_count(args: list[str], command: str, low: int, high: int | None = None) -> None:
    """Raises: UsageError, in xm's words, when the command line has fewer or more words than the command
    takes.
    """
    count = len(args)
    if high is None and count != low:
        raise UsageError(f"'xm {command}' requires {low} argument{'' if low == 1 else 's'}.")
    if high is not None and not low <= count <= high:
        raise UsageError(f"'xm {command}' requires between {low} and {high} arguments.")


def integer(text: str, what: str) -> int:
    """Raises: UsageError."""
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{what} must be a number, not '{text}'") from None


_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def mebibytes(text: str) -> int:
    """`512`, `512m`, `1g` or `524288k` in MiB, rounded down. Raises: UsageError."""
    unit = _UNITS.get(text[-1:].lower())
    if unit is None:
        return integer(text, "memory")
    return integer(text[:-1], "memory") * unit >> 20
