"""What tests of code that uses stepwell, and of its extensions, can use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from stepwell.testing._captured import Captured, Node, capture
from stepwell.testing._fakes import FakeClock, FakeIds

if TYPE_CHECKING:
    from stepwell.testing._exporter_contract import ExporterContract
    from stepwell.testing._store_contract import StoreContract

__all__ = ["Captured", "ExporterContract", "FakeClock", "FakeIds", "Node", "StoreContract", "capture"]
_CONTRACTS: Final = {"ExporterContract": "_exporter_contract", "StoreContract": "_store_contract"}


def __getattr__(name: str) -> Any:
    # The contracts need pytest, which programs that only capture may not have.
    if name in _CONTRACTS:
        return getattr(import_module(f"stepwell.testing.{_CONTRACTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
