"""Routes and models that FastAPI and pydantic look into when they are first needed, and not at the start.

What must stay true: a request, and the OpenAPI description, find a route and a model as if both had been built at once.

To find out what the signature of a route asks for takes FastAPI a millisecond or more, and a server has eighty routes
of which most processes answer ten. `include_router` does the same work again, for all of them, at the first request:
so the application is given the routes themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import RLock
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from starlette.routing import compile_path

__all__ = ["Application", "Model", "Route", "Router"]

# One thread at a time: FastAPI hides warnings by what all threads share. Re-entrant: a description builds routes.
_building: Final = RLock()


class Model(BaseModel):
    """The base of what answers hold, which are encoded without it.

    What is asked for derives from pydantic's own: FastAPI builds an adapter with an alias for it, and hides the warning
    that it has no effect, which a model that is built later would make later.
    """

    model_config = ConfigDict(defer_build=True)


class Route(APIRoute):
    """A route that is built when something is asked of it besides what it is told apart from other routes by.

    Another thread sees it as it was or as a whole, and where it can't be built, the next one tries again.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self._options: dict[str, Any] | None = options
        self.path, self.endpoint = path, endpoint
        self.methods = {method.upper() for method in options.get("methods") or ("GET",)}
        self.path_regex, self.path_format, self.param_convertors = compile_path(path)

    def build(self) -> None:
        """Let FastAPI look into it, unless that has been done."""
        with _building:
            options = self.__dict__.get("_options")
            if options is not None:
                whole = object.__new__(type(self))
                APIRoute.__init__(whole, self.path, self.endpoint, **options)
                self.__dict__.update(whole.__dict__, _options=None)

    def __getattr__(self, name: str) -> Any:  # called for what is not there yet
        self.build()
        return self.__getattribute__(name)


Router: Final = partial(APIRouter, route_class=Route)


class Application(FastAPI):
    """An application of such routes, which describes itself while no other thread builds any."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI description."""
        with _building:
            return super().openapi()
