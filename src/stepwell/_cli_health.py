"""`stepwell stats` and `stepwell doctor`: what a home folder holds, and whether it is well."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct, to_builtins

from stepwell._cli_journal import rejected, survey
from stepwell._cli_output import Output, moment
from stepwell._cli_source import Source
from stepwell._render import clean
from stepwell._vocabulary import SDK
from stepwell.errors import StepwellError
from stepwell.store import open_store

__all__ = ["doctor", "stats"]

_LITTLE_SPACE_BYTES: Final = 1 << 30
_NO_SPACE_BYTES: Final = 64 << 20


def stats(source: Source, out: Output) -> None:
    """Print what is in the store, in the journal and in `rejected/`."""
    facts: dict[str, Any] = {"store": _store_facts(source)}
    if source.url is None:
        sessions = survey(source.folder / "journal")
        waiting: dict[str, int] = {}
        for session in sessions:
            for key, count in session.waiting.items():
                waiting[key] = waiting.get(key, 0) + count
        alive = sum(session.alive for session in sessions)
        facts["journal"] = {"live_processes": alive, "dead_processes": len(sessions) - alive, "waiting": waiting}
        facts["rejected"] = dict(rejected(source.folder / "rejected"))
    if out.as_json:
        out.json(facts)
    else:
        out.lines([[(f"{name:26}", "dim"), (text, "")] for name, text in _told(facts)], clipped=False)


def _store_facts(source: Source) -> dict[str, Any] | None:
    if source.url is None and not source.store_path.exists():
        return None
    store = open_store(source.store_url, read_only=True)
    try:
        facts = to_builtins(store.stats())
    finally:
        store.close()
    return {"url": source.store_url, **facts}


def _told(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    store = facts["store"]
    if store is None:
        yield "store", "none yet"
    else:
        yield "store", f"{store['url']}, {store['bytes_on_disk']:,} bytes"
        yield "  records", f"{store['steps']:,} steps, {store['threads']:,} threads, {store['scores']:,} scores"
        for name in ("by_type", "by_status"):
            yield f"  {name.replace('_', ' ')}", ", ".join(f"{n:,} {key}" for key, n in sorted(store[name].items()))
        yield "  from, to", f"{moment(store['oldest_ns'])}, {moment(store['newest_ns'])}"
    if "journal" in facts:
        journal = facts["journal"]
        yield (
            "journal",
            f"{_processes('live', journal['live_processes'])}, {_processes('dead', journal['dead_processes'])}",
        )
        for key, count in journal["waiting"].items():
            yield "  waiting", f"{count:,} for {clean(key)}"
        yield "rejected", f"{sum(facts['rejected'].values()):,}"
        for reason, count in facts["rejected"].items():
            yield "  ", f"{count:,}: {clean(reason)}"


def _processes(state: str, count: int) -> str:
    return f"{count:,} {state} process{'es' * (count != 1)}"


class Finding(Struct):
    """One line of `doctor`."""

    state: Literal["ok", "warn", "fail"]
    about: str
    text: str


_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(source: Source, out: Output) -> int:
    """Check a home folder; return the exit status, 1 where something fails."""
    findings: list[Finding] = []
    if source.url is None:
        _ = source.folder  # there is nothing to examine without one
    for finding in _examine(source):
        findings.append(finding)
        if out.as_json:
            out.json(finding)
        else:
            out.lines(
                [[(f"{finding.state:5}", _STYLES[finding.state]), (f"{finding.about:12}{clean(finding.text)}", "")]],
                clipped=False,
            )
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def _examine(source: Source) -> Iterator[Finding]:
    yield _versions()
    if source.url is None:
        folder = source.folder
        yield from _home(folder)
        yield _space(folder)
        yield from _journal(folder)
        yield _rejected(folder)
    yield from _store(source)


def _versions() -> Finding:
    parts = {
        "stepwell": SDK.partition("/")[2],
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        **{name: _version_of(name) for name in ("opentelemetry-api", "orjson", "msgspec", "typer", "rich")},
    }
    return Finding("ok", "versions", ", ".join(f"{name} {text}" for name, text in parts.items()) + f", {sys.platform}")


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _home(folder: Path) -> Iterator[Finding]:
    if os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        yield Finding("ok", "home", f"{folder} can be written")
    else:
        yield Finding("fail", "home", f"{folder} can't be written: nothing is kept; chown or chmod it, or set home=")
    mode = folder.stat().st_mode & 0o777
    if mode & 0o077:
        yield Finding("warn", "permissions", f"others may enter the home folder (mode {mode:03o}): chmod 700 {folder}")
    else:
        yield Finding("ok", "permissions", f"the home folder is yours alone (mode {mode:03o})")


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    state: Literal["ok", "warn", "fail"] = "ok"
    if free < _LITTLE_SPACE_BYTES:
        state = "fail" if free < _NO_SPACE_BYTES else "warn"
    return Finding(state, "disk", f"{free // (1 << 20):,} MiB free" + (": make room" if state != "ok" else ""))


def _journal(folder: Path) -> Iterator[Finding]:
    sessions = survey(folder / "journal")
    dead = [session for session in sessions if not session.alive]
    alive = len(sessions) - len(dead)
    waiting = sum(max(session.waiting.values(), default=0) for session in dead)
    torn = sum(session.torn for session in dead)
    if waiting:
        yield Finding("warn", "journal", f"{_processes('dead', len(dead))} left {waiting:,} records: stepwell ship")
    else:
        yield Finding("ok", "journal", f"{_processes('live', alive)}, nothing left by dead ones")
    if torn:
        yield Finding("warn", "journal", f"{torn:,} gaps where frames were torn (a power cut): they are lost")


def _rejected(folder: Path) -> Finding:
    reasons = rejected(folder / "rejected")
    if not reasons:
        return Finding("ok", "rejected", "no exporter refused a record")
    reason, count = reasons.most_common(1)[0]
    return Finding(
        "warn", "rejected", f"{reasons.total():,} records refused, {count:,} for: {reason} (see {folder / 'rejected'})"
    )


def _store(source: Source) -> Iterator[Finding]:
    if source.url is None and not source.store_path.exists():
        yield Finding("ok", "store", "none yet")
        return
    try:
        store = open_store(source.store_url, read_only=True)
        try:
            problems = store.check()
        finally:
            store.close()
    except StepwellError as error:
        problems = [str(error)]
    for problem in problems:
        yield Finding(
            "fail", "store", f"{problem}: move the file away, import what `stepwell export` still reads of it"
        )
    if not problems:
        yield Finding("ok", "store", f"{source.store_url} is whole")
