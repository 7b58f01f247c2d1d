"""Builds `backends.netback._netback`: the rings of guests, the switch, the pump of the NAT child, all in C.

setuptools runs this (cffi_modules); by hand: `python backends/netback/build_ffi.py`, from the top folder.
"""

import sys
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hyper.public.headers import PUBLIC, declarations  # noqa: E402

FOLDERS = ("backends/netback", "backends/vswitch")
GUEST = ROOT / "hyper" / "guest"
HEADERS = (
    GUEST / "hcall.h",
    ROOT / "backends/vswitch/vswitch.h",
    ROOT / "backends/netback/netback.h",
    ROOT / "backends/netback/slirp.h",
)


def ffi() -> cffi.FFI:
    builder = cffi.FFI()
    builder.cdef(declarations(HEADERS))
    ours = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.[ch]"))
    sources = [path for path in ours if path.suffix == ".c"] + [GUEST / "hcall.c"]
    builder.set_source(
        "backends.netback._netback",
        "\n".join(f'#include "{path.name}"' for path in HEADERS),
        sources=[str(path.relative_to(ROOT)) for path in sources],
        depends=[str(path.relative_to(ROOT)) for path in ours] + ["hyper/guest/hcall.h"],
        # Not -I: our errno.h and sched.h must not stand before the system's.
        extra_compile_args=[
            "-O2", "-g", "-Wall", "-Wextra", "-std=gnu11",
            "-iquote", str(ROOT / FOLDERS[0]), "-iquote", str(ROOT / FOLDERS[1]),
            "-iquote", str(PUBLIC), "-iquote", str(GUEST),
        ],
        libraries=["dl", "pthread"],
    )  # fmt: skip
    return builder


if __name__ == "__main__":
    from setuptools import setup

    setup(cffi_modules=["backends/netback/build_ffi.py:ffi"], script_args=["-q", "build_ext", "--inplace"])
