"""Random programs for the translator, as text for the assembler: profiles, and what a program is made of."""

from __future__ import annotations

from tests.translator.atoms.avx import Avx
from tests.translator.atoms.base import (
    NOT_HIGH,
    PAGE,
    PERM_NONE,
    PERM_R,
    PERM_RW,
    SCRATCH,
    WINDOW_DATA,
    WINDOW_DATA_HIGH,
    WRITES_CODE,
    Atom,
    Program,
)
from tests.translator.atoms.control import Control
from tests.translator.atoms.faults import Faults
from tests.translator.atoms.integer import Integer
from tests.translator.atoms.records import Records
from tests.translator.atoms.self_modifying import SelfModifying
from tests.translator.atoms.stack import Stack
from tests.translator.atoms.strings import Strings


class Generator(Integer, Stack, Control, Strings, Avx, Faults, Records, SelfModifying):
    """Makes programs of one profile."""

    def function(self, number: int) -> list[Atom]:
        """Atoms of a function, the last of which returns."""
        self.current_function = number
        atoms = [self.atom() for _ in range(self.rng.randint(1, 4))]
        # Atoms may leave rsp anywhere; the return address is kept beside it.
        slot = SCRATCH + 3584 + 8 * number
        leave = self.pick(
            "ret",
            "ret",
            "ret $16",
            "ret" if self.relocatable else "pop %r11; jmp *%r11",
            "pop %rbx; ret",
            "pop %r15; pop %rdi; ret",
        )
        pops = leave.count("pop") - ("jmp" in leave)
        pushes = ["push $7"] * pops if "jmp" not in leave else []
        start = [f"popq {slot:#x}"]
        end = [self.recentre(), f"pushq {slot:#x}", *pushes, *leave.split("; ")]
        return [start, *atoms, end]

    def program(self, atoms: int, functions: int = 3) -> Program:
        self.nr_functions = functions
        main = [self.atom() for _ in range(atoms)]
        flags = 0 if self.relocatable else NOT_HIGH
        if self.rewritten in self.makers:  # which reads near itself; the end differs
            main.append([".skip 40, 0x90"])
        if any(maker.__name__.startswith("patched") for maker in self.makers):
            return Program(
                self.seed, main, [self.function(k) for k in range(functions)], flags | WRITES_CODE, align=PAGE
            )
        return Program(self.seed, main, [self.function(k) for k in range(functions)], flags)


Kinds = list[tuple[int, str]]


def kinds(text: str) -> Kinds:
    """How often, and what."""
    words = text.split()
    return [(int(weight), name) for weight, name in zip(words[::2], words[1::2])]


INTEGER = kinds(
    """14 alu 5 alu_encodings 4 unary 4 locked 4 exchange 2 cmpxchg_hit 1 cmpxchg8 1 cmpxchg16 5 shift 2
    double_shift 4 bit 2 bit_scan 3 multiply 2 divide 4 extend 2 accumulator 1 flags_in_ah 5
    conditional 4 high_byte 3 lea 1 bswap 5 move 1 fence"""
)
STACK_KINDS = kinds(
    """6 push_pop 3 push_forms 2 push_narrow 1 pop_rsp 3 rsp_operand 2 frame 2 flags_on_stack"""
)
CONTROL = kinds(
    """6 skip 3 either 3 repeat 2 loop_instruction 2 indirect_jump 1 far_away 6 call 2 odd_return"""
)
STRINGS = kinds("""6 string 1 xlat""")
SSE_KINDS = kinds(
    """6 sse_packed 4 sse_scalar 3 sse_imm 1 sse_shift 6 sse_move 2 sse_move_registers 5 sse_gpr 1 mxcsr 3
    mmx"""
)
EXTENDED = kinds(
    """4 count_bits 3 swap_bytes 3 crc 4 add_with_one_flag 1 random_number 8 later_packed 3 later_small
    6 later_immediate 1 later_loads 4 insert_extract 2 later_mmx"""
)
AVX = kinds(
    """10 vex_three 5 vex_two 3 vex_immediate 3 vex_scalar 2 vex_broadcast 3 vex_widen 4 vex_store 5 vex_lanes
    5 vex_gpr 8 bmi 3 trailing_zeros 4 masked_move 3 gather 2 xsave_area"""
)
AVX_FAULTS = kinds("""2 bad_xsave_header 2 misaligned_ymm 3 vex_exception 4 masked_move 4 gather""")
RECORDS = kinds("""6 record 3 two_views 2 fixed_record""")
X87_KINDS = kinds("""10 x87 1 x87_control 1 fpu_image 2 mmx""")
FAULTS = kinds(
    """3 divide_error 2 misaligned 2 simd_exception 1 bad_mxcsr 2 x87_exception 1 undefined 2 privileged 3
    not_canonical 1 not_canonical_stack 3 wild 2 write_read_only 1 not_executable"""
)
SELF_MODIFYING = kinds(
    """4 patched_immediate 3 patched_opcode 2 patched_jump 3 patched_loop 3 patched_function 1
    patched_straddle 5 stored_beside 1 crossing_store 3 generated"""
)


