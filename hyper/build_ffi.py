"""Builds `hyper._core`: the hypervisor's C core. The sources know nothing of Python; see core/hv.h.

setuptools runs this (cffi_modules).
"""

import sys
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hyper.public.headers import PUBLIC, declarations  # noqa: E402

CORE = ROOT / "hyper" / "core"


def ffi() -> cffi.FFI:
    builder = cffi.FFI()
    builder.cdef(declarations([CORE / "hv.h"]))
    builder.set_source(
        "hyper._core",
        '#include "hv.h"',
        sources=sorted(str(path.relative_to(ROOT)) for path in CORE.rglob("*.c")),
        depends=sorted(str(path.relative_to(ROOT)) for path in (*CORE.rglob("*.h"), *PUBLIC.rglob("*.h"))),
        # -iquote, not -I: our errno.h, sched.h and memory.h must not stand before the system's.
        extra_compile_args=[
            "-O2", "-g", "-Wall", "-Wextra", "-std=gnu11", "-fno-strict-aliasing", "-pthread",
            "-fvisibility=hidden",
            "-iquote", str(CORE), "-iquote", str(PUBLIC), "-iquote", str(CORE.parent),
        ],
        extra_link_args=["-pthread"],
    )  # fmt: skip
    return builder
