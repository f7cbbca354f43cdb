"""Segments: what is written is read, what was there before is not, and no full disk or damage goes unnoticed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell._segment import FIRST, Segment, read_sequence, scan

FRAMES = [b'{"n":%d}' % n for n in range(5)]


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    segment = Segment(4096, tmp_path / "1.seg")
    segment.begin(1)
    yield segment
    segment.abandon()


def contents(segment: Segment) -> list[bytes]:
    return segment.read(FIRST, segment.end, 1000, 1 << 20)[0]


def found(segment: Segment) -> list[bytes]:
    assert segment.path is not None
    result = scan(segment.path.read_bytes())
    assert result is not None
    return [frame for _, _, frame in result.frames]


def test_what_is_written_is_read_and_found_in_the_file(segment: Segment) -> None:
    assert all(segment.write(frame) for frame in FRAMES)
    assert contents(segment) == FRAMES
    assert found(segment) == FRAMES
    assert segment.frames == 5


def test_a_segment_in_memory_needs_no_file() -> None:
    segment = Segment(4096, None)
    segment.begin(1)
    assert segment.write(b"{}")
    assert contents(segment) == [b"{}"]
    segment.discard()
    with pytest.raises(FileNotFoundError, match="the segment was discarded"):
        segment.read(FIRST, segment.end, 1, 100)


def test_frames_that_fill_it_to_the_last_byte_fit_and_one_byte_more_does_not(tmp_path: Path) -> None:
    for length in (2, 8, 9, 100):
        size = Segment.room_for(length)
        segment = Segment(size, tmp_path / f"{length}.seg")
        segment.begin(1)
        assert not segment.write(b"x" * (((length + 7) & -8) + 1))
        assert segment.frames == 0
        frame = b"{" + b" " * (length - 2) + b"}"
        assert segment.write(frame)
        assert found(segment) == [frame]
        segment.discard()


def test_reading_stops_at_the_number_and_the_size_asked_for_but_gives_one_at_least(segment: Segment) -> None:
    for frame in FRAMES:
        segment.write(frame)
    first, after = segment.read(FIRST, segment.end, 2, 1 << 20)
    assert first == FRAMES[:2]
    second, after = segment.read(after, segment.end, 1000, 33)
    assert second == FRAMES[2:4]
    third, after = segment.read(after, segment.end, 1000, 1)
    assert third == FRAMES[4:]
    assert after == segment.end


def test_used_again_it_shows_nothing_of_what_it_held(segment: Segment) -> None:
    for frame in FRAMES:
        segment.write(frame)
    segment.begin(2)
    assert contents(segment) == found(segment) == []
    segment.write(b'{"new":1}')
    assert contents(segment) == found(segment) == [b'{"new":1}']
    assert segment.path is not None
    assert read_sequence(segment.path) == 2


@settings(max_examples=60, deadline=None)
@given(uses=st.lists(st.lists(st.integers(0, 400), max_size=30), min_size=1, max_size=6))
def test_however_often_it_is_used_a_scan_finds_what_the_last_use_wrote(
    tmp_path_factory: pytest.TempPathFactory, uses: list[list[int]]
) -> None:
    segment = Segment(4096, tmp_path_factory.mktemp("s") / "1.seg")
    for sequence, lengths in enumerate(uses, 1):
        segment.begin(sequence)
        written = [frame for length in lengths if segment.write(frame := b'{"%b":1}' % (b"x" * length))]
        assert found(segment) == contents(segment) == written
    segment.discard()


def test_unmapped_it_is_read_through_its_descriptor_then_by_its_path(segment: Segment) -> None:
    segment.write(FRAMES[0])
    segment.unmap(keep_file_open=True)
    assert not segment.mapped
    assert segment.open_file
    assert contents(segment) == FRAMES[:1]
    segment.unmap(keep_file_open=False)
    assert not segment.open_file
    assert contents(segment) == FRAMES[:1]
    assert not segment.write(b"{}")
    with pytest.raises(ValueError, match="the segment is not mapped"):
        segment.begin(2)


def test_a_file_cut_from_outside_is_an_error_not_an_endless_loop(segment: Segment) -> None:
    segment.write(FRAMES[0])
    segment.unmap(keep_file_open=False)
    assert segment.path is not None
    os.truncate(segment.path, 20)
    with pytest.raises(EOFError, match=r"1\.seg was cut from outside"):
        contents(segment)


def test_a_full_disk_is_an_error_when_it_is_made_and_leaves_no_file(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", mount]
    if subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs more rights than we have here")
    try:
        Segment(128 * 1024, mount / "1.seg").abandon()
        with pytest.raises(OSError, match="No space left on device"):
            Segment(200 * 1024, mount / "2.seg")
        assert [path.name for path in mount.iterdir()] == ["1.seg"]
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_file_size_limit_is_an_error_when_it_is_made(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            Segment(1024 * 1024, tmp_path / "1.seg")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def damaged(segment: Segment, at: int, data: bytes) -> tuple[list[bytes], int]:
    assert segment.path is not None
    content = bytearray(segment.path.read_bytes())
    content[at : at + len(data)] = data
    result = scan(bytes(content))
    assert result is not None
    return [frame for _, _, frame in result.frames], result.torn


def test_a_header_that_was_not_written_costs_its_frame_and_is_counted(segment: Segment) -> None:
    for frame in FRAMES:
        segment.write(frame)
    assert damaged(segment, FIRST + 16, bytes(8)) == ([FRAMES[0], *FRAMES[2:]], 1)


def test_a_zeroed_stretch_costs_the_frames_in_it_and_is_counted_once(segment: Segment) -> None:
    for frame in FRAMES:
        segment.write(frame)
    assert damaged(segment, FIRST + 16, bytes(32)) == ([FRAMES[0], *FRAMES[3:]], 1)


def test_a_page_lost_inside_a_frame_is_noticed(segment: Segment) -> None:
    segment.write(b'{"long":"%b"}' % (b"x" * 1000))
    segment.write(FRAMES[0])
    assert damaged(segment, FIRST + 500, bytes(100)) == (FRAMES[:1], 1)


def test_flipped_bytes_in_a_length_cost_one_frame(segment: Segment) -> None:
    for frame in FRAMES:
        segment.write(frame)
    assert damaged(segment, FIRST + 16, b"\xff\xff\xff\x7f") == ([FRAMES[0], *FRAMES[2:]], 1)
    assert damaged(segment, FIRST + 16, b"\x18\x00\x00\x00") == ([FRAMES[0], *FRAMES[2:]], 1)


def test_flipped_bytes_in_a_stamp_or_a_body_cost_one_frame(segment: Segment) -> None:
    for frame in FRAMES:
        segment.write(frame)
    assert damaged(segment, FIRST + 16 + 4, b"zzzz") == ([FRAMES[0], *FRAMES[2:]], 1)
    assert damaged(segment, FIRST + 16 + 8, b"\xff\xff") == ([FRAMES[0], *FRAMES[2:]], 1)


def test_the_stamp_in_the_middle_of_nothing_is_no_frame(segment: Segment) -> None:
    assert segment.path is not None
    segment.write(FRAMES[0])
    stamp = segment.path.read_bytes()[FIRST + 4 : FIRST + 8]
    assert damaged(segment, FIRST + 50, stamp) == (FRAMES[:1], 0)


def test_a_truncated_file_gives_what_is_whole_and_counts_the_rest(segment: Segment) -> None:
    for frame in FRAMES:
        segment.write(frame)
    assert segment.path is not None
    data = segment.path.read_bytes()
    result = scan(data[: FIRST + 3 * 16 + 12])
    assert result is not None
    assert [frame for _, _, frame in result.frames] == FRAMES[:3]
    assert result.torn == 1


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_anywhere_never_makes_a_frame_that_was_not_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    segment = Segment(1024, tmp_path_factory.mktemp("s") / "1.seg")
    segment.begin(1)
    for frame in FRAMES:
        segment.write(frame)
    at = data.draw(st.integers(FIRST, FIRST + 100))
    zeros = data.draw(st.integers(1, 200))
    frames, _ = damaged(segment, at, bytes(zeros))
    assert [frame for frame in frames if frame not in FRAMES] == []
    assert frames == sorted(frames)
    segment.discard()


@pytest.mark.parametrize("content", [b"", b"STEPWELL", b"x" * 100, b"STEPWELL" + bytes(8)])
def test_other_files_are_no_segments(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.seg"
    path.write_bytes(content)
    result = scan(content)
    assert result is None or result.frames == []
    assert read_sequence(path) is None
