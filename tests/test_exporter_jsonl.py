"""The JSON lines exporter: a line is whole or absent, whoever writes, whatever fills up."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from stepwell.errors import UsageError
from stepwell.exporters import Batch, Exporter, open_exporter
from stepwell.exporters.jsonl import JsonLinesExporter
from stepwell.testing._exporter_contract import ExporterContract

LINE = b'{"kind":"step","id":"a"}'


class TestContract(ExporterContract):
    def make_exporter(self) -> Exporter:
        return JsonLinesExporter(self.folder / "steps.jsonl")

    def make_broken_exporter(self) -> Exporter:
        return JsonLinesExporter(self.folder)  # a folder

    def delivered(self, exporter: Exporter) -> Sequence[bytes]:
        assert isinstance(exporter, JsonLinesExporter)
        lines = exporter.path.read_bytes().split(b"\n") if exporter.path.exists() else [b""]
        assert lines.pop() == b""
        return [orjson.loads(line)["id"].encode() for line in lines]


def test_a_record_is_a_line_as_it_was_recorded(tmp_path: Path) -> None:
    exporter = JsonLinesExporter(tmp_path / "deep" / "steps.jsonl")
    exporter.export(Batch([LINE, LINE]))
    assert exporter.path.read_bytes() == LINE + b"\n" + LINE + b"\n"
    assert exporter.path.stat().st_mode & 0o777 == 0o600


def test_the_key_names_the_same_file_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exporter = open_exporter("jsonl:steps.jsonl", None)
    assert isinstance(exporter, JsonLinesExporter)
    assert exporter.key == f"jsonl:{tmp_path / 'steps.jsonl'}"
    with pytest.raises(UsageError, match="export='jsonl:': jsonl: needs the path of a file"):
        open_exporter("jsonl:", None)


def test_a_file_that_is_moved_away_is_begun_anew(tmp_path: Path) -> None:
    exporter = JsonLinesExporter(tmp_path / "steps.jsonl")
    exporter.export(Batch([LINE]))
    exporter.path.rename(tmp_path / "old.jsonl")
    exporter.export(Batch([LINE]))
    assert exporter.path.read_bytes() == (tmp_path / "old.jsonl").read_bytes() == LINE + b"\n"


def test_half_a_line_left_by_a_kill_is_removed(tmp_path: Path) -> None:
    exporter = JsonLinesExporter(tmp_path / "steps.jsonl")
    exporter.path.write_bytes(LINE + b"\n" + LINE[:10])
    exporter.export(Batch([b'{"id":"b"}']))
    assert exporter.path.read_bytes() == LINE + b'\n{"id":"b"}\n'


def test_half_a_line_longer_than_what_is_read_at_once_is_removed(tmp_path: Path) -> None:
    exporter = JsonLinesExporter(tmp_path / "steps.jsonl")
    exporter.path.write_bytes(LINE + b"\n" + b'{"x":"' + b"x" * 3_000_000)
    exporter.export(Batch([LINE]))
    assert exporter.path.read_bytes() == (LINE + b"\n") * 2
    exporter.path.write_bytes(b'{"x":"' + b"x" * 3_000_000)
    exporter.export(Batch([LINE]))
    assert exporter.path.read_bytes() == LINE + b"\n"


def test_a_last_line_that_only_misses_its_end_is_kept(tmp_path: Path) -> None:
    exporter = JsonLinesExporter(tmp_path / "steps.jsonl")
    exporter.path.write_bytes(LINE)
    exporter.export(Batch([b'{"id":"b"}']))
    assert exporter.path.read_bytes() == LINE + b'\n{"id":"b"}\n'


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_where_there_is_no_room_nothing_of_the_batch_is_written(tmp_path: Path) -> None:
    exporter = JsonLinesExporter(tmp_path / "steps.jsonl")
    exporter.export(Batch([LINE]))
    with files_of_at_most(60), pytest.raises(OSError, match="File too large"):
        exporter.export(Batch([LINE] * 10))
    assert exporter.path.read_bytes() == LINE + b"\n"
    exporter.export(Batch([LINE]))
    assert exporter.path.read_bytes() == (LINE + b"\n") * 2


def test_processes_that_write_at_once_do_not_mix_their_lines(tmp_path: Path) -> None:
    children: list[int] = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            exporter = JsonLinesExporter(tmp_path / "steps.jsonl")
            for _ in range(20):
                exporter.export(Batch([b'{"id":"%d","x":"%b"}' % (number, b"x" * 5000)] * 20))
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    ids = [orjson.loads(line)["id"] for line in (tmp_path / "steps.jsonl").read_bytes().splitlines()]
    assert sorted(ids) == ["0"] * 400 + ["1"] * 400 + ["2"] * 400 + ["3"] * 400


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    JsonLinesExporter(path).export(Batch([LINE]))
    reader.join()
    assert read == [LINE + b"\n"]


def test_a_child_forked_in_the_middle_of_a_batch_does_not_lock_everybody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = JsonLinesExporter(tmp_path / "steps.jsonl")
    read, write = os.pipe()
    children: list[int] = []

    def write_and_fork(fd: int, data: bytes) -> None:
        os.write(fd, data)
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        children.append(pid)

    monkeypatch.setattr("stepwell.exporters.jsonl._write_all", write_and_fork)
    exporter.export(Batch([LINE]))
    monkeypatch.undo()
    exporter.export(Batch([LINE]))
    assert exporter.path.read_bytes() == (LINE + b"\n") * 2
    os.close(write)
    os.close(read)
    assert os.waitpid(children[0], 0)[1] == 0
