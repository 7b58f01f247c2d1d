"""Debian root file systems as raw disk images, without root: mmdebstrap installs, mke2fs writes the disk.

    rootfs/<digest>.ext4    one image for each choice of release, packages and size, kept in the cache

A user's disk is a sparse copy of the cached one. The system in it starts systemd, has a login on hvc0 (root,
no password), asks for an address by DHCP on every interface it finds, and has no kernel of its own: the
kernel and an initramfs made with `root=True` come from outside, as with any PV guest without a bootloader.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from toolstack.lab import progress
from toolstack.lab.images import ImageError, cache_folder

RELEASE = "bookworm"
SIZE_MIB = 2048
PACKAGES = tuple("systemd-sysv udev systemd-resolved dbus iproute2 iputils-ping less vim-tiny".split())
"""What every image has beside Debian's essential packages and apt."""
MAX_SIZE_MIB = 1 << 20

_NEEDED = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "unshare": "util-linux"}
_FORMAT = 1  # part of the digest: change it with anything below that changes what an image holds
_NETWORK = """\
[Match]
Name=e*
[Network]
DHCP=yes
"""
_CONFIGURE = r"""
set -e
root=$1
echo debian > "$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n' > "$root/etc/hosts"
echo 'LABEL=root / ext4 defaults 0 1' > "$root/etc/fstab"
printf '%s' "$network" > "$root/etc/systemd/network/10-guest.network"
rm -f "$root/etc/resolv.conf"
ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
chroot "$root" passwd --quiet --delete root
chroot "$root" systemctl --quiet enable systemd-networkd systemd-resolved
chroot "$root" systemctl --quiet mask systemd-networkd-wait-online
: > "$root/etc/machine-id"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
"""
# mmdebstrap has /proc, /sys and /dev mounted while hooks run; mke2fs must not see what is in them.
_WRITE_DISK = r"""
set -e
write='mke2fs -q -F -t ext4 -L root -E root_owner=0:0 -d "$1" "$image" "$size_mib"M'
if mountpoint -q "$1/proc"; then
    away='umount --recursive --lazy "$1/proc" "$1/sys" "$1/dev" 2>/dev/null'
    unshare --mount sh -c "$away; $write" sh "$1"
else
    sh -c "$write" sh "$1"
fi
"""


def debian_disk(
    target: Path, *, release: str = RELEASE, include: Sequence[str] = (), size_mib: int = SIZE_MIB
) -> Path:
    """A raw disk at `target` with a Debian root file system, replacing what is there. The first is slow.

    `include`: more packages. `size_mib`: of the disk, which is sparse. Raises: ImageError.
    """
    image = _cached(release, tuple(sorted({*PACKAGES, *include})), size_mib)
    fresh = target.with_name(f".{target.name}.new")
    try:
        copied = subprocess.run(
            ["cp", "--reflink=auto", "--sparse=always", image, fresh],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if copied.returncode:
            raise ImageError(f"cannot write {target}: {copied.stderr.strip().splitlines()[-1]}")
        fresh.chmod(0o644)
        fresh.replace(target)
    except OSError as error:
        raise ImageError(f"cannot write {target}: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
    return target


def _cached(release: str, packages: tuple[str, ...], size_mib: int) -> Path:
    _check(release, packages, size_mib)
    recipe = "\n".join([str(_FORMAT), release, *packages, str(size_mib), _NETWORK, _CONFIGURE])
    image = cache_folder() / "rootfs" / f"{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.ext4"
    if not image.is_file():
        image.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=image.parent) as folder:
            fresh = Path(folder) / "disk"
            _make(fresh, release, packages, size_mib)
            fresh.chmod(0o444)
            fresh.replace(image)
    return image


def _check(release: str, packages: Sequence[str], size_mib: int) -> None:
    for what, word in [("release", release), *(("package", package) for package in packages)]:
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", word):
            raise ImageError(f"{word!r} is no {what} of Debian")
    if not 256 <= size_mib <= MAX_SIZE_MIB:
        raise ImageError(f"a disk of {size_mib} MiB: 256 to {MAX_SIZE_MIB} are possible")
    for command, package in _NEEDED.items():
        if shutil.which(command, path=_path()) is None:
            raise ImageError(f"making a root file system needs {command}: apt-get install {package}")


def _make(image: Path, release: str, packages: Sequence[str], size_mib: int) -> None:
    command = [
        "mmdebstrap", "--variant=minbase", "--format=null", f"--include={','.join(packages)}",
        f"--customize-hook={_hook(_CONFIGURE, network=_NETWORK)}",
        f"--customize-hook={_hook(_WRITE_DISK, image=str(image), size_mib=str(size_mib))}",
        release, "/dev/null",
    ]  # fmt: skip
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": _path()}
    said: list[str] = []
    with (
        progress.step(f"installing Debian {release} ({len(packages)} packages and what they need)") as step,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", env=environment,
        ) as process,
    ):  # fmt: skip
        assert process.stderr is not None
        try:
            for line in process.stderr:
                said.append(line.strip())
                step.detail = said[-1].removeprefix("I: ")[:60]
        except BaseException:
            process.terminate()  # it removes what it has unpacked
            raise
    if process.returncode:
        raise ImageError(f"mmdebstrap has failed: {_why(said)}")
    if not image.is_file():
        raise ImageError("mmdebstrap has ended without a disk")


def _hook(script: str, **variables: str) -> str:
    assignments = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    return f'sh -c {shlex.quote(assignments + script)} hook "$1"'


def _why(said: Sequence[str]) -> str:
    """The line that explains a failure: apt's or dpkg's first error, else mmdebstrap's own."""
    errors = [line for line in said if re.match(r"(E: |dpkg: error|mke2fs: )", line)]
    return errors[0].removeprefix("E: ") if errors else (said[-1] if said else "it said nothing")


def _path() -> str:
    """Where administrators' tools lie is not in every user's PATH."""
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
