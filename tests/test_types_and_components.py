"""Targets, pastes and the plain components: identities that every host relies on."""

from collections.abc import Callable

import pytest
import torch

from semiseg.components import (
    ConfidentLabels,
    CutMix,
    EntropyFilter,
    NoMix,
    UniformWeight,
    entropy,
    random_box,
    read_as,
    weigh_and_mix,
)
from semiseg.statistics import pseudo_label_statistics
from semiseg.types import IGNORE, Output, Paste, Target, View

B, K, S = 3, 4, 16


def output(seed: int = 0, b: int = B) -> Output:
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(b, K, S, S, generator=g)
    return Output(logits, torch.randn(b, 5, 4, 4, generator=g), torch.zeros(b, 0, 4, 4), torch.zeros(b, 6, 2, 2))


def view(seed: int = 0) -> View:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, K, (B, S, S), generator=g)
    y[:, :2] = IGNORE
    return View(torch.rand(B, 3, S, S, generator=g), Target.from_labels(y), output(seed), entropy=torch.rand(B, S, S))


def test_confident_labels_filter_and_keep_the_divisor() -> None:
    out, valid = output(), torch.ones(B, S, S, dtype=torch.bool)
    valid[:, :, -3:] = False
    target = ConfidentLabels(0.7)(out, valid, 0.0)
    probability, label = out.logits.softmax(1).max(1)
    assert torch.equal(target.label, label)
    assert torch.equal(target.weight > 0, (probability > 0.7) & valid)
    assert torch.equal(target.denominator, valid.float())
    assert 0 < target.weight.mean() < 1, "the threshold must bite for this test to mean anything"
    assert torch.equal(ConfidentLabels(0.0)(out, valid, 0.0).weight, valid.float())


def test_cutmix_box_has_the_area_asked_for_and_pastes_exactly() -> None:
    torch.manual_seed(0)
    own = view()
    for _ in range(50):
        paste = CutMix(1.0, 0.5)(own, own)
        foreign = paste.source != torch.arange(B)[:, None, None]
        for i in range(B):
            rows, columns = foreign[i].any(1), foreign[i].any(0)
            assert torch.equal(foreign[i], rows[:, None] & columns[None]), "one rectangle"
            assert abs(foreign[i].float().mean().item() - 0.5) < 1.5 / S
        mixed = paste.view(own, own)
        for i in range(B):
            j = (i + 1) % B
            assert torch.equal(mixed.image[i][:, foreign[i]], own.image[j][:, foreign[i]])
            assert torch.equal(mixed.image[i][:, ~foreign[i]], own.image[i][:, ~foreign[i]])
            assert torch.equal(mixed.target.label[i][foreign[i]], own.target.label[j][foreign[i]])
            assert torch.equal(mixed.entropy[i][foreign[i]], own.entropy[j][foreign[i]])


def test_cutmix_probability_zero_and_nomix_are_the_identity() -> None:
    own = view()
    for mixer in (CutMix(0.0), NoMix()):
        mixed = mixer(own, own).view(own, own)
        assert torch.equal(mixed.image, own.image) and torch.equal(mixed.target.weight, own.target.weight)
        assert torch.equal(mixed.teacher.features, own.teacher.features)


