"""The statements that make the schema, a version after another; what they make is told in `stepwell.store._schema`.

What must stay true: what was released is never edited, a change is a new version.
"""

# ruff: noqa: S608 (what is put into SQL are our own column names)

from __future__ import annotations

from typing import Final

__all__ = ["APPLICATION_ID", "MIGRATIONS"]

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

_PRICED: Final = "({row}type IS 'llm' AND {row}cost IS NOT NULL)"
_OLD_PRICED: Final = _PRICED.format(row="old.")
_COUNT_OUT: Final = f"""
    UPDATE threads SET steps = steps - 1, errors = errors - (old.status IS 'failed'),
        tokens = tokens - ifnull(old.total_tokens, 0), priced = priced - {_OLD_PRICED},
        cost = cost - {_OLD_PRICED} * ifnull(old.cost, 0) WHERE id = old.thread_id
"""
_COUNT_IN: Final = _COUNT_OUT.replace(" - ", " + ").replace("old.", "new.")
_SUMS: Final = """
    steps INTEGER NOT NULL, success INTEGER NOT NULL, failed INTEGER NOT NULL, cancelled INTEGER NOT NULL,
    pending INTEGER NOT NULL, interrupted INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, total_tokens INTEGER NOT NULL, cached_input_tokens INTEGER NOT NULL,
    cost REAL NOT NULL, timed INTEGER NOT NULL, duration_ns INTEGER NOT NULL,
    top INTEGER NOT NULL, failed_top INTEGER NOT NULL
"""
_COUNTED: Final = (
    *("start_ns", "end_ns", "type", "name", "model", "environment", "status", "is_top"),
    *("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "cost"),
)


def _recount(row: str, sign: int, user: str | None = None) -> str:
    """Return what notes a step for `recounts`: `row` names it, `user` who its user is where that is not its own."""
    user = user or f"ifnull({row}.user, (SELECT user_name FROM threads WHERE id = {row}.thread_id))"
    columns = ", ".join(f"{row}.{name}" for name in _COUNTED)
    return (
        f"INSERT INTO recounts (step, sign, user, {', '.join(_COUNTED)}) SELECT {row}.number, {sign}, {user}, {columns}"
    )


def _recount_thread(old: str, new: str) -> str:
    """Return what notes the counted steps of a thread whose user changes."""
    which = (
        "FROM steps WHERE thread_id = {row}.id AND steps.user IS NULL AND steps.number <= (SELECT number FROM counted)"
    )
    row = "old" if new == "NULL" else "new"
    return ";".join(f"{_recount('steps', sign, user)} {which.format(row=row)}" for sign, user in ((-1, old), (1, new)))


# Sums are derived: what the steps of an older file are is counted when `catch_up` comes by.
_ROLLUPS: Final = (
    # Made when it is read, so that it takes no room.
    "ALTER TABLE steps ADD COLUMN is_top INTEGER AS (parent_id IS NULL OR root_run_id IS id) VIRTUAL",
    f"""
    CREATE TABLE rollups (
        number INTEGER PRIMARY KEY, span_s INTEGER NOT NULL, start_ns INTEGER NOT NULL,
        type TEXT, name TEXT, model TEXT, environment TEXT, {_SUMS}, durations BLOB
    )
    """,
    "CREATE INDEX rollups_key ON rollups (span_s, start_ns, type, name, model, environment)",
    f"""
    CREATE TABLE user_rollups (
        number INTEGER PRIMARY KEY, span_s INTEGER NOT NULL, start_ns INTEGER NOT NULL,
        user TEXT, environment TEXT, {_SUMS}
    )
    """,
    "CREATE INDEX user_rollups_key ON user_rollups (span_s, start_ns, user, environment)",
    """
    CREATE TABLE users (
        number INTEGER PRIMARY KEY, user TEXT NOT NULL UNIQUE,
        steps INTEGER NOT NULL, errors INTEGER NOT NULL, tokens INTEGER NOT NULL, cost REAL NOT NULL,
        first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, last_step INTEGER NOT NULL
    )
    """,
    "CREATE INDEX users_active ON users (last_ns, last_step)",
    "CREATE TABLE counted (number INTEGER NOT NULL)",
    "INSERT INTO counted (number) VALUES (0)",
    f"""
    CREATE TABLE recounts (
        number INTEGER PRIMARY KEY AUTOINCREMENT, step INTEGER NOT NULL, sign INTEGER NOT NULL,
        user TEXT, {", ".join(_COUNTED)}
    )
    """,
    f"""
    CREATE TRIGGER steps_recount
    AFTER UPDATE OF thread_id, user, parent_id, root_run_id, {", ".join(_COUNTED)} ON steps
    WHEN new.number <= (SELECT number FROM counted)
    BEGIN {_recount("old", -1)}; {_recount("new", 1)}; END
    """,
    f"""
    CREATE TRIGGER steps_uncount AFTER DELETE ON steps WHEN old.number <= (SELECT number FROM counted)
    BEGIN {_recount("old", -1)}; END
    """,
    f"""
    CREATE TRIGGER threads_recount AFTER UPDATE OF user_name ON threads WHEN old.user_name IS NOT new.user_name
    BEGIN {_recount_thread("old.user_name", "new.user_name")}; END
    """,
    f"""
    CREATE TRIGGER threads_count AFTER INSERT ON threads WHEN new.user_name IS NOT NULL
    BEGIN {_recount_thread("NULL", "new.user_name")}; END
    """,
    f"""
    CREATE TRIGGER threads_uncount AFTER DELETE ON threads WHEN old.user_name IS NOT NULL
    BEGIN {_recount_thread("old.user_name", "NULL")}; END
    """,
)

_INDEXED: Final = (
    "CREATE TABLE indexed (position INTEGER NOT NULL, texts INTEGER NOT NULL)",
    "INSERT INTO indexed (position, texts) VALUES (0, 0)",
    "CREATE TABLE message_steps (message INTEGER PRIMARY KEY, step INTEGER NOT NULL)",
)

_JUDGED: Final = (
    """
    CREATE TABLE soft_errors (
        step INTEGER PRIMARY KEY, start_ns INTEGER NOT NULL, run NOT NULL, kind TEXT NOT NULL, reaction TEXT
    )
    """,
    "CREATE INDEX soft_errors_start ON soft_errors (start_ns)",
    "CREATE INDEX soft_errors_run ON soft_errors (run)",
    "CREATE TABLE unsettled (run PRIMARY KEY) WITHOUT ROWID",
)

_LEAVE: Final = """
    UPDATE threads SET question = NULL, asked_ns = NULL, asked_step = NULL
    WHERE asked_step = old.number AND id = old.thread_id
"""

# What steps of an older file asked is not known: they are found by it once they are recorded anew.
_QUESTIONS: Final = (
    "ALTER TABLE threads ADD COLUMN question INTEGER",
    "ALTER TABLE threads ADD COLUMN asked_ns INTEGER",
    "ALTER TABLE threads ADD COLUMN asked_step INTEGER",
    "ALTER TABLE threads ADD COLUMN item INTEGER",
    "CREATE INDEX threads_question ON threads (ifnull(item, question))",
    "CREATE TABLE questions (step INTEGER PRIMARY KEY, question INTEGER NOT NULL)",
    "CREATE INDEX questions_question ON questions (question)",
    """
    CREATE TRIGGER steps_unasked AFTER DELETE ON steps WHEN old.parent_id IS NULL OR old.root_run_id = old.id
    BEGIN DELETE FROM questions WHERE step = old.number; END
    """,
    f"""
    CREATE TRIGGER threads_left AFTER UPDATE OF thread_id ON steps WHEN old.thread_id IS NOT new.thread_id
    BEGIN {_LEAVE}; END
    """,
)

_VERSION_3: Final = (
    "ALTER TABLE steps ADD COLUMN input_preview TEXT",
    "ALTER TABLE steps ADD COLUMN output_preview TEXT",
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
    "ALTER TABLE threads ADD COLUMN priced INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE threads ADD COLUMN cost REAL NOT NULL DEFAULT 0",
    f"""
    UPDATE threads SET (steps, errors, tokens, priced, cost) = (
        SELECT count(*), count(*) FILTER (WHERE status = 'failed'),
            ifnull(sum(total_tokens >> 32) * 4294967296 + sum(total_tokens & 4294967295), 0),
            count(*) FILTER (WHERE {_PRICED.format(row="")}), total(cost) FILTER (WHERE {_PRICED.format(row="")})
        FROM steps WHERE thread_id = threads.id
    )
    """,
    f"""
    CREATE TRIGGER steps_deleted AFTER DELETE ON steps WHEN old.thread_id IS NOT NULL BEGIN
        {_COUNT_OUT}; {_LEAVE}; END
    """,
    f"""
    CREATE TRIGGER steps_updated AFTER UPDATE OF thread_id, status, total_tokens, type, cost ON steps
    WHEN (old.thread_id, old.status, old.total_tokens, old.type, old.cost)
        IS NOT (new.thread_id, new.status, new.total_tokens, new.type, new.cost) BEGIN
        {_COUNT_OUT}; {_COUNT_IN}; END
    """,
    "CREATE INDEX steps_user ON steps (user, start_ns) WHERE user IS NOT NULL",
    "CREATE INDEX steps_service ON steps (service, start_ns) WHERE service IS NOT NULL",
    "CREATE INDEX steps_error_type ON steps (error_type, start_ns) WHERE error_type IS NOT NULL",
    """
    CREATE INDEX steps_errors ON steps (start_ns)
    WHERE status IS 'failed' OR error_type IS NOT NULL OR error_message IS NOT NULL
    """,
    "CREATE INDEX steps_judged ON steps (start_ns) WHERE feedback IS NOT NULL",
    """
    CREATE INDEX steps_top_unsuccessful ON steps (status, start_ns)
    WHERE status <> 'success' AND (parent_id IS NULL OR root_run_id = id)
    """,
    """
    CREATE INDEX steps_top_agent_id ON steps (agent_id, start_ns)
    WHERE agent_id IS NOT NULL AND (parent_id IS NULL OR root_run_id = id)
    """,
    "CREATE INDEX threads_user_name ON threads (user_name)",
    "CREATE INDEX threads_user_id ON threads (json_extract(user, '$.id'))",
    "CREATE INDEX scores_created ON scores (ifnull(created_ns, -1))",
    "CREATE INDEX scores_name ON scores (name, ifnull(created_ns, -1))",
    # What older rows refer to is listed when something is deleted for the first time, a few of them at once: it takes
    # reading all of them, and opening a file should not.
    """
    CREATE TABLE state (
        last_number INTEGER NOT NULL, last_message INTEGER NOT NULL, last_pack INTEGER NOT NULL,
        sweep INTEGER NOT NULL, unlisted_step INTEGER NOT NULL, unlisted_pack INTEGER NOT NULL,
        judged INTEGER NOT NULL
    )
    """,
    """
    INSERT INTO state
    SELECT 0, 0, 0, 0, ifnull((SELECT max(number) FROM steps), 0), ifnull((SELECT max(number) FROM packs), 0), 0
    """,
    "CREATE TABLE pack_contents (pack INTEGER PRIMARY KEY, first_step INTEGER, last_step INTEGER, refs TEXT NOT NULL)",
    "CREATE TABLE step_blobs (hash BLOB, step INTEGER, PRIMARY KEY (hash, step)) WITHOUT ROWID",
    "CREATE INDEX step_blobs_step ON step_blobs (step)",
    "CREATE TABLE loose_blobs (hash BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE loose_messages (number INTEGER PRIMARY KEY AUTOINCREMENT, first INTEGER, last INTEGER)",
    # By number first, so that new rows are added at its end; with `refs` in it, to be read without the payloads.
    "CREATE INDEX payload_refs ON payload (number, refs) WHERE refs IS NOT NULL",
    *_ROLLUPS,
    *_INDEXED,
    *_JUDGED,
    *_QUESTIONS,
)

MIGRATIONS: Final = (_VERSION_1, _VERSION_2, _VERSION_3)
