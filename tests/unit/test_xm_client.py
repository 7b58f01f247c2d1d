"""The XML-RPC client of xm against the stdlib's marshalling and against servers that misbehave."""

from __future__ import annotations

import socket
import threading
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolstack.xm import client
from toolstack.xm.client import Fault, ProtocolError, Server
from toolstack.xmlrpc import escape_result, unescape_result

# XML turns a bare \r into \n, which the stdlib's marshalling does not prevent.
text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(1 << 31), (1 << 31) - 1) | text
scalars |= st.floats(allow_nan=False, allow_infinity=False)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3),
    max_leaves=20,
)


@given(st.lists(trees, max_size=3))
def test_calls_are_read_by_the_stdlib(params: list[Any]) -> None:
    found, method = xmlrpc.client.loads(client.dump_call("a.b", tuple(params)))
    assert (list(found), method) == (params, "a.b")


@given(trees)
def test_replies_of_the_stdlib_are_read(value: Any) -> None:
    body = xmlrpc.client.dumps((value,), methodresponse=True, allow_none=True).encode()
    if not isinstance(value, str):
        assert client.load_reply(body) == value


@given(st.text())
def test_bare_strings_travel_escaped(value: str) -> None:
    escaped = escape_result(value)
    assert unescape_result(escaped) == value
    body = xmlrpc.client.dumps((escaped,), methodresponse=True).encode()
    assert client.load_reply(body) == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_older_servers_repr_is_understood(value: str) -> None:
    assert unescape_result(repr(value)[1:-1]) == value


@given(st.text(alphabet="\\xuU0178'\"nrtab"))
def test_any_escapes_are_decoded_somehow(value: str) -> None:
    unescape_result(value)


def test_faults_and_large_numbers() -> None:
    body = xmlrpc.client.dumps(xmlrpc.client.Fault(3, "x & y")).encode()
    with pytest.raises(Fault) as caught:
        client.load_reply(body)
    assert (caught.value.code, caught.value.text) == (3, "x & y")
    assert xmlrpc.client.loads(client.dump_call("m", (1 << 40,)))[0] == (str(1 << 40),)
    with pytest.raises(ValueError, match="cannot be sent"):
        client.dump_call("m", ("\x00",))
    with pytest.raises(TypeError):
        client.dump_call("m", (object(),))


BOMB = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><methodResponse>&a;</methodResponse>'


@pytest.mark.parametrize(
    "body",
    [b"", b"x", b"<a/>", b"<methodResponse><params/></methodResponse>", BOMB,
     b"<methodResponse><fault><value><string>x</string></value></fault></methodResponse>",
     b"<m><value><int>x</int></value></m>", b"<m><data><value>x</value></data></m><m/>"],
)  # fmt: skip
def test_nonsense_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        client.load_reply(body)


OK = xmlrpc.client.dumps((7,), methodresponse=True).encode()


class Listener:
    """A unix socket whose connections are served by `serve`, one after the other."""

    def __init__(self, path: Path, serve: Callable[[socket.socket], None]) -> None:
        self.path = path
        self.connections = 0
        self._serve = serve
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                conn, _ = self._sock.accept()
            except OSError:
                return
            self.connections += 1
            with conn:
                self._serve(conn)

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join()


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], Listener]]:
    made: list[Listener] = []

    def start(serve: Callable[[socket.socket], None]) -> Listener:
        made.append(Listener(tmp_path / f"s{len(made)}", serve))
        return made[-1]

    yield start
    for listener in made:
        listener.close()


def read_request(conn: socket.socket) -> bytes:
    data = b""
    while b"</methodCall>" not in data:
        more = conn.recv(65536)
        if not more:
            return b""
        data += more
    return data


def reply(body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def test_one_connection_serves_many_calls(listen: Any) -> None:
    def serve(conn: socket.socket) -> None:
        while read_request(conn):
            for byte in reply(OK):
                conn.sendall(bytes([byte]))

    listener = listen(serve)
    server = Server(f"httpu://{listener.path}")
    assert [server.call("m") for _ in range(3)] == [7, 7, 7]
    assert listener.connections == 1
    server.close()


def test_a_connection_closed_while_idle_is_made_again(listen: Any) -> None:
    def serve(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(reply(OK))

    listener = listen(serve)
    server = Server(f"httpu://{listener.path}")
    assert [server.call("m"), server.call("m")] == [7, 7]
    assert listener.connections == 2


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (b"", "closed before a reply"),
        (b"HTTP/1.1 200 OK\r\n", "closed before a reply"),
        (b"nonsense\r\n\r\n", "not HTTP"),
        (reply(OK)[:-1], "closed in the middle of a reply"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "not HTTP"),
        (reply(b"go away", "503 Busy"), "the server answers 503 go away"),
        (reply(b"", "401 Unauthorized"), "refuses the user name or password"),
        (reply(b"<a/>"), "not XML-RPC"),
    ],
)
def test_servers_that_misbehave(listen: Any, answer: bytes, part: str) -> None:
    def serve(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(answer)

    server = Server(f"httpu://{listen(serve).path}")
    with pytest.raises(ProtocolError, match=part):
        server.call("m")


def test_a_reply_without_a_length_ends_with_the_connection(listen: Any) -> None:
    def serve(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + OK)

    assert Server(f"httpu://{listen(serve).path}").call("m") == 7


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Server(f"httpu://{tmp_path}/absent").call("m")


@pytest.mark.parametrize("uri", ["", "x", "ssh://host", "httpu://", "ftp://h/"])
def test_addresses_that_are_none(uri: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        Server(uri)


def test_addresses() -> None:
    server = Server("https://us%40er:p%3Aw@example.org:9000/RPC2")
    assert (server.host, server.port, server.local) == ("example.org", 9000, False)
    assert "Authorization: Basic dXNAZXI6cDp3\r\n" in server.head
    assert Server("http://[::1]").host == "::1"
    assert (Server("http://h").port, Server("https://h").port) == (8006, 443)


def test_waiting_counts_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    waiting = client.Waiting("Creating x")
    waiting.done()
    waiting.tick()
    waiting.tick()
    waiting.done()
    assert capsys.readouterr().err == "\rCreating x ... 1 s\x1b[K\rCreating x ... 2 s\x1b[K\r\x1b[K"
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    waiting = client.Waiting("Creating x")
    waiting.tick()
    waiting.done()
    assert capsys.readouterr().err == ""
