"""Settings that every test shares."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # `import hawq` from a checkout that is not installed


def pytest_configure() -> None:
    torch.set_num_threads(1)  # the networks are tiny: on a busy machine a second thread makes them six times slower


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
