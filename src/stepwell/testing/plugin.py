"""The pytest plug-in: the fixture `stepwell_capture`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stepwell.testing import Captured, capture

__all__ = ["stepwell_capture"]


@pytest.fixture
def stepwell_capture() -> Iterator[Captured]:
    """Record into memory for the test, and say what was recorded; see `stepwell.testing.capture`.

    def test_agent_searches_once(stepwell_capture):
        agent("tea?")
        assert [step.name for step in stepwell_capture.steps] == ["agent", "search"]
    """
    with capture() as captured:
        yield captured
