"""The exporter into a store: what it delivers, what it refuses, what it asks to be sent again."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.errors import ClosedError, CorruptStoreError, ExportError, RejectedError, StoreError, UsageError
from stepwell.exporters import Batch, Exporter, open_exporter
from stepwell.exporters.sqlite import StoreExporter
from stepwell.store import AddResult, open_store
from stepwell.store.sqlite import SqliteStore

STEP = b'{"kind":"step","id":"a","name":"n"}'


def test_a_batch_is_in_the_file_when_export_returns(tmp_path: Path) -> None:
    exporter = open_exporter(f"sqlite:{tmp_path / 'x.db'}", None)
    assert isinstance(exporter, StoreExporter)
    exporter.export(Batch([STEP]))
    reader = open_store(str(tmp_path / "x.db"), read_only=True)
    assert reader.step("a").name == "n"
    assert exporter.store.step("a").name == "n"
    reader.close()
    exporter.close()
    exporter.close()


def test_without_a_path_the_file_is_in_the_recorders_folder(tmp_path: Path) -> None:
    exporter = StoreExporter.from_url("sqlite:", tmp_path)
    assert isinstance(exporter, Exporter)
    assert exporter.key == f"sqlite:{tmp_path / 'steps.db'}"
    assert repr(exporter) == f"StoreExporter('sqlite:{tmp_path / 'steps.db'}')"
    exporter.export(Batch([STEP]))
    assert (tmp_path / "steps.db").exists()
    exporter.close()


def test_the_file_is_made_with_the_first_batch_and_not_before(tmp_path: Path) -> None:
    exporter = StoreExporter.from_url("sqlite:", tmp_path)
    assert list(tmp_path.iterdir()) == []
    exporter.close()
    with pytest.raises(ClosedError, match="is closed"):
        exporter.export(Batch([STEP]))
    assert list(tmp_path.iterdir()) == []


def test_the_key_is_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exporter = StoreExporter.from_url("sqlite:x.db", None)
    assert exporter.key == f"sqlite:{tmp_path / 'x.db'}"
    exporter.close()


def test_a_store_in_memory_can_be_exported_to() -> None:
    exporter = StoreExporter.from_url("sqlite::memory:", None)
    exporter.export(Batch([STEP]))
    assert exporter.key == "sqlite::memory:"
    assert exporter.store.stats().steps == 1
    exporter.close()


def test_no_path_and_no_folder_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="export='sqlite:' names no file"):
        StoreExporter.from_url("sqlite:", None)


def test_refused_records_are_named_by_their_place_and_the_others_are_stored() -> None:
    exporter = StoreExporter.from_url("sqlite::memory:", None)
    with pytest.raises(RejectedError, match=r"sqlite::memory: refused 1 of 2 records") as caught:
        exporter.export(Batch([b"{}", STEP]))
    assert list(caught.value.rejected) == [0]
    assert "not a record" in caught.value.rejected[0]
    assert exporter.store.step("a").name == "n"
    exporter.close()


class BrokenStore(SqliteStore):
    def __init__(self, error: StoreError) -> None:
        super().__init__(None)
        self.error = error

    def add(self, frames: object) -> AddResult:
        raise self.error


@pytest.mark.parametrize("error", [StoreError("database is locked"), CorruptStoreError("malformed")])
def test_a_store_that_cannot_be_written_asks_for_the_batch_again(error: StoreError) -> None:
    exporter = StoreExporter(BrokenStore(error), key="broken")
    with pytest.raises(ExportError, match=str(error)) as caught:
        exporter.export(Batch([STEP]))
    assert not isinstance(caught.value, RejectedError)
    exporter.close()
