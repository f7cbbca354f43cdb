"""What is left of a page when it was sent: nothing that the garbage collector would have to find."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import viewing
from served import AppServer

from stepwell.server.pages._aligning import Pair
from stepwell.server.pages._outline import Item
from stepwell.server.pages._panel import Panel
from stepwell.server.pages._thread import Said


def left_of(kind: type) -> int:
    """Return how many objects of a type there are once those of a request have had time to go."""
    deadline = time.monotonic() + 5
    while True:
        left = sum(type(each) is kind for each in gc.get_objects())
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


def test_what_a_page_showed_goes_without_the_garbage_collector(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home") as server:
        said = viewing.a_step("said", "user_message", 1, 1, output={"content": "Hi"}, thread_id="t")
        viewing.add(server.store, viewing.a_run(), viewing.a_run("other", trace="other"), said)
        pages = {"/threads/t": Said, "/runs/run": Item, "/runs/run?step=said": Panel, "/compare?a=run&b=other": Pair}
        gc.collect()
        gc.disable()
        try:
            for path, kind in pages.items():
                answer = server.client.get(path)
                assert answer.status_code == 200
                assert left_of(kind) == 0, path
        finally:
            gc.enable()
