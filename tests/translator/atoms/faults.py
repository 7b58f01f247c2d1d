"""Instructions that fault."""

from __future__ import annotations

from tests.translator.atoms.base import DATA, PAGE, RESUME, SCRATCH, SUFFIX, USUAL_PAGES, Atom, Base, reg


class Faults(Base):
    """Instructions that fault."""

    def divide_error(self) -> Atom:
        s = self.size()
        setup, m = self.rm(s)
        return [*setup, f"{self.pick('div', 'idiv')}{SUFFIX[s]} {m}", *self.definer()]

    def misaligned(self) -> Atom:
        op = self.pick(
            "movaps", "movdqa", "addps", "pand", "xorps", "cvtdq2ps", "movntdq", "movapd", "haddps", "sqrtpd"
        )
        r = self.gpr()
        # On a present page: which of #GP and #PF comes first is up to the CPU.
        at = self.load_pointer(r, DATA + self.rng.randrange(0, (USUAL_PAGES - 2) * PAGE))
        if op in ("movntdq",) or (op in ("movaps", "movdqa", "movapd") and self.chance(0.5)):
            return [at, f"{op} {self.xmm()}, ({reg(r, 8)})"]
        return [at, f"{op} ({reg(r, 8)}), {self.xmm()}"]

    def simd_exception(self) -> Atom:
        at = SCRATCH + 1536
        value = 0x1F80 & ~self.rng.choice((0x80, 0x100, 0x200, 0x400, 0x800, 0x1000, 0x1F80))
        setup, m = self.xmm_source(16)
        op = self.pick(
            "divps",
            "divpd",
            "addps",
            "mulpd",
            "sqrtps",
            "sqrtpd",
            "minps",
            "cvtpd2ps",
            "cvtps2dq",
            "cvttpd2dq",
        )
        return [
            *setup,
            f"movl ${value:#x}, {at:#x}",
            f"ldmxcsr {at:#x}",
            f"{op} {m}, {self.xmm()}",
            f"movl $0x1f80, {at:#x}",
            f"ldmxcsr {at:#x}",
        ]

    def bad_mxcsr(self) -> Atom:
        at = SCRATCH + 1536
        return [f"movl $0x{self.rng.getrandbits(8):x}11f80, {at:#x}", f"ldmxcsr {at:#x}"]

    def x87_exception(self) -> Atom:
        at = SCRATCH + 1600
        cause = self.pick(
            "fld1; fldz; fdivrp",
            "fldz; fchs; fsqrt",
            "fld1; fld1; fchs; fsqrt",
            "fldpi; fldz; fdivrp %st, %st(1)",
        )
        noticed = self.pick(
            "fwait",
            "fld1",
            "fstp %st(0)",
            "movq %mm0, %mm1",
            f"fldcw {at + 8:#x}",
            "emms",
            f"fstpl {at + 16:#x}",
        )
        return [
            "fninit",
            f"movw $0x{self.pick('37b', '37e', '340')}, {at:#x}",
            f"movw $0x37f, {at + 8:#x}",
            f"fldcw {at:#x}",
            *cause.split("; "),
            noticed,
            RESUME,
            "fnclex",
            "fninit",
        ]

    def undefined(self) -> Atom:
        return [
            self.pick(
                "ud2",
                ".byte 0x0f, 0xff, 0xc0",
                ".byte 0x06",
                ".byte 0xd6",
                ".byte 0x0f, 0x0b",
                ".byte 0x62, 0x61, 0x7c, 0x48, 0xff",
            )
        ]

    def privileged(self) -> Atom:
        return [
            self.pick(
                "hlt",
                "cli",
                "sti",
                "mov %cr0, %rax",
                "mov %rax, %cr3",
                "invlpg (%rax)",
                "wbinvd",
                "rdmsr",
                "wrmsr",
                "in %dx, %al",
                "out %al, $0x80",
                "clts",
                "lgdt (%rax)",
                "mov %db0, %rbx",
                "int3",
            )
        ]

    def not_canonical(self) -> Atom:
        r = self.gpr()
        at = self.rng.choice(
            (0x900000000000, (1 << 63) - 8, 0xFFFF7FFFFFFFF000, 0xFFFF7FFFFFFFFFF8, 0x1234567800000000)
        )
        setup = self.load_pointer(r, at)
        base = reg(r, 8)
        return [
            setup,
            self.pick(
                f"mov ({base}), %rax",
                f"mov %rbx, ({base})",
                f"addq $1, ({base})",
                f"movups ({base}), %xmm1",
                f"bts %rcx, ({base})\ncmp %al, %bl",
                f"lock incl ({base})",
            ),
        ]

    def not_canonical_stack(self) -> Atom:
        at = self.rng.choice((0x900000000000, 0xFFFF7FFFFFFFF800, 0x1234567800000000))
        return [
            self.load_pointer(self.rng.choice((4, 5)), at),
            self.pick(
                "push %rax",
                "pop %rbx",
                "mov 8(%rbp), %rcx",
                "mov %rcx, 16(%rsp)",
                "leave",
                "ret",
                "call 1f; 1:",
                "pushfq",
                "popfq",
                "addl $1, -8(%rbp)",
            ),
            self.recentre(),
            "mov $0, %ebp",
        ]

    def wild(self) -> Atom:
        """Somewhere unmapped; or a jump there."""
        r = self.gpr()
        at = self.rng.choice(
            (0, 8, 0x1000, 0x4FFFFFFC, 0x4FFFFFF8, 0x5000C000, 0x5000BFFC, 0x57FFFFFF, 0x7FFF0000)
        )
        base = reg(r, 8)
        return [
            self.load_pointer(r, at),
            self.pick(
                f"mov ({base}), %rax",
                f"mov %rbx, ({base})",
                f"xaddl %ecx, ({base})",
                f"movups ({base}), %xmm1",
                f"jmp *{base}",
                f"btc %edx, ({base})\ncmp %al, %bl",
                f"pushq ({base})",
                f"popq ({base})",
                f"movups %xmm3, ({base})",
                f"fldt ({base})",
                f"fstpt ({base})",
                "fxsave64 0x4ffffff0",
            ),
        ]

    def write_read_only(self) -> Atom:
        here = self.label()
        return [
            f"{here}:",
            self.pick(
                f"movb $1, {here}(%rip)",
                f"incl {here}(%rip)",
                f"xchg %rax, {here}(%rip)",
                f"movups %xmm0, {here}(%rip)",
                f"pop {here}(%rip)",
            ),
        ]

    def not_executable(self) -> Atom:
        return [
            self.load_pointer(10, self.address(8)),
            self.pick("jmp *%r10", "call *%r10", "push %r10; ret"),
        ]
