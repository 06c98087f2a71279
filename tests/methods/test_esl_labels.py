"""Dynamic soft labels by hand, their identities, and what is logged about them."""

import math

import pytest
import torch
import torch.nn.functional as F

from semiseg.banks import as_pixels
from semiseg.components import CutMix, entropy
from semiseg.losses import pixel_cross_entropy
from semiseg.methods.esl import DynamicLabels
from semiseg.statistics import soft_label_statistics
from semiseg.types import IGNORE, Output, Paste, Target, View


def soft(p: list[float], eta: float = 0.95, **rule) -> list[float]:
    plane = torch.tensor(p).view(1, len(p), 1, 1)
    return DynamicLabels(eta, **rule).soften(plane).flatten().tolist()


@pytest.mark.parametrize(
    ("p", "eta", "want"),
    [
        ([0.5, 0.3, 0.15, 0.05], 0.5, [1, 0, 0, 0]),  # eta <= max p: a hard label
        ([0.5, 0.3, 0.15, 0.05], 0.51, [5 / 8, 3 / 8, 0, 0]),
        ([0.05, 0.3, 0.15, 0.5], 0.9, [0, 0.3 / 0.95, 0.15 / 0.95, 0.5 / 0.95]),
        ([0.5, 0.3, 0.15, 0.05], 0.96, [0.5, 0.3, 0.15, 0.05]),
        ([0.4, 0.4, 0.2, 0.0], 1e-6, [0.5, 0.5, 0, 0]),  # tied with the last dominant class: both (Eq. 3 is >=)
        ([0.4, 0.2, 0.2, 0.2], 0.5, [0.4, 0.2, 0.2, 0.2]),
        ([0.25, 0.25, 0.25, 0.25], 0.1, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_dynamic_labels_by_hand(p: list[float], eta: float, want: list[float]) -> None:
    assert soft(p, eta) == pytest.approx(want)


def test_eta_one_keeps_what_no_sum_can_show() -> None:
    assert soft([1.0, 1e-9, 0.0], 1.0) == pytest.approx([1.0, 1e-9, 0.0], rel=1e-5, abs=0)


def test_top_and_hard_labels_by_hand() -> None:
    p = [0.05, 0.4, 0.1, 0.25, 0.15, 0.05]
    assert soft(p, rule="hard") == [0, 1, 0, 0, 0, 0]
    assert soft(p, rule="top", top=3) == pytest.approx([0, 0.5, 0, 0.3125, 0.1875, 0])
    assert soft(p, rule="top") == pytest.approx(p), "fifth and sixth are tied"
    assert soft([0.6, 0.4], rule="top") == pytest.approx([0.6, 0.4]), "fewer classes than five"
    assert soft([0.5, 0.5], rule="hard") == [1, 0], "one class even at a tie"


@pytest.fixture
def prediction() -> Output:
    g = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 21, 24, 24, generator=g)
    return Output(logits, *(torch.zeros(2, 1, 1, 1) for _ in range(3)))


def test_eta_one_is_the_prediction_though_float_sums_miss_one(prediction: Output) -> None:
    p = prediction.logits.softmax(1)
    totals = p.sort(1, descending=True).values.cumsum(1)[:, -1]
    assert (totals < 1).float().mean() > 0.1, "a literal 'first rank that reaches 1' would find none here"
    torch.testing.assert_close(DynamicLabels(1.0).soften(p), p)


def test_dynamic_labels_agree_with_the_literal_definition(prediction: Output) -> None:
    """Eq. 3 to 5 pixel by pixel in Python."""
    p = prediction.logits.softmax(1)[:1, :, :8, :8]
    y = as_pixels(DynamicLabels(0.9).soften(p))
    for pixel, found in zip(as_pixels(p), y, strict=True):
        total, least = 0.0, 1.0
        for v in sorted(pixel.tolist(), reverse=True):
            total, least = total + v, v
            if total >= 0.9:
                break
        kept = torch.where(pixel >= least, pixel, 0.0)
        torch.testing.assert_close(found, kept / kept.sum())


def test_dynamic_labels_identities(prediction: Output) -> None:
    p, order = prediction.logits.softmax(1), torch.randperm(21)
    for rule in (DynamicLabels(0.9), DynamicLabels(0.95, rule="top"), DynamicLabels(0.95, rule="hard")):
        y = rule.soften(p)
        torch.testing.assert_close(y.sum(1), torch.ones(2, 24, 24))
        assert torch.equal(y.argmax(1), p.argmax(1))
        torch.testing.assert_close(rule.soften(p[:, order]), y[:, order])
    number = (DynamicLabels(0.9).soften(p) > 0).sum(1)
    assert torch.equal(number == 1, p.amax(1) >= 0.9) and 0 < (number == 1).float().mean() < 1
    assert torch.equal(DynamicLabels(1e-9).soften(p), DynamicLabels(0.95, rule="hard").soften(p)), "no ties here"


def test_every_valid_pixel_is_supervised_and_one_hot_labels_give_cross_entropy(prediction: Output) -> None:
    valid = torch.ones(2, 24, 24, dtype=torch.bool)
    valid[:, :, :4] = False
    logits = torch.randn(2, 21, 24, 24)
    target = DynamicLabels(0.95)(prediction, valid, 0.0)
    assert torch.equal(target.weight, valid.float()) and torch.equal(target.denominator, valid.float())
    hard = DynamicLabels(0.95, rule="hard")(prediction, valid, 0.0)
    y = torch.where(valid, prediction.logits.argmax(1), IGNORE)
    torch.testing.assert_close(pixel_cross_entropy(logits, hard), F.cross_entropy(logits, y, ignore_index=IGNORE))
    by_hand = -(target.label * logits.log_softmax(1)).sum(1)[valid].mean()  # Eq. 6
    torch.testing.assert_close(pixel_cross_entropy(logits, target), by_hand)
    assert not torch.isclose(by_hand, pixel_cross_entropy(logits, hard))


def test_cutmix_commutes_with_soft_labels_and_a_mixer_may_add_rows(prediction: Output) -> None:
    rule, valid = DynamicLabels(0.9), torch.ones(2, 24, 24, dtype=torch.bool)
    whole = Target.from_labels(torch.full((2, 24, 24), 7))
    image = torch.zeros(2, 3, 24, 24)
    donors = View(image, whole, prediction)
    own = View(image, rule(prediction, valid, 0.0), prediction, entropy=entropy(prediction.logits))
    paste = CutMix(1.0)(own, donors)
    torch.testing.assert_close(paste.view(own, donors).target.label, rule.soften(paste(prediction.logits.softmax(1))))

    source = torch.arange(2)[:, None, None].expand(2, 24, 24).repeat(3, 1, 1)  # three rows of each image
    source[:, :6] = 3  # the upper quarter from donor 1
    mixed = Paste(source).view(own, donors)
    assert mixed.target.label.shape == (6, 21, 24, 24) and mixed.target.hard[:, :6].eq(7).all()
    torch.testing.assert_close(mixed.target.label[:, 7, :6], torch.ones(6, 6, 24))
    torch.testing.assert_close(mixed.target.label[4, :, 6:], own.target.label[0, :, 6:])
    assert pixel_cross_entropy(torch.zeros(6, 21, 24, 24), mixed.target).item() == pytest.approx(math.log(21))


def test_statistics_of_soft_labels_by_hand() -> None:
    p = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5], [0.5, 0.5, 0.0]]).T.view(1, 3, 2, 2)
    weight = torch.tensor([[[1.0, 1], [1, 0]]])
    hidden = torch.tensor([[[1, 2], [IGNORE, 0]]])
    found = {k: v.tolist() for k, v in soft_label_statistics(Target(p, weight, weight), hidden).items()}
    assert found["dominant"] == [2 + 1 + 3, 3]
    assert [found[f"dominant_{n}"] for n in (1, 2, 3)] == [[1, 3]] * 3
    assert [found[f"accuracy_{n}"] for n in (1, 2, 3)] == [[1, 1], [0, 1], [0, 0]]
    assert found["truth_dominant"] == [1, 1] and found["mass_on_truth"] == pytest.approx([0.4 + 1, 2])
    assert [found[f"true_{k}"] for k in range(3)] == [[0, 2], [1, 2], [1, 2]]
    assert [found[f"hard_{k}"] for k in range(3)] == [[1, 2], [0, 2], [1, 2]]
    assert [found[f"soft_{k}"][0] for k in range(3)] == pytest.approx([0.6, 0.4, 1.0])
