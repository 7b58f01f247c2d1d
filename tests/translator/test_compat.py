"""32-bit code by hand: what random instructions alone do not reach. Segments as in test_decoder.py."""

from __future__ import annotations

import random

import pytest

from tests.translator.atoms.base import (
    BIG,
    CODE_ALIAS,
    COMPAT,
    DATA,
    NOT_HIGH,
    PAGE,
    PERM_NONE,
    PERM_R,
    SCRATCH,
    STACK,
    USES_BIG,
    WINDOW_DATA,
    WRITES_CODE,
    Program,
)
from tests.translator.conftest import Checker
from tests.translator.runner import lines

CODE32 = COMPAT | NOT_HIGH
LOW = "eax ecx edx ebx ebp esi edi".split()


def test_calls_and_returns(checker: Checker) -> None:
    text = f"""
        mov $300, %ecx; xor %eax, %eax; 1: call 3f; call 4f; dec %ecx; jnz 1b; jmp 2f
        3: inc %eax; ret; 4: push %ebp; mov %esp, %ebp; call 3b; mov $3b, %edx; call *%edx; leave
        ret $0; 2: nop
        movl $5f, {SCRATCH:#x}; push $1; push $2; call *{SCRATCH:#x}; jmp 6f; 5: mov 4(%esp), %ebx
        ret $8; 6: nop
        push $7f; ret; ud2; 7: movl $8f, (%esp); jmp *(%esp); ud2; 8: add $4, %esp
        call 9f; 9: pop %esi; pushl $10f; add $4, %esp; jmp *-4(%esp); ud2; 10: mov %esp, %edi"""
    checker.check([Program(1, lines(text), flags=CODE32)])


def test_recursion_deeper_than_the_shadow_stack(checker: Checker) -> None:
    text = f"""
        mov ${BIG + 512 * PAGE - 64:#x}, %esp; mov $40000, %ecx; xor %eax, %eax; call 1f; jmp 2f
        1: inc %eax; dec %ecx; jz 3f; call 1b; add $3, %eax; 3: ret; 2: nop"""
    checker.check([Program(2, lines(text), flags=CODE32 | USES_BIG)])


XSAVES = ("xsave", "xsaveopt", "xsavec")


@pytest.mark.parametrize("save", XSAVES)
def test_xsave_of_eight_registers(checker: Checker, save: str) -> None:
    """Of the vector registers 32-bit code saves, restores and initialises the lower eight alone."""
    clear = f"xor %eax, %eax; mov ${DATA:#x}, %edi; mov $208, %ecx; cld; rep stosl"
    request = "mov $7, %eax; xor %edx, %edx"
    forget = "; ".join(f"movl $0, {DATA + at:#x}" for at in (4, 8, 12, 16, 20))
    texts = []
    for present in (7, 3, 2, 4, 0):
        texts.append(f"""
            {clear}; {request}; {save} {DATA:#x}; {forget}; movl ${present}, {DATA + 512:#x}
            vaddps %ymm1, %ymm2, %ymm3; vpcmpeqb %ymm0, %ymm0, %ymm7; fninit; fldpi
            {request}; xrstor {DATA:#x}; {clear}; cmp %al, %al""")
    checker.check([Program(k, lines(text), flags=CODE32) for k, text in enumerate(texts)])


def test_gathers_and_masked_moves(checker: Checker) -> None:
    """Addresses of 32 bits, also through FS; W and the fourth bit of vvvv mean nothing to BMI."""
    text = f"""
        vpcmpeqd %ymm7, %ymm7, %ymm7; vpslld $28, %ymm7, %ymm1; vpsrld $24, %ymm1, %ymm1; mov ${DATA:#x}, %ebx
        vpgatherdd %ymm7, 16(%ebx,%ymm1,4), %ymm2
        vpcmpeqd %ymm7, %ymm7, %ymm7; mov $8, %esi; vpgatherqq %ymm7, %fs:(%esi,%ymm3,1), %ymm4
        vmaskmovps {DATA + PAGE - 8:#x}, %ymm6, %ymm5; vpmaskmovd %ymm5, %ymm6, {DATA + 3 * PAGE - 12:#x}
        vpmaskmovq %xmm5, %xmm6, %fs:16(%esi)
        .byte 0xc4, 0xe2, 0xf0, 0xf2, 0xc2; .byte 0xc4, 0xe2, 0x30, 0xf2, 0xc2; mulx %edi, %eax, %ecx
        pdep {DATA + 64:#x}, %edx, %esi; rorx $7, %edi, %edx; cmp %al, %al"""
    checker.check([Program(1, lines(text), flags=CODE32)])


