"""Reading and writing what was recorded: `Client`, `AsyncClient`, and what they return."""

from stepwell.client._async import AsyncClient
from stepwell.client._filters import RollupFilters, ScoreFilters, StepFilters, ThreadFilters
from stepwell.client._models import (
    Added,
    Attachment,
    Changes,
    Deleted,
    Found,
    FullStep,
    Generation,
    Hit,
    Refused,
    Rollup,
    Run,
    Score,
    Stats,
    Step,
    StepError,
    Thread,
    ThreadDetail,
    ThreadUser,
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
    "Deleted",
    "Found",
    "FullStep",
    "Generation",
    "Hit",
    "Page",
    "Refused",
    "Rollup",
    "RollupFilters",
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
    "ThreadUser",
    "Usage",
    "User",
]
