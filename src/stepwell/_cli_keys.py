"""`stepwell keys`: make, list and revoke the keys of a home's server.

What must stay true: a key is printed once, when it is made, alone on stdout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepwell._cli_output import Output, moment
from stepwell._cli_serve import find_home
from stepwell.server._keys import KeyRing

__all__ = ["add_key", "list_keys", "revoke_key"]


def add_key(
    home: Path | None, store: str | None, name: str, *, scopes: Sequence[str], project: str | None, out: Output
) -> None:
    """Make a key and print it. Raises `UsageError`, `StoreError`."""
    secret = _ring(home, store).add(name, scopes, project)
    if out.as_json:
        out.json({"name": name, "key": secret})
        return
    out.text(secret)
    out.note("It is not shown again. Recorders take it as STEPWELL_API_KEY.")


def list_keys(home: Path | None, store: str | None, out: Output) -> None:
    """Print the keys' names and what they are for. Raises `UsageError`, `StoreError`."""
    for key in _ring(home, store).keys():  # noqa: SIM118 (no mapping)
        if out.as_json:
            told = {"name": key.name, "scopes": key.scopes, "project": key.project, "created_ns": key.created_ns}
            out.json(told)
        else:
            project = f"  project {key.project}" if key.project else ""
            out.text(f"{key.name}  {','.join(key.scopes)}{project}  {moment(key.created_ns)}")


def revoke_key(home: Path | None, store: str | None, name: str, out: Output) -> None:
    """Take a key away; a running server refuses it from now on. Raises `UsageError`, `StoreError`."""
    ring = _ring(home, store)
    ring.revoke(name)
    out.note(f"The key {name} is revoked.")
    if not ring.keys():
        out.note("No key is left: the server now answers this machine alone, without one.")


def _ring(home: Path | None, store: str | None) -> KeyRing:
    return KeyRing(find_home(home, store)[0])
