"""What `pip install .` gives: the wheel's files, its requirements and its command."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from runs import REPOSITORY, files_below

LISTS = {path.stem: path for path in (REPOSITORY / "requirements").glob("*.txt")} | {
    "": REPOSITORY / "requirements.txt"
}
CHECKERS = {"pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"}
ESTIMATE = {"value": 0.0, "error": 0.0, "products": 0, "converged": True}
ERRORS = {str(bits): 4.0**-bits for bits in range(2, 9)}
SOURCES = (
    *("pyproject.toml", "setup.py", "requirements.txt", "requirements", "hawq", "conf"),
    *("README.md", "LICENSE", "NOTICE"),
)


def requirements(path: Path) -> list[Requirement]:
    """The requirements of a list, without comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of a copy of the sources, so that nothing is left in the repository."""
    sources, folder = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    for name in SOURCES:
        path = REPOSITORY / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, sources / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('wheels')"
    done = subprocess.run([sys.executable, "-c", build], cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (sources / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def python(installed: Path, folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in `folder`, where it finds the unpacked wheel in place of the repository."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_wheel_holds_every_module_and_every_option(installed: Path) -> None:
    files = {name for name in files_below(installed) if (installed / name).is_file() and ".dist-info/" not in name}
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "hawq").rglob("*.py")}
    options = {f"hawq/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assets = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "hawq/report/assets").iterdir()}
    assert files == modules | options | assets | {"hawq/py.typed"} and "hawq/report/assets/page.css" in assets


def test_wheel_requires_what_runs_and_no_more(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info/METADATA")
    stated = [Requirement(line) for line in Parser().parsestr(metadata.read_text()).get_all("Requires-Dist", [])]
    plain = {one.name: one.specifier for one in stated if one.marker is None}
    assert plain == {one.name: one.specifier for one in requirements(LISTS[""])}
    assert not CHECKERS & plain.keys()
    for extra in LISTS.keys() - {""}:
        named = {one.name for one in stated if one.marker and one.marker.evaluate({"extra": extra})}
        assert named == {one.name for one in requirements(LISTS[extra])}


def test_licence_and_notice_are_in_the_wheel(installed: Path) -> None:
    (licences,) = installed.glob("*.dist-info/licenses")
    for name in ("LICENSE", "NOTICE"):
        assert (licences / name).read_bytes() == (REPOSITORY / name).read_bytes()


def test_library_is_imported_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = python(installed, tmp_path, "import hawq; print(hawq.__file__, hawq.__version__)")
    (metadata,) = installed.glob("*.dist-info/METADATA")
    version = Parser().parsestr(metadata.read_text())["Version"]
    assert done.stdout.split() == [str(installed / "hawq" / "__init__.py"), version], done.stderr
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == version
    assert f"## [{version}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_command_allocates_from_a_file_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    (entry,) = re.findall(
        r"^hawq = (\S+):(\w+)$", next(installed.glob("*.dist-info/entry_points.txt")).read_text(), re.M
    )
    block = {"layers": ["conv"], "num_weights": 100}
    rows = [
        {"block": {**block, "name": name}, "eigenvalue": {**ESTIMATE, "value": value}, "weight_errors": ERRORS}
        for name, value in (("stem", 3.0), ("head", 1.0))
    ]
    content = {"schema": "hawq.sensitivity/2", "solver": "hand", "num_samples": 1, "loss": 0.0, "rows": rows}
    (tmp_path / "sensitivity.json").write_text(json.dumps(content))
    options = ("stages=[allocation]", "allocation.sensitivity=sensitivity.json", "tracking=none", "bits.target=8")
    code = "import sys; from {0} import {1}; sys.argv[0] = 'hawq'; {1}()".format(*entry)
    done = python(installed, tmp_path, code, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    (plan,) = (tmp_path / "outputs" / "runs").glob("*/plan.json")
    precisions = json.loads(plan.read_text())["precisions"]
    assert sum(bits["weight_bits"] for bits in precisions.values()) == 8


@pytest.mark.parametrize(
    "requirement", [one for path in LISTS.values() for one in requirements(path)], ids=lambda one: one.name
)
def test_every_requirement_has_both_bounds(requirement: Requirement) -> None:
    assert {">=", "<"} <= {one.operator for one in requirement.specifier}


def edits_of_the_path(source: str) -> list[int]:
    """Lines of a source that mention sys.path outside of strings and comments."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr == "path"]
    return sorted(node.lineno for node in found if isinstance(node.value, ast.Name) and node.value.id == "sys")


def test_nobody_edits_the_path() -> None:
    folders = ("hawq", "scripts", "tests", "examples")
    sources = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    assert [str(path) for path in sources if edits_of_the_path(path.read_text())] == []
    assert edits_of_the_path("import sys\nsys.path.insert(0, 'x')\nsys.path[:0] = []\n'sys.path'") == [2, 3]
