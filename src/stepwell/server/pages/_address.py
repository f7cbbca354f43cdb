"""How a run is looked at, as the query of its address says it; and the addresses of other ways to look at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, cast

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.server.pages._find import MAX_CHARACTERS
from stepwell.server.pages._page import Links
from stepwell.server.pages._rows import Row
from stepwell.store._language import MAX_QUERY_CHARACTERS

__all__ = ["Address", "Looked", "RunLook"]

View = Literal["transcript", "tree", "timeline"]
Show = Literal["matches", "path", "all"]
Id = Annotated[str, Field(max_length=MAX_ID_CHARACTERS)]
MAX_FOLDS: Final = 200
MAX_REVIEW: Final = 400  # characters; what a queue takes is looked at there


class RunLook(BaseModel):
    """The query of a run's page. `from` and `to` are milliseconds after its start; `go` is from `step` to a match;
    `in` is the query of the list that the run was opened from; `review` is the name of the score that it is reviewed
    for in the queue that this list is, with `labels`, in its `order`, from a `cursor` on.
    """

    model_config = ConfigDict(populate_by_name=True)

    view: View = "transcript"
    step: Id | None = None
    row: int | None = Field(default=None, ge=0)
    level: int | None = Field(default=None, ge=0, le=1000)
    open: list[Id] = Field(default=[], max_length=MAX_FOLDS)
    close: list[Id] = Field(default=[], max_length=MAX_FOLDS)
    children: Id | None = None
    first: int = Field(default=0, ge=0)
    q: str = Field(default="", max_length=MAX_CHARACTERS)
    show: Show = "path"
    go: Literal["next", "previous"] | None = None
    since: float | None = Field(default=None, alias="from", ge=0, le=1e15, allow_inf_nan=False)
    until: float | None = Field(default=None, alias="to", ge=0, le=1e15, allow_inf_nan=False)
    plain: bool = False
    within: str = Field(default="", alias="in", max_length=MAX_QUERY_CHARACTERS)
    review: str = Field(default="", max_length=MAX_REVIEW)
    labels: str = Field(default="", max_length=MAX_REVIEW)
    order: Literal["desc", "asc"] = "desc"
    cursor: str | None = Field(default=None, max_length=200)


Looked = Annotated[RunLook, Query()]


def _several(value: Any) -> Sequence[Any]:
    return cast("Sequence[Any]", value) if isinstance(value, list) else [value]


class Address:
    """Builds the addresses of a run's page from the one that is looked at now."""

    def __init__(self, links: Links, run_id: str, look: RunLook) -> None:
        self._links = links
        self.run_id = run_id
        self._now: dict[str, Any] = look.model_dump(by_alias=True, exclude_defaults=True)

    def to(self, **changes: Any) -> str:
        """Return the page with some of its query changed; None takes a part away."""
        query = {**self._now, **changes}
        if "step" in changes:
            query.pop("row", None)
        pairs = [
            (
                name,
                str(each).lower()
                if isinstance(each, bool)
                else f"{each:.15g}"
                if isinstance(each, float)
                else str(each),
            )
            for name, value in query.items()
            for each in _several(value)
            if each is not None
        ]
        return self._links.with_query(("runs", self.run_id), pairs)

    def unfold(self, id: str) -> str:
        """Return the page with a step's children, or a group's members, shown."""
        return self.to(**self._moved(id, "close", "open"))

    def fold(self, row: Row, chosen: Row | None) -> str:
        """Return the page with a step's children folded; the step is chosen where one of them was."""
        id = row.step.id
        inside = chosen is not None and row in chosen.path()
        return self.to(**self._moved(id, "open", "close"), **({"step": id} if inside else {}))

    def _moved(self, id: str, away: str, into: str) -> dict[str, list[str] | None]:
        left = [each for each in self._now.get(away, []) if each != id]
        added = [*(each for each in self._now.get(into, []) if each != id), id][-MAX_FOLDS:]
        return {away: left or None, into: added}

    def hidden_fields(self, *without: str) -> list[tuple[str, str]]:
        """Return the query as a form carries it along, without what the form asks for itself."""
        return [
            (name, str(each)) for name, value in self._now.items() if name not in without for each in _several(value)
        ]
