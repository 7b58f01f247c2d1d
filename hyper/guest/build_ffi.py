"""Builds `hyper.guest._guest`: rings in C, and the public headers' structures and constants.

setuptools runs this (cffi_modules); by hand: `python hyper/guest/build_ffi.py`, from the top folder.
"""

import sys
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hyper.public.headers import PUBLIC, declarations, public_headers  # noqa: E402

GUEST = ROOT / "hyper" / "guest"
HEADERS = [GUEST / f"{name}.h" for name in ("bank", "front", "grant_entries", "hcall", "rings")]


def ffi() -> cffi.FFI:
    builder = cffi.FFI()
    headers = public_headers()
    builder.cdef(declarations([*headers, *HEADERS]))
    includes = [f'#include "{path.relative_to(PUBLIC)}"' for path in headers]
    includes += [f'#include "{path.name}"' for path in HEADERS]
    builder.set_source(
        "hyper.guest._guest",
        "\n".join(includes),
        sources=[f"hyper/guest/{path.stem}.c" for path in HEADERS],
        depends=[str(path.relative_to(ROOT)) for path in (*PUBLIC.rglob("*.h"), *HEADERS)],
        # Not -I: our errno.h and sched.h must not stand before the system's.
        extra_compile_args=[
            "-O2", "-g", "-Wall", "-Wextra", "-std=gnu11", "-iquote", str(PUBLIC), "-iquote", str(GUEST),
        ],
    )  # fmt: skip
    return builder


if __name__ == "__main__":
    from setuptools import setup

    setup(cffi_modules=["hyper/guest/build_ffi.py:ffi"], script_args=["-q", "build_ext", "--inplace"])
