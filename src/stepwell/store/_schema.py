"""The schema of the embedded store, and the migrations that lead to it.

The file is an SQLite database that anyone may read while it is in use; what follows is promised to stay, later
versions only add to it. `PRAGMA user_version` is the schema's version, `application_id` is `0x73746570` ("step").

`steps`: one row a step, narrow, for lists and sums.

| column | holds |
|---|---|
| `number` | the row's number, in order of arrival |
| `id`, `parent_id`, `root_run_id` | a UUID as 16 bytes (`lower(hex(id))`), any other id as text |
| `trace_id` | 32 hex digits as 16 bytes, anything else as text |
| `thread_id` | text |
| `type` `name` `status` `error_type` `downgraded_from` `user` `environment` `service` `release` | text |
| `start_ns` | nanoseconds since the Unix epoch, -1 where it is unknown |
| `end_ns` | the same, NULL where it is unknown |
| `model` `provider` `input_tokens` `output_tokens` `total_tokens` | of the generation; the total may be their sum |
| `tags` | JSON array of text |
| `child_count` | how many children the step started |
| `cached_input_tokens` `cache_write_tokens` `reasoning_tokens` `ttft_ns` `request_id` | of the generation |
| `cost` | of the generation: the number, its `total`, or the sum of its parts |
| `error_message` | the first 200 characters of the error's message |
| `agent_id` | text; of steps that version 1 wrote it is in `payload` |
| `feedback` | the label of the latest score of that name (by `created_ns`, `number`), if `positive` or `negative` |
| `input_preview` `output_preview` | the beginning of the payload's text on one line, of those in `steps_top` |
| `is_top` | 1 for what the list of runs has: steps without a parent, and those that are the run they name (generated) |
| `stray` | 1 where `trace_id`, `parent_id` or `root_run_id` does not begin with the first 8 bytes of `id` (see below) |
| `changed` | the position of the row's last update, NULL for a row never updated: its position is its `number` |

`payload`: `number` as in `steps`, and JSON text: `input` `output` `generation` `metadata` `error` `attachments`; also
`active_ns` `sdk`. A step without any of these has no row.

`messages`: `number`, `hash` (BLAKE2b of the body, 16 bytes) and `body`: a message or tool, JSON text, each kept once.
Arrays of them in `input`, `output` and `generation` are left empty, as `[]`, and `payload.refs` says what belongs
there: a JSON array of `[letter, place, first, last]`. The letter is the column's first; the messages numbered first to
last are inserted after `place` characters of the column as it stands, after those of earlier entries with the same
place, joined by a comma (where the letter is a capital, by a comma and a space). The view `step_messages` (`step` as
`steps.number`, `letter`, `place`, `run`, `message`, `body`, `pack`) lists them, so the messages of a call are read by

    SELECT body, pack FROM step_messages WHERE step = ? AND letter IN ('g', 'G') ORDER BY place, run, message

`packs`: `number` and `body`: payloads and messages of neighbouring steps, compressed, where a batch was mostly messages
that were there already. A row of `messages` whose `pack` is given has its body in that pack. A row of `payload` whose
`pack` is given has only `metadata` itself, and all other columns in that pack. A pack is JSON in a zlib stream
(`json.loads(zlib.decompress(body))`): an array of `{"message": number, "body": ...}` and of `{"step": number, "input":
..., "output": ..., "generation": ...}`, with the columns' values as JSON.

`step_tags`: `tag`, `start_ns`, `step` (the step's `number`), a row for each tag of each step.

`scores`: `number`, `step_id` (as `steps.id`), `id`, `name`, `type`, `value`, `label`, `comment`, `tags`, `created_ns`;
`named_step` is 1 where the score itself said which step it is of. A score may come before its step; `waiting` is 1
for one named `feedback` that did.

`threads`: `number`, `id`, `name`, `user` (JSON), `user_name` (its identifier, else its id), `tags`, `metadata` (JSON),
`environment`, `created_ns`, and `active_ns`: the start of the latest step, else the creation, else -1. `steps`,
`errors` (failed steps), `tokens` (a REAL beyond 64 bits), `priced` (model calls with a cost) and `cost` (theirs) are
sums over its steps: who inserts steps adds to them, what updates and deletions change is the work of the triggers
`steps_updated` and `steps_deleted`.

What was asked, since version 3, is 48 bits of BLAKE2b, made as `stepwell.store._questions` tells: `threads.item` of the
dataset item that the metadata name, and `threads.question` of what its step `asked_step` was given, the first, which
started at `asked_ns`. `questions`: `step` and `question`, of runs outside of threads, or with an item of their own. The
triggers `steps_unasked` and `threads_left` forget what a step asked that goes, or goes to another thread.

What deletions need, since version 3:

`state`, one row: `last_number`, `last_message` and `last_pack` are numbers of steps, messages and packs that were given
before the latest deletion and are not given again, since cursors and references may still name them: a deletion of
steps takes the next number itself, so `last_number` is greater than any that was read before it. `sweep` counts
the deletions of messages: who remembers numbers of messages forgets them when it has grown. `unlisted_step` and
`unlisted_pack`: rows numbered up to these, which older versions wrote, are not in the tables below yet; 0 when all are.

`pack_contents`: for each `pack` the `first_step` and `last_step` of which it holds a payload, and in `refs` which
messages these refer to, as a JSON array of `[first, last]`.

`step_blobs`: `hash` (SHA-256, 32 bytes) and `step` (`steps.number`), a row for each blob that a step's record names.
`loose_blobs`: `hash` of blobs whose last such row is gone, until their file is. `loose_messages`: `number`, `first` and
`last` of messages to which a deleted payload referred; they go too, with the next sweep, unless another one does.

`rollups`: sums of the steps that started in an hour or a day (UTC) and have the same `type`, `name`, `model` and
`environment`: `span_s` (3600 or 86400), `start_ns` of the hour or day (-1: the steps' start is not known), `steps`, how
many of them are `success` `failed` `cancelled` `pending` `interrupted`, sums of `input_tokens` `output_tokens`
`total_tokens` `cached_input_tokens` and `cost`, how many steps are `timed`, the sum of their `duration_ns`, how many
are at the `top` (`steps.is_top`), how many of these failed (`failed_top`), and `durations`: how many durations are in
bucket n, above 1.04^(n-1) ns and up to 1.04^n ns; bucket 0 holds those of 1 ns and less. It is a blob, little-endian:
the number of the first bucket (2 bytes), how many bytes a count has (1 byte: 1, 2, 4 or 8), and the counts of this
bucket and those that follow. `user_rollups`: the same by `user` and `environment`, but for the `durations`; the user is
the one that the step names, else its thread's. `users`: `user`, of all steps of a user: `steps`, `errors` (failed
ones), `tokens` (the totals) and `cost`; the starts of the first and the last, `first_ns` and `last_ns` (-1: not known),
and `last_step`, the `number` of the last.

What the sums have is `counted`: steps up to its `number`, as they were before the `recounts`, in which triggers
(`steps_recount` `steps_uncount`, and of a thread's user `threads_recount` `threads_count` `threads_uncount`) note
counted steps that changed or went: `step` is the number of the step, as it was with `sign` -1, as it is with 1. So
exact sums are those of the tables, plus the recounts, plus the steps above `counted`.

`step_texts`, an FTS5 table without contents, finds the words of steps: its `rowid` is `ifnull(steps.changed,
steps.number)`. It is made when there is something to index, may be dropped at any time, and has what changed up to
`indexed`: that `position`, and how many `texts` it took. A `message` is found at the `step` of its `message_steps`.

`soft_errors`: failures that called themselves success, among steps up to the position `state.judged`: `step` and
`start_ns` (the step's `number` and `start_ns`), `run` (its `root_run_id`, else its `trace_id`, else its `id`), `kind`
(the result tells of an `error`, or is `empty`) and `reaction`, what came next (`same_call` `other_arguments`
`other_tool` `answered` `none`; NULL in runs of more than 10,000 steps). In the runs that are `unsettled` the reaction
may be that of before, or NULL. None of this moves `changed`.

Steps of one trace share the first 8 bytes of their id, so a trace, a run and the children of a step are one range of
the index on `id`, which costs nothing to keep. Links that do not follow from the id, of records made elsewhere, are
marked `stray` and have indexes of their own.

| find | index |
|---|---|
| a step; a trace, run or tree | `id` (unique), and `steps_stray_*` |
| newest steps; newest runs | `steps_start`; `steps_top` |
| runs that did not succeed, of an agent | `steps_top_unsuccessful`, `steps_top_agent_id` |
| steps of a thread, of a model, of an agent | `steps_thread`, `steps_model`, `steps_agent_id` |
| steps of a type, name or environment | `rollups_key` tells the hours in which there were any, then `steps_start` |
| steps of a user, of a service | `steps_user`, `steps_service` |
| failed, cancelled and pending steps | `steps_unsuccessful` |
| steps with an error, of a type of error | `steps_errors`, `steps_error_type` |
| steps with feedback, with this feedback | `steps_judged`, `steps_feedback` |
| failures that called themselves success; those of a run | `soft_errors_start`; `soft_errors_run` |
| steps with a tag | `step_tags` |
| what changed | `number`, `steps_changed` |
| newest threads; threads of a user | `threads_active`; `threads_user_name`, `threads_user_id` |
| sums of hours and days; users by latest step | `rollups_key`, `user_rollups_key`; `users_active` |
| words | `step_texts` |
| threads and runs of one question | `threads_question`, `questions_question` |
| feedback that waits for its step | `scores_waiting` |
| newest scores, and those of a name | `scores_created`, `scores_name` |
| references of payloads that are in no pack | `payload_refs` |
| blobs of a step | `step_blobs_step` |
"""

