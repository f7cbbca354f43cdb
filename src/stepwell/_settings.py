"""The settings: what they are, where they come from, and which values they take.

What must stay true: an argument wins over its environment variable, that over the default; every wrong value is named,
with the setting and where it came from.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from stepwell._capture import DEFAULT_MAX_FIELD_BYTES, Redactor
from stepwell._checks import shown
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell.exporters import Exporter

__all__ = ["DEFAULT_HOME", "UNSET", "Settings", "packed", "resolve", "unpacked"]

DEFAULT_EXPORT: Final = "sqlite:"
DEFAULT_HOME: Final = ".stepwell"
DEFAULT_MAX_JOURNAL_BYTES: Final = 1024 * 1024 * 1024
UNSET: Final[Any] = object()


@dataclass(frozen=True, slots=True)
class Settings:
    """What `configure` was given, complete and checked."""

    export: tuple[str | Exporter, ...] = (DEFAULT_EXPORT,)
    home: Path | None = Path(DEFAULT_HOME)
    service: str | None = None
    environment: str | None = None
    release: str | None = None
    sample: float = 1.0
    strict: bool = False
    capture_input: bool = True
    capture_output: bool = True
    redact: tuple[Redactor, ...] = ()
    max_field_bytes: int = DEFAULT_MAX_FIELD_BYTES
    max_journal_bytes: int = DEFAULT_MAX_JOURNAL_BYTES
    exit_timeout: float = 5.0
    flush_on_root_end: bool = False
    enabled: bool = True


def resolve(
    arguments: Mapping[str, Any], environ: Mapping[str, str], *, forgive: Callable[[UsageError], None] | None = None
) -> Settings:
    """Make settings of arguments (`UNSET` for absent ones) and `STEPWELL_*` variables.

    Raises `UsageError` for a wrong value; one from the environment goes to `forgive` instead, where given.
    """
    found: dict[str, Any] = {}
    for name, check in _CHECKS.items():
        value = arguments.get(name, UNSET)
        if value is not UNSET:
            found[name] = check(f"{name}=", value)
            continue
        variable = f"STEPWELL_{name.upper()}"
        if environ.get(variable):
            try:
                found[name] = check(f"{variable}=", _from_text(name, environ[variable]))
            except UsageError as error:
                if forgive is None:
                    raise
                forgive(error)
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        found.setdefault("enabled", False)
    if environ.get("AWS_LAMBDA_FUNCTION_NAME"):  # frozen, perhaps for good, when it has answered
        found.setdefault("flush_on_root_end", True)
    return Settings(**found)


def packed(settings: Settings) -> bytes:
    """Write what another process on this machine can use of the settings, credentials in URLs included.

    Exporters that are objects stay where they were made; without any other, the default stands. A redaction rule that
    can't go along is replaced by one that lets nothing through.
    """
    home = None if settings.home is None else settings.home.absolute()
    urls = tuple(item for item in settings.export if isinstance(item, str))
    if not urls and settings.export and home is not None:
        urls = (DEFAULT_EXPORT,)
    rules = [_rule_packed(rule) for rule in settings.redact]
    return pickle.dumps((replace(settings, export=urls, home=home, redact=()), rules))


def unpacked(data: bytes) -> Settings:
    """Read what `packed` wrote. Raises what unpickling raises for what is something else."""
    loaded = pickle.loads(data)  # noqa: S301 - from the parent process, with the function to be called
    settings, rules = cast("tuple[Settings, list[bytes]]", loaded)
    return replace(settings, redact=tuple(_rule_unpacked(rule) for rule in rules))


def _rule_packed(rule: Redactor) -> bytes:
    try:
        return pickle.dumps(rule)
    except Exception:  # noqa: BLE001 - whatever pickling raises
        return b""


def _rule_unpacked(data: bytes) -> Redactor:
    try:
        return cast("Redactor", pickle.loads(data))  # noqa: S301 - as above
    except Exception:  # noqa: BLE001 - nothing was packed, or this process has no function of that name
        return _withhold


def _withhold(_: bytes) -> bytes:
    """Stand for a rule of the parent's that is not here: what raises costs the payload."""
    raise UsageError("a redaction function of the parent process can't be pickled, so nothing is let through")


def _from_text(name: str, text: str) -> Any:
    if name in {"strict", "capture_input", "capture_output", "flush_on_root_end", "enabled"}:
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower(), text)
    if name in {"sample", "exit_timeout"}:
        return _number(text, float)
    if name in {"max_field_bytes", "max_journal_bytes"}:
        return _number(text, int)
    if name in {"export", "redact"}:
        return [part.strip() for part in text.split(",") if part.strip()]
    return None if name == "home" and text.lower() == "none" else text


def _number(text: str, kind: Callable[[str], float]) -> float | str:
    try:
        return kind(text)
    except ValueError:
        return text


def _export(where: str, value: object) -> tuple[str | Exporter, ...]:
    many = isinstance(value, Sequence) and not isinstance(value, str)
    items: list[object] = list(cast("Sequence[object]", value)) if many else [value]
    for item in items:
        if not isinstance(item, str) and (isinstance(item, type) or not callable(getattr(item, "export", None))):
            raise UsageError(f"{where}{shown(items)}: {shown(item)} is neither a URL nor an exporter")
        if isinstance(item, str) and not re.match(r"[a-z][a-z0-9+.-]*:", item):
            raise UsageError(f"{where}{shown(items)}: {shown(item)} is not a URL, as sqlite: or jsonl:PATH are")
    return cast("tuple[str | Exporter, ...]", tuple(items))


def _home(where: str, value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value):
        raise UsageError(f"{where}{shown(value)}: must be a folder, or None to keep nothing on disk")
    return Path(value)


def _text(where: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{where}{shown(value)}: must be a string")
    return value or None


def _flag(where: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{where}{shown(value)}: must be true or false")
    return value


def _fraction(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(f"{where}{shown(value)}: must be a number from 0 to 1")
    return float(value)


def _seconds(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600:
        raise UsageError(f"{where}{shown(value)}: must be a number of seconds from 0 to 3600")
    return float(value)


def _bytes(least: int) -> Callable[[str, object], int]:
    def check(where: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{where}{shown(value)}: must be a whole number of bytes, at least {least}")
        return value

    return check


def _redact(where: str, value: object) -> tuple[Redactor, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UsageError(f"{where}{shown(value)}: must be a list of key names, compiled patterns and functions")
    rules = list(cast("Sequence[object]", value))
    for rule in rules:
        if not isinstance(rule, str | re.Pattern) and not callable(rule):
            raise UsageError(f"{where}{shown(rules)}: {shown(rule)} is neither a key name, a pattern nor a function")
    return tuple(cast("list[Redactor]", rules))


_CHECKS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "export": _export,
    "home": _home,
    "service": _text,
    "environment": _text,
    "release": _text,
    "sample": _fraction,
    "strict": _flag,
    "capture_input": _flag,
    "capture_output": _flag,
    "redact": _redact,
    "max_field_bytes": _bytes(1024),
    "max_journal_bytes": _bytes(64 * 1024),
    "exit_timeout": _seconds,
    "flush_on_root_end": _flag,
    "enabled": _flag,
}
