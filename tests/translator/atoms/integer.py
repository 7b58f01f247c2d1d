"""Integer instructions in all forms and sizes."""

from __future__ import annotations

from tests.translator.atoms.base import DATA, PAGE, SUFFIX, USUAL_PAGES, Atom, Base, reg


class Integer(Base):
    """Integer instructions in all forms and sizes."""

    def alu(self) -> Atom:
        s, op = self.size(), self.pick("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test", "mov")
        form = self.rng.randrange(5)
        if form == 0:
            return [f"{op}{SUFFIX[s]} {reg(self.gpr(), s)}, {reg(self.gpr(), s)}"]
        if form == 1 and op != "test":
            setup, m = self.mem(s)
            return [*setup, f"{op}{SUFFIX[s]} {m}, {reg(self.gpr(), s)}"]
        if form == 2:
            setup, m = self.mem(s)
            return [*setup, f"{op}{SUFFIX[s]} {reg(self.gpr(), s)}, {m}"]
        setup, m = self.rm(s)
        return [*setup, f"{op}{SUFFIX[s]} ${self.imm(s)}, {m}"]

    def alu_encodings(self) -> Atom:
        """The form of two that the assembler does not choose."""
        s, op = self.size(), self.pick("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "mov")
        return [f"{{load}} {op}{SUFFIX[s]} {reg(self.gpr(), s)}, {reg(self.gpr(), s)}"]

    def unary(self) -> Atom:
        s = self.size()
        setup, m = self.rm(s)
        return [*setup, f"{self.pick('inc', 'dec', 'neg', 'not')}{SUFFIX[s]} {m}"]

    def locked(self) -> Atom:
        s = self.size()
        setup, m = self.mem(s)
        r = reg(self.gpr(), s)
        op = self.pick(
            "add",
            "or",
            "adc",
            "sbb",
            "and",
            "sub",
            "xor",
            "xadd",
            "cmpxchg",
            "inc",
            "dec",
            "neg",
            "not",
            "imm",
        )
        if op in ("inc", "dec", "neg", "not"):
            return [*setup, f"lock {op}{SUFFIX[s]} {m}"]
        if op == "imm":
            return [
                *setup,
                f"lock {self.pick('add', 'adc', 'sub', 'xor', 'or', 'and')}{SUFFIX[s]} ${self.imm(s)}, {m}",
            ]
        return [*setup, f"lock {op}{SUFFIX[s]} {r}, {m}"]

    def exchange(self) -> Atom:
        s = self.size()
        setup, m = self.rm(s)
        return [*setup, f"{self.pick('xchg', 'xadd', 'cmpxchg')}{SUFFIX[s]} {reg(self.gpr(), s)}, {m}"]

    def cmpxchg_hit(self) -> Atom:
        """A compare-and-exchange that succeeds."""
        s = self.size()
        setup, m = self.mem(s, busy=(0,))
        return [
            *setup,
            f"mov{SUFFIX[s]} {m}, {reg(0, s)}",
            f"lock cmpxchg{SUFFIX[s]} {reg(self.gpr(), s)}, {m}",
        ]

    def cmpxchg8(self) -> Atom:
        setup, m = self.mem(8, busy=(0, 1, 2, 3))
        load = [f"mov {m}, %eax", f"mov 4+{m}, %edx"] if self.chance(0.4) and m[0] == "0" else []
        return [*setup, *load, f"{self.pick('', 'lock ')}cmpxchg8b {m}"]

    def cmpxchg16(self) -> Atom:
        setup, m = self.mem(16, 16, busy=(0, 1, 2, 3))
        return [*setup, f"{self.pick('', 'lock ')}cmpxchg16b {m}"]

    def shift(self) -> Atom:
        s = self.size()
        op = self.pick("shl", "shr", "sar", "rol", "ror", "rcl", "rcr")
        count = self.pick(
            "%cl", "$1", f"${self.rng.randint(0, 63 if s == 8 else 31)}", f"${self.rng.randint(0, 255)}"
        )
        setup, m = self.rm(s, busy=(1,))
        if count == "%cl" and self.chance(0.3):
            setup = [*setup, self.pick("mov $0, %cl", "mov $1, %cl", "mov $64, %cl", "and $31, %ecx")]
        line = f"{op}{SUFFIX[s]} {count}, {m}"
        if op in ("rol", "ror", "rcl", "rcr"):
            return [*self.definer(), *setup, line, *self.settle("zspc")]
        if count == "%cl":
            return [*self.definer(), *setup, line, *self.settle("zsp" + ("c" if s > 2 else ""))]
        if count == "$1":
            return [*setup, line]
        return [*self.definer(), *setup, line, *self.settle("zsp")]

    def double_shift(self) -> Atom:
        s = self.wide()
        setup, m = self.rm(s, busy=(1,))
        count = f"${self.rng.randint(0, 15)}"
        if self.chance(0.5):
            setup, count = [*setup, "and $15, %ecx"], "%cl"
        r = reg(self.gpr(), s)
        return [
            *self.definer(),
            *setup,
            f"{self.pick('shld', 'shrd')}{SUFFIX[s]} {count}, {r}, {m}",
            *self.settle("zspc"),
        ]

    def bit(self) -> Atom:
        s = self.wide()
        op = self.pick("bt", "bts", "btr", "btc")
        if self.chance(0.3):
            setup, m = self.rm(s)
            lock = self.pick("", "lock ") if op != "bt" and m[0] != "%" else ""
            lines = [
                *setup,
                f"{lock}{op}{SUFFIX[s]} ${self.rng.randint(0, 255)}, {m}",
            ]
        elif self.chance(0.3):
            lines = [f"{op}{SUFFIX[s]} {reg(self.gpr(), s)}, {reg(self.gpr(), s)}"]
        else:
            r = self.gpr()
            bits = self.rng.randint(-20000, 20000)
            base = self.rng.choice([b for b in (0, 3, 5, 9, 10, 11, 15) if b != r])
            at = DATA + 3 * PAGE + self.rng.randint(0, PAGE)
            lock = self.pick("", "lock ") if op != "bt" else ""
            lines = [
                self.load_pointer(r, bits),
                self.load_pointer(base, at),
                f"{lock}{op}{SUFFIX[s]} {reg(r, s)}, ({reg(base, 8)})",
            ]
        return [*lines, *self.settle("c")]

    def bit_scan(self) -> Atom:
        s = self.wide()
        setup, m = self.rm(s)
        zero = [f"xor {reg(9, 4)}, {reg(9, 4)}"] if self.chance(0.2) else []
        source = reg(9, s) if zero else m
        op = self.pick("bsf", "bsr")
        if self.chance(0.3) and zero == []:  # tzcnt and lzcnt aren't offered, but old code has "rep bsf"
            return [
                *setup,
                f"mov $-1, {reg(8, 8)}",
                f"or {reg(8, 8)}, {reg(8, 8)}",
                f"{op}{SUFFIX[s]} {reg(8, s)}, {reg(self.gpr(), s)}",
                *self.settle("z"),
            ]
        return [*setup, *zero, f"{op}{SUFFIX[s]} {source}, {reg(self.gpr(), s)}", *self.settle("z")]

    def multiply(self) -> Atom:
        s = self.size()
        setup, m = self.rm(s)
        if s == 1 or self.chance(0.4):
            line = f"{self.pick('mul', 'imul')}{SUFFIX[s]} {m}"
        elif self.chance(0.5):
            line = f"imul{SUFFIX[s]} {m}, {reg(self.gpr(), s)}"
        else:
            line = f"imul{SUFFIX[s]} ${self.imm(s)}, {m}, {reg(self.gpr(), s)}"
        return [*setup, line, *self.settle("co")]

    def divide(self) -> Atom:
        s = self.size()
        setup, m = self.rm(s, busy=(0, 2))
        op = self.pick("div", "idiv")
        lines = [*setup]
        if m[0] == "%":
            divisor = self.rng.choice((1, 3, 5, 6, 8, 10, 11, 15))
            m = reg(divisor, s)
        lines.append(f"or{SUFFIX[s]} $64, {m}")
        if s == 1:
            lines += [f"movzbl {reg(0, 1)}, %eax", "and $63, %eax"]
        else:
            lines += [f"and{SUFFIX[s]} $63, {reg(0, s)}", f"xor {reg(2, 4)}, {reg(2, 4)}"]
        return [*lines, f"{op}{SUFFIX[s]} {m}", *self.definer()]

    def extend(self) -> Atom:
        to = self.rng.choice((2, 4, 8))
        frm = self.rng.choice([s for s in (1, 2, 4) if s < to])
        setup, m = self.rm(frm)
        r = reg(self.gpr(), to)
        if frm == 4:
            return [*setup, f"movslq {m}, {r}"]
        return [*setup, f"mov{self.pick('z', 's')}{SUFFIX[frm]}{SUFFIX[to]} {m}, {r}"]

    def accumulator(self) -> Atom:
        return [
            self.pick("cbw", "cwde", "cdqe", "cwd", "cdq", "cqo", "clc", "stc", "cmc", "nop", "pause", "sahf")
        ]

    def flags_in_ah(self) -> Atom:
        return [self.pick("sahf", "add %bl, %cl", "sub %rdx, %r10", "cmpl $7, %r15d"), "lahf"]

    def conditional(self) -> Atom:
        s = self.wide()
        if self.chance(0.5):
            setup, m = self.rm(1)
            return [*setup, f"set{self.condition()} {m}"]
        setup, m = self.rm(s)
        return [*setup, f"cmov{self.condition()} {m}, {reg(self.gpr(), s)}"]

    def high_byte(self) -> Atom:
        h, h2 = (self.pick("%ah", "%bh", "%ch", "%dh") for _ in range(2))
        low = reg(self.rng.randrange(4), 1)
        op = self.pick(
            "mov", "add", "xor", "sub", "cmp", "test", "adc", "sbb", "xchg", "and", "or", "xadd", "cmpxchg"
        )
        match self.rng.randrange(8):
            case 0:
                return [f"{op} {h}, {h2}"]
            case 1:
                return [f"{op} {h}, {low}"]
            case 2:
                return [f"{op if op not in ('xadd', 'cmpxchg') else 'add'} {low}, {h}"]
            case 3:
                return [f"mov ${self.imm(1)}, {h}", f"add ${self.imm(1)}, {h2}"]
            case 4:
                return [f"{self.pick('inc', 'dec', 'neg', 'not')} {h}", f"set{self.condition()} {h2}"]
            case 5:
                wide, low_half = self.rng.choice((2, 4)), self.rng.choice((0, 1, 2, 3, 5, 6, 7))
                return [f"mov{self.pick('z', 's')}b{SUFFIX[wide]} {h}, {reg(low_half, wide)}"]
            case 6:
                return [
                    f"{self.pick('shl', 'shr', 'sar')} $1, {h}",
                    f"{self.pick('mul', 'imul')} {h2}",
                    *self.settle("co"),
                ]
        at = self.address(1)
        if op in ("xadd", "cmpxchg", "xchg") and self.chance(0.5):
            return [f"{self.pick('lock ', '')}{op} {h}, {at:#x}"]
        if op in ("xadd", "cmpxchg", "test") or self.chance(0.5):
            return [f"{op} {h}, {at:#x}"]
        return [f"{op} {at:#x}, {h}"]

    def lea(self) -> Atom:
        s = self.wide()
        a, b = self.gpr(), self.gpr()
        narrow = self.chance(0.2)
        base = self.pick(reg(a, 4 if narrow else 8), "")
        disp = self.rng.choice((0, self.rng.randint(-128, 127), self.rng.randint(-(1 << 31), (1 << 31) - 1)))
        if narrow and base == "":
            base = reg(a, 4)
        index = (
            f",{reg(b, 4 if narrow else 8)},{self.rng.choice((1, 2, 4, 8))}"
            if self.chance(0.6) or not base
            else ""
        )
        if self.chance(0.1):
            return [f"lea {disp % 1000}(%rsp), {reg(self.gpr(), 8)}"]
        return [f"lea{SUFFIX[s]} {disp}({base}{index}), {reg(self.gpr(), s)}"]

    def bswap(self) -> Atom:
        return [f"bswap {reg(self.gpr(), self.rng.choice((4, 8)))}"]

    def move(self) -> Atom:
        s = self.size()
        match self.rng.randrange(5):
            case 0:
                return [f"movabs ${self.rng.getrandbits(64):#x}, {reg(self.gpr(), 8)}"]
            case 1:
                return [f"mov{SUFFIX[s]} ${self.imm(s)}, {reg(self.gpr(), s)}"]
            case 2:
                at, a = self.address(s), reg(0, s)
                return [f"movabs {a}, {at:#x}" if self.chance(0.5) else f"movabs {at:#x}, {a}"]
            case 3:
                w = self.wide()
                return [f"xchg {reg(0, w)}, {reg(self.gpr(), w)}"]
        setup, m = self.mem(s)
        if s >= 4 and self.chance(0.2):
            return [*setup, f"movnti {reg(self.gpr(), s)}, {m}"]
        return [*setup, f"mov{SUFFIX[s]} {m}, {reg(self.gpr(), s)}"]

    def fence(self) -> Atom:
        at = DATA + self.rng.randrange(0, (USUAL_PAGES - 1) * PAGE)  # a present page: for us it does nothing
        return [
            self.pick(
                "lfence",
                "mfence",
                "sfence",
                f"clflush {at:#x}",
                f"prefetcht0 {at:#x}",
                f"prefetchw {at:#x}",
                "nopw 7(%rax,%rbx)",
            )
        ]

    def segments(self) -> Atom:
        """What selectors are is the hypervisor's; that they are read with the right width is ours."""
        setup, m = self.mem(2)
        return [f"mov %fs, {reg(self.gpr(), self.wide())}"] if self.chance(0.5) else [*setup, f"mov %gs, {m}"]
