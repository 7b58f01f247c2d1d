"""Guest images: Debian's own kernel, a static busybox, the initramfs around it, and our small guest.

Debian's packages come through `apt-get download` and are unpacked with dpkg-deb, both without root. Where
the machine has no package lists, or they are out of date, fresh ones are fetched into our cache; the system's
stay as they are. Everything is kept in $XDG_CACHE_HOME/umxen and made only once:

    debian/<release>/        vmlinuz, config and modules/ of one kernel
    debian/current-<flavour> points to one of them
    busybox/busybox          when the system has no static one
    busybox-i386/busybox     a 32-bit one, for tests
    initramfs/<digest>.cpio
    small/small.elf          built with gcc from domu/guests/small
"""

from __future__ import annotations

import functools
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from toolstack.lab import initramfs, progress

FLAVOURS = {"cloud": "linux-image-cloud-amd64", "amd64": "linux-image-amd64"}
"""Debian's meta packages by the flavour's name."""
MODULES = ("xen-blkfront", "xen-netfront")
"""What the initramfs loads, with what they depend on."""
ROOT_MODULES = ("ext4", "crc32c_generic", "virtio_pci", "virtio_blk", "virtio_net")
"""What it loads as well for a root file system: ext4, which asks for its checksum by name, and the drivers
with which the same disk boots in QEMU, for comparison.
"""
SMALL_GUEST = Path(__file__).resolve().parents[2] / "domu" / "guests" / "small"

_T = TypeVar("_T")
_DOWNLOAD_SECONDS = 1800
_PT_INTERP = 3
_ORDER, _ROOT_ORDER = "order", "root-order"


class ImageError(Exception):
    """An image cannot be had; the text is one line that says why."""


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the modules that fit it, in the order they are loaded."""

    path: Path
    release: str = ""
    modules: tuple[Path, ...] = ()
    root_modules: tuple[Path, ...] = ()
    """Those that a root file system needs."""


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/umxen, made if needed."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "umxen"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kernel(path: Path | None = None, flavour: str = "cloud", *, update: bool = False) -> Kernel:
    """The kernel at `path`, or Debian's of that flavour: the cached one, downloaded when there is none.

    `update` asks Debian for a newer one first. Raises: ImageError.
    """
    if path is not None:
        return _own_kernel(path)
    if flavour not in FLAVOURS:
        raise ImageError(f"no kernel flavour {flavour!r}: there are {', '.join(FLAVOURS)}")
    current = cache_folder() / "debian" / f"current-{flavour}"
    if update or not (current / "vmlinuz").is_file() or not (current / "modules" / _ROOT_ORDER).is_file():
        _download_kernel(flavour, current)
    return _unpacked_kernel(current.resolve())


def busybox() -> Path:
    """A static busybox: the system's, or the one of Debian's busybox-static. Raises: ImageError."""
    for name in ("busybox", "busybox-static"):
        found = shutil.which(name)
        if found and _is_static(Path(found)):
            return Path(found)
    return _cached_busybox(
        "busybox",
        lambda folder: _with_package_lists(lambda options: _download("busybox-static", folder, options)),
    )


def busybox_i386() -> Path:
    """A static 32-bit busybox of Debian's, with glibc. Raises: ImageError."""
    return _cached_busybox(
        "busybox-i386", lambda folder: _download("busybox-static:i386", folder, list(_i386_package_lists()))
    )


def _cached_busybox(name: str, fetch: Callable[[Path], Path]) -> Path:
    cached = cache_folder() / name / "busybox"
    if not cached.is_file():
        with (
            tempfile.TemporaryDirectory(prefix="umxen-deb-") as fetched,
            _unpacked_to(cached.parent) as folder,
        ):
            package = fetch(Path(fetched))
            for member, data in _members(package, lambda name: name in ("bin/busybox", "usr/bin/busybox")):
                (folder / PurePosixPath(member).name).write_bytes(data)
                (folder / PurePosixPath(member).name).chmod(0o755)
    if not cached.is_file():
        raise ImageError("busybox-static holds no busybox")
    return cached


