"""What hyper gives up once it serves: new programs, new processes, new files, new sockets, other processes.

A seccomp filter for all threads (TSYNC): a list of denied system calls. It is a second fence: the first
is that guests reach no frame that isn't theirs. Whatever the server needs must be open and imported
before; accept(), memfds, eventfds and threads keep working.
"""

from __future__ import annotations

import errno
import mmap

from hyper.public.seccomp import (
    ALLOW,
    CLONE,
    CLONE3,
    CLONE_THREAD,
    JEQ,
    JSET,
    LD,
    NATIVE_ONLY,
    RET,
    Label,
    Op,
    argument,
    assemble,
    install,
    refuse,
)

MAPPINGS = {"mmap": 9, "mprotect": 10, "pkey_mprotect": 329}
"""Refused when writable and executable at once: translated code has one mapping for each."""
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
    install(_program())


def _program() -> bytes:
    return assemble(
        [
            *NATIVE_ONLY,
            *(Op(JEQ, nr, "eperm") for nr in DENIED.values()),
            Op(JEQ, CLONE3, "enosys"),
            Op(JEQ, CLONE, "clone"),
            *(Op(JEQ, nr, "mapping") for nr in MAPPINGS.values()),
            Op(RET, ALLOW),
            Label("mapping"),
            Op(LD, argument(2)),
            Op(JSET, mmap.PROT_EXEC, "executable"),
            Op(RET, ALLOW),
            Label("executable"),
            Op(JSET, mmap.PROT_WRITE, "eperm"),
            Op(RET, ALLOW),
            Label("clone"),
            Op(LD, argument(0)),
            Op(JSET, CLONE_THREAD, "allow"),
            Label("eperm"),
            refuse(errno.EPERM),
            Label("enosys"),
            refuse(errno.ENOSYS),
            Label("allow"),
            Op(RET, ALLOW),
        ]
    )