def test_pasting_moves_planes_of_every_resolution() -> None:
    own, donors = view(0), view(1)
    source = torch.arange(B)[:, None, None].expand(B, S, S).clone()
    source[0, :, : S // 2] = B + 2  # the left half of image 0 comes from donor 2
    mixed = Paste(source).view(own, donors)
    assert torch.equal(mixed.image[0, :, :, : S // 2], donors.image[2, :, :, : S // 2])
    assert torch.equal(mixed.teacher.features[0, :, :, :2], donors.teacher.features[2, :, :, :2])
    assert torch.equal(mixed.teacher.features[0, :, :, 2:], own.teacher.features[0, :, :, 2:])
    assert mixed.entropy[0, :, : S // 2].max() == 0, "a labeled donor is certain"


def test_weighing_and_mixing_commute() -> None:
    class ByClass(UniformWeight):
        def forward(self, v: View) -> torch.Tensor:
            return 0.25 + v.target.label.float()

    torch.manual_seed(0)
    own, paste, weigh = view(), Paste(torch.randint(0, B, (B, S, S))), ByClass()
    mixed = paste.view(own, own)
    target = weigh_and_mix(weigh, paste, own, own, mixed)
    assert torch.equal(target.weight, mixed.target.times(weigh(mixed)).weight)
    assert torch.equal(target.denominator, mixed.target.times(weigh(mixed)).denominator)


def test_target_at_a_coarser_grid_marks_unsupervised_pixels() -> None:
    y = torch.arange(16).view(1, 4, 4) % 3
    target = Target.from_labels(y).only((y != 1).float())
    coarse = target.at((2, 2))
    assert coarse.tolist() == [[[IGNORE if v == 1 else v for v in row] for row in y[0, ::2, ::2].tolist()]]


def test_soft_target_at_a_coarser_grid_is_its_likeliest_class() -> None:
    label = torch.rand(2, K, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(2, 8, 8)
    weight[:, :3] = 0
    coarse = Target(label, weight, weight).at((4, 4))
    assert torch.equal(coarse, torch.where(weight[:, ::2, ::2] > 0, label.argmax(1)[:, ::2, ::2], IGNORE))


def test_entropy_is_bounded_by_certain_and_uniform_predictions() -> None:
    certain = torch.tensor([100.0, 0, 0, 0]).view(1, 4, 1, 1)
    assert entropy(certain).item() == pytest.approx(0, abs=1e-6)
    assert entropy(torch.zeros(1, 4, 1, 1)).item() == pytest.approx(torch.tensor(4.0).log().item())


def test_pseudo_label_statistics_count_only_what_is_known() -> None:
    label = torch.tensor([[[0, 1], [2, 3]]])
    target = Target(label, torch.tensor([[[1.0, 1], [1, 0]]]), torch.tensor([[[1.0, 1], [1, 1]]]))
    hidden = torch.tensor([[[0, 2], [IGNORE, 3]]])
    found = {k: v.tolist() for k, v in pseudo_label_statistics(target, hidden).items()}
    assert found == {"kept": [3, 4], "pseudo_label_accuracy": [1, 2], "teacher_accuracy": [2, 3]}


@pytest.mark.parametrize(("make", "message"), [(lambda: CutMix(1.5), "p=1.5"), (lambda: ConfidentLabels(1.0), "tau")])
def test_arguments_out_of_range(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_width_is_a_uniform_integer_from_half_the_side_to_one_less_and_the_height_follows() -> None:
    torch.manual_seed(0)
    own, side = View(torch.zeros(2, 3, 40, 40), Target.from_labels(torch.zeros(2, 40, 40).long())), 40
    widths = []
    for _ in range(300):
        foreign = CutMix(1.0, 0.5, "width")(own, own).source != torch.arange(2)[:, None, None]
        for one in foreign:
            height, width = int(one.any(1).sum()), int(one.any(0).sum())
            assert height == round(side * side * 0.5 / width) and one.sum() == height * width
            widths.append(width)
    assert set(widths) == set(range(21, 40))
    assert sum(widths) / len(widths) == pytest.approx(30, abs=0.6)
    assert (CutMix(1.0, 1.0, "width")(own, own).source != torch.arange(2)[:, None, None]).all()


def test_sides_of_a_box_are_rounded_or_rounded_down() -> None:
    def sides(whole: Callable[[float], int], seed: int) -> list[int]:
        torch.manual_seed(seed)
        return [each.stop - each.start for each in random_box(50, 50, (0.1, 0.1), (1.0, 1.0), whole)]

    exact = 250**0.5  # 15.81
    for seed in range(5):
        assert sides(round, seed) == [round(exact)] * 2 and sides(int, seed) == [int(exact)] * 2


def test_the_entropy_filter_takes_more_pixels_than_torch_sorts() -> None:
    """torch.quantile refuses more than 16 million."""
    side = 4100
    uncertain = (torch.arange(side * side) % 4 == 0).view(1, side, side)
    logits = torch.stack((~uncertain, torch.zeros_like(uncertain)), 1).half() * 9
    valid = torch.ones(1, side, side, dtype=torch.bool)
    kept = EntropyFilter(0.2)(Output(logits, logits, logits[:, :0], logits), valid, 0.0).weight
    assert torch.equal(kept > 0, ~uncertain)


def test_reading_in_evaluation_mode_leaves_mode_and_statistics() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).train()
    read_as(net, torch.rand(2, 3, 4, 4), "eval")
    assert net.training and net[0].num_batches_tracked == 0
    assert not read_as(net, torch.rand(2, 3, 4, 4), "train").requires_grad and net[0].num_batches_tracked == 1
    read_as(net.eval(), torch.rand(2, 3, 4, 4), "train")
    assert not net.training and net[0].num_batches_tracked == 1
