"""AugSeg: confidence of an image, two-stage injection, intensities, and the copied teacher."""

import math

import pytest
import torch
import toys
from torch import Tensor

from semiseg.build import build
from semiseg.data.intensity import CHANGES, RandomIntensity
from semiseg.hosts import augseg as module
from semiseg.hosts.augseg import AdaptiveInjection, AugSegOptions, image_confidence
from semiseg.hosts.mean_teacher import MeanTeacher
from semiseg.recipe import reading, recipe
from semiseg.types import Output, Target, View

B, K, SIDE = 6, 4, 64
INJECT, CUT = AugSegOptions().inject, AugSegOptions().cut


def output(logits: Tensor) -> Output:
    return Output(logits, logits, logits[:, :0], logits)


def views(certain: bool, b: int = B) -> tuple[View, View]:
    logits = torch.zeros(b, K, SIDE, SIDE)
    logits[:, 0] = 1000.0 if certain else 0.0
    ones = torch.ones(b, SIDE, SIDE)
    own = View(torch.rand(b, 3, SIDE, SIDE), Target(ones.long(), ones, ones), output(logits))
    return own, own


def test_confidence_is_1_for_one_hot_and_0_for_uniform_predictions() -> None:
    valid = torch.ones(1, 2, 2)
    sure = output(torch.tensor([1000.0, 0, 0, 0])[None, :, None, None].expand(1, 4, 2, 2))
    assert image_confidence(sure, valid).item() == pytest.approx(1.0)
    assert image_confidence(output(torch.zeros(1, 4, 2, 2)), valid).item() == pytest.approx(0.0, abs=1e-6)
    p = torch.tensor([0.7, 0.1, 0.1, 0.1])
    h = -(p * p.log()).sum().item()
    mixed = output(p.log()[None, :, None, None].expand(1, 4, 2, 2))
    assert image_confidence(mixed, valid).item() == pytest.approx((1 - h / math.log(4)) * 0.7)


def test_padding_does_not_enter_the_confidence() -> None:
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 0, 0] = 1000.0
    valid = torch.tensor([[[1.0, 1], [0, 0]]])
    assert image_confidence(output(logits), valid).item() == pytest.approx(1.0)
    assert image_confidence(output(logits), 0 * valid).item() == 0


def test_a_sure_teacher_lets_no_label_in_and_an_unsure_one_all() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        assert AdaptiveInjection(INJECT, CUT)(*views(certain=True)).source.max() < B
    shares = [(AdaptiveInjection(INJECT, CUT)(*views(certain=False)).source >= B).float().mean() for _ in range(100)]
    assert 0.01 < torch.stack(shares).mean() < 0.16
    always = [(AdaptiveInjection(INJECT, CUT, False)(*views(certain=True)).source >= B).any() for _ in range(5)]
    assert any(always)


def test_labeled_pixels_arrive_by_way_of_the_partner(monkeypatch: pytest.MonkeyPatch) -> None:
    """With boxes set by hand: label boxes on the left half, cut boxes on the upper half, partner i + 1."""
    left, upper = (torch.zeros(B, SIDE, SIDE, dtype=torch.bool) for _ in range(2))
    left[:, :, : SIDE // 2], upper[:, : SIDE // 2] = True, True
    made = iter([left, upper])
    monkeypatch.setattr(module, "_boxes", lambda *_: next(made))
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: (torch.arange(n) + 1) % n)
    source = AdaptiveInjection(INJECT, CUT)(*views(certain=False)).source
    for i in range(B):
        partner = (i + 1) % B
        assert source[i, 0, -1] == partner and source[i, -1, 0] == source[i, -1, -1] == i
        assert source[i, 0, 0] == B + (partner + 1) % B


def test_fewer_labeled_images_than_unlabeled_ones_are_enough() -> None:
    own, _ = views(certain=False)
    _, few = views(certain=False, b=2)
    assert max(int(AdaptiveInjection(INJECT, CUT)(own, few).source.max()) for _ in range(20)) < B + 2


