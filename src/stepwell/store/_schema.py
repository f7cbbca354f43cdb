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
`errors` (failed steps) and `tokens` (a REAL beyond 64 bits) are sums over its steps: who inserts steps adds to them,
what updates and deletions change is the work of the triggers `steps_updated` and `steps_deleted`.

What deletions need, since version 3:

`state`, one row: `last_number`, `last_message` and `last_pack` are numbers of steps, messages and packs that were given
before the latest deletion and are not given again, since cursors and references may still name them. `sweep` counts
the deletions of messages: who remembers numbers of messages forgets them when it has grown. `unlisted_step` and
`unlisted_pack`: rows numbered up to these, which older versions wrote, are not in the tables below yet; 0 when all are.

`pack_contents`: for each `pack` the `first_step` and `last_step` of which it holds a payload, and in `refs` which
messages these refer to, as a JSON array of `[first, last]`.

`step_blobs`: `hash` (SHA-256, 32 bytes) and `step` (`steps.number`), a row for each blob that a step's record names.
`loose_blobs`: `hash` of blobs whose last such row is gone, until their file is. `loose_messages`: `number`, `first` and
`last` of messages to which a deleted payload referred; they go too, with the next sweep, unless another one does.

Steps of one trace share the first 8 bytes of their id, so a trace, a run and the children of a step are one range of
the index on `id`, which costs nothing to keep. Links that do not follow from the id, of records made elsewhere, are
marked `stray` and have indexes of their own.

