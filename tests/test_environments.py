"""The versions that the package allows, and those that it is tried on: one list of bounds, and files that keep to it."""

import configparser
import pathlib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = pathlib.Path(__file__).parents[1]
CONSTRAINTS = ROOT / "tests" / "constraints"


def requirements(*parts: str) -> list[Requirement]:
    """Return what setup.cfg asks for, in these extras or in all of them."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    lists = [config["options"]["install_requires"], *(extras[name] for name in parts or extras)]
    lines = [line for text in lists for line in text.splitlines() if line and not line.startswith(("#", "%"))]
    return [Requirement(line) for line in lines]


def lower_bound(requirement: Requirement) -> str | None:
    return next((one.version for one in requirement.specifier if one.operator in (">=", "==")), None)


def pins(path: pathlib.Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_dependency_has_a_lower_bound_and_one_only():
    bounds = {}
    for requirement in requirements():
        assert lower_bound(requirement), f"{requirement.name} has no lower bound"
        assert bounds.setdefault(requirement.name, lower_bound(requirement)) == lower_bound(requirement)


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = pins(CONSTRAINTS / "oldest.txt")
    bounds = {one.name: Version(lower_bound(one)) for one in requirements("demo", "export", "test")}
    assert {name: Version(oldest[name]) for name in bounds} == bounds


@pytest.mark.parametrize("path", sorted(CONSTRAINTS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_environment_keeps_to_the_bounds(path):
    found, bounds = pins(path), requirements()
    assert {"tensorflow", "keras", "numpy"} <= found.keys()
    assert [str(one) for one in bounds if one.name in found and found[one.name] not in one.specifier] == []
