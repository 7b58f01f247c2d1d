"""Frames of the control socket: one msgpack map per SEQPACKET packet, file descriptors beside it by
SCM_RIGHTS.

Any bytes decode to a Request or raise WireError, nothing else. Requests are answered in order, one in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack

VERSION = 1
MAX_FRAME = 4096
"""Bytes of one packet."""
MAX_FDS = 2
"""Descriptors beside one packet."""
MAX_NAME = 128
"""Bytes of a name in the fd store."""
MAX_HYPERCALL_ARGS = 6

_U64 = 1 << 64


class WireError(ValueError):
    """The peer sent what is not a frame. Its text may be shown to the peer."""


@dataclass(frozen=True)
class Hello:
    """Must come first. Reply to Dom0: domid, bank_bytes, max_mfn (of any bank, exclusive); the main bank's
    memfd. To a process domain: domid, process, a map of what it finds at its start (struct hv_process); its
    bank's memfd.
    """

    nr_fds: ClassVar[int] = 0
    version: int


@dataclass(frozen=True)
class Arena:
    """Registers the sealed memfd beside it, once; guest handles are offsets in its first `bytes` bytes."""

    nr_fds: ClassVar[int] = 1
    bytes: int


@dataclass(frozen=True)
class MakeArena:
    """The same, but hyper makes the memfd. Reply: the memfd. The only way for process domains but Dom0."""

    nr_fds: ClassVar[int] = 0
    bytes: int


@dataclass(frozen=True)
class Hypercall:
    """Reply: the core's result, never -ERESTART."""

    nr_fds: ClassVar[int] = 0
    nr: int
    args: tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """Reply: the upcall (readable when pending: an eventfd, or for a process domain but Dom0 a stream socket)
    and the doorbell eventfd of a port this connection bound.
    """

    nr_fds: ClassVar[int] = 0
    port: int


@dataclass(frozen=True)
class Ring:
    """Opens a hypercall ring (hcall_ring.h). Reply: the ring's memfd, and our half of its doorbell socket.

    Closing that half ends the ring.
    """

    nr_fds: ClassVar[int] = 0


@dataclass(frozen=True)
class Adopt:
    """Dom0: makes an empty, paused PV domain a process domain with a bank of so many bytes. Reply: process,
    as in Hello; the connected socket that is the domain.
    """

    nr_fds: ClassVar[int] = 0
    domid: int
    bank_bytes: int


@dataclass(frozen=True)
class Bank:
    """Dom0: reply: process, as in Hello; the memfd of the domain's own bank. -ENOENT: it lives in the main
    bank.
    """

    nr_fds: ClassVar[int] = 0
    domid: int


@dataclass(frozen=True)
class FdPut:
    """Keeps the fd beside it under `name`, replacing what was there."""

    nr_fds: ClassVar[int] = 1
    name: str


@dataclass(frozen=True)
class FdGet:
    """Reply: the fd, or -ENOENT."""

    nr_fds: ClassVar[int] = 0
    name: str


@dataclass(frozen=True)
class FdDel:
    """Reply: 0, or -ENOENT."""

    nr_fds: ClassVar[int] = 0
    name: str


@dataclass(frozen=True)
class Statistics:
    """Reply: statistics, a map of counters."""

    nr_fds: ClassVar[int] = 0


@dataclass(frozen=True)
class EngineStatistics:
    """Reply: domid, of the first guest not below `domid`, and statistics, its CPU engine's; or -ESRCH."""

    nr_fds: ClassVar[int] = 0
    domid: int


Request = (
    Hello | Arena | MakeArena | Hypercall | Port | Ring | Adopt | Bank | FdPut | FdGet | FdDel | Statistics
    | EngineStatistics
)

_Fields = Mapping[str, Any]


def _number(fields: _Fields, key: str, limit: int = _U64) -> int:
    value = fields[key]
    if type(value) is not int or not 0 <= value < limit:
        raise WireError(f"{key}: want an integer from 0 to {limit - 1}")
    return value


def _name(fields: _Fields) -> str:
    value = fields["name"]
    if type(value) is not str or not 0 < len(value.encode(errors="replace")) <= MAX_NAME:
        raise WireError(f"name: want a string of 1 to {MAX_NAME} bytes")
    return value


