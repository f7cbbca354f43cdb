"""Reading and writing what was recorded: `Client`, `AsyncClient`, and what they return."""

from stepwell.client._async import AsyncClient
from stepwell.client._filters import ScoreFilters, StepFilters, ThreadFilters
from stepwell.client._models import (
    Added,
    Attachment,
    Changes,
    Found,
    FullStep,
    Generation,
    Refused,
    Run,
    Score,
    Stats,
    Step,
    StepError,
    Thread,
    ThreadDetail,
    Usage,
    User,
)
from stepwell.client._pages import AsyncPage, AsyncPages, Page
from stepwell.client._sync import Client
from stepwell.store import ScoreFilter

__all__ = [
    "Added",
    "AsyncClient",
    "AsyncPage",
    "AsyncPages",
    "Attachment",
    "Changes",
    "Client",
    "Found",
    "FullStep",
    "Generation",
    "Page",
    "Refused",
    "Run",
    "Score",
    "ScoreFilter",
    "ScoreFilters",
    "Stats",
    "Step",
    "StepError",
    "StepFilters",
    "Thread",
    "ThreadDetail",
    "ThreadFilters",
    "Usage",
    "User",
]
