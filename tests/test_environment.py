"""The three lists of what to install agree: pyproject.toml, requirements.lock, environment.yml."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dalle3lib import __version__
from dalle3lib.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = PROJECT["dependencies"] + EXTRAS["dev"]
# what `make test` installs besides
TESTED = [text for extra in ("data", "cluster", "gpu", "cider", "label") for text in EXTRAS[extra]]


def lock(file: str = "requirements.lock") -> dict[str, Version]:
    """The pinned version of every package in a lock file."""
    pins = {}
    for line in (ROOT / file).read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert canonicalize_name(name) not in pins, f"{name} is pinned twice"
            pins[canonicalize_name(name)] = Version(version)
    return pins


@pytest.mark.parametrize("text", NEEDED)
def test_the_lock_pins_every_dependency_inside_its_range(text):
    requirement = Requirement(text)
    assert requirement.specifier.contains(lock()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("text", TESTED)
def test_the_extras_that_are_tested_are_pinned_apart(text):
    requirement = Requirement(text)
    pins = lock("requirements-extras.lock")
    assert requirement.specifier.contains((lock() | pins)[canonicalize_name(requirement.name)])
    assert not pins.keys() & lock().keys()


def test_every_pin_of_the_extras_is_what_is_installed():
    """Their own needs are in one of the locks, in a version they accept."""
    pins = lock("requirements-extras.lock")
    for name, version in pins.items():
        installed = metadata.distribution(name)
        assert Version(installed.version) == version
        for needed in map(Requirement, installed.requires or []):
            if needed.marker is None or needed.marker.evaluate():
                found = (lock() | pins)[canonicalize_name(needed.name)]
                assert needed.specifier.contains(found), f"{name} needs {needed}"


def test_torch_is_exact():
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(PROJECT["dependencies"])
    assert (lock()["torch"], lock()["torchvision"]) == (Version("2.14.1"), Version("0.29.1"))


def test_the_lock_serves_the_cpu_wheel_too():
    assert not [name for name in lock() if re.match(r"nvidia-|cuda-|triton", name)]


def test_the_conda_environment_uses_the_same_lock_and_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert "conda-forge" in environment["channels"]
    assert {"python=3.11", "pip"} <= {d for d in environment["dependencies"] if isinstance(d, str)}
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-r requirements.lock", "-e ."]
    assert "3.11" in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_everything_the_package_imports_is_a_dependency():
    """Third-party imports anywhere in dalle3lib come from a core dependency or from its parts.

    An optional one is imported inside the function that needs it.
    """
    code = [path.read_text() for path in (ROOT / "dalle3lib").rglob("*.py")]
    names = {n for text in code for n in re.findall(r"^\s*(?:import|from) (\w+)", text, re.M)}
    always = {n for text in code for n in re.findall(r"^(?:import|from) (\w+)", text, re.M)}
    extras = [n for some in PROJECT["optional-dependencies"].values() for n in some]
    optional = {canonicalize_name(Requirement(text).name) for text in extras}
    names = {n for n in names if n in always or canonicalize_name(n) not in optional}
    provided = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    provided |= {"dalle3lib", "pil", "yaml", "open-clip"}  # imported under another name
    provided |= {"nbformat", "nbclient", "ipython", "traitlets"}  # parts of the above, like these
    provided |= {"tokenizers", "sphinx", "docutils"}
    unknown = {n for n in names if canonicalize_name(n) not in provided}
    assert unknown - sys.stdlib_module_names == set()


def test_make_help_lists_every_target():
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], capture_output=True, text=True, cwd=ROOT
    ).stdout
    names = [line.split()[0] for line in listed.splitlines()]
    assert names == "help book test lab lint bench soak study clean".split()
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert phony.split() == names


def test_make_book_passes_its_choices_on():
    command = [
        "make",
        "--no-print-directory",
        "--dry-run",
        "book",
        "PRESET=smoke",
        "DATA=my photos",
    ]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    assert '-m dalle3lib graph --preset "smoke" --data "my photos"' in said


def test_the_version_is_the_packages():
    assert PROJECT["dynamic"] == ["version"] and Version(__version__)
