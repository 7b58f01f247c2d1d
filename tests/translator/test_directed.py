"""Programs written by hand for one thing each."""

from __future__ import annotations

import pytest

from tests.translator import runner
from tests.translator.atoms.base import (
    BIG,
    CODE,
    CODE_ALIAS,
    DATA,
    INVALID,
    NOT_HIGH,
    PAGE,
    PERM_NONE,
    PERM_R,
    PERM_RWX,
    PERM_RX,
    SCRATCH,
    STACK,
    USES_BIG,
    WINDOW_CODE,
    WINDOW_DATA,
    WRITES_CODE,
    Program,
)
from tests.translator.conftest import Checker


def lines(text: str) -> list[list[str]]:
    """One atom per line of text; several instructions of an atom are separated by semicolons."""
    return [[part.strip() for part in line.split(";")] for line in text.strip().splitlines()]


def test_recursion_deeper_than_the_shadow_stack(checker: Checker) -> None:
    """40,000 calls before the first return: returns beyond what is remembered find their way all the same."""
    program = Program(1, lines(f"mov ${BIG + 512 * PAGE - 64:#x}, %rsp; mov $40000, %ecx; xor %eax, %eax; call 1f; jmp 2f"
                               "; 1: inc %eax; dec %ecx; jz 3f; call 1b; add $3, %eax; 3: ret; 2:"), flags=USES_BIG)  # fmt: skip
    checker.check([program])


def test_returns_without_calls(checker: Checker) -> None:
    """More returns than calls, far below the bottom of the shadow stack."""
    program = Program(2, lines(f"mov ${BIG + PAGE:#x}, %rsp; lea 1f(%rip), %rax; mov $500, %ecx; 2: push %rax; dec %ecx; jnz 2b"
                               "; mov $499, %ecx; 1: inc %edx; dec %ecx; js 3f; ret; 3: xor %eax, %eax"),
                      flags=USES_BIG | NOT_HIGH)  # fmt: skip
    checker.check([program])


def test_long_strings_are_interruptible(checker: Checker) -> None:
    """A megabyte at once, with kicks in between: progress is in the registers."""
    program = Program(3, lines(f"""
        mov ${BIG:#x}, %esi; mov ${BIG + 0x100003:#x}, %edi; mov $0x1fff0, %ecx; cld; rep movsq
        mov ${BIG + 5:#x}, %edi; mov $0x30001, %ecx; mov %r10, %rax; rep stosw
        mov ${BIG:#x}, %esi; mov ${BIG + 0x100003:#x}, %edi; mov $0xf0000, %ecx; repe cmpsb; setc %bl
        mov ${BIG + 0x1ffff8:#x}, %edi; mov $0x8000, %ecx; mov $0x11223344, %eax; std; rep stosl; cld
        mov ${BIG + 0x60010:#x}, %edi; mov $0x7fff0, %ecx; repne scasb; sete %dl
    """), flags=USES_BIG)  # fmt: skip
    totals = checker.check([program] * 1, "--kick-us", "20", "--runs", "24")
    assert totals["kicks"] > 20


def test_trap_flag_by_popf(checker: Checker) -> None:
    """#DB after the instruction that follows popf, and none after TF is cleared."""
    program = Program(4, lines("""
        pushq $0x302; popfq; inc %r10d; add %r10, %r11; call 1f; 1: pop %rax; xor %eax, %eax; jmp 2f; ud2; 2: nop
        pushfq; andl $~0x100, (%rsp); popfq; inc %r15d
    """), flags=NOT_HIGH)  # fmt: skip
    checker.check([program])


def test_loop_without_memory_is_interruptible(checker: Checker) -> None:
    """Loops that never leave translated code by themselves: by jcc, loop, jrcxz, an indirect jump, call and ret."""
    program = Program(5, lines("""
        mov $3000000, %ecx; 1: add %rcx, %r10; dec %ecx; jnz 1b
        mov $200000, %ecx; 1: add $7, %r11; lea 1b(%rip), %rax; lea 2f(%rip), %rdx; dec %ecx; cmovz %rdx, %rax; jmp *%rax; 2: xor %eax, %eax; xor %edx, %edx
        mov $200000, %ecx; jmp 2f; 3: add $5, %r15; ret; 2: call 3b; dec %ecx; jnz 2b
        mov $200000, %ecx; 1: jrcxz 2f; lea -1(%rcx), %rcx; add %rcx, %r15; jmp 1b; 2: nop
        mov $1000, %ecx; 1: add %rcx, %r9; loop 1b
    """), flags=NOT_HIGH)  # fmt: skip
    totals = checker.check([program], "--kick-us", "50")
    assert totals["kicks"] > 50


