"""Builds `backends.blkback._blkback`: the data path in C. setuptools runs this (cffi_modules)."""

import sys
from collections.abc import Iterable
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hyper.public.headers import PUBLIC, declarations  # noqa: E402

HERE = ROOT / "backends" / "blkback"
GUEST = ROOT / "hyper" / "guest"
HEADERS = ("hcall.h", "io.h", "journal.h", "queue.h")


def relative(paths: Iterable[Path]) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def ffi() -> cffi.FFI:
    builder = cffi.FFI()
    headers = [GUEST / HEADERS[0], *(HERE / name for name in HEADERS[1:])]
    builder.cdef(declarations(headers))
    builder.set_source(
        "backends.blkback._blkback",
        "\n".join(f'#include "{name}"' for name in HEADERS),
        sources=["hyper/guest/hcall.c", *relative(HERE.glob("[!_]*.c"))],
        depends=relative([*HERE.glob("*.h"), *PUBLIC.rglob("*.h"), headers[0]]),
        # Not -I: our errno.h and sched.h must not stand before the system's.
        extra_compile_args=[
            "-O2", "-g", "-Wall", "-Wextra", "-std=gnu11", "-fno-strict-aliasing", "-pthread",
            "-fvisibility=hidden",
            "-iquote", str(PUBLIC), "-iquote", str(GUEST), "-iquote", str(HERE),
        ],
        extra_link_args=["-pthread"],
    )  # fmt: skip
    return builder
