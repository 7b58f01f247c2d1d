"""What came after SSE3, in legacy encodings: x86-64-v2 and its neighbours."""

from __future__ import annotations

from tests.translator.atoms.base import SUFFIX, Atom, reg
from tests.translator.atoms.fpu import Fpu, sized

PACKED = """pshufb phaddw phaddd phaddsw phsubw phsubd phsubsw pmaddubsw pmulhrsw psignb psignw psignd pabsb
pabsw pabsd packusdw pcmpeqq pcmpgtq pmaxsb pmaxsd pmaxud pmaxuw pminsb pminsd pminud pminuw pmuldq pmulld
phminposuw pblendvb blendvps blendvpd aesenc aesenclast aesdec aesdeclast aesimc sha1nexte sha1msg1 sha1msg2
sha256rnds2 sha256msg1 sha256msg2 gf2p8mulb ptest""".split()
SMALL = sized(
    """pmovsxbw:8 pmovsxbd:4 pmovsxbq:2 pmovsxwd:8 pmovsxwq:4 pmovsxdq:8 pmovzxbw:8 pmovzxbd:4 pmovzxbq:2
    pmovzxwd:8 pmovzxwq:4 pmovzxdq:8"""
)
IMMEDIATE = sized(
    """roundps:16 roundpd:16 roundss:4 roundsd:8 blendps:16 blendpd:16 pblendw:16 palignr:16 dpps:16 dppd:16
    mpsadbw:16 pclmulqdq:16 insertps:4 aeskeygenassist:16 sha1rnds4:16 gf2p8affineqb:16 pcmpestrm:16
    pcmpestri:16 pcmpistrm:16 pcmpistri:16"""
)
UNALIGNED = {"pcmpestrm", "pcmpestri", "pcmpistrm", "pcmpistri"}
MMX = """pshufb phaddw phaddd phaddsw phsubw phsubd phsubsw pmaddubsw pmulhrsw psignb psignw psignd pabsb
pabsw pabsd""".split()


class Extended(Fpu):
    """Instructions of later CPUs; those that the host lacks are tried, too: #UD on both sides."""

    def count_bits(self) -> Atom:
        """popcnt, lzcnt: the flags that they leave undefined are not looked at."""
        s = self.wide()
        op, defined = self.rng.choice((("popcnt", "zcspo"), ("lzcnt", "zc")))
        setup, m = self.rm(s)
        return [*setup, f"{op}{SUFFIX[s]} {m}, {reg(self.gpr(), s)}", *self.settle(defined)]

    def swap_bytes(self) -> Atom:
        s = self.wide()
        setup, m = self.mem(s)
        r = reg(self.gpr(), s)
        return [*setup, f"movbe {self.pick(f'{m}, {r}', f'{r}, {m}')}"]

    def crc(self) -> Atom:
        s = self.size()
        setup, m = self.rm(s)
        if s == 1 and self.chance(0.2):
            setup, m = [], self.pick("%ah", "%bh", "%ch", "%dh")
            return [f"crc32b {m}, {reg(self.rng.randrange(4), 4)}"]
        wide = s == 8 or (s == 1 and self.chance(0.3))
        return [*setup, f"crc32{SUFFIX[s]} {m}, {reg(self.gpr(), 8 if wide else 4)}"]

    def add_with_one_flag(self) -> Atom:
        s = self.rng.choice((4, 8))
        lines: Atom = self.definer()
        for _ in range(self.rng.randint(1, 4)):
            setup, m = self.rm(s)
            lines += [*setup, f"{self.pick('adcx', 'adox')} {m}, {reg(self.gpr(), s)}"]
        return [*lines, *self.settle("co")]

    def random_number(self) -> Atom:
        """That it sets carry and clears the rest, not what it gives."""
        s = self.wide()
        r = self.gpr()
        done = self.label()
        return [
            f"{done}: {self.pick('rdrand', 'rdseed')} {reg(r, s)}",
            f"jnc {done}",
            f"mov $0, {reg(r, 8)}",
            *self.settle("zspo"),
        ]

    def later_packed(self) -> Atom:
        op = self.rng.choice(PACKED)
        setup, m = self.xmm_source(16)
        lines = [*setup, f"{op} {m}, {self.xmm()}"]
        return [*lines, *self.settle("zcspo")] if op == "ptest" else lines

    def later_small(self) -> Atom:
        op, size = self.rng.choice(SMALL)
        setup, m = self.xmm_source(size)
        return [*setup, f"{op} {m}, {self.xmm()}"]

    def later_immediate(self) -> Atom:
        op, size = self.rng.choice(IMMEDIATE)
        setup, m = self.xmm_source(size, aligned=op not in UNALIGNED)
        lines = [*setup, f"{op} ${self.rng.randrange(4 if op == 'sha1rnds4' else 256)}, {m}, {self.xmm()}"]
        return [*lines, *self.settle("zcspo")] if op in UNALIGNED else lines

    def later_loads(self) -> Atom:
        setup, m = self.mem(16, 16)
        return [*setup, f"movntdqa {m}, {self.xmm()}"]

    def insert_extract(self) -> Atom:
        x, imm = self.xmm(), self.rng.randrange(256)
        name, size = self.rng.choice((("b", 1), ("w", 2), ("d", 4), ("q", 8)))
        setup, m = self.mem(size)
        r = reg(self.gpr(), 8 if size == 8 else 4)
        match self.rng.randrange(3):
            case 0:
                return [*setup, f"pextr{name} ${imm}, {x}, {self.pick(m, r)}"]
            case 1:
                return [*setup, f"pinsr{name} ${imm}, {self.pick(m, r)}, {x}"]
        setup, m = self.mem(4)
        return [*setup, f"extractps ${imm}, {x}, {self.pick(m, reg(self.gpr(), self.rng.choice((4, 8))))}"]

    def later_mmx(self) -> Atom:
        a, b = self.rng.randrange(8), self.rng.randrange(8)
        setup, m = self.present(8)
        source = self.pick(f"%mm{a}", m)
        if self.chance(0.2):
            return [*setup, f"palignr ${self.rng.randrange(20)}, {source}, %mm{b}"]
        return [*setup, f"{self.rng.choice(MMX)} {source}, %mm{b}"]
