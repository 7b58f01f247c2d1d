"""The decoder against capstone, and against the CPU: any bytes give a length of 1 to 15, the same as
capstone's where both take them; the memory operand has capstone's size; odd encodings do what the CPU does;
what is rejected among the SSE opcodes is #UD on the CPU, too.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import product

import pytest

from tests.translator.atoms.base import NOT_HIGH, Program
from tests.translator.conftest import SCALE, Checker
from tests.translator.decoder import MAX_BYTES, Decoded, Decoder, feature_bits
from tests.translator.encodings import atom, is_harmless, random_bytes, random_encodings

capstone = pytest.importorskip("capstone")

PREFIX_BYTES = {0x66, 0xF2, 0xF3, 0xF0, 0x67, 0x64, 0x65, 0x2E, 0x36, 0x3E, 0x26}
# 66 before a near branch: capstone takes the operand for 16 bits, as AMD's CPUs do, we as Intel's.
BRANCHES = {"JCC", "JMP", "CALL", "RET", "JRCXZ", "JMP_INDIRECT", "CALL_INDIRECT"}
# Sizes that capstone lacks, or calls otherwise: images and environments, far pointers, cache lines, comisd.
OTHER_SIZES = set(
    "fxsave fxsave64 fxrstor fxrstor64 fnsave frstor lcall ljmp clflush comisd call jmp".split()
)
OTHER_SIZES |= {"bnd call", "bnd jmp"}


def prefixes(raw: bytes) -> set[int]:
    found = set()
    for byte in raw:
        if byte not in PREFIX_BYTES and byte & 0xF0 != 0x40:
            break
        found.add(byte)
    return found


def memory_operand_differs(instruction: object, ours: Decoded, raw: bytes) -> bool:
    """Is capstone's memory operand of another size than ours, and capstone right?"""
    operands = [o for o in instruction.operands if o.type == capstone.x86.X86_OP_MEM]  # type: ignore[attr-defined]
    seen = prefixes(raw)
    confused = 0x66 in seen and (
        seen & {0xF2, 0xF3} or any(p & 0xF8 == 0x48 for p in seen)
    )  # not capstone's strength
    bit_scan = ours.map == 1 and ours.opcode in (0xBC, 0xBD)  # with F2 it looks at tzcnt's table
    if instruction.mnemonic in OTHER_SIZES or confused or (bit_scan and seen & {0x66, 0xF2, 0xF3}):  # type: ignore[attr-defined]
        return False
    return not operands or operands[0].size != ours.memory_size


@pytest.mark.parametrize("compat", [False, True], ids=["64-bit", "32-bit"])
def test_against_capstone(decoder: Decoder, compat: bool) -> None:
    machine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32 if compat else capstone.CS_MODE_64)
    machine.detail = True
    rng = random.Random(7)
    raw = [random_bytes(rng) for _ in range(25_000 * SCALE)]
    wrong: dict[str, list[str]] = defaultdict(list)
    both = 0
    for bytes_, ours in zip(raw, decoder.decode(raw, compat)):
        kind = decoder.kind(ours)
        assert 1 <= ours.length <= MAX_BYTES
        if kind == "INVALID":
            continue
        theirs = next(machine.disasm(bytes_, 0x1000, 1), None)
        if theirs is None:
            continue
        both += 1
        if theirs.size != ours.length and not (kind in BRANCHES and 0x66 in prefixes(bytes_)):
            wrong[f"length of {theirs.mnemonic}: {ours.length}, not {theirs.size}"].append(bytes_.hex())
        memory = ours.has_modrm and ours.mod != 3 and ours.access & (16 | 32)
        sized = kind not in ("POP_RM", "RARE", "XSAVE", "XRSTOR")
        if memory and sized and memory_operand_differs(theirs, ours, bytes_):
            wrong[f"memory of {theirs.mnemonic} {theirs.op_str}: {ours.memory_size}"].append(bytes_.hex())
    assert both > len(raw) / 3
    assert not wrong, dict(list(wrong.items())[:20])


@pytest.mark.parametrize("compat", [False, True], ids=["64-bit", "32-bit"])
def test_any_bytes_decode(decoder: Decoder, compat: bool) -> None:
    """No crash, no reading beyond 15 bytes, a length of 1 to 15."""
    rng = random.Random(8)
    raw = [rng.randbytes(15) for _ in range(200_000 * SCALE)]
    raw += [bytes([p] * n) for p in (0x66, 0x0F, 0xF0, 0x48, 0xFF, 0) for n in range(16)]
    assert all(1 <= d.length <= MAX_BYTES for d in decoder.decode(raw, compat))


def test_random_encodings(checker: Checker, decoder: Decoder) -> None:
    checker(lambda seed: random_encodings(seed, decoder, 20), 400)


def test_random_encodings_of_32_bit_code(checker: Checker, decoder: Decoder) -> None:
    """With flat segments, with FS limited and GS null, and with every segment limited."""
    checker(lambda seed: random_encodings(seed + 20_000, decoder, 20, compat=True), 400)
    checker(
        lambda seed: random_encodings(seed + 30_000, decoder, 20, compat=True), 40, "--trace", "--runs", "3"
    )


def test_random_encodings_step_by_step(checker: Checker, decoder: Decoder) -> None:
    checker(lambda seed: random_encodings(seed + 10_000, decoder, 20), 40, "--trace", "--runs", "1")


