"""The XML-RPC interface of a real xend process over a fake host: a table of calls and their replies, seen by
the stdlib's client, by xm's and by plain sockets.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import xmlrpc.client
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyper.public.paths import HostPaths
from toolstack.sxp import child_value
from toolstack.xm.client import Fault, ProtocolError, Server
from toolstack.xmlrpc import MAX_BODY

ROOT = Path(__file__).resolve().parents[2]
FAKE = str(ROOT / "tests/xend_fake.py")


class Xend:
    """A process, and a client of its unix socket."""

    def __init__(self, paths: HostPaths, *options: str) -> None:
        reader, writer = os.pipe()
        self.paths = paths
        self.process = subprocess.Popen(
            [sys.executable, FAKE, "--host", paths.name, "--ready-fd", str(writer), *options],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            pass_fds=[writer],
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writer)
        self.ready = os.read(reader, 2) == b"\n"
        os.close(reader)
        self.server = Server(f"httpu://{paths.xend}")

    def call(self, method: str, *params: Any) -> Any:
        return self.server.call(method, *params)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.server.close()
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def start(host_paths: HostPaths) -> Iterator[Callable[..., Xend]]:
    made: list[Xend] = []

    def start_xend(*options: str) -> Xend:
        made.append(Xend(host_paths, *options))
        return made[-1]

    yield start_xend
    for xend in made:
        if xend.process.poll() is None:
            xend.stop(signal.SIGKILL)


@pytest.fixture
def xend(start: Callable[..., Xend]) -> Xend:
    found = start()
    assert found.ready, found.stop(signal.SIGKILL)
    return found


@pytest.fixture
def config(tmp_path: Path) -> list[Any]:
    kernel = tmp_path / "vmlinuz"
    kernel.write_text("")
    return [
        "vm",
        ["name", "deb"],
        ["memory", 64],
        ["vcpus", 2],
        ["image", ["linux", ["kernel", str(kernel)]]],
    ]


def changed(config: list[Any], **fields: Any) -> list[Any]:
    return [item for item in config if not isinstance(item, list) or item[0] not in fields] + [
        [key, value] for key, value in fields.items()
    ]


def test_the_life_of_a_domain(xend: Xend, config: list[Any]) -> None:
    made = xend.call("xend.domain.create", config)
    assert made[0] == "domain"
    assert [child_value(made, key) for key in ("domid", "name", "state", "status")] == [1, "deb", "--p---", 1]
    assert xend.call("xend.domain.waitForDevices", "deb") is None
    assert xend.call("xend.domain.unpause", "deb") is None
    assert child_value(xend.call("xend.domain", "deb"), "state") == "-b----"
    assert child_value(xend.call("xend.domain", 1), "name") == "deb"
    assert xend.call("xend.domains", 0) == ["Domain-0", "deb"]
    assert [child_value(item, "name") for item in xend.call("xend.domains")] == ["Domain-0", "deb"]
    assert xend.call("xend.domains_with_state", False, "paused", False) == []
    assert xend.call("xend.domain.pause", "deb", True) == 2
    assert xend.call("xend.domain.pause", "deb") is None
    assert xend.call("xend.domains_with_state", False, 1, False) == ["deb"]
    assert xend.call("xend.domain.setpauseflag", "deb", True) is None
    assert xend.call("xend.domain.getpauseflag", "deb") is True
    xend.call("xend.domain.unpause", 1)
    assert xend.call("xend.domain.getRestartCount", "deb") == 0
    assert xend.call("xend.domain.setName", "deb", "web") is None
    assert xend.call("xend.domain.sched_credit_set", "web", 512, None) == 0
    assert xend.call("xend.domain.sched_credit_get", "web") == {"weight": 512, "cap": 0}
    info = xend.call("xend.domain.getVCPUInfo", "web")
    assert info[:4] == ["domain", ["domid", 1], ["name", "web"], ["vcpu_count", 2]]
    assert info[4][:6] == [
        "vcpu",
        ["number", 0],
        ["online", 1],
        ["blocked", 1],
        ["running", 0],
        ["cpu_time", 0.75],
    ]
    assert xend.call("xend.domain.pincpu", "web", "all", "0,1") is None
    xend.call("xend.domain.maxmem_set", "web", 128)
    xend.call("xend.domain.setMemoryTarget", "web", 96)
    xend.call("xend.domain.send_sysrq", "web", "s")
    xend.call("xend.domain.shutdown", "web", "poweroff")
    deadline = time.monotonic() + 10
    while "web" in xend.call("xend.domains_with_state", False, "all", False):
        assert time.monotonic() < deadline
    with pytest.raises(Fault) as caught:
        xend.call("xend.domain", "web")
    assert (caught.value.code, caught.value.text) == (3, "web")


def test_managed_domains(xend: Xend, config: list[Any]) -> None:
    assert xend.call("xend.domain.new", config) is None
    assert child_value(xend.call("xend.domain", "deb"), "domid") is None
    xend.call("xend.domain.start", "deb")
    assert child_value(xend.call("xend.domain", "deb"), "state") == "--p---"
    xend.call("xend.domain.destroy", "deb")
    xend.call("xend.domain.start", "deb", False)
    assert child_value(xend.call("xend.domain", "deb"), "state") == "-b----"
    xend.call("xend.domain.destroy", 2)
    assert xend.call("xend.domains_with_state", False, "halted", False) == ["deb"]
    xend.call("xend.domain.delete", "deb")
    assert xend.call("xend.domains_with_state", False, "all", False) == ["Domain-0"]


DISK = ["vbd", ["uname", "file:/a"], ["dev", "xvda"], ["mode", "w"]]
CARD = ["vif", ["mac", "00:16:3E:00:00:01"]]


def test_devices(xend: Xend, config: list[Any]) -> None:
    made = xend.call("xend.domain.create", [*config, ["device", DISK]])
    (disk,) = (item for item in made if item[0] == "device")
    assert disk[1][0] == "vbd" and child_value(disk[1], "dev") == "xvda:disk"
    assert xend.call("xend.domain.waitForDevices", "deb") is None
    card = xend.call("xend.domain.device_create", "deb", CARD)
    assert [card[0], child_value(card, "mac"), child_value(card, "bridge"), child_value(card, "devid")] == [
        "vif", "00:16:3e:00:00:01", "xenbr0", 0,
    ]  # fmt: skip
    ((devid, facts),) = xend.call("xend.domain.getDeviceSxprs", "deb", "vif")
    assert devid == 0
    assert facts == [
        ["backend", "/local/domain/0/backend/vif/1/0"], ["backend-id", "0"], ["event-channel", "9"],
        ["handle", "0"], ["mac", "00:16:3e:00:00:01"], ["mtu", "1500"], ["ring-ref", "8"], ["state", "4"],
    ]  # fmt: skip
    assert xend.call("xend.domain.getDeviceSxprs", "deb", "tap")[0][0] == 51712
    for name in ("xvda", "51712", 51712, "0xca00"):
        assert xend.call("xend.domain.getBlockDeviceClass", "deb", name) == "vbd"
    assert xend.call("xend.domain.getBlockDeviceClass", "deb", "xvdb") is None
    cdrom = ["vbd", ["uname", "file:/1.iso"], ["dev", "xvdd:cdrom"], ["mode", "r"]]
    xend.call("xend.domain.device_create", "deb", ["device", cdrom])
    cdrom[1] = ["uname", ""]
    assert xend.call("xend.domain.device_configure", "deb", cdrom) is None
    assert xend.call("xend.domain.device_configure", "deb", cdrom, 51760) is None
    described = xend.call("xend.domain", "deb")
    assert child_value([item[1] for item in described if item[0] == "device"][2], "uname") == ""
    assert xend.call("xend.domain.destroyDevice", "deb", "vbd", "xvdd", None, True) is None
    assert xend.call("xend.domain.destroyDevice", "deb", "tap2", 51712, "-f", True) is None
    assert xend.call("xend.domain.destroyDevice", 1, "vif", "00:16:3e:00:00:01") is None
    assert xend.call("xend.domain.getDeviceSxprs", "deb", "vbd") == []
    assert [item[1][0] for item in xend.call("xend.domain", "deb") if item[0] == "device"] == ["vif"]
    for call, code, text in [
        (("destroyDevice", "deb", "vbd", "xvda"), 2, "Device xvda not connected"),
        (("destroyDevice", "deb", "pci", "0"), 2, "PCI pass-through is not built yet"),
        (("destroyDevice", "deb", "pump", "0"), 2, "devices of class pump are not built yet"),
        (("device_resize", "deb", "xvda"), 2, "Device xvda not connected"),
        (("device_configure", "deb", DISK), 2, "Device xvda not connected"),
        (("device_create", "deb", ["vif", ["mac", "1"]]), 2,
         "Invalid network interface: '1' is no MAC address such as 00:16:3e:12:34:56"),
        (("device_create", "deb", []), 2, "devices of class None are not built yet"),
        (("device_create", "deb", [["vbd"]]), 2, "devices of class None are not built yet"),
        (("device_create", 0, DISK), 2, "Cannot attach a device to privileged domain 0"),
        (("getDeviceSxprs", "nobody", "vif"), 3, "nobody"),
        (("getDeviceSxprs", "deb", "vfb"), 2, "virtual framebuffers are not built yet"),
        (("getBlockDeviceClass", "nobody", "xvda"), 3, "nobody"),
        (("waitForDevices", "nobody"), 3, "nobody"),
    ]:  # fmt: skip
        with pytest.raises(Fault) as caught:
            xend.call(f"xend.domain.{call[0]}", *call[1:])
        assert (caught.value.code, caught.value.text) == (code, text), call
    xend.call("xend.domain.destroy", "deb")


def test_the_node(xend: Xend) -> None:
    pairs = xend.call("xend.node.info")
    assert [pair[0] for pair in pairs] == (
        "system host release version machine nr_cpus nr_nodes cores_per_socket threads_per_core cpu_mhz"
        " hw_caps virt_caps total_memory free_memory free_cpus cpu_topology numa_info xen_major xen_minor"
        " xen_extra xen_caps xen_scheduler xen_pagesize platform_params xen_changeset xen_commandline"
        " cc_compiler cc_compile_by cc_compile_domain cc_compile_date xend_config_format"
    ).split()
    facts = {pair[0]: pair[1] for pair in pairs}
    assert (facts["nr_cpus"], facts["total_memory"], facts["xen_major"]) == (4, 1024, 4)
    assert "numa_info" not in [pair[0] for pair in xend.call("xend.node.info", 0)]
    assert xend.call("xend.node.dmesg.info") == "(XEN) hello\n"
    assert xend.call("xend.node.dmesg.clear") == "(XEN) hello\n"
    assert xend.call("xend.node.dmesg.info") == ""
    assert xend.call("xend.node.send_debug_keys", "h") is None
    (xend.paths.logs / "xend.log").write_text("x" * 300_000 + "\nlast \x1b[0m line\n")
    assert xend.call("xend.node.log") == "last \x1b[0m line\n"


def test_introspection(xend: Xend) -> None:
    names = xend.call("system.listMethods")
    assert "xend.domain.create" in names
    assert names == sorted(names)
    for name in names:
        assert xend.call("system.methodHelp", name).endswith(".")
        ((result, *_),) = xend.call("system.methodSignature", name)
        assert result in ("array", "int", "nil", "string", "struct", "boolean")
    assert xend.call("system.methodSignature", "xend.domain.pause") == [["int", "string", "boolean"]]


FAULTS = [
    (("xend.domain", "nobody"), 3, "nobody"),
    (("xend.domain.pause", 99), 3, "99"),
    (("xend.domain.destroy", "Domain-0"), 2, "Cannot destroy privileged domain Domain-0"),
    (("xend.domain.shutdown", 0, "halt"), 2, "Cannot shut down privileged domain 0"),
    (("xend.domain.save", "x", "/f"), 2, "xend.domain.save is not built yet"),
    (("xend.domain.device_create", "x", []), 3, "x"),
    (("xend.security.get_policy",), 2, "xend.security.get_policy is not built yet"),
    (("xend.cpu_pool.list",), 2, "xend.cpu_pool.list is not built yet"),
    (("xend.node.pciinfo",), 2, "xend.node.pciinfo is not built yet"),
    (("xend.nothing",), 1, 'method "xend.nothing" is not supported'),
    (("__class__",), 1, 'method "__class__" is not supported'),
    (("xend.domain",), 2, "xend.domain takes 1 to 2 arguments, not 0"),
    (("xend.domain.destroy", "a", "b"), 2, "xend.domain.destroy takes 1 arguments, not 2"),
    (("xend.domain", ["x"]), 2, "xend.domain: domain must be a name or an id"),
    (("xend.domain", True), 2, "xend.domain: domain must be a name or an id"),
    (("xend.domain", None), 2, "xend.domain: domain must be a name or an id"),
    (("xend.domain.create", "x"), 2, "xend.domain.create: config must be an s-expression as an array"),
    (("xend.domain.create", []), 2, "Invalid Configuration: it must be a (vm ...)"),
    (("xend.domain.create", ["vm", ["name", "x"]]), 2, "Invalid Configuration: image must be (linux ...)"),
    (("xend.domain.setMemoryTarget", 0, "x"), 2, "xend.domain.setMemoryTarget: mebibytes must be a number"),
    (("xend.domains_with_state", True, "asleep", False), 2, "there is no state 'asleep'"),
    (("xend.node.send_debug_keys", "\n"), 2, "debug keys are letters and digits"),
    (("xend.node.send_debug_keys", ""), 2, "debug keys are letters and digits"),
    (("system.methodHelp", "x"), 1, 'method "x" is not supported'),
]  # fmt: skip


def test_faults(xend: Xend) -> None:
    for call, code, text in FAULTS:
        with pytest.raises(Fault) as caught:
            xend.call(*call)
        assert (caught.value.code, caught.value.text) == (code, text), call
    assert xend.call("xend.domains", 0) == ["Domain-0"]


def test_refused_creations_leave_nothing(xend: Xend, config: list[Any]) -> None:
    before = xend.call("xend.node.info", 0)
    for fields, text in [
        ({"memory": 4096}, "Not enough free memory: 'deb' needs 4096 MiB, 768 MiB are free"),
        (
            {"image": ["linux", ["kernel", "/nowhere"]]},
            "/nowhere: cannot be opened: No such file or directory",
        ),
        ({"name": "Domain-0"}, "VM name 'Domain-0' already exists as domain 0"),
        ({"cpus": "99"}, "vCPU 0 may only run on CPUs that do not exist"),
        ({"device": ["vfb"]}, "virtual framebuffers are not built yet"),
    ]:
        with pytest.raises(Fault) as caught:
            xend.call("xend.domain.create", changed(config, **fields))
        assert (caught.value.code, caught.value.text) == (2, text)
    assert xend.call("xend.domains_with_state", False, "all", False) == ["Domain-0"]
    assert xend.call("xend.node.info", 0) == before


# ---- the wire


def exchange(paths: HostPaths, data: bytes) -> bytes:
    """Sends bytes and reads until the server closes or has been silent for a moment."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(paths.xend))
        reply = b""
        try:
            sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        sock.settimeout(0.5)
        try:
            while more := sock.recv(65536):
                reply += more
        except (TimeoutError, ConnectionResetError):
            pass
        return reply


