"""How xm reads its command line."""

from __future__ import annotations

import pytest

from toolstack.xm import tuning
from toolstack.xm.errors import UsageError
from toolstack.xm.options import Options, check_count, mebibytes

OPTIONS = Options("lqd:", {"long": "l", "quiet": "q", "domain=": "d", "quick": "quick"})


@pytest.mark.parametrize(
    ("words", "options", "rest"),
    [
        ("", {}, []),
        ("a b", {}, ["a", "b"]),
        ("-l a -q", {"l": "", "q": ""}, ["a"]),
        ("-lq", {"l": "", "q": ""}, []),
        ("-d x -dy", {"d": "y"}, []),
        ("-ldx", {"l": "", "d": "x"}, []),
        ("--domain x", {"d": "x"}, []),
        ("--domain=x=y", {"d": "x=y"}, []),
        ("--dom=x", {"d": "x"}, []),
        ("--lo", {"l": ""}, []),
        ("-- -l", {}, ["-l"]),
        ("a -- -l --", {}, ["a", "-l", "--"]),
        ("-", {}, ["-"]),
    ],
)
def test_parse(words: str, options: dict[str, str], rest: list[str]) -> None:
    assert OPTIONS.parse(words.split()) == (options, rest)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("-x", "option -x not recognized"),
        ("--x", "option --x not recognized"),
        ("--qui", "option --qui not a unique prefix"),
        ("--long=3", "option --long must not have an argument"),
        ("-d", "option -d requires argument"),
        ("--domain", "option --domain requires argument"),
    ],
)
def test_errors(words: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"^{text}$"):
        OPTIONS.parse(words.split())


def test_argument_counts() -> None:
    check_count(["a"], "x", 1)
    check_count([], "x", 0, 2)
    for args, low, high, text in [
        ([], 1, None, "'xm x' requires 1 argument."),
        (["a"], 2, None, "'xm x' requires 2 arguments."),
        (["a"], 2, 3, "'xm x' requires between 2 and 3 arguments."),
    ]:
        with pytest.raises(UsageError) as caught:
            check_count(args, "x", low, high)
        assert caught.value.text == text


@pytest.mark.parametrize(
    ("text", "mib"), [("512", 512), ("512m", 512), ("1g", 1024), ("1G", 1024), ("524288k", 512), ("1K", 0)]
)
def test_memory(text: str, mib: int) -> None:
    assert mebibytes(text) == mib


@pytest.mark.parametrize("text", ["", "m", "x", "1t", "1.5g"])
def test_no_memory(text: str) -> None:
    with pytest.raises(UsageError):
        mebibytes(text)


def test_cpu_sets() -> None:
    assert tuning.cpu_set("0-3,^2,7") == [0, 1, 3, 7]
    assert tuning.cpu_set("^2,0-3") == [0, 1, 2, 3]
    assert tuning.cpu_set("") == []
    for text in ("a", "3-1", "-1", "5000", "1-"):
        with pytest.raises(UsageError):
            tuning.cpu_set(text)
