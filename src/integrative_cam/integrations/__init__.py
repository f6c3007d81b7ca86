"""Other libraries: our methods in captum's and Quantus' form, methods of pytorch-grad-cam and torchcam in ours."""

from __future__ import annotations

from typing import Any

from .._deprecation import warn_deprecated
from ._attribution import Attribution, explain_func, spread_over_channels
from ._libraries import named, peer, peers

__all__ = ["Attribution", "explain_func", "named", "peer", "peers"]


def __getattr__(name: str) -> Any:
    if name == "signed_map":
        warn_deprecated(f"{__name__}.signed_map(explanation) is now explanation.signed_map.")
        return lambda explanation: explanation.signed_map
    if name == "spread":
        warn_deprecated(f"{__name__}.spread is no longer public; Attribution(model).attribute(images) spreads its map.")
        return spread_over_channels
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