def initial_ramdisk(
    kernel: Kernel,
    *,
    root: bool = False,
    run: str | None = None,
    files: Mapping[str, bytes] | None = None,
    output: Path | None = None,
) -> Path:
    """The initramfs for `kernel` as a file (see initramfs.build): in the cache, or at `output`.

    `root`: with the modules to mount an ext4 root file system. Raises: ImageError.
    """
    modules = {kernel.release: kernel.modules} if kernel.modules else {}
    root_modules = {kernel.release: kernel.root_modules} if root else {}
    try:
        data = initramfs.build(busybox(), modules=modules, root_modules=root_modules, run=run, files=files)
    except ValueError as error:
        raise ImageError(str(error)) from error
    if output is None:
        folder = cache_folder() / "initramfs"
        folder.mkdir(exist_ok=True)
        output = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.cpio"
        if output.is_file():
            return output
    with tempfile.NamedTemporaryFile(dir=output.parent, delete=False) as fresh:
        fresh.write(data)
        os.fchmod(fresh.fileno(), 0o644)
    Path(fresh.name).replace(output)
    return output


def small_guest() -> Path:
    """Our small guest kernel, built from its sources when they changed. Raises: ImageError."""
    folder = cache_folder() / "small"
    folder.mkdir(exist_ok=True)
    if not (SMALL_GUEST / "Makefile").is_file():
        raise ImageError(f"the small guest's sources are not in {SMALL_GUEST}")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")
    }
    built = subprocess.run(
        ["make", "--silent", "-C", SMALL_GUEST, f"OUT={folder}"],
        capture_output=True,
        check=False,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if built.returncode:
        raise ImageError(f"the small guest does not build: {_last_line(built.stderr)}")
    return folder / "small.elf"


def bzimage_release(image: bytes) -> str:
    """The kernel release a bzImage names in its setup header; "" when it is not a bzImage or names none."""
    if image[0x202:0x206] != b"HdrS":
        return ""
    (offset,) = struct.unpack_from("<H", image, 0x20E)
    text = image[offset + 0x200 :].split(b"\0", 1)[0] if offset else b""
    return text.split(b" ", 1)[0].decode(errors="replace")


def module_dependencies(module: bytes) -> list[str]:
    """The names after `depends=` in a module's .modinfo: what must be loaded before it."""
    found = re.search(rb"\0depends=([\w,-]*)\0", module)
    return [name.decode().replace("-", "_") for name in found[1].split(b",") if name] if found else []


def _own_kernel(path: Path) -> Kernel:
    """A kernel of the user's: its modules are taken from /lib/modules of this machine, if they are there."""
    try:
        with path.open("rb") as file:
            release = bzimage_release(file.read(64 << 10))
    except OSError as error:
        raise ImageError(f"kernel {path}: {error.strerror}") from error
    folder = Path("/lib/modules") / release
    kept = cache_folder() / "modules" / release
    if release and folder.is_dir():
        with _unpacked_to(kept) as fresh:
            _collect_modules(lambda names: _modules_below(folder, names), fresh)
    if not release:
        return Kernel(path.resolve())
    return Kernel(path.resolve(), release, _modules_in(kept, _ORDER), _modules_in(kept, _ROOT_ORDER))


def _modules_below(folder: Path, names: Set[str]) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*.ko*"):
        if _module_name(path.name) in names:
            yield path.name, path.read_bytes()


def _modules_of(package: Path, names: Set[str]) -> Iterator[tuple[str, bytes]]:
    return _members(package, lambda member: _module_name(member) in names)


def _download_kernel(flavour: str, current: Path) -> None:
    def fetch(options: list[str]) -> str:
        package = _depends_on(FLAVOURS[flavour], options)
        release = package.removeprefix("linux-image-")
        target = current.parent / release
        if not (target / "modules" / _ROOT_ORDER).is_file():
            with tempfile.TemporaryDirectory(prefix="umxen-deb-") as folder:
                _unpack_kernel(_download(package, Path(folder), options), target)
        return release

    release = _with_package_lists(fetch)
    fresh = current.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(release)
    fresh.replace(current)


def _unpack_kernel(package: Path, target: Path) -> None:
    with progress.step(f"unpacking {package.name}"), _unpacked_to(target) as folder:
        for member, data in _members(
            package, lambda name: re.match(r"boot/(vmlinuz|config)-", name) is not None
        ):
            (folder / PurePosixPath(member).name.split("-", 1)[0]).write_bytes(data)
        _collect_modules(lambda names: _modules_of(package, names), folder / "modules")
        if not (folder / "vmlinuz").is_file():
            raise ImageError(f"{package.name} holds no kernel")


def _unpacked_kernel(folder: Path) -> Kernel:
    modules = folder / "modules"
    return Kernel(
        folder / "vmlinuz", folder.name, _modules_in(modules, _ORDER), _modules_in(modules, _ROOT_ORDER)
    )


def _modules_in(folder: Path, which: str) -> tuple[Path, ...]:
    order = folder / which
    return tuple(folder / name for name in order.read_text().split()) if order.is_file() else ()


def _collect_modules(source: Callable[[Set[str]], Iterator[tuple[str, bytes]]], folder: Path) -> None:
    """Write MODULES, ROOT_MODULES and all they depend on to `folder`, unpacked, and a file with each order.

    `source` gives the files of the modules it is asked for. One that is not there is built in, or its kernel
    has none: both are fine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, bytes] = {}
    asked: set[str] = set()
    missing = {name.replace("-", "_") for name in (*MODULES, *ROOT_MODULES)}
    while missing:
        asked |= missing
        found |= {
            name: _unpacked_module(member, data)
            for member, data in source(missing)
            if (name := _module_name(member))
        }
        missing = {needed for data in found.values() for needed in module_dependencies(data)} - asked
    for name, data in found.items():
        (folder / f"{name}.ko").write_bytes(data)
    begun: set[str] = set()
    for which, modules in ((_ORDER, MODULES), (_ROOT_ORDER, ROOT_MODULES)):
        order = _in_order(found, modules, begun)
        (folder / which).write_text(" ".join(f"{name}.ko" for name in order) + "\n")


def _in_order(found: Mapping[str, bytes], modules: Sequence[str], begun: set[str]) -> list[str]:
    """`modules` after what they depend on, without those in `begun`, which grows by them."""
    order: list[str] = []

    def place(name: str) -> None:
        if name in found and name not in begun:
            begun.add(name)
            for needed in module_dependencies(found[name]):
                place(needed)
            order.append(name)

    for name in modules:
        place(name.replace("-", "_"))
    return order


def _module_name(member: str) -> str:
    name, dot, _ = PurePosixPath(member).name.partition(".ko")
    return name.replace("-", "_") if dot else ""


def _unpacked_module(member: str, data: bytes) -> bytes:
    if member.endswith(".xz"):
        return lzma.decompress(data)
    if member.endswith(".zst"):
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if member.endswith(".gz"):
        import gzip

        return gzip.decompress(data)
    return data


def _members(package: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Files of a .deb whose path (without a leading ./) is `wanted`."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as unpacker:
        assert unpacker.stdout is not None and unpacker.stderr is not None
        try:
            with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.isfile() and wanted(name):
                        content = archive.extractfile(member)
                        assert content is not None
                        yield name, content.read()
            while unpacker.stdout.read(1 << 20):
                pass  # tar's padding; dpkg-deb must not die of a closed pipe
        except tarfile.TarError as error:
            raise ImageError(
                f"{package.name} cannot be unpacked: {_last_line(unpacker.stderr.read()) or error}"
            ) from error
        if unpacker.wait():
            raise ImageError(f"{package.name} cannot be unpacked: {_last_line(unpacker.stderr.read())}")


@contextmanager
def _unpacked_to(target: Path) -> Iterator[Path]:
    """A fresh folder that becomes `target` when the block ends well, and vanishes when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fresh.chmod(0o755)
        yield fresh
        shutil.rmtree(target, ignore_errors=True)
        fresh.replace(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _with_package_lists(action: Callable[[list[str]], _T]) -> _T:
    """`action` with apt's options: the system as it is; when that raised ImageError, fresh package lists."""
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    try:
        return action(sandbox)
    except ImageError:
        if shutil.which("apt-get") is None:
            raise
    return action([*sandbox, *_fresh_package_lists()])


@functools.cache
def _fresh_package_lists() -> tuple[str, ...]:
    """Fetch Debian's package lists into our cache, once in a process; the options that make apt use them."""
    folder = cache_folder() / "apt"
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    options = ("-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache")
    with progress.step("fetching Debian's package lists"):
        result = _apt(["apt-get", *options, "-q", "update"])
    if result.returncode:
        raise ImageError(f"cannot fetch Debian's package lists: {_last_line(result.stderr)}")
    return options


@functools.cache
def _i386_package_lists() -> tuple[str, ...]:
    """The same for Debian's 32-bit packages, which the system need not know."""
    folder = cache_folder() / "apt-i386"
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    settings = [f"Dir::State::lists={folder}/lists", f"Dir::Cache={folder}/cache"]
    settings += ["APT::Architecture=i386", "APT::Architectures::=i386"]
    settings += ["APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    options = tuple(word for setting in settings for word in ("-o", setting))
    with progress.step("fetching Debian's package lists for i386"):
        _apt(["apt-get", *options, "-q", "update"])  # one of several lists may fail: the download tells
    return options


def _depends_on(meta_package: str, options: list[str]) -> str:
    """The package that a meta package stands for at present. Raises: ImageError."""
    listed = _apt(["apt-cache", *options, "depends", "--important", meta_package])
    found = re.search(r"^\s*Depends: (linux-image-\d\S*)", listed.stdout, re.MULTILINE)
    if found is None:
        raise ImageError(
            f"apt knows no {meta_package}: {_last_line(listed.stderr) or 'is this a Debian system?'}"
        )
    return found[1]


def _download(package: str, folder: Path, options: list[str]) -> Path:
    """The package's .deb, fetched into `folder`. Raises: ImageError."""
    with progress.step(f"downloading {package}") as step:
        result = _apt(["apt-get", *options, "-q", "download", package], folder, step)
    packages = list(folder.glob("*.deb"))
    if result.returncode or not packages:
        why = _last_line(result.stderr) or f"status {result.returncode}"
        raise ImageError(f"cannot download {package}: {why}")
    return packages[0]


def _apt(
    command: Sequence[str], folder: Path | None = None, step: progress.Step | None = None
) -> subprocess.CompletedProcess[str]:
    """Run apt in `folder`, showing how much has arrived there. Raises: ImageError where there is no apt."""
    if shutil.which(command[0]) is None:
        raise ImageError(f"there is no {command[0]} on this machine")
    environment = {**os.environ, "LC_ALL": "C"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    waited = 0.0
    while True:
        try:
            output, errors = process.communicate(timeout=0.3)
            return subprocess.CompletedProcess(command, process.returncode, output, errors)
        except subprocess.TimeoutExpired:
            waited += 0.3
        if waited > _DOWNLOAD_SECONDS:
            process.kill()
            process.communicate()
            raise ImageError(f"{command[0]} did not end within {_DOWNLOAD_SECONDS} s")
        if step is not None and folder is not None:
            arrived = sum(path.stat().st_size for path in folder.rglob("*.deb*") if path.is_file())
            step.detail = f"{arrived / 1e6:.1f} MB"


def _is_static(path: Path) -> bool:
    """Whether it is an x86-64 ELF program without an interpreter."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", head, 18)[0] != 62:
        return False
    (table,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if table + size * count > len(head):
        return False
    return all(struct.unpack_from("<I", head, table + i * size)[0] != _PT_INTERP for i in range(count))


def _last_line(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
