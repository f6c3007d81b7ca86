"""What the libraries are tried on: each function takes a library and says yes, no, partly, or a number.

A note may follow behind a colon. "yes": as the library's README calls it, and the map is right where there is one;
"partly": with what the note says, which is tried too.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import captum.attr
import captum.concept
import captum.influence
import captum.metrics
import libraries as lib
import numpy as np
import pytorch_grad_cam
import torch
import torchcam.explain
import torchcam.methods
import torchcam.metrics
from captum.attr import IntegratedGradients, LayerAttribution, LayerConductance, LayerGradCam
from libraries import (
    CAPTUM,
    GRAD_CAM,
    IMAGES,
    LAYER,
    OURS,
    TARGET,
    TORCHCAM,
    expected,
    grad_cam,
    paper,
    right,
    small,
    state_of,
    works,
)
from PIL import Image
from pytorch_grad_cam.metrics import arcc, cam_mult_image, road
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from integrative_cam import Explanation, IntegrativeCAM, evaluate, explain, get_method, list_methods
from integrative_cam._maps.fusion import by_range

CLASSES = [ClassifierOutputTarget(index) for index in TARGET]
SIDE = 8


def said(answer: bool) -> str:
    """Yes or no."""
    return "yes" if answer else "no"


def only(ours: str = "no", grad_cam: str = "no", torchcam: str = "no", captum: str = "no") -> dict[str, str]:
    """A verdict for each library."""
    return dict(zip(lib.LIBRARIES, (ours, grad_cam, torchcam, captum), strict=True))


# The methods


def papers_map(library: str) -> str:
    """Grad-CAM, called plainly: with this every other try begins."""
    return said(right(lambda: grad_cam(library, small())))


def plus_plus(library: str) -> str:
    """Grad-CAM++ where gradients are of any size; 1/1000 is usual for means over many positions."""
    if library == CAPTUM:
        return "no: has no Grad-CAM++"

    def run(scale: float) -> bool:
        model = small()
        with torch.no_grad():
            model[5].weight *= scale
        activation = model[:4](IMAGES).detach()
        weights = model[5].weight[list(TARGET)].reshape(3, 6, SIDE, SIDE)
        alpha = 1 / (2 + weights * activation.sum((2, 3), keepdim=True))
        channel = (torch.where(weights > 0, alpha * weights, 0)).sum((2, 3), keepdim=True)
        return right(lambda: _plus_plus(library, model), by_range((channel * activation).sum(1).relu().detach()), 0.02)

    if run(1) and run(1e-2):
        return "yes"
    return "partly: where gradients are not small: 1e-6 is added to their square" if run(1) else "no"


def _plus_plus(library: str, model: nn.Module) -> Tensor:
    if library == OURS:
        return IntegrativeCAM(model, get_method("gradcam++").recipe, taps=LAYER)(IMAGES, list(TARGET)).map
    if library == GRAD_CAM:
        with pytorch_grad_cam.GradCAMPlusPlus(model, [model[3]]) as cam:
            return torch.from_numpy(cam(IMAGES, CLASSES))
    with torchcam.methods.GradCAMpp(model, LAYER) as extractor:
        return extractor(list(TARGET), model(IMAGES))[0]


def constant(library: str) -> str:
    """A layer that is 1 everywhere, all in favour."""
    model = small()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(1)
        model[5].weight.fill_(0.1)
    return said(works(lambda: grad_cam(library, model).min() > 0))


def signed(library: str) -> str:
    """Evidence against, as negative values."""
    model = small()
    raw = paper(model[:4], model[4:])
    assert raw.min() < 0 < raw.max()

    def run() -> Tensor:
        if library == OURS:
            recipe = get_method("gradcam").recipe
            return IntegrativeCAM(model, recipe, taps=LAYER)(IMAGES, list(TARGET)).layers[0].map
        if library == TORCHCAM:
            with torchcam.methods.GradCAM(model, LAYER) as extractor:
                return extractor(list(TARGET), model(IMAGES), normalized=False)[0]
        if library == CAPTUM:
            return LayerGradCam(model, model[3]).attribute(IMAGES, target=list(TARGET))[:, 0]
        return grad_cam(library, model)

    return said(right(run, by_range(raw)))


def method_count(library: str) -> str:
    """The number of CAM methods, without controls."""
    if library == OURS:
        return str(sum(each.source != "control" for each in list_methods()))
    if library == CAPTUM:
        return str(sum(name in ("LayerGradCam", "GuidedGradCam") for name in dir(captum.attr)))
    if library == GRAD_CAM:
        public = vars(pytorch_grad_cam).values()
        meta = (pytorch_grad_cam.RefineCAM, pytorch_grad_cam.SESS)
        base = pytorch_grad_cam.grad_cam.BaseCAM
        found = {each for each in public if inspect.isclass(each) and (issubclass(each, base) or each in meta)}
        return str(len(found - {pytorch_grad_cam.RandomCAM, base}))
    public = vars(torchcam.methods).values()
    return str(len({each for each in public if inspect.isclass(each) and not each.__name__.startswith("_")}))


def other_attribution(library: str) -> str:
    """Integrated gradients and the like."""
    if library == GRAD_CAM:
        guided = pytorch_grad_cam.GuidedBackpropReLUModel(model=small(), device="cpu")
        return "partly: guided backpropagation" if works(lambda: guided(IMAGES[:1], 0).any()) else "no"
    if library == CAPTUM:
        found = IntegratedGradients(small()).attribute(IMAGES, target=list(TARGET))
        return said(works(lambda: found.abs().sum() > 0 and hasattr(captum.attr, "LRP")))
    return said(_names(library, "integrated", "lrp", "deeplift", "shap", "lime", "occlusion", "guided"))


def concepts(library: str) -> str:
    """Parts that layers find by themselves, or given concepts."""
    if library == CAPTUM:
        return said(works(lambda: captum.concept.TCAV))
    if library == GRAD_CAM:
        model = small()

        def run() -> bool:
            _, maps = pytorch_grad_cam.DeepFeatureFactorization(model=model, target_layer=model[3])(IMAGES[:1], 2)
            return bool(np.shape(maps)[1] == 2)

        return said(works(run))
    return said(_names(library, "concept", "factor", "tcav"))


def windows(library: str) -> str:
    """The map made of maps of windows at several scales."""
    if library == GRAD_CAM:
        return said(works(lambda: pytorch_grad_cam.SESS))
    return said(_names(library, "sess", "window", "scale"))


def influence(library: str) -> str:
    """Which training examples made the network say so."""
    if library == CAPTUM:
        return said(works(lambda: captum.influence.TracInCP))
    return said(_names(library, "influence", "tracin"))


def smoothing(library: str) -> str:
    """Means over augmented images, first principal component."""
    model = small()
    if library == GRAD_CAM:
        with pytorch_grad_cam.GradCAM(model, [model[3]]) as cam:
            return said(works(lambda: cam(IMAGES, CLASSES, aug_smooth=True, eigen_smooth=True).any()))
    if library == TORCHCAM:
        with torchcam.methods.GradCAM(model, LAYER) as extractor:
            return said(works(lambda: extractor(list(TARGET), model(IMAGES), aug_smooth=True)))
    if library == CAPTUM:
        cam = LayerGradCam(model, model[3])
        return said(works(lambda: cam.attribute(IMAGES, target=0, aug_smooth=True)))
    return said(works(lambda: explain(model, IMAGES, 0, aug_smooth=True)))


def text(library: str) -> str:
    """Tokens in, embeddings explained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(6 * 5, 4)).eval()
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    if library == CAPTUM:
        cam = captum.attr.LayerIntegratedGradients(model, model[0])
        return said(works(lambda: cam.attribute(tokens, tokens * 0, target=0).shape == (1, 5, 6)))
    if library == OURS:
        return said(works(lambda: explain(model, tokens, 0).map.any()))
    return said(works(lambda: grad_cam(library, model, tokens, [0], "0").shape == (1, 5)))


