"""DDFP: the perturbation against official numbers, its identities, its options, and its place in the host."""

import copy
from pathlib import Path

import pytest
import torch
from toys import B, D, K, batch, student

from semiseg.banks import as_pixels
from semiseg.components import ConfidentLabels, NoMix
from semiseg.hosts.mean_teacher import MeanTeacher
from semiseg.methods.ddfp import DDFPOptions, DensityDescent
from semiseg.methods.flow import UNLABELED
from semiseg.types import IGNORE, Output, Target, View

GOLDEN = Path(__file__).parents[1] / "golden"


def test_perturbation_matches_official_attack() -> None:
    g = torch.load(GOLDEN / "ddfp_attack_identity.pt", weights_only=True)
    c = g["cfg"]["flow"]
    options = DDFPOptions(eps=g["eps"], tap="features", flow_hidden=c["layer_dims"])
    step = DensityDescent(c["input_dims"], c["n_components"], options)
    step.flow.load_state_dict(g["flow_state_dict"])
    target = Target.from_labels(g["label"])
    assert torch.equal(target.at((6, 7)), g["label_at_feature_size"])
    delta = step(g["features"], torch.nn.Identity(), target)
    torch.testing.assert_close(delta, g["noise"], rtol=0, atol=1e-5)
    ignored = (g["label_at_feature_size"] == IGNORE)[:, None].expand_as(delta)
    assert ignored.any() and delta[ignored].abs().max() == 0


def descent(**options) -> DensityDescent:
    torch.manual_seed(0)
    return DensityDescent(D, K, DDFPOptions(**({"flow_hidden": 16} | options)))


def everything(h: int = 8, w: int = 8) -> Target:
    return Target.from_labels(torch.zeros(2, h, w, dtype=torch.long))


def test_every_feature_moves_by_eps_and_loses_density() -> None:
    step, v = descent(eps=0.05), torch.randn(2, D, 8, 8)
    delta = step(v, torch.nn.Identity(), everything())
    torch.testing.assert_close(delta.norm(dim=1), torch.full((2, 8, 8), 0.05))
    before, after = (step.flow.log_prob(as_pixels(x)) for x in (v, v + delta))
    assert (after < before).all()
    assert not delta.requires_grad and all(p.grad is None for p in step.flow.parameters())


def test_through_the_refinement_the_direction_is_the_chain_rule() -> None:
    step, onward = descent(), torch.nn.Conv2d(20, D, 1)
    z = torch.randn(2, 20, 8, 8)
    delta = step(z, onward, everything())
    moving = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(-step.flow.log_prob(as_pixels(onward(moving))).sum(), moving)
    torch.testing.assert_close(delta, step.options.eps * g / g.norm(dim=1, keepdim=True))
    assert all(p.grad is None for p in onward.parameters())


def test_no_confident_pixel_means_no_step() -> None:
    target = everything().only(torch.zeros(2, 8, 8))
    assert torch.equal(descent()(torch.randn(2, D, 8, 8), torch.nn.Identity(), target), torch.zeros(2, D, 8, 8))


def views(labels: torch.Tensor, valid: torch.Tensor) -> tuple[View, View]:
    """A labeled view whose features are 100 + label, an unlabeled one whose features are all -7."""
    n, h, w = labels.shape

    def out(features: torch.Tensor) -> Output:
        return Output(torch.zeros(n, K, h, w), features, features[:, :0], features)

    on_x = out((100.0 + labels)[:, None].expand(n, D, h, w).clone())
    on_u = out(torch.full((n, D, h, w), -7.0))
    image = torch.zeros(n, 3, h, w)
    weak = Target(torch.zeros(n, h, w, dtype=torch.long), torch.zeros(n, h, w), valid.float())
    return View(image, Target.from_labels(labels), on_x), View(image, weak, on_u)


def test_flow_trains_on_labels_where_known_and_on_every_valid_unlabeled_pixel() -> None:
    labels = torch.randint(0, K, (2, 4, 4))
    labels[:, 0] = IGNORE
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[:, :, 0] = False
    v, y = descent()._features(*views(labels, valid))
    assert (y == UNLABELED).sum() == valid.sum(), "unconfident pixels count, padding does not"
    assert (y != UNLABELED).sum() == (labels != IGNORE).sum()
    torch.testing.assert_close(v[y != UNLABELED][:, 0], 100.0 + y[y != UNLABELED])
    assert (v[y == UNLABELED] == -7).all()


def test_sampling_equal_takes_as_many_of_each() -> None:
    labels = torch.full((2, 8, 8), IGNORE)
    labels[:, :2] = 1
    _, y = descent(sampling="equal", samples=1000)._features(*views(labels, torch.ones(2, 8, 8, dtype=torch.bool)))
    assert (y == UNLABELED).sum() == (y == 1).sum() == 32
    _, y = descent(sampling="uniform", samples=50)._features(*views(labels, torch.ones(2, 8, 8, dtype=torch.bool)))
    assert len(y) == 50


def test_observing_raises_the_likelihood_and_decays_the_rate() -> None:
    torch.manual_seed(0)
    step = descent(noise=0.0)
    labels = torch.randint(0, K, (2, 4, 4))
    seen = views(labels, labels >= 0)
    nll = [step.observe(*seen, t=0.0)["flow_nll"][0].item() for _ in range(30)]
    assert nll[-1] < nll[0]
    step.observe(*seen, t=1.0)
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.01)
    assert step.observe(*views(torch.full((2, 4, 4), IGNORE), torch.zeros(2, 4, 4)), t=0.0) == {}


