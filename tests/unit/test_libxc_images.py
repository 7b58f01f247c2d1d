"""Kernel files: what is read from them, what is kept of them, and what is said when they can't be used."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dom0.libxc.images import (
    ElfImage,
    ImageError,
    ImageFile,
    KernelCache,
    PvKernel,
    open_kernel,
    pv_kernel,
)
from dom0.libxc.images.cache import MAX_CACHED
from dom0.libxc.images.notes import Note
from tests.kernel_files import (
    COMPRESSORS,
    INIT_P2M,
    LINUX_BASE,
    Load,
    bzimage,
    elf,
    linux_notes,
    number,
    small_notes,
)

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

TEXT = random.Random(1).randbytes(5000)
LOADS = (Load(0x1000000, TEXT), Load(0x1200000, b"data" + bytes(200_000) + b"end", 1 << 20))
VMLINUX = elf(LOADS, linux_notes())


@dataclass
class Files:
    """A folder of kernels and a cache beside it."""

    folder: Path
    cache: KernelCache

    @property
    def cached(self) -> Path:
        return self.folder / "cache"

    def write(self, content: bytes, name: str = "vmlinuz") -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def open(self, content: bytes) -> ElfImage:
        return open_kernel(self.write(content), self.cache)

    def check(self, content: bytes) -> PvKernel:
        """The PV kernel in `content`; its file is closed."""
        image = self.open(content)
        with image.file:
            return pv_kernel(image)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, KernelCache(tmp_path / "cache"))


def loaded(image: ElfImage) -> list[tuple[int, bytes, int]]:
    return [(s.paddr, image.file.read(s.offset, s.filesz), s.memsz) for s in image.segments]


def test_elf_file(files: Files) -> None:
    image = files.open(VMLINUX)
    with image.file:
        assert loaded(image) == [(load.paddr, load.data, max(load.memsz, len(load.data))) for load in LOADS]
        assert image.notes == linux_notes()
        assert image.entry == 0x1000000
    assert not files.cached.exists()


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_bzimage(files: Files, compression: str) -> None:
    image = files.open(bzimage(VMLINUX, compression))
    with image.file:
        assert [data for _, data, _ in loaded(image)] == [load.data for load in LOADS]
        assert image.file.size == len(VMLINUX)
        assert image.file.name == str(files.folder / "vmlinuz")


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_compressed_elf_alone(files: Files, compression: str) -> None:
    image = files.open(COMPRESSORS[compression](VMLINUX))
    with image.file:
        assert image.notes == linux_notes()


def test_linux_parameters(files: Files) -> None:
    kernel = files.check(VMLINUX)
    assert (kernel.virt_base, kernel.entry) == (LINUX_BASE, LINUX_BASE + 0x1000000)
    assert (kernel.pstart, kernel.pend) == (0x1000000, 0x1200000 + (1 << 20))
    assert (kernel.init_p2m, kernel.mod_start_pfn, kernel.hypercall_page) == (INIT_P2M, True, None)
    assert (kernel.guest_os, kernel.guest_version) == ("linux", "2.6")


@pytest.mark.parametrize("in_section", [False, True])
def test_defaults_of_a_small_kernel(files: Files, in_section: bool) -> None:
    """No VIRT_BASE: 0. No ENTRY: the ELF header's. Notes may be in a section only."""
    content = elf([Load(0x100000, TEXT)], small_notes(0x101000), entry=0x100000, notes_in_section=in_section)
    kernel = files.check(content)
    assert (kernel.virt_base, kernel.entry, kernel.init_p2m) == (0, 0x100000, None)
    assert (kernel.hypercall_page, kernel.mod_start_pfn) == (0x101000, False)


def test_paddr_offset(files: Files) -> None:
    notes = {**linux_notes(LINUX_BASE + 0x1000), Note.PADDR_OFFSET: number(LINUX_BASE)}
    kernel = files.check(elf([Load(LINUX_BASE + 0x1000, TEXT)], notes))
    assert kernel.pstart == 0x1000


