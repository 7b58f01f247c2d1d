"""Both syntaxes of `cpuid`, and what they make of a policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.libxc.cpuid import NO_SUBLEAF, CpuidError, Leaves, Rule, changed_leaves, parse, unmet
from tests.xend_fake import HOST_LEAVES
from tests.xend_kit import Host
from toolstack.xend.errors import XendError

X = "x" * 32
DEFAULT: Leaves = {
    (1, NO_SUBLEAF): (0x306C1, 0x800, 0b1010, 0),
    (4, 0): (1, 2, 3, 4),
    (7, 0): (1, 0b100000, 0, 0),
    (0xD, 1): (7, 0, 0, 0),
    (0x80000001, NO_SUBLEAF): (0, 0, 0x21, 0),
}
HOST = DEFAULT | {(1, NO_SUBLEAF): (0xC06F2, 0x10800, 0b1100, 0)}


def changed(*texts: str) -> Leaves:
    return changed_leaves([rule for text in texts for rule in parse(text)], DEFAULT, HOST)


@pytest.mark.parametrize(
    ("texts", "place", "words"),
    [
        (["1:ecx=" + "x" * 28 + "01k0"], (1, NO_SUBLEAF), (0x306C1, 0x800, 0b0100, 0)),
        (["0x1:ecx=" + "s" * 32 + ",eax=0x123"], (1, NO_SUBLEAF), (0x123, 0x800, 0b1100, 0)),
        (["1:ecx=5", "1:ecx=" + "x" * 31 + "0"], (1, NO_SUBLEAF), (0x306C1, 0x800, 4, 0)),
        (["7,0:ebx=0"], (7, 0), (1, 0, 0, 0)),
        (["7:ebx=0"], (7, 0), (1, 0, 0, 0)),
        (["1,0:ecx=0"], (1, NO_SUBLEAF), (0x306C1, 0x800, 0, 0)),
        (["host,avx2=0"], (7, 0), (1, 0, 0, 0)),
        (["host, avx2 = 0 , bmi1=1"], (7, 0), (1, 8, 0, 0)),
        (["host,xsavec=0"], (0xD, 1), (5, 0, 0, 0)),
        (["host,lzcnt=0"], (0x80000001, NO_SUBLEAF), (0, 0, 1, 0)),
        (["host,family=6,model=0x3a,stepping=9"], (1, NO_SUBLEAF), (0x306A9, 0x800, 0b1010, 0)),
        (["host,family=23,model=0x71,stepping=0"], (1, NO_SUBLEAF), (0x870F10, 0x800, 0b1010, 0)),
        (["host,clflush=16,proccount=2"], (1, NO_SUBLEAF), (0x306C1, 0x21000, 0b1010, 0)),
    ],
)
def test_what_becomes_of_a_leaf(texts: list[str], place: tuple[int, int], words: tuple[int, ...]) -> None:
    assert changed(*texts) == {place: words}


def test_nothing_is_changed_without_a_word() -> None:
    assert changed("host") == {}
    assert changed(f"1:ecx={X}") == {(1, NO_SUBLEAF): DEFAULT[1, NO_SUBLEAF]}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "neither 'host"),
        ("hosts,avx=0", "neither 'host"),
        ("avx2=0", "neither 'host"),
        ("host,avx2", "'avx2' has no value"),
        ("host,avx2=2", "'avx2' must be 0, 1, x, k or s"),
        ("host,-=0", "no CPU feature is called '-'"),
        ("host,sse42=0", "did you mean 'sse4_2'?"),
        ("host,stepping=16", "16 has more than 4 bits"),
        ("1:", "is not eax"),
        ("one:eax=1", "'one' is no number"),
        ("1:eax=0x1ffffffff", "more than 32 bits"),
        ("1:eax=" + "x" * 31 + "2", "neither 32 characters"),
        ("-1:eax=0", "more than 32 bits"),
    ],
)
def test_mistakes(text: str, part: str) -> None:
    with pytest.raises(CpuidError) as error:
        parse(text)
    assert part in str(error.value)


def test_a_leaf_that_does_not_exist() -> None:
    with pytest.raises(CpuidError, match=r"there is no CPUID leaf 0x1234, subleaf 5"):
        changed("0x1234,5:eax=0")


PIECES = st.integers(), st.text(max_size=4), st.text(max_size=34)


@given(st.text(max_size=40) | st.builds("{}:{}={}".format, *PIECES))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """Whatever the text, rules or CpuidError; a rule's own text means the same."""
    try:
        rules = parse(text)
    except CpuidError:
        return
    assert [parse(rule.text) for rule in rules] == [(rule,) for rule in rules]


def test_requirements() -> None:
    met, missing = parse("1:ecx=" + "x" * 28 + "11xx"), parse("host,fpu=1")
    assert unmet(met, HOST) == []
    assert unmet(missing, HOST) == list(missing)
    assert unmet([Rule(0x99, NO_SUBLEAF, 0, "x" * 31 + "1")], HOST) != []


async def test_xend_applies_them(tmp_path: Path) -> None:
    host = Host(tmp_path)
    async with host.xend() as xend:
        domain = await xend.create("deb", ["cpuid", ["host,avx2=0"]], ["cpuid_check", ["host,bmi1=1"]])
        assert host.hypervisor.domains[1].leaves == {(7, 0): (0, 0x108, 0, 0)}
        assert domain.config.cpuid == ("0x7,0:ebx=" + "x" * 26 + "0" + "x" * 5,)
        assert host.records()["deb"].config.cpuid == domain.config.cpuid
        await xend.life.destroy(domain)
        with pytest.raises(XendError, match="does not meet cpuid_check"):
            await xend.create("deb", ["cpuid_check", ["host,xsaves=1"]])
        with pytest.raises(XendError, match="cpuid: no CPU feature"):
            await xend.create("deb", ["cpuid", ["host,nonsense=1"]])
    assert (7, 0) in HOST_LEAVES