@pytest.mark.parametrize(("beta", "share"), [(INJECT, 0.16), (CUT, 0.36)])
def test_areas_are_the_measured_ones(beta: tuple[float, float], share: float) -> None:
    torch.manual_seed(0)
    found = torch.stack([module._boxes(beta, 8, SIDE, SIDE, torch.device("cpu")).float().mean() for _ in range(400)])
    assert found.mean() == pytest.approx(share, abs=0.03)


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="parameters of Beta must be > 0"):
        AugSegOptions(inject=(0.0, 1.0))
    with pytest.raises(ValueError, match="parameters of Beta must be > 0"):
        AugSegOptions(cut=(4.0, -4.0))
    with pytest.raises(ValueError, match=r"augseg\.changes should be greater than 0, got 0"):
        AugSegOptions(changes=0)


# --- the host and its strong view -----------------------------------------------------------


def test_the_teacher_is_the_student_while_it_is_copied_and_the_unlabeled_term_is_active() -> None:
    torch.manual_seed(0)
    made = recipe("augseg", "digits", "1_8", "smoke").changed({"augseg.copy_epochs": 2})  # of 4
    host = build(made, K).train()
    assert isinstance(host, MeanTeacher) and host.divisor == "valid"
    assert host.losses(toys.batch(), 0.1).losses["unlabeled"] > 0
    for expected_copy, t in ((True, 0.1), (False, 0.6)):
        host.losses(toys.batch(), t)
        with torch.no_grad():
            host.student.classify.bias.add_(1.0)
        host.after_step()
        assert torch.equal(host.teacher.model.classify.bias, host.student.classify.bias) == expected_copy


def test_changes_are_painted_in_order_on_each_image_by_itself() -> None:
    images = torch.randint(30, 200, (2, 3, 24, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = RandomIntensity().paint(images, [[("brightness", 0.5), ("posterize", 4)], [("identity", 0.0)]])
    expected = CHANGES["posterize"].apply(CHANGES["brightness"].apply(images[0], 0.5), 4)
    assert torch.equal(found[0], expected) and torch.equal(found[1], images[1])
    assert not torch.equal(found[0], images[0]), "the input stays"


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_keeps_shape_and_type_and_only_identity_changes_nothing(name: str) -> None:
    torch.manual_seed(1)
    x = torch.randint(30, 200, (3, 24, 20), dtype=torch.uint8)
    y = CHANGES[name](x)
    assert y.shape == x.shape and y.dtype == torch.uint8
    assert torch.equal(x, y) == (name == "identity")


def test_factors_only_weaken() -> None:
    x = torch.randint(0, 256, (3, 24, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        assert CHANGES["brightness"](x).float().mean() < x.float().mean()
        assert CHANGES["contrast"](x).float().std() < x.float().std()


def test_one_to_three_changes_are_drawn_with_replacement() -> None:
    torch.manual_seed(0)
    numbers = []
    for _ in range(600):
        names = [name for name, _ in RandomIntensity().draw()]
        numbers.append((len(names), len(set(names))))
    assert {n for n, _ in numbers} == {1, 2, 3} and any(different < n for n, different in numbers)
    assert sum(n for n, _ in numbers) / 600 == pytest.approx(2.0, abs=0.1)
    with pytest.raises(ValueError, match="at least one change"):
        RandomIntensity(0)


def test_released_padding_and_ramp_reach_the_host() -> None:
    base = recipe("augseg", "digits", "1_8", "smoke")
    ours, theirs = build(base, K), build(reading(base, "official"), K)
    assert (ours.padding, ours.count_copies, theirs.padding, theirs.count_copies) == (False, False, True, True)
    host = theirs.train()
    for t, steps in ((0.0, 1), (0.1, 2), (0.5, 3)):
        host.losses(toys.batch(), t)
        host.after_step()
        assert host.teacher.steps == steps


def test_the_official_reading_is_the_released_configuration() -> None:
    voc, city = (reading(recipe("augseg", d, "1_8", "paper"), "official") for d in ("voc", "cityscapes"))
    assert (voc.optimization.resize_base, city.optimization.resize_base) == (500, None)
    assert voc.network == city.network and voc.network.multi_grid == (2, 2, 4)
    assert (city.evaluation.size, city.evaluation.step, city.evaluation.border) == (800, 533, "cut")