# Layers


def automatic(library: str) -> str:
    """No layer named."""
    model = small()
    if library == OURS:
        found = [tap.name for tap in IntegrativeCAM(model).taps(IMAGES)]
        return "yes: all" if found == ["1", "3"] else "no"
    if library == TORCHCAM:
        with torchcam.methods.GradCAM(model, input_shape=(3, 8, 8)) as extractor:
            return "partly: one, the last that has space" if extractor.target_names == ["3"] else "no"
    if library == GRAD_CAM:
        return said(works(lambda: pytorch_grad_cam.GradCAM(model=model)(IMAGES, CLASSES).any()))
    return said(works(lambda: LayerGradCam(model).attribute(IMAGES, target=0).any()))


def several_layers(library: str) -> str:
    """Fused into one map, and how."""
    model, fixed = small(), torch.stack([expected(layer=1), expected(layer=3)])
    if library == OURS:
        found = explain(model, IMAGES, list(TARGET))
        return "yes: by weights from each image" if found.weights[0].ne(found.weights[1]).any() else "no"
    if library == GRAD_CAM:
        with pytorch_grad_cam.GradCAM(model, [model[1], model[3]]) as cam:
            return (
                "yes: their mean"
                if right(lambda: torch.from_numpy(cam(IMAGES, CLASSES)), by_range(fixed.mean(0)))
                else "no"
            )
    if library == TORCHCAM:
        with torchcam.methods.GradCAM(model, ["1", "3"]) as extractor:
            run = lambda: extractor.fuse_cams(extractor(list(TARGET), model(IMAGES)))  # noqa: E731
            return "yes: their largest value" if right(run, by_range(fixed.amax(0))) else "no"
    return said(works(lambda: LayerGradCam(model, [model[1], model[3]]).attribute(IMAGES, target=0)[0].any()))


