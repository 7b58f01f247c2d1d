"""seccomp filters in classic BPF, built by hand: for a process that gives up system calls for good.
x86-64 only.

    code = assemble([*NATIVE_ONLY, Op(LD, NR), Op(JEQ, 59, "eperm"), Op(RET, ALLOW), Label("eperm"), ...])
    install(code)
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass

LD, JEQ, JGE, JSET, RET = 0x20, 0x15, 0x35, 0x45, 0x06
NR, _ARCH = 0, 4
"""Offsets in struct seccomp_data, for LD; arguments: argument(n)."""

ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

CLONE, CLONE3, CLONE_THREAD = 56, 435, 0x00010000

PR_SET_NO_NEW_PRIVS = 38
SYS_SECCOMP = 317
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000


@dataclass(frozen=True)
class Op:
    """struct sock_filter; `label` names the target of a jump taken when true, further down."""

    code: int
    k: int
    label: str = ""


@dataclass(frozen=True)
class Label:
    name: str


NATIVE_ONLY = (
    Op(LD, _ARCH),
    Op(JEQ, _AUDIT_ARCH_X86_64, "native"),
    Op(RET, _KILL_PROCESS),
    Label("native"),
    Op(LD, NR),
    Op(JGE, _X32_BIT, "x32"),
    Op(JGE, 0, "go on"),  # always
    Label("x32"),
    Op(RET, _ERRNO | errno.EPERM),
    Label("go on"),
)
"""Other architectures' system calls kill the process, x32's fail. Afterwards the number is loaded."""


def argument(number: int) -> int:
    """Offset of the low half of an argument."""
    return 16 + 8 * number


def refuse(number: int) -> Op:
    """The system call fails with this errno."""
    return Op(RET, _ERRNO | number)


def assemble(program: Iterable[Op | Label]) -> bytes:
    """Raises: KeyError for a label that is not there; struct.error for a jump that is too far or goes up."""
    ops: list[Op] = []
    labels: dict[str, int] = {}
    for step in program:
        if isinstance(step, Label):
            labels[step.name] = len(ops)
        else:
            ops.append(step)
    return b"".join(
        struct.pack("HBBI", op.code, labels[op.label] - at - 1 if op.label else 0, 0, op.k)
        for at, op in enumerate(ops)
    )


def no_new_privileges() -> None:
    """Raises: OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def install(code: bytes) -> None:
    """For this process and all its threads. Several filters add up: each must allow a call.

    Raises: OSError when the kernel refuses the filter; NO_NEW_PRIVS is set all the same.
    """
    no_new_privileges()
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, f"no seccomp filter for {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    kept = ctypes.create_string_buffer(code)
    # struct sock_fprog: u16 length in instructions, pointer
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(kept)))
    libc.syscall.restype = ctypes.c_long
    ret = libc.syscall(SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, program)
    if ret > 0:
        raise OSError(errno.EBUSY, f"seccomp: thread {ret} cannot take the filter")
    _check(ret, "seccomp")


def _check(ret: int, what: str) -> None:
    if ret < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
