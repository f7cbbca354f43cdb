"""How the server is: for load balancers, and for Letta's client."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from stepwell._vocabulary import SDK

__all__ = ["router"]

router = APIRouter()


class Health(BaseModel):
    """What Letta's client asks for, both fields of it."""

    status: str
    version: str


@router.get("/v1/health/")
async def health() -> Health:
    """Say that the server is there, and its version."""
    return Health(status="ok", version=SDK.partition("/")[2])
