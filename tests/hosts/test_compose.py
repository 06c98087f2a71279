"""Every scheme with every plug-in, by argument alone: a step is finite, learns from unlabeled pixels, and is logged."""

from pathlib import Path

import pytest
import torch
import toys
from torch import Tensor

from semiseg.build import build
from semiseg.inference.model import load_exported
from semiseg.methods.upc import UPCOptions
from semiseg.methods.wpl import WPLOptions, with_alpha
from semiseg.recipe import recipe
from semiseg.registry import methods
from semiseg.training.checkpoint import write_tensors
from semiseg.types import IGNORE, Batch, Output, Target

UNLABELED = [name for name, method in methods().items() if method.unlabeled]


def batch(method: str) -> Batch:
    """Also what WPL, ST++ and UniMatch ask for."""
    one = toys.batch()
    g = torch.Generator().manual_seed(1)
    extra = one._replace(
        u_given=torch.randint(0, toys.K, one.u_hidden.shape, generator=g),
        u_entropy=torch.rand(one.u_hidden.shape, generator=g),
        u_boxes=torch.ones(toys.B, toys.K, toys.S, toys.S, dtype=torch.bool),
    )
    return extra._replace(u_strong=torch.cat((one.u_strong, one.u_strong.flip(1)))) if method == "unimatch" else extra


def test_labels_alone_are_learned_from_by_one_method_alone() -> None:
    assert set(methods()) - set(UNLABELED) == {"supervised"}


@pytest.mark.parametrize("wpl", [None, WPLOptions(sure=0.0)], ids=["", "wpl"])
@pytest.mark.parametrize("upc", [None, UPCOptions(), UPCOptions(rows="all")], ids=["", "upc", "upc-rows"])
@pytest.mark.parametrize("method", UNLABELED)
def test_one_step(method: str, upc: UPCOptions | None, wpl: WPLOptions | None) -> None:
    torch.manual_seed(0)
    plugged = [part for part in (upc, wpl) if part is not None]
    host = build(recipe(method, "digits", "1_8", "smoke").having(*plugged), toys.K).train()
    step = host.losses(batch(method), 0.9)
    assert all(torch.isfinite(loss) for loss in step.losses.values())
    of_unlabeled = [loss for name, loss in step.losses.items() if not name.startswith(("labeled", "auxiliary"))]
    assert of_unlabeled and min(of_unlabeled) > 0
    sum(step.losses.values()).backward()
    assert all(p.grad is None for p in host.teacher.parameters())
    host.after_step()

    shares = {name: float(total / count) for name, (total, count) in step.statistics.items()}
    assert ("weight" in shares) == (wpl is not None) and ("replaced" in shares) == (upc is not None)
    if wpl is not None:
        assert 1 < shares["weight"] <= 2
        assert int(host.weigh.labeled.filled.sum()) > 0 and int(host.weigh.unlabeled.filled.sum()) > 0
    if upc is not None:
        low, high = (2 / 16, 5 / 16) if upc.rows == "sample" else (10 / 48, 10 / 48)
        assert low - 1e-6 <= shares["replaced"] <= high + 1e-6
        assert shares["noise_after"] < shares["noise_before"]


@pytest.mark.parametrize("method", ["mean_teacher", "unimatch", "augseg", "ael", "u2pl"])
def test_alpha_scales_the_unlabeled_terms_of_wpls_hosts_alone(method: str) -> None:
    found = []
    for alpha in (1.0, 0.4, 0.0):
        torch.manual_seed(0)
        made = with_alpha(recipe(method, "digits", "1_8", "smoke").having(WPLOptions(sure=0.0)), alpha)
        found.append(build(made, toys.K).train().losses(batch(method), 0.9).losses)
    one, less, none = found
    for name, value in one.items():
        alone = name in ("labeled", "auxiliary")
        torch.testing.assert_close(less[name], value if alone else 0.4 * value)
        torch.testing.assert_close(none[name], value if alone else 0 * value)
    with pytest.raises(ValueError, match="unknown host with a factor alpha 'cps'; expected one of mean_teacher"):
        with_alpha(recipe("cps"), 0.4)


def test_labels_alone_have_nothing_to_replace() -> None:
    with pytest.raises(ValueError, match="UPC changes unlabeled images, and supervised has none"):
        recipe("supervised").having(UPCOptions())


@pytest.mark.parametrize("method", [name for name in methods() if name != "mask2former"])
def test_the_auxiliary_head_learns_labeled_images_on_every_host(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = {"network.backbone": "resnet18", "network.weights": None, "network.auxiliary": 0.4}
    made, given = recipe(method, "digits", "1_8", "smoke").changed(network), batch(method)
    host, seen = build(made, toys.K).train(), []
    criterion = host.criterion

    def watched(output: Output, target: Target) -> Tensor:
        seen.append((output.logits, target, criterion(output, target)))
        return seen[-1][-1]

    host.criterion = watched
    losses = host.losses(given, 0.9).losses
    names = ["labeled", "auxiliary_head", *(["labeled_other", "auxiliary_head_other"] if method == "cps" else [])]
    assert [
        name for name in losses if name.startswith(("labeled", "auxiliary_head")) and "consistency" not in name
    ] == names
    for i in range(0, len(names), 2):
        (_, target, labeled), (logits, target_of_head, of_head) = seen[i : i + 2]
        assert target is target_of_head and len(logits) == len(given.x)
        assert torch.equal(target.weight > 0, given.y != IGNORE)
        torch.testing.assert_close(losses[names[i + 1]] / losses[names[i]], 0.4 * of_head / labeled)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in host.student.auxiliary.parameters())

    host.after_step()
    state = host.exported_state()
    assert state and not any("auxiliary." in key for key in state if key.startswith("teacher."))
    write_tensors(state, tmp_path / "model.safetensors")
    read = load_exported(made, toys.K, tmp_path / "model.safetensors").networks()["teacher"]
    wanted = host.networks()["teacher"].eval()
    torch.testing.assert_close(read(given.x).logits, wanted(given.x).logits, rtol=0, atol=0)
