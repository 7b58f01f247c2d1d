"""What both ends of xend's XML-RPC agree on beyond the protocol itself.

The legacy interface has a quirk: a result that is one bare string travels escaped like the inside of a Python
string literal, because XML cannot carry control characters. Old clients undo that by executing the text;
nothing here ever does.
"""

from __future__ import annotations

FAULT_INTERNAL = 1
FAULT_GENERIC = 2
FAULT_INVALID_DOMAIN = 3

MAX_BODY = 1 << 20
"""Bytes of the largest request."""

_NAMES = {"\\": "\\\\", "'": "\\'", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_VALUES = {value[1]: key for key, value in _NAMES.items()} | {"a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_DIGITS = {"x": 2, "u": 4, "U": 8}
_OCTAL = "01234567"
_HEX = _OCTAL + "89abcdefABCDEF"


def carried_by_xml(char: str) -> bool:
    """Whether XML 1.0 can carry the character at all."""
    code = ord(char)
    return (code >= 0x20 and not 0xD800 <= code < 0xE000 and code not in (0xFFFE, 0xFFFF)) or char in "\t\n\r"


def _escape(char: str) -> str:
    if char in _NAMES:
        return _NAMES[char]
    code = ord(char)
    if code < 0x20 or 0x7F <= code < 0xA0:
        return f"\\x{code:02x}"
    return char if carried_by_xml(char) else f"\\u{code:04x}"


class _Escapes(dict[int, str]):
    """The table of `str.translate`, filled as characters turn up."""

    def __missing__(self, code: int) -> str:
        self[code] = _escape(chr(code))
        return self[code]


_TABLE = _Escapes()


def escape_result(text: str) -> str:
    """A bare string result as it travels: safe inside a Python literal of either quote, and in XML."""
    return text.translate(_TABLE)


def _code(text: str, at: int, most: int, digits: str, base: int) -> tuple[int, int]:
    """Returns: the number of at most `most` digits at `at`, -1 for none, and where it ends."""
    end = at
    while end < min(at + most, len(text)) and text[end] in digits:
        end += 1
    return (int(text[at:end], base) if end > at else -1), end


def unescape_result(text: str) -> str:
    """What `escape_result` was given; understands an older server's repr as well. Never fails: an escape
    nobody knows stands for itself.
    """
    out, start, at = [], 0, text.find("\\")
    while 0 <= at < len(text) - 1:
        out.append(text[start:at])
        letter, code, end = text[at + 1], -1, at + 2
        if letter in _DIGITS:
            code, end = _code(text, at + 2, _DIGITS[letter], _HEX, 16)
            code = code if end - at - 2 == _DIGITS[letter] else -1
        elif letter in _OCTAL:
            code, end = _code(text, at + 1, 3, _OCTAL, 8)
        if 0 <= code < 0x110000:
            out.append(chr(code))
        else:
            out.append(_VALUES.get(letter, "\\" + letter))
            end = at + 2
        start, at = end, text.find("\\", end)
    return "".join(out) + text[start:]
