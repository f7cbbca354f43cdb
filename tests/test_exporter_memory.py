"""The memory exporter: what tests and notebooks look into."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stepwell.errors import UsageError
from stepwell.exporters import Batch, Exporter, open_exporter
from stepwell.exporters.memory import MemoryExporter
from stepwell.testing._exporter_contract import ExporterContract

STEP = b'{"kind":"step","id":"s","type":"run","name":"n","start_ns":1}'
THREAD = b'{"kind":"thread","id":"t"}'
SCORE = b'{"kind":"score","id":"c","step_id":"s","name":"relevance","value":1}'


class TestContract(ExporterContract):
    def make_exporter(self) -> Exporter:
        return MemoryExporter()

    def delivered(self, exporter: Exporter) -> Sequence[bytes]:
        assert isinstance(exporter, MemoryExporter)
        return [record.id.encode() for record in exporter.records]


def test_records_are_told_apart_by_kind() -> None:
    memory = MemoryExporter()
    memory.export(Batch([STEP, THREAD, SCORE]))
    assert [step.name for step in memory.steps] == ["n"]
    assert [thread.id for thread in memory.threads] == ["t"]
    assert [score.value for score in memory.scores] == [1]
    memory.clear()
    assert list(memory.records) == []


def test_only_the_newest_are_kept() -> None:
    memory = MemoryExporter(max_records=2)
    memory.export(Batch([b'{"kind":"thread","id":"%d"}' % number for number in range(5)]))
    assert [record.id for record in memory.records] == ["3", "4"]


def test_what_is_no_record_is_an_error_and_nothing_of_the_batch_is_kept() -> None:
    memory = MemoryExporter()
    with pytest.raises(UsageError):
        memory.export(Batch([STEP, b'{"kind":"step","id":5}']))
    assert list(memory.records) == []


def test_it_opens_by_url_and_ends_with_its_process() -> None:
    memory = open_exporter("memory:", None)
    assert isinstance(memory, MemoryExporter)
    assert not hasattr(memory, "key")
