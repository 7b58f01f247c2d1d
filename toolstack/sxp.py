"""S-expressions: the configuration language of xend.

Two forms of one thing. In memory and inside XML-RPC an expression is nested lists of atoms
(``["vm", ["name", "deb"], ["memory", 256]]``); as text it is ``(vm (name deb) (memory 256))``. Text knows
strings only, so numbers come back from it as strings: ``parse(to_string(x)) == [as_text(x)]``.

Textual grammar: lists in ``( )``; an atom ends at whitespace, at a comment or at any of ``{}()<>[];"'``;
strings in single or double quotes with the escapes of C (``\\n``, octal, ``\\x`` hex); ``#`` starts a comment
to the end of line.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would cost xm a quarter of its start-up
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Atom: TypeAlias = str | int | float | bool | None
    Sxp: TypeAlias = Atom | list[Any]
else:
    Sxp = object

MAX_DEPTH = 64
"""Lists nested deeper than this are refused: nothing in xend nests deeper than eight."""

_SPACE = " \t\n\v\f\r"
_ATOM_END = frozenset("{}()<>[];\"'#" + _SPACE)
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:/~")
_ESCAPES = {"a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}
_NAMES = {value: "\\" + key for key, value in _ESCAPES.items()} | {"\\": "\\\\", "'": "\\'"}
_HEX = "0123456789abcdefABCDEF"


class SxpError(ValueError):
    """Text that is no s-expression. `line` and `column` count from 1."""

    def __init__(self, text: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {text}")
        self.line = line
        self.column = column


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def error(self, text: str) -> SxpError:
        before = self.text[: self.at]
        return SxpError(text, before.count("\n") + 1, self.at - (before.rfind("\n") + 1) + 1)

    def string(self) -> str:
        """The string whose opening quote is at `at`; leaves `at` behind the closing one."""
        text, quote, parts = self.text, self.text[self.at], []
        at = start = self.at + 1
        while at < len(text) and text[at] != quote:
            if text[at] == "\\":
                parts.append(text[start:at])
                piece, at = self._escape(at + 1)
                parts.append(piece)
                start = at
            else:
                at += 1
        if at >= len(text):
            raise self.error("this string has no end")
        self.at = at + 1
        return "".join(parts) + text[start:at]

    def _escape(self, at: int) -> tuple[str, int]:
        """Returns: what the escape whose backslash is before `at` stands for, and where it ends."""
        text = self.text
        letter = text[at : at + 1]
        if letter == "x":
            end = at + 1
            while end < at + 3 and text[end : end + 1] and text[end] in _HEX:
                end += 1
            if end > at + 1:
                return chr(int(text[at + 1 : end], 16)), end
        elif letter and letter in "01234567":
            end = at
            while end < at + 3 and text[end : end + 1] and text[end] in "01234567":
                end += 1
            code = int(text[at:end], 8)
            if code > 0xFF:
                raise self.error(f"octal escape \\{text[at:end]} is out of range")
            return chr(code), end
        elif letter in _ESCAPES:
            return _ESCAPES[letter], at + 1
        elif letter and letter in "\\'\"":
            return letter, at + 1
        return "\\" + letter, at + 1  # unknown escapes stand for themselves

    def atom(self) -> str:
        start = self.at
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] not in _ATOM_END:
            self.at += 1
        return self.text[start : self.at]


def parse(text: str) -> list[Sxp]:
    """All expressions of a text. Never recurses.

    Returns: nested lists of strings; an empty list for text of blanks and comments.
    Raises: SxpError.
    """
    reader = _Reader(text)
    top: list[Sxp] = []
    stack = [top]
    while reader.at < len(text):
        char = text[reader.at]
        if char in _SPACE:
            reader.at += 1
        elif char == "#":
            end = text.find("\n", reader.at)
            reader.at = len(text) if end < 0 else end
        elif char == "(":
            if len(stack) > MAX_DEPTH:
                raise reader.error(f"lists nested deeper than {MAX_DEPTH}")
            fresh: list[Sxp] = []
            stack[-1].append(fresh)
            stack.append(fresh)
            reader.at += 1
        elif char == ")":
            if len(stack) == 1:
                raise reader.error("a ')' without its '('")
            stack.pop()
            reader.at += 1
        elif char in "\"'":
            stack[-1].append(reader.string())
        elif char.isprintable():
            stack[-1].append(reader.atom())
        else:
            raise reader.error(f"character {ord(char):#x} does not belong here")
    if len(stack) > 1:
        raise reader.error("a '(' without its ')'")
    return top


def as_text(value: Sxp) -> Sxp:
    """The expression as the text form can carry it: every atom a string."""
    if isinstance(value, (list, tuple)):
        return [as_text(item) for item in value]
    return _word(value)


def _word(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _quote(word: str) -> str:
    if word == "@" or (word and _PLAIN.issuperset(word)):
        return word
    out = []
    for char in word:
        if char in _NAMES:
            out.append(_NAMES[char])
        elif char.isprintable() or ord(char) > 0xFF:
            out.append(char)
        else:
            out.append(f"\\x{ord(char):02x}")
    return "'" + "".join(out) + "'"


def to_string(value: Sxp) -> str:
    """The expression on one line."""
    if isinstance(value, (list, tuple)):
        return "(" + " ".join(to_string(item) for item in value) + ")"
    return _quote(_word(value))


def pretty(value: Sxp, width: int = 80, column: int = 0) -> str:
    """The expression as `xm list --long` prints it, without the last newline.

    A list that fits into the rest of the line stays on it; any other has each element after its head on a
    line of its own, four columns further in, and its closing parenthesis below the opening one.
    """
    flat = to_string(value)
    if not isinstance(value, (list, tuple)) or len(flat) <= width - column:
        return flat
    inner = "\n" + " " * (column + 4)
    lines = ["(" + pretty(value[0], width, column + 1)]
    lines += [pretty(item, width, column + 4) for item in value[1:]]
    return inner.join(lines) + "\n" + " " * column + ")"


def name(value: Sxp) -> str | None:
    """The head of a list, None for anything else."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], str):
        return value[0]
    return None


def children(value: Sxp, key: str) -> list[list[Any]]:
    """All sub-lists whose head is `key`, in order."""
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, list) and item and item[0] == key]


def child(value: Sxp, key: str) -> list[Any] | None:
    """The first sub-list whose head is `key`."""
    found = children(value, key)
    return found[0] if found else None


def child_value(value: Sxp, key: str, default: Any = None) -> Any:
    """The second element of the first sub-list whose head is `key`."""
    found = child(value, key)
    return found[1] if found is not None and len(found) > 1 else default
