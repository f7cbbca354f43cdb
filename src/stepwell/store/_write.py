"""Adding a batch of records to the embedded store, inside the caller's transaction.

What must stay true: a new step costs two rows and no query. All steps are inserted with numbers chosen here; those
whose id is already known are left out by SQLite, found by the gaps they leave, and only they are read, merged and
updated.
"""

# ruff: noqa: S608 (what is put into SQL are our own column names)

from __future__ import annotations

import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from msgspec import UNSET

from stepwell.errors import UsageError
from stepwell.model import (
    Generation,
    Record,
    Score,
    StepRecord,
    ThreadRecord,
    decode_generation,
    decode_record,
)
from stepwell.store import AddResult, Rejection
from stepwell.store._loose import BLOB_MARK, hashes_in, list_blobs, loosen_messages
from stepwell.store._merge import (
    NULL,
    apply_llm_rule,
    merge_score,
    merge_step,
    merge_thread,
    parse_generation,
)
from stepwell.store._messages import MIN_BYTES, Bodies, Cut, Cutter, Numbers, is_large, number_messages, write_refs
from stepwell.store._packs import PackWriter, packs_pay
from stepwell.store._previews import previews_of
from stepwell.store._questions import FORGET_QUESTION, SET_ITEM, Questions, item_of
from stepwell.store._rows import (
    METADATA_BIT,
    OPTIONAL_STEP_COLUMNS,
    PACK_BIT,
    RECORD_COLUMNS,
    RECORD_SQL,
    SCORE_COLUMNS,
    THREAD_COLUMNS,
    UNKNOWN_NS,
    StepPacker,
    check_numbers,
    fits,
    pack_id,
    row_of_score,
    row_of_thread,
    score_of_row,
    step_of_row,
    thread_of_row,
)
from stepwell.store._schema import LAST_POSITION
from stepwell.store._spans import spans_of_refs
from stepwell.store._statements import (
    insert_payload,
    insert_step,
    places_of_sums,
    present_columns,
    says_nothing_new,
    update_step,
)
from stepwell.store._visits import TOUCH_THREAD, Visit

__all__ = ["Intake"]

_SELECT_STEP: Final = f"SELECT s.number, {RECORD_SQL} FROM steps s LEFT JOIN payload p USING (number) WHERE s.id = ?"
_SELECT_THREAD: Final = f"SELECT {', '.join(THREAD_COLUMNS)} FROM threads WHERE id = ?"
_SELECT_SCORES: Final = f"SELECT number, {', '.join(SCORE_COLUMNS)} FROM scores WHERE step_id = ?"
_INSERT_TAG: Final = "INSERT INTO step_tags (tag, start_ns, step) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_DELETE_TAG: Final = "DELETE FROM step_tags WHERE tag = ? AND start_ns = ? AND step = ?"
_REPLACE_SCORE: Final = (
    f"REPLACE INTO scores (number, {', '.join(SCORE_COLUMNS)}) VALUES (?, {', '.join('?' * len(SCORE_COLUMNS))})"
)
_REPLACE_THREAD: Final = f"""
    INSERT INTO threads ({", ".join(THREAD_COLUMNS)}, active_ns)
    VALUES ({", ".join("?" * len(THREAD_COLUMNS))}, ?)
    ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in THREAD_COLUMNS[1:])},
        active_ns = max(active_ns, excluded.active_ns)
"""
_FEEDBACK: Final = """
    UPDATE steps SET feedback = (
        SELECT CASE WHEN c.label IN ('positive', 'negative') THEN c.label END
        FROM scores c WHERE c.step_id = steps.id AND c.name = 'feedback'
        ORDER BY ifnull(c.created_ns, 0) DESC, c.number DESC LIMIT 1
    )
"""
_SET_FEEDBACK: Final = f"{_FEEDBACK} WHERE id = ?"
_WAIT_FOR_STEP: Final = "UPDATE scores SET waiting = 1 WHERE step_id = ?"
_SET_AWAITED_FEEDBACK: Final = (
    f"{_FEEDBACK} WHERE id IN (SELECT step_id FROM scores WHERE waiting) AND number >= ?",
    "UPDATE scores SET waiting = NULL WHERE waiting AND step_id IN (SELECT id FROM steps)",
)

