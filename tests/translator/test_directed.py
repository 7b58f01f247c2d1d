"""Programs written by hand for one thing each: control flow, kicks, faults."""

from __future__ import annotations

from tests.translator.atoms.base import (
    BIG,
    DATA,
    NOT_HIGH,
    PAGE,
    PERM_NONE,
    PERM_R,
    SCRATCH,
    STACK,
    USES_BIG,
    WINDOW_DATA,
    Program,
)
from tests.translator.conftest import Checker
from tests.translator.runner import lines


def test_recursion_deeper_than_the_shadow_stack(checker: Checker) -> None:
    """40,000 calls before the first return: returns beyond what is remembered find their way all the same."""
    text = f"""
        mov ${BIG + 512 * PAGE - 64:#x}, %rsp; mov $40000, %ecx; xor %eax, %eax; call 1f; jmp 2f
        1: inc %eax; dec %ecx; jz 3f; call 1b; add $3, %eax; 3: ret
        2: nop"""
    checker.check([Program(1, lines(text), flags=USES_BIG)])


def test_returns_without_calls(checker: Checker) -> None:
    """More returns than calls, far below the bottom of the shadow stack."""
    text = f"""
        mov ${BIG + PAGE:#x}, %rsp; lea 1f(%rip), %rax; mov $500, %ecx; 2: push %rax; dec %ecx; jnz 2b
        mov $499, %ecx; 1: inc %edx; dec %ecx; js 3f; ret
        3: xor %eax, %eax"""
    checker.check([Program(2, lines(text), flags=USES_BIG | NOT_HIGH)])


def test_long_strings_are_interruptible(checker: Checker) -> None:
    """A megabyte at once, with kicks in between: progress is in the registers."""
    near, far = f"mov ${BIG:#x}, %esi", f"mov ${BIG + 0x100003:#x}, %edi"
    text = f"""
        {near}; {far}; mov $0x1fff0, %ecx; cld; rep movsq
        mov ${BIG + 5:#x}, %edi; mov $0x30001, %ecx; mov %r10, %rax; rep stosw
        {near}; {far}; mov $0xf0000, %ecx; repe cmpsb; setc %bl
        mov ${BIG + 0x1FFFF8:#x}, %edi; mov $0x8000, %ecx; mov $0x11223344, %eax; std; rep stosl; cld
        mov ${BIG + 0x60010:#x}, %edi; mov $0x7fff0, %ecx; repne scasb; sete %dl"""
    totals = checker.check([Program(3, lines(text), flags=USES_BIG)], "--kick-us", "20", "--runs", "24")
    assert totals["kicks"] > 20


def test_loops_without_memory_are_interruptible(checker: Checker) -> None:
    """Loops that never leave translated code by themselves."""
    text = """
        mov $3000000, %ecx; 1: add %rcx, %r10; dec %ecx; jnz 1b
        mov $200000, %ecx; 1: lea 1b(%rip), %rax; lea 2f(%rip), %rdx; dec %ecx; cmovz %rdx, %rax; jmp *%rax
        2: xor %eax, %eax; xor %edx, %edx
        mov $200000, %ecx; jmp 2f; 3: add $5, %r15; ret; 2: call 3b; dec %ecx; jnz 2b
        mov $200000, %ecx; 1: jrcxz 2f; lea -1(%rcx), %rcx; add %rcx, %r15; jmp 1b; 2: nop
        mov $1000, %ecx; 1: add %rcx, %r9; loop 1b"""
    totals = checker.check([Program(5, lines(text), flags=NOT_HIGH)], "--kick-us", "50")
    assert totals["kicks"] > 50


def test_a_kick_comes_through_at_once(checker: Checker) -> None:
    """Half of them within 100 us, from another thread's store to the vCPU's way out of a loop."""
    text = "mov $400000000, %ecx; 1: add %rcx, %r10; dec %ecx; jnz 1b"
    totals = checker.check([Program(6, lines(text), flags=NOT_HIGH)], "--kick-us", "500", "--runs", "1")
    print(f"kick: median {totals['kick_us']} us, 99 % within {totals['slow_kick_us']} us")
    assert totals["kicks"] > 50
    assert totals["kick_us"] < 100


