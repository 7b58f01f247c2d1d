"""Images: packages unpacked and modules ordered without root, apt's failures, the small guest's notes."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Set
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from toolstack.lab import images
from toolstack.lab.images import ImageError

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="not a Debian system")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images._fresh_package_lists.cache_clear()
    return tmp_path / "cache" / "umxen"


def module(depends: str = "") -> bytes:
    return b"\x7fELF....license=GPL\0depends=" + depends.encode() + b"\0vermagic=6.1\0"


def bzimage(release: str = "6.1.0-1-cloud-amd64") -> bytes:
    image = bytearray(4096)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x800)
    text = f"{release} (someone) #1".encode() + b"\0"
    image[0xA00 : 0xA00 + len(text)] = text
    return bytes(image)


@pytest.fixture
def kernel_package(tmp_path: Path) -> Path:
    """A .deb like Debian's kernel packages, with one module packed and two that need each other's names."""
    root = tmp_path / "root"
    folder = root / "lib/modules/6.1.0-1-cloud-amd64/kernel"
    for path, data in {
        root / "boot/vmlinuz-6.1.0-1-cloud-amd64": bzimage(),
        root / "boot/config-6.1.0-1-cloud-amd64": b"CONFIG_XEN_PV=y\n",
        root / "boot/System.map-6.1.0-1-cloud-amd64": b"",
        folder / "drivers/block/xen-blkfront.ko": module(),
        folder / "drivers/net/xen-netfront.ko.xz": lzma.compress(module("page_pool,failover")),
        folder / "net/core/page_pool.ko": module("failover"),
        folder / "net/core/failover.ko": module(),
        folder / "net/core/other.ko": module(),
        root
        / "DEBIAN/control": b"Package: linux-image-6.1.0-1-cloud-amd64\nVersion: 1\nArchitecture: amd64\n"
        b"Maintainer: none <none@example.org>\nDescription: none\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    package = tmp_path / "linux-image-6.1.0-1-cloud-amd64_1_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, package], check=True, capture_output=True)
    return package


def fake_apt(folder: Path, monkeypatch: pytest.MonkeyPatch, get: str, cache: str = "exit 0") -> None:
    """Put an apt-get and an apt-cache in front of the real ones."""
    folder.mkdir()
    for name, script in (("apt-get", get), ("apt-cache", cache)):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


KNOWS = 'echo linux-image-cloud-amd64; echo "  Depends: linux-image-6.1.0-1-cloud-amd64"'


@needs_dpkg
def test_debians_kernel_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_package: Path, cache: Path
) -> None:
    fake_apt(tmp_path / "bin", monkeypatch, f"cp {kernel_package} . && echo got >> {tmp_path}/calls", KNOWS)
    kernel = images.kernel()
    assert kernel == images.kernel()
    assert (tmp_path / "calls").read_text() == "got\n"
    assert kernel.release == "6.1.0-1-cloud-amd64"
    assert kernel.path == cache / "debian" / kernel.release / "vmlinuz"
    assert kernel.path.read_bytes() == bzimage()
    assert (kernel.path.parent / "config").read_bytes() == b"CONFIG_XEN_PV=y\n"
    assert [path.name for path in kernel.modules] == [
        "xen_blkfront.ko", "failover.ko", "page_pool.ko", "xen_netfront.ko",
    ]  # fmt: skip
    assert kernel.modules[3].read_bytes() == module("page_pool,failover")


@needs_dpkg
def test_stale_package_lists_are_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_package: Path
) -> None:
    # The system's lists name a version that the mirror no longer has; ours (Dir::State::lists) are right.
    script = f"""
