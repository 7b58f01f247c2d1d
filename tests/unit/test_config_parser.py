"""Configuration files: what they may say, what they become, and how a mistake is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolstack import sxp
from toolstack.xm import config
from toolstack.xm.config import ConfigError

BASE = "kernel='/k'\n"


def values(text: str, **variables: str) -> dict[str, Any]:
    return {key: setting.value for key, setting in config.evaluate(text, "f.cfg", variables).items()}


def vm(text: str, **variables: str) -> list[Any]:
    made, _ = config.load(text, "dir/f.cfg", variables, check_files=False)
    assert isinstance(made, list)
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("'''a comment\nof two lines'''\npass\n", {}),
        ("a = 1; b = 'x'", {"a": 1, "b": "x"}),
        ("a = b = 3", {"a": 3, "b": 3}),
        ("a = -1\nb = +2.5\nc = None\nd = True", {"a": -1, "b": 2.5, "c": None, "d": True}),
        ("a = [1, 'b', (2, 3)]\nb = {'x': [1], 2: 'y'}", {"a": [1, "b", (2, 3)], "b": {"x": [1], 2: "y"}}),
        ("a = 'x' 'y'", {"a": "xy"}),
        ("a = 'x' + 'y' + 'z'", {"a": "xyz"}),
        ("a = [1] + [2]\nb = (1,) + (2,)\nc = 1 + 2", {"a": [1, 2], "b": (1, 2), "c": 3}),
        ("v = '6.1'\nk = '/boot/vmlinuz-' + v", {"v": "6.1", "k": "/boot/vmlinuz-6.1"}),
        ("a = 'x'\na += 'y'", {"a": "xy"}),
        (
            "a = 'vm%d' % 3\nb = '%s-%s' % ('x', 1)\nc = '%(n)s%%' % {'n': 5}",
            {"a": "vm3", "b": "x-1", "c": "5%"},
        ),
        ("a = str(5) + 'x'\nb = int('0012')", {"a": "5x", "b": 12}),
        ("a = '''two\nlines'''", {"a": "two\nlines"}),
        ("a = (\n 'x'\n 'y')  # comment", {"a": "xy"}),
    ],
)
def test_language(text: str, expected: dict[str, Any]) -> None:
    assert values(text) == expected


REFUSED = [
    ("import os", 1, "", "import"),
    ("a = 1\nif a: b = 2", 2, "", "if"),
    ("a = open('/etc/passwd')", 1, "a", "only str(x) and int(x) may be called"),
    ("a = __import__('os').system('id')", 1, "a", "may be called"),
    ("def f(): pass", 1, "", "a function"),
    ("a = [x for x in []]", 1, "a", "a list comprehension"),
    ("\n\na = b", 3, "a", "the name 'b' is not set"),
    ("a, b = 1, 2", 1, "", "NAME = VALUE"),
    ("a.b = 1", 1, "", "NAME = VALUE"),
    ("a = 'x'.upper()", 1, "a", "may be called"),
    ("a = f'{1}'", 1, "a", "an f-string"),
    ("a = 1 * 2", 1, "a", "this operator"),
    ("a = [0] * 10", 1, "a", "this operator"),
    ("a = not 1", 1, "a", "this operator"),
    ("a = b'x'", 1, "a", "this constant"),
    ("a = 1j", 1, "a", "this constant"),
    ("a = ...", 1, "a", "this constant"),
    ("a = 'x' + 1", 1, "a", "a string + a number makes no sense"),
    ("a = '%d' % 'x'", 1, "a", "the format does not fit"),
    ("a = '%(x)s' % {}", 1, "a", "the format does not fit"),
    ("a = '%99999d' % 1", 1, "a", "this format is too wide"),
    ("a = '%*d' % (9, 1)", 1, "a", "this format is too wide"),
    ("a = 1 % 2", 1, "a", "the left of % must be a string"),
    ("a = int('x')", 1, "a", "is no number"),
    ("a = str(1, 2)", 1, "a", "may be called"),
    ("a = {**{}}", 1, "a", "the keys of a dictionary"),
    ("a = [*[1]]", 1, "a", "'starred'"),
    ("a += 'x'", 1, "a", "the name 'a' is not set"),
    ("a = 1\nb = ", 2, "", "syntax error"),
    ("a = 0755", 1, "", "syntax error"),
    ("a = '\0'", 1, "", "null byte"),
    ("a = " + "1" * 5000, 1, "", ""),
    ("a = " + "(" * 500 + ")" * 500, 1, "", ""),
    ("a = " + "-" * 100_000 + "1", 1, "", ""),
    ("a = 'x' " + "+ 'x'" * 20_000, 1, "", ""),
    ("a = " + repr("x" * 70_000), 1, "a", "too large"),
    ("a = [1]\n" + "a = [a, a]\n" * 40, 13, "a", "too large"),
    ("a = 'x'\n" + "a = a + a\n" * 40, 18, "a", "too large"),
    ("for a in []: pass", 1, "", "for"),
    ("del a", 1, "", "'delete'"),
    ("print(1)", 1, "", "only assignments"),
]


@pytest.mark.parametrize(("text", "line", "key", "part"), REFUSED, ids=range(len(REFUSED)))
def test_anything_else_is_an_error_with_its_place(text: str, line: int, key: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.evaluate(text, "f.cfg")
    error = caught.value
    assert (error.file, error.line, error.key) == ("f.cfg", line, key)
    assert str(error).startswith(f"f.cfg:{line}: {key}: " if key else f"f.cfg:{line}: ")
    assert part in str(error)


def test_nothing_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "written"
    with pytest.raises(ConfigError):
        config.evaluate(
            f"a = [c for c in ().__class__.__base__.__subclasses__()]\nopen({str(target)!r}, 'w')", "f"
        )
    assert not target.exists()


WRONG = [
    ("memory = 'lots'", "memory", "must be a number, not 'lots'"),
    ("memory = 0", "memory", "must be from 1 to"),
    ("memory = 1.5", "memory", "must be a whole number"),
    ("memory = True", "memory", "must be a whole number"),
    ("vcpus = 129", "vcpus", "must be from 1 to 128"),
    ("vcpus = [1]", "vcpus", "must be a whole number, not a list"),
    ("name = 'a b'", "name", "may hold letters"),
    ("name = 'ä'", "name", "may hold letters"),
    ("name = ['x']", "name", "must be a string, not a list"),
    ("extra = 'a\\nb'", "extra", "must not contain the character 0xa"),
    ("extra = '\\ud800'", "extra", "must not contain the character"),
    ("kernel = 5 + 5\nkernel = None", "kernel", "must be a string, not None"),
    ("uuid = 'x'", "uuid", "must be a UUID"),
    ("on_crash = 'explode'", "on_crash", "must be one of destroy, restart"),
    ("on_poweroff = 'coredump-destroy'", "on_poweroff", "must be one of"),
    ("restart = 'sometimes'", "restart", "must be one of"),
    ("builder = 'hvm'", "builder", "'hvm' is not built yet"),
    ("builder = 'x'", "builder", "must be one of"),
    ("type = 'pvh'", "type", "'pvh' is not built yet"),
    ("disk = ['phy:/dev/x,xvda']", "disk", "Invalid disk specifier 'phy:/dev/x,xvda': it must be UNAME,"),
    ("disk = ['tap:x:/i,xvda,w']", "disk", "'x' in 'tap:x:/i' is no image format; aio, qcow,"),
    ("disk = ['file:/i,xvda,q']", "disk", "'q' is no mode of a disk"),
    ("disk = ['file:i,xvda,w']", "disk", "the path in 'file:i' must be absolute"),
    ("disk = [5]", "disk", "Invalid disk specifier '5'"),
    ("disk = 5", "disk", "must be a list of strings, not a number"),
    ("vif = ['color=red']", "vif", "Invalid vif option: color"),
    ("vif = ['mac']", "vif", "'mac' is no key=value"),
    ("vif = ['mac=1,mac=2']", "vif", "'1' is no MAC address"),
    ("vif = ['rate=fast']", "vif", "'fast' is no rate"),
    ("vif = ['type=ioemu']", "vif", "emulated network cards are not built yet"),
    ("vif = [{}]", "vif", "must be a string, not a dictionary"),
    ("nics = 17", "nics", "must be from 0 to 16"),
    ("vfb = ['vnc=1']", "vfb", "virtual framebuffers are not built yet"),
    ("pci = ['0:1.0']", "pci", "PCI pass-through is not built yet"),
    ("bootloader = 'pygrub'", "bootloader", "boot loaders are not built yet"),
    ("tsc_mode = 2", "tsc_mode", "TSC modes are not built yet"),
    ("blkif = 'yes'", "blkif", "not built yet"),
    ("cpus = 'all'", "cpus", "is no CPU and no range"),
    ("cpus = '3-1'", "cpus", "is no range of CPUs"),
    ("cpus = {}", "cpus", "must be a string"),
    ("cpu_weight = 0", "cpu_weight", "must be from 1 to 65535"),
    ("memory = 256\nmaxmem = 128", "maxmem", "must not be less than memory (256 MiB)"),
    ("vcpus = 4\nmaxvcpus = 2", "maxvcpus", "must not be less than vcpus (4)"),
    ("nfs_root = '/r'", "nfs_root", "needs nfs_server"),
    ("on_xend_stop = 'suspend'", "on_xend_stop", "'suspend' is not built yet"),
    ("pool = 'other'", "pool", "must be one of"),
    ("cpuid = 'host,avx3=0'", "cpuid", "no CPU feature is called 'avx3'; did you mean 'avx'?"),
    ("cpuid = ['1:ecx=xx0']", "cpuid", "neither 32 characters of 0 1 x k s nor a number"),
    ("cpuid = {}", "cpuid", "must be a string or a list of strings"),
    ("cpuid_check = ['1:exx=1']", "cpuid_check", "is not eax, ebx, ecx or edx"),
]


@pytest.mark.parametrize(("text", "key", "part"), WRONG, ids=[text for text, _, _ in WRONG])
def test_wrong_values_name_file_line_and_key(text: str, key: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vm(BASE + text)
    error = caught.value
    assert (error.file, error.line, error.key) == ("dir/f.cfg", 1 + len(text.splitlines()), key)
    assert part in str(error)


@pytest.mark.parametrize(
    "text", ["disk = []", "vif = []", "vfb = ''", "blkif = 'no'", "tsc_mode = 0", "cpuid = None"]
)
def test_asking_for_nothing_is_no_error(text: str) -> None:
    assert vm(BASE + text) == vm(BASE)


def test_unknown_keys_are_accepted_with_a_warning() -> None:
    text = BASE + "memry = 3\nvcpu = 1\nversion = '6'\nextra = version\nacpi = 1\nzzzzzz = 0\n"
    _, warnings = config.load(text, "f.cfg", {}, check_files=False)
    assert warnings == [
        "f.cfg:2: memry: unknown key, ignored; did you mean 'memory'?",
        "f.cfg:3: vcpu: unknown key, ignored; did you mean 'vcpus'?",
        "f.cfg:6: acpi: is for HVM domains only; ignored",
        "f.cfg:7: zzzzzz: unknown key, ignored",
    ]


def test_a_key_is_needed_even_when_it_is_nowhere() -> None:
    with pytest.raises(ConfigError, match=r"^dir/f.cfg: kernel: a PV domain needs a kernel$"):
        vm("memory = 1")


def test_defaults() -> None:
    assert vm(BASE) == [
        "vm",
        ["name", "f.cfg"],
        ["memory", 128],
        ["vcpus", 1],
        ["image", ["linux", ["kernel", "/k"]]],
        ["s3_integrity", 1],
    ]


def test_everything() -> None:
    text = """
