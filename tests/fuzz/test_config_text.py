"""Invariant: any text of a configuration file gives settings, or a ConfigError that names file and line; and
any settings give an expression xend reads, or a ConfigError.
"""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from toolstack import sxp
from toolstack.xend.errors import XendError
from toolstack.xend.model import DomainConfig
from toolstack.xm import config
from toolstack.xm.client import dump_call

TOKENS = [
    "name", "memory", "extra", "kernel", "vcpus", "disk", "cpus", "=", "+=", "==", "+", "%", "-", "*", "(",
    ")", "[", "]", "{", "}", ",", ":", ";", "\n", " ", "  ", "'", '"', "'''", "\\", "#", "1", "0", "128",
    "'x'", "'%s'", "'%d'", "'%(a)s'", "str", "int", "None", "True", "lambda", "if", "for", "import", "pass",
    "\t", "f'{x}'", "é", "\x00", "\ud800", "9" * 30, "1e999", "0x", "...", ".", "@", "\r", "\x0c",
]  # fmt: skip

programs = st.lists(st.sampled_from(TOKENS), max_size=25).map("".join)
lines = st.lists(
    st.tuples(st.sampled_from([*config.KEYS, "x", "acpi"]), st.sampled_from(TOKENS) | st.text(max_size=10)),
    max_size=8,
).map(lambda pairs: "\n".join(f"{key} = {value}" for key, value in pairs))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
settings_of = st.dictionaries(st.sampled_from(list(config.KEYS)), values, max_size=8)


@given(programs | lines | st.text(max_size=80))
@example("a=" + "[" * 90)
@example("a='%'%()")
@example("name='%(a'%{}")
@example("kernel=str([[[[1.5]]]])")
@example("x='" + "%s" * 40 + "'\nx=x%(x,)")
def test_any_text(text: str) -> None:
    try:
        config.load(text, "fuzz.cfg", {"vmid": "1"}, check_files=False)
    except config.ConfigError as error:
        assert error.file in ("fuzz.cfg", config.COMMAND_LINE)
        assert error.line >= 0
        assert str(error).startswith(error.file)
        assert error.line or error.key, "an error without a line is about a key that is not in the file"


@given(settings_of)
def test_any_settings(found: dict[str, object]) -> None:
    settings = config.Settings("fuzz.cfg")
    for key, value in found.items():
        settings[key] = config.Setting(value, "fuzz.cfg", 1)
    settings.setdefault("name", config.Setting("x", "fuzz.cfg", 0))
    settings.setdefault("kernel", config.Setting("/k", "fuzz.cfg", 0))
    try:
        config.check(settings)
        vm = config.make_config(settings, check_files=False)
    except config.ConfigError:
        return
    dump_call("xend.domain.create", (vm,))
    assert sxp.parse(sxp.to_string(vm)) == [sxp.as_text(vm)]
    try:
        DomainConfig.from_sxp(vm)
    except XendError as error:
        # What one key cannot know: the paths are absolute only after check_files, the cap needs the vCPUs.
        assert any(
            word in str(error) for word in ("absolute", "cpu_cap", "vcpu_avail", "cpus", "too long", "Name")
        )
