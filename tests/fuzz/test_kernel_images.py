"""Any bytes in a kernel file give a plan or an ImageError of one line, nothing else; no fd stays open."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from dom0.libxc.images import ImageError, KernelCache, open_kernel, pv_kernel
from dom0.libxc.pv_layout import plan
from tests.kernel_files import COMPRESSORS, LINUX_BASE, Load, bzimage, elf, linux_notes, small_notes

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

LINUX = elf([Load(0x100000, b"text" * 64), Load(0x102000, b"data", 9000)], linux_notes(LINUX_BASE + 0x100000))
SMALL = elf([Load(0x1000, b"\x90" * 32)], small_notes(0x1000), entry=0x1000, notes_in_section=True)
IMAGES = [LINUX, SMALL, *(bzimage(LINUX, kind) for kind in COMPRESSORS)]
STREAMS = [compress(LINUX) for compress in COMPRESSORS.values()]
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 47, 1 << 63, (1 << 64) - 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def start(folder: Path, content: bytes) -> str:
    """What became of a guest with this kernel."""
    path = folder / "vmlinuz"
    path.write_bytes(content)
    try:
        image = open_kernel(path, KernelCache(folder / "cache"))
        with image.file:
            plan(pv_kernel(image), nr_pages=4096, ramdisk_bytes=100_000)
            for segment in image.segments:
                image.file.read(segment.offset, segment.filesz)
    except ImageError as refused:
        text = str(refused)
        assert text.startswith((f"{path}: ", "ramdisk: "))
        assert text.isprintable()
        return "".join(c for c in text.removeprefix(f"{path}: ") if not c.isdigit())[:20]
    return "planned"


@given(content=st.binary(max_size=2000))
def test_any_bytes(folder: Path, content: bytes) -> None:
    assert start(folder, content) != "planned"


@given(content=st.binary(max_size=500), stream=st.sampled_from(STREAMS), kept=st.integers(2, 60))
def test_any_stream(folder: Path, content: bytes, stream: bytes, kept: int) -> None:
    """The start of a real compressed kernel, then anything."""
    event(start(folder, stream[:kept] + content))


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    values = st.one_of(
        st.builds(lambda value: struct.pack("<Q", value), st.sampled_from(INTERESTING)),
        st.builds(lambda value: struct.pack("<I", value & 0xFFFFFFFF), st.sampled_from(INTERESTING)),
        st.binary(min_size=1, max_size=9),
    )
    position = st.one_of(st.integers(0, 900), st.integers(0, 9000))
    return draw(st.lists(st.tuples(position, values), min_size=1, max_size=4))


@given(image=st.sampled_from(IMAGES), edits=edits(), cut=st.one_of(st.none(), st.integers(0, 9000)))
def test_edited_image(folder: Path, image: bytes, edits: list[tuple[int, bytes]], cut: int | None) -> None:
    content = bytearray(image)
    for position, value in edits:
        content[position : position + len(value)] = value
    event(start(folder, bytes(content[:cut])))


@pytest.mark.parametrize("image", [LINUX[:4200], SMALL[:4200], bzimage(LINUX, "xz"), bzimage(LINUX, "lz4")])
def test_every_truncation(folder: Path, image: bytes) -> None:
    for length in range(0, min(len(image), 4200), 3):
        start(folder, image[:length])
