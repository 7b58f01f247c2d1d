"""NBD's handshake, as a client. The transmission phase is C's (nbd.c)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

import trio

_GREETING = struct.Struct(">QQH")
_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")
_NBDMAGIC, _IHAVEOPT, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO, _REP_ACK, _REP_INFO, _INFO_EXPORT, _INFO_BLOCK_SIZE = 7, 1, 3, 0, 3
_FLAG_READ_ONLY, _FLAG_SEND_TRIM = 1 << 1, 1 << 5
_MAX_REPLY = 4096


class NbdError(Exception):
    """The server refused us, or does not speak NBD."""


@dataclass(frozen=True)
class Export:
    """What a server says of an export."""

    nbytes: int
    read_only: bool
    can_trim: bool
    block_bytes: int
    """Offsets and lengths should be multiples of it."""


async def connect(path: str, name: str) -> tuple[int, Export]:
    """A socket at the beginning of the transmission phase, non-blocking and the caller's to close.

    Raises: OSError; NbdError.
    """
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with sock:
        await sock.connect(path)
        export = await _negotiate(trio.SocketStream(sock), name)
        return sock.detach(), export


async def _negotiate(stream: trio.SocketStream, name: str) -> Export:
    magic, opt_magic, flags = _GREETING.unpack(await _receive(stream, _GREETING.size))
    if (magic, opt_magic) != (_NBDMAGIC, _IHAVEOPT) or not flags & _FIXED_NEWSTYLE:
        raise NbdError("the server does not speak NBD's fixed newstyle")
    wanted = name.encode()
    data = struct.pack(f">I{len(wanted)}sHH", len(wanted), wanted, 1, _INFO_BLOCK_SIZE)
    client_flags = struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES))
    await stream.send_all(client_flags + _OPTION.pack(_IHAVEOPT, _OPT_GO, len(data)) + data)
    nbytes, flags, block_bytes = None, 0, 512
    while True:
        magic, option, kind, length = _REPLY.unpack(await _receive(stream, _REPLY.size))
        if magic != _REPLY_MAGIC or option != _OPT_GO or length > _MAX_REPLY:
            raise NbdError("an answer that makes no sense")
        payload = await _receive(stream, length)
        if kind == _REP_ACK and nbytes is not None:
            return Export(nbytes, bool(flags & _FLAG_READ_ONLY), bool(flags & _FLAG_SEND_TRIM), block_bytes)
        if kind != _REP_INFO or length < 2:
            raise NbdError(f"refused: {payload.decode(errors='replace') or hex(kind)}")
        (info,) = struct.unpack_from(">H", payload)
        if info == _INFO_EXPORT and length == 12:
            nbytes, flags = struct.unpack_from(">QH", payload, 2)
        elif info == _INFO_BLOCK_SIZE and length == 14:
            (block_bytes,) = struct.unpack_from(">I", payload, 2)


async def _receive(stream: trio.SocketStream, nbytes: int) -> bytes:
    """Raises: NbdError when the server hangs up."""
    data = b""
    while len(data) < nbytes:
        part = await stream.receive_some(nbytes - len(data))
        if not part:
            raise NbdError("the server has hung up")
        data += part
    return data