def post(body: bytes, headers: str = "", path: str = "/RPC2", method: str = "POST") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n".encode()
        + body
    )


LIST = xmlrpc.client.dumps((), "xend.domains").encode()
BOMB = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><methodCall>&c;</methodCall>'
EXTERNAL = b'<?xml version="1.0"?><!DOCTYPE a SYSTEM "file:///etc/passwd"><methodCall/>'
DEEP = b"<methodCall><methodName>x</methodName><params><param>" + b"<value><array><data>" * 20000


@pytest.mark.parametrize(
    ("data", "status", "part"),
    [
        (post(LIST), 200, b"Domain-0"),
        (post(b""), 200, b"is not XML-RPC"),
        (post(b"x" * 100), 200, b"is not XML-RPC"),
        (post(LIST[:-5]), 200, b"is not XML-RPC"),
        (post(BOMB), 200, b"declares a document type"),
        (post(EXTERNAL), 200, b"declares a document type"),
        (post(DEEP), 200, b"nested too deeply"),
        (post(LIST, path="/"), 404, b""),
        (post(LIST, method="PUT"), 405, b""),
        (post(b"", method="GET"), 405, b""),
        (post(LIST, "Content-Encoding: gzip\r\n"), 415, b"must not be compressed"),
        (post(b"x" * (MAX_BODY + 1)), 413, b"must not be longer"),
        (b"garbage\r\n\r\n", 400, b""),
    ],
)
def test_any_bytes_get_an_answer(xend: Xend, data: bytes, status: int, part: bytes) -> None:
    reply = exchange(xend.paths, data)
    assert reply.startswith(b"HTTP/1.1 %d " % status), reply[:200]
    assert part in reply
    assert xend.call("xend.domains", 0) == ["Domain-0"]


