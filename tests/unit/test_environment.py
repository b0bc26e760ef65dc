"""environment.yml, requirements.txt and what is installed are one."""

from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def requirements(path: Path) -> list[Requirement]:
    lines = (line.split(" #")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]


def conda_pins(text: str) -> list[Requirement]:
    (pip,) = (entry["pip"] for entry in yaml.safe_load(text)["dependencies"] if isinstance(entry, dict))
    return [Requirement(line) for line in pip]


def differences(environment: str, pins: list[Requirement]) -> set[str]:
    """Requirements that stand in only one of the two."""
    return {str(pin) for pin in conda_pins(environment)} ^ {str(pin) for pin in pins}


def not_installed(pins: list[Requirement]) -> list[str]:
    """Pins of which another version is installed; '2.13.0+cpu' is a build of 2.13.0."""
    return [f"{pin}, not {found}" for pin in pins if (found := metadata.version(pin.name)) not in pin.specifier]


def test_environment_yml_lists_the_pins_of_requirements_txt():
    assert differences((ROOT / "environment.yml").read_text(), requirements(ROOT / "requirements.txt")) == set()


def test_a_changed_a_missing_and_an_extra_pin_are_noticed():
    text, pins = (ROOT / "environment.yml").read_text(), requirements(ROOT / "requirements.txt")
    assert differences(text.replace("zarr==3.1.6", "zarr==3.1.5"), pins) == {"zarr==3.1.5", "zarr==3.1.6"}
    assert differences(text.replace("      - lmdb==3.0.0\n", ""), pins) == {"lmdb==3.0.0"}
    assert differences(text + "      - einops==0.8.2\n", pins) == {"einops==0.8.2"}


def test_every_requirement_is_an_exact_pin():
    for pin in requirements(ROOT / "requirements.txt") + requirements(ROOT / "requirements-dev.txt"):
        assert [spec.operator for spec in pin.specifier] == ["=="], pin


def test_what_is_installed_is_what_is_pinned():
    assert not_installed(requirements(ROOT / "requirements.txt")) == []
    assert not_installed(requirements(ROOT / "requirements-dev.txt")) == []


def test_another_installed_version_is_noticed():
    assert not_installed([Requirement("pyyaml==5.4")]) == [f"pyyaml==5.4, not {metadata.version('pyyaml')}"]
