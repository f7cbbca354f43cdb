"""A run saved as one HTML file: opened from the disk, without a server, in a browser that may run scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import viewing
from browsing import needs_chromium
from playwright.sync_api import Browser
from served import AppServer

from stepwell import cli
from stepwell._answers import Place
from stepwell.blobs import BlobStore
from stepwell.server.pages._rows import family_of
from stepwell.server.pages._saving import saved_page


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("saving") / "home") as server:
        blobs = BlobStore(server.home / "blobs")
        kept, large = blobs.put(viewing.png()), blobs.put(viewing.png(2000, 1000))
        files = [
            {"id": "kept", "name": "kept.png", "mime": "image/png", "sha256": kept},
            {"id": "large", "name": "large.png", "mime": "image/png", "sha256": large},
            {"id": "gone", "name": "gone.png", "mime": "image/png", "sha256": "0" * 64},
        ]
        viewing.add(server.store, *viewing.text_set(), *viewing.images(), *viewing.talk(), *viewing.deep(40))
        viewing.add(server.store, viewing.a_run("files", trace="files", attachments=files))
        yield server


def saved(server: AppServer, id: str, folder: Path) -> Path:
    answer = server.client.get(f"/save/{id}")
    assert answer.headers["content-disposition"] == 'attachment; filename="run.html"'
    path = folder / "run.html"
    path.write_bytes(answer.content)
    return path


class Opened:
    """A file in a fresh profile, and what it asked for or was refused."""

    def __init__(self, browser: Browser, path: Path, *, scripts: bool = True) -> None:
        self.context = browser.new_context(java_script_enabled=scripts)
        self.page = self.context.new_page()
        self.seen: list[str] = []
        self.page.on("console", lambda message: self.seen.append(message.text))
        self.page.on("request", lambda request: self.seen.append(request.url[:30]))
        self.page.goto(path.as_uri())
        self.text = self.page.locator("body").evaluate("body => body.textContent") if scripts else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@needs_chromium
def test_hostile_text_is_text_in_a_saved_page(server: AppServer, browser: Browser, tmp_path: Path) -> None:
    path = saved(server, "text", tmp_path)
    with Opened(browser, path) as opened:
        assert opened.page.title().startswith("run <rules>keep</rules> 你好")
        assert "<rules>keep</rules> 你好 \U0001f6eb مرحبا <script>document.title = 'ran'</script>" in opened.text
        assert "<b>kind</b>" in opened.text
        assert "<think>hidden?</think>" in opened.text
        assert "one\ntwo 机票" in opened.text
        assert opened.page.locator("script, form, link, iframe, rules, think").count() == 0
        assert opened.seen == [path.as_uri()[:30]]
        refused = (
            "document.head.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
        )
        assert opened.page.evaluate(f"{refused}, window.ran") is None


@needs_chromium
def test_a_saved_page_is_the_same_without_scripts(server: AppServer, browser: Browser, tmp_path: Path) -> None:
    path = saved(server, "talk", tmp_path)
    with Opened(browser, path) as with_scripts, Opened(browser, path, scripts=False) as without:
        assert without.page.locator("body").text_content() == with_scripts.page.locator("body").text_content()
        without.page.locator("#s-1 > summary").click()
        assert without.page.locator("#s-1 .messages .message").first.is_visible()
        assert without.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_saved_page_has_all_steps_in_the_order_of_the_run(server: AppServer, tmp_path: Path) -> None:
    for id in ("talk", "deep"):
        text = saved(server, id, tmp_path).read_text()
        ids = re.findall(r"<dt>id</dt><dd>([^<]+)</dd>", text)
        assert ids == [row.step.id for row in family_of(id, server.store.tree(id)).rows]
        assert [int(place) for place in re.findall(r'id="s-(\d+)"', text)] == list(range(len(ids)))
        assert "0 ms" not in re.findall(r'<span class="note">([^<]*)</span>', text)
        assert not re.search(r'(?:href|src|action)="(?!#|data:image/)', text)


@needs_chromium
def test_images_are_in_the_page_up_to_a_bound(server: AppServer, browser: Browser, tmp_path: Path) -> None:
    with Opened(browser, saved(server, "images", tmp_path)) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        widths: Any = opened.page.evaluate(
            "Promise.all([...document.images].map(each => each.decode().then(() => each.naturalWidth)))"
        )
        assert widths == [64, 64, 64, 64]
        assert "1 image or file is not in this file" in opened.text
    text = saved(server, "files", tmp_path).read_text()
    assert text.count("data:image/png;base64,") == 1
    assert text.count("(not in this file)") == 2
    assert "2 images and files are not in this file" in text


def test_what_is_not_in_full_is_counted(server: AppServer) -> None:
    family = family_of("talk", server.store.tree("talk"))
    page = saved_page(Place(server.store, BlobStore(server.home / "blobs")), family, max_steps=5).decode()
    steps = len(family.rows)
    assert f"5 of {steps} steps are here in full, of the other {steps - 5} one line" in page
    assert page.count("not here in full") == steps - 5
    assert page.count("<dt>id</dt>") == 5


def test_the_page_of_a_run_links_to_its_file(server: AppServer) -> None:
    assert 'href="/save/talk" download="run.html"' in server.client.get("/runs/talk").text
    assert server.client.get("/save/none").status_code == 404


def test_the_command_line_writes_a_run(
    server: AppServer, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.run(["export", *arguments, "--home", str(server.home)])
        out, err = capsysbinary.readouterr()
        return status, out.decode(), err.decode()

    status, page, told = run("text", "--html")
    assert (status, page[:15]) == (0, "<!doctype html>")
    assert told == f"a page of {len(page.encode()) / 1000:.1f} kB, 3 steps\n"
    status, out, told = run("files", "--html", "-o", str(tmp_path / "f.html"))
    assert (status, out) == (0, "")
    assert told.endswith(f" 1 step\nwritten to {tmp_path / 'f.html'}\n")
    assert (tmp_path / "f.html").read_text().count("data:image/png;base64,") == 1
    assert run("text", "--markdown")[1].startswith("# run \\<rules\\>keep")
    assert [line[:14] for line in run("text")[1].splitlines()] == ['{"kind":"step"'] * 3
    assert run("--html")[::2] == (2, "stepwell: --html is of one run: stepwell export RUN\n")
    whole = "stepwell: a run is exported whole, as one of --html and --markdown, without filters\n"
    assert run("text", "--type", "llm")[::2] == run("text", "--html", "--markdown")[::2] == (2, whole)
    assert run("none-such", "--html")[0] == 2