def shared_pass(library: str) -> str:
    """The prediction comes with the map; the network runs once."""
    model = lib.Counting(*small()).eval()
    output = small()(IMAGES)

    def run() -> Any:
        if library == OURS:
            return explain(model, IMAGES, list(TARGET)).output
        if library == GRAD_CAM:
            with pytorch_grad_cam.GradCAM(model, [model[3]]) as cam:
                cam(IMAGES, CLASSES)
                return cam.outputs
        if library == TORCHCAM:
            with torchcam.methods.GradCAM(model, LAYER) as extractor:
                scores = model(IMAGES)
                extractor(list(TARGET), scores)
                return scores
        return LayerGradCam(model, model[3]).attribute(IMAGES, target=0)

    return said(works(lambda: (found := run()).shape == output.shape and found.allclose(output) and model.runs == 1))


def functions(library: str) -> str:
    """A layer that is a function; peers may try every module there is."""
    model = lib.functional()
    hidden = by_range(paper(lambda x: model.body(x).relu(), lambda a: model.head(_convolution(model)(a))).relu())
    places = [name for name, _ in model.named_modules() if name] if library != OURS else [":relu"]
    return said(any(right(lambda name=name: _by_name(library, model, name), hidden) for name in places))


def _convolution(model: lib.Called) -> nn.Module:
    return inspect.getclosurevars(model.then).nonlocals["last"]


def _by_name(library: str, model: nn.Module, name: str) -> Tensor:
    if library == OURS:
        return IntegrativeCAM(model, get_method("gradcam").recipe, taps=name)(IMAGES, list(TARGET)).map
    return grad_cam(library, model, layer=name)


def called_twice(library: str) -> str:
    """Each call of one module as a layer of its own."""
    model, plain = lib.Twice().eval(), small()
    first, second = expected(plain, layer=1), expected(plain)
    if library == OURS:
        calls = (("relu", first), ("relu#2", second))
        return said(all(right(lambda name=name: _by_name(OURS, model, name), wanted) for name, wanted in calls))
    if right(lambda: grad_cam(library, model, layer="relu"), first):
        return "partly: the first only"
    return "partly: the last only" if right(lambda: grad_cam(library, model, layer="relu"), second) else "no"


def in_place(library: str) -> str:
    """A convolution as the layer, with a ReLU behind it that works in place."""
    model, plain = small(inplace=True), small()
    wanted = expected(plain, layer=2)
    return said(right(lambda: grad_cam(library, model, layer="2"), wanted))


