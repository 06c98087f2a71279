"""One thread per test: results do not depend on the machine's cores, and parallel test runs do not fight over them."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def single_thread() -> None:
    torch.set_num_threads(1)
