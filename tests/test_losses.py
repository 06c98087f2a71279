"""Losses against their definitions and at their edges."""

import math

import pytest
import torch
import torch.nn.functional as F

from semiseg.build import criterion
from semiseg.losses import info_nce, ohem_cross_entropy, picked_products, pixel_cross_entropy
from semiseg.recipe import recipe
from semiseg.types import IGNORE, Output, Target


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (2, 6, 7), generator=g)
    y[:, 0] = IGNORE
    return torch.randn(2, 5, 6, 7, generator=g), y


def test_hard_labels_equal_torchs_mean_over_known_pixels(scene) -> None:
    logits, y = scene
    want = F.cross_entropy(logits, y, ignore_index=IGNORE)
    torch.testing.assert_close(pixel_cross_entropy(logits, Target.from_labels(y)), want)
    torch.testing.assert_close(pixel_cross_entropy(logits, Target.from_labels(y), "valid"), want)


def test_divisors_differ_by_the_kept_share(scene) -> None:
    logits, y = scene
    target = Target.from_labels(y).only((torch.arange(7) < 3).float().expand(2, 6, 7))
    kept, valid = (pixel_cross_entropy(logits, target, d) for d in ("kept", "valid"))
    torch.testing.assert_close(valid, kept * 3 / 7)


def test_importance_keeps_the_scale_of_the_loss(scene) -> None:
    logits, y = scene
    target = Target.from_labels(y)
    torch.testing.assert_close(
        pixel_cross_entropy(logits, target.times(torch.full(y.shape, 0.01))), pixel_cross_entropy(logits, target)
    )


def test_soft_one_hot_labels_equal_hard_ones(scene) -> None:
    logits, y = scene
    hard = Target.from_labels(y)
    soft = hard.like(Target(torch.zeros(2, 5, 6, 7), hard.weight, hard.denominator))
    assert soft.label.shape == (2, 5, 6, 7)
    torch.testing.assert_close(pixel_cross_entropy(logits, soft), pixel_cross_entropy(logits, hard))
    assert torch.equal(soft.hard, hard.hard)


@pytest.mark.parametrize("loss", [pixel_cross_entropy, ohem_cross_entropy])
def test_nothing_supervised_is_zero_with_a_defined_gradient(loss) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    value = loss(logits, Target.from_labels(torch.full((1, 2, 2), IGNORE)))
    value.backward()
    assert value.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_ohem_keeps_pixels_below_the_threshold_or_the_hardest() -> None:
    probability = torch.tensor([0.9, 0.8, 0.6, 0.3])
    logits = torch.stack((probability.log(), (1 - probability).log())).view(1, 2, 1, 4)
    target = Target.from_labels(torch.zeros(1, 1, 4, dtype=torch.long))
    ce = -probability.log()
    torch.testing.assert_close(ohem_cross_entropy(logits, target, 0.7, 1), ce[2:].mean())
    torch.testing.assert_close(ohem_cross_entropy(logits, target, 0.7, 3), ce[1:].mean())
    torch.testing.assert_close(ohem_cross_entropy(logits, target, 0.7, 100), ce.mean())


def test_info_nce_by_hand_shared_and_own_negatives() -> None:
    anchor, positive = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    negative = torch.tensor([[5.0, 0.0], [-1.0, 0.0]])
    want = math.log(1 + math.exp(2.0) + math.exp(-2.0))  # similarities 0 | 1, -1 at temperature 1/2
    assert math.isclose(info_nce(anchor, positive, negative, 0.5).item(), want, rel_tol=1e-6)
    torch.testing.assert_close(
        info_nce(anchor, positive, negative[None], 0.5), info_nce(anchor, positive, negative, 0.5)
    )
    assert info_nce(anchor[:0], positive, negative, 0.5).item() == 0


def test_picked_products_are_those_of_plain_torch() -> None:
    g = torch.Generator().manual_seed(0)
    rows, picked = torch.randn(9, 4, generator=g), torch.randint(0, 9, (5, 20), generator=g)
    a = torch.randn(5, 4, generator=g, requires_grad=True)
    b, factor = a.detach().clone().requires_grad_(), torch.randn(5, 20, generator=g)
    ours, plain = picked_products(a, rows, picked), (b @ rows.T).gather(1, picked)
    (ours * factor).sum().backward()
    (plain * factor).sum().backward()
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(a.grad, b.grad)


def test_all_pixels_are_those_that_are_not_padding_where_asked(scene) -> None:
    logits, y = scene
    target = Target.from_labels(y).only((torch.arange(7) < 3).float().expand(2, 6, 7))  # a row of 6 is not known
    kept = pixel_cross_entropy(logits, target)
    torch.testing.assert_close(pixel_cross_entropy(logits, target, "kept_scaled_known"), kept * 7 / 3)
    torch.testing.assert_close(pixel_cross_entropy(logits, target, "kept_scaled"), kept * 7 / 3 * 6 / 5)
    nothing = target.only(torch.zeros(2, 6, 7))
    assert pixel_cross_entropy(logits, nothing, "kept_scaled_known") == 0


def test_a_share_of_hard_pixels_reaches_the_criterion_of_a_recipe() -> None:
    made = recipe("supervised").changed({"optimization.ohem": True, "optimization.ohem_share": 0.25})
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=g) * 0.01 + torch.tensor([9.0, 0.0, 0.0])[:, None, None]
    target = Target.from_labels(torch.zeros(2, 4, 4, dtype=torch.long))  # every pixel is sure and right: none is hard
    output = Output(logits, logits, logits[:, :0], logits)
    ce = torch.nn.functional.cross_entropy(logits, target.hard, reduction="none").flatten()
    torch.testing.assert_close(criterion(made)(output, target), ce.topk(8).values.mean())
    every = criterion(made.changed({"optimization.ohem_share": "none"}))(output, target)
    torch.testing.assert_close(every, ce.mean())