_REFS: Final = RECORD_COLUMNS.index("refs")
_DOWNGRADED: Final = 1 << OPTIONAL_STEP_COLUMNS.index("downgraded_from")
TURN_NS: Final = 1_000_000  # how long the batch is worked on before others get a turn; see `Intake`
_FIRST_PAYLOAD_BIT: Final = 1 << len(OPTIONAL_STEP_COLUMNS)


Groups = dict[int, tuple[list[list[Any]], list[list[Any]]]]  # by shape: rows of `steps`, rows of `payload`


class Intake:
    """A batch on its way in: decoded and made into rows at once, written by `write`, which may be called again.

    A row does not keep its record, because a thousand live records make the garbage collector run; the few that are
    needed again are decoded again. `check_numbers` refuses numbers that no column holds, which `write` meets as
    `OverflowError`: so rare that a batch is made without looking for them first.

    Decoding a batch takes ten milliseconds of nothing but Python, and a thread of the program that wakes meanwhile
    would wait for the interpreter until its switch interval is over, five of them. So it is let go every millisecond.
    """

    def __init__(self, frames: Sequence[bytes], *, check_numbers: bool = False) -> None:
        self.frames = frames
        self.refused: list[Rejection] = []
        self.places: list[int] = []  # of the rows, in the batch; likewise the lists that follow
        self.rows: list[list[Any]] = []
        self.payloads: list[list[Any]] = []
        self.shapes: list[int] = []
        self.thread_ids: list[str | None] = []
        self.groups: Groups = {}
        self.again: list[int] = []  # places of steps whose id the batch has had before
        self.tags: list[tuple[list[str], list[Any]]] = []  # with the row
        self.blobs: list[tuple[set[bytes], list[Any]]] = []  # likewise
        self.threads: list[tuple[int, ThreadRecord]] = []
        self.scores: list[tuple[int, str, list[Score]]] = []
        self.cuts: list[tuple[list[Any], list[Cut]]] = []  # with the row of `payload`
        self.cutter = Cutter()
        self.questions = Questions()
        self._check_numbers = check_numbers
        self._packer = StepPacker()
        self._seen: set[str] = set()
        turn_ends = time.perf_counter_ns() + TURN_NS
        for index, frame in enumerate(frames):
            if time.perf_counter_ns() > turn_ends:
                os.sched_yield()  # without the interpreter
                turn_ends = time.perf_counter_ns() + TURN_NS
            record = None
            try:
                record = decode_record(frame)
                if type(record) is StepRecord:
                    self._take_step(index, record)
                else:
                    self._take_other(index, record)
            except (UsageError, UnicodeDecodeError) as error:
                self.refused.append(Rejection(index, None if record is None else record.id, str(error)))

    def _take_step(self, index: int, step: StepRecord) -> None:
        raw = step.generation
        generation = None if raw is UNSET or raw == NULL else decode_generation(raw)
        if self._check_numbers:
            check_numbers(step, generation)
        if step.scores:
            self._take_scores(index, step)
        if step.id in self._seen:
            self.again.append(index)
            return
        if step.type == "llm":
            apply_llm_rule(step, generation)
        frame = self.frames[index]
        previews = previews_of(step, generation)
        cuts = self.cutter.cut(step, generation) if _may_hold_arrays(frame, generation) else []
        shape, row, payload = self._packer.pack(step, generation, previews, has_refs=bool(cuts))
        if cuts:
            self.cuts.append((payload, cuts))
        group = self.groups.get(shape)
        if group is None:
            group = self.groups[shape] = ([], [])
        group[0].append(row)
        group[1].append(payload)
        self._seen.add(step.id)
        self.places.append(index)
        self.rows.append(row)
        self.payloads.append(payload)
        self.shapes.append(shape)
        self.thread_ids.append(step.thread_id)
        if step.tags:
            self.tags.append((step.tags, row))
        if BLOB_MARK in frame and (hashes := hashes_in(frame)):
            self.blobs.append((hashes, row))
        self.questions.take(step, generation, row)

    def _take_scores(self, index: int, step: StepRecord) -> None:
        scores = step.scores or []
        for score in scores:
            if score.step_id not in {None, step.id}:
                raise UsageError(f"not a record: a score of step {step.id!r} is of {score.step_id!r} - at `$.scores`")
            _check_created(score)
        self.scores.append((index, step.id, scores))

    def _take_other(self, index: int, record: Record) -> None:
        if isinstance(record, ThreadRecord):
            _check_created(record)
            row_of_thread(record)  # raises for metadata that is not UTF-8
            self.threads.append((index, record))
        elif isinstance(record, Score):
            if not record.step_id:
                raise UsageError("not a record: a score needs a step_id - at `$.step_id`")
            _check_created(record)
            self.scores.append((index, record.step_id, [record]))

    def write(self, db: sqlite3.Connection, known: Numbers) -> tuple[AddResult, dict[bytes, int], int]:
        """Write the batch; say what became of it, what numbers its messages have once it is committed, and since when.

        The last is the count of sweeps, see `Numbers`.
        """
        writer = _Writer(db, self, known)
        writer.insert()
        for index, thread in self.threads:
            writer.merge_thread(index, thread)
        refused = [*self.refused, *writer.refused]
        refused_places = {rejection.index for rejection in refused}
        for index, step_id, scores in self.scores:
            if index not in refused_places:
                writer.merge_scores(index, step_id, scores)
        accepted = len(writer.accepted) + writer.inserted
        refused.sort(key=lambda rejection: rejection.index)
        duplicates = len(self.frames) - len(refused) - accepted
        places = writer.duplicate_places(refused) if duplicates else ()
        return AddResult(accepted, duplicates, tuple(refused), places), writer.numbers, writer.sweep