| find | index |
|---|---|
| a step; a trace, run or tree | `id` (unique), and `steps_stray_*` |
| newest steps; newest runs | `steps_start`; `steps_top` |
| steps of a thread, of a model | `steps_thread`, `steps_model` |
| failed, cancelled and pending steps | `steps_unsuccessful` |
| steps with feedback, of an agent | `steps_feedback`, `steps_agent_id` |
| steps with a tag | `step_tags` |
| what changed | `number`, `steps_changed` |
| newest threads | `threads_active` |
| feedback that waits for its step | `scores_waiting` |
| newest scores, and those of a name | `scores_created`, `scores_name` |
| references of payloads that are in no pack | `payload_refs` |
| blobs of a step | `step_blobs_step` |
"""

from __future__ import annotations

import sqlite3
from typing import Final

from stepwell.errors import CorruptStoreError

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

APPLICATION_ID: Final = 0x73746570

_VERSION_1: Final = (
    """
    CREATE TABLE steps (
        number INTEGER PRIMARY KEY,
        id NOT NULL UNIQUE, trace_id, parent_id, thread_id TEXT, root_run_id,
        type TEXT, name TEXT, start_ns INTEGER NOT NULL, end_ns INTEGER, status TEXT, error_type TEXT,
        model TEXT, provider TEXT, input_tokens INTEGER, output_tokens INTEGER, total_tokens INTEGER,
        tags TEXT, downgraded_from TEXT, child_count INTEGER,
        user TEXT, environment TEXT, service TEXT, "release" TEXT, stray INTEGER, changed INTEGER
    )
    """,
    """
    CREATE TABLE payload (
        number INTEGER PRIMARY KEY,
        input TEXT, output TEXT, generation TEXT, metadata TEXT, error TEXT, attachments TEXT,
        agent_id TEXT, active_ns INTEGER, sdk TEXT
    )
    """,
    """
    CREATE TABLE step_tags (
        tag TEXT, start_ns INTEGER, step INTEGER, PRIMARY KEY (tag, start_ns, step)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE scores (
        number INTEGER PRIMARY KEY,
        step_id NOT NULL, id TEXT NOT NULL, name TEXT, type TEXT, value REAL, label TEXT, comment TEXT,
        tags TEXT, created_ns INTEGER, named_step INTEGER NOT NULL, UNIQUE (step_id, id)
    )
    """,
    """
    CREATE TABLE threads (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE, name TEXT, user TEXT, user_name TEXT, tags TEXT, metadata TEXT, environment TEXT,
        created_ns INTEGER, active_ns INTEGER NOT NULL DEFAULT -1
    )
    """,
    "CREATE INDEX steps_start ON steps (start_ns)",
    "CREATE INDEX steps_top ON steps (start_ns) WHERE parent_id IS NULL OR root_run_id = id",
    "CREATE INDEX steps_thread ON steps (thread_id, start_ns) WHERE thread_id IS NOT NULL",
    "CREATE INDEX steps_model ON steps (model, start_ns) WHERE model IS NOT NULL",
    "CREATE INDEX steps_unsuccessful ON steps (status, start_ns) WHERE status <> 'success'",
    "CREATE INDEX steps_changed ON steps (changed) WHERE changed IS NOT NULL",
    "CREATE INDEX steps_stray_parent_id ON steps (parent_id) WHERE stray",
    "CREATE INDEX steps_stray_trace_id ON steps (trace_id) WHERE stray",
    "CREATE INDEX steps_stray_root_run_id ON steps (root_run_id) WHERE stray",
    "CREATE INDEX threads_active ON threads (active_ns)",
    f"PRAGMA application_id = {APPLICATION_ID}",
)

# Old rows stay as they are: their payloads hold their messages, and their new columns are NULL, but for the feedback.
_VERSION_2: Final = (
    "CREATE TABLE messages (number INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, body TEXT, pack INTEGER)",
    "CREATE TABLE packs (number INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "ALTER TABLE payload ADD COLUMN refs TEXT",
    "ALTER TABLE payload ADD COLUMN pack INTEGER",
    """
    CREATE VIEW step_messages AS
    SELECT p.number AS step, json_extract(r.value, '$[0]') AS letter, json_extract(r.value, '$[1]') AS place,
        r.key AS run, m.number AS message, m.body AS body, m.pack AS pack
    FROM payload p, json_each(p.refs) r, messages m
    WHERE m.number BETWEEN json_extract(r.value, '$[2]') AND json_extract(r.value, '$[3]')
    """,
    "ALTER TABLE steps ADD COLUMN cached_input_tokens INTEGER",
    "ALTER TABLE steps ADD COLUMN cache_write_tokens INTEGER",
    "ALTER TABLE steps ADD COLUMN reasoning_tokens INTEGER",
    "ALTER TABLE steps ADD COLUMN cost REAL",
    "ALTER TABLE steps ADD COLUMN ttft_ns INTEGER",
    "ALTER TABLE steps ADD COLUMN request_id TEXT",
    "ALTER TABLE steps ADD COLUMN error_message TEXT",
    "ALTER TABLE steps ADD COLUMN agent_id TEXT",
    "ALTER TABLE steps ADD COLUMN feedback TEXT",
    "ALTER TABLE scores ADD COLUMN waiting INTEGER",
    "UPDATE scores SET waiting = 1 WHERE name = 'feedback' AND step_id NOT IN (SELECT id FROM steps)",
    """
    UPDATE steps SET feedback = (
        SELECT c.label FROM scores c WHERE c.step_id = steps.id AND c.name = 'feedback'
            AND c.label IN ('positive', 'negative') ORDER BY c.number DESC LIMIT 1
    )
    WHERE id IN (SELECT step_id FROM scores WHERE name = 'feedback')
    """,
    "CREATE INDEX scores_waiting ON scores (step_id) WHERE waiting",
    "CREATE INDEX steps_feedback ON steps (feedback, start_ns) WHERE feedback IS NOT NULL",
    "CREATE INDEX steps_agent_id ON steps (agent_id, start_ns) WHERE agent_id IS NOT NULL",
)

_COUNT_OUT: Final = """
    UPDATE threads SET steps = steps - 1, errors = errors - (old.status IS 'failed'),
        tokens = tokens - ifnull(old.total_tokens, 0) WHERE id = old.thread_id
"""
_COUNT_IN: Final = _COUNT_OUT.replace(" - ", " + ").replace("old.", "new.")
_VERSION_3: Final = (
    """
    UPDATE steps SET feedback = (
        SELECT CASE WHEN c.label IN ('positive', 'negative') THEN c.label END
        FROM scores c WHERE c.step_id = steps.id AND c.name = 'feedback'
        ORDER BY ifnull(c.created_ns, 0) DESC, c.number DESC LIMIT 1
    )
    WHERE feedback IS NOT NULL OR id IN (SELECT step_id FROM scores WHERE name = 'feedback')
    """,
    "ALTER TABLE threads ADD COLUMN steps INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE threads ADD COLUMN errors INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE threads ADD COLUMN tokens INTEGER NOT NULL DEFAULT 0",
    # sum() fails where the sum has more than 64 bits; + and * go on as REAL.
    """
    UPDATE threads SET (steps, errors, tokens) = (
        SELECT count(*), count(*) FILTER (WHERE status = 'failed'),
            ifnull(sum(total_tokens >> 32) * 4294967296 + sum(total_tokens & 4294967295), 0)
        FROM steps WHERE thread_id = threads.id
    )
    """,
    f"""
    CREATE TRIGGER steps_deleted AFTER DELETE ON steps WHEN old.thread_id IS NOT NULL BEGIN
        {_COUNT_OUT}; END
    """,
    f"""
    CREATE TRIGGER steps_updated AFTER UPDATE OF thread_id, status, total_tokens ON steps
    WHEN (old.thread_id, old.status, old.total_tokens) IS NOT (new.thread_id, new.status, new.total_tokens) BEGIN
        {_COUNT_OUT}; {_COUNT_IN}; END
    """,
    "CREATE INDEX scores_created ON scores (ifnull(created_ns, -1))",
    "CREATE INDEX scores_name ON scores (name, ifnull(created_ns, -1))",
    # What older rows refer to is listed when something is deleted for the first time, a few of them at once: it takes
    # reading all of them, and opening a file should not.
    """
    CREATE TABLE state (
        last_number INTEGER NOT NULL, last_message INTEGER NOT NULL, last_pack INTEGER NOT NULL,
        sweep INTEGER NOT NULL, unlisted_step INTEGER NOT NULL, unlisted_pack INTEGER NOT NULL
    )
    """,
    """
    INSERT INTO state
    SELECT 0, 0, 0, 0, ifnull((SELECT max(number) FROM steps), 0), ifnull((SELECT max(number) FROM packs), 0)
    """,
    "CREATE TABLE pack_contents (pack INTEGER PRIMARY KEY, first_step INTEGER, last_step INTEGER, refs TEXT NOT NULL)",
    "CREATE TABLE step_blobs (hash BLOB, step INTEGER, PRIMARY KEY (hash, step)) WITHOUT ROWID",
    "CREATE INDEX step_blobs_step ON step_blobs (step)",
    "CREATE TABLE loose_blobs (hash BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE loose_messages (number INTEGER PRIMARY KEY AUTOINCREMENT, first INTEGER, last INTEGER)",
    # By number first, so that new rows are added at its end; with `refs` in it, to be read without the payloads.
    "CREATE INDEX payload_refs ON payload (number, refs) WHERE refs IS NOT NULL",
)

# The last numbers that were given, to steps and their updates, to messages, and to packs.
LAST_POSITION: Final = (
    "SELECT max(ifnull((SELECT max(number) FROM steps), 0), "
    "ifnull((SELECT max(changed) FROM steps WHERE changed IS NOT NULL), 0), last_number) FROM state"
)
LAST_MESSAGE: Final = "SELECT max(ifnull((SELECT max(number) FROM messages), 0), last_message) FROM state"
LAST_PACK: Final = "SELECT max(ifnull((SELECT max(number) FROM packs), 0), last_pack) FROM state"

# One entry a version, in order; what was released is never edited, a change is a new entry.
_MIGRATIONS: Final = (_VERSION_1, _VERSION_2, _VERSION_3)
SCHEMA_VERSION: Final = len(_MIGRATIONS)


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
    for number, statements in enumerate(_MIGRATIONS[read_version(db, path) :], start=read_version(db, path) + 1):
        for statement in statements:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")