def test_trap_flag_by_popf(checker: Checker) -> None:
    """#DB after the instruction that follows popf, and none after TF is cleared."""
    text = """
        pushq $0x302; popfq; inc %r10d; add %r10, %r11
        call 1f; 1: pop %rax; xor %eax, %eax; jmp 2f; ud2; 2: nop
        pushfq; andl $~0x100, (%rsp); popfq; inc %r15d"""
    checker.check([Program(4, lines(text), flags=NOT_HIGH)])


def test_flags_survive_a_repaired_exception(checker: Checker) -> None:
    """#XM and #MF between instructions that set flags and that read them; the handler masks and returns."""
    at = SCRATCH + 1536
    readers = ("lahf; seto %al", "jc 1f; inc %r15d; 1:", "setle %r10b", "adc %rcx, %rdx", "pushfq; pop %r11")
    simd = f"movl $0x1f00, {at:#x}; ldmxcsr {at:#x}; pxor %xmm1, %xmm1; cmp %r8b, %bl; divps %xmm1, %xmm1"
    x87 = f"fninit; movw $0x340, {at:#x}; fldcw {at:#x}; fldz; fldz; fdivp; cmp %r8w, %bx; fwait"
    texts = [f"{cause}; {reader}; cmp %al, %al" for cause in (simd, x87) for reader in readers]
    totals = checker.check([Program(k, lines(text)) for k, text in enumerate(texts)])
    assert totals["events"] > totals["runs"]


def test_tags_of_empty_tlb_entries(checker: Checker) -> None:
    """Addresses that would fit the tag of an empty entry of the soft TLB: they fault like any other."""
    addresses = (0xFFFF7FFFFFFFF000, 0xFFFF7FFFFFFFFFF0, 0xFFFF800000000000, 1 << 47, 0x7FFFFFFFE000, 0)
    atoms = []
    for k, at in enumerate(addresses * 2):
        atoms.append([f"movabs ${at:#x}, %rbx", "mov (%rbx), %rcx" if k % 2 else "mov %rcx, (%rbx)"])
    checker.check([Program(8, atoms)])


READ_MODIFY_WRITE = """add %r10, M; xchg %r15, M; lock xadd %rax, M; lock cmpxchg %rcx, M; btsq $5, M
shlq $3, M; notq M; movups %xmm1, M; lock incq M; shld $3, %rax, M; popq M; movq %mm1, M; fistpq M; setc M
movnti %rax, M; lock cmpxchg8b M; movlps %xmm2, M""".replace("\n", "; ").split("; ")


def test_read_modify_write_faults_before_it_changes_anything(checker: Checker) -> None:
    """Operands over the end of a writable page into a missing or read-only one."""
    programs = []
    for permission in (PERM_NONE, PERM_R):
        for k, operation in enumerate(READ_MODIFY_WRITE):
            at = DATA + 8 * PAGE - 1 - k % 3
            atoms = [["emms", operation.replace("M", f"{at:#x}")], [f"mov {at - 16:#x}, %r8"]]
            programs.append(Program(len(programs), atoms, rules=[(WINDOW_DATA, 8, permission, 8)]))
    checker.check(programs)


def test_groups_of_pushes_and_pops_at_page_ends(checker: Checker) -> None:
    """A run of pushes whose middle faults has pushed the first half, and no more."""
    programs = []
    done = f"mov ${STACK + PAGE:#x}, %rsp"
    for count in (1, 2, 3, 5, 16, 20):
        pushes = [f"push {'%r10 %rsp %r15 %rbp %rax'.split()[k % 5]}" for k in range(count)]
        pops = [f"pop {'%r11 %rbx %r15 %rdi'.split()[k % 4]}" for k in range(count)]
        for top in (DATA + 7 * PAGE + 8 * slots + odd for slots in range(count + 1) for odd in (0, 4)):
            atoms = [[f"mov ${top:#x}, %rsp", *pushes], ["mov %rsp, %rcx", *pops], [done]]
            programs.append(Program(len(programs), atoms, rules=[(WINDOW_DATA, 6, PERM_NONE, 6)]))
            atoms = [[f"mov ${2 * (DATA + 7 * PAGE) - top:#x}, %rsp", *pops, "mov %rsp, %rcx"], [done]]
            programs.append(Program(len(programs), atoms, rules=[(WINDOW_DATA, 7, PERM_NONE, 7)]))
    checker.check(programs)