def _may_hold_arrays(frame: bytes, generation: Generation | None) -> bool:
    """Tell, from what costs nothing, whether it is worth looking for arrays of messages."""
    if generation is not None and is_large(generation.messages):
        return True
    return len(frame) >= 4 * MIN_BYTES and b'"messages"' in frame


def _check_created(record: ThreadRecord | Score) -> None:
    if not fits(record.created_ns):
        raise UsageError("not a record: a number has more than 64 bits - at `$.created_ns`")


class _Writer:
    """What one transaction does. `inserted` counts new steps, `accepted` holds the places of other news."""

    def __init__(self, db: sqlite3.Connection, intake: Intake, known: Numbers) -> None:
        self._db = db
        self._bodies = Bodies(db)
        self.numbers: dict[bytes, int] = {}
        self._intake = intake
        self._packer = StepPacker()
        self._position, self.sweep = db.execute(f"SELECT ({LAST_POSITION}), sweep FROM state").fetchone()
        self._known_numbers = known.of(self.sweep)
        self._known: set[int] = set()  # numbers that stayed free, because the step's id is known
        self._again = {*intake.again}
        self._fresh: set[int] = set()  # places of new steps, in a batch with scores
        self.inserted = 0
        self.accepted: set[int] = set()
        self.refused: list[Rejection] = []

    def insert(self) -> None:
        """Insert the steps whose id is new, then merge the others, in their order."""
        intake = self._intake
        first = self._position + 1
        for number, (row, payload) in enumerate(zip(intake.rows, intake.payloads, strict=True), start=first):
            row[0] = payload[0] = number
        self._position += len(intake.rows)
        self.numbers, new = number_messages(self._db, intake.cutter.bodies, self._known_numbers)
        for payload, cuts in intake.cuts:
            payload[-1] = write_refs(cuts, self.numbers)
        for shape, (rows, _) in intake.groups.items():
            self.inserted += self._db.executemany(insert_step(shape), rows).rowcount
        if self.inserted < len(intake.rows):
            self._find_known(first)
        if packs_pay(intake.frames, intake.cutter.emptied):
            self._insert_packed(new)
        else:
            self._insert_plain(new)
        self._learn_threads_and_feedback(first)
        if intake.scores:
            places = zip(intake.places, intake.rows, strict=True)
            self._fresh = {index for index, row in places if row[0] not in self._known}
        tags = ((tag, row[4], row[0]) for tags, row in intake.tags if row[0] not in self._known for tag in tags)
        self._db.executemany(_INSERT_TAG, tags)
        if intake.blobs:
            list_blobs(self._db, ((hashes, row[0]) for hashes, row in intake.blobs if row[0] not in self._known))
        for index in sorted(self._again):
            self._merge_step(index, cast("StepRecord", decode_record(intake.frames[index])))

    def _insert_plain(self, new: list[bytes]) -> None:
        intake = self._intake
        self._insert_messages(intake.cutter, new)
        for shape, (_, payloads) in intake.groups.items():
            if shape >= _FIRST_PAYLOAD_BIT:
                fresh = [row for row in payloads if row[0] not in self._known] if self._known else payloads
                self._db.executemany(insert_payload(shape), fresh)

    def _insert_messages(self, cutter: Cutter, new: list[bytes]) -> None:
        rows = ((self.numbers[digest], bytearray(digest), str(cutter.bodies[digest], "utf-8")) for digest in new)
        self._db.executemany("INSERT INTO messages (number, hash, body) VALUES (?, ?, ?)", rows)

    def _insert_packed(self, new: list[bytes]) -> None:
        """Put each step's new messages and then its payload into packs; leave the metadata where filters read it."""
        intake, packs = self._intake, PackWriter(self._db)
        waiting = dict.fromkeys(new)
        messages: list[tuple[int, bytearray, int]] = []
        payloads: dict[int, list[list[Any]]] = defaultdict(list)

        def add_messages(digests: Iterable[bytes]) -> None:
            for digest in digests:
                if digest in waiting:
                    del waiting[digest]
                    number = self.numbers[digest]
                    messages.append(
                        (number, bytearray(digest), packs.add_message(number, intake.cutter.bodies[digest]))
                    )

        cut = {payload[0]: cuts for payload, cuts in intake.cuts}
        for shape, row in zip(intake.shapes, intake.payloads, strict=True):
            number = row[0]
            if shape < _FIRST_PAYLOAD_BIT or number in self._known:
                continue
            for part in cut.get(number, ()):
                add_messages(part.digests)
            values = dict(zip(present_columns(shape)[1], row[1:], strict=True))
            metadata = [values.pop("metadata")] if shape & METADATA_BIT else []
            if values:
                payloads[shape & METADATA_BIT | PACK_BIT].append([number, *metadata, packs.add_step(number, values)])
            else:
                payloads[shape].append(row)
        add_messages(list(waiting))
        packs.flush()
        self._db.executemany("INSERT INTO messages (number, hash, pack) VALUES (?, ?, ?)", messages)
        for shape, rows in payloads.items():
            self._db.executemany(insert_payload(shape), rows)

    def _learn_threads_and_feedback(self, first: int) -> None:
        intake = self._intake
        visits: dict[str, Visit] = {}
        for thread_id, shape, row in zip(intake.thread_ids, intake.shapes, intake.rows, strict=True):
            if thread_id is not None and row[0] not in self._known:
                visit = visits.get(thread_id)
                if visit is None:
                    visit = visits[thread_id] = Visit()
                visit.add(row, *places_of_sums(shape))
        self._db.executemany(TOUCH_THREAD, (visit.values(thread_id) for thread_id, visit in visits.items()))
        intake.questions.write(self._db, self._known)
        if self._db.execute("SELECT 1 FROM scores WHERE waiting LIMIT 1").fetchone():
            self._db.execute(_SET_AWAITED_FEEDBACK[0], (first,))
            self._db.execute(_SET_AWAITED_FEEDBACK[1])

    def _find_known(self, first: int) -> None:
        inserted = {number for (number,) in self._db.execute("SELECT number FROM steps WHERE number >= ?", (first,))}
        intake = self._intake
        for index, shape, row, payload in zip(intake.places, intake.shapes, intake.rows, intake.payloads, strict=True):
            if row[0] not in inserted:
                self._known.add(row[0])
                if shape & _DOWNGRADED or not self._is_stored(shape, row, payload):
                    self._again.add(index)

    def _is_stored(self, shape: int, row: list[Any], payload: list[Any]) -> bool:
        found = self._db.execute(says_nothing_new(shape), row[1:] + payload[1:]).fetchone()
        if found is None or found[1] is None:
            return found is not None
        number, pack, metadata = found
        packed = {**self._bodies.packs.step(pack, number), "metadata": metadata}
        values = dict(zip(present_columns(shape)[1], payload[1:], strict=True))
        return packed["refs"] == values.get("refs") and all(packed[name] == value for name, value in values.items())

    def _merge_step(self, index: int, step: StepRecord) -> None:
        number, *values = self._db.execute(_SELECT_STEP, (pack_id(step.id),)).fetchone()
        old = step_of_row(values, self._bodies)
        try:
            merged = merge_step(old, step)
            merged.scores = None
            if merged == old:
                return
            questions = Questions()
            shape, row, payload = self._pack(merged, questions)
        except (UsageError, UnicodeDecodeError) as error:
            self.refused.append(Rejection(index, step.id, str(error)))
            return
        row[0] = payload[0] = number
        self._position += 1
        if merged.thread_id is not None:  # before the step's update, which counts it there
            self._db.execute(TOUCH_THREAD, (merged.thread_id, row[4], row[4], 0, 0, 0, 0, 0.0))
        self._db.execute(update_step(shape), (*row[2:], self._position, number))
        self._db.execute(FORGET_QUESTION, (number,))
        questions.write(self._db, set())
        if shape >= _FIRST_PAYLOAD_BIT:
            self._db.execute(insert_payload(shape, replace=True), payload)
            self._list_references(index, values[_REFS], payload)
        if (merged.tags, merged.start_ns) != (old.tags, old.start_ns):
            start_ns = UNKNOWN_NS if old.start_ns is None else old.start_ns
            self._db.executemany(_DELETE_TAG, [(tag, start_ns, number) for tag in old.tags or ()])
            self._db.executemany(_INSERT_TAG, [(tag, row[4], number) for tag in merged.tags or ()])
        self.accepted.add(index)

    def duplicate_places(self, refused: Iterable[Rejection]) -> tuple[int, ...]:
        """Return the places of records that said nothing new."""
        intake = self._intake
        new = {index for index, row in zip(intake.places, intake.rows, strict=True) if row[0] not in self._known}
        said = new | self.accepted | {rejection.index for rejection in refused}
        return tuple(index for index in range(len(intake.frames)) if index not in said)

    def _list_references(self, index: int, old_refs: str | None, payload: list[Any]) -> None:
        frame = self._intake.frames[index]
        if BLOB_MARK in frame:
            list_blobs(self._db, [(hashes_in(frame), payload[0])])
        if old_refs is not None and old_refs != payload[-1]:
            loosen_messages(self._db, spans_of_refs(old_refs))

    def _pack(self, step: StepRecord, questions: Questions) -> tuple[int, list[Any], list[Any]]:
        generation, cutter = parse_generation(step), Cutter()
        previews = previews_of(step, generation)
        cuts = cutter.cut(step, generation)
        shape, row, payload = self._packer.pack(step, generation, previews, has_refs=bool(cuts))
        questions.take(step, generation, row)
        if cuts:
            numbers, new = number_messages(self._db, cutter.bodies, self._known_numbers)
            self.numbers |= numbers
            self._insert_messages(cutter, new)
            payload[-1] = write_refs(cuts, self.numbers)
        return shape, row, payload

    def merge_thread(self, index: int, thread: ThreadRecord) -> None:
        """Insert or update a thread."""
        found = self._db.execute(_SELECT_THREAD, (thread.id,)).fetchone()
        merged = thread
        if found is not None:
            old = thread_of_row(found)
            merged = merge_thread(old, thread)
            if merged == old:
                return
        active_ns = UNKNOWN_NS if merged.created_ns is None else merged.created_ns
        self._db.execute(_REPLACE_THREAD, (*row_of_thread(merged), active_ns))
        self._db.execute(SET_ITEM, (item_of(merged.metadata), merged.id))
        self.accepted.add(index)

    def merge_scores(self, index: int, step_id: str, scores: list[Score]) -> None:
        """Insert or update scores of a step, which may be unknown yet."""
        known = {
            row[2]: (row[0], score_of_row(row[1:])) for row in self._db.execute(_SELECT_SCORES, (pack_id(step_id),))
        }
        changed = judged = False
        for score in scores:
            number, old = known.get(score.id, (None, None))
            merged = score if old is None else merge_score(old, score)
            if merged == old:
                continue
            changed = True
            judged |= "feedback" in {merged.name, old and old.name}
            written = self._db.execute(_REPLACE_SCORE, (number, *row_of_score(step_id, merged)))
            known[score.id] = (written.lastrowid, merged)
        if not changed:
            return
        self._position += 1
        packed = pack_id(step_id)
        known_step = self._db.execute("UPDATE steps SET changed = ? WHERE id = ?", (self._position, packed)).rowcount
        if judged:
            self._db.execute(_SET_FEEDBACK if known_step else _WAIT_FOR_STEP, (packed,))
        if index not in self._fresh:
            self.accepted.add(index)
