"""AVX, AVX2, FMA, F16C, BMI, and XSAVE."""

from __future__ import annotations

from tests.translator.atoms.base import DATA, PAGE, SCRATCH, SUFFIX, USUAL_PAGES, Atom, reg
from tests.translator.atoms.extended import Extended
from tests.translator.atoms.fpu import sized

THREE = """addps subps mulps divps minps maxps andps andnps orps xorps unpcklps unpckhps addpd subpd mulpd
divpd minpd maxpd unpcklpd unpckhpd haddps haddpd hsubps addsubps addsubpd paddb paddw paddd paddq
psubb psubd psubusw paddsw pmullw pmulhw pmuludq pmaddwd psadbw pavgb pminub pmaxsw pand pandn por
pxor pcmpeqb pcmpgtd pcmpeqq pcmpgtq punpcklbw punpckhwd punpcklqdq packsswb packusdw pshufb
phaddd pmaddubsw psignw pmulld pmaxsd pminuw psllvd psllvq psrlvd psrlvq psravd permilps permilpd
fmadd132ps fmadd213pd fmadd231ps fmaddsub213ps fmsub231pd fnmadd132ps fnmsub213pd""".split()
TWO = """sqrtps sqrtpd rcpps rsqrtps cvtdq2ps cvtps2dq cvttps2dq movshdup movsldup pabsb pabsd movups movdqu
lddqu movaps movdqa ptest testps""".split()
ALIGNED = {"movaps", "movdqa"}
IMMEDIATE = "shufps shufpd cmpps cmppd blendps pblendw palignr mpsadbw dpps pblendd".split()
SCALAR = sized("addss:4 mulss:4 divsd:8 sqrtsd:8 maxss:4 cvtss2sd:4 cvtsd2ss:8 fmadd213ss:4 fnmadd231sd:8")
BROADCAST = sized("broadcastss:4 pbroadcastb:1 pbroadcastw:2 pbroadcastd:4 pbroadcastq:8")
WIDEN = sized("pmovsxbw:16 pmovzxbd:8 pmovsxbq:4 pmovzxwd:16 pmovsxdq:16 cvtph2ps:16 cvtps2pd:16 cvtdq2pd:16")


