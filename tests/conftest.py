from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from integrative_cam.models import Network, load

# One thread: small operations gain nothing from more, and tests run in parallel processes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lite0() -> Network:
    """The bundled network with its real weights."""
    return load()


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of photographs in scikit-image's wheel: chelsea.png, coffee.png, astronaut.png, rocket.jpg."""
    import skimage

    return Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="module")
def laid_as_in_0_1_0() -> Iterator[None]:
    """Lay every grid evenly over the whole input, wherever padding, strides and moves have put it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("integrative_cam._plan.placement._placement", lambda *_: None)
        patch.setattr("integrative_cam._plan.placement.spacing", lambda _: 1.0e6)
        # 0.1.0 did not take channels that were joined from several positions apart, as in Swin's merging of patches.
        patch.setattr("integrative_cam._plan.placement._block", lambda _: None)
        yield
