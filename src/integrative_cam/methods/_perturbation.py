"""Score-CAM and Ablation-CAM: channel weights from running the network again, once per channel.

They need as many runs as the last activation has channels, in batches of `AT_ONCE`: about half a minute per image on a
CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from .. import targets
from .._call import trace
from .._maps.blocks import at_least_float32
from .._maps.fusion import by_range, resize
from .._maps.traced import Trace
from .._plan.capture import Capture
from .._plan.model_state import undisturbed, unwrapped
from .._plan.probabilities import FinalProbabilities
from ..cam import explanation_from_slopes
from ..errors import OutputError, TapError
from ..explanation import Explanation
from ..targets import SampleTarget, Target

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

AT_ONCE = 32
"""Images in one run of the network, whatever the batch and the number of channels."""


def score_cam(model: nn.Module, images: Float[Tensor, "batch channel *space"], target: Target = None) -> Explanation:
    """Weight each channel of the last activation by the score of the image masked with it (arXiv:1910.01279, alg. 1).

        map = relu(sum_k w_k A_k),   w = softmax_k S(x * s(resize(A_k)))

    s scales from 0 at the minimum to 1 at the maximum. S is the target's own score, a logit for a class; the score of a
    baseline image, which the paper subtracts from each, cancels in the softmax. A constant channel cannot be scaled and
    has no weight, as in the authors' code.

    pytorch-grad-cam 1.5.7 aligns corners when it resizes; torchcam 0.5.0 scales before it resizes. Both give constant
    channels a weight.
    """
    traced = trace(model, images, target, "last")
    activation = at_least_float32(traced.taps[0].activation)
    low, high = torch.aminmax(activation.flatten(2), dim=2)
    images = images.detach()

    def score(image: Tensor, channel: Tensor) -> Tensor:
        masks = by_range(resize(activation[image, channel], traced.input_space)).to(images.dtype)
        masked = images[image] * masks.reshape(len(image), *[1] * (images.ndim - masks.ndim), *masks.shape[1:])
        return _scores(model, masked, _targets(traced, target, image))

    scores = _per_channel(score, high > low, traced.score.new_full(low.shape, float("-inf")))
    weights = scores.softmax(1).nan_to_num(0)  # where no channel varies, none has a weight
    return explanation_from_slopes(traced, _over_space(weights, activation))


def ablation_cam(model: nn.Module, images: Float[Tensor, "batch channel *space"], target: Target = None) -> Explanation:
    """Weight each channel of the last activation by the fall of the score without it (10.1109/WACV45572.2020.9093360).

        map = relu(sum_k (S - S_k) A_k),   S_k = the score with channel k set to zero

    The paper's weight is (S - S_k) / S. Dividing by a positive score changes nothing on a map that is
    divided by its maximum, and dividing by a negative one would turn evidence for the target into evidence against it.

    pytorch-grad-cam 1.5.7 divides by S, and sets channels with values below zero (SiLU, GELU) to their minimum - 1e7.
    """
    traced = trace(model, images, target, "last")
    tap, images = traced.taps[0], images.detach()

    def fall(image: Tensor, channel: Tensor) -> Tensor:
        without = _scores(model, images[image], _targets(traced, target, image), silent=(tap.name, channel))
        return traced.score[image] - without

    active = (tap.activation != 0).flatten(2).any(2)
    weights = _per_channel(fall, active, traced.score.new_zeros(active.shape))
    return explanation_from_slopes(traced, _over_space(weights, tap.activation))


def _per_channel(
    value: Callable[[Tensor, Tensor], Tensor],
    wanted: Bool[Tensor, "batch channel"],
    blank: Float[Tensor, "batch channel"],
) -> Float[Tensor, "batch channel"]:
    """`value(image, channel)` for the wanted channels, `AT_ONCE` of them at a time; `blank` elsewhere."""
    jobs = wanted.nonzero()
    if not len(jobs):
        return blank
    return blank.index_put((jobs[:, 0], jobs[:, 1]), torch.cat([value(*some.T) for some in torch.split(jobs, AT_ONCE)]))


def _scores(
    model: nn.Module,
    images: Float[Tensor, "job channel *space"],
    target: Sequence[int | SampleTarget] | Int[Tensor, "job"],
    silent: tuple[str, Int[Tensor, "job"]] | None = None,
) -> Float[Tensor, "job"]:
    """Each image's score, with one channel of a tap set to zero if `silent` gives the tap's name and the channels.

    Everything runs as in `trace`, so that calls have the same names, but autograd keeps no values.

    Raises:
        OutputError: a score is not finite.
        TapError: the network did not call the tap this time.
    """
    name, channel = silent or (None, None)
    model = unwrapped(model)
    with undisturbed(list(model.modules()), images.device) as state, saved_tensors_hooks(_forget, _forget):
        leaf = images.clone().requires_grad_()
        capture = Capture(model, [leaf], lambda called, _: called == name, state.buffers.before_write)
        with capture, _Silence(capture, channel) as silence, FinalProbabilities() as final:
            output = model(leaf.clone())
        whole = targets.Output(output, len(images), [leaf], final.logits)
        scores = at_least_float32(targets.score(whole, target, len(images)).score.detach())
    if silent and not silence.done:
        raise TapError(f"The network called {name} once and not again: it does not do the same twice.")
    if not scores.isfinite().all():
        raise OutputError("The score of a changed image is NaN or infinite; run the model in float32.")
    return scores


class _Silence(TorchFunctionMode):
    """Set one channel of each sample to zero in the feature maps that `capture` records, as they arise."""

    def __init__(self, capture: Capture, channel: Int[Tensor, "job"] | None) -> None:
        super().__init__()
        self.done = 0
        self._capture = capture
        self._channel = channel

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for candidate in self._capture.candidates[self.done :]:
            self.done += 1
            # Detached from the graph, yet the memory that the network goes on with.
            memory = output.detach()
            if candidate.place.fold is None:
                memory[torch.arange(len(memory), device=memory.device), self._channel] = 0
            elif self._channel is not None:
                candidate.place.fold.silence(memory, self._channel)
        return output


def _forget(_: Any) -> Any:
    return None


def _targets(trace: Trace, target: Target, image: Int[Tensor, "job"]) -> Any:
    """The target of each job: the class that was traced, or the callable."""
    if trace.index is not None:
        return trace.index[image]
    return [target if callable(target) else target[sample] for sample in image.tolist()]  # type: ignore[index]


def _over_space(weights: Float[Tensor, "batch channel"], like: Tensor) -> Float[Tensor, "batch channel *space"]:
    return weights.reshape(*weights.shape, *[1] * (like.ndim - 2)).expand_as(like)
