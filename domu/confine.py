"""What the process of a guest gives up: three fences, one inside the other.

    jail()            before any of the guest's code is read: namespaces with a file system of their own in
                      which only Python and these packages can be seen (read-only); no capabilities, no core
                      dumps, no tracing; Landlock for the same files
    limit(...)        memory, descriptors, sizes of files
    allow_imports()   a list of system calls that reading modules needs; files are opened for reading only
    allow_running()   the same without opening anything: what is left is memory, time, threads and the
                      descriptors at hand

The second list is installed by a process in which the guest's code has already run and could prevent it: what
holds against a hostile guest is the jail and the first list. The second one holds honest guests with faults.
Where namespaces are refused the other fences stand: files cannot be opened once the guest runs and no
process can be touched, but this is meant against faults. Refused calls fail with EPERM. What Landlock
cannot do on an old kernel is left out.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import trio

from hyper.public import daemon
from hyper.public.seccomp import (
    ALLOW,
    CLONE,
    CLONE3,
    CLONE_THREAD,
    JEQ,
    JSET,
    LD,
    NATIVE_ONLY,
    PR_SET_NO_NEW_PRIVS,
    RET,
    SYS_SECCOMP,
    Label,
    Op,
    argument,
    assemble,
    install,
    no_new_privileges,
    refuse,
)

_CLONE_NEW = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""Namespaces: mount, cgroup, UTS, IPC, user, PID, network."""
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_SYS_PIVOT_ROOT, _SYS_CAPSET, _SYS_MOUNT_SETATTR = 155, 126, 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_PR_SET_PDEATHSIG = 1
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 4, 8
_LANDLOCK_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
"""All rights to files that an ABI version knows: what we handle, we refuse unless it is granted."""

_SYSTEM_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
"""Where libraries of extension modules come from."""

RUNNING = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mprotect": 10, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "readv": 19, "writev": 20,
    "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35,
    "getpid": 39, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "shutdown": 48,
    "getsockopt": 55, "exit": 60, "uname": 63, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98,
    "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108,
    "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204,
    "set_tid_address": 218, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "pselect6": 270,
    "ppoll": 271, "set_robust_list": 273, "epoll_pwait": 281, "timerfd_create": 283,
    "timerfd_settime": 286, "eventfd2": 290, "epoll_create1": 291, "dup3": 292, "pipe2": 293,
    "getrandom": 318, "membarrier": 324, "rseq": 334, "close_range": 436, "futex_waitv": 449,
}  # fmt: skip
"""Always allowed, x86-64 numbers. mmap, clone, fcntl, tgkill: with some arguments only."""

IMPORTING = {
    "stat": 4, "lstat": 6, "pread64": 17, "access": 21, "getcwd": 79, "readlink": 89, "fstatfs": 138,
    "getdents64": 217, "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "statx": 332,
    "faccessat2": 439,
}  # fmt: skip
"""Allowed as well while modules are read, with open and openat for reading and what ends this stage."""

_MMAP, _FCNTL, _TGKILL, _OPEN, _OPENAT, _PRCTL = 9, 72, 234, 2, 257, 157
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # duplicate, get and set flags
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Refused(Exception):
    """The kernel, or who runs us, does not allow it. The text says what."""


def jail(files: Iterable[Path] = (), namespaces: bool = True) -> str | None:
    """Namespaces, capabilities, tracing, Landlock. `files` can be read besides Python and these packages.

    With namespaces this process is as it was but for its new view of the file system; the next child it forks
    is the first of the new PID namespace.
    Returns: None, or why there are no namespaces.
    """
    visible = sorted({path for path in (*_needed(), *files) if path.exists()})
    why = None if namespaces else "not wanted"
    if namespaces:
        try:
            _enter_namespaces(visible)
        except Refused as refused:
            why = str(refused)
    daemon.harden()
    _drop_capabilities()
    no_new_privileges()
    _landlock(visible)
    return why


def limit(data_bytes: int, files: int) -> None:
    """Private memory, open files; no core dumps, and no file or memfd may grow any more."""
    limits = {
        resource.RLIMIT_DATA: data_bytes,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for what, value in limits.items():
        _, hard = resource.getrlimit(what)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (allowed, allowed))


def allow_imports() -> None:
    """From now on: run, and read files. For all threads, for good. Raises: OSError."""
    opens = [
        Op(JEQ, _OPEN, "open"),
        Op(JEQ, _OPENAT, "openat"),
        Op(JEQ, _PRCTL, "prctl"),
        Op(JEQ, SYS_SECCOMP, "allow"),
        *(Op(JEQ, nr, "allow") for nr in IMPORTING.values()),
    ]
    reads: list[Op | Label] = [
        Label("open"),
        Op(LD, argument(1)),
        Op(JSET, _WRITING, "eperm"),
        Op(RET, ALLOW),
        Label("openat"),
        Op(LD, argument(2)),
        Op(JSET, _WRITING, "eperm"),
        Op(RET, ALLOW),
        Label("prctl"),
        Op(LD, argument(0)),
        Op(JEQ, PR_SET_NO_NEW_PRIVS, "allow"),
        refuse(errno.EPERM),
    ]
    install(_program(opens, reads))


def allow_running() -> None:
    """From now on: run. For all threads, for good. Raises: OSError."""
    install(_program([], []))


