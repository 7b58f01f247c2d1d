"""A small initramfs, written in Python: busybox, an /init script, and the guest's driver modules.

The archive is the kernel's "newc" cpio format, made here without root and without an external cpio: device
nodes, owners and times are only numbers in headers. The same input gives the same bytes.

It is left uncompressed: the guest copies 2 MB faster than it inflates them (the guest's CPU is emulated,
and so is the peer's in the benchmark).
"""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MARKER = "umxen: init reached"
NO_ROOT = "umxen: no root file system"
RUN_STATUS = "umxen: run ended with status"

_MAGIC = b"070701"
_HEADER_BYTES = 110
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One member of an archive. `mode` holds the file type; `data` is a file's content or a link's target."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)
    links: int = 1


@dataclass
class CpioArchive:
    """A newc archive in the making. Parent directories are added as they are needed."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def directory(self, name: str, permissions: int = 0o755) -> None:
        """Add a directory; adding one that is there already only changes its permissions."""
        self._add(Entry(_clean(name), stat.S_IFDIR | permissions, links=2))

    def file(self, name: str, data: bytes, permissions: int = 0o644) -> None:
        """Add a regular file owned by root."""
        self._add(Entry(_clean(name), stat.S_IFREG | permissions, data))

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(Entry(_clean(name), stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, name: str, major: int, minor: int, permissions: int = 0o600) -> None:
        """Add a character device node."""
        self._add(Entry(_clean(name), stat.S_IFCHR | permissions, device=(major, minor)))

    def to_bytes(self) -> bytes:
        """The archive: members in the order they were added, a trailer, padded to 512 bytes."""
        out = bytearray()
        for inode, entry in enumerate(self.entries.values(), start=1):
            out += _member(entry, inode)
        out += _member(Entry(_TRAILER, 0), 0)
        return bytes(out) + bytes(-len(out) % 512)

    def _add(self, entry: Entry) -> None:
        for parent in reversed(PurePosixPath(entry.name).parents):
            if str(parent) != "." and str(parent) not in self.entries:
                self.entries[str(parent)] = Entry(str(parent), stat.S_IFDIR | 0o755, links=2)
        self.entries[entry.name] = entry


def _clean(name: str) -> str:
    """A member's name as cpio wants it: relative, no `.` or `..`."""
    path = PurePosixPath(name.lstrip("/"))
    if not path.parts or ".." in path.parts or "\0" in name:
        raise ValueError(f"not a name for an archive member: {name!r}")
    return str(path)


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    major, minor = entry.device
    numbers = (inode, entry.mode, 0, 0, entry.links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % number for number in numbers) + name
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)


def read_archive(data: bytes) -> Iterator[Entry]:
    """The members of a newc archive, in order. Raises ValueError where it is not one or is cut short."""
    offset = 0
    while True:
        header = data[offset : offset + _HEADER_BYTES]
        if len(header) < _HEADER_BYTES or header[:6] != _MAGIC:
            raise ValueError(f"no newc header at byte {offset}")
        numbers = [int(header[i : i + 8], 16) for i in range(6, _HEADER_BYTES, 8)]
        mode, links, size, major, minor, name_size = (numbers[i] for i in (1, 4, 6, 9, 10, 11))
        start = offset + _HEADER_BYTES
        name = data[start : start + name_size - 1].decode()
        start += name_size + -(_HEADER_BYTES + name_size) % 4
        content = data[start : start + size]
        if len(content) != size:
            raise ValueError(f"{name}: {size} bytes announced, {len(content)} there")
        if name == _TRAILER:
            return
        yield Entry(name, mode, content, (major, minor), links)
        offset = start + size + -size % 4


