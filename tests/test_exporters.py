"""The exporter protocol and the registry of URLs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

import stepwell as sw
from stepwell.errors import ExportError, UsageError
from stepwell.exporters import Batch, Exporter, UnopenedExporter, open_exporter
from stepwell.exporters.jsonl import JsonLinesExporter
from stepwell.exporters.memory import MemoryExporter
from stepwell.exporters.sqlite import StoreExporter
from stepwell.testing._exporter_contract import ExporterContract


class TestStoreContract(ExporterContract):
    """The exporter into a store, which tells steps by their place in it and keeps each id once."""

    idempotent = True

    def make_exporter(self) -> Exporter:
        return StoreExporter.from_url(f"sqlite:{self.folder / 'steps.db'}", None)

    def delivered(self, exporter: Exporter) -> Sequence[bytes]:
        assert isinstance(exporter, StoreExporter)
        steps: list[bytes] = []
        position = 0
        while (page := exporter.store.changes(position))[0]:
            steps += [step.id.encode() for step in page[0]]
            position = page[1]
        found = [orjson.loads(line)["id"].encode() for line in exporter.store.records()]
        return [*steps, *(name for name in found if name not in set(steps))]


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a distribution with an exporter, as pip would."""
    info = tmp_path / "acme_stepwell-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-stepwell\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[stepwell.exporters]\nacme = acme_exporter:AcmeExporter\nbroken = acme_missing:open\n"
    )
    (tmp_path / "acme_exporter.py").write_text(
        "class AcmeExporter:\n"
        "    def __init__(self, url, home):\n"
        "        self.url, self.home, self.key, self.frames = url, home, url, []\n"
        "    def export(self, batch):\n"
        "        self.frames += batch.frames\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_exporter", raising=False)
    return tmp_path


def test_a_scheme_of_a_plug_in_opens_its_exporter(plug_in: Path) -> None:
    exporter = open_exporter("acme://host/path?x=1", plug_in)
    assert isinstance(exporter, Exporter)
    assert vars(exporter) == {
        "url": "acme://host/path?x=1",
        "home": plug_in,
        "key": "acme://host/path?x=1",
        "frames": [],
    }


def test_a_plug_in_is_configured_by_its_url(plug_in: Path) -> None:
    sw.configure(export="acme:", home=plug_in / "home")
    with sw.run("a"):
        pass
    assert sw.flush(30)
    assert sw.stats().exporters["acme:"].delivered == 1


def test_a_plug_in_that_cant_be_imported_says_what_is_missing(plug_in: Path) -> None:
    with pytest.raises(UsageError, match=r"export='broken:x': its exporter can't be loaded: No module named 'acme_mi"):
        open_exporter("broken:x", None)


def test_the_built_in_schemes_open_theirs(tmp_path: Path) -> None:
    assert isinstance(open_exporter("memory:", None), MemoryExporter)
    assert isinstance(open_exporter(f"jsonl:{tmp_path / 'x'}", None), JsonLinesExporter)
    store = open_exporter("sqlite:", tmp_path)
    assert isinstance(store, StoreExporter)
    store.close()


def test_an_unknown_scheme_says_which_there_are(plug_in: Path) -> None:
    with pytest.raises(UsageError, match=r"export='ftp:x': no exporter for 'ftp', there are acme, broken, console"):
        open_exporter("ftp:x", None)


def test_what_could_not_be_opened_takes_records_as_soon_as_it_can(plug_in: Path) -> None:
    exporter = UnopenedExporter("late:", plug_in)
    exporter.close()
    with pytest.raises(ExportError, match="export='late:': no exporter for 'late'"):
        exporter.export(Batch([b"{}"]))
    entry_points = plug_in / "acme_stepwell-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text("[stepwell.exporters]\nlate = late_exporter:Late\n")
    (plug_in / "late_exporter.py").write_text(
        "class Late:\n"
        "    taken, closed = [], []\n"
        "    def __init__(self, url, home): pass\n"
        "    def export(self, batch): self.taken.append(batch)\n"
        "    def close(self): self.closed.append(True)\n"
    )
    exporter.export(Batch([b"{}"]))
    exporter.close()
    late = sys.modules.pop("late_exporter").Late
    assert (len(late.taken), late.closed) == (1, [True])


def test_what_is_no_url_says_so() -> None:
    with pytest.raises(
        UsageError, match=r"export='steps.db' is not a URL: expected SCHEME:..., with one of console, http, https, j"
    ):
        open_exporter("steps.db", None)


def test_any_object_with_export_is_an_exporter() -> None:
    taken: list[Batch] = []

    class Mine:
        def export(self, batch: Batch) -> None:
            taken.append(batch)

    assert isinstance(Mine(), Exporter)
    assert not isinstance(object(), Exporter)
    sw.configure(export=Mine(), home=None)
    with sw.run("a"):
        pass
    assert sw.flush(30)
    assert len(taken) == 1


def test_a_batch_gives_bytes_and_decodes_them_when_asked() -> None:
    batch = Batch([b'{"kind":"step","id":"a","input":{"x":1}}'])
    assert len(batch) == 1
    assert batch.frames == [b'{"kind":"step","id":"a","input":{"x":1}}']
    [record] = batch.records
    assert record.id == "a"
    assert batch.records[0] is record


def test_a_batch_with_a_frame_that_is_no_record_says_so_when_decoded() -> None:
    with pytest.raises(UsageError):
        _ = Batch([b"[]"]).records


def test_the_contract_must_be_told_how_to_make_and_read() -> None:
    bare = ExporterContract()
    with pytest.raises(NotImplementedError):
        bare.make_exporter()
    with pytest.raises(NotImplementedError):
        bare.delivered(MemoryExporter())


def test_the_contract_finds_an_exporter_that_swallows_its_errors() -> None:
    class Swallowing:
        def export(self, batch: Batch) -> None:
            pass

    class Suite(ExporterContract):
        def make_exporter(self) -> Exporter:
            return Swallowing()

        make_broken_exporter = make_exporter

        def delivered(self, exporter: Exporter) -> Sequence[bytes]:
            return []

    with pytest.raises(pytest.fail.Exception):
        Suite().test_raises_when_a_batch_was_not_delivered()
    with pytest.raises(AssertionError):
        Suite().test_a_batch_has_arrived_when_export_returns()
    with pytest.raises(AssertionError):
        Suite().test_works_on_another_thread_than_the_one_that_made_it()