case "$*" in
*update*) echo update >> {tmp_path}/calls ;;
*Dir::State::lists*download*) cp {kernel_package} . ;;
*) echo 'E: Failed to fetch ... 404  Not Found' >&2; exit 100 ;;
esac"""
    fake_apt(tmp_path / "bin", monkeypatch, script, KNOWS)
    assert images.kernel().release == "6.1.0-1-cloud-amd64"
    assert (tmp_path / "calls").read_text() == "update\n"


def test_apt_that_fails_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    failing = "echo noise >&2; echo 'E: no network' >&2; exit 100"
    fake_apt(tmp_path / "bin", monkeypatch, failing, KNOWS)
    with pytest.raises(ImageError, match=r"^cannot fetch Debian's package lists: E: no network$"):
        images.kernel()
    assert list((cache / "debian").glob("*")) == []


def test_a_system_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="there is no apt-cache on this machine"):
        images.kernel()


def test_an_apt_that_does_not_know_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(tmp_path / "bin", monkeypatch, "exit 0", "echo 'E: No packages found' >&2; exit 100")
    with pytest.raises(ImageError, match="apt knows no linux-image-amd64: E: No packages found"):
        images.kernel(flavour="amd64")


@needs_dpkg
@pytest.mark.parametrize("keep", [0, 50, 500])
def test_a_package_that_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_package: Path, cache: Path, keep: int
) -> None:
    kernel_package.write_bytes(kernel_package.read_bytes()[:keep])
    fake_apt(tmp_path / "bin", monkeypatch, f"case $* in *download*) cp {kernel_package} . ;; esac", KNOWS)
    with pytest.raises(ImageError, match="cannot be unpacked"):
        images.kernel()
    assert list((cache / "debian").glob("*")) == []


def test_a_flavour_that_is_none() -> None:
    with pytest.raises(ImageError, match="no kernel flavour 'arm64': there are cloud, amd64"):
        images.kernel(flavour="arm64")


def test_a_kernel_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage("1.2.3-none"))
    assert images.kernel(path) == images.Kernel(path, "1.2.3-none", ())
    with pytest.raises(ImageError, match="No such file"):
        images.kernel(tmp_path / "absent")


def test_releases_of_what_is_no_bzimage() -> None:
    assert images.bzimage_release(b"") == ""
    assert images.bzimage_release(b"\x7fELF" + bytes(4096)) == ""
    assert images.bzimage_release(bzimage()[:0x210]) == ""


def test_modules_that_need_each_other_in_a_circle_are_placed_once(tmp_path: Path) -> None:
    have = {"xen_blkfront": module("ring"), "ring": module("xen_blkfront")}

    def source(wanted: Set[str]) -> Iterator[tuple[str, bytes]]:
        return ((f"{name}.ko", data) for name, data in have.items() if name in wanted)

    images._collect_modules(source, tmp_path)
    assert sorted((tmp_path / "order").read_text().split()) == ["ring.ko", "xen_blkfront.ko"]


def test_static_programs_are_told_from_others() -> None:
    busybox = shutil.which("busybox")
    if busybox:
        assert images._is_static(Path(busybox))
    assert not images._is_static(Path("/bin/true"))
    assert not images._is_static(Path(__file__))


def test_the_small_guest_and_its_notes(tmp_path: Path) -> None:
    path = images.small_guest()
    before = path.stat().st_mtime_ns
    assert images.small_guest().stat().st_mtime_ns == before
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_machine"] == "EM_X86_64"
        (notes,) = (segment for segment in elf.iter_segments() if segment["p_type"] == "PT_NOTE")
        found = _xen_notes(notes.data())
        (load,) = (segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD")
    virt_base = 0xFFFFFFFF80000000
    number = {kind: int.from_bytes(found[kind], "little") for kind in (1, 2, 3)}
    assert found[6] == b"umxen-small\0" and found[5] == b"xen-3.0\0"
    assert number[3] == virt_base
    assert load["p_vaddr"] - load["p_paddr"] == virt_base
    assert number[1] == load["p_vaddr"]
    assert number[2] % 4096 == 0 and load["p_vaddr"] < number[2] < load["p_vaddr"] + load["p_filesz"]


def _xen_notes(data: bytes) -> dict[int, bytes]:
    """The notes by type, read by hand: pyelftools gives Xen's types 1 to 5 the names of GNU's."""
    found, at = {}, 0
    while at < len(data):
        name_bytes, size, kind = struct.unpack_from("<III", data, at)
        at += 12
        assert data[at : at + name_bytes] == b"Xen\0"
        at += name_bytes
        found[kind] = data[at : at + size]
        at += size + -size % 4
    return found


def test_a_small_guest_without_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SMALL_GUEST", tmp_path)
    with pytest.raises(ImageError, match="sources are not in"):
        images.small_guest()
    (tmp_path / "Makefile").write_text("all:\n\t@echo broken >&2; exit 1\n")
    with pytest.raises(ImageError, match="does not build"):
        images.small_guest()
