"""Builds the harness, assembles programs for it, runs them, and makes failing programs small."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from tests.translator.atoms.base import ALL_FLAGS_BUT_AF, COMPAT, DATA, RESUME, Program
from tests.translator.decoder import CORE, DECODER

HERE = Path(__file__).resolve().parent
OWN = "blob compare disturb harness lockstep machine native sides smp".split()
SOURCES = [*(HERE / f"{name}.c" for name in OWN), *DECODER]
CODE_START = 0x40000000


def build(folder: Path, *flags: str) -> Path:
    """The harness with the translator in it."""
    output = folder / "harness"
    command = [
        "gcc",
        "-g",
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-fno-strict-aliasing",
        "-pthread",
        *flags,
    ]
    for path in (CORE, CORE.parent / "public", HERE):
        command += ["-iquote", str(path)]
    sources = [*SOURCES, *sorted((CORE / "cpu" / "dbt").glob("*.c"))]
    subprocess.run([*command, *map(str, sources), "-o", str(output)], check=True)
    return output


def lines(text: str) -> list[list[str]]:
    """Atoms of a program written by hand: one per line, its instructions separated by semicolons."""
    return [[part.strip() for part in line.split(";")] for line in text.strip().splitlines()]


# ---- the file of programs --------------------------------------------------------------------------------


def source(programs: Sequence[Program]) -> str:
    """Assembler text: code in .text; in .table, per program, entry, end, last, resume points, and a zero."""
    text = [".text"]
    table = ['.section .table, ""']
    for n, p in enumerate(programs):
        name = f"{n}_{p.seed}"
        text += [f".balign {p.align}, 0x90", ".code32" if p.flags & COMPAT else ".code64", f"P{name}:"]
        table += [f".quad P{name}, E{name}, X{name}"]
        for k, atom in enumerate(p.atoms):
            text.append(f"R{name}_{k}:")
            table.append(f".quad R{name}_{k}")
            for at, line in enumerate(atom):
                text.append(line)
                if line == RESUME:
                    text.append(f"R{name}_{k}_{at}_inside:")
                    table.append(f".quad R{name}_{k}_{at}_inside")
        text += [f"E{name}:", ".byte 0x0f, 0x05", ".skip 40, 0xcc"]
        for number, function in enumerate(p.functions):
            text.append(f"F{p.seed}_{number}:")
            for k, atom in enumerate(function):
                text += [f"R{name}_{number}_{k}:", *atom]
        text.append(f"X{name}:")
        table.append(".quad 0")
    return "\n".join([*text, *table, ""])


def tool(command: list[str]) -> None:
    """Runs an assembler or linker; ValueError with its complaint."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr[:1000])


def assemble(programs: Sequence[Program], folder: Path) -> Path:
    """The harness's input file, from the text of `programs`."""
    text, obj, elf = folder / "programs.s", folder / "programs.o", folder / "programs.elf"
    text.write_text(source(programs))
    tool(["as", "--64", "-mx86-used-note=no", "-o", str(obj), str(text)])
    tool(["ld", "-Ttext", hex(CODE_START), "-e", "0", "--defsym", f"DATA={DATA}", "-o", str(elf), str(obj)])
    with elf.open("rb") as stream:
        image = ELFFile(stream)
        code = image.get_section_by_name(".text").data()
        words = struct.unpack(
            f"<{len(image.get_section_by_name('.table').data()) // 8}Q",
            image.get_section_by_name(".table").data(),
        )
    output = folder / "programs.bin"
    output.write_bytes(pack(programs, words, code))
    return output


