"""How a page is made: templates, the formatters they use, links, and the headers that every page has.

What must stay true: one formatter for each kind of value, one builder for every link, and no script but our own files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from threading import Lock
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from starlette.types import Scope

from stepwell._render import duration, size
from stepwell.store import Reaction

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Links", "compile_templates", "cost", "count", "moment", "page", "path_within", "render", "static_file"]

_KINDS: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NO_HEADERS: Final[Mapping[str, str]] = {}
_FIRST: Final = frozenset(("base.html", "_macros.html", "_message.html", "_panel.html", "run.html"))
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_IN_PATH: Final = "~!$&'()*+,;=:@"
_making: Final = Lock()
_REACTIONS: Final[Mapping[Reaction, str]] = {
    "same_call": "same call again",
    "other_arguments": "same tool, other arguments",
    "other_tool": "another tool",
    "answered": "answered in text",
    "none": "nothing more",
}


def path_within(scope: Scope) -> str:
    """Return a request's path without the prefix under which a proxy shows the server; some proxies take it away."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    rest = path.removeprefix(prefix)
    return rest if rest == "" or rest.startswith("/") else path


class Links:
    """Builds every link of a page, behind the prefix that the server is reached under."""

    def __init__(self, request: Request) -> None:
        self.origin = str(request.base_url).rstrip("/")
        self._prefix = str(request.scope.get("root_path", "")).rstrip("/")
        self._path = quote(path_within(request.scope), safe=f"/{_IN_PATH}")
        self._query = request.query_params.multi_items()

    def to(self, *path: str, **query: object) -> str:
        """Return the address of a page: its path's parts, quoted, and what its query says; None and "" are left out."""
        parts = "/".join(quote(part, safe=_IN_PATH) for part in path)
        return self._with(f"/{parts}", [(name, str(value)) for name, value in query.items() if value not in {None, ""}])

    def with_query(self, path: Sequence[str], query: Sequence[tuple[str, str]]) -> str:
        """Return the address of a page whose query may say one thing several times."""
        return self._with("/" + "/".join(quote(part, safe=_IN_PATH) for part in path), list(query))

    def here(self, **changes: object) -> str:
        """Return the address of this page with some parts of its query changed; None takes a part away."""
        kept = [(name, value) for name, value in self._query if name not in changes]
        return self._with(
            self._path, kept + [(name, str(value)) for name, value in changes.items() if value is not None]
        )

    def each_here(self, name: str, **changes: object) -> Callable[[str], str]:
        """Return what makes the addresses of this page with one part of its query changed, to many values."""
        lead = self.here(**changes, **{name: ""})
        return lambda value: f"{lead}{quote_plus(value)}"

    def static(self, name: str) -> str:
        """Return the address of a file of ours, which changes with what is in it."""
        return f"{self._prefix}/static/{static_file(name)[1]}/{name}"

    def _with(self, path: str, query: list[tuple[str, str]]) -> str:
        return f"{self._prefix}{path}{f'?{urlencode(query)}' if query else ''}"


@lru_cache
def static_file(name: str) -> tuple[bytes, str, str]:
    """Return one of our files, a mark of what is in it, and its type. Raises `KeyError` for no such file."""
    file = files("stepwell.server.pages").joinpath("static", name)
    kind = _KINDS[name[name.rfind(".") :]]
    if "/" in name or "\\" in name or not file.is_file():
        raise KeyError(name)
    body = file.read_bytes()
    return body, blake2b(body, digest_size=6).hexdigest(), kind


def count(number: float | None) -> str:
    """Return a number with its thousands apart: `12,345`; nothing where it is not known."""
    return "" if number is None else f"{number:,.0f}" if float(number).is_integer() else f"{number:,.4g}"


def cost(amount: float | None) -> str:
    """Return an amount of money: `$1.24`, `$0.0031`; nothing where it is not known."""
    if amount is None:
        return ""
    return (
        f"${amount:,.2f}" if amount >= 0.0995 or amount == 0 else f"${amount:.2g}" if amount >= 0.0001 else "<$0.0001"
    )


def moment(ns: int | None) -> dict[str, str] | None:
    """Return a time for `<time>`: exact, with its offset, and to read; both are UTC."""
    if ns is None or not 0 <= ns < 253_402_300_800_000_000_000:
        return None
    at = datetime.fromtimestamp(ns // 1_000_000_000, UTC)
    day, _, clock = at.isoformat()[:19].partition("T")  # which takes half of what strftime does
    return {
        "exact": f"{day}T{clock}.{ns % 1_000_000_000 // 1000:06d}+00:00",
        "read": f"{day} {clock}",
        "day": f"{_MONTHS[at.month - 1]} {at.day}, {clock[:5]}",
    }


def _environment() -> Environment:
    with _making:  # or two threads that come at once would have one each, and compile all twice
        return _made_environment()


@lru_cache
def _made_environment() -> Environment:
    from jinja2 import Environment, StrictUndefined  # no start waits for it

    from stepwell.server.pages._compiled import Filling, KeptTemplates, OneByOne, cache_folder  # which needs it too

    environment = Environment(
        loader=OneByOne("stepwell.server.pages"),
        bytecode_cache=KeptTemplates(cache_folder()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
        optimized=False,  # there is nothing in ours to work out beforehand; to look for it is a quarter of compiling
        auto_reload=False,
    )
    environment.context_class = Filling
    formatters: dict[str, Any] = {"duration": duration, "size": size, "count": count, "cost": cost, "moment": moment}
    formatters["reaction"] = _REACTIONS.__getitem__
    environment.filters.update(formatters)
    return environment


def compile_templates() -> Iterator[str]:
    """Load all templates, those of a run first; where they are compiled, half a second that visitors would wait for.

    Yields each one's name, for whoever has to stop in between.
    """
    environment = _environment()
    for name in sorted(environment.list_templates(), key=lambda name: (name not in _FIRST, name)):
        environment.get_template(name)
        yield name


def render(template: str, context: Mapping[str, Any]) -> str:
    """Return a template, filled in."""
    environment = _environment()
    from stepwell.server.pages._compiled import filled  # which needs jinja2, as it does

    return filled(environment.get_template(template), context)


def page(
    request: Request,
    template: str,
    context: Mapping[str, Any],
    status: int = 200,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Response:
    """Render a template; it also has `links` and `request`'s path."""
    signed_in = getattr(request.scope.get("state", {}).get("access"), "browser", False)
    text = render(template, {"links": Links(request), "here": request.url.path, "signed_in": signed_in, **context})
    return HTMLResponse(text, status, headers={**headers, **_HEADERS})
