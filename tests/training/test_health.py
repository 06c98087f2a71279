"""A number that is none stops a run at once: there is no record and no export, and the last checkpoint is good."""

from pathlib import Path

import pytest
import torch
from toys import Blobs

from semiseg import registry
from semiseg.data.splits import seeded_split
from semiseg.recipe import recipe
from semiseg.training.checkpoint import checkpoints, load_state
from semiseg.training.health import Health, NotFinite
from semiseg.training.run import train
from semiseg.types import Batch, Host, Step

DATA = Blobs()
SPLIT = seeded_split(DATA.train, "1_4", 0)


def poisoned(monkeypatch: pytest.MonkeyPatch, name: str, at: int, value: float) -> None:
    """Make the last loss term of a method not finite in its step number `at`."""
    method = registry.method(name)
    host = type(method.build(recipe(name, "digits", "1_4", "smoke"), 4))
    real, calls = host.losses, []

    def losses(self: Host, batch: Batch, t: float) -> Step:
        step = real(self, batch, t)
        calls.append(t)
        if len(calls) == at + 1:
            term = list(step.losses)[-1]
            step.losses[term] = step.losses[term] + value
        return step

    monkeypatch.setattr(host, "losses", losses)


@pytest.mark.parametrize("name", [name for name, method in registry.methods().items() if not method.stages])
def test_no_method_trains_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, name, at=5, value=float("nan"))
    with pytest.raises(NotFinite, match=r"the loss term '\w+' was not finite at step 5 \(images train-\d+, "):
        train(recipe(name, "digits", "1_4", "smoke"), DATA, SPLIT, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists() and not list(tmp_path.rglob("run.json"))
    (last,) = checkpoints(tmp_path / "run.partial")
    assert load_state(last)["step"] == 4, "two epochs of two steps were finished before"


def test_a_stopped_run_goes_on_from_its_last_good_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe("mean_teacher", "digits", "1_4", "smoke")
    whole = train(made, DATA, SPLIT, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patched, pytest.raises(NotFinite):
        poisoned(patched, "mean_teacher", at=5, value=float("inf"))
        train(made, DATA, SPLIT, tmp_path / "run", progress=False)
    assert train(made, DATA, SPLIT, tmp_path / "run", progress=False).miou == whole.miou


def test_a_rate_that_throws_weights_away_is_no_result(tmp_path: Path) -> None:
    made = recipe("supervised", "digits", "1_4", "smoke").changed("optimization.lr=1e30 optimization.optimizer=sgd")
    with pytest.raises(NotFinite, match=r"not finite (at step|after epoch) .* a lower learning rate"):
        train(made, DATA, SPLIT, tmp_path / "run", progress=False)
    assert not list(tmp_path.rglob("run.json")) and not list(tmp_path.rglob("model.safetensors"))


def test_a_gpu_is_asked_every_so_often_and_at_the_end_of_an_epoch() -> None:
    health = Health(lambda step: (["a"], ["b"]), torch.device("cpu"))
    health.every = 20
    one = torch.tensor(1.0)
    for step in range(19):
        health.see(step, {"labeled": one, "unlabeled": one / 0 if step == 7 else one})
    with pytest.raises(NotFinite, match=r"'unlabeled' was not finite at step 7 \(images a, b, "):
        health.see(19, {"labeled": one, "unlabeled": one})
    weights = torch.nn.Linear(1, 1)
    fresh = Health(health.ids, torch.device("cpu"))
    fresh.check_weights(weights, 1)
    torch.nn.init.constant_(weights.bias, float("inf"))
    with pytest.raises(NotFinite, match="1 tensors, bias among them, are not finite after epoch 1"):
        fresh.check_weights(weights, 1)
