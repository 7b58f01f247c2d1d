"""What a configuration may say of a domain's CPUID: both old syntaxes, and what they make of a policy. Pure.

xend's, a string per leaf: `1:ecx=xxxxxxxxxxxx0xxxxxxxxxxxxxxxxxxx,eax=0x306c1`, `7,0:ebx=...`, where each of
32 characters, from bit 31 on, says of a bit: 1 or 0 as it is; x as the default; k or s as the host has it.
libxl's, one string: `host,avx2=0,family=6`, where a name stands for a bit, or for a number in a leaf.

The hypervisor has the last word: what it cannot offer stays off. On the path of xm: imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NO_SUBLEAF = 0xFFFFFFFF
REGISTERS = ("eax", "ebx", "ecx", "edx")
Leaves = dict[tuple[int, int], tuple[int, int, int, int]]
"""Words eax to edx by leaf and subleaf, NO_SUBLEAF where a leaf has none."""

_BITS = 32
_UNTOUCHED = "x" * _BITS
# Names of bits from bit 0 on, by leaf, subleaf and register; - for none.
_WORDS: dict[tuple[int, int, int], str] = {
    (1, NO_SUBLEAF, 2): """sse3 pclmulqdq dtes64 monitor dscpl vmx smx est tm2 ssse3 cntxid - fma cmpxchg16
        xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc-deadline aes xsave osxsave avx f16c
        rdrand hypervisor""",
    (1, NO_SUBLEAF, 3): """fpu vme de pse tsc msr pae mce cmpxchg8 apic - sysenter mtrr pge mca cmov pat
        pse36 psn clfsh - ds acpi mmx fxsr sse sse2 ss htt tm ia64 pbe""",
    (7, 0, 1): """fsgsbase tsc_adjust - bmi1 hle avx2 - smep bmi2 erms invpcid rtm cmt - mpx - avx512f
        avx512dq rdseed adx smap avx512-ifma - clflushopt clwb - avx512pf avx512er avx512cd sha avx512bw
        avx512vl""",
    (7, 0, 2): """prefetchwt1 avx512-vbmi umip pku ospke - avx512-vbmi2 cet-ss gfni vaes vpclmulqdq
        avx512-vnni avx512-bitalg - avx512-vpopcntdq - - - - - - - rdpid - - cldemote - movdiri movdir64b
        enqcmd""",
    (7, 0, 3): """- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize
        - tsxldtrk - - - - - - - - - ibrsb stibp l1d-flush arch-caps core-caps ssbd""",
    (0xD, 1, 0): "xsaveopt xsavec xgetbv1 xsaves",
    (0x80000001, NO_SUBLEAF, 2): """lahfsahf cmplegacy svm extapic altmovcr8 abm sse4a misalignsse
        3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 - - nodeid - tbm topoext perfctr_core perfctr_nb""",
    (0x80000001, NO_SUBLEAF, 3): """- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - ffxsr
        page1gb rdtscp - lm 3dnowext 3dnow""",
    (0x80000007, NO_SUBLEAF, 3): "- - - - - - - - invtsc",
}
_ALIASES = {
    "sse4.1": "sse4_1", "sse4.2": "sse4_2", "lzcnt": "abm", "cx16": "cmpxchg16", "cx8": "cmpxchg8",
    "pni": "sse3",
}  # fmt: skip
# Names of numbers: leaf, register, lowest bit, bits.
_NUMBERS = {
    "maxleaf": (0, 0, 0, 8), "stepping": (1, 0, 0, 4), "brandid": (1, 1, 0, 8), "clflush": (1, 1, 8, 8),
    "proccount": (1, 1, 16, 8), "localapicid": (1, 1, 24, 8), "nc": (0x80000008, 2, 0, 8),
    "apicidsize": (0x80000008, 2, 12, 4),
}  # fmt: skip


class CpuidError(ValueError):
    """The text is neither syntax, or names something unknown."""


@dataclass(frozen=True)
class Rule:
    """What is wanted of one register of a leaf: a character per bit, bit 31 first."""

    leaf: int
    subleaf: int
    register: int
    bits: str

    @property
    def text(self) -> str:
        """The rule as a string of xend's syntax."""
        subleaf = "" if self.subleaf == NO_SUBLEAF else f",{self.subleaf}"
        return f"{self.leaf:#x}{subleaf}:{REGISTERS[self.register]}={self.bits}"

    def applied(self, default: int, host: int) -> int:
        word = 0
        for char, bit in zip(self.bits, range(_BITS - 1, -1, -1)):
            source = {"1": 1 << bit, "0": 0, "x": default}.get(char, host)
            word |= source & 1 << bit
        return word


def parse(text: str) -> tuple[Rule, ...]:
    """The rules of one string of either syntax. Raises: CpuidError."""
    head = text.strip()
    if head.partition(",")[0].strip() == "host":
        return _parse_names(head)
    if ":" not in head:
        raise CpuidError(f"'{head[:40]}' is neither 'host,NAME=VALUE,...' nor 'LEAF:REGISTER=BITS,...'")
    return _parse_leaf(head)


