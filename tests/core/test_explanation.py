"""Explanations as sequences of images, fused again, and on disk: what was saved comes back, nothing half-written."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import fusion
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from integrative_cam import Explanation, Recipe, explain, get_method
from integrative_cam.errors import ExplanationError, InputError
from integrative_cam.explanation import tensors_in

torch.manual_seed(0)
MODEL = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
).eval()
IMAGES = torch.randn(2, 3, 8, 8)


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    elif is_dataclass(one):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for part, twin in zip(one, other, strict=True):
            assert_equal(part, twin)
    else:
        assert one == other


def assert_close(one: Explanation, other: Explanation) -> None:
    """Every tensor, to rounding; names and recipe exactly."""
    first, second = dict(tensors_in(one)), dict(tensors_in(other))
    assert first.keys() == second.keys()
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=1e-7, atol=1e-9, msg=lambda text, name=name: name + text)
    assert (one.target_names, one.recipe) == (other.target_names, other.recipe)


RECIPES = (
    Recipe(),
    Recipe(bias="complete", fusion="geometric"),
    Recipe(bias="residual", signed=False, fusion="product", readout="softplus"),
    get_method("gradcam++").recipe,
)


@networks.examples(30)
@given(
    networks.options(),
    st.sampled_from(["plain", "vgg", "resnet", "inception"]),
    st.sampled_from(RECIPES),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore:The map")
def test_an_image_of_a_batch_is_that_image_explained_alone(
    option: networks.Options, kind: str, recipe: Recipe, is_callable: bool
) -> None:
    model, images = networks.build(kind, option), networks.images(option, batch=3)
    target: Any = (lambda output: output[..., :2].sum()) if is_callable else None
    batch = explain(model, images, target, recipe)
    for place in range(3):
        assert_close(batch[place], explain(model, images[place : place + 1], target, recipe))
    assert_close(batch[1:], explain(model, images[1:], target, recipe))
    torch.testing.assert_close(batch.fuse(), batch.map)


@networks.examples(20)
@given(networks.options(), st.sampled_from(networks.FUSIONS), st.sampled_from(RECIPES[:3]))
@pytest.mark.filterwarnings("ignore:The map")
def test_an_image_of_several_inputs(option: networks.Options, fusing: str, recipe: Recipe) -> None:
    model = networks.build(partial(networks.Fusing, fusion=fusing), option)
    generator = torch.Generator().manual_seed(option.seed)
    space = networks.SPACES[option.dims]
    larger = space if fusing in ("early", "sum") else tuple(2 * size for size in space)
    inputs = tuple(networks.noise(generator, 2, networks.CHANNELS, *size) for size in (space, larger))
    batch = explain(model, inputs, recipe=recipe)
    for place in range(2):
        assert_close(batch[place], explain(model, tuple(part[place : place + 1] for part in inputs), recipe=recipe))
    torch.testing.assert_close(batch.fuse(), batch.map)


def test_an_explanation_is_a_sequence_of_its_images(tmp_path: Path) -> None:
    whole = explain(MODEL, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), [0, 1, 2, 3])
    assert len(whole) == 4
    assert [len(image) for image in whole] == [1] * 4
    assert [image.target_names for image in whole] == [("0",), ("1",), ("2",), ("3",)]
    assert_equal(whole[-1], whole[3])
    assert_equal(whole[np.int64(2)], whole[2:3])  # type: ignore[index]
    assert_equal(whole[:], whole)
    assert whole[::2].target_names == ("0", "2")
    assert torch.equal(whole[::2].layers[0].map, whole.layers[0].map[::2])
    assert torch.equal(whole[1].completeness.remainder, whole.completeness.remainder[1:2])
    assert len(whole[4:]) == 0
    whole[1:3].save(tmp_path / "part")
    assert_equal(Explanation.load(tmp_path / "part"), whole[1:3])
    model = copy.deepcopy(MODEL).double()
    uniform = get_method("uniform")(model, IMAGES.double())
    assert_close(uniform[1], get_method("uniform")(model, IMAGES[1:].double()))


@pytest.mark.parametrize("place", [2, -3])
def test_an_image_that_is_not_there(place: int) -> None:
    with pytest.raises(IndexError, match=f"image {place} is out of range: the explanation has 2 images"):
        explain(MODEL, IMAGES)[place]


@pytest.mark.parametrize("place", ["0", 1.0, None, [0]])
def test_what_chooses_no_image(place: Any) -> None:
    with pytest.raises(TypeError, match="by an integer or a slice, but got"):
        explain(MODEL, IMAGES)[place]


def test_every_tensor_moves_to_a_device() -> None:
    """The meta device stands for any other one: tensors on it have shapes and no values."""
    found = explain(MODEL, IMAGES)
    moved = found.to("meta")
    assert {values.device.type for _, values in tensors_in(moved)} == {"meta"}
    shapes = [[(name, values.shape) for name, values in tensors_in(each)] for each in (found, moved)]
    assert shapes[0] == shapes[1]
    assert_equal(found.to(torch.device("cpu")), found)


def test_chosen_layers_are_fused_by_their_weights_among_themselves() -> None:
    option = networks.Options(seed=3)
    model, images = networks.build("vgg", option), networks.images(option)
    for name in ("sum", "max", "geometric", "product"):
        found = explain(model, images, bias="layers", fusion=name, gamma=1)
        chosen = (found.layers[0], found.layers[2], found.bias_layers[1])
        maps = found.fuse(chosen)
        for sample in range(len(images)):
            weights = np.array([0.8, 0.8, 1]) * [float(layer.weight[sample]) for layer in chosen]
            expected = fusion.fuse(
                [layer.map[sample].numpy() for layer in chosen], weights / weights.sum(), maps.shape[1:], name
            )
            np.testing.assert_allclose(maps[sample], expected, rtol=1e-6, atol=1e-9)


def test_changed_maps_are_fused_again() -> None:
    found = explain(MODEL, IMAGES, signed=True, fusion="sum")
    assert torch.equal(found.fuse(change=lambda maps: maps.relu()), explain_unsigned(found))
    whole = get_method("center")(MODEL, IMAGES)
    assert torch.equal(whole.fuse(), whole.map)
    torch.testing.assert_close(whole.fuse(change=lambda maps: 3 * maps), whole.map)


def explain_unsigned(found: Explanation) -> Tensor:
    return explain(MODEL, IMAGES, found.target, signed=False, fusion="sum").map


def test_layers_of_another_explanation_are_refused() -> None:
    found, other = explain(MODEL, IMAGES), explain(MODEL, IMAGES)
    with pytest.raises(InputError, match="1 of 2 are no part of its map"):
        found.fuse([found.layers[0], other.layers[1]])
    with pytest.raises(InputError, match="layers must be some of"):
        found.fuse([])
    with pytest.raises(InputError, match="1 of 1 are no part"):
        get_method("uniform")(MODEL, IMAGES).fuse(found.layers[:1])


def test_arrays_of_the_first_release_are_read(tmp_path: Path) -> None:
    """There `clamped` was called `guarded`."""
    saved = explain(MODEL, IMAGES)
    saved.save(tmp_path / "e")
    arrays = load_file(tmp_path / "e" / "arrays.safetensors")
    arrays["guarded"] = arrays.pop("clamped")
    save_file(arrays, tmp_path / "e" / "arrays.safetensors")
    assert_equal(saved, Explanation.load(tmp_path / "e"))


@pytest.mark.parametrize("target", [None, lambda output: output.sum()], ids=["class", "callable"])
@pytest.mark.parametrize("bias", ["layers", "complete"])
def test_round_trip(target: Any, bias: str, tmp_path: Path) -> None:
    saved = explain(MODEL, IMAGES, target, bias=bias)
    assert saved.save(tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    assert_equal(saved, Explanation.load(tmp_path / "deep" / "folder"))


def test_recipe_with_callables_is_described(tmp_path: Path) -> None:
    explain(MODEL, IMAGES, readout=torch.atan, taps=("0", "last")).save(tmp_path / "e")
    loaded = Explanation.load(tmp_path / "e").recipe
    assert loaded == Recipe(readout="atan", taps=("0", "last"))


def test_an_earlier_explanation_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    explain(MODEL, IMAGES, 0).save(folder)
    second = explain(MODEL, IMAGES, 1)
    second.save(folder)
    assert_equal(second, Explanation.load(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("content", ["file", "folder"])
def test_other_content_is_never_overwritten(content: str, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    if content == "file":
        place.write_text("precious")
    else:
        place.mkdir()
        (place / "thesis.txt").write_text("precious")
    with pytest.raises(ExplanationError, match="exists and is no earlier output"):
        explain(MODEL, IMAGES).save(place)
    kept = place if content == "file" else place / "thesis.txt"
    assert kept.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [place]


def test_failure_while_writing_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "e"
    first = explain(MODEL, IMAGES, 0)
    first.save(folder)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(OSError, match="No space left"):
        explain(MODEL, IMAGES, 1).save(folder)
    monkeypatch.undo()
    assert_equal(first, Explanation.load(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no complete explanation: manifest.json is missing"),
        (lambda folder: (folder / "arrays.safetensors").unlink(), "arrays.safetensors is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "no readable explanation"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "not an explanation of format 1"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 1}'), "incomplete explanation"),
        (lambda folder: (folder / "arrays.safetensors").write_bytes(b"torn"), "no readable explanation"),
    ],
)
def test_damaged_folders(damage: Any, message: str, tmp_path: Path) -> None:
    folder = explain(MODEL, IMAGES).save(tmp_path / "e")
    damage(folder)
    with pytest.raises(ExplanationError, match=message):
        Explanation.load(folder)


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(ExplanationError, match=r"manifest.json is missing"):
        Explanation.load(tmp_path / "none")


def test_a_result_of_the_command_holds_its_explanation_inside(tmp_path: Path) -> None:
    explain(MODEL, IMAGES).save(tmp_path / "explanation")
    with pytest.raises(ExplanationError, match=r"manifest.json is missing. There is one in .*explanation\.$"):
        Explanation.load(tmp_path)


def test_weights_and_bias_shares() -> None:
    found = explain(MODEL, IMAGES)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(2))
    assert [layer.name for layer in found.bias_layers] == ["0", "1", "3"]
    shares = torch.stack([layer.weight for layer in found.bias_layers], 1)
    torch.testing.assert_close(shares.sum(1), torch.full((2,), 0.2))


def test_short_repr() -> None:
    assert repr(explain(MODEL, IMAGES, 3)) == "Explanation(2 image(s), map 8x8, target 3, 3, 2 layers)"
