"""README and docs against the repository: links, commands, examples; and docstrings, of which the reference is made."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from runs import REPOSITORY, compose_here
from test_floor_plan import FLOORS
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hawq.experiment.config.build import build_settings

DOCS = REPOSITORY / "docs"
PAGES = [*(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(DOCS.rglob("*.md"))]
HISTORY = {DOCS / "LOG.md", DOCS / "results.md", REPOSITORY / "CHANGELOG.md"}  # their commands are those of their day
SOURCES = [path for folder in ("hawq", "scripts", "examples") for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def without_code(text: str) -> str:
    """Markdown without fenced, indented and inline code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4,}\S.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]+`", "code", text)


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings that GitHub and MkDocs agree on."""
    titles = re.findall(
        r"^#+ +(.+?)\s*$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"\s", "-", title) for title in plain if title.isascii() and "  " not in title}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere, and those that leave the site."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        leaves = page.is_relative_to(DOCS) and not path.is_relative_to(DOCS)
        lost = bool(anchor) and path.is_file() and anchor not in anchors(path.read_text())
        if leaves or lost or not path.exists():
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[a](formats.md) [b](results.md#cost-of-the-analysis) [c](https://example.org/x) `[d](nowhere.md)`", []),
        ("[a](formats.txt)", ["formats.txt"]),
        ("[a](formats.md#no-such-heading)", ["formats.md#no-such-heading"]),
        ("[a](#no-such-heading)", ["#no-such-heading"]),
        ("![a](figures/none.png)", ["figures/none.png"]),
        ("[a](../README.md)", ["../README.md"]),
    ],
)
def test_broken_links_are_seen(text: str, broken: list[str]) -> None:
    assert broken_links(DOCS / "index.md", text) == broken


def test_site_shows_every_page() -> None:
    shown = re.findall(r"[\w/-]+\.md", yaml.dump(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]))
    assert sorted(shown) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def code_lines(page: Path) -> list[str]:
    """Lines of indented and fenced code, without comments."""
    text = page.read_text()
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    indented = re.findall(r"^ {4,}(\S.*)$", text, flags=re.MULTILINE)
    return [re.sub(r"\s+#.*", "", line).strip() for line in [*indented, *fenced.splitlines()]]


CURRENT = [page for page in PAGES if page not in HISTORY]
LINES = list(dict.fromkeys(line for page in CURRENT for line in code_lines(page)))
INLINE = list(dict.fromkeys(code for page in CURRENT for code in re.findall(r"`([^`\n]+)`", page.read_text())))
RUNS = [code for code in [*LINES, *INLINE] if re.match(r"(python train\.py|torchrun .*train\.py|hawq) .*\w=\S*$", code)]
RUNS += re.findall(r'make train ARGS="(\w.+?)"', "\n".join(LINES))


def overrides_of(command: str) -> list[str]:
    """Options of a command, of a sweep the first value of each."""
    words = shlex.split(command.partition("train.py")[2] or command)
    options = [word for word in words if "=" in word and not word.startswith(("-", "hydra"))]
    return [re.sub(r"(=[^\[,{]+),.*", r"\1", option) for option in options] if "-m" in words else options


@pytest.mark.parametrize("command", RUNS)
def test_commands_can_be_composed(command: str) -> None:
    options = overrides_of(command)
    keys = {option.partition("=")[0] for option in options}
    needs_path = any(option.startswith(("dataset=", "experiment=paper")) for option in options)
    extra = ["dataset.path=none"] if needs_path and "dataset.path" not in keys else []
    build_settings(compose_here(*options, *extra))


def test_there_are_commands_to_compose() -> None:
    assert len(RUNS) > 25


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]\w+)", "\n".join([*LINES, *INLINE])))))
def test_make_knows_its_targets(target: str) -> None:
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)


FILES = re.findall(r"\b(?:hawq|scripts|conf|examples|tests|requirements|docs)/[\w/.-]*\w", "\n".join([*LINES, *INLINE]))


@pytest.mark.parametrize("path", sorted({path for path in FILES if "my_" not in path and "NAME" not in path}))
def test_named_files_exist(path: str) -> None:
    assert (REPOSITORY / path).exists()


def test_architecture_has_the_floor_plan() -> None:
    """Every room, on its floor; folders end in a slash."""
    rows = re.findall(r"^\| (\d) \| (.+) \|$", (DOCS / "ARCHITECTURE.md").read_text(), flags=re.MULTILINE)
    shown: list[set[str]] = []
    for floor, rooms in rows:
        prefix = "experiment." if int(floor) == 4 else ""
        steps = [re.findall(r"`(\w+)/?`", step) for step in rooms.removeprefix("in `experiment/`:").split("→")]
        shown += [{prefix + room for room in step} for step in steps]
    planned = [set(floor) - {"hawq", "experiment"} for floor in FLOORS]
    assert shown == [rooms for rooms in planned if rooms]


def examples(page: Path) -> str:
    """The Python of a page, one block after another."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL))


def test_library_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = torch.randn(16, 3, 8, 8), torch.randint(0, 4, (16,))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    given = {"model": model, "images": images, "labels": labels, "loader": loader, "loss": F.cross_entropy}
    exec(examples(REPOSITORY / "README.md"), given)
    assert torch.equal(given["same"](images), given["small"].eval()(images))
    assert given["plan"].cost.w_comp >= 10


def test_quickstart_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(REPOSITORY / "examples" / "quickstart.py"), run_name="__main__")
    printed = capsys.readouterr().out
    said = dict(re.findall(r"^(float|quantised): ([\d.]+) %", printed, flags=re.MULTILINE))
    ((packed, whole, again),) = re.findall(r"packed: ([\d,]+) bytes, float32: ([\d,]+); .*: ([\d.]+) %", printed)
    assert float(said["float"]) > 95 and float(said["quantised"]) > float(said["float"]) - 2
    assert again == said["quantised"]
    assert int(packed.replace(",", "")) * 8 < int(whole.replace(",", ""))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_modules_say_in_one_line_what_they_are(path: Path) -> None:
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    assert first and "\n" not in first and first[-1] in ".:)"


MODULES = [named(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in SOURCES]


def described(documentation: str) -> set[str]:
    """Names in the Args of a docstring; "a, b: ..." describes two."""
    section = re.search(r"^Args:\n(.*?)(?:\n\S|\Z)", documentation, flags=re.MULTILINE | re.DOTALL)
    entries = re.findall(r"^ {4}(\S[^:]*):", section[1], flags=re.MULTILINE) if section else []
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("hawq")])
def test_described_arguments_exist(name: str) -> None:
    module = importlib.import_module(name)
    wrong = {}
    for label, found in vars(module).items():
        if getattr(found, "__module__", None) != name or not callable(found) or not found.__doc__:
            continue
        try:
            parameters = set(inspect.signature(found).parameters)
        except (TypeError, ValueError):
            continue
        odd = described(inspect.cleandoc(found.__doc__)) - parameters
        wrong |= {label: odd} if odd else {}
    assert wrong == {}
