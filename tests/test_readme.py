"""The README's tree, commands and library example against the code."""

import re

import pytest
from runs import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
FILES = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (*REPOSITORY.glob("hawq/**/*.py"), *REPOSITORY.glob("scripts/*.py"))
    if path.name != "__init__.py"
)
TREE = re.findall(r"^ {4}((?:hawq|scripts)/\S+\.py) {2,}\S", README, flags=re.MULTILINE)


def test_tree_has_one_line_for_each_file():
    assert sorted(TREE) == FILES


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)]+)\)", README))
def test_links_lead_somewhere(link):
    assert (REPOSITORY / link).exists()


@pytest.mark.parametrize("target", re.findall(r"^ {4}make (\w+)", README, flags=re.MULTILINE))
def test_commands_are_in_the_makefile(target):
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
