"""SSE, MMX and x87."""

from __future__ import annotations

from tests.translator.atoms.base import DATA, PAGE, SCRATCH, SUFFIX, USUAL_PAGES, Atom, Base, reg


def sized(text: str) -> list[tuple[str, int]]:
    """Pairs of a name and the bytes of its memory operand."""
    return [(name, int(size)) for name, size in (word.split(":") for word in text.split())]


SSE_PACKED = """addps subps mulps divps minps maxps sqrtps rcpps rsqrtps andps andnps orps xorps unpcklps
unpckhps addpd subpd mulpd divpd minpd maxpd sqrtpd andpd andnpd orpd xorpd unpcklpd unpckhpd haddps haddpd
hsubps hsubpd addsubps addsubpd movshdup movsldup cvtdq2ps cvtps2dq cvttps2dq cvtpd2dq cvttpd2dq cvtpd2ps
paddb paddw paddd paddq psubb psubw psubd psubq paddsb paddsw paddusb paddusw psubsb psubsw psubusb psubusw
pmullw pmulhw pmulhuw pmuludq pmaddwd psadbw pavgb pavgw pminub pmaxub pminsw pmaxsw pand pandn por pxor
pcmpeqb pcmpeqw pcmpeqd pcmpgtb pcmpgtw pcmpgtd punpcklbw punpcklwd punpckldq punpcklqdq punpckhbw
punpckhwd punpckhdq punpckhqdq packsswb packssdw packuswb psllw pslld psllq psrlw psrld psrlq psraw
psrad""".split()
SSE_SCALAR = sized(
    """addss:4 subss:4 mulss:4 divss:4 minss:4 maxss:4 sqrtss:4 rcpss:4 rsqrtss:4 addsd:8 subsd:8 mulsd:8
    divsd:8 minsd:8 maxsd:8 sqrtsd:8 cvtss2sd:4 cvtsd2ss:8 cvtps2pd:8 cvtdq2pd:8 movddup:8"""
)
SSE_IMM = sized("""shufps:16 shufpd:16 pshufd:16 pshuflw:16 pshufhw:16 cmpps:16 cmppd:16 cmpss:4 cmpsd:8""")
# name, bytes, l: loads, s: stores, a: aligned
SSE_MOVES = [
    *((op, 16, "lsa") for op in "movaps movapd movdqa".split()),
    *((op, 16, "ls") for op in "movups movupd movdqu".split()),
    *((op, 16, "sa") for op in "movntps movntpd movntdq".split()),
    *((op, 8, "ls") for op in "movlps movhps movlpd movhpd movq movsd".split()),
    *[("movss", 4, "ls"), ("lddqu", 16, "l")],
]
SSE_REGISTER_MOVES = """movaps movups movdqa movdqu movapd movss movsd movq movhlps movlhps""".split()
MMX = """paddb paddw paddd paddq psubb psubw psubd psubq paddsb paddusw psubsw psubusb pmullw pmulhw pmulhuw
pmuludq pmaddwd psadbw pavgb pavgw pminub pmaxub pminsw pmaxsw pand pandn por pxor pcmpeqb pcmpeqw
pcmpeqd pcmpgtb pcmpgtw pcmpgtd punpcklbw punpcklwd punpckldq punpckhbw punpckhwd punpckhdq packsswb
packssdw packuswb psllw psrlq psrad""".split()
X87_MEMORY = sized(
    """flds:4 fldl:8 fldt:10 filds:2 fildl:4 fildq:8 fsts:4 fstl:8 fstps:4 fstpl:8 fstpt:10 fists:2 fistl:4
    fistps:2 fistpl:4 fistpq:8 fisttps:2 fisttpl:4 fisttpq:8 fadds:4 faddl:8 fsubs:4 fsubrl:8
    fmuls:4 fmull:8 fdivs:4 fdivrl:8 fiadds:2 fiaddl:4 fimull:4 fisubs:2 fidivl:4 fcoms:4 fcompl:8
    ficoms:2 ficompl:4 fbld:10 fbstp:10"""
)
X87_PLAIN = """fld1 fldz fldpi fldl2e fldl2t fldlg2 fldln2 fabs fchs fsqrt frndint fscale fxtract fprem fprem1
fsin fcos fptan fpatan f2xm1 fyl2x ftst fxam fincstp fdecstp fnop fninit fnclex fwait fcompp fucompp
emms""".split()


