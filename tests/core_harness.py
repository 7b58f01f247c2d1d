"""Builds the core's memory files with the stand-ins of tests/unit/core: a program or a ctypes library."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "hyper" / "core"
HARNESS = ROOT / "tests" / "unit" / "core"
SOURCES = [CORE / f"{name}.c" for name in "bank page_alloc page_type physmap memory pv/mm".split()]

PTE_PRESENT, PTE_RW, PTE_USER, PTE_PSE = 1, 2, 4, 0x80
L1, L2, L3, L4, SEG_DESC, WRITABLE, SHARED = range(1, 8)


def compile_harness(output: Path, extra: list[Path], *flags: str) -> Path:
    """`output`, linked from the files under test, the harness and `extra`."""
    command = ["gcc", "-g", "-std=gnu11", "-Wall", "-Wextra", "-fno-strict-aliasing", "-pthread", *flags]
    for folder in (CORE, CORE.parent / "public", CORE.parent, HARNESS):
        command += ["-iquote", str(folder)]
    command += [str(path) for path in (HARNESS / "harness.c", *extra, *SOURCES)]
    subprocess.run([*command, "-o", str(output)], check=True)
    return output


def load_library(folder: Path) -> ctypes.CDLL:
    """The harness and its `driver.c`, whose functions are described there."""
    path = compile_harness(folder / "harness.so", [HARNESS / "driver.c"], "-O1", "-shared", "-fPIC")
    lib = ctypes.CDLL(str(path))
    pointer, u32, u64, i64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64
    for name, result, arguments in (
        ("machine_new", pointer, [ctypes.c_uint]),
        ("machine_free", None, [pointer]),
        ("audit", ctypes.c_int, [pointer]),
        ("domain_new", pointer, [pointer, u32, ctypes.c_int, u64, u32]),
        ("domain_free", None, [pointer]),
        ("drive_free_frames", u64, [pointer]),
        ("drive_alloc_heap", u64, [pointer, u32]),
        ("drive_free_heap", None, [pointer, u64, u32]),
        ("drive_alloc_domheap", u64, [pointer, u32]),
        ("drive_release", i64, [pointer, u64, u32]),
        ("drive_hold", ctypes.c_int, [pointer, u64]),
        ("drive_unhold", None, [pointer, u64]),
        ("drive_is_zero", ctypes.c_int, [pointer, u64, u32]),
        ("drive_fill", None, [pointer, u64, u32]),
        ("drive_relinquish", u32, [pointer]),
        ("drive_tot_pages", u64, [pointer]),
        ("drive_write", i64, [pointer, u64, u32, u64, ctypes.c_int]),
        ("drive_read", u64, [pointer, u64, u32]),
        ("drive_pin", i64, [pointer, u32, u64]),
        ("drive_unpin", i64, [pointer, u64]),
        ("drive_baseptr", i64, [pointer, u64, ctypes.c_int]),
        ("drive_type", u32, [pointer, u64]),
        ("drive_type_count", u32, [pointer, u64]),
        ("drive_count", u32, [pointer, u64]),
        ("drive_touch", None, [pointer, u64]),
    ):
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    return lib
