"""What cffi reads of our C headers, so that no declaration is written twice. Used at build time only.

Each header has a region between two marker comments: plain declarations and object-like macros. A header's
region comes after the regions of the headers it includes. The value of a macro is left to the compiler
(`#define X ...`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PUBLIC = Path(__file__).resolve().parent

_BEGIN, _END = "/* cffi: begin */", "/* cffi: end */"
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_MACRO = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+(?:[^\\\n]|\\\n)+$", re.MULTILINE)


def public_headers() -> list[Path]:
    """Every header of the contract that has a region for cffi, in a stable order."""
    return [path for path in sorted(PUBLIC.rglob("*.h")) if _BEGIN in path.read_text()]


def declarations(headers: Iterable[Path]) -> str:
    """The cffi regions of `headers` and of all they include with quotes, each once, included ones first.

    Raises: ValueError when a region is not closed.
    """
    parts: list[str] = []
    seen: set[Path] = set()

    def visit(path: Path) -> None:
        if path in seen:
            return
        seen.add(path)
        text = path.read_text()
        for name in _INCLUDE.findall(text):
            for folder in (path.parent, PUBLIC):
                if (folder / name).is_file():
                    visit((folder / name).resolve())
                    break
        parts.extend(_regions(path, text))

    for header in headers:
        visit(header.resolve())
    return "\n".join(parts)


def _regions(path: Path, text: str) -> Iterable[str]:
    while _BEGIN in text:
        _, _, text = text.partition(_BEGIN)
        region, end, text = text.partition(_END)
        if not end:
            raise ValueError(f"{path}: '{_BEGIN}' without '{_END}'")
        region = re.sub(r"/\*.*?\*/", "", region, flags=re.DOTALL)
        yield _MACRO.sub(r"#define \1 ...", region)