def scaled(factor: int, kinds: Kinds) -> Kinds:
    """The same kinds, `factor` times as often."""
    return [(w * factor, name) for w, name in kinds]


def predictable(kinds: Kinds) -> Kinds:
    """Those that leave the same on both sides at each step, too."""
    return [(w, name) for w, name in kinds if name not in ("random_number", "xsave_area")]


PROFILES: dict[str, Kinds] = {
    "integer": INTEGER,
    "control": [*INTEGER, *scaled(3, STACK_KINDS), *scaled(3, CONTROL)],
    "strings": [*INTEGER, *scaled(10, STRINGS), *STACK_KINDS],
    "sse": [*scaled(1, INTEGER), *scaled(5, SSE_KINDS)],
    "x87": [*scaled(1, INTEGER), *scaled(8, X87_KINDS)],
    "records": [*INTEGER, *scaled(2, STACK_KINDS), *CONTROL, *scaled(6, RECORDS)],
    "records-faults": [*INTEGER, *STACK_KINDS, *scaled(6, RECORDS), *FAULTS],
    "avx-records": [*INTEGER, *scaled(3, RECORDS), (40, "vex_record")],
    "rewriting-records": [*INTEGER, *STACK_KINDS, *CONTROL, *scaled(5, RECORDS), (20, "rewritten")],
    "extended": [*INTEGER, *STACK_KINDS, *SSE_KINDS, *scaled(5, EXTENDED)],
    "avx": [*INTEGER, *SSE_KINDS, *EXTENDED, *scaled(5, AVX)],
    "avx-faults": [*INTEGER, *SSE_KINDS, *scaled(3, AVX), *scaled(5, AVX_FAULTS), *FAULTS],
    "extended-faults": [*INTEGER, *SSE_KINDS, *scaled(4, EXTENDED), *FAULTS],
    "mixed": [
        *scaled(2, INTEGER),
        *scaled(2, STACK_KINDS),
        *scaled(2, CONTROL),
        *STRINGS,
        *SSE_KINDS,
        *X87_KINDS,
        *EXTENDED,
        *AVX,
    ],
    "self-modifying": [*INTEGER, *STACK_KINDS, *CONTROL, *scaled(4, SELF_MODIFYING)],
    "traced": [
        *scaled(2, INTEGER),
        *scaled(2, STACK_KINDS),
        *scaled(2, CONTROL),
        *STRINGS,
        *SSE_KINDS,
        *predictable([*EXTENDED, *AVX]),
    ],
    "rewriting": [*INTEGER, *STACK_KINDS, *CONTROL, *STRINGS, *SSE_KINDS, (25, "rewritten")],
    "traced-faults": [*scaled(2, INTEGER), *STACK_KINDS, *SSE_KINDS, *FAULTS, (20, "divide_error")],
    "straight-faults": [
        *scaled(2, INTEGER),
        *scaled(2, STACK_KINDS),
        *STRINGS,
        *SSE_KINDS,
        *X87_KINDS,
        *scaled(3, FAULTS),
    ],
    "faults": [
        *scaled(2, INTEGER),
        *scaled(2, STACK_KINDS),
        *CONTROL,
        *STRINGS,
        *SSE_KINDS,
        *X87_KINDS,
        *scaled(3, FAULTS),
    ],
}


def generate(profile: str, seed: int) -> Program:
    """The program of a profile and a seed. In faulting profiles pages from 7 on are missing or read-only."""
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
