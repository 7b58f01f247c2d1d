"""The p2m: every frame once, never the identity, and runs that agree with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.libxc.frames import FrameMap, assign_frames


@st.composite
def extent_lists(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Extents of any size that do not overlap, in any order."""
    extents = []
    gfn = draw(st.integers(1, 1 << 20))
    for count in draw(st.lists(st.sampled_from([1, 1, 2, 63, 64, 65, 511, 512, 512, 600]), max_size=12)):
        extents.append((gfn, count))
        gfn += count + draw(st.sampled_from([0, 0, 1, 1000]))
    return draw(st.permutations(extents))


@given(extent_lists())
def test_each_frame_has_one_pfn(extents: list[tuple[int, int]]) -> None:
    frames = assign_frames(extents)
    p2m = frames.p2m()
    assert sorted(p2m) == sorted(gfn + i for gfn, count in extents for i in range(count))
    assert frames.nr_pages == len(p2m)


@given(extent_lists(), st.data())
def test_slices_and_entries_agree_with_the_p2m(extents: list[tuple[int, int]], data: st.DataObject) -> None:
    frames = assign_frames(extents)
    first = data.draw(st.integers(0, frames.nr_pages))
    count = data.draw(st.integers(0, frames.nr_pages - first))
    expected = list(frames.p2m()[first : first + count])
    slices = list(frames.slices(first, count))
    assert [run.gfn + i for run in slices for i in range(run.count)] == expected
    assert [run.pfn for run in slices] == [
        first + sum(r.count for r in slices[:i]) for i in range(len(slices))
    ]
    assert list(frames.entries(first, count, 0x67)) == [gfn << 12 | 0x67 for gfn in expected]
    updates = frames.machphys_updates(first, count)
    assert list(updates[0::2]) == [gfn << 12 | 1 for gfn in expected]
    assert list(updates[1::2]) == list(range(first, first + count))


@pytest.mark.parametrize("base", [0, 512, 0x10000])
def test_not_the_identity_nor_linear(base: int) -> None:
    """Even where the extents would allow it."""
    p2m = assign_frames([(base + 512 * i, 512) for i in range(64)]).p2m()
    assert sum(gfn == base + pfn for pfn, gfn in enumerate(p2m)) < len(p2m) // 10
    assert len({gfn - pfn for pfn, gfn in enumerate(p2m)}) > 100


def test_the_same_every_time_and_in_few_runs() -> None:
    extents = [(0x1000 + 512 * i, 512) for i in range(128)]
    frames = assign_frames(extents)
    assert frames.runs == assign_frames(extents).runs
    assert len(frames.runs) <= 8 * 128


def test_single_frames_in_a_row_are_one_block() -> None:
    assert len(assign_frames([(1000 + i, 1) for i in range(512)]).runs) == 8


def test_beyond_the_last_page() -> None:
    frames = FrameMap(assign_frames([(100, 10)]).runs)
    for pfn, count in ((10, 1), (5, 6), (-1, 1)):
        with pytest.raises(IndexError):
            list(frames.slices(pfn, count))
