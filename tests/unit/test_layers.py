"""Who may import whom: every arrow points towards hyper.public."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KIT = ("hyper.guest", "hyper.public")
# The first prefix that fits a module says what it may import besides its own folder.
ARROWS: dict[str, tuple[str, ...]] = {
    "hyper.public": (),
    "hyper.guest": ("hyper.public",),
    "hyper": ("hyper.public",),
    "dom0": KIT,
    "domu": KIT,
    "backends": KIT,
    "toolstack.lab": ("toolstack", "dom0.libxc", "dom0.supervisor", *KIT),
    "toolstack": ("dom0.libxc", *KIT),
}
ROOMS = ("hyper", "dom0", "domu", "backends", "toolstack")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
INCLUDES = {"hyper/public": ("hyper/public",), "hyper/guest": ("hyper/guest", "hyper/public"),
            "hyper/core": ("hyper/core", "hyper/public"),
            "backends": ("hyper/guest", "hyper/public")}  # fmt: skip


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def imports(tree: ast.AST, package: list[str]) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else node.module or ""
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    module = ".".join(parts).removesuffix(".__init__")
    room = next(prefix for prefix in ARROWS if within(module, prefix))
    for name in imports(ast.parse(path.read_text()), parts[:-1]):
        if not name.startswith(tuple(f"{top}." for top in ROOMS)):
            continue
        allowed = any(within(name, prefix) for prefix in (room, *ARROWS[room]))
        if room == "hyper" and within(name, "hyper.guest"):
            allowed = False  # the hypervisor knows no domain
        assert allowed, f"{module} imports {name}"


def test_only_the_binding_sees_the_core() -> None:
    users = [path for path in FILES if "hyper._core" in path.read_text()]
    assert {path.name for path in users} <= {"binding.py", "build_ffi.py"}


@pytest.mark.parametrize("folder", INCLUDES)
def test_includes(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.[ch]"):
        for name in re.findall(r'#\s*include\s+"([^"]+)"', path.read_text()):
            places = [path.parent, *(ROOT / place for place in INCLUDES[folder])]
            plain = name.removeprefix("public/")
            assert any((place / plain).is_file() for place in places), f"{path}: {name} is not of this room"