def die_with_parent(number: int) -> None:
    """This signal when the parent dies. Raises: Refused."""
    _call("prctl", "prctl", _PR_SET_PDEATHSIG, number, 0, 0, 0)


def _program(more: list[Op], sections: Sequence[Op | Label]) -> bytes:
    return assemble(
        [
            *NATIVE_ONLY,
            *more,
            Op(JEQ, _MMAP, "mmap"),
            Op(JEQ, CLONE, "clone"),
            Op(JEQ, CLONE3, "enosys"),
            Op(JEQ, _FCNTL, "fcntl"),
            Op(JEQ, _TGKILL, "tgkill"),
            *(Op(JEQ, nr, "allow") for nr in RUNNING.values()),
            refuse(errno.EPERM),
            *sections,
            Label("mmap"),  # shared memory without a file counts to no limit
            Op(LD, argument(3)),
            Op(JSET, _MAP_SHARED, "shared"),
            Op(RET, ALLOW),
            Label("shared"),
            Op(JSET, _MAP_ANONYMOUS, "eperm"),
            Op(RET, ALLOW),
            Label("clone"),
            Op(LD, argument(0)),
            Op(JSET, CLONE_THREAD, "allow"),
            refuse(errno.EPERM),
            Label("fcntl"),  # F_SETOWN would signal others
            Op(LD, argument(1)),
            *(Op(JEQ, command, "allow") for command in _FCNTL_COMMANDS),
            refuse(errno.EPERM),
            Label("tgkill"),  # abort() and raise() only
            Op(LD, argument(0)),
            Op(JEQ, os.getpid(), "allow"),
            Label("eperm"),
            refuse(errno.EPERM),
            Label("enosys"),
            refuse(errno.ENOSYS),
            Label("allow"),
            Op(RET, ALLOW),
        ]
    )


# --- namespaces


def _enter_namespaces(visible: list[Path]) -> None:
    """Raises: Refused. Nothing has changed then, or only what hides more."""
    uid, gid = os.geteuid(), os.getegid()
    _call("user namespaces", "unshare", _CLONE_NEW)
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError as error:
        raise Refused(f"user namespaces: {error.strerror}") from error
    _new_root(visible)


def _new_root(visible: list[Path]) -> None:
    """An empty file system that shows `visible`, read-only, becomes the root. /proc is where it is put
    together: that exists everywhere and holds nothing that is to be seen.
    """
    _call("mounts", "mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    _call("mounts", "mount", b"none", b"/proc", b"tmpfs", 0, b"mode=755,size=1m")
    for path in _outermost(visible):
        _show(path, Path("/proc") / path.relative_to("/"))
    os.chdir("/proc")
    read_only = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
    _syscall("mounts", _SYS_MOUNT_SETATTR, _AT_FDCWD, b".", _AT_RECURSIVE, read_only, len(read_only))
    _syscall("mounts", _SYS_PIVOT_ROOT, b".", b".")
    _call("mounts", "umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _show(path: Path, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            place.symlink_to(os.readlink(path))
            return
        if stat.S_ISDIR(path.stat().st_mode):
            place.mkdir(exist_ok=True)
        else:
            place.touch()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from error
    _call(str(path), "mount", os.fsencode(path), os.fsencode(place), None, _MS_BIND | _MS_REC, None)


def _needed() -> Iterator[Path]:
    """Python, its modules and libraries, and our packages."""
    yield from map(Path, _SYSTEM_FOLDERS)
    for folder in (sys.prefix, sys.base_prefix, sys.exec_prefix):
        if folder != "/usr":  # of that, only what is listed
            yield Path(folder)
    yield Path("/usr/share/zoneinfo")
    yield Path(trio.__file__).resolve().parents[1]
    for package in ("hyper", "domu"):
        yield Path(__file__).resolve().parents[1] / package


def _outermost(paths: list[Path]) -> list[Path]:
    """Without those that lie in another one."""
    inner = {path for path in paths for other in paths if path != other and path.is_relative_to(other)}
    return [path for path in paths if path not in inner]


# --- capabilities, Landlock


def _drop_capabilities() -> None:
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _syscall("capset", _SYS_CAPSET, header, bytes(24))


def _landlock(visible: list[Path]) -> None:
    """Files other than `visible` cannot be opened, and those only for reading. Best effort."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return
    handled = struct.pack("Q", _LANDLOCK_RIGHTS[min(version, max(_LANDLOCK_RIGHTS))])
    ruleset = libc.syscall(_LANDLOCK_CREATE, handled, len(handled), 0)
    if ruleset < 0:
        return
    try:
        for path in visible:
            _landlock_show(libc, ruleset, path)
        libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _landlock_show(libc: ctypes.CDLL, ruleset: int, path: Path) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    rights = _LANDLOCK_READ_FILE | (_LANDLOCK_READ_DIR if path.is_dir() else 0)
    libc.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
    os.close(fd)


def _call(what: str, name: str, *arguments: object) -> None:
    """A function of libc. Raises: Refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(what, getattr(libc, name)(*arguments))


def _syscall(what: str, number: int, *arguments: object) -> None:
    """Raises: Refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    _checked(what, libc.syscall(number, *arguments))


def _checked(what: str, ret: int) -> None:
    if ret < 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")
