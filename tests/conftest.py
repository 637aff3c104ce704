"""Settings that every test shares."""

import pytest
import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)  # the networks are tiny: on a busy machine a second thread makes them six times slower


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