def test_loops(checker: Checker) -> None:
    text = """
        mov $1000, %ecx; 1: add %ecx, %eax; loop 1b; mov $50, %ecx; 2: dec %ecx; loopne 2b; mov $0x10003, %ecx
        3: inc %edx; .byte 0x67; loop 3b; mov %ecx, %ebx; jecxz 4f; inc %edx
        4: mov $0x50000, %ecx; jcxz 5f; ud2; 5: xor %ecx, %ecx; jecxz 6f; ud2; 6: mov $200000, %ecx
        7: lea 7b, %eax; mov $8f, %edx; dec %ecx; cmovz %edx, %eax; jmp *%eax; 8: xor %eax, %eax
        xor %edx, %edx"""
    totals = checker.check([Program(3, lines(text), flags=CODE32)], "--kick-us", "50")
    assert totals["kicks"] > 5


def test_stack_instructions_at_page_ends(checker: Checker) -> None:
    """Pushes, pops, pusha, popa, enter: what faults half-way has done nothing, or as much as the CPU does."""
    rng = random.Random(1)
    programs = []
    for at in [7 * PAGE + k for k in range(-20, 68, 3)]:
        group = [f"push %{rng.choice(LOW)}" for _ in range(6)]
        pops = [f"pop %{rng.choice(LOW)}" for _ in range(6)]
        done = f"mov ${STACK + PAGE:#x}, %esp"
        for body in (
            group,
            pops,
            ["pushf", "push $-3", "pushw $7", "push (%esp)", "pop 4(%esp)", "popw %dx", "popf"],
            ["mov %esp, %ebp", "leave"],
        ):
            atoms = [[f"mov ${DATA + at:#x}, %esp", *body], [done, "cmp %al, %al"]]
            programs.append(
                Program(len(programs), atoms, flags=CODE32, rules=[(WINDOW_DATA, 6, PERM_NONE, 6)])
            )
            programs.append(Program(len(programs), atoms, flags=CODE32, rules=[(WINDOW_DATA, 7, PERM_R, 7)]))
    checker.check(programs)


def test_all_registers_at_once(checker: Checker) -> None:
    text = f"""
        pusha; add $3, %eax; popa; pushaw; popaw; mov %esp, %ebx; pusha; movl $7, 12(%esp); popa
        sub %esp, %ebx
        mov ${DATA + 5 * PAGE - 14:#x}, %esp; popa; mov ${DATA + 5 * PAGE + 10:#x}, %esp; pusha; pushaw
        mov ${STACK + PAGE:#x}, %esp; enter $16, $0; leave; mov %esp, %ebp; enter $9, $4; leave
        push %esp; pop %esp"""
    checker.check([Program(5, lines(text), flags=CODE32)])


@pytest.mark.parametrize("prefix", ["", "fs ", "gs ", "cs ", "es ", "ss "])
def test_strings(checker: Checker, prefix: str) -> None:
    programs = []
    bases = {"fs ": DATA + 4 * PAGE, "gs ": DATA + 2 * PAGE}
    for k, operation in enumerate(
        ("movsb", "movsw", "movsl", "stosb", "stosl", "lodsb", "cmpsb", "cmpsl", "scasw")
    ):
        repeat = "repe " if operation[0] in "cs" and operation[:3] != "sto" else "rep "
        for direction in ("cld", "std"):
            source, target = DATA + 3 * PAGE + 5 - bases.get(prefix, 0), DATA + 6 * PAGE - 31
            setup = f"mov ${source & 0xFFFFFFFF:#x}, %esi; mov ${target:#x}, %edi; mov $77, %ecx; {direction}"
            head = f"{prefix}" if operation[:3] in ("mov", "lod", "cmp") else ""
            atoms = lines(f"{setup}; {repeat}{head}{operation}; pushf; pop %ebx; and $0x8c5, %ebx; cld")
            programs.append(Program(10 * k + len(programs), atoms, flags=CODE32))
    checker.check(programs)