def transformer(library: str) -> str:
    """Tokens of a ViT."""
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=4).eval()
    nn.init.normal_(model.heads.head.weight)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    name = "encoder.layers.encoder_layer_1.ln_1"
    seen: list[Tensor] = []
    module = model.get_submodule(name)
    with module.register_forward_hook(lambda *found: seen.append(found[2])):
        score = model(images)[range(3), TARGET].sum()
    (gradient,) = torch.autograd.grad(score, seen[0])

    def grid(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 4, 4)

    activation, gradient = grid(seen[0]), grid(gradient)
    wanted = by_range((gradient.mean((2, 3), keepdim=True) * activation).sum(1).relu().detach())
    if library == OURS:
        recipe = get_method("gradcam").recipe

        def run() -> Tensor:
            return IntegrativeCAM(model, recipe, taps=name)(images, list(TARGET)).layers[0].map.relu()

        return said(right(run, wanted) and works(lambda: (explain(model, images).map.amax((1, 2)) == 1).all()))
    if right(lambda: grad_cam(library, model, images, layer=name), wanted):
        return "yes"

    def reshaped() -> Tensor:
        if library == GRAD_CAM:
            with pytorch_grad_cam.GradCAM(model, [module], reshape_transform=grid) as cam:
                # Its maps have the images' size.
                return torch.from_numpy(cam(images, CLASSES))
        with torchcam.methods.GradCAM(model, module, reshape_transform=grid) as extractor:
            return extractor(list(TARGET), model(images))[0]

    if library == CAPTUM:
        return "no"
    large = torch.nn.functional.interpolate(wanted[:, None], (32, 32), mode="bilinear")[:, 0]
    fits = right(reshaped, by_range(large) if library == GRAD_CAM else wanted)
    if library == TORCHCAM:
        with torchcam.methods.LeGrad(model, list(model.encoder.layers)[-1:]) as extractor:
            model(images)
            fits = fits and works(lambda: extractor(list(TARGET))[0].shape == wanted.shape)
        return "partly: with a function that brings tokens back to a grid, or by its LeGrad" if fits else "no"
    return "partly: with a function that brings tokens back to a grid" if fits else "no"


# What is explained


def own_class(library: str) -> str:
    """Each image's own top class, without a class given."""
    model = small()
    with torch.no_grad():
        model[5].bias -= model(IMAGES).mean(0)
        top = model(IMAGES).argmax(1)
    assert len(set(top.tolist())) > 1
    wanted = by_range(paper(model[:4], model[4:], score=lambda output: output[range(3), top]).relu())

    def run() -> Tensor:
        if library == OURS:
            return IntegrativeCAM(model, get_method("gradcam").recipe, taps=LAYER)(IMAGES).map
        if library == GRAD_CAM:
            with pytorch_grad_cam.GradCAM(model, [model[3]]) as cam:
                return torch.from_numpy(cam(IMAGES, None))
        if library == TORCHCAM:
            with torchcam.methods.GradCAM(model, LAYER) as extractor:
                return extractor(None, model(IMAGES))[0]
        return LayerGradCam(model, model[3]).attribute(IMAGES, relu_attributions=True)[:, 0]

    return said(right(run, wanted))


def own_score(library: str) -> str:
    """Any scalar of an image's output: here a difference of two classes."""
    model = small()
    wanted = by_range(paper(model[:4], model[4:], score=lambda output: output[:, 0] - output[:, 2]).relu())

    def difference(output: Tensor) -> Tensor:
        return output[0] - output[2]

    def run() -> Tensor:
        if library == OURS:
            return IntegrativeCAM(model, get_method("gradcam").recipe, taps=LAYER)(IMAGES, difference).map
        if library == GRAD_CAM:
            with pytorch_grad_cam.GradCAM(model, [model[3]]) as cam:
                return torch.from_numpy(cam(IMAGES, [difference] * 3))
        if library == TORCHCAM:
            with torchcam.methods.GradCAM(model, LAYER) as extractor:
                return extractor(scores=model(IMAGES), targets=difference)[0]

        def forward(images: Tensor) -> Tensor:
            output = model(images)
            return output[:, 0] - output[:, 2]

        return LayerGradCam(forward, model[3]).attribute(IMAGES, relu_attributions=True)[:, 0]

    if not right(run, wanted):
        return "no"
    return "partly: as a function in place of the network" if library == CAPTUM else "yes"


def returns(wrap: Callable[[Tensor], Any]) -> Callable[[str], str]:
    """The class index of a network that returns more than a tensor; nobody's wrapper is used."""
    return lambda library: said(right(lambda: grad_cam(library, lib.Returning(wrap).eval(), layer="layers.3")))


