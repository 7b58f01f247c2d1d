"""xm as its users and their scripts see it: what goes to which stream, and the exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyper.public.paths import HostPaths
from toolstack.xm import cli, client, lifecycle, manual, where
from toolstack.xm import config as config_module
from toolstack.xm.client import Fault
from toolstack.xm.errors import Failure

Calls = list[tuple[Any, ...]]
Run = Callable[..., tuple[int, str, str]]

DOM0 = ["domain", ["domid", 0], ["name", "Domain-0"], ["state", "r-----"], ["memory", 1]]
DEB = ["domain", ["domid", 3], ["name", "deb"], ["state", "-b----"], ["memory", 256], ["start_time", 0.0]]
MANAGED = ["domain", ["name", "man"], ["memory", 64], ["vcpus", 1]]
INFO = [["system", "x"], ["nr_cpus", 4], ["xen_scheduler", "credit"]]


class FakeServer:
    """Answers by a table; a callable in it is called with the parameters, an exception is raised."""

    uri = "httpu:///fake"
    local = True
    path = "/run/fake/xend.sock"

    def __init__(self) -> None:
        self.calls: Calls = []
        self.answers: dict[str, Any] = {
            "xend.domain": self.find,
            "xend.domains_with_state": lambda detail, state, full: (
                [DOM0, DEB, MANAGED] if detail else ["Domain-0", "deb", "man"]
            ),
            "xend.node.info": INFO,
            "xend.node.dmesg.info": "(XEN) text\n",
            "xend.node.dmesg.clear": "(XEN) text\n",
            "xend.node.log": "line",
            "xend.domain.getpauseflag": False,
            "xend.domain.getRestartCount": 0,
            "xend.domain.create": DEB,
            "xend.domain.sched_credit_get": {"weight": 256, "cap": 0},
            "xend.domain.getDeviceSxprs": lambda name, kind: (
                [[0, [["backend", "/b"]]]] if name == "deb" else []
            ),
        }

    @staticmethod
    def find(name: str, full: bool = False) -> Any:
        for domain in (DOM0, DEB, MANAGED):
            if name in [str(item[1]) for item in domain[1:3]]:
                return domain
        raise Fault(3, name)

    def call(self, method: str, *params: Any, waiting: str | None = None) -> Any:
        self.calls.append((method.removeprefix("xend."), *params))
        answer = self.answers.get(method)
        if isinstance(answer, Exception):
            raise answer
        return answer(*params) if callable(answer) else answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setattr("toolstack.xm.session.Server", lambda uri: fake)
    return fake


@pytest.fixture
def run(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_xm(*words: str) -> tuple[int, str, str]:
        status = cli.main(list(words))
        out, err = capsys.readouterr()
        return status, out, err

    return run_xm


@pytest.fixture
def config(tmp_path: Path) -> str:
    kernel = tmp_path / "vmlinuz"
    kernel.write_text("")
    path = tmp_path / "deb.cfg"
    path.write_text(f"kernel = '{kernel}'\nname = 'deb'\n")
    return str(path)


class TestHelp:
    def test_alone(self, run: Run) -> None:
        status, out, err = run()
        assert (status, err) == (1, "")
        assert out.startswith("Usage: xm ")
        assert "run 'xm help'" in out

    @pytest.mark.parametrize("word", ["help", "--help", "-h"])
    def test_full_list(self, run: Run, word: str) -> None:
        status, out, err = run(word)
        assert (status, err) == (0, "")
        for command in (*cli.BUILT, *cli.NOT_BUILT, "help"):
            assert f"\n {command} " in out

    @pytest.mark.parametrize("command", [*cli.BUILT, *cli.NOT_BUILT, "help"])
    def test_every_command_has_a_page(self, run: Run, command: str) -> None:
        for words, expected in (((command, "-h"), 1), ((command, "x", "--help"), 1), (("help", command), 0)):
            status, out, err = run(*words)
            assert (status, err) == (expected, "")
            assert out.startswith(f"Usage: xm {command}")
        assert all(len(line) <= 110 for line in out.splitlines())
        if command in cli.BUILT:
            assert "Examples:\n  xm " in out

    def test_pages_are_of_commands(self) -> None:
        assert set(manual.PAGES) == {*cli.BUILT, "help"}
        assert set(manual.COMMON) <= set(manual.PAGES)

    def test_unknown(self, run: Run) -> None:
        for words in (("frobnicate",), ("help", "frobnicate")):
            status, out, err = run(*words)
            assert (status, err) == (1, "Error: Subcommand frobnicate not found!\n")
            assert out.startswith("Usage: xm ")


class TestFinding:
    @pytest.mark.parametrize(
        ("word", "command"),
        [("lis", "list"), ("unp", "unpause"), ("domn", "domname"), ("vcpu-l", "vcpu-list"), ("dom", None),
         ("l", None), ("", None), ("listx", None), ("hel", "help"), ("pause", "pause")],
    )  # fmt: skip
    def test_prefixes(self, word: str, command: str | None) -> None:
        assert cli.find_command(word) == command

    def test_aliases_warn(self, run: Run) -> None:
        status, _, err = run("balloon", "deb", "64")
        assert status == 0
        assert err == "Command balloon is deprecated.  Please use xm mem-set instead.\n"
        assert run("vif-list", "deb")[0] == 0

    @pytest.mark.parametrize("command", sorted(cli.NOT_BUILT))
    def test_what_is_not_built_says_so_in_a_line(self, run: Run, server: FakeServer, command: str) -> None:
        assert run(command, "deb", "x") == (1, "", f"Error: 'xm {command}' is not built yet\n")
        assert server.calls == []


class TestErrors:
    def test_unknown_domain(self, run: Run) -> None:
        assert run("domid", "nobody") == (3, "", "Error: Domain 'nobody' does not exist.\n")

    def test_fault(self, run: Run, server: FakeServer) -> None:
        server.answers["xend.domain.pause"] = Fault(2, "no")
        assert run("pause", "deb") == (1, "", "Error: no\n")

    def test_no_server(self, run: Run, server: FakeServer) -> None:
        server.answers["xend.domain"] = FileNotFoundError(2, "No such file or directory")
        expected = (
            "Error: Unable to connect to xend: No such file or directory (httpu:///fake). Is xend running?\n"
        )
        assert run("domid", "deb") == (1, "", expected)

    def test_wrong_number_of_arguments(self, run: Run, server: FakeServer) -> None:
        status, out, err = run("mem-set", "deb")
        assert (status, err) == (1, "Error: 'xm mem-set' requires 2 arguments.\n")
        assert out.startswith("Usage: xm mem-set <Domain> <Mem>\n")
        assert server.calls == []

    def test_wrong_option(self, run: Run) -> None:
        status, out, err = run("list", "--nonsense")
        assert (status, err) == (1, "Error: option --nonsense not recognized\n")
        assert out.startswith("Usage: xm list")

    def test_interrupt(self, run: Run, server: FakeServer) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        server.answers["xend.domain.pause"] = interrupt
        assert run("pause", "deb") == (1, "Interrupted.\n", "")

    def test_our_own_mistakes_are_not_hidden(self, run: Run, server: FakeServer) -> None:
        server.answers["xend.domain.pause"] = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            run("pause", "deb")


BLOCK = ["vbd", ["uname", "file:/d"], ["dev", "xvdb"], ["mode", "w"]]
COUNT = ("domain.getRestartCount", "deb")


@pytest.mark.parametrize(
    ("words", "calls"),
    [
        ("pause deb", [("domain.pause", "deb"), ("domain.setpauseflag", "deb", True)]),
        ("unpause deb", [("domain.unpause", "deb"), ("domain.setpauseflag", "deb", False)]),
        ("destroy 3", [("domain.destroy", "3")]),
        ("delete man", [("domain.delete", "man")]),
        ("rename deb web", [("domain.setName", "deb", "web")]),
        ("mem-set deb 1g", [("domain.setMemoryTarget", "deb", 1024)]),
        ("mem-max deb 512", [("domain.maxmem_set", "deb", 512)]),
        ("sysrq deb s", [("domain.send_sysrq", "deb", "s")]),
        ("debug-keys hq", [("node.send_debug_keys", "hq")]),
        ("vcpu-pin deb 1 0-1,3", [("domain.pincpu", "deb", "1", "0,1,3")]),
        ("vcpu-pin deb all all", [("domain.pincpu", "deb", "all", ",".join(map(str, range(64))))]),
        ("start man", [("domain.start", "man", False)]),
        ("start -p man", [("domain.start", "man", True)]),
        ("dmesg -c", [("node.dmesg.clear",)]),
        ("block-attach deb file:/d xvdb w", [("domain.device_create", "deb", BLOCK)]),
        ("block-attach deb file:/d xvdb w 0", [("domain.device_create", "deb", [*BLOCK, ["backend", "0"]])]),
        ("vbd-create deb tap:qcow2:/d hdc:cdrom r",
         [("domain.device_create", "deb",
           ["tap", ["uname", "tap:qcow2:/d"], ["dev", "hdc:cdrom"], ["mode", "r"]])]),
        ("block-configure deb file:/d xvdb w", [("domain.device_configure", "deb", BLOCK)]),
        ("block-detach deb xvdb", [("domain.destroyDevice", "deb", "vbd", "xvdb", False, True)]),
        ("block-detach -f deb 51712", [("domain.destroyDevice", "deb", "vbd", "51712", True, True)]),
        ("block-resize deb xvdb", [("domain.device_resize", "deb", "xvdb")]),
        ("block-list deb", [("domain.getDeviceSxprs", "deb", "vbd")]),
        ("network-attach deb", [("domain.device_create", "deb", ["vif"])]),
        ("network-attach deb bridge=lan mac=00:16:3e:00:00:01",
         [("domain.device_create", "deb", ["vif", ["bridge", "lan"], ["mac", "00:16:3e:00:00:01"]])]),
        ("network-detach deb 1 --force", [("domain.destroyDevice", "deb", "vif", "1", True, True)]),
        ("network-list -l deb", [("domain.getDeviceSxprs", "deb", "vif")]),
        ("sched-credit -d deb -w 512", [("node.info", 0), ("domain.sched_credit_set", "deb", 512, None)]),
        ("sched-credit -d deb --cap=50", [("node.info", 0), ("domain.sched_credit_set", "deb", None, 50)]),
        ("shutdown deb", [("domain", "deb"), COUNT, ("domain.shutdown", "deb", "poweroff")]),
        ("shutdown -H 3", [("domain", "3"), COUNT, ("domain.shutdown", "deb", "halt")]),
        ("reboot deb", [("domain", "deb"), COUNT, ("domain.shutdown", "deb", "reboot")]),
        ("shutdown -a -R", [("domains_with_state", True, "all", False), ("domain.getRestartCount", "deb"),
                            ("domain.shutdown", "deb", "reboot")]),
    ],
)  # fmt: skip
def test_what_is_asked(run: Run, server: FakeServer, words: str, calls: Calls) -> None:
    assert run(*words.split())[0] == 0
    assert server.calls == calls


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ("domid deb", "3\n"),
        ("domid man", "None\n"),
        ("domname 3", "deb\n"),
        ("domstate deb", "idle\n"),
        ("domstate man", "shutoff\n"),
        ("dmesg", "(XEN) text\n"),
        ("log", "line\n"),
        ("info", "nr_cpus                : 4\nxen_scheduler          : credit\n"),
        ("list deb",
         "Name                                        ID   Mem VCPUs      State   Time(s)\n"
         "deb                                          3   256     0     -b----      0.0\n"),
        ("block-list man", ""),
        ("network-list man", ""),
        ("block-list -l deb", "(0 ((backend /b)))\n"),
        ("list -l man", "(domain (name man) (memory 64) (vcpus 1))\n"),
        ("sched-credit -d deb",
         "Name                                ID Weight  Cap\n"
         "deb                                  3    256    0\n"),
    ],
)  # fmt: skip
def test_what_is_printed(run: Run, words: str, out: str) -> None:
    assert run(*words.split()) == (0, out, "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("list --state=running deb", "You may specify either a state or a particular VM, but not both"),
        ("list --pool=x deb", "You may specify either a pool or a particular VM, but not both"),
        ("list --state=asleep", "there is no state 'asleep' (all, halted, paused, running, suspended,"
         " shutdown, crashed, unknown)"),
        ("list --label", "security labels are not built yet"),
        ("sched-credit -w 3", "No domain given."),
        ("sched-credit -d deb -w x", "weight must be a number, not 'x'"),
        ("vcpu-pin deb 0 ^1", "'^1' leaves no CPU"),
        ("vcpu-pin deb x 1", "a VCPU must be a number, not 'x'"),
        ("mem-set deb much", "memory must be a number, not 'much'"),
        ("start", "Expects 1 argument"),
        ("console", "'xm console' requires between 1 and 4 arguments."),
        ("create a b", "more than one configuration file: a b"),
        ("block-attach deb file:/d xvdb", "'xm block-attach' requires between 4 and 5 arguments."),
        ("block-attach deb /d xvdb w", "'/d' does not say what it is; write file:/d or tap:FORMAT:/d"),
        ("block-attach deb file:/d yyy w",
         "'yyy' is no name of a virtual disk; xvda, xvdb1, sda or hdc are"),
        ("block-attach deb file:/d xvdb x", "'x' is no mode of a disk; r (read only), w and w! (shared) are"),
        ("block-detach deb", "'xm block-detach' requires 2 arguments."),
        ("block-detach deb xvdb -x", "option -x not recognized"),
        ("block-list", "No domain parameter given"),
        ("network-list a b", "No multiple domain parameters allowed"),
        ("network-attach deb bridge", "Invalid argument: bridge"),
        ("network-attach deb mac=", "Invalid argument: mac="),
        ("network-attach deb colour=red", "Invalid vif option: colour"),
        ("network-attach deb mac=1", "'1' is no MAC address such as 00:16:3e:12:34:56"),
    ],
)  # fmt: skip
def test_usage_errors(run: Run, words: str, text: str) -> None:
    status, out, err = run(*words.split())
    assert (status, err) == (1, f"Error: {text}\n")
    assert out.startswith(f"Usage: xm {words.split()[0]}")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("shutdown -H -R deb", "Can't specify halt and reboot"),
        ("shutdown -w", "No domain parameter given"),
        ("shutdown a b", "No multiple domain parameters allowed"),
        ("create absent.cfg", 'Cannot open config file "absent.cfg"'),
        ("create -F absent.sxp", "Cannot read file absent.sxp: No such file or directory"),
        ("create -x", "a dry run in XML is not built yet"),
        ("console man", "Domain 'man' is not started"),
    ],
)
def test_plain_errors(run: Run, words: str, text: str) -> None:
    assert run(*words.split()) == (1, "", f"Error: {text}\n")


def test_sched_credit_wants_the_credit_scheduler(run: Run, server: FakeServer) -> None:
    server.answers["xend.node.info"] = [["system"], ["xen_scheduler", "null"]]
    assert run("sched-credit") == (1, "", "Error: Xen is running with the null scheduler\n")
    server.answers["xend.node.info"] = INFO
    assert run("sched-credit", "-d", "nobody") == (3, "", "Error: Domain 'nobody' does not exist.\n")


class TestWaiting:
    @pytest.fixture(autouse=True)
    def fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lifecycle, "POLL", 0.0)

    def test_shutdown(self, run: Run, server: FakeServer) -> None:
        lists = iter([[DOM0, DEB], [DOM0, DEB], [DOM0, MANAGED]])
        server.answers["xend.domains_with_state"] = lambda *_: next(lists)
        assert run("shutdown", "-w", "deb") == (0, "Domain deb terminated\nAll domains terminated\n", "")

    def test_a_domain_that_is_kept_after_its_end_has_ended(self, run: Run, server: FakeServer) -> None:
        dead = [*DEB[:3], ["state", "---s--"]]
        server.answers["xend.domains_with_state"] = lambda *_: [DOM0, dead]
        assert run("shutdown", "-w", "deb")[1] == "Domain deb terminated\nAll domains terminated\n"

    def test_reboot(self, run: Run, server: FakeServer) -> None:
        lists = iter([[DOM0, DEB], [DOM0], [DOM0, DEB]])
        counts = iter([0, 0, 1])
        server.answers["xend.domains_with_state"] = lambda *_: next(lists)
        server.answers["xend.domain.getRestartCount"] = lambda _: next(counts)
        assert run("reboot", "-w", "deb") == (0, "Domain deb rebooted\nAll domains rebooted\n", "")

    def test_reboot_that_never_comes(
        self, run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "RECREATING", -1.0)
        server.answers["xend.domains_with_state"] = lambda *_: [DOM0]
        expected = "Domain deb destroyed for failing to reboot\nAll domains rebooted\n"
        assert run("reboot", "-w", "deb") == (0, expected, "")


class TestCreate:
    def test_create(self, run: Run, server: FakeServer, config: str) -> None:
        status, out, err = run("create", config, "memory=64")
        assert (status, err) == (0, "")
        assert out == f'Using config file "{config}".\nStarted domain deb (id=3)\n'
        names = [call[0] for call in server.calls]
        assert names == ["domain.create", "domain.waitForDevices", "domain.unpause"]
        assert ["memory", 64] in server.calls[0][1]

    def test_paused_and_quiet(self, run: Run, server: FakeServer, config: str) -> None:
        assert run("create", "-pq", config) == (0, "", "")
        assert [call[0] for call in server.calls] == ["domain.create", "domain.waitForDevices"]

    def test_a_xend_that_dies_meanwhile(
        self, run: Run, server: FakeServer, config: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        answers = iter([ConnectionResetError(), FileNotFoundError(), client.ProtocolError("closed"), None])

        def answer(*_: object) -> None:
            error = next(answers)
            if error is not None:
                raise error

        server.answers["xend.domain.waitForDevices"] = answer
        assert run("create", "-q", config) == (0, "", "")
        assert [call[0] for call in server.calls][1:] == ["domain.waitForDevices"] * 4 + ["domain.unpause"]

    def test_a_failure_after_creation_destroys_the_domain(
        self, run: Run, server: FakeServer, config: str
    ) -> None:
        server.answers["xend.domain.waitForDevices"] = Fault(2, "no device")
        server.answers["xend.domain.destroy"] = Fault(2, "it gets worse")
        status, out, err = run("create", "-q", config)
        assert (status, out, err) == (1, "", "Error: no device\n")
        assert server.calls[-1] == ("domain.destroy", "deb")

    def test_refused(self, run: Run, server: FakeServer, config: str) -> None:
        server.answers["xend.domain.create"] = Fault(2, "VM name 'deb' already exists as domain 3")
        assert run("create", "-q", config) == (1, "", "Error: VM name 'deb' already exists as domain 3\n")

    def test_dry_run(self, run: Run, server: FakeServer, config: str) -> None:
        status, out, _ = run("create", "-n", config)
        assert status == 0
        assert "(vm" in out
        assert server.calls == []

    def test_search_path(
        self, run: Run, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run("create", "deb.cfg")[1].startswith('Using config file "./deb.cfg".\n')
        monkeypatch.chdir("/")
        assert run("create", "deb.cfg", f"--path=/nowhere:{tmp_path}")[0] == 0
        assert run("create", f"--defconfig={config}")[0] == 0

    def test_mistake_and_warning(self, run: Run, config: str) -> None:
        with open(config, "a") as file:
            file.write("memry = 1\n")
        assert run("create", "-q", config)[2] == (
            f"Warning: {config}:3: memry: unknown key, ignored; did you mean 'memory'?\n"
        )
        assert run("create", "-q", config, "vcpus=0") == (
            1,
            "",
            "Error: command line: vcpus: must be from 1 to 128\n",
        )

    def test_sxp_file(self, run: Run, server: FakeServer, tmp_path: Path) -> None:
        path = tmp_path / "deb.sxp"
        path.write_text("(vm (name deb) (memory 64))")
        assert run("create", "-F", str(path))[0] == 0
        assert server.calls[0] == ("domain.create", ["vm", ["name", "deb"], ["memory", "64"]])
        for text, part in (
            ("(vm", "line 1, column 4"),
            ("(x)", "must hold one (vm ...)"),
            ("", "must hold one"),
        ):
            path.write_text(text)
            assert part in run("create", "-F", str(path))[2]

    def test_binary_file(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "bzImage"
        path.write_bytes(b"\xff\xfe\x00")
        assert run("create", "-q", str(path)) == (1, "", f"Error: Cannot read file {path}: it is not text\n")

    def test_new(self, run: Run, server: FakeServer, config: str) -> None:
        assert run("new", config) == (0, f'Using config file "{config}".\n', "")
        assert server.calls[0][0] == "domain.new"

    def test_help_config(self, run: Run) -> None:
        status, out, _ = run("create", "--help_config")
        assert status == 0
        assert "\n  on_crash=ACTION  " in out
        described = {word.partition("=")[0] for word, _ in manual.KEYS}
        assert described <= set(config_module.KEYS)
        assert out.endswith("vfb vif2 vscsi vusb\n")


class TestWhere:
    @pytest.mark.parametrize("name", [None, "other", "a.b-c_1"])
    def test_same_rule_as_the_daemons(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None
    ) -> None:
        monkeypatch.delenv("UMXEN_HOST", raising=False)
        for runtime in (str(tmp_path)[:40], None):
            if runtime is None:
                monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
            else:
                monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
            paths = HostPaths.from_environment(name)
            assert where.runtime_dir(where.host_name(name)) == str(paths.runtime)
            assert paths.xend.name == "xend.sock"
            assert paths.console(5) == paths.runtime / "console" / "5.sock"

    @pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 32, "ä"])
    def test_bad_names(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv("UMXEN_HOST", name)
        if not name:
            assert where.host_name(name) == "default"
            return
        with pytest.raises(Failure):
            where.host_name(name)
        with pytest.raises(ValueError, match="host name"):
            HostPaths.from_environment(name)

    def test_host_option(self, run: Run, monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> None:
        uris: list[str] = []

        def make(uri: str) -> FakeServer:
            uris.append(uri)
            return server

        monkeypatch.setattr("toolstack.xm.session.Server", make)
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/r")
        monkeypatch.setenv("UMXEN_HOST", "env")
        assert run("domid", "deb")[0] == 0
        assert run("--host", "b", "domid", "deb")[0] == 0
        assert run("--host=c", "domid", "deb")[0] == 0
        monkeypatch.setenv("XM_SERVER", "https://x:y@h:1")
        assert run("domid", "deb")[0] == 0
        assert uris == [
            "httpu:///r/umxen/env/xend.sock",
            "httpu:///r/umxen/b/xend.sock",
            "httpu:///r/umxen/c/xend.sock",
            "https://x:y@h:1",
        ]
        assert run("--host") == (1, "", "Error: option --host requires argument\n")

    def test_bad_server(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XM_SERVER", "ssh://elsewhere")
        assert cli.main(["list"]) == 1
        assert "is no address of a server" in capsys.readouterr().err


ROOT = Path(__file__).resolve().parents[2]
XM = [sys.executable, "-m", "toolstack.xm"]

HEAVY = (
    "typing re dataclasses inspect argparse getopt http http.client xmlrpc xmlrpc.client email ssl trio"
    " structlog click rich logging json uuid asyncio subprocess difflib urllib pathlib"
).split()


def test_a_process_imports_nothing_heavy() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from toolstack.xm import cli; cli.main(['list'])\n"
        "import toolstack.xm.create, toolstack.xm.console\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*XM, "help"], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_client_module_is_what_the_session_uses() -> None:
    assert client.Server("httpu:///x").local
    assert not client.Server("https://u:p@h:1").local