def test_a_body_without_end_is_cut_off(xend: Xend) -> None:
    head = b"POST /RPC2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    assert exchange(xend.paths, head + chunk * 17).startswith(b"HTTP/1.1 413 ")
    assert exchange(xend.paths, post(b"")[:-4] + b"Content-Length: 99999999999\r\n\r\n") is not None
    assert xend.call("xend.domains", 0) == ["Domain-0"]


def test_clients_that_hang_up_or_dawdle_hold_nobody(xend: Xend) -> None:
    socks = []
    for data in (b"", b"POST", post(LIST)[:-10], post(LIST)):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(xend.paths.xend))
        sock.sendall(data)
        socks.append(sock)
    assert xend.call("xend.domains", 0) == ["Domain-0"]
    for sock in socks:
        sock.close()
    assert xend.call("xend.domains", 0) == ["Domain-0"]
    assert xend.stop()[0] == 0


def test_many_that_hang_up_end_nothing(xend: Xend) -> None:
    # hypercorn let an error of one connection end the server: a client that hung up in the middle of its
    # body while another reply was being sent killed xend, in about one run of five.
    for _ in range(100):
        for data in (b"", b"POST", post(LIST)[:-10], post(LIST)):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(xend.paths.xend))
                sock.sendall(data)
    assert xend.call("xend.domains", 0) == ["Domain-0"]