class Fpu(Base):
    """SSE, MMX and x87."""

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
        op = self.pick(
            "psllw", "pslld", "psllq", "psrlw", "psrld", "psrlq", "psraw", "psrad", "pslldq", "psrldq"
        )
        return [f"{op} ${self.rng.randrange(70)}, {self.xmm()}"]

    def sse_move(self) -> Atom:
        op, size, how = self.rng.choice(SSE_MOVES)
        setup, m = self.mem(size, 16 if "a" in how else 1)
        if "l" in how and (self.chance(0.5) or "s" not in how):
            return [*setup, f"{op} {m}, {self.xmm()}"]
        return [*setup, f"{op} {self.xmm()}, {m}"]

    def sse_move_registers(self) -> Atom:
        if self.chance(0.1):  # rdi within a page: what is checked first is up to the CPU
            return [
                self.load_pointer(7, DATA + 5 * PAGE + self.rng.randrange(0, 4000)),
                f"maskmovdqu {self.xmm()}, {self.xmm()}",
            ]
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
        value = (
            0x1F80
            | self.rng.choice((0, 0x2000, 0x4000, 0x6000))
            | (0x8000 if self.chance(0.2) else 0)
            | (0x40 if self.chance(0.2) else 0)
        )
        setup, m = self.mem(4)
        return [*setup, f"movl ${value:#x}, {at:#x}", f"ldmxcsr {at:#x}", f"stmxcsr {m}"]

    def present(self, size: int) -> tuple[Atom, str]:
        """A memory operand that is there, whatever else is going on."""
        if self.risky:
            return [], f"{DATA + self.rng.randrange(0, (USUAL_PAGES - 2) * PAGE):#x}"
        return self.mem(size)

    def mmx(self) -> Atom:
        a, b = self.rng.randrange(8), self.rng.randrange(8)
        setup, m = self.present(8)  # Intel's CPUs reset the x87 stack before they fault
        source = self.pick(f"%mm{a}", m)
        match self.rng.randrange(9):
            case 8:  # rdi within a page
                at = DATA + 5 * PAGE + self.rng.randrange(0, 4000)
                return [self.load_pointer(7, at), f"maskmovq %mm{a}, %mm{b}"]
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
                return [
                    self.pick(
                        f"movq2dq %mm{a}, {x}",
                        f"movdq2q {x}, %mm{a}",
                        f"cvtps2pi {x}, %mm{a}",
                        f"cvttpd2pi {x}, %mm{b}",
                        f"cvtpi2ps %mm{a}, {x}",
                        f"cvtpi2pd %mm{a}, {x}",
                    )
                ]
            case 6:
                r = reg(self.gpr(), 4)
                return [
                    self.pick(
                        f"pmovmskb %mm{a}, {r}", f"pinsrw $2, {r}, %mm{a}", f"pextrw $1, %mm{a}, {r}", "emms"
                    )
                ]
        op = self.rng.choice(MMX)
        if op in ("punpcklbw", "punpcklwd", "punpckldq"):
            source = f"%mm{a}"
        return [*setup, f"{op} {source}, %mm{b}"]

    def x87(self) -> Atom:
        k = self.rng.randrange(8)
        match self.rng.randrange(9):
            case 0:
                op, size = self.rng.choice(X87_MEMORY)
                if (
                    op in ("fbstp", "fstpt") and self.risky
                ):  # Intel's CPUs store a part of them before they fault
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
                op = self.pick(
                    "fcmovb", "fcmove", "fcmovbe", "fcmovu", "fcmovnb", "fcmovne", "fcmovnbe", "fcmovnu"
                )
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
        """Images in memory hold addresses of instructions, which differ: they are cleared at once."""
        at = DATA + self.rng.randrange(0, (USUAL_PAGES - 2) * PAGE, 16)  # a present page
        match self.rng.randrange(4):
            case 0:
                save = self.pick("fxsave", "fxsave64")
                clear = [f"movw $0, {at + 6:#x}", f"movq $0, {at + 8:#x}", f"movq $0, {at + 16:#x}"]
                return [
                    f"{save} {at:#x}",
                    *clear,
                    *self.body(1),
                    f"{self.pick('fxrstor', 'fxrstor64')} {at:#x}",
                ]
            case 1:
                return [f"fnstenv {at:#x}", *self.clear_environment(at), f"fldenv {at:#x}"]
            case 2:
                return [f"fnsave {at:#x}", *self.clear_environment(at), f"frstor {at:#x}"]
        return [f"fxsave {at:#x}", f"movw $0, {at + 6:#x}", f"movq $0, {at + 8:#x}", f"movq $0, {at + 16:#x}"]

    def clear_environment(self, at: int) -> Atom:
        return [f"movq $0, {at + 12:#x}", f"movq $0, {at + 20:#x}"]
