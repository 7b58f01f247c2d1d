"""XML-RPC over HTTP, by hypercorn and starlette: on a unix socket, and over TCP with TLS and a password."""

from __future__ import annotations

import hashlib
import hmac
import socket
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, Framework
from hypercorn.utils import wrap_app
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from toolstack.xend import codec
from toolstack.xend.errors import XendError
from toolstack.xend.rpc import Rpc
from toolstack.xmlrpc import FAULT_INTERNAL, MAX_BODY

log = structlog.get_logger("xend")


@dataclass(frozen=True)
class Network:
    """Where to listen on TCP. Only ever with all of it."""

    address: str
    certificate: Path
    key: Path
    password: str


async def answer(rpc: Rpc, body: bytes) -> bytes:
    """The reply to any body. Raises nothing but cancellation."""
    method = "?"
    try:
        method, params = codec.parse_call(body)
        return codec.dump_result(await rpc.dispatch(method, params))
    except XendError as error:
        log.info("request refused", method=method, fault=error.fault, reason=str(error))
        return codec.dump_fault(error.fault, str(error))
    except Exception as error:
        log.exception("request failed", method=method)
        return codec.dump_fault(FAULT_INTERNAL, f"internal error: {type(error).__name__}: {error}")


async def _read_body(request: Request) -> bytes | None:
    """The body, None when it is too long; nothing beyond the limit is kept."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return bytes(body)


def application(rpc: Rpc, password: str | None) -> Starlette:
    """The HTTP side. `password` None lets everybody in."""

    async def endpoint(request: Request) -> Response:
        if password is not None and not _knows(request.headers.get("authorization", ""), password):
            await trio.sleep(1)
            return PlainTextResponse(
                "the password is missing or wrong\n", 401, {"WWW-Authenticate": 'Basic realm="xend"'}
            )
        if request.headers.get("content-encoding", "identity") != "identity":
            return PlainTextResponse("requests must not be compressed\n", 415)
        try:
            body = await _read_body(request)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            text = f"requests must not be longer than {MAX_BODY} bytes\n"
            return PlainTextResponse(text, 413, {"Connection": "close"})
        return Response(await answer(rpc, body), media_type="text/xml")

    return Starlette(routes=[Route("/RPC2", endpoint, methods=["POST"])])


def _knows(header: str, password: str) -> bool:
    """Whether a Basic Authorization header has the password, under any user name. In constant time."""
    scheme, _, encoded = header.partition(" ")
    try:
        account = b64decode(encoded, validate=True).decode() if scheme.lower() == "basic" else ""
    except ValueError:
        account = ""
    given, wanted = (hashlib.sha256(text.encode()).digest() for text in (account.partition(":")[2], password))
    return hmac.compare_digest(given, wanted)


def _config() -> Config:
    config = Config()
    config.loglevel = "WARNING"
    config.alpn_protocols = ["http/1.1"]
    config.include_server_header = False
    return config


def _listeners(config: Config) -> list[trio.abc.Listener[Any]]:
    sockets = config.create_sockets()
    found: list[trio.abc.Listener[Any]] = [_listener(sock, config) for sock in sockets.insecure_sockets]
    if tls := config.create_ssl_context():
        for sock in sockets.secure_sockets:
            found.append(trio.SSLListener(_listener(sock, config), tls, https_compatible=True))
    return found


def _listener(sock: socket.socket, config: Config) -> trio.SocketListener:
    sock.listen(config.backlog)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def _serve(
    rpc: Rpc, password: str | None, config: Config, task_status: trio.TaskStatus[list[Any]]
) -> None:
    """hypercorn's connections under listeners of ours.

    Under hypercorn's own (0.18) an error in one connection ends the server: it was enough to hang up in the
    middle of a body while another reply was still being sent.
    """
    app = wrap_app(cast(Framework, application(rpc, password)), config.wsgi_max_body_size, "asgi")
    context = WorkerContext(None)

    async def connection(stream: Any) -> None:
        try:
            await TCPServer(app, config, context, ConnectionState({}), stream)
        except Exception as error:
            log.warning("a connection ended in an error", reason=repr(error))

    await trio.serve_listeners(connection, _listeners(config), task_status=task_status)


async def serve_unix(
    rpc: Rpc, path: Path, *, task_status: trio.TaskStatus[list[Any]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serves on a unix socket that only our own user may open, until it is cancelled."""
    config = _config()
    config.bind = [f"unix:{path}"]
    config.umask = 0o177
    try:
        await _serve(rpc, None, config, task_status)
    finally:
        _unlink(path)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


async def serve_network(
    rpc: Rpc, network: Network, *, task_status: trio.TaskStatus[list[Any]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serves on TCP, with TLS, to those who know the password, until it is cancelled."""
    config = _config()
    config.bind = [network.address]
    config.certfile, config.keyfile = str(network.certificate), str(network.key)
    await _serve(rpc, network.password, config, task_status)
