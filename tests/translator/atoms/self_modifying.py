"""Code that changes."""

from __future__ import annotations

from tests.translator.atoms.base import CODE, CODE_ALIAS, DATA, PAGE, SCRATCH, SUFFIX, Atom, Base, reg


class SelfModifying(Base):
    """Code that changes."""

    #
    # No instruction is changed into one that reads more flags of what came before the store: the translator
    # may have dropped them (README.md).

    def patch(self, place: str, size: int, value: str) -> Atom:
        """Stores a constant to code: at its own address or through the alias."""
        where = self.pick(
            f"{place}(%rip)", f"{place}+{CODE_ALIAS - CODE:#x}", f"{place}+{CODE_ALIAS - CODE:#x}", "register"
        )
        setup: Atom = []
        if where == "register":
            r = self.gpr()
            setup, where = [f"lea {place}(%rip), {reg(r, 8)}"], f"({reg(r, 8)})"
            if not self.relocatable and self.chance(0.5):
                setup = [f"mov ${place}, {reg(r, 4)}"]
            elif self.relocatable:
                setup = [f"mov ${place}+{CODE_ALIAS - CODE:#x}, {reg(r, 4)}"]
        return [*setup, f"mov{SUFFIX[size]} ${value}, {where}"]

    def patched_immediate(self) -> Atom:
        target, r, s = self.label(), self.gpr(), self.rng.choice((1, 4))
        spare = self.body(2) if self.chance(0.5) else []
        instruction = [f"{target}:", f"{{disp32}} mov ${self.imm(4)}, {reg(r, 4)}"]
        offset = 1 + (r >= 8)
        return [*self.patch(f"{target}+{offset}", s, str(self.imm(s))), *spare, *instruction]

    def rewritten(self) -> Atom:
        """Code is stored over itself, byte for byte: translations die, and nothing changes."""
        here, r, s = self.label(), self.rng.choice((3, 5, 6, 7, 8, 10, 15)), self.size()
        at = f"{here}+{CODE_ALIAS - CODE + self.rng.randint(-8, 8):#x}"
        pointer = f"mov ${at}, {reg(r, 4)}"
        store = self.rng.choice(
            (
                [f"mov ({reg(r, 8)}), {reg(1, s)}", f"mov {reg(1, s)}, ({reg(r, 8)})"],
                [f"movups ({reg(r, 8)}), %xmm2", f"movups %xmm2, ({reg(r, 8)})"],
                [f"xor %eax, %eax; lock xadd %rax, ({reg(r, 8)})"],
                [f"orl $0, ({reg(r, 8)})"],
                [f"pushq ({reg(r, 8)})", f"popq ({reg(r, 8)})"],
                [f"mov ${at}, %esi; mov %esi, %edi; mov ${self.rng.randint(1, 30)}, %ecx; cld; rep movsb"],
            )
        )
        return [pointer, f"{here}:", *store, *self.definer()]

    def patched_opcode(self) -> Atom:
        target = self.label()
        old, new = (self.rng.choice((0x00, 0x28, 0x30, 0x20, 0x08, 0x10, 0x18)) for _ in range(2))
        between = self.definer()
        modrm = self.rng.randrange(0xC0, 0x100)
        return [
            *self.patch(target, 1, str(new)),
            *between,
            f"{target}:",
            f".byte {old}, {modrm}",
            *self.definer(),
        ]

    def patched_jump(self) -> Atom:
        target, one, two, end = (self.label() for _ in range(4))
        return [
            *self.patch(f"{target}+1", 1, f"({two}-{target}-2)"),
            *self.neutral(),
            f"{target}:",
            f"jmp {one}",
            f"{one}:",
            "add $3, %r10",
            f"jmp {end}",
            f"{two}:",
            "sub $5, %r11",
            f"{end}:",
        ]

    def patched_loop(self) -> Atom:
        """Its own code changes in each iteration."""
        top, target, counter = self.label(), self.label(), SCRATCH + 8 * (self.labels % 60)
        where = self.pick(f"{target}+2(%rip)", f"{target}+2+{CODE_ALIAS - CODE:#x}")
        store = self.pick(f"incb {where}", f"lock addb $3, {where}", f"xorb $5, {where}", f"mov %cl, {where}")
        return [
            f"movl ${self.rng.randint(2, 12)}, {counter:#x}",
            f"{top}:",
            *self.body(1),
            f"{target}:",
            "add $1, %ecx",
            store,
            f"decl {counter:#x}",
            f"jnz {top}",
        ]

    def patched_function(self) -> Atom:
        function, target, after, r = (
            self.label(),
            self.label(),
            self.label(),
            self.rng.choice((0, 1, 2, 3, 6, 7)),
        )
        far = [".balign 4096, 0xcc", f".skip {self.rng.randint(0, 4000)}, 0xcc"] if self.chance(0.3) else []
        calls = [f"call {function}", *self.patch(f"{target}+1", 4, str(self.imm(4))), f"call {function}"]
        return [
            f"jmp {after}",
            *far,
            f"{function}:",
            *self.neutral(),
            f"{target}:",
            f"mov $7, {reg(r, 4)}",
            "ret",
            f"{after}:",
            *calls,
        ]

    def stored_beside(self) -> Atom:
        """Every kind of store, to bytes of a code page that are not code."""
        place, after = self.label(), self.label()
        at = f"{place}+{self.rng.randrange(0, 32)}"
        aligned = f"{place}+{CODE_ALIAS - CODE:#x}"
        alias = f"{at}+{CODE_ALIAS - CODE:#x}"
        stack, di, back = f"mov ${alias}, %rsp; ", f"mov ${alias}, %edi; ", f"; {self.recentre()}"
        store = self.pick(
            f"movups %xmm3, {alias}",
            f"movaps %xmm3, {aligned}",
            f"movlps %xmm4, {alias}",
            f"movntq %mm0, {alias}",
            f"stmxcsr {alias}",
            f"fld1; fstpt {alias}",
            f"fxsave64 {aligned}; movw $0, {aligned}+6; movq $0, {aligned}+8; movq $0, {aligned}+16",
            f"lock xadd %r10, {alias}",
            f"lock cmpxchg16b {aligned}",
            f"cmpxchg8b {alias}",
            f"xchg %r15b, {alias}",
            f"incl {alias}",
            f"btsl $5, {alias}; cmp %r10, %r11",
            f"shll %cl, {alias}; cmp %eax, %ebx",
            f"setc {alias}",
            f"mov %ah, {alias}",
            f"mov %fs, {alias}",
            f"movnti %r11, {alias}",
            f"movabs %eax, {alias}",
            f"popq {alias}",
            f"push $0x202; popq {alias}",
            f"{stack}push %r10; push %rax; pop %rbx{back}",
            f"{stack}pushq $5; pushw $5; pushq {DATA:#x}{back}",
            f"{stack}cmp %al, %bl; pushfq{back}",
            f"{stack}call {after}; {after}:{back}",
            f"{stack}mov %rsp, %rbp; enter $8, $2; mov $5, %ebp{back}",
            f"{di}mov $40, %ecx; cld; rep stosb",
            f"{di}mov ${self.address(80, reach=80)}, %esi; mov $9, %ecx; cld; rep movsq",
            f"mov ${alias}+40, %edi; mov $4, %ecx; std; rep stosq; cld",
            f"{di}stosl",
        ).split("; ")
        skip = self.label()
        return [
            *store,
            f"jmp {skip}",
            ".skip 64, 0xcc",
            ".balign 16, 0xcc",
            f"{place}:",
            ".skip 576, 0x90",
            f"{skip}:",
        ]

    def patched_straddle(self) -> Atom:
        """An instruction over a page end changes in its second half, in a page without other code."""
        function, go, r = self.label(), self.label(), self.rng.choice((0, 1, 2, 3, 6, 7))
        if self.chance(0.5):
            one, two = self.label(), self.label()
            calls = [
                f"call {function}",
                *self.patch(f"{function}+1", 4, f"({two}-{function}-5)"),
                f"call {function}",
            ]
            return [
                f"jmp {go}",
                f"{one}:",
                "add $3, %r10d",
                "ret",
                f"{two}:",
                "sub $9, %r11d",
                "ret",
                ".balign 4096, 0xcc",
                f".skip {PAGE - 1}, 0xcc",
                f"{function}:",
                f".byte 0xe9; .long {one}-{function}-5",
                ".balign 4096, 0xcc",
                f"{go}:",
                *calls,
            ]
        cut = self.rng.randint(1, 4)
        part = f"{function}+{self.rng.randint(cut, 4)}"
        calls = [f"call {function}", *self.patch(part, 1, str(self.imm(1))), f"call {function}"]
        return [
            f"jmp {go}",
            ".balign 4096, 0xcc",
            f".skip {PAGE - cut}, 0xcc",
            f"{function}:",
            f"mov $7, {reg(r, 4)}",
            "ret",
            ".balign 4096, 0xcc",
            f"{go}:",
            *calls,
        ]

    def crossing_store(self) -> Atom:
        """Over the end of a page, code on both sides."""
        edge, go, s = self.label(), self.label(), self.rng.choice((2, 4, 8))
        where = f"{edge}-{self.rng.randint(1, s - 1)}"
        where = self.pick(f"{where}(%rip)", f"{where}+{CODE_ALIAS - CODE:#x}")
        r = reg(self.gpr(), s)
        op = self.pick(
            f"mov {r}, {where}",
            f"add{SUFFIX[s]} ${self.imm(1)}, {where}",
            f"lock xadd {r}, {where}",
            f"movups %xmm1, {where}",
        )
        return [
            f"jmp {go}",
            ".balign 4096, 0xcc",
            f"{edge}:",
            ".skip 16, 0xcc",
            f"{go}:",
            op,
            *self.neutral(),
            *self.definer(),
        ]

    def generated(self) -> Atom:
        """A function is copied and called where it was copied to, then another at the same place."""
        one, one_end, two, two_end, place, go = (self.label() for _ in range(6))
        lines = [
            f"jmp {go}",
            f"{one}:",
            f"mov ${self.imm(4)}, %eax",
            "lea 3(%r10,%r11), %r10",
            "ret",
            f"{one_end}:",
            f"{two}:",
            "add $9, %r15d",
            f"xor ${self.imm(1)}, %r11",
            "test %eax, %eax",
            "ret",
            f"{two_end}:",
        ]
        lines += [f"{place}:", ".skip 48, 0xcc", f"{go}:"]
        for _ in range(self.rng.randint(2, 4)):
            source, end = self.rng.choice(((one, one_end), (two, two_end)))
            to = self.pick(place, f"{place}+{CODE_ALIAS - CODE:#x}")
            lines += [
                f"mov ${source}, %esi",
                f"mov ${to}, %edi",
                f"mov ${end}-{source}, %ecx",
                "cld",
                "rep movsb",
                "mov $1, %esi",
                "mov $2, %edi",
            ]
            lines += [f"call {place}"]
        return [*lines, *self.definer()]