def test_only_we_may_open_the_socket(xend: Xend) -> None:
    assert stat.S_IMODE(xend.paths.xend.stat().st_mode) == 0o600
    assert not xend.paths.xend.with_suffix(".lock").exists()


def test_bare_strings_are_escaped(xend: Xend) -> None:
    reply = exchange(xend.paths, post(xmlrpc.client.dumps((), "xend.node.dmesg.info").encode()))
    assert rb"<string>(XEN) hello\n</string>" in reply


def test_the_stdlib_client(xend: Xend) -> None:
    class Unix(xmlrpc.client.Transport):
        def make_connection(self, host: Any) -> http.client.HTTPConnection:
            connection = http.client.HTTPConnection("localhost")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(xend.paths.xend))
            return connection

    proxy = xmlrpc.client.ServerProxy("http://localhost", transport=Unix(), allow_none=True)
    assert proxy.xend.domains(False) == ["Domain-0"]
    with pytest.raises(xmlrpc.client.Fault) as caught:
        proxy.xend.domain("x")
    assert (caught.value.faultCode, caught.value.faultString) == (3, "x")


# ---- its process


def test_it_ends_cleanly_and_remembers(start: Callable[..., Xend], config: list[Any]) -> None:
    xend = start()
    xend.call("xend.domain.new", config)
    status, errors = xend.stop()
    assert status == 0, errors
    assert not xend.paths.xend.exists()
    again = start()
    assert again.call("xend.domains_with_state", False, "halted", False) == ["deb"]
    again.stop(signal.SIGKILL)
    assert again.paths.xend.exists()
    third = start()
    assert third.call("xend.domains_with_state", False, "halted", False) == ["deb"]
    assert third.stop()[0] == 0


