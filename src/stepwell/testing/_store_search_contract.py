"""How every store finds steps by their words, one sentence a test; a part of `StoreContract`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from msgspec import json

from stepwell.errors import UsageError
from stepwell.store import StepFilter, Store
from stepwell.testing._store_reading_contract import CHILD, GRANDCHILD, ROOT, family, finished, line, step
from stepwell.testing._store_rollup_contract import StoreRollupContract

__all__ = ["StoreSearchContract"]


def found(store: Store, text: str, **conditions: Any) -> list[str]:
    """Return the ids of the steps that a text finds, oldest first."""
    return [row.id for row in store.steps(StepFilter(text=text, **conditions), order="asc").items]


def plants() -> list[bytes]:
    """Encode steps that have one word each, in every place that is searched, and `shared` in all."""
    long_message = {"role": "user", "content": "water the fern " + "and the moss " * 30}
    return [
        finished("name", 1, name="oak shared"),
        finished("input", 2, input={"question": ["Is it an elm?", "shared"]}),
        finished("output", 3, output="a birch, shared"),
        finished("metadata", 4, metadata={"rose": {"colour": "shared", "thorns": 77}}),
        step("error", start_ns=5, status="failed", error={"type": "E", "message": "no willow", "traceback": "shared"}),
        finished("prompt", 6, type="llm", generation={"prompt": "a maple", "completion": "shared"}),
        finished(
            "message",
            7,
            type="llm",
            generation={"messages": [long_message], "message_completion": {"role": "assistant", "content": "shared"}},
        ),
    ]


class StoreSearchContract(StoreRollupContract):
    """The part of the conformance suite that is about `StepFilter.text`."""

    @pytest.mark.parametrize("caught_up", [False, True])
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("oak", ["name"]),
            ("ELM", ["input"]),
            ("birch", ["output"]),
            ("rose", ["metadata"]),
            ("77", ["metadata"]),
            ("willow", ["error"]),
            ("maple", ["prompt"]),
            ("fern", ["message"]),
            ("shared", ["name", "input", "output", "metadata", "error", "prompt", "message"]),
            ("shared -oak -elm", ["output", "metadata", "error", "prompt", "message"]),
            ("birch shared", ["output"]),
            ("birch oak", []),
            ('"is it an elm"', ["input"]),
            ('"is an elm"', []),
            ('-"an elm" shared "is it"', []),
            ("wil*", ["error"]),
            ("wil", []),
            ("question", []),
        ],
    )
    def test_words_are_found_where_they_are_written(
        self, store: Store, caught_up: bool, text: str, expected: list[str]
    ) -> None:
        store.add(plants())
        if caught_up:
            assert store.catch_up() is True
        assert found(store, text) == expected

    @pytest.mark.parametrize("caught_up", [False, True])
    def test_text_is_found_without_its_accents_and_in_scripts_without_spaces(
        self, store: Store, caught_up: bool
    ) -> None:
        store.add(
            [
                finished("fr", 1, output="Un caf\u00e9 cr\u00e8me"),
                finished("zh", 2, output="\u6211\u60f3\u53d6\u6d88\u8ba2\u5355"),
                finished("ja", 3, output="\u6ce8\u6587\u3092\u30ad\u30e3\u30f3\u30bb\u30eb"),
                finished("ru", 4, output="\u043e\u0442\u043c\u0435\u043d\u0430 \u0437\u0430\u043a\u0430\u0437\u0430"),
            ]
        )
        if caught_up:
            store.catch_up()
        assert found(store, "cafe CREME") == ["fr"]
        assert found(store, "\u53d6\u6d88") == ["zh"]
        assert found(store, "\u6d88\u53d6") == []
        assert found(store, "\u30ad\u30e3\u30f3\u30bb\u30eb") == ["ja"]
        assert found(store, "\u0417\u0410\u041a\u0410\u0417\u0410") == ["ru"]

    @pytest.mark.parametrize("caught_up", [False, True])
    def test_text_joins_the_other_conditions_and_pages(self, store: Store, caught_up: bool) -> None:
        store.add([finished(f"s-{n}", n, output="same", name=f"n-{n % 2}", tags=["x"] * (n % 3)) for n in range(20)])
        if caught_up:
            store.catch_up()
        kept = StepFilter(text="same", name="n-1", tag="x")
        assert found(store, "same", name="n-1", tag="x") == ["s-1", "s-5", "s-7", "s-11", "s-13", "s-17", "s-19"]
        seen: list[str] = []
        cursor = None
        while True:
            page = store.steps(kept, limit=2, cursor=cursor)
            seen += [row.id for row in page.items]
            if (cursor := page.next_cursor) is None:
                break
        assert seen == ["s-19", "s-17", "s-13", "s-11", "s-7", "s-5", "s-1"]
        assert [json.decode(record)["id"] for record in store.records(StepFilter(text="same", until_ns=2))] == [
            "s-0",
            "s-1",
        ]

    def test_a_run_is_found_by_the_words_of_its_steps(self, store: Store) -> None:
        store.add([*family(), step(GRANDCHILD, output="needle"), step(CHILD, output="other")])
        for _ in range(2):
            assert [row.id for row in store.runs(StepFilter(text="needle")).items] == [ROOT]
            assert [row.id for row in store.steps(StepFilter(text="needle", root_only=True)).items] == [ROOT]
            assert found(store, "needle") == [GRANDCHILD]
            assert store.runs(StepFilter(text="haystack")).items == []
            assert [json.decode(record)["id"] for record in store.records(StepFilter(text="needle"))] == [
                "t-1",
                GRANDCHILD,
            ]
            store.catch_up()

    def test_a_step_is_found_by_what_it_says_now(self, store: Store) -> None:
        store.add([step("a", start_ns=1, output="before"), step("b", start_ns=2, output="before")])
        store.catch_up()
        store.add([step("a", output="after")])
        for _ in range(2):
            assert (found(store, "before"), found(store, "after")) == (["b"], ["a"])
            store.add([line("score", "s", step_id="b", value=1)])
            store.catch_up()
        assert found(store, "before") == ["b"]

    @pytest.mark.parametrize("caught_up", [False, True])
    def test_a_message_is_found_at_one_step_of_those_that_have_it(self, store: Store, caught_up: bool) -> None:
        messages = [{"role": "user", "content": f"message number{n} " + "and so on " * 40} for n in range(4)]
        for n in range(1, 4):
            generation = {"messages": messages[: n + 1]}
            store.add([step(f"s-{n}", type="llm", start_ns=n, thread_id="t", generation=generation)])
            if caught_up:
                store.catch_up()
        assert found(store, "number0") == ["s-1"]
        assert found(store, "number3") == ["s-3"]
        store.add([step("s-1", end_ns=9, status="success")])
        for _ in range(2):
            assert found(store, "number0") == ["s-1"] or (len(found(store, "number0")) == 1 and not caught_up)
            store.catch_up()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "-",
            "*",
            '"',
            '""',
            "-oak",
            "!!! ???",
            "\u2603",
            "\x00",
            "- - -",
            '-"oak',
            "a" * 1001,
            "a " * 33,
            "-a -b",
        ],
    )
    def test_a_text_without_a_word_or_with_too_many_is_a_usage_error(self, store: Store, text: str) -> None:
        store.add(plants())
        for _ in range(2):
            with pytest.raises(UsageError, match="text"):
                found(store, text)
            store.catch_up()

    @pytest.mark.parametrize(
        "text",
        [
            "oak AND", "NEAR(oak elm)", "name:oak", "text:oak", "^oak", "(oak", "oak)", "{oak} : elm", "oak + elm",
            'oak "unclosed', "oak\x00elm", "oak\ud800", "\U0001f600 oak", "oak' OR 1=1 --", "NOT oak", "*oak*", "o**",
            '"oak"*', '-"elm oak', "oak" * 300, "a" * 1000, "\u0e01\u0e34\u0e19", "\ufdfa oak", '"a""b"', "--oak elm",
        ],
    )  # fmt: skip
    def test_no_text_is_an_error_of_the_engine(self, store: Store, text: str) -> None:
        store.add(plants())
        for _ in range(2):
            with suppress(UsageError):  # of which nothing is left that is a word
                assert set(found(store, text)) <= {"name", "input"}
            store.catch_up()

    def test_base64_is_not_indexed_and_long_texts_are_cut(self, store: Store) -> None:
        words = " ".join(f"word{n}" for n in range(60_000))
        store.add(
            [
                finished("a", 1, output="QUJD" * 40, input="data:image/png;base64," + "QUJD" * 40),
                finished("b", 2, output=words),
            ]
        )
        for _ in range(2):
            assert found(store, "QUJD*") == []
            assert found(store, "word7") == ["b"]
            assert found(store, "word59999") == []
            store.catch_up()
