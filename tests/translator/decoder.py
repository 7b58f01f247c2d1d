"""The C decoder from Python."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORE = HERE.parent.parent / "hyper" / "core"
MAX_BYTES = 15
STRIDE = 16


BYTES = """length kind map opcode operand_size memory_size access has_modrm mod reg rm fpu may_fault lock
rip_relative address_32 segment scale""".split()


class Decoded(ctypes.Structure):
    """struct decoded of decode_shim.c."""

    _fields_ = [
        *((name, ctypes.c_uint8) for name in BYTES),
        *((name, ctypes.c_int8) for name in ("base", "index")),
        *((name, ctypes.c_uint16) for name in ("flags_read", "flags_kill", "flags_touch")),
        ("disp", ctypes.c_int32),
    ]


def kinds() -> list[str]:
    """Names of enum insn_kind, in its order, without INSN_."""
    text = (CORE / "cpu" / "decode.h").read_text()
    body = re.sub(r"/\*.*?\*/", "", re.search(r"enum insn_kind \{(.*?)\};", text, re.S)[1], flags=re.S)  # type: ignore[index]
    return [name.strip().removeprefix("INSN_") for name in body.split(",") if name.strip()]


class Decoder:
    """Compiles the decoder into `folder` and calls it."""

    def __init__(self, folder: Path) -> None:
        library = folder / "decoder.so"
        command = [
            "gcc",
            "-g",
            "-O1",
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-shared",
            "-fPIC",
            "-fno-strict-aliasing",
        ]
        for path in (CORE, CORE.parent / "public"):
            command += ["-iquote", str(path)]
        sources = [HERE / "decode_shim.c", *sorted((CORE / "cpu" / "decode").glob("*.c"))]
        subprocess.run([*command, *map(str, sources), "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))
        self.kinds = kinds()

    def decode(self, instructions: Sequence[bytes]) -> Sequence[Decoded]:
        """One record per instruction; missing bytes are zeros."""
        packed = b"".join(i[:MAX_BYTES].ljust(STRIDE, b"\0") for i in instructions)
        out = (Decoded * len(instructions))()
        self.library.decode_many(packed, STRIDE, len(instructions), out)
        return out

    def kind(self, decoded: Decoded) -> str:
        """INVALID, GENERAL, ..."""
        return self.kinds[decoded.kind]
