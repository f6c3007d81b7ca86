"""Methods of the CAM family by name; most are recipes: the same walk over the same trace with other choices.

Nothing here imports torch before a method is called, so that the command can list them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, cast

from .._deprecation import warn_deprecated
from ..errors import InputError, RecipeError
from ..recipe import PLAIN, Recipe, one_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .._plan.inputs import Inputs
    from ..explanation import Explanation
    from ..targets import Target, Targets

Explainer = Callable[["nn.Module", "Tensor", "Target"], "Explanation"]
"""Takes a model, images (batch, channel, *space) and a target, and gives their maps with what they are made of."""

_LINEAR = {"readout": "identity", "bias": "none", **PLAIN}


@dataclass(frozen=True)
class Method:
    """A way to make maps with a name, a line about it, and its source; called like `explain`.

    `way` is a recipe, a function, or the name of one in this package, which is imported when it is called.
    """

    name: str
    description: str
    source: str
    way: Recipe | Explainer | str

    def __call__(self, model: nn.Module, images: Inputs, target: Target = None) -> Explanation:
        """Explain `target` for each image; see `IntegrativeCAM`.

        Raises:
            InputError: several inputs for a method that is no recipe.
            CamError: see `trace`.
        """
        if isinstance(self.way, Recipe):
            from ..cam import explain

            return explain(model, images, target, self.way)
        if isinstance(images, Mapping | Sequence):
            raise InputError(
                f"images must be one tensor for {self.name}, but got a {type(images).__name__}: only methods that are "
                "recipes explain networks of several inputs."
            )
        from .._plan.inputs import plain
        from ..explanation import with_views

        way = self.way
        if isinstance(way, str):
            module, _, function = way.rpartition(".")
            way = cast(Explainer, getattr(import_module(f".{module}", __package__), function))
        return with_views(way(model, plain(images), target), images)

    def explain_targets(self, model: nn.Module, images: Inputs, targets: Targets) -> list[Explanation]:
        """Explain several targets of each image; a recipe runs the network once. See
        `IntegrativeCAM.explain_targets`.

        Raises:
            CamError: see `trace`; TargetError where there is no target.
        """
        from ..cam import IntegrativeCAM
        from ..targets import check_targets, top_classes

        if isinstance(self.way, Recipe):
            return IntegrativeCAM(model, self.way).explain_targets(images, targets)
        check_targets(targets)
        if not isinstance(targets, int):
            return [self(model, images, target) for target in targets]
        highest = self(model, images)
        return [highest, *(self(model, images, index) for index in top_classes(highest.output, targets)[1:])]

    def for_task(self, task: str) -> Method:
        """The method as it explains networks of a task; see `Recipe.for_task`."""
        for_task = getattr(self.way, "for_task", None)
        return self if for_task is None else replace(self, way=for_task(task))

    def each(self, model: nn.Module, images: Inputs, targets: Targets) -> list[Explanation]:
        """The old name of `explain_targets`."""
        warn_deprecated("Method.each is now explain_targets; the old name goes with the next release.")
        return self.explain_targets(model, images, targets)

    @property
    def recipe(self) -> Recipe:
        """The ingredients.

        Raises:
            RecipeError: the method is no choice of them.
        """
        if not isinstance(self.way, Recipe):
            raise RecipeError(f"method {self.name} has no ingredients that could be changed: it is no recipe.")
        return self.way


def _single(**ingredients: object) -> Recipe:
    """One layer, the last activation."""
    return Recipe(**{**_LINEAR, "taps": "last", "weighting": "last", **ingredients})


def _stages(**ingredients: object) -> Recipe:
    """The last activation at each resolution, positive evidence, equal weights."""
    fused = {"taps": "stages", "weighting": "uniform", "negative_share": 0.0, "signed": False}
    return Recipe(**{**_LINEAR, **fused, **ingredients})


_ALL = (
    Method(
        "integrative",
        "all layers, saturated evidence, biases as layers, weights from gradient and activation",
        "arXiv:2412.01354",
        Recipe(),
    ),
    Method(
        "gradcam",
        "last layer, each channel weighted by its mean gradient",
        "arXiv:1610.02391",
        _single(aggregation="channel", negative_share=1.0),
    ),
    Method(
        "gradcam++",
        "last layer, each channel weighted by its positive gradients times alpha",
        "arXiv:1710.11063",
        _single(aggregation="channel", negative_share=0.0, readout="exp"),
    ),
    Method(
        "xgradcam",
        "last layer, each channel weighted by its mean gradient where it is active",
        "arXiv:2008.02312",
        _single(aggregation="active", negative_share=1.0),
    ),
    Method(
        "hirescam",
        "last layer, gradient times activation at each position",
        "arXiv:2011.08891",
        _single(negative_share=1.0),
    ),
    Method(
        "layercam",
        "last layer, positive gradient times activation at each position",
        "10.1109/TIP.2021.3089943",
        _single(negative_share=0.0),
    ),
    Method(
        "layercam-fused",
        "LayerCAM at each resolution, their largest value",
        "10.1109/TIP.2021.3089943",
        _stages(fusion="max"),
    ),
    Method(
        "refinecam",
        "Grad-CAM++ at each resolution, their product",
        "arXiv:2605.14641",
        _stages(aggregation="channel", readout="exp", fusion="product"),
    ),
    Method(
        "winsorcam",
        "Grad-CAM of every convolution, weighted by mean gradients without outliers",
        "arXiv:2507.10846",
        "_gradients.winsor_cam",
    ),
    Method(
        "fullgrad",
        "gradient times value at the input and at every bias, as magnitudes from 0 to 1",
        "arXiv:1905.00780",
        "_gradients.full_grad",
    ),
    Method(
        "gradcam-elementwise",
        "last layer, gradient times activation at each position and channel where positive",
        "pytorch-grad-cam",
        "_gradients.elementwise_grad_cam",
    ),
    Method(
        "scorecam",
        "last layer, each channel weighted by what the image masked with it scores; half a minute on a CPU",
        "arXiv:1910.01279",
        "_perturbation.score_cam",
    ),
    Method(
        "ablationcam",
        "last layer, each channel weighted by how far the score falls without it; half a minute on a CPU",
        "10.1109/WACV45572.2020.9093360",
        "_perturbation.ablation_cam",
    ),
    Method("random", "noise, the same for the same image", "control", "_controls.random_cam"),
    Method("center", "a Gaussian around the centre of the image", "control", "_controls.centre_cam"),
    Method("uniform", "one everywhere", "control", "_controls.uniform_cam"),
)


def list_methods() -> Sequence[Method]:
    """All methods that have a name, `integrative` first."""
    return _ALL


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        RecipeError: there is none.
    """
    named = {method.name: method for method in _ALL}
    one_of("method", name, named)
    return named[name]
