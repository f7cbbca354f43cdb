"""Two sequences side by side: what meets, what is left over, which words differ, and what it costs."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as some

from stepwell.server.pages._aligning import Action, Pair, align, diff_words


def actions(text: str) -> list[Action]:
    """Return an action for each letter; a capital has the same name and other content."""
    return [Action(("tool", letter.lower()), letter.encode()) for letter in text]


def written(left: str, right: str) -> str:
    signs = {"same": "=", "changed": "~", "left": "-", "right": "+"}
    return "".join(signs[pair.kind] for pair in align(actions(left), actions(right)))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("", "", ""),
        ("abc", "abc", "==="),
        ("abc", "aBc", "=~="),
        ("abc", "ac", "=-="),
        ("ac", "abc", "=+="),
        ("ab", "ba", "-=+"),
        ("aAa", "aaa", "=~="),
        ("abcd", "xbyd", "-+=-+="),
    ],
)
def test_equal_actions_meet_and_others_stand_alone(left: str, right: str, expected: str) -> None:
    assert written(left, right) == expected


@given(some.text("abAB", max_size=12), some.text("abAB", max_size=12))
def test_every_action_stands_once_and_in_order(left: str, right: str) -> None:
    pairs = align(actions(left), actions(right))
    assert [pair.left for pair in pairs if pair.left is not None] == list(range(len(left)))
    assert [pair.right for pair in pairs if pair.right is not None] == list(range(len(right)))
    assert all(left[pair.left] == right[pair.right] for pair in pairs if pair.kind == "same")  # type: ignore[index]


def test_a_sequence_is_the_same_as_itself() -> None:
    same = actions("abcabc")
    assert align(same, same) == [Pair("same", at, at) for at in range(6)]


def test_five_hundred_by_five_hundred_steps_take_less_than_a_second() -> None:
    rng = random.Random(1)
    left, right = (actions("".join(rng.choices("abcdefABCDEF", k=500))) for _ in range(2))
    began = time.process_time()
    assert len(align(left, right)) >= 500
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("left", "right", "pieces"),
    [
        ("a b c", "a b c", [("same", "a b c")]),
        ("a b c", "a x c", [("same", "a "), ("gone", "b"), ("come", "x"), ("same", " c")]),
        ("one two", "three four", [("gone", "one two"), ("come", "three four")]),
        ("", "new", [("come", "new")]),
        ("", "", []),
    ],
)
def test_words_that_differ_are_told(left: str, right: str, pieces: list[tuple[str, str]]) -> None:
    assert diff_words(left, right).pieces == pieces


@pytest.mark.usefixtures("untraced")
@given(some.text(max_size=40), some.text(max_size=40))
def test_the_pieces_spell_both_texts(left: str, right: str) -> None:
    words = diff_words(left, right)
    assert "".join(text for kind, text in words.pieces if kind != "come") == left
    assert "".join(text for kind, text in words.pieces if kind != "gone") == right


def test_long_texts_are_cut_and_what_is_left_out_is_counted() -> None:
    words = diff_words("a " * 10_000, "b " * 10_000)
    assert words.left_out == 2 * (20_000 - 1_500)
    assert not words.equal
