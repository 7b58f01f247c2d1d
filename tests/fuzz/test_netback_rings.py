"""Any ring contents give responses or a closed vif, and no touch outside granted frames: netback/rings.c.

Built with ASan and UBSan. More games: `UMXEN_FUZZ_GAMES=100000 pytest tests/fuzz/test_netback_rings.py`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GAMES = int(os.environ.get("UMXEN_FUZZ_GAMES", "600"))
SOURCES = [
    "tests/fuzz/netback/rings.c",
    *(f"backends/netback/{name}.c" for name in ("vif", "tx", "rx", "ctrl")),
    *(f"backends/vswitch/{name}.c" for name in ("capture", "fdport", "loop", "offload", "packet", "switch")),
    "hyper/guest/hcall.c",
]
SANITIZED = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rings") / "rings"
    folders = ("hyper/public", "hyper/guest", "backends/netback")
    includes = [word for folder in folders for word in ("-iquote", str(ROOT / folder))]
    command = [
        "gcc",
        "-std=gnu11",
        *SANITIZED,
        *includes,
        *(str(ROOT / name) for name in SOURCES),
        "-lpthread",
    ]
    built = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    return out


@pytest.mark.parametrize("first", [1, 1_000_000])
def test_hostile_rings(program: Path, first: int) -> None:
    played = subprocess.run(
        [program, str(first), str(GAMES // 2)], capture_output=True, text=True, check=False, timeout=3600
    )
    assert played.returncode == 0, played.stderr[-3000:]
    assert played.stdout == f"{GAMES // 2} games\n"
