"""The commands of the command line and their options; what they do is in the modules next to this one.

Help is plain text, without rich: it is there in half the time, and the same everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stepwell._cli_output import Output
from stepwell._cli_source import find_source
from stepwell._vocabulary import SDK
from stepwell.errors import UsageError

__all__ = ["app"]

app = typer.Typer(
    name="stepwell",
    help="Look at, move and care for what stepwell recorded.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Home = Annotated[
    Path | None, typer.Option(help="The home folder: $STEPWELL_HOME, else .stepwell here.", show_default=False)
]
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="Read this store alone, such as sqlite:PATH.", show_default=False)
]
ServedStore = Annotated[
    str | None,
    typer.Option(
        "--store", help="The store's file, such as sqlite:PATH; keys and blobs are beside it.", show_default=False
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(metavar="AGE", help="Delete runs and threads unused for longer, such as 30d.", show_default=False),
]
MaxBytes = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Delete the longest unused until the store has 2GB or so.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.", show_default=False)]
Type = Annotated[
    list[str] | None, typer.Option("--type", help="Keep steps of this type; may be repeated.", show_default=False)
]
Name = Annotated[str | None, typer.Option(help="Keep those with exactly this name.", show_default=False)]
Tag = Annotated[list[str] | None, typer.Option(help="Keep those with this tag; may be repeated.", show_default=False)]
Status = Annotated[
    str | None, typer.Option(help="Keep pending, success, failed, cancelled or interrupted steps.", show_default=False)
]
Model = Annotated[str | None, typer.Option(help="Keep steps of this model.", show_default=False)]
Thread = Annotated[str | None, typer.Option(help="Keep steps of the thread with this id.", show_default=False)]
Search = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help='Keep steps with these words, "phrases", prefix* and no -word.', show_default=False
    ),
]
Since = Annotated[
    str | None, typer.Option(help="Keep those since 30m, 2h or 7d ago, or an ISO date or time.", show_default=False)
]

Query = Annotated[
    str | None,
    typer.Option(
        metavar="QUERY", help="What also must hold, as in the viewer: 'type:llm cost:>0.1'.", show_default=False
    ),
]


@app.callback(invoke_without_command=True)
def _stepwell(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", show_default=False)] = False,
) -> None:
    if version:
        Output().text(SDK.partition("/")[2])
    elif context.invoked_subcommand is None:
        Output().text(context.get_help())


@app.command()
def demo(
    *,
    home: Home = None,
    store: Annotated[
        str | None, typer.Option(help="Record to this store, such as sqlite:PATH.", show_default=False)
    ] = None,
) -> int:
    """Record a small agent at work, without a network, and draw what it did."""
    from stepwell._cli_demo import show_demo

    return show_demo(find_source(home, store), Output())


@app.command("ls")
def list_(
    what: Annotated[str, typer.Argument(metavar="runs|steps|threads", show_default=False)] = "runs",
    query: Annotated[
        str | None,
        typer.Argument(metavar="QUERY", help="As in the viewer: 'type:llm cost:>0.1 since:2h some words'."),
    ] = None,
    *,
    type: Type = None,
    name: Name = None,
    tag: Tag = None,
    status: Status = None,
    model: Model = None,
    thread: Thread = None,
    since: Since = None,
    search: Search = None,
    limit: Annotated[str, typer.Option(metavar="N", help="How many, 1 to 1000.")] = "50",
    cursor: Annotated[
        str | None, typer.Option(help="Go on where a list ended: what it said.", show_default=False)
    ] = None,
    json: AsJson = False,
    home: Home = None,
    store: StoreUrl = None,
) -> None:
    """List runs, steps or threads, the newest first."""
    from stepwell._cli_list import LISTS, list_rows

    if what not in LISTS:
        raise UsageError(f"can't list {what!r}, only {', '.join(LISTS)}")
    filters = _given(
        type=type,
        name=name,
        tag=tag,
        status=status,
        model=model,
        thread=thread,
        since=since,
        search=search,
        query=query,
    )
    count = _count("--limit", limit)
    with find_source(home, store).reading() as opened:
        list_rows(opened, what, filters, {"limit": count, "cursor": cursor}, Output(as_json=json))


@app.command()
def show(
    id: Annotated[str, typer.Argument(help="A thread, run or step; of a step 8 or more characters are enough.")],
    *,
    full: Annotated[
        bool | None, typer.Option("--full/--tree", help="A step in full, or as a tree.", show_default=False)
    ] = None,
    limit: Annotated[str, typer.Option(metavar="N", help="How many steps of a tree to draw.")] = "1000",
    json: AsJson = False,
    home: Home = None,
    store: StoreUrl = None,
) -> None:
    """Show a thread or run as a tree, a step in full."""
    from stepwell._cli_list import show as show_

    count = _count("--limit", limit)
    with find_source(home, store).reading() as opened:
        show_(opened, id, Output(as_json=json), full=full, max_lines=count)


@app.command()
def tail(
    *,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="SECONDS", help="End after this many seconds.", show_default=False),
    ] = None,
    until_idle: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="End when nothing came for this many seconds.", show_default=False),
    ] = None,
    json: AsJson = False,
    home: Home = None,
    store: StoreUrl = None,
) -> None:
    """Follow what is being recorded, until Ctrl-C."""
    from stepwell._cli_tail import tail as tail_

    for_s = None if for_ is None else _seconds("--for", for_)
    until_idle_s = None if until_idle is None else _seconds("--until-idle", until_idle)
    tail_(find_source(home, store), Output(as_json=json), for_s=for_s, until_idle_s=until_idle_s)


@app.command("export")
def export_(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Only this run, by its id.")] = None,
    *,
    html: Annotated[bool, typer.Option("--html", help="The run as one HTML page.", show_default=False)] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The run as Markdown.", show_default=False)] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write this file, not stdout.", show_default=False)
    ] = None,
    type: Type = None,
    name: Name = None,
    tag: Tag = None,
    status: Status = None,
    model: Model = None,
    thread: Thread = None,
    since: Since = None,
    search: Search = None,
    query: Query = None,
    home: Home = None,
    store: StoreUrl = None,
) -> None:
    """Write records as JSON lines: all, or the steps that the filters keep and their threads, or one run."""
    from stepwell._answers import caught_up_for
    from stepwell._cli_list import filter_of
    from stepwell._cli_move import export_records

    filters = _given(
        type=type,
        name=name,
        tag=tag,
        status=status,
        model=model,
        thread=thread,
        since=since,
        search=search,
        query=query,
    )
    if run is not None:
        from stepwell._cli_save import save_run

        if filters or (html and markdown):
            raise UsageError("a run is exported whole, as one of --html and --markdown, without filters")
        save_run(
            find_source(home, store),
            run,
            "html" if html else "markdown" if markdown else "jsonl",
            output,
            Output(as_json=True),
        )
        return
    if html or markdown:
        raise UsageError(f"--{'html' if html else 'markdown'} is of one run: stepwell export RUN")
    kept = filter_of(filters) if filters else None
    with find_source(home, store).reading() as opened:
        caught_up_for(opened, kept)
        export_records(opened, kept, output, Output(as_json=True))


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="JSON lines, as export writes them.")],
    *,
    json: AsJson = False,
    home: Home = None,
    store: StoreUrl = None,
) -> int:
    """Add records to a store; every line that is none is named, and its neighbours are taken."""
    from stepwell._cli_move import import_records

    return import_records(find_source(home, store), file, Output(as_json=json))


@app.command()
def ship(
    *,
    export: Annotated[
        list[str] | None,
        typer.Option(help="Deliver to this exporter too, where its journal key is no URL.", show_default=False),
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="SECONDS", help="Give up after this many seconds.")] = "30",
    json: AsJson = False,
    home: Home = None,
    store: Annotated[
        str | None, typer.Option(help="Deliver to this store too, such as sqlite:PATH.", show_default=False)
    ] = None,
) -> int:
    """Deliver what processes that died left in the journal."""
    from stepwell._cli_move import ship as ship_

    urls = [*(export or ()), *([store] if store is not None else ())]
    return ship_(find_source(home, None), urls, _seconds("--timeout", timeout), Output(as_json=json))


@app.command()
def stats(*, json: AsJson = False, home: Home = None, store: StoreUrl = None) -> None:
    """Count what is in the store, in the journal, and what was rejected."""
    from stepwell._cli_health import stats as stats_

    stats_(find_source(home, store), Output(as_json=json))


@app.command()
def doctor(*, json: AsJson = False, home: Home = None, store: StoreUrl = None) -> int:
    """Check home folder, store and journal; status 1 when something fails."""
    from stepwell._cli_health import doctor as doctor_

    return doctor_(find_source(home, store), Output(as_json=json))


@app.command()
def vacuum(
    *,
    keep: Keep = None,
    max_bytes: MaxBytes = None,
    json: AsJson = False,
    home: Home = None,
    store: StoreUrl = None,
) -> None:
    """Give back space that the store does not need; with --keep or --max-bytes, delete what is old first."""
    from stepwell._cli_care import age_ns, size_bytes
    from stepwell._cli_care import vacuum as vacuum_

    bounds = age_ns("--keep", keep), size_bytes("--max-bytes", max_bytes)
    vacuum_(find_source(home, store), *bounds, Output(as_json=json))


@app.command()
def backup(
    target: Annotated[
        Path,
        typer.Argument(metavar="DEST", help="A new folder for store and blobs, or a new *.db for the store alone."),
    ],
    *,
    home: Home = None,
    store: StoreUrl = None,
) -> None:
    """Copy the store while it is in use."""
    from stepwell._cli_care import backup as backup_

    backup_(find_source(home, store), target, Output())


@app.command("rm")
def remove(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Threads, or steps whose whole run goes.")
    ] = None,
    *,
    user: Annotated[str | None, typer.Option(help="Delete this user's threads and runs.", show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)] = False,
    json: AsJson = False,
    home: Home = None,
    store: StoreUrl = None,
) -> int:
    """Delete threads and runs, with their scores, messages and blobs."""
    from stepwell._cli_care import remove as remove_

    return remove_(find_source(home, store), ids or (), user, Output(as_json=json), yes=yes)


@app.command()
def serve(
    *,
    host: Annotated[str, typer.Option(help="The address to listen on; any but this machine's own needs keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[str, typer.Option(metavar="N", help="The port; 0 for any that is free.")] = "4777",
    keep: Keep = None,
    max_bytes: MaxBytes = None,
    home: Home = None,
    store: ServedStore = None,
    prefix: Annotated[
        str, typer.Option(metavar="PATH", help="The path under which a proxy shows it, as /traces.")
    ] = "",
    writers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="How many processes share the writing where thousands of records a second come; 0 for none but this. "
            "By default 2 where there are several cores.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Take records over HTTP and answer queries, until Ctrl-C."""
    from stepwell._cli_care import age_ns, size_bytes
    from stepwell._cli_serve import MAX_PORT, MAX_WRITERS
    from stepwell._cli_serve import serve as serve_

    address = host, _up_to("--port", port, MAX_PORT), prefix
    many = None if writers is None else _up_to("--writers", writers, MAX_WRITERS)
    bounds = age_ns("--keep", keep), size_bytes("--max-bytes", max_bytes)
    return serve_(home, store, address, bounds, Output(), writers=many)