def test_a_client_that_takes_no_reply_does_not_keep_it_from_ending(xend: Xend) -> None:
    (xend.paths.logs / "xend.log").write_text("x\n" * 140_000)
    sock = socket.socket(socket.AF_UNIX)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(str(xend.paths.xend))
    for _ in range(20):
        sock.sendall(post(xmlrpc.client.dumps((), "xend.node.log").encode()))
    time.sleep(0.5)
    began = time.monotonic()
    assert xend.stop()[0] == 0
    assert time.monotonic() - began < 12
    sock.close()


# ---- TCP


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, Path]:
    cert, key, password = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "password"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    password.write_text("correct horse\n")
    for path in (key, password):
        path.chmod(0o600)
    return {"cert": cert, "key": key, "password-file": password}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_tcp_needs_tls_and_the_password(
    start: Callable[..., Xend], secrets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    options = [word for name, path in secrets.items() for word in (f"--{name}", str(path))]
    xend = start("--listen", f"127.0.0.1:{port}", *options)
    assert xend.ready
    monkeypatch.setenv("SSL_CERT_FILE", str(secrets["cert"]))
    assert Server(f"https://me:correct%20horse@localhost:{port}").call("xend.domains", 0) == ["Domain-0"]
    for account in ("me:wrong@", ""):
        with pytest.raises(ProtocolError, match="refuses the user name or password"):
            Server(f"https://{account}localhost:{port}").call("xend.domains", 0)
    context = ssl.create_default_context()
    connection = http.client.HTTPSConnection("localhost", port, context=context)
    for header in ("Bearer x", "Basic !!!", "Basic " + b64encode(b"\xff:\xff").decode()):
        connection.request("POST", "/RPC2", LIST, {"Authorization": header})
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 401
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.sendall(post(LIST))
        plain.settimeout(5)
        try:
            assert b"Domain-0" not in plain.recv(1000)
        except ConnectionResetError:
            pass
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    with pytest.raises(ssl.SSLCertVerificationError):
        Server(f"https://me:correct%20horse@localhost:{port}").call("xend.domains", 0)
    assert xend.stop()[0] == 0


def test_tcp_without_all_of_it_is_refused(start: Callable[..., Xend], secrets: dict[str, Path]) -> None:
    def refused(**changes: str | None) -> str:
        given: dict[str, str | None] = {
            "listen": "127.0.0.1:1",
            **{name: str(path) for name, path in secrets.items()},
        }
        given |= {name.replace("_", "-"): value for name, value in changes.items()}
        xend = start(*(word for name, value in given.items() if value for word in (f"--{name}", value)))
        assert not xend.ready
        status, errors = xend.process.wait(20), xend.process.stderr.read() if xend.process.stderr else ""
        assert status != 0
        return errors

    for name in ("listen", "cert", "key", "password_file"):
        assert "the network is served with TLS and a password only" in refused(**{name: None})
    secrets["key"].chmod(0o640)
    assert "may be read by others; chmod 600 it" in refused()
    secrets["key"].chmod(0o600)
    secrets["password-file"].write_text("short")
    assert "at least 8 characters" in refused()
    assert "No such file" in refused(password_file="/nowhere")
