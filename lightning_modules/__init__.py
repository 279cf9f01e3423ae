"""Everything that trains or evaluates. Here: the Lightning modules, what all of them share, and what starts them."""

from importlib import import_module
from typing import Any

_WHERE = {
    "BFCLModule": "lightning_modules.bfcl.module",
    "GRPOModule": "lightning_modules.grpo",
    "SRMLModule": "lightning_modules.srml",
}
__all__ = ["BFCLModule", "GRPOModule", "SRMLModule"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: torch and Lightning take seconds, which not every command needs."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
