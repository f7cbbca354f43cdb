"""The command line that a list shows prints, in a real shell, the ids that the list has."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator

import pytest
import viewing
from served import AppServer

from stepwell.store._language import value_text

HOSTILE = (
    "it's",
    "'; DROP TABLE steps; --",
    '"double" `tick` $(id) ${HOME} !! \\',
    "two\nlines\ttab",
    "nul\0byte",
    "\u202eturned 漢字 🦊",
    "100%_?{}",
    ".exit",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    home = tmp_path_factory.mktemp("as sql, it's") / "home"
    with AppServer(home) as server:
        for number, name in enumerate(HOSTILE):
            inside = {"root": f"r{number}", "trace": f"t{number}", "thread_id": name, "tags": [name, "all"]}
            viewing.add(
                server.store,
                viewing.a_run(f"r{number}", 5, trace=f"t{number}", name=name, thread_id=name, input="look for moss"),
                viewing.a_step(
                    f"s{number}", "tool", number, number + 1, f"r{number}", name=name, metadata={"k": name},
                    output="Error" if number % 2 else "fine", **inside,
                ),
            )  # fmt: skip
        uuid = "01890000-0000-7000-8000-000000000001"
        viewing.add(server.store, viewing.a_run(uuid, 5, trace="0189" + "0" * 28, user="ada"))
        assert server.store.catch_up(30) is True
        yield server


def listed(page: str) -> list[str]:
    return [html.unescape(id) for id in re.findall(r'<tr data-id="([^"]+)"', page)]


def printed(line: str) -> list[str]:
    """Run a command line in a shell, or its statement where there is no shell of SQLite, and return the ids."""
    program, *options, path, statement = shlex.split(line)
    assert (program, options) == ("sqlite3", ["-readonly", "-box"])
    if shutil.which("sqlite3") is None:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        ids = [row[0] for row in db.execute(statement)]
        db.close()
        return ids
    answer = subprocess.run(
        ["/bin/sh", "-c", line.replace("-box", "-json", 1)], capture_output=True, timeout=60, check=False
    )
    assert answer.stderr == b""
    return [row["id"] for row in json.loads(answer.stdout or b"[]")]


def line_on(page: str) -> str:
    (line,) = re.findall(r"Open as SQL</summary>.*?<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    assert "\n" not in line
    return html.unescape(line)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_value_ends_what_it_stands_in(server: AppServer, name: str) -> None:
    value = value_text(name)
    quoted = value if value.startswith('"') else f'"{value}"'
    queries = [f"name:{value} type:tool", f"tag:{value} type:tool -tag:none"]
    if "\0" not in name:  # which SQLite finds in no JSON
        queries.append(f"metadata.k:{quoted}")
    for query in queries:
        page = server.client.get("/steps", params={"q": query}).text
        assert listed(page) == [f"s{HOSTILE.index(name)}"]
        assert printed(line_on(page)) == [f"s{HOSTILE.index(name)}"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/steps", ""),
        ("/runs", ""),
        ("/runs", "soft_error:true -user:nobody"),
        ("/steps", "soft_error:error reaction:none order:asc"),
        ("/steps", "tag:all duration:>=1s cost:<0.5"),
        ("/steps", "error:none since:2020-01-01 until:2100-01-01 trace:t1"),
        ("/runs", "moss"),
        ("/steps", "moss -fern id:r1,r2,s3"),
        ("/runs", "user:ada"),
    ],
)
def test_the_shell_prints_the_ids_of_the_list(server: AppServer, path: str, query: str) -> None:
    order = "asc" if query.endswith(" order:asc") else "desc"
    page = server.client.get(path, params={"q": query.removesuffix(" order:asc"), "order": order}).text
    assert printed(line_on(page)) == (listed(page) or [])
    assert "cost:" in query or listed(page) != []


def test_threads_are_printed_too_and_a_wrong_query_is_no_statement(server: AppServer) -> None:
    page = server.client.get("/threads").text
    assert sorted(printed(line_on(page))) == sorted(name.partition("\0")[0] for name in HOSTILE)
    assert printed(line_on(server.client.get("/threads", params={"q": "thread:it's"}).text)) == ["it's"]
    assert "Open as SQL" not in server.client.get("/steps", params={"q": "type:no"}).text
