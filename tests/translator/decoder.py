"""The C decoder from Python."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORE = HERE.parent.parent / "hyper" / "core"
DECODER = [CORE / "cpu" / "features.c", *sorted((CORE / "cpu" / "decode").glob("*.c"))]
MAX_BYTES = 15
STRIDE = 16


BYTES = """length kind map opcode operand_size memory_size access has_modrm mod reg rm fpu may_fault lock
rip_relative address_32 address_16 segment scale feature vex vsib""".split()


class Decoded(ctypes.Structure):
    """struct decoded of decode_shim.c."""

    _fields_ = [
        *((name, ctypes.c_uint8) for name in BYTES),
        *((name, ctypes.c_int8) for name in ("base", "index")),
        *((name, ctypes.c_uint16) for name in ("flags_read", "flags_kill", "flags_touch")),
        ("disp", ctypes.c_int32),
    ]


def enumerators(header: str, enum: str, prefix: str) -> list[str]:
    """Names of an enum of a header in core/cpu, in its order, without the prefix."""
    text = (CORE / "cpu" / header).read_text()
    body = re.search(rf"enum {enum} \{{(.*?)\}};", text, re.S)[1]  # type: ignore[index]
    names = re.sub(r"/\*.*?\*/", "", body, flags=re.S).split(",")
    return [name.strip().removeprefix(prefix) for name in names if name.strip()]


def kinds() -> list[str]:
    """Names of enum insn_kind."""
    return enumerators("decode.h", "insn_kind", "INSN_")


def feature_bits(*names: str) -> int:
    """A set of enum cpu_feature."""
    known = enumerators("features.h", "cpu_feature", "CPU_")
    return sum(1 << known.index(name) for name in names)


def build_library(folder: Path) -> Path:
    """Compiles the decoder into `folder`."""
    library = folder / "decoder.so"
    command = "gcc -g -O1 -std=gnu11 -Wall -Wextra -shared -fPIC -fno-strict-aliasing".split()
    for path in (CORE, CORE.parent / "public"):
        command += ["-iquote", str(path)]
    sources = [HERE / "decode_shim.c", *DECODER]
    subprocess.run([*command, *map(str, sources), "-o", str(library)], check=True)
    return library


class Decoder:
    """Calls the decoder. `features` may be changed: those of the host at first."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.features_of_host.restype = ctypes.c_uint64
        self.features: int = self.library.features_of_host()
        self.kinds = kinds()

    def decode(self, instructions: Sequence[bytes], compat: bool = False) -> Sequence[Decoded]:
        """One record per instruction; missing bytes are zeros."""
        packed = b"".join(i[:MAX_BYTES].ljust(STRIDE, b"\0") for i in instructions)
        out = (Decoded * len(instructions))()
        features = ctypes.c_uint64(self.features)
        self.library.decode_many(packed, STRIDE, len(instructions), features, int(compat), out)
        return out

    def kind(self, decoded: Decoded) -> str:
        """INVALID, GENERAL, ..."""
        return self.kinds[decoded.kind]