def dimensions(dims: int) -> Callable[[str], str]:
    """Signals, volumes."""

    def tried(library: str) -> str:
        model = small(dims=dims)
        images = torch.randn(3, 3, *[SIDE] * dims, generator=torch.Generator().manual_seed(5))
        return said(right(lambda: grad_cam(library, model, images), expected(model, images)))

    return tried


def several_inputs(library: str) -> str:
    """A network of two pictures."""
    model, pair = lib.Two().eval(), (IMAGES, IMAGES.flip(0))
    wanted = paper(lambda both: model.relu(model.left(both[0]) + model.right(both[1])), model.head, pair)
    return said(right(lambda: grad_cam(library, model, pair, layer="relu"), by_range(wanted.relu())))


def shares(library: str) -> str:
    """Which of two inputs the score came from."""
    model, pair = lib.Two().eval(), (IMAGES, IMAGES.flip(0))
    with torch.no_grad():
        model.right.weight.zero_()
        model.right.bias.zero_()
    if library == OURS:
        found = explain(model, pair, list(TARGET)).streams
        own, other = found.evidence.T
        return said(bool(own.all()) and not other.any() and len(found.maps) == found.share.shape[1] == 2)
    if library == CAPTUM:
        left, right_ = IntegratedGradients(model).attribute(pair, target=list(TARGET))
        return "partly: by pixels, without maps of layers" if left.any() and not right_.any() else "no"
    return said(works(lambda: len(grad_cam(library, model, pair, layer="relu")) == 2 * len(IMAGES)))


# What the map is made of


def bias_in_map(library: str) -> str:
    """A convolution's bias behind the layer, whose part of the score lies where the head's weights do."""

    def network(bias: float) -> nn.Sequential:
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 1, 1), nn.Flatten(), nn.Linear(64, 4)
        ).eval()
        nn.init.constant_(model[2].bias, bias)
        return model

    def run(model: nn.Sequential, name: str) -> Tensor:
        if library == OURS:
            return explain(model, IMAGES, list(TARGET)).map
        if name:
            with pytorch_grad_cam.FullGrad(model, []) as cam:
                return torch.from_numpy(cam(IMAGES, CLASSES))
        return grad_cam(library, model, layer="1")

    for name in ("", "FullGrad") if library == GRAD_CAM else ("",):
        if works(lambda name=name: not torch.allclose(run(network(0), name), run(network(3), name), atol=1e-3)):
            return f"partly: in its {name}" if name else "yes"
    return "no"


def splits(library: str) -> str:
    """The score's parts at a layer add up to it."""
    model = small()
    score = model(IMAGES)[range(3), TARGET].detach()
    if library == OURS:
        parts = explain(model, IMAGES, list(TARGET), score="logit").completeness
        total = parts.activation + parts.tap_bias + parts.bypass
        each = parts.input + parts.bias + parts.remainder
        fits = torch.allclose(total, score[:, None], atol=1e-4) and torch.allclose(each, score, atol=1e-4)
        return said(fits and float(parts.remainder.abs().max()) < 1e-4)
    if library == CAPTUM:
        found = LayerConductance(model, model[3]).attribute(IMAGES, target=list(TARGET), n_steps=200)
        gap = score - model(IMAGES * 0)[range(3), TARGET]
        exact = torch.allclose(found.flatten(1).sum(1), gap, atol=0.02)
        return "partly: the difference from a baseline, by integration (LayerConductance)" if exact else "no"
    raw = torch.as_tensor(grad_cam(library, model)).flatten(1).sum(1)
    return said(torch.allclose(raw, score, atol=0.02))


def differentiable(library: str) -> str:
    """The map in a loss: gradients reach the weights."""
    model = small()

    def run() -> bool:
        if library == OURS:
            found = explain(model, IMAGES, list(TARGET), differentiable=True).map
        elif library == CAPTUM:
            cam = LayerGradCam(model, model[3])
            found = cam.attribute(IMAGES, target=list(TARGET), grad_kwargs={"create_graph": True})
        else:
            found = grad_cam(library, model)
        found[..., :4].sum().backward()
        return bool(model[0].weight.grad.any())

    return said(works(run))


