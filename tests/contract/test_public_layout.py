"""Our public headers against Debian's libxen-dev: every field's place, size and sign, every constant's value.

The names come out of our headers through cffi, so a new struct or constant is covered by being there. Small C
programs print what the compiler makes of each with Xen's headers, and of each constant with ours.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest

from hyper.public.headers import PUBLIC, declarations, public_headers

ORACLE = Path("/usr/include/xen")
ORACLE_HEADERS = (
    "xen.h errno.h version.h features.h memory.h event_channel.h grant_table.h sched.h vcpu.h callback.h "
    "physdev.h domctl.h sysctl.h elfnote.h arch-x86/cpuid.h io/console.h io/xs_wire.h io/xenbus.h "
    "io/ring.h io/netif.h io/blkif.h"
).split()
TOOLS = "-D__XEN_TOOLS__"  # the newest interface version, with domctl and sysctl
HYPERVISOR = "-D__XEN__"  # and the few constants that Xen keeps to itself

# Families that must be complete: each object-like macro of Xen's with this prefix exists in our headers.
FAMILIES = (
    "__HYPERVISOR_[a-z]|DOMID_|VIRQ_|MMU_|MMUEXT_|UVMF_|VMASST_|CONSOLEIO_|SIF_|FLAT_|SEGBASE_|XENVER_|XENFEAT_"
    "|EVTCHNOP_|EVTCHNSTAT_|EVTCHN_FIFO_|GNTTABOP_(?!error_msgs)|GNTST_|GTF_|GNTMAP_|GNTCOPY_|SCHEDOP_|SHUTDOWN_"
    "|VCPUOP_|RUNSTATE_|CALLBACK|PHYSDEVOP_[a-z]|XEN_ELFNOTE_|XENMAPSPACE_|XEN_DOMCTL_CDF_|XEN_DOMINF_|XEN_SCHEDULER_"
    "|XEN_DOMCTL_PFINFO_|XEN_DOMCTL_(?!vmtrace_(?!op))[a-z]|XEN_SYSCTL_(?!pm_op_)[a-z]|XEN_SYSCTL_PHYSCAP_|XEN_SYSCTL_CPUPOOL_|XENSTORE_"
    "|BLKIF_|VDISK_|NETTXF_|NETRXF_|NETIF_RSP_|XEN_NETIF_"
)


def regions() -> str:
    return declarations(public_headers())


def parse() -> cffi.FFI:
    ffi = cffi.FFI()
    ffi.cdef(regions())
    return ffi


FFI = parse()


def aggregates() -> list[str]:
    """Every struct and union with a tag, as C spells it."""
    _, structs, unions = FFI.list_types()
    names = [f"struct {name}" for name in structs] + [f"union {name}" for name in unions]
    return [name for name in names if " $" not in name]


def constants() -> list[str]:
    text = regions()
    enumerators = [
        match[1]
        for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", text)
        for match in re.finditer(r"(\w+)\s*=", body)
    ]
    return enumerators + re.findall(r"^#define (\w+)", text, re.MULTILINE)


def places(kind: Any, prefix: str = "", base: int = 0) -> Iterator[tuple[str, int, int | None, str]]:
    """Each field below `kind`: (path, offset, size or None for a flexible array, sign or '?')."""
    for name, field in kind.fields or ():
        offset, inner = base + field.offset, field.type
        path = f"{prefix}.{name}" if name and prefix else name or prefix
        flexible = inner.kind == "array" and inner.length is None
        if name:
            yield path, offset, None if flexible else FFI.sizeof(inner), sign(inner)
        if inner.kind == "array" and not flexible and inner.item.kind in ("struct", "union"):
            inner, path = inner.item, f"{path}[0]"
        if inner.kind in ("struct", "union"):
            yield from places(inner, path, offset)


def sign(kind: Any) -> str:
    if kind.kind != "primitive" or kind.cname == "char":
        return "?"
    return "-" if int(FFI.cast(kind, -1)) < 0 else "+"


PRELUDE = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#define SIGN(x) _Generic((x), signed char: '-', short: '-', int: '-', long: '-', long long: '-', \\
    unsigned char: '+', unsigned short: '+', unsigned int: '+', unsigned long: '+', \\
    unsigned long long: '+', default: '?')
#define AT(type) (*(type *)0)
"""