keys = typer.Typer(name="keys", help="Make, list and revoke the keys of a server.", rich_markup_mode=None)
app.add_typer(keys)


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="What to call it: a-z, 0-9, - and _.")],
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="ingest, read or admin; may be repeated. Without it: ingest and read.", show_default=False),
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="Give it data of its own, apart from all others.", show_default=False)
    ] = None,
    json: AsJson = False,
    home: Home = None,
    store: ServedStore = None,
) -> None:
    """Make a key and print it, this once."""
    from stepwell._cli_keys import add_key as add

    add(home, store, name, scopes=scope or (), project=project, out=Output(as_json=json))


@keys.command("ls")
def list_keys(*, json: AsJson = False, home: Home = None, store: ServedStore = None) -> None:
    """List the keys: name, scopes, project, and when they were made."""
    from stepwell._cli_keys import list_keys as list_keys_

    list_keys_(home, store, Output(as_json=json))


@keys.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="The key's name.")],
    *,
    home: Home = None,
    store: ServedStore = None,
) -> None:
    """Take a key away, from a running server too."""
    from stepwell._cli_keys import revoke_key as revoke

    revoke(home, store, name, Output())


def _count(option: str, text: str) -> int:
    """Read a whole number; typer's own message would not name the value."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise UsageError(f"{option} {text!r} is not a whole number of 1 or more")
    return int(text)


def _up_to(option: str, text: str, most: int) -> int:
    """Read a whole number that may be 0."""
    if not text.isdecimal() or int(text) > most:
        raise UsageError(f"{option} {text!r} is not a whole number of 0 to {most}")
    return int(text)


def _seconds(option: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{option} {text!r} is not a number of seconds, 0 or more")
    return seconds


def _given(**options: Any) -> dict[str, Any]:
    """Keep the options that were given."""
    return {name: value for name, value in options.items() if value not in (None, [])}