def test_limits(checker: Checker) -> None:
    """Around the ends of FS (0x2fff in every third run), GS (null then), all others (0x6fffffff then)."""
    atoms = []
    for at in (0, 0x2FF8, 0x2FFC, 0x2FFD, 0x2FFF, 0x3000, 0x7FFC, 0xFFFFFFFC, 0xFFFFC000):
        for line in (
            "mov %fs:(%ebx), %ecx",
            "movb $1, %fs:(%ebx)",
            "lock incl %gs:(%ebx)",
            "movups %fs:(%ebx), %xmm1",
        ):
            if at < 1 << 31 or "movups" not in line:  # an operand across 4 GiB: as the CPU likes
                atoms.append([f"mov ${at:#x}, %ebx", line])
    for at in (0x6FFFFFFF, 0x70000000, 0x6FFFFFFD, 0xFFFFFF00, 0xFFFFF000, 0x1000):
        for line in (
            "mov (%ebx), %ecx",
            "push (%ebx)",
            "bts %eax, (%ebx)",
            "pop 4(%ebx)",
            "call *(%ebx)",
            "fldt (%ebx)",
        ):
            atoms.append([f"mov ${at:#x}, %ebx", "and $31, %eax", line])
        for line in (
            "push %eax",
            "pop %eax",
            "ret",
            "call 1f; 1:",
            "leave",
            "pusha",
            "popf",
            "movl $3, 8(%esp)",
        ):
            atoms.append([f"mov ${at:#x}, %esp", f"mov ${at:#x}, %ebp", *line.split("; ")])
    atoms.append([f"mov ${STACK + PAGE:#x}, %esp"])
    checker.check([Program(9, [atom], flags=CODE32) for atom in atoms])


def test_stores_through_cs(checker: Checker) -> None:
    at = DATA + 64
    atoms = [
        [f"{op} %cs:{at:#x}", "mov %esp, %ebx"]
        for op in ("movl $1,", "mov", "incl", "cmpl $5,", "pushl", "popl", "notb")
    ]
    atoms[1] = [f"mov %cs:{at:#x}, %eax"]
    checker.check([Program(k, [atom], flags=CODE32) for k, atom in enumerate(atoms)])


def test_code_that_changes_itself(checker: Checker) -> None:
    alias = CODE_ALIAS - 0x40000000
    text = f"""
        mov $200, %ecx; jmp 2f; .balign 16; 1: .skip 64, 0
        2: incl 1b; mov %ecx, 1b+8+{alias}; push %ecx; popl 1b+16; dec %ecx; jnz 2b
        movl $0xc3c0ff40, 1b; call 1b-0; movl $0xc3c8ff40, 1b; mov $1b, %edx; call *%edx"""
    checker.check([Program(11, lines(text), flags=CODE32 | WRITES_CODE, align=PAGE)])


def test_disturbed(checker: Checker) -> None:
    text = f"""
        mov $400, %ecx; 1: push %ecx; call 2f; pop %ecx; mov %fs:8, %eax; add %eax, {DATA + 64:#x}
        loop 1b; jmp 3f
        2: pusha; mov ${DATA + PAGE - 2:#x}, %esi; lock addl $7, (%esi); incl (%esi); popa; ret; 3: nop"""
    checker.check(
        [Program(12, lines(text), flags=CODE32)], "--disturb", "3", "--kick-us", "50", "--runs", "9"
    )
