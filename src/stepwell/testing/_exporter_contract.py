"""ExporterContract: what every exporter must do, as a pytest class to inherit from.

What must stay true: the suite uses the exporter as the shipper does, through `export` and `close` alone; what arrived
is told by the subclass.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import orjson
import pytest

from stepwell.exporters import Batch, Exporter

__all__ = ["ExporterContract"]

_BIG = "x" * 3_000_000
_TEXT = '\u00e9\u2028\U0001f600\\u0000\\"</script>\\n{}[]'

HOSTILE_RECORDS: dict[str, bytes] = {
    "a huge payload": b'{"kind":"step","id":"huge","type":"tool","name":"n","start_ns":1,"output":"%b"}'
    % _BIG.encode(),
    "unicode": b'{"kind":"step","id":"unicode","type":"tool","name":"%b","start_ns":1}' % _TEXT.encode(),
    "deep nesting": b'{"kind":"step","id":"deep","type":"run","name":"n","start_ns":1,"input":%b%b}'
    % (b"[" * 200, b"]" * 200),
    "numbers at the limit": b'{"kind":"step","id":"limit","type":"run","name":"n","start_ns":1,'
    b'"end_ns":9223372036854775807,"metadata":{"x":1e308,"y":-9223372036854775808}}',
    "an empty name": b'{"kind":"step","id":"empty","type":"run","name":"","start_ns":1}',
    "null payloads": b'{"kind":"step","id":"null","type":"tool","name":"n","start_ns":1,"input":null,"output":null}',
    "an unfinished step": b'{"kind":"step","id":"open","type":"run","name":"n","start_ns":1,"status":"pending"}',
    "a partial update": b'{"kind":"step","id":"partial","tags":["a"]}',
    "a thread": b'{"kind":"thread","id":"thread","name":"n","tags":["a"],"metadata":{}}',
    "a score": b'{"kind":"score","id":"score","step_id":"s","name":"relevance","value":0.5,"type":"AI"}',
}


class ExporterContract:
    """Inherit from it in a test module, as `class TestMine(ExporterContract)`, and say how to make and read yours.

    `idempotent` declares that a batch sent twice arrives once; otherwise it may arrive twice. `formless` names those of
    `HOSTILE_RECORDS` that the destination has no form for: they are passed over, and hold up no other.
    """

    idempotent: ClassVar[bool] = False
    formless: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder = tmp_path_factory.mktemp("exporter")

    def make_exporter(self) -> Exporter:
        """Return a new exporter with an empty destination, in `self.folder` if it needs one."""
        raise NotImplementedError

    def make_broken_exporter(self) -> Exporter:
        """Return an exporter that can't reach its destination; skip where there is no such thing."""
        pytest.skip("this destination is always there")

    def delivered(self, exporter: Exporter) -> Sequence[bytes]:
        """Return the `id` of every record that has arrived, in order of arrival, as bytes."""
        raise NotImplementedError

    def ids(self, exporter: Exporter) -> list[str]:
        """Return what `delivered` says, as text."""
        return [name.decode() for name in self.delivered(exporter)]

    def test_is_an_exporter(self) -> None:
        """It has `export`, and a key that is text if it has one."""
        exporter = self.make_exporter()
        assert isinstance(exporter, Exporter)
        key: Any = getattr(exporter, "key", None)
        assert key is None or (isinstance(key, str) and key)
        _close(exporter)

    def test_a_batch_has_arrived_when_export_returns(self) -> None:
        """Nothing is left in a buffer."""
        exporter = self.make_exporter()
        exporter.export(Batch(_steps("a", 3)))
        assert sorted(self.ids(exporter)) == ["a0", "a1", "a2"]
        _close(exporter)

    def test_records_arrive_in_the_order_they_were_recorded(self) -> None:
        """Within a batch and from batch to batch."""
        exporter = self.make_exporter()
        for name in ("a", "b", "c"):
            exporter.export(Batch(_steps(name, 2)))
        assert self.ids(exporter) == ["a0", "a1", "b0", "b1", "c0", "c1"]
        _close(exporter)

    def test_an_empty_batch_delivers_nothing(self) -> None:
        """It is no error either."""
        exporter = self.make_exporter()
        exporter.export(Batch(()))
        assert self.ids(exporter) == []
        _close(exporter)

    def test_a_batch_sent_again_does_no_harm(self) -> None:
        """Delivery is at least once: what an attempt left is sent again, in part or as a whole."""
        exporter = self.make_exporter()
        batch = _steps("a", 3)
        exporter.export(Batch(batch))
        exporter.export(Batch(batch[1:]))
        exporter.export(Batch(_steps("b", 1)))
        found = self.ids(exporter)
        assert list(dict.fromkeys(found)) == ["a0", "a1", "a2", "b0"]
        assert len(found) == (4 if self.idempotent else 6)
        _close(exporter)

    @pytest.mark.parametrize("kind", list(HOSTILE_RECORDS))
    def test_takes_every_valid_record(self, kind: str) -> None:
        """Also beside others."""
        exporter = self.make_exporter()
        record = HOSTILE_RECORDS[kind]
        exporter.export(Batch([*_steps("a", 1), record, *_steps("b", 1)]))
        expected = {"a0", "b0"} if kind in self.formless else {"a0", orjson.loads(record)["id"], "b0"}
        assert set(self.ids(exporter)) >= expected
        _close(exporter)

    def test_takes_as_many_records_as_a_shipper_sends(self) -> None:
        """A batch has up to 2000 records."""
        exporter = self.make_exporter()
        exporter.export(Batch(_steps("a", 2000)))
        assert self.ids(exporter) == [f"a{number}" for number in range(2000)]
        _close(exporter)

    def test_leaves_the_batch_as_it_is(self) -> None:
        """The shipper sends the same one again when it has to."""
        exporter = self.make_exporter()
        batch = Batch(tuple(_steps("a", 2)))
        exporter.export(batch)
        assert batch.frames == tuple(_steps("a", 2))
        _close(exporter)

    def test_works_on_another_thread_than_the_one_that_made_it(self) -> None:
        """The shipper's thread exports and closes."""
        exporter = self.make_exporter()
        failed: list[BaseException] = []

        def ship() -> None:
            try:
                exporter.export(Batch(_steps("a", 1)))
            except BaseException as error:  # noqa: BLE001 - told below, on the test's thread
                failed.append(error)

        thread = threading.Thread(target=ship)
        thread.start()
        thread.join()
        assert failed == []
        assert self.ids(exporter) == ["a0"]
        closing = threading.Thread(target=_close, args=(exporter,))
        closing.start()
        closing.join()

    def test_raises_when_a_batch_was_not_delivered(self) -> None:
        """An error that is swallowed is a record that is lost."""
        exporter = self.make_broken_exporter()
        with pytest.raises(Exception) as caught:  # noqa: PT011 - any will do: the shipper tells them apart
            exporter.export(Batch(_steps("a", 1)))
        assert isinstance(caught.value, Exception)
        _close(exporter)

    def test_closing_twice_is_closing_once(self) -> None:
        """Also where nothing was exported."""
        exporter = self.make_exporter()
        _close(exporter)
        _close(exporter)


def _steps(name: str, count: int) -> list[bytes]:
    line = b'{"kind":"step","id":"%b%d","type":"tool","name":"n","start_ns":%d,"end_ns":9,"status":"success"}'
    return [line % (name.encode(), number, number) for number in range(count)]


def _close(exporter: Exporter) -> None:
    close: Any = getattr(exporter, "close", None)
    if close is not None:
        close()
