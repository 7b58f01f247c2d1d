"""Random programs for the translator, as text for the assembler.

A program is a list of atoms: a few lines that make sense alone (they set up the addresses they use), so that atoms can
be left out one by one to find the smallest program that still fails. Everything is decided by one `random.Random`.

Undefined flags: an atom whose instruction leaves flags undefined reads only the defined ones and defines all of them
before it ends. AF counts as undefined between atoms.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

CODE, CODE_ALIAS, DATA, DATA_HIGH, STACK, BIG = 0x40000000, 0x48000000, 0x50000000, 0x3EDCBA980000, 0x58000000, 0x60000000
PAGE = 4096
USUAL_PAGES = 8  # of the data pages: those that every program may use
SCRATCH = DATA + 11 * PAGE  # loop counters, pointers: random operands stay away from this page
FS_BASE, GS_BASE = DATA + 4 * PAGE, DATA_HIGH + 2 * PAGE

# Windows and permissions of harness.c.
WINDOW_CODE, WINDOW_DATA, WINDOW_DATA_HIGH, WINDOW_STACK = 0, 2, 3, 4
PERM_NONE, PERM_R, PERM_RW, PERM_RX, PERM_RWX = range(5)

WRITES_CODE, USES_BIG, INVALID, NOT_HIGH = 1, 2, 4, 8
ALL_FLAGS_BUT_AF = 0x8C5

Atom = list[str]
RESUME = "# resume"  # a line of an atom: after a fault before it, the program goes on here


@dataclass
class Program:
    """atoms: the main part; functions: called by number, each later one only by earlier ones."""

    seed: int
    atoms: list[Atom]
    functions: list[list[Atom]] = field(default_factory=list)
    flags: int = 0
    rules: list[tuple[int, int, int, int]] = field(default_factory=list)  # window, page, permission, page shown in odd runs
    align: int = 1


NAMES = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di", *(f"r{n}" for n in range(8, 16))]
RSP = 4
SUFFIX = {1: "b", 2: "w", 4: "l", 8: "q"}
CONDITIONS = "o no b ae e ne be a s ns p np l ge le g".split()


def reg(number: int, size: int) -> str:
    """AT&T name of a general register; byte names are the ones that need a REX prefix where there are two."""
    name = NAMES[number]
    if number >= 8:
        return "%" + name + {8: "", 4: "d", 2: "w", 1: "b"}[size]
    if size == 1:
        return "%" + (name[0] + "l" if number < 4 else name + "l")
    return "%" + {8: "r", 4: "e", 2: ""}[size] + name


class Generator:
    """Makes programs of one profile. `prefix` keeps the labels of several programs apart."""

    def __init__(self, seed: int, prefix: str, kinds: Sequence[tuple[int, str]], risky: bool = False) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.prefix = prefix
        self.risky = risky  # operands may lie on pages that are missing or read-only
        # Nothing is computed from code addresses; not so when atoms that forget one are left half-way.
        self.relocatable = not any(name in ("call", "odd_return", "indirect_jump") for _, name in kinds) or (
            self.chance(0.4) and not risky
        )
        self.labels = 0
        self.nr_functions = 0
        self.current_function = -1
        self.weights = [w for w, _ in kinds]
        self.makers: list[Callable[[], Atom]] = [getattr(self, name) for _, name in kinds]

    # ---- choices ----------------------------------------------------------------------------------------------

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def pick(self, *choices: str) -> str:
        return self.rng.choice(choices)

    def label(self) -> str:
        self.labels += 1
        return f".L{self.prefix}_{self.labels}"

    def gpr(self) -> int:
        """Any register but rsp; those that the translator keeps in memory come more often."""
        return self.rng.choice((0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 10, 10, 11, 11, 11, 12, 13, 14, 15, 15, 15))

    def size(self) -> int:
        return self.rng.choice((1, 2, 4, 4, 8, 8))

    def wide(self) -> int:
        return self.rng.choice((2, 4, 8))

    def imm(self, size: int) -> int:
        bits = min(size, 4) * 8
        if self.chance(0.5):
            return self.rng.randint(-128, 127)
        return self.rng.randint(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)

    def condition(self) -> str:
        return self.rng.choice(CONDITIONS)

    # ---- operands -----------------------------------------------------------------------------------------------

    def address(self, size: int, align: int = 1, reach: int = 0) -> int:
        """A data address: `size` bytes there, and `reach` more behind, are data pages."""
        if self.risky and self.chance(0.5):
            page = self.rng.randint(7, 10)
        else:
            page = self.rng.randint(0, USUAL_PAGES - 2)
        if align > 1:
            offset = self.rng.randrange(0, PAGE - reach if reach < PAGE else 1, align)
        elif size > 1 and self.chance(0.35):
            offset = PAGE - self.rng.randint(1, size - 1)
            if page >= 10:
                page -= 1
        else:
            offset = self.rng.randrange(0, PAGE)
        return DATA + page * PAGE + offset - (reach if offset + reach >= PAGE else 0) // align * align

    def load_pointer(self, number: int, value: int) -> str:
        return f"movabs ${value & (1 << 64) - 1:#x}, {reg(number, 8)}"

    def mem(self, size: int, align: int = 1, busy: Sequence[int] = ()) -> tuple[Atom, str]:
        """A memory operand: lines that set up its registers, and its text. `busy` registers aren't touched."""
        at = self.address(size, align)
        free = [r for r in (self.gpr() for _ in range(40)) if r not in busy]
        base, index = free[0], free[1]
        scale = self.rng.choice((1, 2, 4, 8))
        disp = self.rng.choice((0, self.rng.randint(-128, 127), self.rng.randint(-40000, 40000)))
        match self.rng.randrange(12):
            case 0:
                return [], f"{at:#x}"
            case 1:
                return [], f"DATA+{at - DATA:#x}(%rip)"
            case 2:
                k = self.rng.randint(0, 100)
                return [f"mov ${k}, {reg(index, 4)}"], f"{at - k * scale:#x}(,{reg(index, 8)},{scale})"
            case 3 | 4 if base != index:
                k = self.rng.randint(-100, 100)
                setup = [self.load_pointer(index, k), self.load_pointer(base, at - k * scale - disp)]
                return setup, f"{disp}({reg(base, 8)},{reg(index, 8)},{scale})"
            case 5 if base != index and align == 1:
                at = self.address(size, reach=255 * 8)
                setup = [f"movzbl {reg(index, 1)}, {reg(index, 4)}", self.load_pointer(base, at - disp)]
                return setup, f"{disp}({reg(base, 8)},{reg(index, 8)},{scale})"
            case 6:
                factor = 1 + scale
                at -= (at - disp) % factor if align == 1 else 0
                if (at - disp) % factor == 0:
                    return [self.load_pointer(base, (at - disp) // factor)], f"{disp}({reg(base, 8)},{reg(base, 8)},{scale})"
            case 7 if not self.relocatable:
                slot = self.rng.randint(-200, 200)
                if align > 1:
                    return [f"mov ${STACK + 2 * PAGE + slot // align * align - disp:#x}, %rsp"], f"{disp}(%rsp)"
                k = self.rng.randint(0, 8)
                return [f"mov ${k}, {reg(index, 4)}"], f"{slot}(%rsp,{reg(index, 8)},{scale})"
            case 8:
                return [self.load_pointer(base, at - FS_BASE - disp)], f"%fs:{disp}({reg(base, 8)})"
            case 9:
                high = at - DATA + DATA_HIGH
                if self.chance(0.5):
                    return [self.load_pointer(base, high - GS_BASE - disp)], f"%gs:{disp}({reg(base, 8)})"
                return [self.load_pointer(base, high - disp)], f"{disp}({reg(base, 8)})"
            case 10 if base != index:
                k = self.rng.randint(-50, 50)
                garbage = self.rng.getrandbits(32) << 32
                setup = [
                    self.load_pointer(index, garbage | (k & 0xFFFFFFFF)),
                    self.load_pointer(base, garbage | ((at - k * scale - disp) & 0xFFFFFFFF)),
                ]
                return setup, f"{disp}({reg(base, 4)},{reg(index, 4)},{scale})"
        return [self.load_pointer(base, at - disp)], f"{disp}({reg(base, 8)})"

    def rm(self, size: int, memory: float = 0.5, busy: Sequence[int] = ()) -> tuple[Atom, str]:
        """A register or a memory operand."""
        if self.chance(memory):
            return self.mem(size, busy=busy)
        return [], reg(self.gpr(), size)

    # ---- flags ------------------------------------------------------------------------------------------------------

    def definer(self) -> Atom:
        """One instruction that defines all flags but AF."""
        s = self.size()
        op = self.pick("cmp", "add", "sub", "test", "xor", "and")
        return [f"{op}{SUFFIX[s]} {reg(self.gpr(), s)}, {reg(self.gpr(), s)}"]

    def neutral(self) -> Atom:
        """One instruction that leaves flags alone, mostly with memory: the translator must keep them over it."""
        s = self.size()
        a, b = self.gpr(), self.gpr()
        match self.rng.randrange(6):
            case 0:
                return [f"mov{SUFFIX[s]} {SCRATCH + 512 + 8 * a:#x}, {reg(b, s)}"]
            case 1:
                return [f"mov{SUFFIX[s]} {reg(a, s)}, {SCRATCH + 512 + 8 * b:#x}"]
            case 2:
                return [f"push {reg(a, 8)}", f"pop {reg(b, 8)}"]
            case 3:
                return [f"lea 5({reg(a, 8)},{reg(b, 8)},2), {reg(a, 8)}"]
            case 4:
                return [f"not{SUFFIX[s]} {SCRATCH + 512 + 8 * b:#x}"]
        return [f"mov{SUFFIX[s]} {reg(a, s)}, {reg(b, s)}"]

    def settle(self, defined: str) -> Atom:
        """After an instruction that defines only the flags named: reads them, perhaps later, and defines the rest."""
        readers = {"c": ["c", "nc"], "z": ["z", "nz"], "s": ["s", "ns"], "p": ["p", "np"], "o": ["o", "no"]}
        lines: Atom = []
        for flag in defined:
            if self.chance(0.3):
                lines += self.neutral()
            if self.chance(0.5):
                lines.append(f"set{self.rng.choice(readers[flag])} {reg(self.gpr(), 1)}")
        return lines + self.definer()

    # ---- integer ------------------------------------------------------------------------------------------------------

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
        op = self.pick("add", "or", "adc", "sbb", "and", "sub", "xor", "xadd", "cmpxchg", "inc", "dec", "neg", "not", "imm")
        if op in ("inc", "dec", "neg", "not"):
            return [*setup, f"lock {op}{SUFFIX[s]} {m}"]
        if op == "imm":
            return [*setup, f"lock {self.pick('add', 'adc', 'sub', 'xor', 'or', 'and')}{SUFFIX[s]} ${self.imm(s)}, {m}"]
        return [*setup, f"lock {op}{SUFFIX[s]} {r}, {m}"]

    def exchange(self) -> Atom:
        s = self.size()
        setup, m = self.rm(s)
        return [*setup, f"{self.pick('xchg', 'xadd', 'cmpxchg')}{SUFFIX[s]} {reg(self.gpr(), s)}, {m}"]

    def cmpxchg_hit(self) -> Atom:
        """A compare-and-exchange that succeeds."""
        s = self.size()
        setup, m = self.mem(s, busy=(0,))
        return [*setup, f"mov{SUFFIX[s]} {m}, {reg(0, s)}", f"lock cmpxchg{SUFFIX[s]} {reg(self.gpr(), s)}, {m}"]

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
        count = self.pick("%cl", "$1", f"${self.rng.randint(0, 63 if s == 8 else 31)}", f"${self.rng.randint(0, 255)}")
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
        return [*self.definer(), *setup, f"{self.pick('shld', 'shrd')}{SUFFIX[s]} {count}, {r}, {m}", *self.settle("zspc")]

    def bit(self) -> Atom:
        s = self.wide()
        op = self.pick("bt", "bts", "btr", "btc")
        if self.chance(0.3):
            setup, m = self.rm(s)
            lines = [*setup, f"{self.pick('', 'lock ') if op != 'bt' and m[0] != '%' else ''}{op}{SUFFIX[s]} ${self.rng.randint(0, 255)}, {m}"]
        elif self.chance(0.3):
            lines = [f"{op}{SUFFIX[s]} {reg(self.gpr(), s)}, {reg(self.gpr(), s)}"]
        else:
            r = self.gpr()
            bits = self.rng.randint(-20000, 20000)
            base = self.rng.choice([b for b in (0, 3, 5, 9, 10, 11, 15) if b != r])
            at = DATA + 3 * PAGE + self.rng.randint(0, PAGE)
            lock = self.pick("", "lock ") if op != "bt" else ""
            lines = [self.load_pointer(r, bits), self.load_pointer(base, at), f"{lock}{op}{SUFFIX[s]} {reg(r, s)}, ({reg(base, 8)})"]
        return [*lines, *self.settle("c")]

    def bit_scan(self) -> Atom:
        s = self.wide()
        setup, m = self.rm(s)
        zero = [f"xor {reg(9, 4)}, {reg(9, 4)}"] if self.chance(0.2) else []
        source = reg(9, s) if zero else m
        op = self.pick("bsf", "bsr")
        if self.chance(0.3) and zero == []:  # tzcnt and lzcnt aren't offered, but old code has "rep bsf"
            return [*setup, f"mov $-1, {reg(8, 8)}", f"or {reg(8, 8)}, {reg(8, 8)}", f"{op}{SUFFIX[s]} {reg(8, s)}, {reg(self.gpr(), s)}", *self.settle("z")]
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
            divisor = self.rng.choice([r for r in (1, 3, 5, 6, 8, 10, 11, 15)])
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
        return [self.pick("cbw", "cwde", "cdqe", "cwd", "cdq", "cqo", "clc", "stc", "cmc", "nop", "pause", "sahf")]

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
        op = self.pick("mov", "add", "xor", "sub", "cmp", "test", "adc", "sbb", "xchg", "and", "or", "xadd", "cmpxchg")
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
                wide = self.rng.choice((2, 4))
                return [f"mov{self.pick('z', 's')}b{SUFFIX[wide]} {h}, {reg(self.rng.choice((0, 1, 2, 3, 5, 6, 7)), wide)}"]
            case 6:
                return [f"{self.pick('shl', 'shr', 'sar')} $1, {h}", f"{self.pick('mul', 'imul')} {h2}", *self.settle("co")]
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
        index = f",{reg(b, 4 if narrow else 8)},{self.rng.choice((1, 2, 4, 8))}" if self.chance(0.6) or not base else ""
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
        return [self.pick("lfence", "mfence", "sfence", f"clflush {at:#x}", f"prefetcht0 {at:#x}", f"prefetchw {at:#x}", "nopw 7(%rax,%rbx)")]

    def segments(self) -> Atom:
        """What selectors are is the hypervisor's; that they are read with the right width is ours."""
        setup, m = self.mem(2)
        return [f"mov %fs, {reg(self.gpr(), self.wide())}"] if self.chance(0.5) else [*setup, f"mov %gs, {m}"]

    # ---- the stack ----------------------------------------------------------------------------------------------------

    def recentre(self) -> str:
        return f"mov ${STACK + 2 * PAGE + self.rng.randint(-300, 300) * 8:#x}, %rsp"

    def push_pop(self) -> Atom:
        n = self.rng.randint(1, 9)
        lines = []
        if self.chance(0.3):
            lines.append(f"mov ${STACK + self.rng.randint(1, 2) * PAGE + self.rng.randint(-4, 8) * 8 + self.pick_offset():#x}, %rsp")
        lines += [f"push {reg(self.gpr() if self.chance(0.9) else RSP, 8)}" for _ in range(n)]
        if self.chance(0.3):
            lines += self.neutral()
        return lines + [f"pop {reg(self.gpr(), 8)}" for _ in range(n)]

    def pick_offset(self) -> int:
        return self.rng.choice((0, 0, 0, 1, 2, 4, 6))

    def push_forms(self) -> Atom:
        setup, m = self.mem(8)
        near = f"{0 if self.relocatable else self.rng.randint(-64, 64)}(%rsp)"
        push = self.pick(f"push ${self.imm(4)}", f"push ${self.imm(1)}", f"pushq {m}", f"pushq {near}")
        pop = self.pick(f"popq {self.address(8):#x}", f"popq {near}", f"pop {reg(self.gpr(), 8)}")
        return [*setup, push, pop, self.recentre()]

    def push_narrow(self) -> Atom:
        at = self.address(2)
        push = self.pick(f"pushw ${self.imm(2)}", f"push {reg(self.gpr(), 2)}", f"pushw {at:#x}", "pushw $5")
        pop = self.pick(f"pop {reg(self.gpr(), 2)}", f"popw {at:#x}", f"popw {self.rng.randint(-64, 64)}(%rsp)")
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
                return [f"{self.pick('add', 'sub', 'and')} ${self.rng.randint(-64, 64) * 8}, %rsp", keep, self.recentre()]
        at = SCRATCH + 1024 + 8 * r
        return [f"{op} %rsp, {at:#x}", f"{self.pick('add', 'mov', 'cmp')} {at:#x}, %rsp", keep, self.recentre()]

    def frame(self) -> Atom:
        if self.chance(0.5):
            nested = self.rng.choice((0, 0, 1, 2, 5))
            return [self.recentre(), "mov %rsp, %rbp", f"enter ${self.rng.randint(0, 200)}, ${nested}", *self.neutral(), "leave"]
        return ["push %rbp", "mov %rsp, %rbp", f"sub ${self.rng.randint(0, 30) * 8}, %rsp", "mov %rax, -8(%rbp)", "leave"]

    def flags_on_stack(self) -> Atom:
        match self.rng.randrange(3):
            case 0:  # AF too, so something that defines it first
                return [f"add {reg(self.gpr(), 1)}, {reg(self.gpr(), 1)}", "pushfq", f"pop {reg(self.gpr(), 8)}"]
            case 1:
                r = reg(self.gpr(), 8)
                return [f"push ${self.rng.getrandbits(12) & 0xCD5 | (0x200000 if self.chance(0.3) else 0):#x}", "popfq", *self.neutral(), "add %al, %bl", "pushfq", f"pop {r}"]
        return ["cmp %al, %cl", "pushfq", "xorl $0x8c5, (%rsp)", "popfq"]

    # ---- control ------------------------------------------------------------------------------------------------------

    def body(self, most: int = 3) -> Atom:
        lines: Atom = []
        for _ in range(self.rng.randint(1, most)):
            lines += self.atom(simple=True)
        return lines

    def skip(self) -> Atom:
        target = self.label()
        return [f"j{self.condition()} {target}", *self.body(), f"{target}:"]

    def either(self) -> Atom:
        other, end = self.label(), self.label()
        return [f"j{self.condition()} {other}", *self.body(), f"jmp {end}", f"{other}:", *self.body(), f"{end}:"]

    def repeat(self) -> Atom:
        """A loop with its counter in memory."""
        top, counter = self.label(), SCRATCH + 8 * self.rng.randint(0, 30)
        # The counter must not be that of a loop around this one: the number of labels so far tells them apart.
        counter = SCRATCH + 8 * (self.labels % 60)
        return [f"movl ${self.rng.randint(2, 9)}, {counter:#x}", f"{top}:", *self.body(4), f"decl {counter:#x}", f"jnz {top}"]

    def loop_instruction(self) -> Atom:
        top, end = self.label(), self.label()
        match self.rng.randrange(4):
            case 0:
                return [f"mov ${self.rng.randint(1, 6)}, %ecx", f"{top}:", f"add {reg(3, 8)}, {reg(self.rng.choice((0, 2, 10)), 8)}", f"{self.pick('loop', 'loope', 'loopne')} {top}"]
            case 1:
                return [self.pick("xor %ecx, %ecx", "mov $1, %cl", "movabs $0x100000000, %rcx"), f"{self.pick('jrcxz', 'jecxz')} {end}", *self.neutral(), *self.neutral(), f"{end}:"]
            case 2:
                return [f"movabs ${self.rng.randint(1, 4) | 0x500000000:#x}, %rcx", f"{top}:", "inc %r11", f"addr32 {self.pick('loop', 'loope')} {top}"]
        return [f"{self.pick('jrcxz', 'jecxz')} {end}", *self.neutral(), *self.definer(), f"{end}:"]

    def indirect_jump(self) -> Atom:
        target, r = self.label(), self.gpr()
        lines = [f"lea {target}(%rip), {reg(r, 8)}"]
        if self.chance(0.5):
            slot = SCRATCH + 2048 + 8 * (self.labels % 60)
            lines += [f"mov {reg(r, 8)}, {slot:#x}", f"jmp *{slot:#x}"]
        else:
            lines.append(f"jmp *{reg(r, 8)}")
        return [*lines, "ud2", f"{target}:", f"mov $0, {reg(r, 4)}", f"movq $0, {SCRATCH + 2048 + 8 * (self.labels % 60):#x}"]

    def far_away(self) -> Atom:
        """On at the end of a page: the next instructions lie across it."""
        target = self.label()
        fill = PAGE - self.rng.randint(1, 30)
        return [f"jmp {target}", ".balign 4096, 0xcc", f".skip {fill}, 0xcc", f"{target}:", *self.body(), *self.definer()]

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
            case 2 if not self.relocatable:  # a return that nobody called: the shadow stack and the guest's disagree
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
                return [f"call {there}", "ud2", f"{there}:", f"lea {after}(%rip), {r}", f"mov {r}, (%rsp)", "ret", "ud2", f"{after}:", f"mov $3, {reg(NUMBER[r], 4)}"]
            case 2:
                return [f"call {there}", f"jmp {after}", f"{there}:", f"pop {r}", f"jmp *{r}", f"{after}:", f"mov $2, {reg(NUMBER[r], 4)}"]
        return [f"lea {there}(%rip), {r}", f"push {r}", "ret", "ud2", f"{there}:", f"mov $1, {reg(NUMBER[r], 4)}"]

    def function(self, number: int) -> list[Atom]:
        """Atoms of a function, the last of which returns."""
        self.current_function = number
        atoms = [self.atom() for _ in range(self.rng.randint(1, 4))]
        # Atoms may leave rsp anywhere; the return address is kept beside it.
        slot = SCRATCH + 3584 + 8 * number
        leave = self.pick("ret", "ret", "ret $16", "ret" if self.relocatable else "pop %r11; jmp *%r11", "pop %rbx; ret", "pop %r15; pop %rdi; ret")
        pops = leave.count("pop") - ("jmp" in leave)
        pushes = ["push $7"] * pops if "jmp" not in leave else []
        start = [f"popq {slot:#x}"]
        end = [self.recentre(), f"pushq {slot:#x}", *pushes, *leave.split("; ")]
        return [start, *atoms, end]

    # ---- strings ------------------------------------------------------------------------------------------------------

    def string(self) -> Atom:
        s = self.size()
        down = self.chance(0.3)
        count = self.rng.choice((0, 1, 2, 3, self.rng.randint(4, 40), self.rng.randint(100, 600)))
        reach = count * s + 16
        source, target = self.address(s), self.address(s)
        if self.chance(0.25):
            target = source + self.rng.randint(-12, 12)  # overlapping
        if down:
            source, target = max(source, DATA + reach), max(target, DATA + reach)
        if not self.risky:
            source, target = (min(max(a, DATA + reach), DATA + 10 * PAGE - reach) for a in (source, target))
        op = self.pick("movs", "movs", "stos", "lods", "cmps", "scas")
        if op == "cmps" and self.risky:  # which of the two is read first is up to the CPU
            target = DATA + reach % PAGE + self.rng.randrange(0, PAGE) + (count * s if down else 0)
        prefix = self.pick("rep ", "rep ", "") if op in ("movs", "stos", "lods") else self.pick("repe ", "repne ", "")
        lines = [self.load_pointer(6, source), self.load_pointer(7, target), self.load_pointer(1, count), "std" if down else "cld"]
        if op == "cmps" and self.chance(0.6):  # something to agree on
            lines += [*lines, f"rep movs{SUFFIX[s]}", *lines[:3]]
        if op == "scas" and self.chance(0.6):
            lines += [*lines, f"rep stos{SUFFIX[s]}", *lines[:3]]
        if op in ("movs", "cmps", "lods") and self.chance(0.15):
            lines[0] = self.load_pointer(6, source - FS_BASE)
            return [*lines[:4], f"{prefix}fs {op}{SUFFIX[s]}"]
        return [*lines, f"{prefix}{op}{SUFFIX[s]}"]

    def xlat(self) -> Atom:
        return [self.load_pointer(3, self.address(256, reach=256)), "xlat"]

    # ---- SSE, MMX, x87 ------------------------------------------------------------------------------------------------

    def xmm(self) -> str:
        return f"%xmm{self.rng.randrange(16)}"

    def xmm_source(self, size: int, memory: float = 0.5, aligned: bool = True) -> tuple[Atom, str]:
        if not self.chance(memory):
            return [], self.xmm()
        return self.mem(size, 16 if size == 16 and aligned else 1)

    def sse_packed(self) -> Atom:
        setup, m = self.xmm_source(16)
        return [*setup, f"{self.rng.choice(SSE_PACKED)} {m}, {self.xmm()}"]

    def sse_scalar(self) -> Atom:
        op, size = self.rng.choice(SSE_SCALAR)
        setup, m = self.xmm_source(size)
        return [*setup, f"{op} {m}, {self.xmm()}"]

    def sse_imm(self) -> Atom:
        op, size = self.rng.choice(SSE_IMM)
        setup, m = self.xmm_source(size)
        imm = self.rng.randrange(8 if op.startswith("cmp") else 256)
        return [*setup, f"{op} ${imm}, {m}, {self.xmm()}"]

    def sse_shift(self) -> Atom:
        op = self.pick("psllw", "pslld", "psllq", "psrlw", "psrld", "psrlq", "psraw", "psrad", "pslldq", "psrldq")
        return [f"{op} ${self.rng.randrange(70)}, {self.xmm()}"]

    def sse_move(self) -> Atom:
        op, size, how = self.rng.choice(SSE_MOVES)
        setup, m = self.mem(size, 16 if "a" in how else 1)
        if "l" in how and (self.chance(0.5) or "s" not in how):
            return [*setup, f"{op} {m}, {self.xmm()}"]
        return [*setup, f"{op} {self.xmm()}, {m}"]

    def sse_move_registers(self) -> Atom:
        if self.chance(0.1):  # rdi within a page: what is checked first is up to the CPU
            return [self.load_pointer(7, DATA + 5 * PAGE + self.rng.randrange(0, 4000)), f"maskmovdqu {self.xmm()}, {self.xmm()}"]
        return [f"{self.rng.choice(SSE_REGISTER_MOVES)} {self.xmm()}, {self.xmm()}"]

    def sse_gpr(self) -> Atom:
        s = self.rng.choice((4, 8))
        x, r = self.xmm(), self.gpr()
        setup, m = self.rm(s)
        match self.rng.randrange(8):
            case 0:
                return [*setup, f"mov{'d' if s == 4 else 'q'} {m}, {x}"]
            case 1:
                return [*setup, f"mov{'d' if s == 4 else 'q'} {x}, {m}"]
            case 2:
                return [*setup, f"cvtsi2{self.pick('ss', 'sd')}{SUFFIX[s]} {m}, {x}"]
            case 3:
                kind = self.pick("ss", "sd")
                setup, m = self.xmm_source(4 if kind == "ss" else 8)
                return [*setup, f"cvt{self.pick('', 't')}{kind}2si {m}, {reg(r, s)}"]
            case 4:
                return [f"{self.pick('pmovmskb', 'movmskps', 'movmskpd')} {x}, {reg(r, 4)}"]
            case 5:
                setup, m = self.mem(2)
                source = self.pick(m, reg(r, 4))
                return [*setup, f"pinsrw ${self.rng.randrange(8)}, {source}, {x}"]
            case 6:
                return [f"pextrw ${self.rng.randrange(8)}, {x}, {reg(r, self.rng.choice((4, 8)))}"]
        kind, size = self.rng.choice((("ss", 4), ("sd", 8)))
        setup, m = self.xmm_source(size)
        return [*setup, f"{self.pick('ucomi', 'comi')}{kind} {m}, {x}"]

    def mxcsr(self) -> Atom:
        at = SCRATCH + 1536
        value = 0x1F80 | self.rng.choice((0, 0x2000, 0x4000, 0x6000)) | (0x8000 if self.chance(0.2) else 0) | (0x40 if self.chance(0.2) else 0)
        setup, m = self.mem(4)
        return [*setup, f"movl ${value:#x}, {at:#x}", f"ldmxcsr {at:#x}", f"stmxcsr {m}"]

    def mmx(self) -> Atom:
        a, b = self.rng.randrange(8), self.rng.randrange(8)
        risky, self.risky = self.risky, False  # Intel's CPUs reset the x87 stack before they fault
        setup, m = self.mem(8)
        self.risky = risky
        source = self.pick(f"%mm{a}", m)
        match self.rng.randrange(8):
            case 0:
                return [*setup, f"movq {m}, %mm{a}"]
            case 1:
                return [*setup, f"{self.pick('movq', 'movntq')} %mm{a}, {m}"]
            case 2:
                r, s = reg(self.gpr(), 8), self.gpr()
                return [f"movq {r}, %mm{a}", f"movd %mm{b}, {reg(s, 4)}"]
            case 3:
                return [f"{self.pick('psllw', 'psrld', 'psraw', 'psllq')} ${self.rng.randrange(70)}, %mm{a}"]
            case 4:
                return [*setup, f"pshufw ${self.rng.randrange(256)}, {source}, %mm{b}"]
            case 5:
                x = self.xmm()
                return [self.pick(f"movq2dq %mm{a}, {x}", f"movdq2q {x}, %mm{a}", f"cvtps2pi {x}, %mm{a}", f"cvttpd2pi {x}, %mm{b}", f"cvtpi2ps %mm{a}, {x}", f"cvtpi2pd %mm{a}, {x}")]
            case 6:
                r = reg(self.gpr(), 4)
                return [self.pick(f"pmovmskb %mm{a}, {r}", f"pinsrw $2, {r}, %mm{a}", f"pextrw $1, %mm{a}, {r}", "emms")]
        op = self.rng.choice(MMX)
        if op in ("punpcklbw", "punpcklwd", "punpckldq"):
            source = f"%mm{a}"
        return [*setup, f"{op} {source}, %mm{b}"]

    def x87(self) -> Atom:
        k = self.rng.randrange(8)
        match self.rng.randrange(9):
            case 0:
                op, size = self.rng.choice(X87_MEMORY)
                if op in ("fbstp", "fstpt") and self.risky:  # Intel's CPUs store a part of them before they fault
                    op = "fistpq"
                setup, m = self.mem(size)
                return [*setup, f"{op} {m}"]
            case 1 | 2:
                return [self.rng.choice(X87_PLAIN)]
            case 3 | 4:
                op = self.pick("fadd", "fsub", "fsubr", "fmul", "fdiv", "fdivr")
                return [self.pick(f"{op} %st({k}), %st", f"{op} %st, %st({k})", f"{op}p %st, %st({k})")]
            case 5:
                op = self.pick("fxch", "fld", "fst", "fstp", "fcom", "fcomp", "fucom", "fucomp", "ffree")
                return [f"{op} %st({k})"]
            case 6:
                op = self.pick("fcmovb", "fcmove", "fcmovbe", "fcmovu", "fcmovnb", "fcmovne", "fcmovnbe", "fcmovnu")
                return [*self.definer(), f"{op} %st({k}), %st"]
            case 7:
                op = self.pick("fcomi", "fucomi", "fcompi", "fucompi")
                return [*self.definer(), f"{op} %st({k}), %st", *self.settle("zpc")]
        setup, m = self.mem(2)
        return [*setup, self.pick(f"fnstcw {m}", f"fnstsw {m}", "fnstsw %ax")]

    def x87_control(self) -> Atom:
        at = SCRATCH + 1600
        value = 0x37F | self.rng.choice((0, 0x400, 0x800, 0xC00)) ^ self.rng.choice((0, 0x100, 0x300))
        return [f"movw ${value:#x}, {at:#x}", f"fldcw {at:#x}"]

    def fpu_image(self) -> Atom:
        """Images in memory hold addresses of instructions, which differ: they are cleared before anybody looks."""
        at = self.address(512, 16, reach=512)
        match self.rng.randrange(4):
            case 0:
                save = self.pick("fxsave", "fxsave64")
                clear = [f"movw $0, {at + 6:#x}", f"movq $0, {at + 8:#x}", f"movq $0, {at + 16:#x}"]
                return [f"{save} {at:#x}", *clear, *self.body(1), f"{self.pick('fxrstor', 'fxrstor64')} {at:#x}"]
            case 1:
                return [f"fnstenv {at:#x}", *self.clear_environment(at), f"fldenv {at:#x}"]
            case 2:
                return [f"fnsave {at:#x}", *self.clear_environment(at), f"frstor {at:#x}"]
        return [f"fxsave {at:#x}", f"movw $0, {at + 6:#x}", f"movq $0, {at + 8:#x}", f"movq $0, {at + 16:#x}"]

    def clear_environment(self, at: int) -> Atom:
        return [f"movq $0, {at + 12:#x}", f"movq $0, {at + 20:#x}"]

    # ---- faults -------------------------------------------------------------------------------------------------------

    def divide_error(self) -> Atom:
        s = self.size()
        setup, m = self.rm(s)
        return [*setup, f"{self.pick('div', 'idiv')}{SUFFIX[s]} {m}", *self.definer()]

    def misaligned(self) -> Atom:
        op = self.pick("movaps", "movdqa", "addps", "pand", "xorps", "cvtdq2ps", "movntdq", "movapd", "haddps", "sqrtpd")
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
        op = self.pick("divps", "divpd", "addps", "mulpd", "sqrtps", "sqrtpd", "minps", "cvtpd2ps", "cvtps2dq", "cvttpd2dq")
        return [*setup, f"movl ${value:#x}, {at:#x}", f"ldmxcsr {at:#x}", f"{op} {m}, {self.xmm()}", f"movl $0x1f80, {at:#x}", f"ldmxcsr {at:#x}"]

    def bad_mxcsr(self) -> Atom:
        at = SCRATCH + 1536
        return [f"movl $0x{self.rng.getrandbits(8):x}11f80, {at:#x}", f"ldmxcsr {at:#x}"]

    def x87_exception(self) -> Atom:
        at = SCRATCH + 1600
        cause = self.pick("fld1; fldz; fdivrp", "fldz; fchs; fsqrt", "fld1; fld1; fchs; fsqrt", "fldpi; fldz; fdivrp %st, %st(1)")
        noticed = self.pick("fwait", "fld1", "fstp %st(0)", "movq %mm0, %mm1", "fldcw %s" % f"{at + 8:#x}", "emms", f"fstpl {at + 16:#x}")
        return ["fninit", f"movw $0x{self.pick('37b', '37e', '340')}, {at:#x}", f"movw $0x37f, {at + 8:#x}", f"fldcw {at:#x}", *cause.split("; "), noticed, RESUME, "fnclex", "fninit"]

    def undefined(self) -> Atom:
        return [self.pick("ud2", ".byte 0x0f, 0xff, 0xc0", ".byte 0x06", ".byte 0xd6", ".byte 0x0f, 0x0b", ".byte 0x62, 0x61, 0x7c, 0x48, 0xff")]

    def privileged(self) -> Atom:
        return [self.pick("hlt", "cli", "sti", "mov %cr0, %rax", "mov %rax, %cr3", "invlpg (%rax)", "wbinvd", "rdmsr", "wrmsr", "in %dx, %al", "out %al, $0x80", "clts", "lgdt (%rax)", "mov %db0, %rbx", "int3")]

    def not_canonical(self) -> Atom:
        r = self.gpr()
        at = self.rng.choice((0x900000000000, (1 << 63) - 8, 0xFFFF7FFFFFFFF000, 0xFFFF7FFFFFFFFFF8, 0x1234567800000000))
        setup = self.load_pointer(r, at)
        base = reg(r, 8)
        return [setup, self.pick(f"mov ({base}), %rax", f"mov %rbx, ({base})", f"addq $1, ({base})", f"movups ({base}), %xmm1", f"bts %rcx, ({base})\ncmp %al, %bl", f"lock incl ({base})")]

    def not_canonical_stack(self) -> Atom:
        at = self.rng.choice((0x900000000000, 0xFFFF7FFFFFFFF800, 0x1234567800000000))
        return [self.load_pointer(self.rng.choice((4, 5)), at), self.pick("push %rax", "pop %rbx", "mov 8(%rbp), %rcx", "mov %rcx, 16(%rsp)", "leave", "ret", "call 1f; 1:", "pushfq", "popfq", "addl $1, -8(%rbp)"), self.recentre(), "mov $0, %ebp"]

    def wild(self) -> Atom:
        """Somewhere unmapped; or a jump there."""
        r = self.gpr()
        at = self.rng.choice((0, 8, 0x1000, 0x4FFFFFFC, 0x4FFFFFF8, 0x5000C000, 0x5000BFFC, 0x57FFFFFF, 0x7FFF0000))
        base = reg(r, 8)
        return [self.load_pointer(r, at), self.pick(f"mov ({base}), %rax", f"mov %rbx, ({base})", f"xaddl %ecx, ({base})", f"movups ({base}), %xmm1", f"jmp *{base}", f"btc %edx, ({base})\ncmp %al, %bl", f"pushq ({base})", f"popq ({base})", f"movups %xmm3, ({base})", f"fldt ({base})", f"fstpt ({base})", "fxsave64 0x4ffffff0")]

    def write_read_only(self) -> Atom:
        here = self.label()
        return [f"{here}:", self.pick(f"movb $1, {here}(%rip)", f"incl {here}(%rip)", f"xchg %rax, {here}(%rip)", f"movups %xmm0, {here}(%rip)", f"pop {here}(%rip)")]

    def not_executable(self) -> Atom:
        return [self.load_pointer(10, self.address(8)), self.pick("jmp *%r10", "call *%r10", "push %r10; ret")]

    # ---- self-modifying code ----------------------------------------------------------------------------------------
    #
    # No instruction is changed into one that reads more flags of what came before the store: the translator may have
    # dropped them (README.md).

    def patch(self, place: str, size: int, value: str) -> Atom:
        """Stores a constant to code: at its own address or through the alias."""
        where = self.pick(f"{place}(%rip)", f"{place}+{CODE_ALIAS - CODE:#x}", f"{place}+{CODE_ALIAS - CODE:#x}", "register")
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

    def patched_opcode(self) -> Atom:
        target = self.label()
        old, new = (self.rng.choice((0x00, 0x28, 0x30, 0x20, 0x08, 0x10, 0x18)) for _ in range(2))
        between = self.definer()
        modrm = self.rng.randrange(0xC0, 0x100)
        return [*self.patch(target, 1, str(new)), *between, f"{target}:", f".byte {old}, {modrm}", *self.definer()]

    def patched_jump(self) -> Atom:
        target, one, two, end = (self.label() for _ in range(4))
        return [*self.patch(f"{target}+1", 1, f"({two}-{target}-2)"), *self.neutral(), f"{target}:", f"jmp {one}",
                f"{one}:", "add $3, %r10", f"jmp {end}", f"{two}:", "sub $5, %r11", f"{end}:"]  # fmt: skip

    def patched_loop(self) -> Atom:
        """Its own code changes in each iteration."""
        top, target, counter = self.label(), self.label(), SCRATCH + 8 * (self.labels % 60)
        where = self.pick(f"{target}+2(%rip)", f"{target}+2+{CODE_ALIAS - CODE:#x}")
        store = self.pick(f"incb {where}", f"lock addb $3, {where}", f"xorb $5, {where}", f"mov %cl, {where}")
        return [f"movl ${self.rng.randint(2, 12)}, {counter:#x}", f"{top}:", *self.body(1), f"{target}:", "add $1, %ecx", store,
                f"decl {counter:#x}", f"jnz {top}"]  # fmt: skip

    def patched_function(self) -> Atom:
        function, target, after, r = self.label(), self.label(), self.label(), self.rng.choice((0, 1, 2, 3, 6, 7))
        far = [".balign 4096, 0xcc", f".skip {self.rng.randint(0, 4000)}, 0xcc"] if self.chance(0.3) else []
        calls = [f"call {function}", *self.patch(f"{target}+1", 4, str(self.imm(4))), f"call {function}"]
        return [f"jmp {after}", *far, f"{function}:", *self.neutral(), f"{target}:", f"mov $7, {reg(r, 4)}", "ret", f"{after}:", *calls]

    def stored_beside(self) -> Atom:
        """Every kind of store, to bytes of a code page that are not code."""
        place, after = self.label(), self.label()
        at = f"{place}+{self.rng.randrange(0, 32)}"
        aligned = f"{place}+{CODE_ALIAS - CODE:#x}"
        alias = f"{at}+{CODE_ALIAS - CODE:#x}"
        fpu_clear = [f"movw $0, {aligned}+6", f"movq $0, {aligned}+8", f"movq $0, {aligned}+16"]
        store = self.rng.choice((
            [f"movups %xmm3, {alias}"], [f"movaps %xmm3, {aligned}"], [f"lock xadd %r10, {alias}"], [f"xchg %r15b, {alias}"],
            [f"mov ${alias}, %rsp", "push %r10", "push %rax", "pop %rbx", self.recentre()],
            [f"mov ${alias}, %rsp", "pushq $5", "pushw $5", f"pushq {DATA:#x}", self.recentre()],
            [f"mov ${alias}, %rsp", "cmp %al, %bl", "pushfq", self.recentre()],
            [f"mov ${alias}, %rsp", f"call {after}", f"{after}:", self.recentre()],
            [f"mov ${alias}, %rsp", "mov %rsp, %rbp", "enter $8, $2", "mov $5, %ebp", self.recentre()],
            [f"mov ${alias}, %edi", "mov $40, %ecx", "cld", "rep stosb"],
            [f"mov ${alias}, %edi", f"mov ${self.address(80, reach=80)}, %esi", "mov $9, %ecx", "cld", "rep movsq"],
            [f"mov ${alias}+40, %edi", "mov $4, %ecx", "std", "rep stosq", "cld"], [f"mov ${alias}, %edi", "stosl"],
            [f"lock cmpxchg16b {aligned}"], [f"cmpxchg8b {alias}"], [f"btsl $5, {alias}", "cmp %r10, %r11"],
            [f"fld1; fstpt {alias}"], [f"fxsave64 {aligned}", *fpu_clear], [f"setc {alias}"], [f"mov %ah, {alias}"],
            [f"movnti %r11, {alias}"], [f"movlps %xmm4, {alias}"], [f"popq {alias}"], [f"mov %fs, {alias}"],
            [f"stmxcsr {alias}"], [f"shll %cl, {alias}", "cmp %eax, %ebx"], [f"movntq %mm0, {alias}"],
            [f"movabs %eax, {alias}"], ["push $0x202", f"popq {alias}"], [f"incl {alias}"],
        ))  # fmt: skip
        skip = self.label()
        return [*store, f"jmp {skip}", ".skip 64, 0xcc", ".balign 16, 0xcc", f"{place}:", ".skip 576, 0x90", f"{skip}:"]

    def patched_straddle(self) -> Atom:
        """An instruction over a page end changes in its second half, which no other code shares a page with."""
        function, go, r = self.label(), self.label(), self.rng.choice((0, 1, 2, 3, 6, 7))
        if self.chance(0.5):
            one, two = self.label(), self.label()
            calls = [f"call {function}", *self.patch(f"{function}+1", 4, f"({two}-{function}-5)"), f"call {function}"]
            return [f"jmp {go}", f"{one}:", "add $3, %r10d", "ret", f"{two}:", "sub $9, %r11d", "ret", ".balign 4096, 0xcc",
                    f".skip {PAGE - 1}, 0xcc", f"{function}:", f".byte 0xe9; .long {one}-{function}-5", ".balign 4096, 0xcc",
                    f"{go}:", *calls]  # fmt: skip
        cut = self.rng.randint(1, 4)
        part = f"{function}+{self.rng.randint(cut, 4)}"
        calls = [f"call {function}", *self.patch(part, 1, str(self.imm(1))), f"call {function}"]
        return [f"jmp {go}", ".balign 4096, 0xcc", f".skip {PAGE - cut}, 0xcc", f"{function}:", f"mov $7, {reg(r, 4)}", "ret",
                ".balign 4096, 0xcc", f"{go}:", *calls]  # fmt: skip

    def crossing_store(self) -> Atom:
        """Over the end of a page, code on both sides."""
        edge, go, s = self.label(), self.label(), self.rng.choice((2, 4, 8))
        where = f"{edge}-{self.rng.randint(1, s - 1)}"
        where = self.pick(f"{where}(%rip)", f"{where}+{CODE_ALIAS - CODE:#x}")
        op = self.pick(f"mov {reg(self.gpr(), s)}, {where}", f"add{SUFFIX[s]} ${self.imm(1)}, {where}", f"lock xadd {reg(self.gpr(), s)}, {where}",
                       f"movups %xmm1, {where}")  # fmt: skip
        return [f"jmp {go}", ".balign 4096, 0xcc", f"{edge}:", ".skip 16, 0xcc", f"{go}:", op, *self.neutral(), *self.definer()]

    def generated(self) -> Atom:
        """A function is copied and called where it was copied to, then another at the same place."""
        one, one_end, two, two_end, place, go = (self.label() for _ in range(6))
        lines = [f"jmp {go}", f"{one}:", f"mov ${self.imm(4)}, %eax", "lea 3(%r10,%r11), %r10", "ret", f"{one_end}:",
                 f"{two}:", "add $9, %r15d", f"xor ${self.imm(1)}, %r11", "test %eax, %eax", "ret", f"{two_end}:"]  # fmt: skip
        lines += [f"{place}:", ".skip 48, 0xcc", f"{go}:"]
        for _ in range(self.rng.randint(2, 4)):
            source, end = self.rng.choice(((one, one_end), (two, two_end)))
            to = self.pick(place, f"{place}+{CODE_ALIAS - CODE:#x}")
            lines += [f"mov ${source}, %esi", f"mov ${to}, %edi", f"mov ${end}-{source}, %ecx", "cld", "rep movsb", "mov $1, %esi", "mov $2, %edi"]
            lines += [f"call {place}"]
        return [*lines, *self.definer()]

    # ---- together -----------------------------------------------------------------------------------------------------

    def atom(self, simple: bool = False) -> Atom:
        """One atom; a simple one has no labels of functions and no padding in it."""
        while True:
            maker = self.rng.choices(self.makers, self.weights)[0]
            if simple and maker.__name__ in NOT_SIMPLE:
                continue
            return maker()

    def program(self, atoms: int, functions: int = 3) -> Program:
        self.nr_functions = functions
        main = [self.atom() for _ in range(atoms)]
        flags = 0 if self.relocatable else NOT_HIGH
        if any(maker.__name__.startswith("patched") for maker in self.makers):
            return Program(self.seed, main, [self.function(k) for k in range(functions)], flags | WRITES_CODE, align=PAGE)
        return Program(self.seed, main, [self.function(k) for k in range(functions)], flags)


NUMBER = {reg(n, 8): n for n in range(16)}
NOT_SIMPLE = {"skip", "either", "repeat", "far_away", "call", "loop_instruction", "fpu_image", "patched_function", "patched_loop", "patched_straddle",
              "stored_beside", "crossing_store", "generated"}  # fmt: skip

SSE_PACKED = """addps subps mulps divps minps maxps sqrtps rcpps rsqrtps andps andnps orps xorps unpcklps unpckhps
addpd subpd mulpd divpd minpd maxpd sqrtpd andpd andnpd orpd xorpd unpcklpd unpckhpd haddps haddpd hsubps hsubpd addsubps
addsubpd movshdup movsldup cvtdq2ps cvtps2dq cvttps2dq cvtpd2dq cvttpd2dq cvtpd2ps paddb paddw paddd paddq psubb psubw psubd
psubq paddsb paddsw paddusb paddusw psubsb psubsw psubusb psubusw pmullw pmulhw pmulhuw pmuludq pmaddwd psadbw pavgb pavgw
pminub pmaxub pminsw pmaxsw pand pandn por pxor pcmpeqb pcmpeqw pcmpeqd pcmpgtb pcmpgtw pcmpgtd punpcklbw punpcklwd punpckldq
punpcklqdq punpckhbw punpckhwd punpckhdq punpckhqdq packsswb packssdw packuswb psllw pslld psllq psrlw psrld psrlq psraw
psrad""".split()
SSE_SCALAR = [
    *((op + "ss", 4) for op in "add sub mul div min max sqrt rcp rsqrt".split()),
    *((op + "sd", 8) for op in "add sub mul div min max sqrt".split()),
    *[("cvtss2sd", 4), ("cvtsd2ss", 8), ("cvtps2pd", 8), ("cvtdq2pd", 8), ("movddup", 8)],
]
SSE_IMM = [("shufps", 16), ("shufpd", 16), ("pshufd", 16), ("pshuflw", 16), ("pshufhw", 16), ("cmpps", 16), ("cmppd", 16),
           ("cmpss", 4), ("cmpsd", 8)]  # fmt: skip
# name, bytes, l: loads, s: stores, a: aligned
SSE_MOVES = [
    *((op, 16, "lsa") for op in "movaps movapd movdqa".split()),
    *((op, 16, "ls") for op in "movups movupd movdqu".split()),
    *((op, 16, "sa") for op in "movntps movntpd movntdq".split()),
    *((op, 8, "ls") for op in "movlps movhps movlpd movhpd movq movsd".split()),
    *[("movss", 4, "ls"), ("lddqu", 16, "l")],
]
SSE_REGISTER_MOVES = "movaps movups movdqa movdqu movapd movss movsd movq movhlps movlhps".split()
MMX = """paddb paddw paddd paddq psubb psubw psubd psubq paddsb paddusw psubsw psubusb pmullw pmulhw pmulhuw pmuludq pmaddwd
psadbw pavgb pavgw pminub pmaxub pminsw pmaxsw pand pandn por pxor pcmpeqb pcmpeqw pcmpeqd pcmpgtb pcmpgtw pcmpgtd punpcklbw
punpcklwd punpckldq punpckhbw punpckhwd punpckhdq packsswb packssdw packuswb psllw psrlq psrad""".split()
X87_MEMORY = [("flds", 4), ("fldl", 8), ("fldt", 10), ("filds", 2), ("fildl", 4), ("fildq", 8), ("fsts", 4), ("fstl", 8),
              ("fstps", 4), ("fstpl", 8), ("fstpt", 10), ("fists", 2), ("fistl", 4), ("fistps", 2), ("fistpl", 4),
              ("fistpq", 8), ("fisttps", 2), ("fisttpl", 4), ("fisttpq", 8), ("fadds", 4), ("faddl", 8), ("fsubs", 4),
              ("fsubrl", 8), ("fmuls", 4), ("fmull", 8), ("fdivs", 4), ("fdivrl", 8), ("fiadds", 2), ("fiaddl", 4),
              ("fimull", 4), ("fisubs", 2), ("fidivl", 4), ("fcoms", 4), ("fcompl", 8), ("ficoms", 2), ("ficompl", 4),
              ("fbld", 10), ("fbstp", 10)]  # fmt: skip
X87_PLAIN = """fld1 fldz fldpi fldl2e fldl2t fldlg2 fldln2 fabs fchs fsqrt frndint fscale fxtract fprem fprem1 fsin fcos fptan
fpatan f2xm1 fyl2x ftst fxam fincstp fdecstp fnop fninit fnclex fwait fcompp fucompp emms""".split()

INTEGER = [(14, "alu"), (5, "alu_encodings"), (4, "unary"), (4, "locked"), (4, "exchange"), (2, "cmpxchg_hit"),
           (1, "cmpxchg8"), (1, "cmpxchg16"), (5, "shift"), (2, "double_shift"), (4, "bit"), (2, "bit_scan"), (3, "multiply"), (2, "divide"),
           (4, "extend"), (2, "accumulator"), (1, "flags_in_ah"), (5, "conditional"), (4, "high_byte"), (3, "lea"),
           (1, "bswap"), (5, "move"), (1, "fence")]  # fmt: skip
STACK_KINDS = [(6, "push_pop"), (3, "push_forms"), (2, "push_narrow"), (1, "pop_rsp"), (3, "rsp_operand"), (2, "frame"),
               (2, "flags_on_stack")]  # fmt: skip
CONTROL = [(6, "skip"), (3, "either"), (3, "repeat"), (2, "loop_instruction"), (2, "indirect_jump"), (1, "far_away"),
           (6, "call"), (2, "odd_return")]  # fmt: skip
STRINGS = [(6, "string"), (1, "xlat")]
SSE_KINDS = [(6, "sse_packed"), (4, "sse_scalar"), (3, "sse_imm"), (1, "sse_shift"), (6, "sse_move"), (2, "sse_move_registers"),
             (5, "sse_gpr"), (1, "mxcsr"), (3, "mmx")]  # fmt: skip
X87_KINDS = [(10, "x87"), (1, "x87_control"), (1, "fpu_image"), (2, "mmx")]
FAULTS = [(3, "divide_error"), (2, "misaligned"), (2, "simd_exception"), (1, "bad_mxcsr"), (2, "x87_exception"), (1, "undefined"),
          (2, "privileged"), (3, "not_canonical"), (1, "not_canonical_stack"), (3, "wild"), (2, "write_read_only"), (1, "not_executable")]  # fmt: skip
SELF_MODIFYING = [(4, "patched_immediate"), (3, "patched_opcode"), (2, "patched_jump"), (3, "patched_loop"), (3, "patched_function"), (1, "patched_straddle"),
                  (5, "stored_beside"), (1, "crossing_store"), (3, "generated")]  # fmt: skip

Kinds = list[tuple[int, str]]


def scaled(factor: int, kinds: Kinds) -> Kinds:
    """The same kinds, `factor` times as often."""
    return [(w * factor, name) for w, name in kinds]


PROFILES: dict[str, Kinds] = {
    "integer": INTEGER,
    "control": [*INTEGER, *scaled(3, STACK_KINDS), *scaled(3, CONTROL)],
    "strings": [*INTEGER, *scaled(10, STRINGS), *STACK_KINDS],
    "sse": [*scaled(1, INTEGER), *scaled(5, SSE_KINDS)],
    "x87": [*scaled(1, INTEGER), *scaled(8, X87_KINDS)],
    "mixed": [*scaled(2, INTEGER), *scaled(2, STACK_KINDS), *scaled(2, CONTROL), *STRINGS, *SSE_KINDS, *X87_KINDS],
    "self-modifying": [*INTEGER, *STACK_KINDS, *CONTROL, *scaled(4, SELF_MODIFYING)],
    "traced": [*scaled(2, INTEGER), *scaled(2, STACK_KINDS), *scaled(2, CONTROL), *STRINGS, *SSE_KINDS],
    "traced-faults": [*scaled(2, INTEGER), *STACK_KINDS, *SSE_KINDS, *FAULTS, (20, "divide_error")],
    "straight-faults": [*scaled(2, INTEGER), *scaled(2, STACK_KINDS), *STRINGS, *SSE_KINDS, *X87_KINDS, *scaled(3, FAULTS)],
    "faults": [*scaled(2, INTEGER), *scaled(2, STACK_KINDS), *CONTROL, *STRINGS, *SSE_KINDS, *X87_KINDS, *scaled(3, FAULTS)],
}


def generate(profile: str, seed: int) -> Program:
    """The program of a profile and a seed. In faulting profiles the pages from 7 on are missing or read-only."""
    faulting = "faults" in profile
    generator = Generator(seed, str(seed), PROFILES[profile], risky=faulting)
    program = generator.program(generator.rng.randint(4, 30))
    if faulting:
        program.rules = [
            (window, page, generator.rng.choice((PERM_NONE, PERM_NONE, PERM_R, PERM_RW)), page)
            for window in (WINDOW_DATA, WINDOW_DATA_HIGH)
            for page in range(7, 11)
        ]
    return program