def test_code_that_runs_into_a_missing_page(checker: Checker) -> None:
    """The fault is at the instruction that lies across the page end, or at the first one behind it."""
    for cut in range(1, 12):
        straddling = Program(10 + cut, [[f"jmp 1f; .balign 4096, 0xcc; .skip {PAGE - cut}, 0xcc; 1: movabs $0x1122334455667788, %r10"],
                                        ["add %r10, %r11"], ["mov %r11, %r15"]], align=PAGE,
                             rules=[(WINDOW_CODE, 2, PERM_NONE, 2)])  # fmt: skip
        totals = checker.check([straddling])
        assert totals["events"] > totals["runs"]


def test_code_pages_change_places(checker: Checker) -> None:
    """Page 1 of the code shows page 2 in every other run: jumps and calls into it, and an instruction across its start, go
    where the page tables say."""
    pages = "; ".join(
        f"{k}: .byte {k}, 0, 0, 0; {k}{k}: add ${k}, %r11d; ret; .balign 4096, 0xcc" for k in (1, 2)
    )
    programs = []
    for before in ("nop; nop; nop; nop; nop", "jmp 7f; nop; nop; nop"):
        # Then `mov $imm32, %eax` whose operand lies in the next page; there it goes on with the addition.
        text = f"""mov $3, %ecx; 4: call 11f; call 8f; dec %ecx; jnz 4b; jmp 9f
            .balign 4096, 0xcc; .skip {PAGE - 6}, 0xcc; 8: {before}; 7: .byte 0xb8
            {pages}
            9: mov %eax, %r15d"""
        for flags in (0, NOT_HIGH):  # by changing an entry; by switching to another tree
            programs.append(Program(60 + len(programs), lines(text), align=PAGE, flags=flags))
    for program in programs:
        program.rules = [(WINDOW_CODE, 2, PERM_RX, 3)]
        checker.check([program])


def test_flags_survive_a_repaired_exception(checker: Checker) -> None:
    """#XM and #MF between an instruction that sets flags and one that reads them; the handler masks and returns."""
    at = SCRATCH + 1536
    readers = ("lahf; seto %al", "jc 1f; inc %r15d; 1:", "setle %r10b", "adc %rcx, %rdx", "pushfq; pop %r11")
    programs = []
    for k, reader in enumerate(readers):
        simd = f"movl $0x1f00, {at:#x}; ldmxcsr {at:#x}; pxor %xmm1, %xmm1; cmp %r8b, %bl; divps %xmm1, %xmm1; {reader}; cmp %al, %al"
        x87 = f"fninit; movw $0x340, {at:#x}; fldcw {at:#x}; fldz; fldz; fdivp; cmp %r8w, %bx; fwait; {reader}; cmp %al, %al"
        programs += [Program(2 * k, lines(simd)), Program(2 * k + 1, lines(x87))]
    totals = checker.check(programs)
    assert totals["events"] > totals["runs"]


def test_data_beside_code(checker: Checker) -> None:
    """Stores to the page of the running code, in a loop, by every path: the page stays what it is."""
    alias = CODE_ALIAS - CODE
    program = Program(6, lines(f"""
        mov $300, %ecx; jmp 2f; .balign 16; 1: .skip 64, 0; 2: incl 1b(%rip); mov %rcx, 1b+8+{alias}; push %rcx; popq 1b+16(%rip); dec %ecx; jnz 2b
    """), flags=WRITES_CODE, align=PAGE)  # fmt: skip
    checker.check([program])