def _args(fields: _Fields) -> tuple[int, ...]:
    values = fields["args"]
    if type(values) is not list or len(values) > MAX_HYPERCALL_ARGS:
        raise WireError(f"args: want a list of at most {MAX_HYPERCALL_ARGS} integers")
    return tuple(_number({"args": value}, "args") for value in values)


# op -> (its fields, how to read them)
_OPS: dict[str, tuple[set[str], Callable[[_Fields], Request]]] = {
    "hello": ({"version"}, lambda f: Hello(_number(f, "version"))),
    "arena": ({"bytes"}, lambda f: Arena(_number(f, "bytes"))),
    "make_arena": ({"bytes"}, lambda f: MakeArena(_number(f, "bytes"))),
    "hypercall": ({"nr", "args"}, lambda f: Hypercall(_number(f, "nr"), _args(f))),
    "port": ({"port"}, lambda f: Port(_number(f, "port", 1 << 32))),
    "ring": (set(), lambda f: Ring()),
    "adopt": (
        {"domid", "bank_bytes"},
        lambda f: Adopt(_number(f, "domid", 1 << 16), _number(f, "bank_bytes")),
    ),
    "bank": ({"domid"}, lambda f: Bank(_number(f, "domid", 1 << 16))),
    "fd_put": ({"name"}, lambda f: FdPut(_name(f))),
    "fd_get": ({"name"}, lambda f: FdGet(_name(f))),
    "fd_del": ({"name"}, lambda f: FdDel(_name(f))),
    "statistics": (set(), lambda f: Statistics()),
    "engine_statistics": ({"domid"}, lambda f: EngineStatistics(_number(f, "domid", 1 << 16))),
}
_OP_OF: dict[type, str] = {
    Hello: "hello", Arena: "arena", MakeArena: "make_arena", Hypercall: "hypercall", Port: "port",
    Ring: "ring", Adopt: "adopt", Bank: "bank",
    FdPut: "fd_put", FdGet: "fd_get", FdDel: "fd_del", Statistics: "statistics",
    EngineStatistics: "engine_statistics",
}  # fmt: skip


def encode_request(request: Request) -> bytes:
    """Raises: WireError when the frame would be too big."""
    return _pack({"op": _OP_OF[type(request)], **vars(request)})


def decode_request(packet: bytes, nr_fds: int = 0) -> Request:
    """Raises: WireError for anything but one known request with exactly its fields and descriptors."""
    fields = _unpack(packet)
    op = fields.pop("op", None)
    if type(op) is not str or op not in _OPS:
        raise WireError("op: unknown operation")
    wanted, read = _OPS[op]
    if set(fields) != wanted:
        raise WireError(f"{op}: want the fields {sorted(wanted)}")
    request = read(fields)
    if request.nr_fds != nr_fds:
        raise WireError(f"{op}: want {request.nr_fds} file descriptors, got {nr_fds}")
    return request


def encode_reply(ret: int, **fields: Any) -> bytes:
    """Raises: WireError when the frame would be too big."""
    return _pack({"ret": ret, **fields})


def encode_error(text: str) -> bytes:
    """The last frame of a connection: why the other side is refused."""
    return _pack({"error": text[:1000]})


def decode_reply(packet: bytes) -> dict[str, Any]:
    """A map with an integer `ret`, or with a string `error`.

    Raises: WireError.
    """
    fields = _unpack(packet)
    if type(fields.get("ret")) is not int and type(fields.get("error")) is not str:
        raise WireError("a reply has `ret` or `error`")
    return fields


def _pack(fields: dict[str, Any]) -> bytes:
    packet: bytes = msgpack.packb(fields)
    if len(packet) > MAX_FRAME:
        raise WireError(f"frame of {len(packet)} bytes: at most {MAX_FRAME}")
    return packet


def _unpack(packet: bytes) -> dict[str, Any]:
    if len(packet) > MAX_FRAME:
        raise WireError(f"frame too long: at most {MAX_FRAME} bytes")
    try:
        fields = msgpack.unpackb(packet)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError("frame is not msgpack") from error
    if type(fields) is not dict or not all(type(key) is str for key in fields):
        raise WireError("frame is not a map with string keys")
    return fields
