"""Pages of a list, which go on to the next ones when they are iterated over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from stepwell.client._requests import Listing

__all__ = ["AsyncPage", "AsyncPages", "Page"]

T = TypeVar("T")


class Page(Generic[T]):
    """One page of a list: `items`, and where the next begins. Iterating goes through this page and all after it."""

    def __init__(self, listing: Listing[T], load: Callable[[str], Page[T]]) -> None:
        self.items: tuple[T, ...] = listing.items
        self.next_cursor: str | None = listing.next_cursor
        self._load = load

    def __repr__(self) -> str:
        return f"<Page of {len(self.items)}{'' if self.next_cursor is None else ', and more'}>"

    def next_page(self) -> Page[T] | None:
        """Ask for the page after this one; None where this is the last."""
        return None if self.next_cursor is None else self._load(self.next_cursor)

    def __iter__(self) -> Iterator[T]:
        page: Page[T] | None = self
        while page is not None:
            yield from page.items
            page = page.next_page()


class AsyncPage(Generic[T]):
    """One page of a list: `items`, and where the next begins. `async for` goes through this page and all after it."""

    def __init__(self, listing: Listing[T], load: Callable[[str], Awaitable[AsyncPage[T]]]) -> None:
        self.items: tuple[T, ...] = listing.items
        self.next_cursor: str | None = listing.next_cursor
        self._load = load

    def __repr__(self) -> str:
        return f"<AsyncPage of {len(self.items)}{'' if self.next_cursor is None else ', and more'}>"

    async def next_page(self) -> AsyncPage[T] | None:
        """Ask for the page after this one; None where this is the last."""
        return None if self.next_cursor is None else await self._load(self.next_cursor)

    async def __aiter__(self) -> AsyncIterator[T]:
        page: AsyncPage[T] | None = self
        while page is not None:
            for item in page.items:
                yield item
            page = await page.next_page()


class AsyncPages(Generic[T]):
    """A list to come: `await` gives its first page, `async for` goes through all of them."""

    def __init__(self, first: Callable[[], Awaitable[AsyncPage[T]]]) -> None:
        self._first = first

    def __await__(self) -> Generator[Any, Any, AsyncPage[T]]:
        return self._first().__await__()

    async def __aiter__(self) -> AsyncIterator[T]:
        async for item in await self._first():
            yield item
