"""What hyper gives up once it serves: new programs, new processes, new files, new sockets, other processes.

A seccomp filter for all threads (TSYNC), in classic BPF built by hand: a list of denied system calls. It is a
second fence: the first is that guests reach no frame that isn't theirs. Whatever the server needs must be
open and imported before; accept(), memfds, eventfds and threads keep working.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

_PR_SET_NO_NEW_PRIVS = 38
_SYS_SECCOMP = 317
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1

_RET_KILL_PROCESS = 0x80000000
_RET_ERRNO = 0x00050000
_RET_ALLOW = 0x7FFF0000
_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000

# struct seccomp_data
_NR, _ARCH, _ARG0 = 0, 4, 16

_LD_ABS, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06

_CLONE, _CLONE3 = 56, 435
DENIED = {
    "open": 2, "creat": 85, "openat": 257, "openat2": 437, "open_by_handle_at": 304, "open_tree": 428,
    "socket": 41, "io_uring_setup": 425,
    "execve": 59, "execveat": 322, "fork": 57, "vfork": 58,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438,
    "mount": 165, "move_mount": 429, "fsopen": 430, "unshare": 272, "setns": 308, "chroot": 161,
    "init_module": 175, "finit_module": 313, "kexec_load": 246, "bpf": 321, "perf_event_open": 298,
}  # fmt: skip
"""x86-64 numbers; refused with EPERM. clone is refused without CLONE_THREAD; clone3 with ENOSYS (its flags
lie in memory, out of a filter's sight), after which libc uses clone."""


def confine() -> None:
    """For this process and all its threads, for good. Other architectures' system calls kill the process.

    Raises: OSError when the kernel refuses the filter; NO_NEW_PRIVS is set all the same.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, f"no seccomp filter for {platform.machine()}")
    code = _program()
    kept = ctypes.create_string_buffer(code)
    # struct sock_fprog: u16 length in instructions, pointer
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(kept)))
    libc.syscall.restype = ctypes.c_long
    ret = libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, program)
    if ret > 0:
        raise OSError(errno.EBUSY, f"seccomp: thread {ret} cannot take the filter")
    _check(ret, "seccomp")


@dataclass(frozen=True)
class _Op:
    """struct sock_filter; `label` names the target of a jump taken when true."""

    code: int
    k: int
    label: str = ""


def _program() -> bytes:
    ops = [
        _Op(_LD_ABS, _ARCH),
        _Op(_JEQ, _AUDIT_ARCH_X86_64, "native"),
        _Op(_RET, _RET_KILL_PROCESS),
    ]
    labels = {"native": len(ops)}
    ops += [_Op(_LD_ABS, _NR), _Op(_JGE, _X32_BIT, "eperm")]
    ops += [_Op(_JEQ, nr, "eperm") for nr in DENIED.values()]
    ops += [_Op(_JEQ, _CLONE3, "enosys"), _Op(_JEQ, _CLONE, "clone"), _Op(_RET, _RET_ALLOW)]
    labels["clone"] = len(ops)
    ops += [_Op(_LD_ABS, _ARG0), _Op(_JSET, _CLONE_THREAD, "allow")]
    labels["eperm"] = len(ops)
    ops += [_Op(_RET, _RET_ERRNO | errno.EPERM)]
    labels["enosys"] = len(ops)
    ops += [_Op(_RET, _RET_ERRNO | errno.ENOSYS)]
    labels["allow"] = len(ops)
    ops += [_Op(_RET, _RET_ALLOW)]
    return b"".join(
        struct.pack("HBBI", op.code, labels[op.label] - at - 1 if op.label else 0, 0, op.k)
        for at, op in enumerate(ops)
    )


def _check(ret: int, what: str) -> None:
    if ret < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
