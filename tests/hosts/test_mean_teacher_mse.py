"""Mean teacher with soft targets: the loss, its rise, the teacher, and what pasted labels become."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mixers import Copies, LeftHalf, Thrice
from toys import B, K, S, batch, student

from semiseg.build import build
from semiseg.components import UniformWeight
from semiseg.hosts.mean_teacher_mse import MeanTeacherMSEOptions, SoftMeanTeacher, ramp_up
from semiseg.losses import squared_error
from semiseg.methods.upc import UPCOptions
from semiseg.methods.wpl import WPLOptions
from semiseg.recipe import reading, recipe
from semiseg.types import IGNORE, Mixer, PixelWeighter, Target, View


def host(
    mix: Mixer | None = None, weigh: PixelWeighter | None = None, own_statistics: bool = False, **options
) -> SoftMeanTeacher:
    torch.manual_seed(0)
    own = MeanTeacherMSEOptions(**options)
    return SoftMeanTeacher(student(dropout=0.0), own, mix=mix, weigh=weigh, own_statistics=own_statistics).train()


def soft(seed: int = 0) -> tuple[torch.Tensor, Target]:
    g = torch.Generator().manual_seed(seed)
    logits, label = torch.randn(2, K, 6, 6, generator=g), torch.randn(2, K, 6, 6, generator=g).softmax(1)
    weight = (torch.rand(2, 6, 6, generator=g) > 0.3).float()
    return logits.requires_grad_(), Target(label, weight, weight)


def test_squared_error_is_the_mean_over_pixels_and_classes() -> None:
    logits, target = soft()
    kept = target.weight.bool()
    by_hand = F.mse_loss(logits.softmax(1).movedim(1, -1)[kept], target.label.movedim(1, -1)[kept])
    torch.testing.assert_close(squared_error(logits, target), by_hand)
    torch.testing.assert_close(squared_error(logits, target, "sum"), K * by_hand)


def test_squared_error_of_hard_labels_is_that_of_one_hot_ones() -> None:
    logits, target = soft()
    hard = replace(target, label=target.hard)
    assert squared_error(logits, hard) == squared_error(logits, hard.like(target))


def test_nothing_supervised_is_zero_with_a_gradient() -> None:
    logits, target = soft()
    nothing = torch.zeros_like(target.weight)
    loss = squared_error(logits, Target(target.label, nothing, nothing))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_ramp_up_values() -> None:
    assert [ramp_up(t, 0.1) for t in (0.0, 0.05, 0.1, 0.7)] == [math.exp(-5), math.exp(-5 / 4), 1.0, 1.0]
    assert ramp_up(0.0, 0.0) == 1.0


def test_losses_are_the_formulas() -> None:
    h, b = host(), batch()
    reference = copy.deepcopy(h)
    step = h.losses(b, 0.5)
    goal = reference.teacher.model(b.u_weak).logits.softmax(1)
    logits = reference.student(torch.cat((b.x, b.u_strong[0]))).logits
    difference = (logits[B:].softmax(1) - goal).square().mean(1)[b.u_valid].mean()
    torch.testing.assert_close(step.losses["unlabeled"], 100 * difference)
    torch.testing.assert_close(step.losses["labeled"], F.cross_entropy(logits[:B], b.y, ignore_index=IGNORE))
    assert step.losses["unlabeled"] > 0


def test_the_weight_rises_over_the_first_tenth() -> None:
    early, late, always = (
        host(ramp_up=share).losses(batch(), t).losses["unlabeled"] for share, t in ((0.1, 0.0), (0.1, 0.1), (0.0, 0.0))
    )
    torch.testing.assert_close(early, late * math.exp(-5))
    assert late == always


def test_the_quoted_rerun_compares_equal_networks_on_equal_images() -> None:
    """TorchSemiSeg: with one image for both and statistics of the batch, only the averaging makes a difference."""
    options = {"color": False, "on_labeled": True, "own_statistics": True, "ramp_up": 0.0}
    h, b = host(**options), batch()
    assert h.losses(b, 0.0).losses["unlabeled"].item() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        h.student.classify.bias[0] += 1
    step = h.losses(b, 0.0)
    goal, said = (net(torch.cat((b.x, b.u_weak))).logits.softmax(1) for net in (h.teacher.model, h.student))
    counted = torch.cat((torch.ones_like(b.u_valid), b.u_valid))
    by_hand = 100 * (said - goal).square().mean(1)[counted].mean()
    torch.testing.assert_close(step.losses["unlabeled"], by_hand)
    bias = h.student.classify.bias
    gradients = [torch.autograd.grad(loss, bias)[0] for loss in (step.losses["unlabeled"], by_hand)]
    torch.testing.assert_close(*gradients)
    assert host(**options | {"own_statistics": False}).losses(b, 0.0).losses["unlabeled"] > 1e-3


@pytest.mark.parametrize("own", [False, True])
def test_the_teacher_is_the_average_of_all_students(own: bool) -> None:
    """While 1 - 1 / (it + 1) < decay the moving average is the plain mean; buffers too unless it has its own."""
    h = host(own_statistics=own)
    name = "backbone.low.0.1.running_mean"
    seen = [{k: v.clone() for k, v in h.student.state_dict().items()}]
    for i in range(4):
        with torch.no_grad():
            for value in h.student.state_dict().values():
                value.add_(i + 1)
        h.after_step()
        seen.append({k: v.clone() for k, v in h.student.state_dict().items()})
    teacher = h.teacher.model.state_dict()
    for k in ("classify.weight", name):
        mean = torch.stack([s[k] for s in seen]).mean(0)
        torch.testing.assert_close(teacher[k], seen[0][k] if own and k == name else mean)


class Spy(UniformWeight):
    def observe(self, labeled: View, mixed: View) -> None:
        self.mixed = mixed


def test_pasted_pixels_are_pulled_to_the_one_hot_label() -> None:
    spy, b = Spy(), batch()
    step = host(mix=LeftHalf(), weigh=spy).losses(b, 1.0)
    target, half, known = spy.mixed.target, S // 2, b.y[:, :, : S // 2] != IGNORE
    one_hot = F.one_hot(torch.where(known, b.y[:, :, :half], 0), K).movedim(-1, 1).float()
    assert torch.equal(target.label[:, :, :, :half], one_hot)
    assert torch.equal(target.weight[:, :, :half], known.float())
    assert torch.equal(target.weight[:, :, half:], b.u_valid[:, :, half:].float())
    assert torch.equal(spy.mixed.image[:, :, :, :half], b.x[:, :, :, :half])
    assert torch.equal(spy.mixed.image[:, :, :, half:], b.u_strong[0, :, :, :, half:])
    difference = (spy.mixed.student.logits.softmax(1) - target.label).square().mean(1)
    torch.testing.assert_close(step.losses["unlabeled"], 100 * difference[target.weight > 0].mean())


def test_upc_on_this_host() -> None:
    h = build(recipe("mean_teacher_mse", "digits", "1_8", "smoke").having(UPCOptions(rows="all")), K)
    h.weigh = spy = Spy()
    step = h.losses(batch(), 0.5)
    pasted, target = spy.mixed.hidden == IGNORE, spy.mixed.target
    assert len(pasted) == 3 * B and pasted.flatten(1).any(1).all() and step.losses["unlabeled"] > 0
    assert ((target.label.amax(1) == 1) | (target.weight == 0))[pasted].all(), "one-hot labels, or none"


def test_mixers_may_return_more_rows() -> None:
    b = batch()
    once, twice = (host(mix=m).eval().losses(b, 1.0).losses["unlabeled"] for m in (None, Copies()))
    torch.testing.assert_close(once, twice)
    step = host(mix=Thrice(), on_labeled=True).losses(b, 1.0)
    assert step.losses["unlabeled"] > 0 and step.statistics["kept"][1] == b.u_valid.sum()


def test_only_the_student_is_trained() -> None:
    h = host()
    h.losses(batch(), 0.5).losses["unlabeled"].backward()
    assert all(p.grad is not None for p in h.student.classify.parameters())
    assert all(p.grad is None for p in h.teacher.parameters())


def test_recipe_and_its_quoted_rerun() -> None:
    base = recipe("mean_teacher_mse", "digits", "1_8", "smoke")
    ours, theirs = build(base, K), build(reading(base, "official"), K)
    o, p = ours.options, theirs.options
    assert (o.weight, o.ramp_up, o.color, o.on_labeled) == (100.0, 0.1, True, False)
    assert (p.weight, p.ramp_up, p.color, p.on_labeled) == (100.0, 0.0, False, True)
    assert (ours.teacher.own_statistics, theirs.teacher.own_statistics) == (False, True)
    assert ours.teacher.decay == theirs.teacher.decay == 0.99
    assert build(recipe("mean_teacher_mse", "voc", "1_8", "smoke"), K).losses(batch(), 0.5).losses["unlabeled"] > 0
    weighed = build(base.having(WPLOptions()), 4)
    assert weighed.losses(batch(), 0.5).statistics["weight"][1] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanTeacherMSEOptions(weight=0), r"mean_teacher_mse\.weight should be greater than 0, got 0"),
        (
            lambda: MeanTeacherMSEOptions(ramp_up=2),
            r"mean_teacher_mse\.ramp_up should be less than or equal to 1, got 2",
        ),
    ],
)
def test_options_out_of_range(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_padding_counts_as_any_pixel_where_asked() -> None:
    h, b = host(padding=True), batch()
    reference = copy.deepcopy(h)
    goal = reference.teacher.model(b.u_weak).logits.softmax(1)
    said = reference.student(torch.cat((b.x, b.u_strong[0]))).logits[B:].softmax(1)
    wanted = 100 * (said - goal).square().mean()
    torch.testing.assert_close(h.losses(b, 0.5).losses["unlabeled"], wanted)
    assert host().losses(b, 0.5).losses["unlabeled"] != wanted


def test_the_official_reading_has_torchsemisegs_numbers_on_voc_alone() -> None:
    voc, city = (reading(recipe("mean_teacher_mse", d, "1_8", "paper"), "official") for d in ("voc", "cityscapes"))
    o = voc.optimization
    assert (o.lr, o.weight_decay, o.decay_norms, o.batch, o.epochs) == (2.5e-3, 4e-4, False, 8, 34)
    assert voc.evaluation.step == 342 and voc[MeanTeacherMSEOptions].padding
    assert city.optimization == recipe("mean_teacher_mse", "cityscapes", "1_8", "paper").optimization
    assert city[MeanTeacherMSEOptions].padding
