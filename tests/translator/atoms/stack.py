"""Instructions of the stack, and rsp as an ordinary register."""

from __future__ import annotations

from tests.translator.atoms.base import PAGE, RSP, SCRATCH, STACK, Atom, Base, reg


class Stack(Base):
    """Instructions of the stack, and rsp as an ordinary register."""

    def push_pop(self) -> Atom:
        n = self.rng.randint(1, 9)
        lines = []
        if self.chance(0.3):
            near_page_end = (
                STACK + self.rng.randint(1, 2) * PAGE + self.rng.randint(-4, 8) * 8 + self.pick_offset()
            )
            lines.append(f"mov ${near_page_end:#x}, %rsp")
        lines += [f"push {reg(self.gpr() if self.chance(0.9) else RSP, 8)}" for _ in range(n)]
        if self.chance(0.3):
            lines += self.neutral()
        return lines + [f"pop {reg(self.gpr(), 8)}" for _ in range(n)]

    def pick_offset(self) -> int:
        return self.rng.choice((0, 0, 0, 1, 2, 4, 6))

    def push_forms(self) -> Atom:
        setup, m = self.mem(8)
        near = f"{self.rng.randint(-64, 64)}(%rsp)"
        pushed = m if self.relocatable else near  # there may be a return address
        push = self.pick(f"push ${self.imm(4)}", f"push ${self.imm(1)}", f"pushq {m}", f"pushq {pushed}")
        pop = self.pick(f"popq {self.address(8):#x}", f"popq {near}", f"pop {reg(self.gpr(), 8)}")
        return [*setup, push, pop, self.recentre()]

    def push_narrow(self) -> Atom:
        at = self.address(2)
        push = self.pick(f"pushw ${self.imm(2)}", f"push {reg(self.gpr(), 2)}", f"pushw {at:#x}", "pushw $5")
        pop = self.pick(
            f"pop {reg(self.gpr(), 2)}", f"popw {at:#x}", f"popw {self.rng.randint(-64, 64)}(%rsp)"
        )
        return [push, pop]

    def pop_rsp(self) -> Atom:
        slot = self.rng.randint(-64, 64)
        return [
            f"movq ${STACK + 2 * PAGE + slot * 8:#x}, (%rsp)",
            self.pick("pop %rsp", ".byte 0x8f, 0xc4"),
            f"mov %rsp, {reg(self.gpr(), 8)}",
        ]

    def rsp_operand(self) -> Atom:
        """rsp as an ordinary register."""
        r, s = self.gpr(), self.rng.choice((2, 4, 8))
        op = self.pick("add", "sub", "xor", "and", "or", "cmp", "mov", "test", "adc")
        keep = f"mov %rsp, {reg(self.gpr(), 8)}"
        match self.rng.randrange(6):
            case 0:
                return [f"{op} {reg(RSP, s)}, {reg(r, s)}"]
            case 1:
                return [f"{op} {reg(r, s)}, {reg(RSP, s)}", keep, self.recentre()]
            case 2:
                return [f"xchg {reg(r, 8)}, %rsp", keep, self.recentre()]
            case 3:
                return [f"{op}b %spl, {reg(r, 1)}", f"mov ${self.imm(1)}, %spl", keep, self.recentre()]
            case 4:
                return [
                    f"{self.pick('add', 'sub', 'and')} ${self.rng.randint(-64, 64) * 8}, %rsp",
                    keep,
                    self.recentre(),
                ]
        at = SCRATCH + 1024 + 8 * r
        return [
            f"{op} %rsp, {at:#x}",
            f"{self.pick('add', 'mov', 'cmp')} {at:#x}, %rsp",
            keep,
            self.recentre(),
        ]

    def frame(self) -> Atom:
        if self.chance(0.5):
            nested = self.rng.choice((0, 0, 1, 2, 5))
            between = self.neutral()
            while "bp" in " ".join(between):
                between = self.neutral()
            return [
                self.recentre(),
                "mov %rsp, %rbp",
                f"enter ${self.rng.randint(0, 200)}, ${nested}",
                *between,
                "leave",
            ]
        return [
            "push %rbp",
            "mov %rsp, %rbp",
            f"sub ${self.rng.randint(0, 30) * 8}, %rsp",
            "mov %rax, -8(%rbp)",
            "leave",
        ]

    def flags_on_stack(self) -> Atom:
        match self.rng.randrange(3):
            case 0:  # AF too, so something that defines it first
                return [
                    f"add {reg(self.gpr(), 1)}, {reg(self.gpr(), 1)}",
                    "pushfq",
                    f"pop {reg(self.gpr(), 8)}",
                ]
            case 1:
                r = reg(self.gpr(), 8)
                return [
                    f"push ${self.rng.getrandbits(12) & 0xCD5 | (0x200000 if self.chance(0.3) else 0):#x}",
                    "popfq",
                    *self.neutral(),
                    "add %al, %bl",
                    "pushfq",
                    f"pop {r}",
                ]
        return ["cmp %al, %cl", "pushfq", "xorl $0x8c5, (%rsp)", "popfq"]
