"""What can be imported: few names at the root, none that hides a module, and all names of 0.1.0 for one release."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import integrative_cam
from integrative_cam import Recipe, errors, explain, explain_trace, get_method, list_methods, targets, trace
from integrative_cam._deprecation import MODULES, RENAMED

OLD_NAMES: list[str] = json.loads((Path(__file__).parents[1] / "data" / "public_names_0_1_0.json").read_text())
"""Every name in `__all__` of every package of 0.1.0, and every other name that its documentation imports."""
GONE = "integrative_cam.render.presented"
"""The smoothed map, which no picture shows any more: there is nothing that it could be a name of."""
PUBLIC = ("", ".evaluate", ".integrations", ".methods", ".models", ".query", ".render", ".reports", ".run", ".targets")
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(8, 4)).eval()


def test_the_root_has_few_names() -> None:
    assert len(integrative_cam.__all__) <= 25
    assert sorted(integrative_cam.__all__) == integrative_cam.__all__
    assert set(integrative_cam.__all__) <= set(dir(integrative_cam))


def test_importing_the_root_loads_nothing_heavy() -> None:
    code = (
        "import sys; import integrative_cam, integrative_cam.methods; integrative_cam.Recipe(bias='none').validate(); "
        "integrative_cam.list_methods(); print({'torch', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_names_are_the_same_objects_wherever_they_are_imported_from() -> None:
    assert integrative_cam.explain is import_module("integrative_cam.cam").explain
    assert integrative_cam.targets is import_module("integrative_cam.targets")
    with pytest.raises(AttributeError, match="module 'integrative_cam' has no attribute 'explian'"):
        integrative_cam.explian  # noqa: B018


@pytest.mark.parametrize("package", PUBLIC)
def test_no_public_name_hides_a_module(package: str) -> None:
    module = import_module(f"integrative_cam{package}")
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    hidden = {
        name
        for name in module.__all__
        if name in modules and getattr(module, name) is not import_module(f"{module.__name__}.{name}")
    }
    assert not hidden


@pytest.mark.parametrize("package", PUBLIC)
def test_modules_are_private_or_public_packages(package: str) -> None:
    """What a user may import is listed in `PUBLIC`, or is a file at the root."""
    public = {"cam", "errors", "explanation", "recipe", "storage", "app", "cli", *(name[1:] for name in PUBLIC)}
    for found in pkgutil.iter_modules(import_module(f"integrative_cam{package}").__path__):
        assert found.name.startswith("_") or (not package and found.name in public), found.name


@pytest.mark.parametrize("name", sorted({*OLD_NAMES} - {GONE}))
def test_a_name_of_the_last_release_works_and_names_the_new_one(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = getattr(import_module(module), attribute)
    said = [warning for warning in caught if issubclass(warning.category, DeprecationWarning)]
    short = name.removeprefix("integrative_cam.")
    moved = short in RENAMED or short.rpartition(".")[0] in MODULES
    if short == "methods":  # a package now, which can still be called: see below
        return
    assert len(said) == moved
    if moved:
        new = str(said[0].message).partition(" is now ")[2].partition(";")[0]
        found = pkgutil.resolve_name(new)
        assert (found.fget if isinstance(found, property) else found) is value
        assert said[0].filename == __file__


def test_a_single_name_of_the_last_release_is_gone() -> None:
    assert GONE in OLD_NAMES
    with pytest.raises(ImportError, match="cannot import name 'presented'"):
        exec("from integrative_cam.render import presented")


@pytest.mark.parametrize("module", MODULES)
def test_an_old_module_is_gone_but_can_be_imported(module: str) -> None:
    parent, _, name = f"integrative_cam.{module}".rpartition(".")
    files = Path(import_module(parent).__path__[0])
    assert not (files / f"{name}.py").exists()
    assert not (files / name).exists()
    imported: dict[str, Any] = {}
    exec(f"import integrative_cam.{module} as old", imported)
    assert imported["old"] in (import_module(f"integrative_cam.{module}"), getattr(integrative_cam, name, None))
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        exec(f"from integrative_cam.{module} import nonsense")


def test_functions_under_their_old_names(network: torch.nn.Module) -> None:
    expected = explain(network, IMAGES, 1)
    with pytest.deprecated_call(match="integrative_cam.get_method"):
        from integrative_cam import method
    with pytest.deprecated_call(match="integrative_cam.explain_trace"):
        from integrative_cam import integrate
    from integrative_cam import methods

    with pytest.deprecated_call(match="integrative_cam.list_methods"):
        assert methods() == list_methods()
    assert torch.equal(method("integrative")(network, IMAGES, 1).map, expected.map)
    found = trace(network, IMAGES, 1)
    assert torch.equal(integrate(found, Recipe()).map, explain_trace(found, Recipe()).map)
    with pytest.deprecated_call(match="explain_targets"):
        maps = integrative_cam.IntegrativeCAM(network).each(IMAGES, [0, 1])
    assert torch.equal(maps[1].map, expected.map)
    with pytest.deprecated_call(match="explain_targets"):
        maps = get_method("gradcam").each(network, IMAGES, 2)
    assert len(maps) == 2
    with pytest.deprecated_call(match="integrative_cam.explanation.Explanation.signed_map"):
        from integrative_cam.bridges import signed_map
    assert torch.equal(signed_map(expected), expected.signed_map)
    with pytest.deprecated_call(match="clamped"):
        assert expected.guarded is expected.clamped
    with pytest.deprecated_call(match="integrative_cam.errors.TargetError"):
        assert integrative_cam.TargetError is errors.TargetError
    with pytest.deprecated_call(match="integrative_cam.targets.top_classes"):
        favourites = targets.favourites
    assert favourites(torch.tensor([[1.0, 3.0, 2.0]]), 2)[0].tolist() == [1]


def test_reading_old_modules_as_tools_do_warns_of_nothing() -> None:
    """Debuggers and test runners look for attributes such as __file__ in all of `sys.modules`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in MODULES:
            assert getattr(sys.modules[f"integrative_cam.{module}"], "__warningregistry__", None) is None
            assert find_spec("integrative_cam") is not None
