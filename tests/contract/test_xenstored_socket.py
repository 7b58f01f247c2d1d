"""The contract of xenstored, over every provider: the pure state machine, our daemon (sockets and rings),
Xen's own.

One table of (caller, request, expected reply, expected events). Then random requests, answered alike by ours
and by Xen's; and Debian's real clients on our socket.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from dom0.xenstored import sockets
from dom0.xenstored.connection import Connection
from dom0.xenstored.xenstore import Xenstore
from hyper.public.listening import listening
from hyper.public.xs_wire import XsType as X
from tests.xenstore_kit import PATIENCE, Caller, DirectCaller, Guest, Reply, SocketCaller, memory_daemon
from tests.xenstore_oracle import Oracle, build_preload, run_oracle, xen_utils

OK = b"OK\0"
Callers = dict[str, Caller]


@dataclass(frozen=True)
class Step:
    """`who` asks; `tx` names a transaction begun by a step with `save`. `events`: what each caller hears
    meanwhile.
    """

    who: str
    kind: X | int
    strings: tuple[bytes, ...]
    reply: Reply | None
    raw: bytes = b""
    tx: str = ""
    save: str = ""
    events: dict[str, list[bytes]] = field(default_factory=dict)


def ask(
    who: str, kind: X | int, *strings: bytes, reply: Reply | None = OK, raw: bytes = b"", tx: str = "", save:
    str = "", **events: list[bytes],
) -> Step:  # fmt: skip
    return Step(who, kind, strings, reply, raw, tx, save, events)


def begin(who: str, save: str) -> Step:
    return ask(who, X.TRANSACTION_START, b"", reply=None, save=save)


def end(who: str, tx: str, reply: Reply = OK, how: bytes = b"T", **events: list[bytes]) -> Step:
    return ask(who, X.TRANSACTION_END, how, tx=tx, reply=reply, **events)


# Domains 1 and 2 are introduced; /local/domain/1 and /local/domain/2 are theirs.
CASES: dict[str, list[Step]] = {
    "a value is any bytes": [
        ask("dom0", X.WRITE, b"/a/b", raw=b"x\0\xff"),
        ask("dom0", X.READ, b"/a/b", reply=b"x\0\xff"),
        ask("dom0", X.READ, b"/a", reply=b""),
        ask("dom0", X.WRITE, b"/a/b", raw=b""),
        ask("dom0", X.READ, b"/a/b", reply=b""),
        ask("dom0", X.DIRECTORY, b"/a", reply=b"b\0"),
        ask("dom0", X.READ, b"/a/c", reply="ENOENT"),
        ask("dom0", X.WRITE, b"/big", raw=b"x" * 4091),
    ],
    "malformed payloads": [
        ask("dom0", X.GET_DOMAIN_PATH, raw=b"1", reply="EINVAL"),
        ask("dom0", X.GET_DOMAIN_PATH, b"1", b"", reply="EINVAL"),
        ask("dom0", X.WRITE, raw=b"/a", reply="EINVAL"),
        ask("dom0", X.WATCH, b"/a", raw=b"t", reply="EINVAL"),
        ask("dom0", X.WATCH, b"/a", b"t", b"u", reply="EINVAL"),
        ask("dom0", X.SET_PERMS, b"/tool", reply="EINVAL"),
        ask("dom0", X.SET_PERMS, b"/tool", b"x0", reply="EINVAL"),
        ask("dom0", X.SET_PERMS, b"/tool", b"r", reply="EINVAL"),
        ask("dom0", X.SET_PERMS, b"/tool", b"r1x", reply="EINVAL"),
        ask("dom0", X.SET_PERMS, b"/tool", b"r65535", reply="ENOENT"),
        ask("dom0", X.INTRODUCE, b"3", b"1", reply="EINVAL"),
        ask("dom0", X.INTRODUCE, b"3", b"1", b"0", reply="EINVAL"),
        ask("dom0", X.TRANSACTION_END, b"X", reply="EINVAL"),
        ask("dom0", X.WATCH_EVENT, b"", reply="ENOSYS"),
        ask("dom0", X.ERROR, b"", reply="ENOSYS"),
        ask("dom0", 20, b"", reply="ENOSYS"),
        ask("dom0", 0xFFFF, b"", reply="ENOSYS"),
    ],
    "which paths are valid": [
        *(
            ask("dom0", X.WRITE, path, raw=b"v", reply="EINVAL")
            for path in (b"", b"/a/", b"//a", b"/a//b", b"/a b", b"/a:b", b"/a.b", b"@a", b"/" + b"x" * 2048)
        ),
        ask("dom0", X.WRITE, b"/@a-_Z9", raw=b"v"),
        ask("dom0", X.WRITE, b"/" + b"x" * 2047, raw=b"v"),
        ask("dom0", X.WRITE, b"x" * 2048, raw=b"v"),
        ask("dom0", X.WRITE, b"x" * 2049, raw=b"v", reply="EINVAL"),
        ask("dom0", X.WRITE, b"rel", raw=b"r"),
        ask("dom0", X.READ, b"/local/domain/0/rel", reply=b"r"),
        ask("guest1", X.WRITE, b"rel", raw=b"g"),
        ask("dom0", X.READ, b"/local/domain/1/rel", reply=b"g"),
        ask("dom0", X.GET_DOMAIN_PATH, b"7", reply=b"/local/domain/7\0"),
    ],
    "mkdir and rm": [
        ask("dom0", X.MKDIR, b"/m/n/o"),
        ask("dom0", X.MKDIR, b"/m/n/o"),
        ask("dom0", X.RM, b"/m/nope"),
        ask("dom0", X.RM, b"/nope/x", reply="ENOENT"),
        ask("dom0", X.RM, b"/", reply="EINVAL"),
        ask("dom0", X.RM, b"/m"),
        ask("dom0", X.DIRECTORY, b"/m/n", reply="ENOENT"),
        ask("dom0", X.RM, b"/m"),
    ],
    "a long list of children comes in parts": [
        *(ask("dom0", X.MKDIR, b"/big/child-number-%d" % number) for number in range(300)),
        ask("dom0", X.DIRECTORY, b"/big", reply="E2BIG"),
        ask("dom0", X.DIRECTORY_PART, b"/big", reply="EINVAL"),
        ask("dom0", X.DIRECTORY_PART, b"/nope", b"0", reply="ENOENT"),
    ],
    "permissions are inherited, a guest owns what it makes": [
        ask("dom0", X.SET_PERMS, b"/local/domain/1", b"n1", b"b2", b"r3"),
        ask("dom0", X.WRITE, b"/local/domain/1/by0/x", raw=b""),
        ask("dom0", X.GET_PERMS, b"/local/domain/1/by0/x", reply=b"n1\0b2\0r3\0"),
        ask("guest2", X.WRITE, b"/local/domain/1/by2/x", raw=b""),
        ask("dom0", X.GET_PERMS, b"/local/domain/1/by2", reply=b"n2\0b2\0r3\0"),
        ask("guest1", X.READ, b"by2", reply="EACCES"),
        ask("guest2", X.READ, b"/local/domain/1/by0", reply=b""),
    ],
    "what a guest may not": [
        ask("guest1", X.READ, b"/tool", reply="EACCES"),
        ask("guest1", X.READ, b"/nope/x", reply="EACCES"),
        ask("guest1", X.WRITE, b"/x", raw=b"", reply="EACCES"),
        ask("guest1", X.RM, b"/nope", reply="EACCES"),
        ask("guest1", X.GET_PERMS, b"/", reply="EACCES"),
        ask("guest1", X.SET_PERMS, b"/local/domain/1", b"n2", reply="EPERM"),
        ask("guest1", X.SET_PERMS, b"/local/domain/1", b"n1", b"r2"),
        ask("guest1", X.SET_PERMS, b"/tool", b"n1", reply="EACCES"),
        ask("guest1", X.SET_PERMS, b"@releaseDomain", b"n1", reply="EACCES"),
        *(
            ask("guest1", kind, b"2", b"3", b"4", reply="EACCES")
            for kind in (X.INTRODUCE, X.RELEASE, X.CONTROL, X.RESUME, X.SET_TARGET, X.IS_DOMAIN_INTRODUCED)
        ),
        ask("guest2", X.READ, b"/local/domain/1", reply=b""),
        ask("guest2", X.WRITE, b"/local/domain/1", raw=b"", reply="EACCES"),
        ask("guest2", X.READ, b"/local/domain/1/nope", reply="ENOENT"),
        ask("guest2", X.RM, b"/local/domain/1/nope", reply="EACCES"),
    ],
    "a watch fires once, then for what is at or below its path": [
        ask("dom0", X.WATCH, b"/w/a", b"t", dom0=[b"/w/a\0t\0"]),
        ask("dom0", X.WATCH, b"/w/a", b"t", reply="EEXIST"),
        ask("dom0", X.WATCH, b"/w/a", b"u", dom0=[b"/w/a\0u\0"]),
        ask("other", X.WRITE, b"/w/a/b", raw=b"", dom0=[b"/w/a/b\0t\0", b"/w/a/b\0u\0"]),
        ask("other", X.WRITE, b"/w/ab", raw=b""),
        ask("other", X.WRITE, b"/w", raw=b""),
        ask("dom0", X.UNWATCH, b"/w/a", b"u"),
        ask("dom0", X.UNWATCH, b"/w/a", b"u", reply="ENOENT"),
        ask("other", X.MKDIR, b"/w/a/b"),
        ask("other", X.MKDIR, b"/w/a/c", dom0=[b"/w/a/c\0t\0"]),
        ask("other", X.SET_PERMS, b"/w/a", b"n0", b"r1", dom0=[b"/w/a\0t\0"]),
        ask("other", X.RM, b"/w/a/nope"),
        ask("other", X.RM, b"/w", dom0=[b"/w/a\0t\0"]),
        ask("dom0", X.RESET_WATCHES, b""),
        ask("other", X.WRITE, b"/w/a", raw=b""),
    ],
    "removing a folder fires the watches of what was in it": [
        ask("dom0", X.WRITE, b"/w/a/b", raw=b""),
        ask("dom0", X.WATCH, b"/w", b"w", dom0=[b"/w\0w\0"]),
        ask("dom0", X.WATCH, b"/w/a/b", b"b", dom0=[b"/w/a/b\0b\0"]),
        ask("dom0", X.WATCH, b"/w/z", b"z", dom0=[b"/w/z\0z\0"]),
        ask("other", X.RM, b"/w", dom0=[b"/w/a/b\0b\0", b"/w\0w\0"]),
    ],
    "a relative watch is told relative paths": [
        ask("guest1", X.WATCH, b"rel", b"t", guest1=[b"rel\0t\0"]), ask("guest1", X.WATCH,
        b"/local/domain/1/rel", b"t", reply="EEXIST"), ask("guest1", X.WATCH, b"/local/domain/1/rel", b"abs",
        guest1=[b"/local/domain/1/rel\0abs\0"]), ask("dom0", X.WRITE, b"/local/domain/1/rel/x", raw=b"",
        guest1=[b"/local/domain/1/rel/x\0abs\0", b"rel/x\0t\0"]), ask("guest1", X.UNWATCH, b"rel", b"abs"),
        ask("guest1", X.UNWATCH, b" ", b"abs", reply="ENOENT"),
    ],
    "a guest hears only of what it may read": [
        ask("guest1", X.WATCH, b"/secret", b"t", guest1=[b"/secret\0t\0"]),
        ask("dom0", X.WRITE, b"/secret/x", raw=b""),
        ask("dom0", X.SET_PERMS, b"/secret/x", b"n0", b"r1", guest1=[b"/secret/x\0t\0"]),
        ask("dom0", X.WRITE, b"/secret/x", raw=b"", guest1=[b"/secret/x\0t\0"]),
        ask("dom0", X.WRITE, b"/secret/x/y", raw=b"", guest1=[b"/secret/x/y\0t\0"]),
        ask("dom0", X.SET_PERMS, b"/secret/x/y", b"n0", guest1=[b"/secret/x/y\0t\0"]),
        ask("dom0", X.WRITE, b"/secret/x/y/z", raw=b""),
        ask("dom0", X.RM, b"/secret/x/y/z"),
        ask("dom0", X.RM, b"/secret/x/y", guest1=[b"/secret/x/y\0t\0"]),
        ask("dom0", X.SET_PERMS, b"/secret/x", b"n0", guest1=[b"/secret/x\0t\0"]),
        ask("dom0", X.SET_PERMS, b"/secret/x", b"n0"),
        ask("guest1", X.WATCH, b"@releaseDomain", b"r", guest1=[b"@releaseDomain\0r\0"]),
        ask("dom0", X.INTRODUCE, b"3", b"1", b"5"),
        ask("dom0", X.RELEASE, b"3"),
        ask("dom0", X.SET_PERMS, b"@releaseDomain", b"n0", b"r1"),
        ask("dom0", X.INTRODUCE, b"3", b"1", b"5"),
        ask("dom0", X.RELEASE, b"3", guest1=[b"@releaseDomain\0r\0"]),
    ],
    "special paths are watched, but no nodes": [
        *(
            ask("dom0", kind, b"@releaseDomain", reply="EINVAL")
            for kind in (X.READ, X.MKDIR, X.RM, X.DIRECTORY, X.GET_PERMS)
        ),
        ask("dom0", X.WATCH, b"@nobody-fires-this", b"t", dom0=[b"@nobody-fires-this\0t\0"]),
        ask("dom0", X.WATCH, b"@" + b"x" * 2048, b"t", reply="EINVAL"),
    ],
    "a transaction is seen at its end": [
        begin("dom0", "t"),
        ask("other", X.WATCH, b"/t", b"w", other=[b"/t\0w\0"]),
        ask("dom0", X.WRITE, b"/t/a", raw=b"1", tx="t"),
        ask("dom0", X.WRITE, b"/t/a", raw=b"2", tx="t"),
        ask("dom0", X.WRITE, b"/t/gone", raw=b"", tx="t"),
        ask("dom0", X.RM, b"/t/gone", tx="t"),
        ask("dom0", X.READ, b"/t/a", tx="t", reply=b"2"),
        ask("dom0", X.READ, b"/t/a", reply="ENOENT"),
        ask("dom0", X.TRANSACTION_START, b"", tx="t", reply="EBUSY"),
        ask("dom0", X.TRANSACTION_END, b"X", tx="t", reply="EINVAL"),
        end("dom0", "t", other=[b"/t/a\0w\0"]),
        ask("dom0", X.READ, b"/t/a", reply=b"2"),
        end("dom0", "t", reply="ENOENT"),
        ask("other", X.READ, b"/t/a", tx="t", reply="ENOENT"),
    ],
    "a transaction can be forgotten": [
        begin("dom0", "t"),
        ask("dom0", X.WRITE, b"/t/a", raw=b"1", tx="t"),
        end("dom0", "t", how=b"F"),
        ask("dom0", X.READ, b"/t/a", reply="ENOENT"),
        begin("dom0", "u"),
        ask("dom0", X.RESET_WATCHES, b""),
        end("dom0", "u", reply="ENOENT"),
    ],
    "watches and domains do not care for transactions": [
        ask("dom0", X.WATCH, b"/a", b"t", tx="none", dom0=[b"/a\0t\0"]),
        ask("dom0", X.UNWATCH, b"/a", b"t", tx="none"),
        ask("dom0", X.GET_DOMAIN_PATH, b"1", tx="none", reply="ENOENT"),
        ask("dom0", X.RESET_WATCHES, b"", tx="none", reply="ENOENT"),
        ask("guest1", X.CONTROL, b"help", tx="none", reply="EACCES"),
    ],
    "events of a transaction respect permissions": [
        ask("dom0", X.WRITE, b"/s/x", raw=b""),
        ask("dom0", X.SET_PERMS, b"/s/x", b"n0", b"r1"),
        ask("guest1", X.WATCH, b"/s", b"t", guest1=[b"/s\0t\0"]),
        begin("dom0", "t"),
        ask("dom0", X.SET_PERMS, b"/s/x", b"n0", tx="t"),
        end("dom0", "t", guest1=[b"/s/x\0t\0"]),
        begin("dom0", "t"),
        ask("dom0", X.SET_PERMS, b"/s/x", b"n0", b"r1", tx="t"),
        ask("dom0", X.RM, b"/s/x", tx="t"),
        end("dom0", "t"),
    ],
    "a domain's end takes its nodes and rights with it": [
        ask("dom0", X.WATCH, b"@introduceDomain", b"i", dom0=[b"@introduceDomain\0i\0"]),
        ask("dom0", X.WATCH, b"@releaseDomain", b"r", dom0=[b"@releaseDomain\0r\0"]),
        ask("dom0", X.IS_DOMAIN_INTRODUCED, b"3", reply=b"F\0"),
        ask("dom0", X.RELEASE, b"3", reply="ENOENT"),
        ask("dom0", X.RELEASE, b"0", reply="EINVAL"),
        ask("dom0", X.INTRODUCE, b"3", b"1", b"5", dom0=[b"@introduceDomain\0i\0"]),
        ask("dom0", X.INTRODUCE, b"3", b"1", b"5"),
        ask("dom0", X.IS_DOMAIN_INTRODUCED, b"3", reply=b"T\0"),
        ask("dom0", X.WRITE, b"/own3/sub", raw=b""),
        ask("dom0", X.WRITE, b"/shared", raw=b"s"),
        ask("dom0", X.SET_PERMS, b"/own3", b"n3"),
        ask("dom0", X.SET_PERMS, b"/shared", b"n0", b"r3", b"r1"),
        ask("dom0", X.WATCH, b"/own3", b"o", dom0=[b"/own3\0o\0"]),
        ask("dom0", X.RELEASE, b"3", dom0=[b"/own3\0o\0", b"@releaseDomain\0r\0"]),
        ask("dom0", X.READ, b"/own3/sub", reply="ENOENT"),
        ask("dom0", X.GET_PERMS, b"/shared", reply=b"n0\0r3\0r1\0"),
        ask("dom0", X.RESUME, b"3", reply="ENOENT"),
        ask("dom0", X.INTRODUCE, b"3", b"1", b"5", dom0=[b"@introduceDomain\0i\0"]),
        ask("guest3", X.READ, b"/shared", reply="EACCES"),
        ask("guest1", X.READ, b"/shared", reply=b"s"),
    ],
    "a stub domain has its target's rights": [
        ask("guest2", X.READ, b"/local/domain/1", reply="EACCES"),
        ask("dom0", X.SET_TARGET, b"2", b"9", reply="ENOENT"),
        ask("dom0", X.SET_TARGET, b"9", b"1", reply="ENOENT"),
        ask("dom0", X.SET_TARGET, b"2", reply="EINVAL"),
        ask("dom0", X.SET_TARGET, b"2", b"1"),
        ask("guest2", X.WRITE, b"/local/domain/1/x", raw=b""),
        ask("dom0", X.GET_PERMS, b"/local/domain/1/x", reply=b"n2\0"),
        ask("guest2", X.SET_PERMS, b"/local/domain/1", b"n1", b"r3"),
    ],
    "a guest's quota: size of a node": [
        ask("guest1", X.WRITE, b"n", raw=b"x" * 2015), ask("guest1", X.WRITE, b"n", raw=b"x" * 2016,
        reply="ENOSPC"), ask("guest1", X.READ, b"n", reply=b"x" * 2015), ask("guest1", X.MKDIR, b"n/x",
        reply="ENOSPC"), ask("guest1", X.SET_PERMS, b"n", b"n1", b"r2", reply="ENOSPC"), ask("guest1",
        X.SET_PERMS, b"/local/domain/1", b"n1", b"r2", b"r3", b"r4", b"r5"), ask("guest1", X.SET_PERMS,
        b"/local/domain/1", b"n1", b"r2", b"r3", b"r4", b"r5", b"r6", reply="ENOSPC"),
    ],
    "a guest's quota: nodes, its own folder included": [
        *(ask("guest1", X.MKDIR, b"q%d/%d" % (number % 20, number)) for number in range(979)),
        ask("guest1", X.MKDIR, b"q0/more", reply="ENOSPC"),
        ask("guest1", X.RM, b"q0/0"),
        ask("guest1", X.MKDIR, b"two/levels", reply="ENOSPC"),
        ask("guest1", X.MKDIR, b"one"),
        ask("guest1", X.WRITE, b"one", raw=b"value"),
        ask("dom0", X.MKDIR, b"/local/domain/1/by-dom0"),
    ],
    "a guest's quota: watches and transactions": [
        *(ask("guest1", X.WATCH, b"%d" % number, b"t", guest1=[b"%d\0t\0" % number]) for number in
        range(129)), ask("guest1", X.WATCH, b"more", b"t", reply="E2BIG"), *(begin("guest1", f"t{number}") for
        number in range(11)), ask("guest1", X.TRANSACTION_START, b"", reply="ENOSPC"), end("guest1", "t5",
        how=b"F"), begin("guest1", "more"),
    ],
    "control": [
        ask("dom0", X.CONTROL, b"check"),
        ask("dom0", X.CONTROL, b"print", b"hello"),
        ask("dom0", X.CONTROL, b"print", reply="EINVAL"),
        ask("dom0", X.CONTROL, b"nonsense", reply="EINVAL"),
        ask("dom0", X.CONTROL, raw=b"help", reply="EINVAL"),
    ],
}  # fmt: skip

# What happens inside a transaction, what somebody else does meanwhile, and whether it loses.
CONFLICTS: list[tuple[str, list[tuple[X, bytes, bytes]], list[tuple[X, bytes, bytes]], bool]] = [
    ("nothing seen", [], [(X.WRITE, b"/c/x", b"2")], False),
    ("read, same written", [(X.READ, b"/c/x", b"")], [(X.WRITE, b"/c/x", b"2")], True),
    ("read, other written", [(X.READ, b"/c/x", b"")], [(X.WRITE, b"/c/y", b"2")], False),
    ("written, same written", [(X.WRITE, b"/c/x", b"3")], [(X.WRITE, b"/c/x", b"2")], True),
    ("written, other written", [(X.WRITE, b"/c/x", b"3")], [(X.WRITE, b"/c/y", b"2")], False),
    ("made, other made beside", [(X.WRITE, b"/c/new", b"3")], [(X.WRITE, b"/c/new2", b"2")], True),
    ("made, other written", [(X.WRITE, b"/c/new", b"3")], [(X.WRITE, b"/c/x", b"2")], False),
    ("read, other made beside", [(X.READ, b"/c/x", b"")], [(X.WRITE, b"/c/new", b"2")], False),
    ("missed, made", [(X.READ, b"/c/new", b"")], [(X.WRITE, b"/c/new", b"2")], True),
    ("missed, other made beside", [(X.READ, b"/c/new", b"")], [(X.WRITE, b"/c/new2", b"2")], True),
    ("read, made anew", [(X.READ, b"/c/x", b"")], [(X.RM, b"/c/x", b""), (X.WRITE, b"/c/x", b"1")], True),
    ("read, mkdir of what exists", [(X.READ, b"/c/x", b"")], [(X.MKDIR, b"/c/x", b"")], False),
    ("mkdir of what exists, written", [(X.MKDIR, b"/c/x", b"")], [(X.WRITE, b"/c/x", b"2")], True),
    ("listed, child written", [(X.DIRECTORY, b"/c", b"")], [(X.WRITE, b"/c/x", b"2")], False),
    ("listed, child made", [(X.DIRECTORY, b"/c", b"")], [(X.WRITE, b"/c/new", b"2")], True),
    ("folder removed, below written", [(X.RM, b"/c/sub", b"")], [(X.WRITE, b"/c/sub/z", b"2")], True),
    ("folder removed, below made", [(X.RM, b"/c/sub", b"")], [(X.WRITE, b"/c/sub/new", b"2")], True),
    ("removed, other written", [(X.RM, b"/c/x", b"")], [(X.WRITE, b"/c/y", b"2")], False),
    ("removed what is not, other made", [(X.RM, b"/c/no", b"")], [(X.WRITE, b"/c/new", b"2")], True),
]  # fmt: skip


# --- providers: what the table is put to

Provider = Callable[[Path], AbstractAsyncContextManager[Callers]]


@asynccontextmanager
async def pure(folder: Path) -> AsyncIterator[Callers]:
    xs = Xenstore()
    callers: Callers = {name: DirectCaller(xs, Connection(0)) for name in ("dom0", "other")}
    await _introduce(callers)
    for domid in (1, 2):
        callers[f"guest{domid}"] = DirectCaller(xs, xs.domains[domid].conn)
    yield _Late(callers, "guest3", lambda: DirectCaller(xs, xs.domains[3].conn))


@asynccontextmanager
async def daemon(folder: Path) -> AsyncIterator[Callers]:
    ours = memory_daemon(journalled=True)
    async with trio.open_nursery() as nursery:

        async def introduce() -> None:
            while ours.xs.introductions:
                ours.xs.finish_introduction(ours.xs.introductions.pop(0))

        with listening(folder / "socket") as listener:
            nursery.start_soon(sockets.serve, listener, ours, introduce)
            callers: Callers = {
                name: await SocketCaller.connect(folder / "socket") for name in ("dom0", "other")
            }
            await _introduce(callers)
            for domid in (1, 2):
                callers[f"guest{domid}"] = Guest(ours, domid, nursery).caller
            yield _Late(callers, "guest3", lambda: Guest(ours, 3, nursery).caller)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def xen(folder: Path) -> AsyncIterator[Callers]:
    async with run_oracle(folder, build_preload(folder)) as oracle:
        callers: Callers = {name: await SocketCaller.connect(oracle.socket) for name in ("dom0", "other")}
        await _introduce(callers)
        for domid in (1, 2):
            callers[f"guest{domid}"] = oracle.guest(domid)
        yield _Late(callers, "guest3", lambda: _fresh_guest(oracle, 3))


def _fresh_guest(oracle: Oracle, domid: int) -> Caller:
    return oracle.guest(domid)


class _Late(dict[str, Caller]):
    """Callers, one of which appears when it is first asked."""

    def __init__(self, callers: Callers, name: str, make: Callable[[], Caller]) -> None:
        super().__init__(callers)
        self._name = name
        self._make = make

    def __missing__(self, name: str) -> Caller:
        assert name == self._name
        self[name] = self._make()
        return self[name]


async def _introduce(callers: Callers) -> None:
    for domid in (b"1", b"2"):
        assert await callers["dom0"].ask(X.INTRODUCE, domid, b"1", b"5") == OK
        assert await callers["dom0"].ask(X.MKDIR, b"/local/domain/" + domid) == OK
        assert await callers["dom0"].ask(X.SET_PERMS, b"/local/domain/" + domid, b"n" + domid) == OK


PROVIDERS: list[Provider] = [pure, daemon, xen]


@pytest.fixture(params=PROVIDERS, ids=lambda provider: provider.__name__)
def provider(request: pytest.FixtureRequest) -> Provider:
    chosen: Provider = request.param
    return chosen


# --- the table


@pytest.mark.parametrize("name", CASES)
async def test_table(name: str, provider: Provider, tmp_path: Path) -> None:
    async with provider(tmp_path) as callers:
        tx_ids = {"": 0, "none": 4711}
        for number, step in enumerate(CASES[name]):
            where = f"step {number}: {step}"[:400]
            reply = await callers[step.who].ask(step.kind, *step.strings, raw=step.raw, tx=tx_ids[step.tx])
            if step.save:
                assert isinstance(reply, bytes), where
                tx_ids[step.save] = int(reply[:-1])
            else:
                assert reply == step.reply, where
            heard = {who: events for who, caller in callers.items() if (events := await caller.events())}
            assert {who: sorted(events) for who, events in heard.items()} == {
                who: sorted(events) for who, events in step.events.items()
            }, where


async def test_conflicts(provider: Provider, tmp_path: Path) -> None:
    async with provider(tmp_path) as callers:
        dom0, other = callers["dom0"], callers["other"]
        for name, inside, outside, loses in CONFLICTS:
            await dom0.ask(X.RM, b"/c")
            for path in (b"/c/x", b"/c/y", b"/c/sub/z"):
                await dom0.ask(X.WRITE, path, raw=b"1")
            tx = await dom0.start()
            for kind, path, raw in inside:
                await dom0.ask(kind, path, raw=raw, tx=tx)
            for kind, path, raw in outside:
                assert await other.ask(kind, path, raw=raw) == OK
            assert await dom0.ask(X.TRANSACTION_END, b"T", tx=tx) == ("EAGAIN" if loses else OK), name


async def test_a_long_directory_comes_whole_in_parts(provider: Provider, tmp_path: Path) -> None:
    async with provider(tmp_path) as callers:
        names = [b"child-number-%d" % number for number in range(700)]
        for name in names:
            await callers["dom0"].ask(X.MKDIR, b"/big/" + name)
        listed = b""
        nr_parts = 0
        while not listed.endswith(b"\0\0"):
            part = await callers["dom0"].ask(X.DIRECTORY_PART, b"/big", b"%d" % len(listed))
            assert isinstance(part, bytes)
            assert len(part) <= 4096
            listed += part.partition(b"\0")[2]
            nr_parts += 1
        assert listed[:-2].split(b"\0") == names
        assert nr_parts == 3


async def test_a_client_that_announces_too_much_is_closed(provider: Provider, tmp_path: Path) -> None:
    if provider is pure:
        return  # has no stream
    async with provider(tmp_path) as callers:
        await callers["dom0"].send(b"\2\0\0\0" * 3 + (4097).to_bytes(4, "little"))
        with trio.fail_after(PATIENCE):
            assert await callers["dom0"].receive() == b""
        assert await callers["other"].ask(X.READ, b"/tool") == b""


# --- random requests: ours and Xen's answer alike


class Pair:
    """One client at both."""

    def __init__(self, ours: Caller, theirs: Caller) -> None:
        self.ours = ours
        self.theirs = theirs
        self.transactions: list[tuple[int, int]] = []


class RandomRequests:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def path(self) -> bytes:
        choose = self._random.choice
        path = b"/".join(choose((b"a", b"b", b"c", b"dd", b"e")) for _ in range(choose((1, 1, 2, 2, 3, 4))))
        domid = choose((0, 1, 2, 3))
        return self._random.choices(
            (path, b"/" + path, b"/local/domain/%d/%b" % (domid, path), b"/local/domain/%d" % domid, b"/",
            b"/a//b"), (35, 35, 20, 4, 4, 2),
        )[0]

    def perms(self) -> list[bytes]:
        choose = self._random.choice
        return [choose((b"n%d", b"r%d", b"w%d", b"b%d")) % choose((0, 1, 1, 2, 2))
                for _ in range(choose((1, 1, 2, 2, 3, 6)))]  # fmt: skip

    def request(self) -> tuple[X, list[bytes], bytes]:
        choose = self._random.choice
        kind = choose(
            [X.READ, X.WRITE, X.WRITE, X.WRITE, X.MKDIR, X.RM, X.DIRECTORY, X.GET_PERMS, X.SET_PERMS,
             X.SET_PERMS, X.WATCH, X.WATCH, X.UNWATCH, X.TRANSACTION_START, X.TRANSACTION_END,
             X.TRANSACTION_END]
        )  # fmt: skip
        if kind is X.WRITE:
            return kind, [self.path()], b"v%d" % self._random.randrange(100)
        if kind is X.SET_PERMS:
            return kind, [self.path(), *self.perms()], b""
        if kind in (X.WATCH, X.UNWATCH):
            return kind, [self.path(), choose((b"t", b"u"))], b""
        if kind is X.TRANSACTION_START:
            return kind, [b""], b""
        if kind is X.TRANSACTION_END:
            return kind, [choose((b"T", b"T", b"T", b"F"))], b""
        return kind, [self.path()], b""

    def client(self, pairs: dict[str, Pair]) -> Pair:
        return pairs[self._random.choice(("dom0", "dom0", "other", "guest1", "guest1", "guest2"))]

    def transaction(self, pair: Pair, kind: X) -> tuple[int, int]:
        if pair.transactions and (kind is X.TRANSACTION_END or self._random.random() < 0.6):
            return self._random.choice(pair.transactions)
        return 0, 0


@pytest.mark.parametrize("seed", range(4))
async def test_random_requests_are_answered_as_by_xen(seed: int, tmp_path: Path) -> None:
    made = RandomRequests(seed)
    async with pure(tmp_path) as ours, xen(tmp_path) as theirs:
        pairs = {name: Pair(ours[name], theirs[name]) for name in ours}
        for _ in range(400):
            await _ask_both(made, made.client(pairs))
            for name, pair in pairs.items():
                assert sorted(await pair.ours.events()) == sorted(await pair.theirs.events()), name


async def _ask_both(made: RandomRequests, pair: Pair) -> None:
    kind, strings, raw = made.request()
    tx = made.transaction(pair, kind)
    if kind is X.TRANSACTION_START and len(pair.transactions) > 3:
        return
    ours = await pair.ours.ask(kind, *strings, raw=raw, tx=tx[0])
    theirs = await pair.theirs.ask(kind, *strings, raw=raw, tx=tx[1])
    if kind is X.TRANSACTION_START and tx == (0, 0):
        assert isinstance(ours, bytes) and isinstance(theirs, bytes)
        pair.transactions.append((int(ours[:-1]), int(theirs[:-1])))
        return
    if kind is X.TRANSACTION_END and tx in pair.transactions:
        pair.transactions.remove(tx)
    if tx in pair.transactions and theirs in ("EIO", "ENOSPC"):
        # Xen's transaction is broken from here on. Ours goes on, to EAGAIN or a commit.
        pair.transactions.remove(tx)
        await pair.ours.ask(X.TRANSACTION_END, b"F", tx=tx[0])
        await pair.theirs.ask(X.TRANSACTION_END, b"F", tx=tx[1])
        return
    assert ours == theirs, (kind, strings, tx)


# --- Debian's clients on our socket


@dataclass(frozen=True)
class Tools:
    socket: Path

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        if shutil.which(command[0]) is None:
            pytest.fail(f"{command[0]} is missing: install Debian's package xenstore-utils")
        environment = {**os.environ, "XENSTORED_PATH": str(self.socket)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, done
        return done


@pytest.fixture
def tools(tmp_path: Path) -> AsyncIterator[Tools]:  # type: ignore[misc]
    """A standalone xenstored in a process of its own."""
    path = tmp_path / "xenstored.sock"
    ready, ready_fd = os.pipe()
    command = [sys.executable, "-m", "dom0.xenstored", "--standalone", str(path), "--ready-fd", str(ready_fd)]
    process = subprocess.Popen(command, pass_fds=[ready_fd], stderr=subprocess.PIPE)
    os.close(ready_fd)
    try:
        assert os.read(ready, 1), process.communicate(timeout=10)
        yield Tools(path)
    finally:
        os.close(ready)
        process.terminate()
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 0, stderr
    assert not path.exists()


def test_read_and_write(tools: Tools) -> None:
    tools.run("xenstore-write", "/a/b", "one", "/a/c", "two words")
    assert tools.run("xenstore-read", "/a/b", "/a/c").stdout == "one\ntwo words\n"
    assert tools.run("xenstore-read", "/a/nope", check=False).returncode == 1


def test_list_exists_rm(tools: Tools) -> None:
    tools.run("xenstore-write", "/a/b", "1", "/a/c/d", "2")
    assert tools.run("xenstore-list", "/a").stdout == "b\nc\n"
    assert tools.run("xenstore-list", "-p", "/a").stdout == "/a/b\n/a/c\n"
    tools.run("xenstore-exists", "/a/c/d")
    tools.run("xenstore-rm", "/a/c")
    assert tools.run("xenstore-exists", "/a/c/d", check=False).returncode == 1
    tools.run("xenstore-rm", "-t", "/a/b")  # and the folders above, now empty
    assert tools.run("xenstore-exists", "/a", check=False).returncode == 1


def test_chmod_and_ls(tools: Tools) -> None:
    tools.run("xenstore-write", "/a/b", "1", "/a/c", "x")
    tools.run("xenstore-chmod", "-r", "/a", "n0", "r5")
    assert tools.run("xenstore-ls", "-fp", "/a").stdout == '/a/b = "1"   (n0,r5)\n/a/c = "x"   (n0,r5)\n'
    assert tools.run("xenstore-ls", "/a").stdout == 'b = "1"\nc = "x"\n'


def test_ls_of_a_long_directory(tools: Tools) -> None:
    paths = [f"/big/a-rather-long-name-{number}" for number in range(400)]
    pairs = [argument for path in paths for argument in (path, "value")]
    tools.run("xenstore-write", *pairs)
    assert len(tools.run("xenstore-ls", "/big").stdout.splitlines()) == 400


def test_watch(tools: Tools) -> None:
    environment = {**os.environ, "XENSTORED_PATH": str(tools.socket)}
    with subprocess.Popen(
        ["xenstore-watch", "-n", "3", "/w"], env=environment, stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout
        assert watch.stdout.readline() == "/w\n"  # registered
        tools.run("xenstore-write", "/w/x", "1")
        tools.run("xenstore-rm", "/w")
        assert watch.stdout.read() == "/w/x\n/w\n"
        assert watch.wait(timeout=10) == 0


def test_control(tools: Tools) -> None:
    control = xen_utils() / "xenstore-control"
    assert "check" in tools.run(control, "help").stdout
    tools.run(control, "check")
    tools.run(control, "print", "hello")


def test_xen_own_test_program(tools: Tools) -> None:
    """test-xenstore: 12 tests of reading, writing, transactions and conflicts."""
    program = xen_utils() / "test-xenstore"
    done = tools.run(program, "-i", "20")
    assert len(done.stdout.splitlines()) == 12
    assert "failed" not in done.stdout.lower() + done.stderr.lower()
    tools.run(program, "-r", "1")


def test_refuses_garbage_and_goes_on(tools: Tools) -> None:
    trio.run(_garbage, tools.socket)
    tools.run("xenstore-ls")


async def _garbage(path: Path) -> None:
    for seed in range(20):
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            try:
                await stream.send_all(random.Random(seed).randbytes(3000))
            except trio.BrokenResourceError:
                continue