@pytest.mark.parametrize("mode", ["user", "kernel"])
@pytest.mark.parametrize("disturbance", [(), ("--kick-us", "70"), ("--disturb", "200")])
def test_code_changed_by_another_vcpu(checker: Checker, mode: str, disturbance: tuple[str, ...]) -> None:
    """One vCPU counts in an instruction's operand and then in memory; the other never sees the operand behind the memory."""
    alias, rounds, value, ready, turns = CODE_ALIAS - CODE, 20_000, BIG, BIG + 64, BIG + 128
    writer = f"""
        mov $1, %ecx; 3: pause; cmpl $0, {ready:#x}; je 3b
        1: mov %ecx, FUNCTION+1+{alias}; mov %ecx, {value:#x}; incl FUNCTION+64+{alias}; inc %ecx; test $63, %cl; jnz 5f
        mov {turns:#x}, %edx; 4: pause; cmp {turns:#x}, %edx; je 4b
        5: cmp ${rounds}, %ecx; jne 1b; xor %r15d, %r15d; jmp 2f
        .balign 4096; FUNCTION: mov $0, %eax; ret; .skip 100; .balign 4096
        2: movl ${rounds}, {value:#x}"""
    reader = f"""
        movl $1, {ready:#x}; xor %r15d, %r15d; 1: incl {turns:#x}; mov {value:#x}, %edx; cmp ${rounds}, %edx; je 2f
        call FUNCTION; cmp %edx, %eax; jae 1b; inc %r15; jmp 1b; 2: nop"""
    programs = [Program(1, lines(writer)), Program(2, lines(reader))]
    path, runs = runner.assemble(programs, checker.folder), "2" if mode == "user" else "1"
    outcome = runner.run(checker.harness, path, "--pair", "--runs", runs, *disturbance)
    assert outcome.ok, (outcome.mismatches, outcome.stderr)
    assert outcome.totals["killed"] > 100


def test_writable_and_executable_at_once(checker: Checker) -> None:
    """Code in a data page that is made executable, called through another window's address."""
    body = "movl $0xc0ff41c3, 1f; jmp 2f; .balign 8; 1: .skip 8; 2: movl $0xc3c0ff41, 1b(%rip); call 1b; call 1b; movl $0xc3c8ff41, 1b(%rip); call 1b"
    program = Program(7, lines(body), flags=WRITES_CODE, align=PAGE, rules=[(WINDOW_CODE, 0, PERM_RWX, 0)])
    checker.check([program])


def test_page_zero_offset_tags(checker: Checker) -> None:
    """Addresses whose tag could fit an entry of the soft TLB that is empty: they fault like any other."""
    addresses = (
        0xFFFF7FFFFFFFF000,
        0xFFFF7FFFFFFFFFF0,
        0xFFFF800000000000,
        0x0000800000000000,
        0x00007FFFFFFFE000,
        0,
    )
    atoms = [
        [f"movabs ${at:#x}, %rbx", f"mov {'(%rbx), %rcx' if k % 2 else '%rcx, (%rbx)'}"]
        for k, at in enumerate(addresses * 2)
    ]
    checker.check([Program(8, atoms)])


def test_read_modify_write_faults_before_it_changes_anything(checker: Checker) -> None:
    """Operands over the end of a writable page into a missing or read-only one, for each kind of instruction."""
    operations = """add %r10, M; xchg %r15, M; lock xadd %rax, M; lock cmpxchg %rcx, M; btsq $5, M; shlq $3, M; not M; movups %xmm1, M
        lock incq M; shld $3, %rax, M; popq M; movq %mm1, M; fistpq M; setc M; lock cmpxchg8b M; movnti %rax, M; movlps %xmm2, M"""
    programs = []
    for n, permission in enumerate((PERM_NONE, PERM_R)):
        for k, operation in enumerate(operations.replace("\n", ";").split(";")):
            at = DATA + 8 * PAGE - 1 - k % 3
            text = operation.strip().replace("M", f"{at:#x}").replace("not ", "notq ")
            atoms = [[text if "%mm1" not in text else f"nop; {text}"], [f"mov {at - 16:#x}, %r8"]]
            programs.append(Program(1000 * n + k, atoms, rules=[(WINDOW_DATA, 8, permission, 8)]))
    checker.check(programs)


def test_groups_of_pushes_and_pops_at_page_ends(checker: Checker) -> None:
    """A run of pushes whose middle faults has pushed the first half, and no more."""
    programs = []
    for pushes in (1, 2, 3, 5, 16, 20):
        for slots in range(pushes + 1):
            for offset in (0, 4):
                top = DATA + 7 * PAGE + 8 * slots + offset
                runs = [
                    "push %r10; push %rsp; push %r15; push %rbp; push %rax".split("; ")[k % 5]
                    for k in range(pushes)
                ]
                pops = ["pop %r11; pop %rbx; pop %r15; pop %rdi".split("; ")[k % 4] for k in range(pushes)]
                atoms = [
                    [f"mov ${top:#x}, %rsp", *runs],
                    ["mov %rsp, %rcx", *pops],
                    [f"mov ${STACK + PAGE:#x}, %rsp"],
                ]
                programs.append(Program(len(programs), atoms, rules=[(WINDOW_DATA, 6, PERM_NONE, 6)]))
                atoms = [
                    [f"mov ${top - 16 * slots:#x}, %rsp", *pops, "mov %rsp, %rcx"],
                    [f"mov ${STACK + PAGE:#x}, %rsp"],
                ]
                programs.append(Program(len(programs), atoms, rules=[(WINDOW_DATA, 7, PERM_NONE, 7)]))
    checker.check(programs)


