"""mpsim: what a split of a large model over devices will give, before the devices are bought."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "load_variants", "simulate"]

_PLACES = {
    "load": "mpsim.spec.reader",
    "load_variants": "mpsim.spec.reader",
    "simulate": "mpsim.simulation",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  (PEP 562: names load what they need)
    """Load :func:`load`, :func:`load_variants` or :func:`simulate` when first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'mpsim' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
