"""What the packages hold beside Python files is installed with them."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def not_installed(package_data: dict[str, list[str]]) -> list[str]:
    """Tracked kinds of files in the packages that no pattern of `package_data` covers."""
    covered = {
        path
        for package, patterns in package_data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    found = [path for top in ("sharding", "fusmae", "pipeline", "slurm") for path in (ROOT / top).rglob("*")]
    data = [path for path in found if path.is_file() and path.suffix in (".j2", ".sh", ".md", ".yaml", ".json")]
    return sorted(str(path.relative_to(ROOT)) for path in data if path not in covered)


def test_every_template_and_script_is_package_data():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert not_installed(settings["package-data"]) == []


def test_a_template_that_would_be_left_out_is_noticed():
    assert "pipeline/export/templates/model_card.md.j2" in not_installed({})