# PID 1 stays a shell that waits. busybox's poweroff, reboot and halt only signal PID 1, and so does what the
# kernel starts when xend writes control/shutdown; the traps below do the work. The marker comes first of all.
INIT = f"""#!/bin/sh
echo '{MARKER}'
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=vt100
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
trap 'poweroff -f' USR2
trap 'halt -f' USR1
trap 'reboot -f' TERM
hostname guest
read -r release < /proc/sys/kernel/osrelease
load() {{ # ORDER
    [ -e "/lib/modules/$release/$1" ] || return
    read -r order < "/lib/modules/$release/$1"
    for module in $order; do
        insmod "/lib/modules/$release/$module"
    done
}}
[ -e /sys/hypervisor/type ] && load order
root= access=ro init=/sbin/init
read -r line < /proc/cmdline
for word in $line; do
    case $word in
    umxen.run=*) echo "${{word#umxen.run=}}" | base64 -d > /run.sh ;;
    root=*) root=${{word#root=}} ;;
    init=*) init=${{word#init=}} ;;
    ro | rw) access=$word ;;
    esac
done
start_root() {{ # never comes back, unless there is no root file system
    load root-order
    mkdir -p /new
    tries=0
    until device=$(findfs "$root" 2> /dev/null || {{ [ -b "$root" ] && echo "$root"; }}); do
        tries=$((tries + 1))
        [ "$tries" -gt 100 ] && echo '{NO_ROOT}:' "there is no $root" && return
        sleep 0.1
    done
    mount -o "$access" "$device" /new || {{ echo '{NO_ROOT}:' "$root cannot be mounted"; return; }}
    mount --move /dev /new/dev
    umount /sys /proc
    exec switch_root -c /dev/console /new "$init"
}}
[ -n "$root" ] && start_root
cd /root
if [ -e /run.sh ]; then
    sh /run.sh < /dev/null &
    wait $!
    echo "{RUN_STATUS} $?"
    poweroff -f
fi
while :; do
    setsid cttyhack sh -l &
    wait $!
    echo 'umxen: the shell ended; "poweroff" ends the guest'
done
"""

PROFILE = """ifconfig lo 127.0.0.1 up
PS1='\\h:\\w \\$ '
alias ll='ls -l'
"""


def applets(busybox: Path) -> list[str]:
    """The names a busybox answers to, as it lists them itself. Raises ValueError where it cannot be run."""
    try:
        listed = subprocess.run(
            [busybox, "--list"], capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"{busybox} is not a busybox that runs here: {error}") from error
    return [name for name in listed.split() if name != "busybox"]


def build(
    busybox: Path,
    *,
    modules: Mapping[str, Sequence[Path]] | None = None,
    root_modules: Mapping[str, Sequence[Path]] | None = None,
    run: str | None = None,
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """The initramfs: a static `busybox`, a link for each of its applets, /init, and what is asked for.

    `modules`: for each kernel release, its modules' unpacked `.ko` files in the order they must be loaded.
    `root_modules`: loaded as well when the kernel's command line has a `root=`, which /init then mounts and
    starts instead of a shell.
    `run`: a shell script to run instead of a shell on the console; the guest powers off after it.
    `files`: more files by their path in the guest; what starts with `#!` or ELF's magic is made executable.
    """
    archive = CpioArchive()
    for name in ("dev", "proc", "sys", "root", "tmp", "sbin"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("init", INIT.encode(), 0o755)
    archive.file("etc/profile", PROFILE.encode())
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in applets(busybox):
        archive.symlink(f"bin/{applet}", "busybox")
    for applet in ("poweroff", "reboot", "halt", "modprobe"):
        archive.symlink(f"sbin/{applet}", "/bin/busybox")
    for order, of_release in (("order", modules), ("root-order", root_modules)):
        for release, paths in (of_release or {}).items():
            for path in paths:
                archive.file(f"lib/modules/{release}/{path.name}", path.read_bytes())
            names = " ".join(path.name for path in paths)
            archive.file(f"lib/modules/{release}/{order}", f"{names}\n".encode())
    if run is not None:
        archive.file("run.sh", run.encode(), 0o755)
    for name, data in (files or {}).items():
        archive.file(name, data, 0o755 if data.startswith((b"#!", b"\x7fELF")) else 0o644)
    return archive.to_bytes()
