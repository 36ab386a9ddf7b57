"""What the README names comes along: in the source distribution, and beside the package in the wheel."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _named() -> set[str]:
    """Files of the repository that the README links to."""
    return {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())}


def test_the_readme_names_files_that_exist() -> None:
    local = {name for name in _named() if not name.startswith("http")}
    assert len(local) > 10
    assert all((ROOT / name).is_file() for name in local)


def test_the_distributions_carry_what_the_readme_names() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    carried = {str(path.relative_to(ROOT)) for globs in settings.values() for glob in globs for path in ROOT.glob(glob)}
    manifest = (ROOT / "MANIFEST.in").read_text()
    for name in {name for name in _named() if not name.startswith("http")} - {"LICENSE"}:  # that one comes by itself
        assert name in carried, name
        assert f"graft {name.partition('/')[0]}" in manifest or f" {name}" in manifest or name == "README.md", name
    assert {"constraints.txt", "examples/demo.toml", "examples/attach.py"} <= carried
    assert "Makefile" in manifest
    for place, globs in settings.items():
        for glob in globs:
            folder = Path(glob).parent
            assert Path(place) == Path("share/sparsync") / folder
