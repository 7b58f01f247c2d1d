"""Pages with code: missing, changing places, written to by the code beside them or by another vCPU."""

from __future__ import annotations

import pytest

from tests.translator import runner
from tests.translator.atoms.base import (
    BIG,
    CODE,
    CODE_ALIAS,
    NOT_HIGH,
    PAGE,
    PERM_NONE,
    PERM_RX,
    WINDOW_CODE,
    WRITES_CODE,
    Program,
)
from tests.translator.conftest import Checker
from tests.translator.runner import lines

ALIAS = CODE_ALIAS - CODE


def test_code_that_runs_into_a_missing_page(checker: Checker) -> None:
    """The fault is at the instruction that lies across the page end, or at the first one behind it."""
    for cut in range(1, 12):
        text = f"""
            jmp 1f; .balign 4096, 0xcc; .skip {PAGE - cut}, 0xcc; 1: movabs $0x1122334455667788, %r10
            add %r10, %r11
            mov %r11, %r15"""
        program = Program(10 + cut, lines(text), align=PAGE, rules=[(WINDOW_CODE, 2, PERM_NONE, 2)])
        totals = checker.check([program])
        assert totals["events"] > totals["runs"]


@pytest.mark.parametrize("flags", [0, NOT_HIGH], ids=["an entry changes", "another tree"])
@pytest.mark.parametrize("before", ["nop; nop; nop; nop; nop", "jmp 7f; nop; nop; nop"])
def test_code_pages_change_places(checker: Checker, flags: int, before: str) -> None:
    """Page 2 of the code shows page 3 in every other run: calls into it, and the instruction 7 across its
    start, go where the page tables say. A direct jump to 7 used to go on to the old page after a switch of
    address spaces.
    """
    pages = "; ".join(f"{k}: .byte {k}, 0, 0, 0; {k}{k}: add ${k}, %r11d; ret; .balign 4096" for k in (1, 2))
    text = f"""
        mov $3, %ecx; 4: call 11f; call 8f; dec %ecx; jnz 4b; jmp 9f
        .balign 4096, 0xcc; .skip {PAGE - 6}, 0xcc; 8: {before}; 7: .byte 0xb8
        {pages}
        9: mov %eax, %r15d"""  # 7 is `mov $imm32, %eax` with its operand in the next page
    checker.check([Program(60, lines(text), align=PAGE, flags=flags, rules=[(WINDOW_CODE, 2, PERM_RX, 3)])])


def test_data_beside_code(checker: Checker) -> None:
    """Stores to the page of the running code, in a loop, by every path."""
    text = f"""
        mov $300, %ecx; jmp 2f; .balign 16; 1: .skip 64, 0
        2: incl 1b(%rip); mov %rcx, 1b+8+{ALIAS}; push %rcx; popq 1b+16(%rip); dec %ecx; jnz 2b"""
    checker.check([Program(6, lines(text), flags=WRITES_CODE, align=PAGE)])


def test_function_made_at_run_time(checker: Checker) -> None:
    """Two functions made one after the other at the same place, and called."""
    text = """
        jmp 2f; .balign 8; 1: .skip 8
        2: movl $0xc3c0ff41, 1b(%rip); call 1b; call 1b
        movl $0xc3c8ff41, 1b(%rip); call 1b"""
    checker.check([Program(7, lines(text), flags=WRITES_CODE, align=PAGE)])


@pytest.mark.parametrize("mode", ["user", "kernel"])
@pytest.mark.parametrize("disturbance", [(), ("--disturb", "200")])
def test_code_changed_by_another_vcpu(checker: Checker, mode: str, disturbance: tuple[str, ...]) -> None:
    """One vCPU counts in an instruction's operand, then in memory: the other never sees the former behind."""
    rounds, value, ready, turns = 8_000, BIG, BIG + 64, BIG + 128
    writer = f"""
        mov $1, %ecx; 3: pause; cmpl $0, {ready:#x}; je 3b
        1: mov %ecx, FUNCTION+1+{ALIAS}; mov %ecx, {value:#x}; incl FUNCTION+64+{ALIAS}; inc %ecx
        test $63, %cl; jnz 5f; mov {turns:#x}, %edx; 4: pause; cmp {turns:#x}, %edx; je 4b
        5: cmp ${rounds}, %ecx; jne 1b; xor %r15d, %r15d; jmp 2f
        .balign 4096; FUNCTION: mov $0, %eax; ret; .skip 100; .balign 4096
        2: movl ${rounds}, {value:#x}"""
    reader = f"""
        movl $1, {ready:#x}; xor %r15d, %r15d
        1: incl {turns:#x}; mov {value:#x}, %edx; cmp ${rounds}, %edx; je 2f
        call FUNCTION; cmp %edx, %eax; jae 1b; inc %r15; jmp 1b; 2: nop"""
    path = runner.assemble([Program(1, lines(writer)), Program(2, lines(reader))], checker.folder)
    runs = "2" if mode == "user" else "1"
    outcome = runner.run(checker.harness, path, "--pair", "--runs", runs, *disturbance)
    assert outcome.ok, (outcome.mismatches, outcome.stderr)
    assert outcome.totals["killed"] > 100
