"""A guest that tries to get out, while it is imported and again while it runs. Tells what happened, line
by line:

    escape import:open_proc_mem refused PermissionError: ...
    escape main:execve refused ...
    escape done

A door that is open reads `escape ... OPEN what was behind it`. Words: pids=1,2 runtime=PATH victim=DOMID.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Callable

from domu.domain import Domain
from hyper.guest import abi
from hyper.guest.grants import GrantCopy
from hyper.public.errors import GrantError, XenError

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
NUMBERS = {
    "ptrace": 101, "process_vm_readv": 310, "pidfd_open": 434, "pidfd_getfd": 438, "execve": 59,
    "execveat": 322, "fork": 57, "vfork": 58, "clone3": 435, "unshare": 272, "setns": 308, "mount": 165,
    "chroot": 161, "open_tree": 428, "bpf": 321, "perf_event_open": 298, "io_uring_setup": 425,
    "userfaultfd": 323, "keyctl": 250, "add_key": 248, "kcmp": 312, "memfd_create": 319, "socket": 41,
    "socketpair": 53, "bind": 49, "connect": 42, "kill": 62, "tkill": 200, "pidfd_send_signal": 424,
    "rt_sigqueueinfo": 129, "prlimit64": 302, "prctl": 157, "setpriority": 141, "sched_setaffinity": 203,
    "mknod": 133, "unlink": 87, "rename": 82, "mkdir": 83, "symlink": 88, "chmod": 90, "chown": 92,
    "truncate": 76, "setxattr": 188, "shmget": 29, "msgget": 68, "mq_open": 240, "inotify_init1": 294,
    "name_to_handle_at": 303, "landlock_create_ruleset": 444, "seccomp": 317, "personality": 135,
    "iopl": 172, "reboot": 169, "syslog": 103, "modify_ldt": 154,
}  # fmt: skip

found: list[str] = []


def attempt(name: str, door: Callable[[], object]) -> None:
    try:
        behind = door()
    except (OSError, XenError, GrantError, MemoryError, ValueError) as error:
        found.append(f"{name} refused {type(error).__name__}: {error}")
    else:
        found.append(f"{name} OPEN {behind!r:.200}")


def syscall(number: int, *arguments: object) -> int:
    ctypes.set_errno(0)
    result: int = LIBC.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def files(when: str, words: dict[str, str]) -> None:
    """What can be read or written."""
    runtime = words.get("runtime", "/run")
    paths = ["/etc/passwd", "/etc/shadow", "/proc/self/mem", "/proc/self/environ", "/proc/1/mem", "/dev/mem"]
    for pid in words.get("pids", "1").split(","):
        paths += [f"/proc/{pid}/{what}" for what in ("mem", "environ", "maps")]
    paths += [f"{runtime}/control.lock", f"{runtime}/control", os.path.expanduser("~/.bashrc")]
    for path in paths:
        attempt(f"{when}:read {path}", lambda path=path: read(path))
    for pid in words.get("pids", "1").split(","):
        for fd in range(3, 12):
            attempt(f"{when}:open fd {fd} of {pid}", lambda pid=pid, fd=fd: read(f"/proc/{pid}/fd/{fd}"))
    for folder in ("/proc", "/root", "/home", "/tmp", runtime):
        attempt(f"{when}:list {folder}", lambda folder=folder: os.listdir(folder))
    for path in ("/tmp/escaped", "/escaped", f"{runtime}/escaped", __file__, abi.__file__):
        attempt(f"{when}:write {path}", lambda path=path: os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def processes(when: str, words: dict[str, str]) -> None:
    """Other processes, new programs, new sockets, more memory than is ours."""
    parent = os.getppid() or 1
    pids = [int(pid) for pid in words.get("pids", "1").split(",")] + [parent]
    for pid in pids:
        attempt(f"{when}:signal {pid}", lambda pid=pid: os.kill(pid, signal.SIGCONT))
        attempt(f"{when}:attach {pid}", lambda pid=pid: syscall(NUMBERS["ptrace"], 16, pid, 0, 0))
        attempt(f"{when}:pidfd {pid}", lambda pid=pid: os.pidfd_open(pid))
    attempt(f"{when}:tgkill", lambda: syscall(234, parent, parent, signal.SIGCONT))
    attempt(f"{when}:fork", os.fork)
    attempt(f"{when}:exec", lambda: os.execv(sys.executable, [sys.executable, "-c", ""]))
    attempt(f"{when}:F_SETOWN", lambda: syscall(72, 0, 8, parent))
    attempt(f"{when}:shared memory", lambda: mmap.mmap(-1, 4096))
    attempt(f"{when}:memory", lambda: len(bytearray(2 << 30)))
    for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_NETLINK, socket.AF_PACKET):
        attempt(f"{when}:socket {family}", lambda family=family: socket.socket(family, socket.SOCK_RAW))
    for name, number in NUMBERS.items():
        attempt(f"{when}:{name}", lambda number=number: syscall(number, 0, 0, 0, 0, 0, 0))


def descriptors(when: str) -> None:
    """Nothing that has a name in a file system may be open, but for /dev/null."""
    for fd in range(1024):
        try:
            status = os.fstat(fd)
        except OSError:
            continue
        kind, null = stat.S_IFMT(status.st_mode), os.makedev(1, 3)
        named = kind in (stat.S_IFDIR, stat.S_IFBLK) or status.st_rdev not in (0, null)
        if named or (kind == stat.S_IFREG and status.st_nlink):
            found.append(f"{when}:descriptor {fd} OPEN mode {status.st_mode:o}")


async def ask(name: str, door: Callable[[], Awaitable[object]]) -> None:
    try:
        behind = await door()
    except (OSError, XenError, GrantError, MemoryError, ValueError) as error:
        found.append(f"hyper:{name} refused {type(error).__name__}: {error}")
    else:
        found.append(f"hyper:{name} OPEN {behind!r:.200}")


async def hypercalls(domain: Domain, victim: int) -> None:
    """What a domain must not be granted, of another domain, of Dom0 or of the host."""
    hyp, lib = domain.hyp, abi.lib

    async def domctl(command: int, domid: int) -> int:
        version = lib.XEN_DOMCTL_INTERFACE_VERSION
        with hyp.arena.new("struct xen_domctl", cmd=command, domain=domid, interface_version=version) as buf:
            return await hyp.hypercall(abi.nr.domctl, buf.addr)

    async def sysctl(command: int) -> int:
        version = lib.XEN_SYSCTL_INTERFACE_VERSION
        with hyp.arena.new("struct xen_sysctl", cmd=command, interface_version=version) as buf:
            return await hyp.hypercall(abi.nr.sysctl, buf.addr)

    async def shut_down(domid: int) -> int:
        with hyp.arena.new("struct sched_remote_shutdown", domain_id=domid, reason=0) as buf:
            return await hyp.hypercall(abi.nr.sched_op, lib.SCHEDOP_remote_shutdown, buf.addr)

    async def acquire(domid: int) -> int:
        with (
            hyp.arena.alloc(8) as frames,
            hyp.arena.new(
                "struct xen_mem_acquire_resource", domid=domid, nr_frames=1, frame_list=frames.addr
            ) as buf,
        ):
            buf.struct.type = lib.XENMEM_resource_grant_table
            return await hyp.hypercall(abi.nr.memory_op, lib.XENMEM_acquire_resource, buf.addr)

    async def copy(domid: int, gref: int, to_us: bool) -> int:
        with hyp.arena.alloc(4096, align=4096) as page:
            sides = (domid, gref), (lib.DOMID_SELF, page.addr >> 12)
            source, dest = sides if to_us else sides[::-1]
            (status,) = await hyp.grant_copy(GrantCopy(source, dest, 64))
            if status != lib.GNTST_okay:
                raise GrantError("copy", status)
            return status

    for domid in (victim, 0, domain.domid):
        for name in ("getdomaininfo", "destroydomain", "pausedomain"):
            command = getattr(lib, f"XEN_DOMCTL_{name}")
            await ask(f"{name} {domid}", lambda command=command, domid=domid: domctl(command, domid))
    for command in (lib.XEN_SYSCTL_readconsole, lib.XEN_SYSCTL_physinfo, lib.XEN_SYSCTL_getdomaininfolist):
        await ask(f"sysctl {command}", lambda command=command: sysctl(command))
    for domid in (victim, 0):
        await ask(f"map_bank {domid}", lambda domid=domid: hyp.map_bank(domid))
        await ask(f"adopt {domid}", lambda domid=domid: hyp.adopt(domid, 1 << 20))
        await ask(f"resource of {domid}", lambda domid=domid: acquire(domid))
        await ask(f"shut down {domid}", lambda domid=domid: shut_down(domid))
        await ask(f"port of {domid}", lambda domid=domid: hyp.alloc_unbound(domid, domain.domid))
        for port in range(1, 40):
            await ask(
                f"bind {domid}/{port}", lambda domid=domid, port=port: hyp.bind_interdomain(domid, port)
            )
        for gref in (*range(12), 511, 512, 1 << 20, 0xFFFFFFFF):
            await ask(f"map {domid}/{gref}", lambda domid=domid, gref=gref: hyp.map_grant(domid, gref))
            for to_us in (True, False):
                await ask(f"copy {domid}/{gref}/{to_us}", lambda *a, d=domid, g=gref, t=to_us: copy(d, g, t))
    own = hyp.process_domain
    assert own is not None
    for port in set(range(1, 40)) - {own.store_port, own.console_port}:
        await ask(f"port {port}", lambda port=port: hyp.open_port(port))
    await ask("fd_get", lambda: hyp.fd_get("xenstored.journal"))
    await ask("fd_put", lambda: hyp.fd_put("xenstored.journal", 1))
    for mfn in (0, 1, own.base_mfn - 1, own.base_mfn + own.nr_frames, 1 << 40):
        attempt(f"hyper:frame {mfn}", lambda mfn=mfn: bytes(hyp.frame(mfn)[:8]))


async def xenstore(domain: Domain, victim: int) -> None:
    """What belongs to others, or to the toolstack."""
    xs = domain.xs
    victims = f"/local/domain/{victim}"
    for path in (f"{victims}/name", f"{victims}/device", "/local/domain/0/name", "/tool"):
        await ask(f"xs write {path}", lambda path=path: xs.write(path, "x"))
    for path in (f"{victims}/name", f"{victims}/console/tty"):
        await ask(f"xs read {path}", lambda path=path: xs.read(path))
    for path in ("name", "domid", "device/vbd/51712/backend", "console/ring-ref"):
        await ask(f"xs change own {path}", lambda path=path: xs.write(path, "x"))
    await ask("xs introduce", lambda: xs.introduce(victim, 1, 1))
    await ask("xs release", lambda: xs.release(victim))
    await ask("xs set_target", lambda: xs.set_target(domain.domid, victim))
    await ask("xs set_perms", lambda: xs.set_perms(victims, [f"n{domain.domid}"]))


WORDS = {"pids": "1,2,3"}
files("import", WORDS)
processes("import", WORDS)


async def main(domain: Domain) -> None:
    words = dict(word.split("=", 1) for word in domain.words)
    files("main", words)
    processes("main", words)
    descriptors("main")
    await hypercalls(domain, int(words["victim"]))
    await xenstore(domain, int(words["victim"]))
    for line in found:
        print(f"escape {line}")
        await domain.console.drain()
    print(f"escape done {len(found)}")