name = "deb"
uuid = "5A2C9A2E0C1B4B0E9B0C3F8F6F1D2A10"
description = "a test"
builder = "generic"
kernel = "/k"
ramdisk = "/r"
root = "root=/dev/xvda1 ro"
extra = "console=hvc0"
ip = "10.0.0.2"
gateway = "10.0.0.1"
netmask = "255.0.0.0"
hostname = "deb"
memory = "256"
maxmem = 512
vcpus = 2
maxvcpus = 4
cpu = 1
cpus = ["0", "1-3,^2"]
cpu_weight = 512
cpu_cap = 50
on_poweroff = "preserve"
on_reboot = "destroy"
on_crash = "coredump-restart"
on_xend_start = "start"
on_xend_stop = "shutdown"
features = "x"
localtime = 1
pool = "Pool-0"
disk = []
"""
    assert vm(text) == [
        "vm",
        ["name", "deb"],
        ["memory", 256],
        ["maxmem", 512],
        ["on_poweroff", "preserve"],
        ["on_reboot", "destroy"],
        ["on_crash", "coredump-restart"],
        ["features", "x"],
        ["on_xend_start", "start"],
        ["on_xend_stop", "shutdown"],
        ["description", "a test"],
        ["vcpu_avail", 3],
        ["vcpus", 4],
        ["uuid", "5a2c9a2e-0c1b-4b0e-9b0c-3f8f6f1d2a10"],
        ["cpu", 1],
        ["cpus", ["0", "1-3,^2"]],
        ["cpu_cap", 50],
        ["cpu_weight", 512],
        ["localtime", 1],
        ["pool_name", "Pool-0"],
        [
            "image",
            [
                "generic",
                ["kernel", "/k"],
                ["ramdisk", "/r"],
                ["ip", "10.0.0.2:127.0.255.255:10.0.0.1:255.0.0.0:deb:eth0:off"],
                ["root", "/dev/xvda1 ro"],
                ["args", "console=hvc0"],
            ],
        ],
        ["s3_integrity", 1],
    ]


@pytest.mark.parametrize(
    ("old", "actions"),
    [
        ("always", ["restart", "restart", "restart"]),
        ("never", ["destroy", "destroy", "destroy"]),
        ("onreboot", ["destroy", "restart", "destroy"]),
    ],
)
def test_old_restart(old: str, actions: list[str]) -> None:
    made = vm(BASE + f"restart = '{old}'")
    assert [sxp.child_value(made, key) for key in ("on_poweroff", "on_reboot", "on_crash")] == actions


def test_nfs_root() -> None:
    image = sxp.child_value(
        vm(BASE + "nfs_root='/r'\nnfs_server='1.2.3.4'\nextra='quiet'\ndhcp='dhcp'"), "image"
    )
    assert sxp.child_value(image, "args") == "nfsroot=1.2.3.4:/r quiet"
    assert sxp.child_value(image, "ip") == ":1.2.3.4::::eth0:dhcp"


class TestCommandLine:
    def test_words_win_over_the_file(self) -> None:
        made = vm(BASE + "memory = 128\nname = 'x'", memory="512", name="y")
        assert sxp.child_value(made, "memory") == 512
        assert sxp.child_value(made, "name") == "y"

    def test_words_are_visible_as_names(self) -> None:
        assert values("name = 'vm%d' % vmid", vmid="3") == {"name": "vm3"}
        assert values("name = 'vm' + who", who="x") == {"name": "vmx"}
        _, warnings = config.load(BASE + "name = 'vm%d' % vmid", "f", {"vmid": "3"}, check_files=False)
        assert warnings == []

    def test_a_list_gets_one_entry(self) -> None:
        made = vm(BASE + "disk = ['file:/a,xvda,w', 'file:/b,xvdb,w']", disk="phy:x,sda,w")
        assert sxp.children(made, "device") == [
            ["device", ["vbd", ["uname", "phy:x"], ["dev", "sda"], ["mode", "w"]]]
        ]
        with pytest.raises(
            ConfigError, match=r"^command line: disk: Invalid disk specifier 'phy:x,y,w': 'y' is"
        ):
            vm(BASE, disk="phy:x,y,w")

    def test_errors_name_the_command_line(self) -> None:
        with pytest.raises(ConfigError, match=r"^command line: memory: must be a number, not 'x'$"):
            vm(BASE, memory="x")


class TestFiles:
    def test_relative_paths_become_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "k").write_text("")
        monkeypatch.chdir(tmp_path)
        made, _ = config.load("kernel = 'k'", "f", {})
        assert sxp.child_value(sxp.child_value(made, "image"), "kernel") == str(tmp_path / "k")

    @pytest.mark.parametrize(("name", "part"), [("absent", "does not exist"), (".", "is a directory")])
    def test_a_missing_file_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, part: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=f"^f:2: kernel: the file '{name}' {part}$"):
            config.load(f"\nkernel = '{name}'", "f", {})

    def test_a_long_file_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="longer than 1 MiB"):
            config.evaluate("#" * (1 << 20) + "\n", "f")