def pack(programs: Sequence[Program], table: Iterable[int], code: bytes) -> bytes:
    """See struct header and struct program in harness.c."""
    words = iter(table)
    records, resumes, rules = b"", b"", b""
    for p in programs:
        entry, end, last = (next(words) - CODE_START for _ in range(3))
        points = [w - CODE_START for w in iter(lambda: next(words), 0)]
        numbers = (entry, end, len(resumes) // 4, len(points), len(rules) // 8, len(p.rules), p.flags)
        records += struct.pack("<Q10I", p.seed & (1 << 64) - 1, *numbers, ALL_FLAGS_BUT_AF, last, 0)
        resumes += struct.pack(f"<{len(points)}I", *points)
        rules += b"".join(
            struct.pack("<BBHHH", window, perm, page, shown, 0) for window, page, perm, shown in p.rules
        )
    header = struct.pack("<8s4I", b"UMXPROG1", len(programs), len(resumes) // 4, len(rules) // 8, len(code))
    return header + records + resumes + rules + code


# ---- running ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a run of the harness printed."""

    status: int
    totals: dict[str, int]
    mismatches: list[dict[str, Any]]
    failed: list[int]  # program numbers; -1: one that does not end
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0 and bool(self.totals) and not self.mismatches


def run(harness: Path, programs: Path, *options: str) -> Outcome:
    """One process over all programs of a file."""
    done = subprocess.run(
        [str(harness), *options, str(programs)], capture_output=True, text=True, errors="replace"
    )
    totals: dict[str, int] = {}
    mismatches, failed = [], []
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if "programs" in record:
            totals = record
        elif "failed" in record:
            failed.append(record["failed"])
        if "mismatch" in record:
            mismatches.append(record)
    return Outcome(done.returncode, totals, mismatches, failed, done.stderr[-2000:])


def kind(outcome: Outcome) -> str | None:
    """What differed first; None: nothing did."""
    if outcome.ok:
        return None
    if not outcome.mismatches:
        return f"status {outcome.status}"
    first = outcome.mismatches[0]
    what = str(first["mismatch"]).split(" from ")[0].split(", guest rip")[0]
    return f"{what} {first['native']} {first['translated']}" if what in ("vector", "error code") else what


def difference(harness: Path, program: Program, folder: Path, options: Sequence[str]) -> str | None:
    """What differs first when this program is run alone."""
    try:
        path = assemble([program], folder)
    except ValueError:
        return None
    return kind(run(harness, path, *options))


def shrink(harness: Path, program: Program, folder: Path, options: Sequence[str]) -> Program:
    """The program without every atom, and then every line, that it can do without."""
    wanted = difference(harness, program, folder, options)
    if wanted is None:
        return program
    small = dataclasses.replace(
        program, atoms=list(program.atoms), functions=[list(f) for f in program.functions]
    )
    changed = True
    while changed:
        changed = False
        for group in (small.atoms, *small.functions):
            size = max(1, len(group) // 2)
            while size:
                at = 0
                while at < len(group):
                    taken = group[at : at + size]
                    del group[at : at + size]
                    if difference(harness, small, folder, options) == wanted:
                        changed = True
                    else:
                        group[at:at] = taken
                        at += size
                size //= 2
    for group in (small.atoms, *small.functions):
        for atom in group:
            at = len(atom) - 1
            while at >= 0:
                line = atom.pop(at)
                if difference(harness, small, folder, options) != wanted:
                    atom.insert(at, line)
                at -= 1
    return small


def explain(
    harness: Path, programs: Sequence[Program], outcome: Outcome, folder: Path, options: Sequence[str]
) -> str:
    """Text for a failing test: the first failing program made small, and what differed."""
    numbers = [n for n in outcome.failed if n >= 0]
    if not numbers:
        return f"status {outcome.status}, no program named\n{outcome.stderr}"
    small = shrink(harness, programs[numbers[0]], folder, options)
    again = run(harness, assemble([small], folder), *options)
    return "\n".join(
        [
            f"{len(numbers)} programs differ; the first, seed {small.seed}, made small ({options}):",
            source([small]),
            *(json.dumps(m) for m in again.mismatches[:10]),
            again.stderr,
        ]
    )
