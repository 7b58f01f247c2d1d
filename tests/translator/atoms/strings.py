"""String instructions and xlat."""

from __future__ import annotations

from tests.translator.atoms.base import DATA, FS_BASE, PAGE, SUFFIX, Atom, Base


class Strings(Base):
    """String instructions and xlat."""

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
        prefix = (
            self.pick("rep ", "rep ", "")
            if op in ("movs", "stos", "lods")
            else self.pick("repe ", "repne ", "")
        )
        lines = [
            self.load_pointer(6, source),
            self.load_pointer(7, target),
            self.load_pointer(1, count),
            "std" if down else "cld",
        ]
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
