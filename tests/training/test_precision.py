"""Mixed precision: half precision inside networks, float32 everywhere else, on one device and on several."""

from pathlib import Path

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.utils._pytree import tree_leaves
from toys import Blobs

from semiseg import registry
from semiseg.build import build
from semiseg.data.loader import training_batches
from semiseg.data.sets.digits import Digits
from semiseg.data.splits import seeded_split
from semiseg.recipe import recipe
from semiseg.training.precision import Mixed, chosen, plug_in
from semiseg.training.run import train
from semiseg.types import Host

DIGITS, BLOBS = Digits(), Blobs(train=32)


def step(name: str, precision: str) -> tuple[Host, dict[str, float], dict[str, set[torch.dtype]]]:
    """One step of a method: its losses, and the types of what convolutions, networks and the rest hand on."""
    made = recipe(name, "digits", "1_8", "smoke")
    torch.manual_seed(0)
    host = build(made, len(DIGITS.classes)).train()
    Mixed(host, precision)
    kinds = tuple({type(network) for network in host.networks().values()})
    inside = {m for n in host.modules() if isinstance(n, kinds) for m in n.modules()}
    seen: dict[str, set[torch.dtype]] = {"convolution": set(), "network": set(), "rest": set()}

    def note(module: nn.Module, _: object, output: object) -> None:
        place = "network" if isinstance(module, kinds) else "rest"
        if module in inside and not isinstance(module, kinds):
            if not isinstance(module, nn.Conv2d):
                return
            place = "convolution"
        seen[place] |= {x.dtype for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()}

    hooks = [module.register_forward_hook(note) for module in host.modules()]
    o, method = made.optimization, registry.method(name)
    (batch,) = training_batches(
        DIGITS, seeded_split(DIGITS.train, "1_8", 0), crop=o.crop, scale=o.resize, batch=o.batch, steps=1, seed=0,
        unlabeled=method.unlabeled, **method.loading(made),
    )  # fmt: skip
    if method.stages:
        given = torch.where(batch.u_hidden == 255, 0, batch.u_hidden)
        batch = batch._replace(u_given=given, u_entropy=torch.rand(given.shape))
    torch.manual_seed(1)
    result = host.losses(batch, 0.5)
    for hook in hooks:
        hook.remove()
    kept = [x for x in (*result.losses.values(), *host.state_dict().values()) if isinstance(x, Tensor)]
    seen["rest"] |= {x.dtype for x in kept if x.is_floating_point()}
    torch.stack(list(result.losses.values())).sum().backward()
    seen["rest"] |= {p.grad.dtype for p in host.parameters() if p.grad is not None}
    return host, {k: v.item() for k, v in result.losses.items()}, seen


@pytest.mark.parametrize("name", registry.methods())
def test_networks_compute_in_half_precision_and_nothing_else_does(name: str) -> None:
    _, half, seen = step(name, "bf16-mixed")
    assert torch.bfloat16 in seen["convolution"] and torch.bfloat16 not in seen["network"] | seen["rest"]
    _, full, seen = step(name, "32-true")
    assert torch.bfloat16 not in seen["convolution"]
    assert half != full and half == pytest.approx(full, rel=0.05, abs=0.02)


def test_scores_are_of_the_network_in_float32() -> None:
    host, *_ = step("mean_teacher", "32-true")
    image = torch.rand(1, 3, 32, 32)
    network = host.eval().networks()["student"]
    wanted = network(image).logits
    mixed = Mixed(host, "bf16-mixed")
    assert not torch.equal(network(image).logits, wanted)
    with mixed.off():
        assert torch.equal(network(image).logits, wanted)
    assert not torch.equal(network(image).logits, wanted)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_trains_and_records_the_precision_it_was_asked_for(devices: int, tmp_path: Path) -> None:
    split, runs = seeded_split(BLOBS.train, "1_4", 0), {}
    for precision in ("32-true", "bf16-mixed"):
        made = recipe("mean_teacher", "digits", "1_4", "smoke").changed({"optimization.precision": precision})
        runs[precision] = train(made, BLOBS, split, tmp_path / precision, devices=devices, progress=False)
        assert runs[precision].record["environment"]["precision"] == precision
    full, half = (run.metrics.loss_labeled for run in runs.values())
    assert half.tolist() != full.tolist() and half[0] == pytest.approx(full[0], rel=0.02)


def test_what_auto_means_and_what_needs_a_gpu() -> None:
    assert [chosen("auto", device) for device in ("cpu", "cuda")] == ["32-true", "bf16-mixed"]
    assert chosen("32-true", "cuda") == "32-true"
    with pytest.raises(ValueError, match="16-mixed needs a GPU"):
        chosen("16-mixed", "cpu")
    assert plug_in("32-true", "cpu").precision == "32-true"
    with plug_in("bf16-mixed", "cpu").forward_context():
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_precision_that_needs_a_gpu_stops_before_anything_is_written(tmp_path: Path) -> None:
    made = recipe("supervised", "digits", "1_4", "smoke").changed({"optimization.precision": "16-mixed"})
    with pytest.raises(ValueError, match="16-mixed needs a GPU"):
        train(made, BLOBS, seeded_split(BLOBS.train, "1_4", 0), tmp_path / "runs/run", progress=False)
    assert not list(tmp_path.iterdir())


def test_scores_that_fail_leave_the_precision_as_it_was() -> None:
    host, *_ = step("mean_teacher", "32-true")
    mixed = Mixed(host, "bf16-mixed")
    with pytest.raises(ZeroDivisionError), mixed.off():
        _ = 1 / 0
    assert mixed.dtype is torch.bfloat16