def host(**options) -> MeanTeacher:
    torch.manual_seed(0)
    perturb = descent(**options.pop("step", {}))
    net = student(second_bn=options.pop("second_bn", True), dropout=0.0)
    return MeanTeacher(net, perturb=perturb, label=ConfidentLabels(0.0), mix=NoMix(), **options).train()


def test_phases_labels_then_consistency_and_flow_then_perturbation() -> None:
    h = host(unlabeled_from=0.2, perturb_from=0.4)
    first, second, third = (h.losses(batch(), t) for t in (0.1, 0.3, 0.5))
    assert set(first.losses) == {"labeled"} and not first.statistics
    assert set(second.losses) == {"labeled", "unlabeled"} and "flow_nll" in second.statistics
    assert set(third.losses) == {"labeled", "unlabeled", "perturbed"} and third.losses["perturbed"] > 0
    flips, among = third.statistics["flipped"].tolist()
    assert 0 < flips < among


@pytest.mark.parametrize("tap", ["decoder_input", "features"])
def test_the_perturbed_term_depends_on_the_step_and_trains_the_encoder(tap: str) -> None:
    still, moved = (host(step={"tap": tap, "eps": e}, second_bn=False) for e in (1e-30, 4.0))  # eps must be > 0
    quiet, loud = still.losses(batch(), 0.5).losses, moved.losses(batch(), 0.5).losses
    assert quiet["unlabeled"] == loud["unlabeled"]
    if tap == "features":  # no step, same features, same prediction
        torch.testing.assert_close(quiet["perturbed"], quiet["unlabeled"])
    assert (loud["perturbed"] - quiet["perturbed"]).abs() > 1e-3
    loud["perturbed"].backward()
    stem = next(moved.student.backbone.parameters())
    assert stem.grad is not None and stem.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.abs().sum() for p in moved.teacher.parameters())


def test_weights_of_the_two_unlabeled_terms() -> None:
    code, text = (host(perturbed_weights=w).losses(batch(), 0.5).losses for w in ((0.5, 0.5), (1.0, 0.5)))
    torch.testing.assert_close(text["unlabeled"], 2 * code["unlabeled"])
    torch.testing.assert_close(text["perturbed"], code["perturbed"])


def test_perturbed_features_leave_the_main_statistics_alone() -> None:
    h = host()
    plain = copy.deepcopy(h)
    plain.perturb = None
    h.losses(batch(), 0.5)
    plain.losses(batch(), 0.5)
    for (name, ours), theirs in zip(h.student.named_buffers(), plain.student.buffers(), strict=True):
        assert torch.equal(ours, theirs) != (".second." in name), name


def test_segmentation_losses_never_reach_the_flow_nor_the_flow_the_student() -> None:
    h = host()
    before = copy.deepcopy(h.perturb.flow.state_dict())
    losses = h.losses(batch(), 0.5).losses
    assert any(not torch.equal(v, before[k]) for k, v in h.perturb.flow.state_dict().items()), "the flow took a step"
    assert all(p.grad is None for p in h.student.parameters())
    own = [p.grad.clone() for p in h.perturb.flow.parameters() if p.requires_grad]
    sum(losses.values()).backward()
    assert all(
        torch.equal(p.grad, g)
        for p, g in zip((p for p in h.perturb.flow.parameters() if p.requires_grad), own, strict=True)
    )


def test_self_teacher_is_the_student_in_training_mode() -> None:
    h = host(decay=0.0, own_statistics=True)
    with torch.no_grad():
        h.student.classify.weight.add_(1.0)
    h.after_step()
    torch.testing.assert_close(h.teacher.model.classify.weight, h.student.classify.weight)
    assert h.teacher.model.training
    h.losses(batch(), 0.5)
    ours, theirs = h.teacher.model.reduce[1].running_mean, h.student.reduce[1].running_mean
    assert not torch.equal(ours, theirs), "own running statistics"


def test_unequal_batches_and_one_without_confident_pixels() -> None:
    h = host()
    assert h.losses(batch(labeled=B - 1), 0.5).losses["perturbed"] > 0
    h.label = ConfidentLabels(0.9999)
    step = h.losses(batch(), 0.5)
    assert step.losses["perturbed"].item() == 0 and step.losses["unlabeled"].item() == 0
    sum(step.losses.values()).backward()


def test_flow_and_its_adam_are_in_the_state() -> None:
    a, b = host(), host()
    for seed in range(3):
        a.losses(batch(seed), 0.5)
    state = copy.deepcopy(a.state_dict())
    b.load_state_dict(state)
    torch.manual_seed(7)
    want = a.losses(batch(9), 0.5).statistics["flow_nll"], copy.deepcopy(a.perturb.flow.state_dict())
    torch.manual_seed(7)
    got = b.losses(batch(9), 0.5).statistics["flow_nll"], b.perturb.flow.state_dict()
    assert torch.equal(want[0], got[0]) and all(torch.equal(want[1][k], got[1][k]) for k in want[1])