def _parse_leaf(text: str) -> tuple[Rule, ...]:
    where, _, words = text.partition(":")
    leaf, comma, subleaf = where.partition(",")
    place = _number(leaf), _number(subleaf) if comma else NO_SUBLEAF
    return tuple(_parse_register(place, word) for word in words.split(","))


def _parse_register(place: tuple[int, int], word: str) -> Rule:
    name, equals, value = (part.strip() for part in word.partition("="))
    if name not in REGISTERS or not equals:
        raise CpuidError(f"'{word[:40]}' is not eax, ebx, ecx or edx with a value")
    if len(value) == _BITS and not set(value) - set("01xks"):
        bits = value
    elif value[:2].lower() == "0x" or value.isdigit():
        bits = f"{_number(value):032b}"
    else:
        raise CpuidError(f"'{value[:40]}' is neither 32 characters of 0 1 x k s nor a number")
    return Rule(*place, REGISTERS.index(name), bits)


def _number(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        raise CpuidError(f"'{text[:40]}' is no number") from None
    if not 0 <= number < 1 << _BITS:
        raise CpuidError(f"'{text[:40]}' has more than 32 bits")
    return number


def _parse_names(text: str) -> tuple[Rule, ...]:
    rules = []
    for word in text.split(",")[1:]:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            raise CpuidError(f"'{word[:40]}' has no value")
        rules += _named(name, value)
    return tuple(rules)


def _named(name: str, value: str) -> list[Rule]:
    if name == "family":
        return _family(_number(value))
    if name == "model":
        model = _number(value)
        return [_field((1, 0, 4, 4), model & 15), _field((1, 0, 16, 4), model >> 4)]
    if name in _NUMBERS:
        return [_field(_NUMBERS[name], _number(value))]
    if value not in tuple("01xks"):
        raise CpuidError(f"'{name}' must be 0, 1, x, k or s, not '{value[:40]}'")
    leaf, subleaf, register, bit = _find_bit(name)
    bits = "x" * (_BITS - 1 - bit) + value + "x" * bit
    return [Rule(leaf, subleaf, register, bits)]


def _family(family: int) -> list[Rule]:
    """Families above 15 are a sum of two fields."""
    return [_field((1, 0, 8, 4), min(family, 15)), _field((1, 0, 20, 8), max(family - 15, 0))]


def _field(place: tuple[int, int, int, int], value: int) -> Rule:
    leaf, register, low, width = place
    if value >> width:
        raise CpuidError(f"{value} has more than {width} bits")
    bits = "x" * (_BITS - low - width) + f"{value:0{width}b}" + "x" * low
    return Rule(leaf, NO_SUBLEAF, register, bits)


def _find_bit(name: str) -> tuple[int, int, int, int]:
    wanted = _ALIASES.get(name, name)
    for place, words in _WORDS.items():
        names = words.split()
        if wanted in names and wanted != "-":
            return (*place, names.index(wanted))
    from difflib import get_close_matches  # only a mistake pays for this import

    known = [word for words in _WORDS.values() for word in words.split() if word != "-"]
    found = get_close_matches(name, [*known, *_NUMBERS, "family", "model"], n=1)
    hint = f"; did you mean '{found[0]}'?" if found else ""
    raise CpuidError(f"no CPU feature is called '{name[:40]}'{hint}")


def _place(rule: Rule, leaves: Mapping[tuple[int, int], object]) -> tuple[int, int] | None:
    """The leaf a rule means: one without a subleaf may mean subleaf 0, and the other way round."""
    for subleaf in (rule.subleaf, NO_SUBLEAF, 0):
        if (rule.leaf, subleaf) in leaves and (rule.subleaf in (subleaf, NO_SUBLEAF, 0)):
            return rule.leaf, subleaf
    return None


def changed_leaves(rules: Iterable[Rule], default: Leaves, host: Leaves) -> Leaves:
    """The leaves that the rules change, as they want them. Raises: CpuidError: there is no such leaf."""
    changed: Leaves = {}
    for rule in rules:
        place = _place(rule, default)
        if place is None:
            raise CpuidError(f"there is no CPUID leaf {rule.leaf:#x}" + _subleaf_text(rule))
        words = list(changed.get(place, default[place]))
        on_host = host.get(place, (0, 0, 0, 0))[rule.register]
        words[rule.register] = rule.applied(words[rule.register], on_host)
        changed[place] = (words[0], words[1], words[2], words[3])
    return changed


def unmet(rules: Iterable[Rule], host: Leaves) -> list[Rule]:
    """The rules of cpuid_check that the host does not meet: it must have what is 1 or 0, the rest is free."""
    missing = []
    for rule in rules:
        place = _place(rule, host)
        word = host[place][rule.register] if place else 0
        if rule.applied(word, word) != word:
            missing.append(rule)
    return missing


def _subleaf_text(rule: Rule) -> str:
    return "" if rule.subleaf == NO_SUBLEAF else f", subleaf {rule.subleaf}"
