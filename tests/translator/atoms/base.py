"""What every kind of atom is made from: choices, operands, flags.

An atom is a few lines of assembler that make sense alone: they set up the addresses they use, so that atoms
can be left out one by one to find the smallest program that still fails. Everything is decided by one
`random.Random`.

Undefined flags: an atom whose instruction leaves flags undefined reads only the defined ones and defines all
of them before it ends. AF counts as undefined between atoms.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

CODE, CODE_ALIAS, DATA, DATA_HIGH, STACK, BIG = (
    0x40000000,
    0x48000000,
    0x50000000,
    0x3EDCBA980000,
    0x58000000,
    0x60000000,
)
PAGE = 4096
USUAL_PAGES = 8  # of the data pages: those that every program may use
SCRATCH = DATA + 11 * PAGE  # loop counters, pointers: random operands stay away from this page
FS_BASE, GS_BASE = DATA + 4 * PAGE, DATA_HIGH + 2 * PAGE

# Windows and permissions of harness.c.
WINDOW_CODE, WINDOW_DATA, WINDOW_DATA_HIGH, WINDOW_STACK = 0, 2, 3, 4
PERM_NONE, PERM_R, PERM_RW, PERM_RX, PERM_RWX = range(5)

WRITES_CODE, USES_BIG, INVALID, NOT_HIGH, COMPAT = 1, 2, 4, 8, 16
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
    # Window, page, permission, and the page of the pool that is shown in odd runs.
    rules: list[tuple[int, int, int, int]] = field(default_factory=list)
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


GS_BASE_32 = DATA + 2 * PAGE  # of 32-bit programs


NUMBER = {reg(n, 8): n for n in range(16)}
# Atoms that may not stand inside others.
NOT_SIMPLE = set(
    """call crossing_store either far_away fpu_image generated loop_instruction patched_function
    patched_loop patched_straddle repeat skip stored_beside xsave_area""".split()
)


class Base:
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

    # ---- choices

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

    # ---- operands

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
        """A memory operand: lines that set up its registers, and its text. Not with `busy` registers."""
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
                    return [
                        self.load_pointer(base, (at - disp) // factor)
                    ], f"{disp}({reg(base, 8)},{reg(base, 8)},{scale})"
            case 7 if not self.relocatable:
                slot = self.rng.randint(-200, 200)
                if align > 1:
                    return [
                        f"mov ${STACK + 2 * PAGE + slot // align * align - disp:#x}, %rsp"
                    ], f"{disp}(%rsp)"
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

    # ---- flags

    def definer(self) -> Atom:
        """One instruction that defines all flags but AF."""
        s = self.size()
        op = self.pick("cmp", "add", "sub", "test", "xor", "and")
        return [f"{op}{SUFFIX[s]} {reg(self.gpr(), s)}, {reg(self.gpr(), s)}"]

    def neutral(self) -> Atom:
        """An instruction that leaves flags alone, mostly with memory: the translator must keep them."""
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
        """After an instruction that defines only these flags: reads them, perhaps later, defines the rest."""
        readers = {"c": ["c", "nc"], "z": ["z", "nz"], "s": ["s", "ns"], "p": ["p", "np"], "o": ["o", "no"]}
        lines: Atom = []
        for flag in defined:
            if self.chance(0.3):
                lines += self.neutral()
            if self.chance(0.5):
                lines.append(f"set{self.rng.choice(readers[flag])} {reg(self.gpr(), 1)}")
        return lines + self.definer()

    # ---- atoms inside atoms

    def atom(self, simple: bool = False) -> Atom:
        """One atom; a simple one has no labels of functions and no padding in it."""
        while True:
            maker = self.rng.choices(self.makers, self.weights)[0]
            if simple and maker.__name__ in NOT_SIMPLE:
                continue
            return maker()

    def body(self, most: int = 3) -> Atom:
        lines: Atom = []
        for _ in range(self.rng.randint(1, most)):
            lines += self.atom(simple=True)
        return lines

    def recentre(self) -> str:
        return f"mov ${STACK + 2 * PAGE + self.rng.randint(-300, 300) * 8:#x}, %rsp"