def run(folder: Path, name: str, options: list[str], headers: list[str], lines: list[str]) -> list[str]:
    """Compiles and runs a program of `lines`; its output, line by line."""
    source, program = folder / f"{name}.c", folder / name
    includes = "".join(f"#include {header}\n" for header in headers)
    source.write_text(PRELUDE + includes + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
    built = subprocess.run(
        ["gcc", "-std=gnu11", *options, "-o", str(program), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        errors = [line for line in built.stderr.splitlines() if "error:" in line]
        pytest.fail(
            f"{name} doesn't compile, a name may not be Xen's:\n" + "\n".join(errors[:20]), pytrace=False
        )
    return subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="session")
def oracle_headers() -> list[str]:
    if not (ORACLE / "domctl.h").is_file():
        pytest.fail("Xen's own headers aren't here: install Debian's package libxen-dev", pytrace=False)
    return [f"<xen/{name}>" for name in ORACLE_HEADERS]


@pytest.fixture(scope="session")
def layouts(
    oracle_headers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, list[str]]]:
    """Xen's answer for each of our aggregates: path -> [offset, size, sign]; the path "" is the whole."""
    lines = []
    for name in aggregates():
        lines.append(f'printf("{name}\\t\\t0\\t%zu\\t?\\n", sizeof({name}));')
        for path, _, size, _ in places(FFI.typeof(name)):
            place = f"offsetof({name}, {path})"
            field = f"AT({name}).{path}"
            measured = f"sizeof({field})" if size is not None else "(size_t)0"
            signed = f"SIGN({field})" if size is not None else "'?'"
            lines.append(f'printf("{name}\\t{path}\\t%zu\\t%zu\\t%c\\n", {place}, {measured}, {signed});')
    answers: dict[str, dict[str, list[str]]] = {}
    for line in run(tmp_path_factory.mktemp("layout"), "xen_layout", [TOOLS], oracle_headers, lines):
        name, path, *rest = line.split("\t")
        answers.setdefault(name, {})[path] = rest
    return answers


def values(folder: Path, name: str, options: list[str], headers: list[str]) -> dict[str, int]:
    lines = [f'printf("{constant} %llu\\n", (unsigned long long)({constant}));' for constant in constants()]
    output = run(folder, name, options, headers, lines)
    return {constant: int(value) for constant, value in map(str.split, output)}


def our_headers() -> tuple[list[str], list[str]]:
    """Options and include names for a program with our headers."""
    return ["-iquote", str(PUBLIC)], [f'"{path.relative_to(PUBLIC)}"' for path in public_headers()]


def test_cffi_reads_every_region() -> None:
    assert "struct xen_domctl" in aggregates()
    assert "union grant_entry_v2" in aggregates()
    assert len(aggregates()) > 100
    assert "XEN_ERESTART" in constants()


@pytest.mark.parametrize("name", aggregates())
def test_layout(name: str, layouts: dict[str, dict[str, list[str]]]) -> None:
    xen = layouts[name]
    assert str(FFI.sizeof(name)) == xen[""][1], f"size of {name}"
    for path, offset, size, signed in places(FFI.typeof(name)):
        xen_offset, xen_size, xen_sign = xen[path]
        assert (offset, size or 0) == (int(xen_offset), int(xen_size)), f"{name}: {path}"
        if "?" not in (signed, xen_sign):
            assert signed == xen_sign, f"{name}: sign of {path}"


def test_constants(oracle_headers: list[str], tmp_path: Path) -> None:
    (tmp_path / "xen").mkdir()
    (tmp_path / "xen" / "lib.h").touch()  # a header of the hypervisor's own that HYPERVISOR asks for
    xen = values(tmp_path, "xen_values", [TOOLS, HYPERVISOR, "-I", str(tmp_path)], oracle_headers)
    ours = values(tmp_path, "our_values", *our_headers())
    assert {name: (value, xen[name]) for name, value in ours.items() if value != xen[name]} == {}


def test_families_are_complete(oracle_headers: list[str]) -> None:
    text = "".join(f"#include {header}\n" for header in oracle_headers)
    macros = subprocess.run(
        ["gcc", "-std=gnu11", TOOLS, "-E", "-dM", "-"], input=text, capture_output=True, text=True, check=True
    ).stdout
    xen = set(re.findall(rf"^#define ((?:{FAMILIES})\w*) ", macros, re.MULTILINE))
    assert len(xen) > 300
    assert sorted(xen - set(constants())) == []


@pytest.mark.parametrize("header", public_headers(), ids=lambda path: str(path.relative_to(PUBLIC)))
def test_header_compiles_alone(header: Path) -> None:
    """Each header includes what it needs; its static assertions hold; it warns about nothing."""
    command = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c", str(header)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_every_struct_is_asserted() -> None:
    """A struct that changes size by accident must not compile, here or in whatever uses the headers."""
    text = "".join(path.read_text() for path in public_headers())
    asserted = set(re.findall(r"_Static_assert\(sizeof\((struct \w+|union \w+)\)", text))
    assert sorted(set(aggregates()) - asserted) == []