NOT_OFFERED = {
    "ssse3": ["0f 38 00 c1", "66 0f 38 00 c1", "0f 3a 0f c1 05", "66 0f 38 1c c1"],
    "sse4": ["66 0f 38 17 c1", "66 0f 3a 0f c1 05", "66 0f 3a 63 c1 0c", "f2 0f 38 f1 c1", "66 0f 38 37 c1", "66 0f 38 2a 00"],
    "popcnt": ["f3 0f b8 c1", "f3 48 0f b8 c1", "66 f3 0f b8 c1", "f3 0f b8 03"],
    "aes, pclmul, sha": ["66 0f 38 dc c1", "66 0f 3a 44 c1 00", "0f 38 c8 c1"],
    "movbe, adx": ["0f 38 f0 03", "0f 38 f1 03", "66 0f 38 f6 c1", "f3 0f 38 f6 c1"],
    "rdrand, rdseed, rdpid": ["0f c7 f0", "48 0f c7 f0", "0f c7 f8", "f3 0f c7 f8"],
    "fsgsbase": ["f3 0f ae c0", "f3 48 0f ae c8", "f3 48 0f ae d0", "f3 48 0f ae d8"],
    "xsave": ["0f ae 20", "48 0f ae 20", "0f ae 28", "0f ae 30", "0f c7 20", "0f c7 18", "0f c7 28"],
    "vex": ["c5 f8 77", "c5 f8 28 c1", "c5 fc 58 c1", "c4 e2 79 00 c1", "c4 e2 f8 f2 c1", "c4 c1 7a 6f 03", "c5 f0 41 c2"],
    "evex": ["62 f1 7c 48 58 c1", "62 f1 fe 48 6f 03", "62 e1 7c 48 28 c0"],
    "tsx": ["c7 f8 00 00 00 00", "c6 f8 01", "66 0f 38 82 03"],
    "cet, others": ["f3 48 0f 1e c8"[:0] or "f3 0f ae e8", "66 0f ae 38", "66 0f ae 30", "f3 0f ae 20", "0f 37", "0f 05"[:0] or "0f 04"],
    "three-d-now": ["0f 0f c1 9e", "0f 0e", "0f 0f 03 bf"],
    "undefined": ["0f 0b", "0f ff c0", "0f b9 c0", "06", "07", "0e", "16", "17", "1e", "1f", "27", "2f", "37", "3f", "60", "61",
                  "62", "82 c0 01", "9a 00 00 00 00 00 00", "c4", "c5", "ce", "d4 0a", "d5 0a", "d6", "ea 00 00 00 00 00 00"],
    "lock that may not be": ["f0 90", "f0 01 c0", "f0 8b 03", "f0 89 03", "f0 39 03", "f0 0f a3 03", "f0 ff 33", "f0 a4", "f0 0f 58 c1",
                             "f0 f7 23", "f0 d3 23", "f0 0f af 03", "f0 e9 00 00 00 00", "f0 85 03"],
    "sse without its prefix": ["f3 0f fc c1", "f2 0f ef c1", "f3 0f 28 c1", "66 0f 13 c1", "0f 6c c1", "0f 7c c1", "f2 0f 77", "66 0f f0 03",
                               "f2 0f f0 c1", "0f 71 c1 00", "0f c3 c0", "66 0f c3 03", "0f 0f c1 00"],
    "too long": ["66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", "2e 2e 2e 2e 2e 2e 2e 2e 2e 2e 48 b8 01 02 03 04 05 06 07 08"],
}  # fmt: skip


@pytest.mark.parametrize("family", NOT_OFFERED)
def test_what_is_not_offered_is_invalid(checker: Checker, family: str) -> None:
    """#UD at the instruction, with nothing changed, whatever the host's CPU can do."""
    programs = []
    for k, text in enumerate(NOT_OFFERED[family]):
        data = ", ".join(f"0x{byte}" for byte in text.split())
        programs.append(Program(k, [[f".byte {data}", f"nop; nop # {SCRATCH:#x}"]], flags=INVALID))
    checker.check(programs)