SSE_RANGES = (
    (0x10, 0x18),
    (0x28, 0x30),
    (0x50, 0x78),
    (0x7A, 0x80),
    (0xC2, 0xC7),
    (0xD0, 0x100),
)
SSE_OPCODES = [opcode for first, end in SSE_RANGES for opcode in range(first, end)]


def test_rejected_sse_encodings_do_not_exist(checker: Checker, decoder: Decoder) -> None:
    """What the tables lack between 0f 10 and 0f ff does not exist."""
    rng = random.Random(9)
    raw = []
    for _ in range(6000 * SCALE):
        head = [rng.choice((0x66, 0xF2, 0xF3)) for _ in range(rng.choice((0, 1, 1, 2)))]
        if rng.random() < 0.3:
            head.append(rng.randrange(0x40, 0x50))
        raw.append(bytes([*head, 0x0F, rng.choice(SSE_OPCODES), *rng.randbytes(10)]))
    rejected = [r for r, d in zip(raw, decoder.decode(raw)) if decoder.kind(d) == "INVALID"]
    programs = [
        Program(k, [[".byte " + ", ".join(map(str, r))]], flags=NOT_HIGH) for k, r in enumerate(rejected)
    ]
    for at in range(0, len(programs), 1000):
        checker.check(programs[at : at + 1000], "--runs", "1")
    assert len(programs) > 500


# Encodings of features that are not implemented: opmasks, AMX, VNNI, IFMA, NE-CONVERT, SHA512, SM, CMPccXADD.
OTHER_VEX = {
    1: {*range(0x41, 0x4C), *range(0x90, 0x9A)},
    2: {0x49, 0x4B, *range(0x50, 0x54), 0x5C, 0x5E, 0x6C, 0x72, *range(0xB0, 0xB6), 0xCB, 0xCC, 0xCD}
    | {0xD2, 0xD3, 0xDA, *range(0xE0, 0xF0)},
    3: {*range(0x30, 0x34), 0xDE},
}


def vex_encodings(rng: random.Random) -> Iterator[bytes]:
    """Each opcode with each implied prefix, length, W, a register in vvvv or none, and both forms."""
    for map_, opcode, pp, long, wide, v, mod in product((1, 2, 3), range(256), range(4), *[(0, 1)] * 4):
        if opcode in OTHER_VEX[map_]:
            continue
        free = rng.choice((0, 0, 2, 9))
        prefix = [0xC4, 0xE0 | map_, wide << 7 | (15 - free * v) << 3 | long << 2 | pp]
        # In memory at (%rbx), or with an index (%rbx,%rcx) in a SIB byte.
        modrm = rng.randrange(64) | 0xC0 if mod else rng.randrange(8) << 3 | 4
        yield bytes([*prefix, opcode, modrm, 0x0B, 0, 0, 0, 0])


def test_rejected_vex_encodings_do_not_exist(checker: Checker, decoder: Decoder) -> None:
    rng = random.Random(10)
    raw = list(vex_encodings(rng))
    rejected = [r for r, d in zip(raw, decoder.decode(raw)) if decoder.kind(d) == "INVALID"]
    accepted = len(raw) - len(rejected)
    rejected = rng.sample(rejected, min(len(rejected), 4000 * SCALE))
    programs = [
        Program(k, [[".byte " + ", ".join(map(str, r))]], flags=NOT_HIGH) for k, r in enumerate(rejected)
    ]
    for at in range(0, len(programs), 1000):
        checker.check(programs[at : at + 1000], "--runs", "1")
    assert accepted > 1500 or not decoder.features & feature_bits("AVX2")


def test_size_of_every_vex_operand(decoder: Decoder) -> None:
    """An operand taken for smaller than it is would reach beyond its page, into somebody else's memory."""
    machine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    machine.detail = True
    wrong, both = {}, 0
    raw = list(vex_encodings(random.Random(12)))
    for bytes_, ours in zip(raw, decoder.decode(raw)):
        if decoder.kind(ours) == "INVALID" or not ours.has_modrm or ours.mod == 3 or ours.vsib:
            continue
        theirs = next(machine.disasm(bytes_, 0x1000, 1), None)
        if theirs is None:
            continue
        both += 1
        if theirs.size != ours.length or memory_operand_differs(theirs, ours, bytes_):
            wrong[f"{theirs.mnemonic} {theirs.op_str}: {ours.memory_size}"] = bytes_.hex()
    assert not wrong
    assert both > 1500 or not decoder.features & feature_bits("AVX2")


def test_every_vex_encoding(checker: Checker, decoder: Decoder) -> None:
    """Each that the decoder takes, with operands that mostly work, does what it does on the CPU."""
    rng = random.Random(11)
    taken = [
        atom(rng, decoder, raw, d, False)
        for raw, d in ((r, decoder.decode([r])[0]) for r in vex_encodings(rng))
        if is_harmless(decoder, d, False)
    ]
    programs = [Program(k, taken[k : k + 20], flags=NOT_HIGH) for k in range(0, len(taken), 20)]
    for at in range(0, len(programs), 200):
        checker.check(programs[at : at + 200], "--runs", "2")


def test_prefixes_before_vex(checker: Checker) -> None:
    """66, F2, F3, F0 and REX refuse, segments and 67 don't."""
    vaddps = "0xc5, 0xf4, 0x58, 0xc2"
    programs = [
        Program(prefix, [[f".byte {prefix:#x}, {vaddps}"]], flags=NOT_HIGH)
        for prefix in (0x66, 0xF2, 0xF3, 0xF0, 0x40, 0x48, 0x64, 0x65, 0x67, 0x2E)
    ]
    checker.check(programs, "--runs", "1")
