"""Packets with file descriptors beside them, over a SEQPACKET socket: both ends of the control socket use
this.

Sockets are the standard library's, non-blocking. Trio's own would run the scheduler three times per packet;
here a packet costs one wait, which is half of a hypercall's time.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence

import trio

from hyper.public.wire import MAX_FDS, MAX_FRAME, WireError

_INT_BYTES = array.array("i").itemsize
_FDS_ROOM = socket.CMSG_SPACE(MAX_FDS * _INT_BYTES)


def as_packet_socket(sock: trio.socket.SocketType) -> socket.socket:
    """Takes a connected socket over from trio."""
    plain = socket.socket(fileno=sock.detach())
    plain.setblocking(False)
    return plain


async def send_packet(sock: socket.socket, packet: bytes, fds: Sequence[int] = ()) -> None:
    """Sends one packet; `fds` stay the caller's (the kernel duplicates them). Waits only while the peer does
    not read; else it is no checkpoint.

    Raises: OSError when the peer is gone.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    while True:
        try:
            sock.sendmsg([packet], ancillary)
            return
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


async def receive_packet(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One packet and its descriptors (close-on-exec, the caller's to close); (b"", []) when the peer hung up.

    Raises: WireError for a packet over MAX_FRAME or with more than MAX_FDS descriptors; they are closed then.
    """
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            packet, ancillary, flags, _ = sock.recvmsg(MAX_FRAME, _FDS_ROOM, socket.MSG_CMSG_CLOEXEC)
            break
        except BlockingIOError:
            continue
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    if not packet or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > MAX_FDS:
        close_fds(fds)
        if not packet:
            return b"", []
        too_long = flags & socket.MSG_TRUNC
        raise WireError(f"packet over {MAX_FRAME} bytes" if too_long else f"more than {MAX_FDS} descriptors")
    return packet, fds.tolist()


def close_fds(fds: Iterable[int]) -> None:
    """Closes each; none may be closed already."""
    for fd in fds:
        os.close(fd)