class Avx(Extended):
    """VEX encodings."""

    def vector(self) -> tuple[str, int]:
        """Prefix of register names and bytes."""
        return self.rng.choice((("x", 16), ("y", 32)))

    def v(self, prefix: str) -> str:
        return f"%{prefix}mm{self.rng.randrange(16)}"

    def v_source(self, prefix: str, size: int, align: int = 1) -> tuple[Atom, str]:
        return self.mem(size, align) if self.chance(0.5) else ([], self.v(prefix))

    def vex_three(self) -> Atom:
        p, size = self.vector()
        setup, m = self.v_source(p, size)
        return [*setup, f"v{self.rng.choice(THREE)} {m}, {self.v(p)}, {self.v(p)}"]

    def vex_two(self) -> Atom:
        p, size = self.vector()
        op = self.rng.choice(TWO)
        if op == "lddqu":
            setup, m = self.mem(size)
        else:
            setup, m = self.v_source(p, size, size if op in ALIGNED else 1)
        lines = [*setup, f"v{op} {m}, {self.v(p)}"]
        return [*lines, *self.settle("zcspo")] if op.endswith("test") or op == "testps" else lines

    def vex_immediate(self) -> Atom:
        p, size = self.vector()
        op = self.rng.choice(IMMEDIATE)
        setup, m = self.v_source(p, size)
        imm = self.rng.randrange(32 if op.startswith("cmp") else 256)
        return [*setup, f"v{op} ${imm}, {m}, {self.v(p)}, {self.v(p)}"]

    def vex_scalar(self) -> Atom:
        op, size = self.rng.choice(SCALAR)
        setup, m = self.v_source("x", size)
        return [*setup, f"v{op} {m}, {self.xmm()}, {self.xmm()}"]

    def vex_broadcast(self) -> Atom:
        op, size = self.rng.choice(BROADCAST)
        p, _ = self.vector()
        setup, m = self.v_source("x", size)
        return [*setup, f"v{op} {m}, {self.v(p)}"]

    def vex_widen(self) -> Atom:
        op, size = self.rng.choice(WIDEN)
        p, full = self.vector()
        setup, m = self.v_source("x", size * full // 32)
        return [*setup, f"v{op} {m}, {self.v(p)}"]

    def vex_store(self) -> Atom:
        p, size = self.vector()
        op = self.pick("movups", "movdqu", "movaps", "movdqa", "movntps", "movntdq")
        setup, m = self.mem(size, 1 if op in ("movups", "movdqu") else size)
        return [*setup, f"v{op} {self.v(p)}, {m}"]

    def vex_lanes(self) -> Atom:
        y, x, imm = self.v("y"), self.xmm(), self.rng.randrange(256)
        setup, m = self.mem(16)
        setup32, m32 = self.v_source("y", 32)
        return self.rng.choice(
            (
                [*setup, f"vextractf128 ${imm & 1}, {y}, {self.pick(m, x)}"],
                [*setup, f"vextracti128 ${imm & 1}, {y}, {self.pick(m, x)}"],
                [*setup, f"vinsertf128 ${imm & 1}, {self.pick(m, x)}, {y}, {self.v('y')}"],
                [*setup, f"vinserti128 ${imm & 1}, {self.pick(m, x)}, {y}, {self.v('y')}"],
                [*setup, f"vbroadcasti128 {m}, {y}"],
                [*setup32, f"vpermq ${imm}, {m32}, {y}"],
                [*setup32, f"vperm2i128 ${imm}, {m32}, {y}, {self.v('y')}"],
                [*setup32, f"vpermd {m32}, {y}, {self.v('y')}"],
                [*setup32, f"vpblendvb {self.v('y')}, {m32}, {y}, {self.v('y')}"],
                [self.pick("vzeroupper", "vzeroall")],
            )
        )

    def vex_gpr(self) -> Atom:
        s = self.rng.choice((4, 8))
        x, r = self.xmm(), reg(self.gpr(), s)
        setup, m = self.rm(s)
        p, _ = self.vector()
        return self.rng.choice(
            (
                [*setup, f"vmov{'d' if s == 4 else 'q'} {m}, {x}"],
                [*setup, f"vmov{'d' if s == 4 else 'q'} {x}, {m}"],
                [*setup, f"vcvtsi2sd{SUFFIX[s]} {m}, {x}, {self.xmm()}"],
                [f"vcvttsd2si {x}, {r}"],
                [f"vpmovmskb {self.v(p)}, {reg(self.gpr(), 4)}"],
                [*setup, f"vpinsr{'d' if s == 4 else 'q'} $1, {m}, {x}, {self.xmm()}"],
                [*setup, f"vpextr{'d' if s == 4 else 'q'} $1, {x}, {m}"],
                [f"vpextrb $7, {x}, {reg(self.gpr(), 4)}"],
            )
        )

    def bmi(self) -> Atom:
        s = self.rng.choice((4, 8))
        a, b, c = (reg(self.gpr(), s) for _ in range(3))
        setup, m = self.rm(s)
        match self.rng.randrange(6):
            case 0:
                return [*setup, f"andn {m}, {a}, {b}", *self.settle("zsco")]
            case 1:
                op = self.pick("blsr", "blsi", "blsmsk")
                return [*setup, f"{op} {m}, {a}", *self.settle("zsco")]
            case 2:
                return [*setup, f"{self.pick('bextr', 'bzhi')} {a}, {m}, {b}", *self.settle("zco")]
            case 3:
                return [*setup, f"{self.pick('shlx', 'shrx', 'sarx')} {a}, {m}, {b}"]
            case 4:
                return [*setup, f"{self.pick('mulx', 'pdep', 'pext')} {m}, {a}, {b}"]
        return [*setup, f"rorx ${self.rng.randrange(64)}, {m}, {c}"]

    def trailing_zeros(self) -> Atom:
        s = self.wide()
        setup, m = self.rm(s)
        return [*setup, f"tzcnt{SUFFIX[s]} {m}, {reg(self.gpr(), s)}", *self.settle("zc")]

    def masked_move(self) -> Atom:
        """Masks of all kinds; where they leave elements out, these may lie on a missing page."""
        p, size = self.vector()
        op = self.pick("vmaskmovps", "vmaskmovpd", "vpmaskmovd", "vpmaskmovq")
        mask, y = self.v(p), self.v(p)
        if self.chance(0.5):
            at = SCRATCH + 1024
            lines = [f"movl ${self.rng.choice((0, 1 << 31)):#x}, {at + 4 * k:#x}" for k in range(8)]
            lines.append(f"vmovdqu {at:#x}, {mask}")
        else:
            lines = []
        setup, m = self.mem(size)
        return [*lines, *setup, self.pick(f"{op} {m}, {mask}, {y}", f"{op} {y}, {mask}, {m}")]

    def gather(self) -> Atom:
        """Indices that stay near, some elements masked out, some perhaps on a missing page."""
        regs = self.rng.sample(range(16), 3)
        op, index, data = self.rng.choice(
            (
                ("vpgatherdd", "x", "x"), ("vpgatherdd", "y", "y"), ("vgatherdps", "y", "y"),
                ("vpgatherdq", "x", "x"), ("vpgatherdq", "x", "y"), ("vgatherdpd", "x", "y"),
                ("vpgatherqd", "x", "x"), ("vpgatherqd", "y", "x"), ("vgatherqps", "y", "x"),
                ("vpgatherqq", "x", "x"), ("vpgatherqq", "y", "y"), ("vgatherqpd", "y", "y"),
            )
        )  # fmt: skip
        narrow_index, base, at = "erd" in op, self.gpr(), SCRATCH + 1024
        scale = self.rng.choice((1, 2, 4, 8))
        lines: Atom = []
        for k in range(8):
            offset = self.rng.randint(-PAGE // 2, PAGE // 2) // scale
            where = at + (4 if narrow_index else 8) * k
            if where < at + 32:
                lines.append(f"mov{'l' if narrow_index else 'q'} ${offset}, {where:#x}")
            lines.append(f"movl ${self.rng.choice((0, 0xFFFFFFFF)):#x}, {at + 32 + 4 * k:#x}")
        if data != "x" or "q" in op[-2:] or op.endswith("pd"):  # wide elements: masks of their own
            lines += [f"movq ${self.rng.choice((0, -1))}, {at + 32 + 8 * k:#x}" for k in range(4)]
        lines += [f"vmovdqu {at:#x}, %ymm{regs[1]}", f"vmovdqu {at + 32:#x}, %ymm{regs[2]}"]
        centre = self.address(8)
        disp = self.rng.choice((0, 8, -300))
        lines.append(self.load_pointer(base, centre - disp))
        memory = f"{disp}({reg(base, 8)},%{index}mm{regs[1]},{scale})"
        return [*lines, f"{op} %{data}mm{regs[2]}, {memory}, %{data}mm{regs[0]}"]

    def xsave_area(self) -> Atom:
        """Components saved, changed and restored; what an image says of addresses is cleared."""
        at = DATA + self.rng.randrange(0, (USUAL_PAGES - 2) * PAGE, 64)
        save = self.pick("xsave", "xsave64", "xsaveopt64", "xsavec", "xsavec64")
        what = self.rng.choice((7, 7, 3, 1, 2, 4, 5, 6))
        clear = [f"movq $0, {at + 512 + 8 * k:#x}" for k in range(8)]
        request = f"mov ${what}, %eax; xor %edx, %edx".split("; ")
        forget = [f"movw $0, {at + 6:#x}", f"movq $0, {at + 8:#x}", f"movq $0, {at + 16:#x}"]
        # Which components count as in use is the CPU's choice: nobody may look at the header meanwhile.
        between = [] if self.risky else self.body(1)
        lines = [*clear, *request, f"{save} {at:#x}", *forget, *between, *request]
        lines += [f"{self.pick('xrstor', 'xrstor64')} {at:#x}"]
        known = f"orq ${what}, {at + 512:#x}" if save in ("xsave", "xsave64") else None
        return [*lines[:-1], *([known] if known else []), lines[-1], *self.blot(at)]

    def blot(self, at: int) -> Atom:
        """Makes an area the same whatever was left out of it."""
        lines = [f"mov ${at:#x}, %edi", "mov $104, %ecx", "cld", "xor %eax, %eax", "rep stosq"]
        return [*lines, *self.definer()]

    def bad_xsave_header(self) -> Atom:
        at = DATA + self.rng.randrange(0, (USUAL_PAGES - 2) * PAGE, 64)
        clear = [f"movq $0, {at + 512 + 8 * k:#x}" for k in range(8)]
        damage = self.pick(
            f"movq $8, {at + 512:#x}",
            f"btsq $63, {at + 512:#x}",
            f"movq $1, {at + 520:#x}",
            f"movq $1, {at + 528:#x}",
            f"movq $1, {at + 568:#x}",
            f"movq $2, {at + 512:#x}\nmovl $0x1ffff, {at + 24:#x}",
            f"btsq $63, {at + 520:#x}\nmovq $1, {at + 512:#x}",
            f"btsq $63, {at + 520:#x}\nmovq $1, {at + 536:#x}",
            f"movabs $0x8000000000000008, %rax\nmov %rax, {at + 520:#x}",
            "",
        )
        odd = self.rng.choice((0, 0, 0, 16, 8, 1))
        return [*clear, *damage.split("\n"), "mov $7, %eax", "xor %edx, %edx", f"xrstor {at + odd:#x}"]

    def misaligned_ymm(self) -> Atom:
        r = self.gpr()
        at = self.load_pointer(r, DATA + self.rng.randrange(0, (USUAL_PAGES - 2) * PAGE))
        m = f"({reg(r, 8)})"
        op = self.pick("vmovaps", "vmovdqa", "vmovapd")
        y = self.v("y")
        return [at, self.pick(f"{op} {m}, {y}", f"{op} {y}, {m}", f"vmovntdqa {m}, {y}")]

    def vex_exception(self) -> Atom:
        at = SCRATCH + 1536
        value = 0x1F80 & ~self.rng.choice((0x80, 0x100, 0x200, 0x400, 0x800, 0x1000, 0x1F80))
        op = self.pick("vdivps", "vaddpd", "vmulps", "vsqrtps", "vfmadd213ps", "vcmpps $3,")
        registers = f"{self.v('y')}, {self.v('y')}" + ("" if op == "vsqrtps" else f", {self.v('y')}")
        return [
            f"movl ${value:#x}, {at:#x}", f"vldmxcsr {at:#x}", f"{op} {registers}",
            f"movl $0x1f80, {at:#x}", f"vldmxcsr {at:#x}",
        ]  # fmt: skip
