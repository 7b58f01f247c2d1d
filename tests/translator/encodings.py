"""Programs of random bytes: every encoding that the decoder takes for a harmless instruction, however odd.

The decoder only chooses and says which registers hold the address, so that most accesses hit; what an
instruction does is decided by the native run.
"""

from __future__ import annotations

import random

from tests.translator.atoms.base import (
    COMPAT,
    DATA,
    FS_BASE,
    GS_BASE,
    GS_BASE_32,
    NOT_HIGH,
    PAGE,
    RSP,
    STACK,
    Atom,
    Program,
    reg,
)
from tests.translator.decoder import Decoded, Decoder

PREFIXES = (0x66, 0x66, 0xF2, 0xF3, 0xF0, 0x67, 0x64, 0x65, 0x2E, 0x40, 0x48)
HARMLESS = set(
    """GENERAL REG_OPCODE VERBATIM NOP LEA PUSH_REG POP_REG PUSH_IMM PUSH_RM POP_RM LEAVE PUSHF STRING CLD STD
    MOV_FROM_SEG FXRSTOR RARE MASKED_MOVE""".split()
)


def random_vex(rng: random.Random) -> bytes:
    """A VEX prefix and an opcode, with something behind; vvvv often names no register."""
    last = rng.randrange(256) | (0x78 if rng.random() < 0.5 else 0)
    if rng.random() < 0.3:
        head = [0xC5, last]
    else:
        head = [0xC4, rng.randrange(8) << 5 | rng.choice((1, 1, 2, 2, 3)), last]
    if rng.random() < 0.1:
        head.insert(0, rng.choice((0x64, 0x65, 0x67, 0x2E)))
    return bytes([*head, *rng.randbytes(15)])[:15]


def random_bytes(rng: random.Random) -> bytes:
    """What might be an instruction, with something behind it."""
    if rng.random() < 0.3:
        return random_vex(rng)
    head = [rng.choice(PREFIXES) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))]
    if rng.random() < 0.4:
        head.append(rng.randrange(0x40, 0x50))
    if rng.random() < 0.55:
        head.append(0x0F)
        if rng.random() < 0.4:
            head.append(rng.choice((0x38, 0x38, 0x3A)))
    return bytes(head + [rng.randrange(256) for _ in range(15)])[:15]


def is_harmless(decoder: Decoder, d: Decoded, compat: bool = False) -> bool:
    """May it run natively, and is its effect the same at every address?"""
    if decoder.kind(d) not in HARMLESS:
        return False
    if d.vsib:
        return False  # many addresses
    if decoder.kind(d) == "RARE" and (d.map == 1 or d.opcode in (0xE0, 0xE1, 0xE2, 0xE3, 0x9D)):
        return False  # descriptors of the host; jumps; popf
    if d.map == 1 and d.opcode == 0xC7 and d.mod == 3:
        return False  # rdrand, rdseed
    if decoder.kind(d) == "STRING" and d.address_16:
        return False
    stores_addresses = d.fpu and d.memory_size in (28, 108) and d.access & 32
    unreachable = d.base < 0 or (d.base == RSP and (d.mod == 2 or d.segment))
    unreachable |= (
        bool(d.address_16 and d.segment not in (5, 6)) if compat else bool(d.address_32 and d.segment)
    )
    if d.has_modrm and d.mod != 3 and unreachable:
        return False  # always somewhere unmapped: which of two faults comes first is up to the CPU
    return not (stores_addresses or (d.map == 1 and d.opcode == 0x31 and not d.vex))


def pointers(rng: random.Random, d: Decoded, compat: bool) -> Atom:
    """Lines that make the memory operand lie in the data."""
    at = DATA + rng.randrange(PAGE, 6 * PAGE) if not d.address_16 else FS_BASE + rng.randrange(2 * PAGE)
    if d.base == RSP:
        return [f"mov ${rng.randrange(100)}, {reg(d.index, 4)}"] if d.index >= 0 else []
    if d.fpu and rng.random() < 0.8:
        at &= ~31
    at -= d.disp + (FS_BASE if d.segment == 5 else 0)
    at -= (GS_BASE_32 if compat else GS_BASE) if d.segment == 6 else 0
    lines = []
    if d.index >= 0 and d.index != d.base:
        k = rng.randrange(100)
        at -= k << d.scale
        lines.append(f"mov ${k}, {reg(d.index, 4)}")
    elif d.index >= 0:
        at //= 1 + (1 << d.scale)
    if d.base >= 0:
        lines.append(load(compat, d.base, at))
    return lines


def load(compat: bool, number: int, value: int) -> str:
    """The line that loads a general register."""
    if compat:
        return f"mov ${value & 0xFFFFFFFF:#x}, {reg(number, 4)}"
    return f"movabs ${value & (1 << 64) - 1:#x}, {reg(number, 8)}"


def atom(rng: random.Random, decoder: Decoder, raw: bytes, d: Decoded, compat: bool) -> Atom:
    """The instruction between what it needs and what makes the next one independent of it."""
    lines = [f"mov ${STACK + 2 * PAGE:#x}, {'%esp' if compat else '%rsp'}"]
    if decoder.kind(d) == "STRING":
        lines += [load(compat, r, DATA + rng.randrange(6 * PAGE)) for r in (6, 7)]
        lines.append(f"mov ${rng.randrange(50)}, %ecx")
    elif d.has_modrm and d.mod != 3:
        lines += pointers(rng, d, compat)
    if d.flags_read or decoder.kind(d) == "RARE":
        lines.append("cmp %al, %bl")
    lines.append(".byte " + ", ".join(map(str, raw[: d.length])))
    return [*lines, "fnclex", "cmp %ecx, %edx" if compat else "cmp %r10d, %r11d"]


def random_encodings(seed: int, decoder: Decoder, count: int, compat: bool = False) -> Program:
    """A program of `count` random instructions; `compat`: of 32-bit code."""
    rng = random.Random(seed)
    atoms: list[Atom] = []
    while len(atoms) < count:
        raw = [random_bytes(rng) for _ in range(4 * count)]
        atoms += [
            atom(rng, decoder, r, d, compat)
            for r, d in zip(raw, decoder.decode(raw, compat))
            if is_harmless(decoder, d, compat)
        ]
    return Program(seed, atoms[:count], flags=NOT_HIGH | (COMPAT if compat else 0))
