"""Jumps, loops, calls and returns."""

from __future__ import annotations

from tests.translator.atoms.base import NUMBER, PAGE, SCRATCH, Atom, Base, reg


class Control(Base):
    """Jumps, loops, calls and returns."""

    def skip(self) -> Atom:
        target = self.label()
        return [f"j{self.condition()} {target}", *self.body(), f"{target}:"]

    def either(self) -> Atom:
        other, end = self.label(), self.label()
        return [
            f"j{self.condition()} {other}",
            *self.body(),
            f"jmp {end}",
            f"{other}:",
            *self.body(),
            f"{end}:",
        ]

    def repeat(self) -> Atom:
        """A loop with its counter in memory."""
        top, counter = self.label(), SCRATCH + 8 * self.rng.randint(0, 30)
        # Not the counter of a loop around this one: the number of labels so far tells them apart.
        counter = SCRATCH + 8 * (self.labels % 60)
        return [
            f"movl ${self.rng.randint(2, 9)}, {counter:#x}",
            f"{top}:",
            *self.body(4),
            f"decl {counter:#x}",
            f"jnz {top}",
        ]

    def loop_instruction(self) -> Atom:
        top, end = self.label(), self.label()
        match self.rng.randrange(4):
            case 0:
                return [
                    f"mov ${self.rng.randint(1, 6)}, %ecx",
                    f"{top}:",
                    f"add {reg(3, 8)}, {reg(self.rng.choice((0, 2, 10)), 8)}",
                    f"{self.pick('loop', 'loope', 'loopne')} {top}",
                ]
            case 1:
                return [
                    self.pick("xor %ecx, %ecx", "mov $1, %cl", "movabs $0x100000000, %rcx"),
                    f"{self.pick('jrcxz', 'jecxz')} {end}",
                    *self.neutral(),
                    *self.neutral(),
                    f"{end}:",
                ]
            case 2:
                return [
                    f"movabs ${self.rng.randint(1, 4) | 0x500000000:#x}, %rcx",
                    f"{top}:",
                    "inc %r11",
                    f"addr32 {self.pick('loop', 'loope')} {top}",
                ]
        return [f"{self.pick('jrcxz', 'jecxz')} {end}", *self.neutral(), *self.definer(), f"{end}:"]

    def indirect_jump(self) -> Atom:
        target, r = self.label(), self.gpr()
        lines = [f"lea {target}(%rip), {reg(r, 8)}"]
        if self.chance(0.5):
            slot = SCRATCH + 2048 + 8 * (self.labels % 60)
            lines += [f"mov {reg(r, 8)}, {slot:#x}", f"jmp *{slot:#x}"]
        else:
            lines.append(f"jmp *{reg(r, 8)}")
        return [
            *lines,
            "ud2",
            f"{target}:",
            f"mov $0, {reg(r, 4)}",
            f"movq $0, {SCRATCH + 2048 + 8 * (self.labels % 60):#x}",
        ]

    def far_away(self) -> Atom:
        """On at the end of a page: the next instructions lie across it."""
        target = self.label()
        fill = PAGE - self.rng.randint(1, 30)
        return [
            f"jmp {target}",
            ".balign 4096, 0xcc",
            f".skip {fill}, 0xcc",
            f"{target}:",
            *self.body(),
            *self.definer(),
        ]

    def call(self) -> Atom:
        later = range(self.current_function + 1, self.nr_functions)
        if not later:
            return self.push_pop()
        name = f"F{self.prefix}_{self.rng.choice(later)}"
        match self.rng.randrange(5):
            case 0 if not self.relocatable:
                r = reg(self.gpr(), 8)
                return [f"lea {name}(%rip), {r}", f"call *{r}"]
            case 1:
                slot = SCRATCH + 3072 + 8 * (self.labels % 60)
                return [f"lea {name}(%rip), %rax", f"mov %rax, {slot:#x}", "mov $5, %eax", f"call *{slot:#x}"]
            case 2 if (
                not self.relocatable
            ):  # a return that nobody called: the shadow stack and the guest's disagree
                back, r = self.label(), reg(self.gpr(), 8)
                return [f"lea {back}(%rip), {r}", f"push {r}", f"jmp {name}", f"{back}:"]
        return [f"call {name}"]

    def odd_return(self) -> Atom:
        """A call that does not come back to its end."""
        there, after, r = self.label(), self.label(), reg(self.gpr(), 8)
        match self.rng.randrange(4):
            case 0:
                return [f"call {there}", f"{there}:", f"pop {r}", f"mov $0, {reg(NUMBER[r], 4)}"]
            case 1:
                return [
                    f"call {there}",
                    "ud2",
                    f"{there}:",
                    f"lea {after}(%rip), {r}",
                    f"mov {r}, (%rsp)",
                    "ret",
                    "ud2",
                    f"{after}:",
                    f"mov $3, {reg(NUMBER[r], 4)}",
                ]
            case 2:
                return [
                    f"call {there}",
                    f"jmp {after}",
                    f"{there}:",
                    f"pop {r}",
                    f"jmp *{r}",
                    f"{after}:",
                    f"mov $2, {reg(NUMBER[r], 4)}",
                ]
        return [
            f"lea {there}(%rip), {r}",
            f"push {r}",
            "ret",
            "ud2",
            f"{there}:",
            f"mov $1, {reg(NUMBER[r], 4)}",
        ]