def input_size(library: str) -> str:
    """The map has the images' size."""
    model = nn.Sequential(*small()[:4], nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 4)).eval()
    if works(lambda: grad_cam(library, model, layer="4").shape == (3, SIDE, SIDE)):
        return "yes"
    if library == CAPTUM:
        shape = LayerAttribution.interpolate(grad_cam(library, model, layer="4")[:, None], (SIDE, SIDE)).shape
        return "partly: by a second call" if shape == (3, 1, SIDE, SIDE) else "no"
    from torchcam.utils import overlay_mask

    mask = Image.fromarray(grad_cam(library, model, layer="4")[0].numpy())
    picture = overlay_mask(Image.new("RGB", (SIDE, SIDE)), mask)
    return "partly: in its pictures" if mask.size == (4, 4) and picture.size == (SIDE, SIDE) else "no"


def neighbours(library: str) -> str:
    """An image's map is the same alone and in a batch."""

    def run() -> Tensor:
        model = small()
        return torch.cat([grad_cam(library, model, IMAGES[at : at + 1], [TARGET[at]]) for at in range(3)])

    return said(right(run) and right(lambda: grad_cam(library, small())))


# Context of the call


def frozen(library: str) -> str:
    """No parameter requires a gradient."""
    model = small().requires_grad_(False)
    if right(lambda: grad_cam(library, model)):
        return "yes"
    asking = right(lambda: grad_cam(library, model, IMAGES.clone().requires_grad_()))
    return "partly: where the images require a gradient" if asking else "no"


def within(context: Callable[[], Any]) -> Callable[[str], str]:
    """A call inside a context."""

    def tried(library: str) -> str:
        def run() -> Tensor:
            with context():
                return grad_cam(library, model)

        model = small()
        return said(right(run))

    return tried


def autocast(library: str) -> str:
    """bfloat16 by autocast."""

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return grad_cam(library, model)

    model = small()
    return said(right(run, tolerance=0.05))


def half(library: str) -> str:
    """A network and images in bfloat16."""
    return said(right(lambda: grad_cam(library, small().bfloat16(), IMAGES.bfloat16()), tolerance=0.05))


def compiled(library: str) -> str:
    """torch.compile, without its code generator, of a network that has run."""
    plain = small()
    model = torch.compile(plain, backend="eager")
    model(IMAGES)
    found = right(lambda: grad_cam(library, model, of=plain))
    torch._dynamo.reset()
    return said(found)


def threads(library: str) -> str:
    """Two threads explain different images with one model at once."""
    model = lib.Overlapping().eval()
    wanted = expected()

    def one(at: int) -> bool:
        return right(lambda: grad_cam(library, model, IMAGES[at : at + 1], [TARGET[at]]), wanted[at : at + 1])

    with ThreadPoolExecutor(2) as pool:
        return said(all(pool.map(one, (0, 1))))


# State after the call


def normed() -> nn.Sequential:
    """With batch statistics that are not those of IMAGES."""
    layers = small()
    model = nn.Sequential(layers[0], nn.BatchNorm2d(6), *layers[1:]).eval()
    with torch.no_grad():
        model[1].running_mean.fill_(0.1)
        model[1].running_var.fill_(0.5)
    return model


def training_mode(library: str) -> str:
    """The map of evaluation mode; training mode and batch statistics as before."""
    model = normed()
    wanted = expected(model, layer=4)
    model.train()
    before = state_of(model)
    return said(right(lambda: grad_cam(library, model, layer="4"), wanted) and state_of(model) == before)


def accumulated(library: str) -> str:
    """Gradients that a user has accumulated, after a call that is right."""
    model = small()
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    before = state_of(model)
    return said(right(lambda: grad_cam(library, model)) and state_of(model) == before)


def hooks(library: str) -> str:
    """After a call, and after one that fails in the network."""
    model, failing = small(), lib.Failing().eval()
    count = lambda each: [len(module._forward_hooks) + len(module._backward_hooks) for module in each.modules()]  # noqa: E731
    before = count(model) + count(failing)
    called = right(lambda: grad_cam(library, model))
    works(lambda: grad_cam(library, failing, layer="layers.3"))
    if not called or count(model) + count(failing) != before:
        return "no"
    made = _made(library, model)
    return "yes: in its `with` block" if count(model) != before[: len(count(model))] and made else "yes"


