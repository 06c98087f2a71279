"""One thread per test: results do not depend on the machine's cores, and parallel test runs do not fight over them."""

import pytest
import torch

from semiseg.data.sets.digits import Digits
from semiseg.data.splits import seeded_split
from semiseg.inference.model import Model, load_model
from semiseg.recipe import recipe
from semiseg.runs import Run
from semiseg.training.run import train


@pytest.fixture(autouse=True, scope="session")
def single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A smoke run on the embedded set, trained once for all tests of a model in use."""
    data, folder = Digits(), tmp_path_factory.mktemp("runs") / "run"
    torch.set_num_threads(1)
    made = recipe("mean_teacher", "digits", "1_4", "smoke")
    return train(made, data, seeded_split(data.train, "1_4", 0), folder, progress=False)


@pytest.fixture(scope="session")
def model(run: Run) -> Model:
    return load_model(run.folder, "cpu")
