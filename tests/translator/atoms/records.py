"""Several accesses through one base: what the translator looks up once for a block."""

from __future__ import annotations

from tests.translator.atoms.base import DATA, PAGE, SUFFIX, Atom, Base, reg

SPAN = 500


class Records(Base):
    """Fields of records, on one page or over two, through registers that move by constants."""

    def record_start(self) -> int:
        """Where a record of SPAN bytes begins: now and then it crosses a page."""
        page = self.rng.randint(7, 9) if self.risky and self.chance(0.5) else self.rng.randint(0, 5)
        crosses = self.chance(0.4)
        offset = PAGE - self.rng.randint(1, SPAN) if crosses else self.rng.randint(0, PAGE - SPAN)
        return DATA + page * PAGE + offset

    def field(self, base: str, moved: int) -> Atom:
        """An access somewhere in the record; `moved`: how far `base` is from its start."""
        s = self.size()
        place = f"{self.rng.randint(0, SPAN - 9) - moved}({base})"
        r = reg(self.gpr(), s)
        if r == reg(self.number_of(base), s):
            r = reg(0, s)
        a = SUFFIX[s]
        match self.rng.randrange(9):
            case 0 | 1:
                return [f"mov{a} {place}, {self.other(base, s)}"]
            case 2 | 3:
                return [f"mov{a} {r}, {place}"]
            case 4:
                return [f"add{a} {r}, {place}"]
            case 5:
                return [f"cmp{a} {place}, {r}"]
            case 6:
                return [f"set{self.condition()} {place}"]
            case 7:
                return [f"lock add{a} {r}, {place}"]
        return [f"movq %xmm1, {place}", f"movups {place}, %xmm2"]

    def number_of(self, base: str) -> int:
        return next(n for n in range(16) if reg(n, 8) == base)

    def other(self, base: str, size: int) -> str:
        """A register that isn't the base."""
        while (number := self.gpr()) == self.number_of(base):
            pass
        return reg(number, size)

    def record(self) -> Atom:
        """Fields through a base that moves by constants, with flags alive in between, perhaps a branch."""
        base = reg(self.gpr(), 8)
        lines, moved = [self.load_pointer(self.number_of(base), self.record_start())], 0
        for _ in range(self.rng.randint(2, 9)):
            match self.rng.randrange(10):
                case 0:
                    step = self.rng.randint(-100, 100)
                    lines.append(self.pick(f"add ${step}, {base}", f"lea {step}({base}), {base}"))
                    moved += step
                case 1:
                    lines.append(f"inc {base}")
                    moved += 1
                case 2:
                    lines += self.definer()
                case 3:
                    over = self.label()
                    inner = self.field(base, moved)
                    lines += [f"j{self.condition()} {over}", *inner, f"{over}:"]
                case _:
                    lines += self.field(base, moved)
        return self.guarded(lines, base, moved)

    def guarded(self, lines: Atom, base: str, moved: int) -> Atom:
        """Nothing in between may have changed the base."""
        number = self.number_of(base)
        names = {reg(number, s).lstrip("%") for s in (1, 2, 4, 8)}
        kept = [line for line in lines if not self.changes(line, names, base)]
        return [*kept, *self.definer()]

    def changes(self, line: str, names: set[str], base: str) -> bool:
        """Is its last operand the base, though it isn't one of the steps that are accounted for?"""
        last = line.split(",")[-1].split()[-1].lstrip("%")
        accounted = line.startswith(("add $", "lea ", "inc ", "movabs")) and line.endswith(base)
        return last in names and not accounted

    def two_views(self) -> Atom:
        """Two registers lead to the same record, through a copy or from the other alias of the data."""
        first, second = 3, 6
        start = self.record_start()
        lines = [self.load_pointer(first, start)]
        lines.append(
            f"mov {reg(first, 8)}, {reg(second, 8)}"
            if self.chance(0.5)
            else f"lea -40({reg(first, 8)}), {reg(second, 8)}"
        )
        moved = 0 if lines[-1].startswith("mov ") else -40
        for _ in range(self.rng.randint(2, 6)):
            at = self.rng.randint(0, SPAN - 9)
            value = reg(self.rng.choice((0, 1, 8, 10, 11, 15)), 8)
            lines.append(
                self.pick(
                    f"mov {value}, {at}({reg(first, 8)})",
                    f"mov {at - moved}({reg(second, 8)}), {value}",
                    f"add {value}, {at - moved}({reg(second, 8)})",
                    f"sub {at}({reg(first, 8)}), {value}",
                )
            )
        return [*lines, *self.definer()]

    def vex_record(self) -> Atom:
        """VEX-encoded instructions among them, some with operands that the translator keeps in memory."""
        base = reg(self.rng.choice((3, 5, 6, 11, 15)), 8)
        lines = [self.load_pointer(self.number_of(base), self.record_start())]
        for _ in range(self.rng.randint(2, 7)):
            place = f"{self.rng.randint(0, SPAN - 33)}({base})"
            lines.append(
                self.pick(
                    f"vmovups {place}, %ymm3",
                    f"vmovups %ymm4, {place}",
                    f"vpaddd {place}, %xmm3, %xmm12",
                    f"andnq {place}, %r10, %rax",
                    f"shlxq %rcx, {place}, %r10",
                    f"vmovq %xmm3, {place}",
                    f"mov %r10, {place}",
                    f"add {place}, %rax",
                    "vmovd %xmm4, %r10d",
                )
            )
        return [*lines, *self.definer()]

    def fixed_record(self) -> Atom:
        """Fixed addresses on one page or two, absolute and relative to rip, with %fs: ones in between."""
        start = self.record_start()
        lines: Atom = []
        for _ in range(self.rng.randint(2, 6)):
            at = start + self.rng.randint(0, SPAN - 9)
            s = self.size()
            r = reg(self.gpr(), s)
            place = self.pick(f"{at:#x}", f"DATA+{at - DATA:#x}(%rip)")
            lines.append(
                self.pick(
                    f"mov{SUFFIX[s]} {r}, {place}",
                    f"mov{SUFFIX[s]} {place}, {r}",
                    f"xor{SUFFIX[s]} {r}, {place}",
                )
            )
            if self.chance(0.3):
                lines += self.neutral()
        return [*lines, *self.definer()]