def _made(library: str, model: nn.Sequential) -> object:
    if library == OURS:
        return IntegrativeCAM(model)
    if library == GRAD_CAM:
        return pytorch_grad_cam.GradCAM(model, [model[3]])
    return torchcam.methods.GradCAM(model, LAYER) if library == TORCHCAM else LayerGradCam(model, model[3])


def errors(library: str) -> str:
    """An IndexError of the network is the caller's."""
    try:
        grad_cam(library, lib.Failing().eval(), layer="layers.3")
    except IndexError as error:
        return said("on purpose" in str(error))
    except Exception as error:
        lib.reasons.append(f"{type(error).__name__}")
    return "no"


# Tools


def saved(library: str) -> str:
    """On disk and back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found"
        if library == OURS:
            found = explain(small(), IMAGES)
            return said(torch.equal(Explanation.load(found.save(path)).map, found.map))
        if library == TORCHCAM:
            found = torchcam.explain.explain(small(), IMAGES[:1], target_layer=LAYER)
            found.save(path, Image.new("RGB", (SIDE, SIDE)))
            (array,) = [np.load(each) for each in path.glob("*.npy")]
            fits = np.array_equal(array, found.cams[found.predicted_class_idx][0].numpy())
            return "partly: one image at a time; no reader" if fits else "no"
        return said(hasattr(grad_cam(library, small()), "save"))


def data_sets(library: str) -> str:
    """A folder of images into tables and maps."""
    if library != OURS:
        return said(_names(library, "dataset", "folder"))
    from integrative_cam.run import Job, Results, run

    with tempfile.TemporaryDirectory() as folder:
        source, code = Path(folder) / "in", Path(folder) / "network.py"
        source.mkdir()
        code.write_text(
            "import torch\nfrom torch import nn\nfrom integrative_cam.models import Network, Preprocessing\n"
            "def make():\n    torch.manual_seed(0)\n"
            "    layers = nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)\n"
            "    return Network('own', nn.Sequential(*layers), Preprocessing(crop=(8, 8), resize=8))\n"
        )
        for at in range(2):
            Image.fromarray(np.full((8, 8, 3), 90 * at + 40, np.uint8)).save(source / f"{at}.png")
        job = Job(str(source), str(Path(folder) / "out"), f"{code}:make", get_method("integrative"), decoders=0)
        outcome = run(job, workers=0)
        return said(outcome.code == 0 and len(Results(job.dest)) == 2)


def command(library: str) -> str:
    """Of the shell, installed with the package."""
    name = {OURS: "integrative-cam", GRAD_CAM: "grad-cam"}.get(library, library)
    scripts = [each.name for each in metadata.distribution(name).entry_points if each.group == "console_scripts"]
    return f"yes: `{scripts[0]}`" if scripts else "no"


def web_page(library: str) -> str:
    """Installed with the package."""
    if library == OURS:
        return said(find_spec("integrative_cam.app._page") is not None and find_spec("gradio") is not None)
    packages = {GRAD_CAM: pytorch_grad_cam, TORCHCAM: torchcam, CAPTUM: captum}
    root = Path(inspect.getfile(packages[library])).parent
    served = ("import streamlit", "import gradio", "import flask", "from flask")
    found = any(each in file.read_text(errors="replace") for file in root.rglob("*.py") for each in served)
    return said(found)


def measures(*names: str) -> Callable[[str], str]:
    """Whether a library's metrics have one of these names."""
    modules = {
        OURS: [evaluate],
        GRAD_CAM: [cam_mult_image, road, arcc],
        TORCHCAM: [torchcam.metrics],
        CAPTUM: [captum.metrics],
    }

    def tried(library: str) -> str:
        public = [name.lower().replace("_", "") for module in modules[library] for name in vars(module)]
        return said(any(name in each for name in names for each in public))

    return tried


def _names(library: str, *words: str) -> bool:
    modules = {
        OURS: [__import__("integrative_cam")],
        GRAD_CAM: [pytorch_grad_cam],
        TORCHCAM: [torchcam.methods, torchcam.metrics, torchcam.explain],
        CAPTUM: [captum.attr],
    }
    public = [name.lower() for module in modules[library] for name in vars(module) if not name.startswith("_")]
    public += [each.name for each in list_methods()] if library == OURS else []
    return any(word in name for word in words for name in public)