from __future__ import annotations

import sqlite3
from typing import Final

from stepwell.errors import CorruptStoreError
from stepwell.store._migrations import APPLICATION_ID, MIGRATIONS

__all__ = [
    "APPLICATION_ID",
    "LAST_MESSAGE",
    "LAST_PACK",
    "LAST_POSITION",
    "SCHEMA_VERSION",
    "check_current",
    "migrate",
    "read_version",
]

# The last numbers that were given, to steps and their updates, to messages, and to packs.
LAST_POSITION: Final = (
    "SELECT max(ifnull((SELECT max(number) FROM steps), 0), "
    "ifnull((SELECT max(changed) FROM steps WHERE changed IS NOT NULL), 0), last_number) FROM state"
)
LAST_MESSAGE: Final = "SELECT max(ifnull((SELECT max(number) FROM messages), 0), last_message) FROM state"
LAST_PACK: Final = "SELECT max(ifnull((SELECT max(number) FROM packs), 0), last_pack) FROM state"

SCHEMA_VERSION: Final = len(MIGRATIONS)


def read_version(db: sqlite3.Connection, path: str) -> int:
    """Return the schema's version, 0 for an empty file; raises `CorruptStoreError` for what is not ours to open."""
    # In one transaction: another process may be making the store, and must not come between the questions.
    alone = not db.in_transaction
    if alone:
        db.execute("BEGIN")
    try:
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (objects,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        if alone:
            db.execute("ROLLBACK")
    if application_id != APPLICATION_ID and (application_id or version or objects):
        raise CorruptStoreError(f"{path} is an SQLite database, but not a stepwell store")
    if version > SCHEMA_VERSION:
        raise CorruptStoreError(
            f"{path} has schema version {version}, this stepwell knows {SCHEMA_VERSION}: it was written by a newer one"
        )
    return int(version)


def check_current(db: sqlite3.Connection, path: str) -> None:
    """Raise `CorruptStoreError` for a file that can't be read as it is."""
    if read_version(db, path) != SCHEMA_VERSION:
        raise CorruptStoreError(f"{path} is not a stepwell store, or an older one: open it for writing once")


def migrate(db: sqlite3.Connection, path: str) -> None:
    """Bring the schema up to date, inside the caller's transaction, which must hold the write lock.

    The version is read again under that lock, because another process may have migrated in the meantime.
    """
    for number, statements in enumerate(MIGRATIONS[read_version(db, path) :], start=read_version(db, path) + 1):
        for statement in statements:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")
