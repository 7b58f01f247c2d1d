"""The s-expressions of xend: text to lists and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolstack import sxp
from toolstack.sxp import Sxp

# Surrogates cannot be written to a file as text.
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
atoms = words | st.integers() | st.booleans() | st.floats(allow_nan=False)
trees = st.recursive(atoms, lambda inner: st.lists(inner, max_size=5), max_leaves=30)

PARSED = [
    ("", []),
    ("  # only a comment", []),
    ("(vm (name deb)(memory 256))", [["vm", ["name", "deb"], ["memory", "256"]]]),
    ("a b", ["a", "b"]),
    ("()", [[]]),
    ("('a b' \"c'd\")", [["a b", "c'd"]]),
    (r"'\n\t\\\'\"\x41\101\e'", ["\n\t\\'\"AA\\e"]),
    ("(a # gone\n b)", [["a", "b"]]),
    ("a'b'", ["a", "b"]),
    ("a;b", ["a", ";b"]),
    ("(a(b)c)", [["a", ["b"], "c"]]),
    ("''", [""]),
    ("'é' é", ["é", "é"]),
]


@pytest.mark.parametrize(("text", "expected"), PARSED)
def test_parse(text: str, expected: list[Sxp]) -> None:
    assert sxp.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("(a", 1, 3),
        ("a)", 1, 2),
        ("(a\n 'b", 2, 2),
        ("\x00", 1, 1),
        (r"'\777'", 1, 1),
        ("(" * 65, 1, 65),
    ],
)
def test_errors_say_where(text: str, line: int, column: int) -> None:
    with pytest.raises(sxp.SxpError) as caught:
        sxp.parse(text)
    assert (caught.value.line, caught.value.column) == (line, column)


@given(trees)
def test_round_trip(tree: Sxp) -> None:
    assert sxp.parse(sxp.to_string(tree)) == [sxp.as_text(tree)]
    assert sxp.parse(sxp.pretty(tree)) == [sxp.as_text(tree)]


@given(st.text(alphabet="ab(){}'\"\\#\n x41;", max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        found = sxp.parse(text)
    except sxp.SxpError:
        return
    assert sxp.parse(" ".join(map(sxp.to_string, found))) == found


def test_pretty_breaks_what_is_too_long() -> None:
    tree: Sxp = [
        "vm",
        ["name", "deb"],
        ["image", ["linux", ["kernel", "/" + "k" * 40], ["args", "a b " * 10]]],
    ]
    assert sxp.pretty(tree) == (
        "(vm\n"
        "    (name deb)\n"
        "    (image\n"
        "        (linux\n"
        "            (kernel /" + "k" * 40 + ")\n"
        "            (args '" + "a b " * 10 + "')\n"
        "        )\n"
        "    )\n"
        ")"
    )
    assert sxp.pretty(["a", ["b", 1], []]) == "(a (b 1) ())"


def test_look_ups() -> None:
    tree: Sxp = ["domain", ["name", "x"], ["device", ["vif"]], ["device", ["vbd"]], "loose", ["empty"]]
    assert sxp.name(tree) == "domain"
    assert sxp.name("domain") is None
    assert sxp.child(tree, "name") == ["name", "x"]
    assert sxp.child_value(tree, "name") == "x"
    assert sxp.child_value(tree, "empty", 7) == 7
    assert sxp.child_value(tree, "absent", 7) == 7
    assert sxp.children(tree, "device") == [["device", ["vif"]], ["device", ["vbd"]]]
    assert sxp.children("x", "device") == []
