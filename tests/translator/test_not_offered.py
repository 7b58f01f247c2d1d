"""What CPUID does not offer is #UD at the instruction, with nothing changed, whatever the host can do."""

from __future__ import annotations

import pytest

from tests.translator.atoms.base import INVALID, Program
from tests.translator.conftest import Checker
from tests.translator.decoder import Decoder, feature_bits

# Features (of enum cpu_feature) that a domain's policy masks, and instructions that go with them.
MASKED = {
    "SSE3": """f3 0f 12 c1, f2 0f 12 03, f3 0f 16 c1, 66 0f 7c c1, f2 0f d0 c1, f2 0f f0 03, db 0b, dd 0b,
        df 0b""",
    "SSSE3": "0f 38 00 c1, 66 0f 38 00 c1, 0f 3a 0f c1 05, 66 0f 38 1c c1, 66 0f 3a 0f c1 05",
    "SSE41": "66 0f 38 17 c1, 66 0f 38 37 c1, 66 0f 38 2a 03, 66 0f 3a 14 c8 01, 66 0f 3a 63 c1 0c",
    "SSE42": "f2 0f 38 f1 c1, f2 0f 38 f0 03, 66 0f 38 37 c1, 66 0f 3a 63 c1 0c",
    "POPCNT": "f3 0f b8 c1, f3 48 0f b8 c1, 66 f3 0f b8 c1, f3 0f b8 03",
    "CX16": "48 0f c7 0b, f0 48 0f c7 0b",
    "LAHF": "9e, 9f",
    "AES": "66 0f 38 dc c1, 66 0f 3a df c1 00",
    "PCLMULQDQ": "66 0f 3a 44 c1 00",
    "SHA": "0f 38 c8 c1, 0f 3a cc c1 00",
    "GFNI": "66 0f 38 cf c1, 66 0f 3a ce c1 00",
    "MOVBE": "0f 38 f0 03, 0f 38 f1 03",
    "ADX": "66 0f 38 f6 c1, f3 0f 38 f6 c1",
    "RDRAND": "0f c7 f0, 48 0f c7 f0",
    "RDSEED": "0f c7 f8",
    "XSAVE": "0f ae 23, 48 0f ae 2b, 0f ae 33, 0f c7 23, c5 f8 77",
    "XSAVEOPT": "0f ae 33, 48 0f ae 33",
    "XSAVEC": "0f c7 23, 48 0f c7 23",
    "AVX": """c5 f8 77, c5 f8 28 c1, c5 fc 58 c1, c4 e2 79 00 c1, c4 c1 7a 6f 03, c4 e2 79 18 03,
        c4 e2 79 dc c1, c4 e2 f9 98 c1""",
    "AVX2": "c5 fd fc c1, c4 e2 7d 18 c1, c4 e2 7d 18 c1, c4 e2 79 8c 03, c4 e2 79 90 04 0b, c4 e2 79 58 03",
    "FMA": "c4 e2 79 98 c1, c4 e2 fd b9 c1",
    "F16C": "c4 e2 79 13 c1, c4 e3 79 1d c1 00",
    "VAES": "c4 e2 7d dc c1",
    "VPCLMULQDQ": "c4 e3 7d 44 c1 00",
    "BMI1": "c4 e2 78 f2 c1, c4 e2 78 f3 c9, c4 e2 78 f7 c1",
    "BMI2": "c4 e2 f8 f5 c1, c4 e2 7b f6 c1, c4 e3 7b f0 c1 05, c4 e2 79 f7 c1",
}

# Never offered.
FAMILIES = {
    "without its prefix": "0f b8 c1, 66 0f b8 c1, 0f 38 f6 c1, f3 0f 38 00 c1, 0f 38 17 c1, f3 0f 38 f0 03",
    "rdpid, user interrupts": "f3 0f c7 f8, f3 0f c7 f0",
    "fsgsbase": "f3 0f ae c0, f3 48 0f ae c8, f3 48 0f ae d0, f3 48 0f ae d8",
    "xsaves, xrstors": "0f c7 2b, 48 0f c7 1b",
    "opmasks": "c5 f0 41 c2, c5 f8 90 c1, c4 e1 f8 91 03",
    "evex": "62 f1 7c 48 58 c1, 62 f1 fe 48 6f 03, 62 e1 7c 48 28 c0",
    "tsx": "c7 f8 00 00 00 00, c6 f8 01, 66 0f 38 82 03",
    "cet, clwb, clflushopt, ptwrite, getsec": "f3 0f ae e8, 66 0f ae 38, 66 0f ae 30, f3 0f ae 20, 0f 37",
    "three-d-now": "0f 0f c1 9e, 0f 0e, 0f 0f 03 bf",
    "undefined": """0f 0b, 0f ff c0, 0f b9 c0, 0f 04, 06, 07, 0e, 16, 17, 1e, 1f, 27, 2f, 37, 3f, 60, 61, 62,
        c4, c5, ce, d6, 82 c0 01, d4 0a, d5 0a, 9a 00 00 00 00 00 00, ea 00 00 00 00 00 00""",
    "lock that may not be": """f0 90, f0 01 c0, f0 8b 03, f0 89 03, f0 39 03, f0 0f a3 03, f0 ff 33, f0 a4,
        f0 0f 58 c1, f0 f7 23, f0 d3 23, f0 0f af 03, f0 e9 00 00 00 00, f0 85 03""",
    "sse without its prefix": """f3 0f fc c1, f2 0f ef c1, f3 0f 28 c1, 66 0f 13 c1, 0f 6c c1, 0f 7c c1,
        f2 0f 77, 66 0f f0 03, f2 0f f0 c1, 0f 71 c1 00, 0f c3 c0, 66 0f c3 03""",
    "too long": """66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90,
        2e 2e 2e 2e 2e 2e 2e 2e 48 b8 01 02 03 04 05 06 07 08""",
}


def invalid(text: str) -> list[Program]:
    programs: list[Program] = []
    for instruction in text.split(","):
        data = ", ".join(f"0x{byte}" for byte in instruction.split())
        programs.append(Program(len(programs), [[f".byte {data}", "nop", "nop"]], flags=INVALID))
    return programs


@pytest.mark.parametrize("family", FAMILIES)
def test_invalid(checker: Checker, family: str) -> None:
    checker.check(invalid(FAMILIES[family]))


@pytest.mark.parametrize("feature", MASKED)
def test_masked(checker: Checker, feature: str) -> None:
    """Without a feature its instructions, and those of features that need it, are gone."""
    checker.check(invalid(MASKED[feature]), "--mask", hex(feature_bits(feature)))


def test_bit_scans_without_their_features(decoder: Decoder) -> None:
    """rep bsf and rep bsr read their destination, tzcnt and lzcnt don't."""
    reads_reg, scans = 2, [bytes.fromhex("f30fbcc1"), bytes.fromhex("f30fbdc1")]
    decoder.features = feature_bits("BASE")
    assert all(d.access & reads_reg for d in decoder.decode(scans))
    decoder.features = feature_bits("BASE", "BMI1", "LZCNT")
    assert not any(d.access & reads_reg for d in decoder.decode(scans))