@pytest.mark.parametrize("base", [INIT_P2M + 8, LINUX_BASE, LINUX_BASE + 0x1000])
def test_init_p2m_that_does_not_count(files: Files, base: int) -> None:
    """Inside a page, or not below the kernel: Xen's builder then puts the p2m after the kernel."""
    assert files.check(elf(LOADS, {**linux_notes(), Note.INIT_P2M: number(base)})).init_p2m is None


def without(*notes: Note) -> dict[int, bytes]:
    return {kind: desc for kind, desc in linux_notes().items() if kind not in notes}


BAD_FILES = {
    "empty": (b"", "is empty"),
    "text": (b"hello " * 1000, "is not a kernel: neither an ELF image nor a bzImage"),
    "short text": (b"\x7f", "is not a kernel"),
    "elf magic only": (b"\x7fELF", "is truncated: has 4 bytes of at least 16"),
    "half a header": (VMLINUX[:40], "is truncated: has 40 bytes of at least 64"),
    "no program headers": (VMLINUX[:64], "is truncated"),
    "half a segment": (VMLINUX[:6000], "is truncated: has 6000 bytes of at least"),
    "32 bit": (elf(LOADS, linux_notes(), elf_class=1, machine=3), "is a 32-bit ELF image"),
    "elf for arm": (elf(LOADS, linux_notes(), machine=183), r"another architecture \(AARCH64\), not x86-64"),
    "elf for nobody": (elf(LOADS, linux_notes(), machine=0xFEED), r"another architecture \(65261\)"),
    "linux for arm": (bytes(0x38) + b"ARM\x64" + bytes(100), r"another architecture \(AArch64\)"),
    "object file": (elf(LOADS, linux_notes(), kind=1), "not an executable image"),
    "nothing to load": (elf([], linux_notes()), "has no loadable segment"),
    "no notes": (elf(LOADS), "is not a Xen PV kernel: it has no Xen notes"),
    "pvh only": (
        elf(LOADS, {Note.PHYS32_ENTRY: number(0x1000000)}),
        r"the note XEN_VERSION is missing \(it has only the entry for PVH guests\)",
    ),
    "no xen version": (elf(LOADS, without(Note.XEN_VERSION)), "the note XEN_VERSION is missing$"),
    "other xen": (elf(LOADS, {**linux_notes(), Note.XEN_VERSION: b"xen-2.0"}), "is for Xen 'xen-2.0'"),
    "no loader": (elf(LOADS, without(Note.LOADER, Note.GUEST_OS)), "notes LOADER and GUEST_OS are missing"),
    "other loader": (
        elf(LOADS, {**without(Note.GUEST_OS), Note.LOADER: b"own"}),
        "is for the loader 'own'",
    ),
    "feature": (
        elf(LOADS, {**linux_notes(), Note.FEATURES: b"!auto_translated_physmap|!dom0|other"}),
        "needs features we lack: 'auto_translated_physmap', 'dom0'$",
    ),
    "offset without base": (
        elf(LOADS, {**without(Note.VIRT_BASE), Note.PADDR_OFFSET: number(0)}),
        "has a PADDR_OFFSET note but no VIRT_BASE note",
    ),
    "odd number": (elf(LOADS, {**linux_notes(), Note.VIRT_BASE: b"abc"}), "note VIRT_BASE of 3 bytes"),
    "entry outside": (elf(LOADS, linux_notes(entry=0x1000)), "has its entry 0x1000 outside of"),
    "hypercall page outside": (
        elf(LOADS, {**linux_notes(), Note.HYPERCALL_PAGE: number(0x1000)}),
        "has its hypercall page 0x1000 outside of",
    ),
    "base inside a page": (
        elf(LOADS, {**linux_notes(), Note.VIRT_BASE: number(LINUX_BASE + 1)}),
        "has a VIRT_BASE inside a page",
    ),
    "beyond the address space": (
        elf([Load(0x80000000, TEXT)], linux_notes()),
        "cannot be mapped at its VIRT_BASE",
    ),
    "filesz beyond memsz": (elf([Load(0x1000, b"")], linux_notes()), "has no loadable segment"),
    "wraps": (elf([Load((1 << 64) - 4096, b"x", 1 << 20)], linux_notes()), "has an impossible segment"),
    "old bzimage": (bzimage(VMLINUX, "gzip", version=0x0204), "is a bzImage of before Linux 2.6.26"),
    "cut bzimage": (bzimage(VMLINUX, "xz")[:3000], "is truncated: has 3000 bytes of at least"),
    "bzimage header only": (bzimage(VMLINUX, "xz")[:0x230], "is truncated"),
    "wrong size": (bzimage(VMLINUX, "lz4", size_error=5), "is damaged: unpacks to"),
    "bzimage of text": (bzimage(b"text" * 100, "xz"), "holds compressed data that is not an ELF image"),
    "lzo": (b"\x89LZO" + bytes(100), "unknown compression"),
    "half a gzip": (COMPRESSORS["gzip"](VMLINUX)[:2000], "is truncated: its gzip stream ends too early"),
    "half a bzip2": (COMPRESSORS["bzip2"](VMLINUX)[:2000], "is truncated: its bzip2 stream ends too early"),
    "half an xz": (COMPRESSORS["xz"](VMLINUX)[:2000], "is truncated: its xz stream ends too early"),
    "half an lzma": (COMPRESSORS["lzma"](VMLINUX)[:2000], "is truncated: its lzma stream ends too early"),
    "half a zstd": (COMPRESSORS["zstd"](VMLINUX)[:2000], "is truncated: its zstd stream ends too early"),
    "half an lz4": (COMPRESSORS["lz4"](VMLINUX)[:2000], "is truncated: its lz4 stream ends too early"),
    "damaged xz": (COMPRESSORS["xz"](VMLINUX)[:100] + bytes(9000), "is damaged: its xz stream"),
    "damaged zstd": (COMPRESSORS["zstd"](VMLINUX)[:8] + b"\xff" * 9000, "is damaged: its zstd stream"),
    "damaged lz4": (COMPRESSORS["lz4"](VMLINUX)[:8] + b"\xff" * 9000, "is damaged: its lz4 stream"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(files: Files, case: str) -> None:
    content, message = BAD_FILES[case]
    with pytest.raises(ImageError, match=message) as refused:
        files.check(content)
    text = str(refused.value)
    assert text.startswith(f"{files.folder}/vmlinuz: ")
    assert "\n" not in text
    assert not files.cached.exists() or len(list(files.cached.iterdir())) <= 1


def test_missing_file(files: Files) -> None:
    with pytest.raises(ImageError, match="nothing-here: cannot be opened: No such file or directory"):
        open_kernel(files.folder / "nothing-here", files.cache)


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_not_a_regular_file(files: Files, kind: str) -> None:
    path = files.folder / kind
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ImageError, match="is not a regular file"):
        open_kernel(path, files.cache)


def test_a_bomb_is_not_unpacked(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dom0.libxc.images.unpack.MAX_UNPACKED", 1 << 20)
    with pytest.raises(ImageError, match="unpacks to more than 1 MiB"):
        files.open(COMPRESSORS["xz"](VMLINUX + bytes(64 << 20)))
    assert not list(files.cached.iterdir())


# --- the cache


class Counting:
    """An unpacker that knows how often it was asked."""

    def __init__(self, result: bytes = b"image") -> None:
        self.result = result
        self.calls = 0

    def __call__(self, content: bytes) -> Iterator[bytes]:
        self.calls += 1
        yield self.result


def unpacked(cache: KernelCache, path: Path, how: Counting) -> bytes:
    with ImageFile.open(path) as packed, cache.open(packed, how) as image:
        return image.read(0, image.size)


def test_unpacks_once(files: Files) -> None:
    path, how = files.write(b"packed"), Counting()
    for cache in (files.cache, files.cache, KernelCache(files.cached)):
        assert unpacked(cache, path, how) == b"image"
    assert unpacked(files.cache, files.write(b"packed", "the same elsewhere"), how) == b"image"
    assert how.calls == 1


def test_a_settled_file_is_not_read_again(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    path, how = files.write(b"packed"), Counting()
    monkeypatch.setattr("dom0.libxc.images.cache._SETTLED_NS", -(10**18))
    unpacked(files.cache, path, how)
    with monkeypatch.context() as patch:
        patch.setattr("dom0.libxc.images.cache.hashlib", None)
        assert unpacked(files.cache, path, how) == unpacked(KernelCache(files.cached), path, how) == b"image"
    path.write_bytes(b"other!")
    assert unpacked(files.cache, path, Counting(b"other")) == b"other"


def test_a_link_without_its_kernel(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    path, how = files.write(b"packed"), Counting()
    monkeypatch.setattr("dom0.libxc.images.cache._SETTLED_NS", -(10**18))
    unpacked(files.cache, path, how)
    for entry in files.cached.iterdir():
        if not entry.is_symlink():
            entry.unlink()
    assert unpacked(files.cache, path, how) == unpacked(files.cache, path, how) == b"image"
    assert how.calls == 2


def test_changed_content_is_noticed(files: Files) -> None:
    path, how = files.write(b"packed 1"), Counting()
    unpacked(files.cache, path, how)
    how.result = b"other"
    path.write_bytes(b"packed 2")
    assert unpacked(files.cache, path, how) == b"other"


def test_zeros_become_holes(files: Files) -> None:
    content = b"x" * 100 + bytes(1 << 20) + b"y" * 70_000 + bytes(300_000)
    path = files.write(b"packed")
    with ImageFile.open(path) as packed, files.cache.open(packed, Counting(content)) as image:
        assert image.read(0, image.size) == content
        extents = list(image.data_extents(0, image.size))
        assert sum(size for _, size in extents) < 300_000
        for hole, (start, _) in zip([0] + [s + n for s, n in extents], extents):
            assert not any(content[hole:start])
        assert list(image.data_extents(200_000, 100)) in ([], [(200_000, 100)])


def test_failed_unpacking_leaves_nothing(files: Files) -> None:
    def broken(content: bytes) -> Iterator[bytes]:
        yield b"some"
        raise ImageError("vmlinuz", "is damaged")

    with ImageFile.open(files.write(b"packed")) as packed, pytest.raises(ImageError):
        files.cache.open(packed, broken)
    assert list(files.cached.iterdir()) == []


def test_folder_that_cannot_be_made(files: Files) -> None:
    cache = KernelCache(files.write(b"", "a file") / "below")
    path, how = files.write(b"packed"), Counting()
    assert unpacked(cache, path, how) == unpacked(cache, path, how) == b"image"
    assert how.calls == 2


def test_oldest_are_pruned(files: Files) -> None:
    for index in range(MAX_CACHED + 3):
        path = files.write(b"packed %d" % index)
        unpacked(files.cache, path, Counting(b"image %d" % index))
        newest_first = sorted(files.cached.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        for age, entry in enumerate(newest_first):
            os.utime(entry, (1e9 - age, 1e9 - age))
    stale = files.cached / "unpacking-stale"
    stale.touch()
    os.utime(stale, (1, 1))
    unpacked(files.cache, files.write(b"last"), Counting())
    assert len(list(files.cached.iterdir())) == MAX_CACHED
    assert not stale.exists()


def test_cache_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(VMLINUX, "zstd"))
    open_kernel(path, KernelCache.from_environment()).file.close()
    (kept,) = (tmp_path / "umxen" / "kernels").iterdir()
    assert kept.read_bytes() == VMLINUX
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_read_into_many_buffers(files: Files) -> None:
    """More buffers than one system call takes."""
    content = random.Random(2).randbytes(50_000)
    parts = [bytearray(7 + index % 30) for index in range(2000)]
    with ImageFile.open(files.write(content)) as file:
        file.read_into([memoryview(part) for part in parts], 11)
        assert b"".join(parts) == content[11 : 11 + sum(map(len, parts))]
        with pytest.raises(ImageError, match="became shorter"):
            file.read_into([memoryview(bytearray(60_000))], 0)
