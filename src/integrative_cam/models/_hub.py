"""The Hugging Face hub, or what was downloaded from it before, without minutes of retries where there is no network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = 5.0
"""Seconds that the hub has to answer."""

_one_at_a_time = threading.RLock()


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Within, a hub that does not answer is not asked again: the cache serves, or loading fails at once.

    huggingface_hub itself asks six times with growing pauses, half a minute per file. Its own switch for working
    offline is set meanwhile, so other code that asks the hub at that moment sees it as well. A second thread waits: it
    would take the switch for the user's, and leave it on.
    """
    from huggingface_hub import constants

    with _one_at_a_time:
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        # The library's own session knows proxies and certificates.
        get_session().head(address, timeout=TIMEOUT)
    except Exception:  # of whichever HTTP library the version uses
        return False
    return True
