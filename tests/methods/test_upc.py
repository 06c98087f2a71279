"""UPC: entropy, patches, masks, donors and rows, by hand and at every edge the method has."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from semiseg.components import entropy
from semiseg.data.pseudo_labels import coded
from semiseg.methods.pasting import draw_donors, paste_labeled
from semiseg.methods.upc import (
    PatchCutMix,
    UPCOptions,
    noise,
    patch_edges,
    patch_mask,
    patch_miou,
    patch_sums,
    prediction_entropy,
    scores,
    top_patches,
    uncertainty,
)
from semiseg.recipe import recipe
from semiseg.types import IGNORE, Target, View

SIZES = [(321, 321), (512, 512), (513, 513), (769, 769), (7, 5)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, seed: int = 0, k: int = 4) -> Tensor:
    return torch.randint(0, k, shape, generator=torch.Generator().manual_seed(seed))


def unlabeled(b: int = 2, size: tuple[int, int] = (16, 16), seed: int = 0) -> View:
    """Images with pseudo-labels, entropies and hidden masks that agree with the labels."""
    label, ones = classes(b, *size, seed=seed), torch.ones(b, *size)
    target = Target(label, ones, ones)
    return View(drawn(b, 3, *size, seed=seed), target, entropy=drawn(b, *size, seed=seed + 1), hidden=label.clone())


def labeled(d: int = 4, size: tuple[int, int] = (16, 16), seed: int = 10) -> View:
    return View(2 + drawn(d, 3, *size, seed=seed), Target.from_labels(classes(d, *size, seed=seed)))


def patches(*options: Any, **named: Any) -> PatchCutMix:
    return PatchCutMix(UPCOptions(*options, **named))


def with_error(own: View, row: slice, column: slice) -> View:
    """Every label in this place is wrong."""
    label = own.target.label.clone()
    label[:, row, column] = (label[:, row, column] + 1) % 4
    return replace(own, target=replace(own.target, label=label))


# --- entropy ----------------------------------------------------------------------------------


def test_entropy_of_one_hot_uniform_and_nothing() -> None:
    one_hot = torch.eye(5)[[3]].view(1, 5, 1, 1)
    assert prediction_entropy(one_hot).item() == 0
    for scores_ in (torch.full((1, 5, 1, 1), 0.2), torch.zeros(1, 5, 1, 1)):
        assert prediction_entropy(scores_).item() == pytest.approx(math.log(5))


def test_entropy_normalizes_what_does_not_sum_to_1() -> None:
    p = drawn(2, 5, 3, 3).softmax(1)
    torch.testing.assert_close(prediction_entropy(10 * p), prediction_entropy(p))
    torch.testing.assert_close(prediction_entropy(p), -(p * p.log()).sum(1))
    logits = 4 * drawn(2, 5, 3, 3)
    torch.testing.assert_close(prediction_entropy(logits.softmax(1)), entropy(logits))


def test_entropy_does_not_care_for_the_order_of_classes() -> None:
    p, order = drawn(2, 6, 16, 16).softmax(1), torch.tensor([4, 0, 5, 2, 1, 3])
    one, other = (uncertain(prediction_entropy(q)) for q in (p, p[:, order]))
    assert torch.equal(top_patches(one, 5), top_patches(other, 5))


def uncertain(plane: Tensor, n: int = 4) -> Tensor:
    return patch_sums(plane, n)


def test_half_precision_sums_as_single() -> None:
    plane = drawn(2, 513, 513).half()
    sums = patch_sums(plane, 4)
    assert sums.dtype == torch.double
    torch.testing.assert_close(sums, patch_sums(plane.float(), 4), rtol=0, atol=0)
    assert prediction_entropy(plane[:, None].expand(-1, 3, -1, -1)).dtype == torch.float
    own = replace(unlabeled(), entropy=unlabeled().entropy.half())
    torch.testing.assert_close(uncertainty(own, 4), patch_sums(own.entropy.float(), 4), rtol=0, atol=0)


# --- patches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_is_in_one_patch(size: tuple[int, int]) -> None:
    plane = drawn(1, *size)
    sums = patch_sums(plane, 4)
    torch.testing.assert_close(sums.sum(), plane.double().sum())
    for row in range(4):
        for column in range(4):
            alone = torch.zeros(1, 4, 4, dtype=torch.bool)
            alone[0, row, column] = True
            inside = patch_mask(alone, size)
            torch.testing.assert_close(sums[0, row, column], plane[inside].double().sum())


@pytest.mark.parametrize(("side", "lengths"), [(321, [80, 80, 80, 81]), (513, [128] * 3 + [129]), (7, [1, 2, 2, 2])])
def test_lengths_where_n_does_not_divide_the_side(side: int, lengths: list[int]) -> None:
    assert sorted(patch_edges(side, 4).diff().tolist()) == lengths
    assert patch_edges(side, 4).tolist() == [i * side // 4 for i in range(5)]


@pytest.mark.parametrize("size", SIZES)
def test_area_and_nesting_of_masks(size: tuple[int, int]) -> None:
    sums = patch_sums(drawn(3, *size), 4)
    chosen = [top_patches(sums, k) for k in range(17)]
    assert [int(c.sum()) for c in chosen] == [3 * k for k in range(17)]
    masks = [patch_mask(c, size) for c in chosen]
    assert not masks[0].any() and masks[16].all()
    for small, large in pairwise(masks):
        assert (small <= large).all() and small.sum() < large.sum()
    if size[0] > 7:
        share = masks[5].float().mean((1, 2))
        assert ((share - 5 / 16).abs() < 0.006).all(), "5 of 16 patches are 31.25 % of the image"


def test_the_mask_is_where_the_entropy_is() -> None:
    plane = torch.zeros(1, 513, 513)
    plane[0, 140:200, 270:300] = 1  # patch (1, 2)
    plane[0, 400:450, 20:60] = 0.5  # patch (3, 0)
    assert top_patches(patch_sums(plane, 4), 2).nonzero().tolist() == [[0, 1, 2], [0, 3, 0]]
    assert top_patches(patch_sums(plane, 4), 1).nonzero().tolist() == [[0, 1, 2]]


def test_equal_patches_are_taken_by_rows() -> None:
    for value in (0.0, 1.0, math.log(21)):
        plane = torch.full((1, 512, 512), value)
        assert top_patches(patch_sums(plane, 4), 5).flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    plane = torch.zeros(1, 321, 321)
    plane[0, -1, -1] = 1
    assert top_patches(patch_sums(plane, 4), 3).flatten().nonzero().flatten().tolist() == [0, 1, 15]


def test_sum_and_mean_differ_where_patches_do() -> None:
    ones = torch.ones(1, 321, 321)
    assert top_patches(patch_sums(ones, 4), 1)[0, 3, 3], "the last patch has more pixels"
    assert torch.equal(patch_sums(ones, 4, "mean"), torch.ones(1, 4, 4, dtype=torch.double))


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot divide 3 pixels into n=4 patches; n must be in 1\.\.3"):
        patch_sums(torch.ones(1, 8, 3), 4)
    for k in (17, -1, torch.tensor([3, 17])):
        with pytest.raises(ValueError, match=r"k must be in 0\.\.16"):
            top_patches(torch.zeros(2, 4, 4), k)
    for k in ((5,), (1, -1)):
        with pytest.raises(ValueError, match=rf"each k in 0\.\.n\*n, got n=2, k={re.escape(str(k))}"):
            UPCOptions(n=2, k=k)
    for wrong, message in (
        ({"n": 0}, "upc.n should be greater than or equal to 1, got 0"),
        ({"k": ()}, "upc.k should have more values"),
        ({"rows": "some"}, "upc.rows should be 'all' or 'sample', got 'some'"),
    ):
        with pytest.raises(ValueError, match=message):
            UPCOptions(**wrong)
    with pytest.raises(ValueError, match="n=33"):
        patches(33, (1,))(unlabeled(), labeled())
    with pytest.raises(ValueError, match=r"crops of 32 pixels cannot be divided into n=33 patches"):
        recipe("mean_teacher").having(UPCOptions(n=33))


def test_each_image_has_its_own_number() -> None:
    score = drawn(3, 4, 4)
    assert top_patches(score, torch.tensor([0, 3, 16])).sum((1, 2)).tolist() == [0, 3, 16]


# --- padding ----------------------------------------------------------------------------------


def padded(columns: int, certain: bool = False) -> View:
    """Padding on the right, with a wild entropy there."""
    own = unlabeled()
    denominator = torch.ones_like(own.target.weight)
    denominator[:, :, -columns:] = 0
    doubt = torch.zeros_like(own.entropy) if certain else own.entropy.clone()
    doubt[:, :, -columns:] = 100
    return replace(own, target=replace(own.target, weight=denominator, denominator=denominator), entropy=doubt)


@pytest.mark.parametrize("select", ["uncertainty", "random", "oracle", "oracle_area"])
def test_padding_is_replaced_last(select: str) -> None:
    for certain in (False, True):
        score = scores(padded(8, certain), 4, select)
        assert not top_patches(score, 8)[:, :, 2:].any(), "8 patches show the image, if as certain as can be"
        assert top_patches(score, 9)[:, :, 2:].sum() == 2


def test_entropy_of_padding_counts_as_0() -> None:
    torch.testing.assert_close(uncertainty(padded(6), 4).sum((1, 2)), padded(6).entropy[:, :, :-6].double().sum((1, 2)))


def test_a_view_without_entropy_is_refused() -> None:
    with pytest.raises(ValueError, match="give the view `entropy`"):
        patches()(replace(unlabeled(), entropy=None), labeled())


# --- the oracle -------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["oracle", "oracle_area"])
def test_the_oracle_finds_the_damaged_patch(select: str) -> None:
    own = with_error(unlabeled(), slice(8, 12), slice(4, 8))
    assert top_patches(scores(own, 4, select), 1).nonzero().tolist() == [[0, 2, 1], [1, 2, 1]]


def test_mean_iou_of_a_patch_by_hand() -> None:
    own = unlabeled(1, (4, 4))
    label, truth = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, IGNORE]])
    own.target.label[0, :1], own.hidden[0, :1] = label, truth
    own.hidden[0, 1:] = IGNORE
    found = patch_miou(own, 2)
    # in the first row class 0: 1 of 2, class 1: 0 of 1 | class 1: 1 of 1, the unknown pixel excluded
    assert found[0, 0].tolist() == [pytest.approx((1 / 2 + 0) / 2), 1.0]
    assert found[0, 1].tolist() == [1.0, 1.0], "without a known pixel"


def test_the_oracle_takes_the_larger_error_of_two_equal_patches() -> None:
    own = unlabeled(1, (4, 4))
    own.target.label[:], own.hidden[:] = 1, 1
    own.hidden[0, 0, :2] = torch.tensor([0, IGNORE])  # one wrong pixel and ...
    own.hidden[0, 1, :2] = IGNORE
    own.hidden[0, 2:, 2:] = 0  # ... four of them: mean IoU is 0 in both patches
    assert patch_miou(own, 2)[0].tolist() == [[0, 1], [1, 0]]
    assert top_patches(scores(own, 2, "oracle"), 1)[0].tolist() == [[False, False], [False, True]]


def test_area_and_iou_may_disagree() -> None:
    """A small patch of a rare class that is all wrong against a larger error among many right pixels."""
    own = unlabeled(1, (8, 8))
    own.target.label[:], own.hidden[:] = 1, 1
    own.hidden[0, :4, :4], own.hidden[0, 0, 0] = IGNORE, 0
    own.hidden[0, 4:, 4:][0, :2] = 0
    assert top_patches(scores(own, 2, "oracle"), 1)[0, 0, 0] and top_patches(scores(own, 2, "oracle_area"), 1)[0, 1, 1]


def test_the_oracle_needs_the_truth() -> None:
    for hidden in (None, torch.full((2, 16, 16), IGNORE)):
        own = replace(unlabeled(), hidden=hidden)
        for ask in (lambda o: scores(o, 4, "oracle"), lambda o: scores(o, 4, "oracle_area"), noise):
            with pytest.raises(ValueError, match="the oracle needs true masks"):
                ask(own)
        scores(own, 4, "uncertainty")
    assert not noise(unlabeled())[0].any() and noise(unlabeled())[1].all()


# --- what is pasted ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (7, 5)])
def test_inside_the_mask_the_labeled_image_and_outside_the_own(size: tuple[int, int]) -> None:
    own, donors = unlabeled(3, size), labeled(5, size)
    paste = patches(rows="all")(own, donors)
    mixed = paste.view(own, donors)
    masks = [patch_mask(top_patches(uncertainty(own, 4), k), size) for k in (2, 3, 5)]
    assert torch.equal(paste.source >= 3, torch.cat(masks))
    for row, (mask, source) in enumerate(zip(torch.cat(masks), paste.source, strict=True)):
        i, j = row % 3, int(source[mask].unique()) - 3
        assert torch.equal(mixed.image[row][:, mask], donors.image[j][:, mask])
        assert torch.equal(mixed.image[row][:, ~mask], own.image[i][:, ~mask])
        for name in ("label", "weight", "denominator"):
            plane, mine, theirs = (getattr(v.target, name) for v in (mixed, own, donors))
            assert torch.equal(plane[row], torch.where(mask, theirs[j], mine[i]))
        assert (mixed.entropy[row][mask] == 0).all() and (mixed.hidden[row][mask] == IGNORE).all()


def test_unlabeled_pixels_of_donors_arrive_without_loss() -> None:
    own, y = unlabeled(), classes(2, 16, 16)
    y[:, ::2] = IGNORE
    donors = View(drawn(2, 3, 16, 16), Target.from_labels(y))
    mixer = patches(4, (5,), rows="all")
    mixed = (paste := mixer(own, donors)).view(own, donors)
    foreign = paste.source >= 2
    for row in range(2):
        expected = torch.where(foreign[row], y[int(paste.source[row].max()) - 2], own.target.label[row])
        assert torch.equal(mixed.target.at((16, 16))[row], expected), "IGNORE inside the patch, and only there"
    assert ((mixed.target.weight == 0) == (mixed.target.denominator == 0)).all()
    total, count = mixer.statistics["replaced_known"]
    assert count == foreign.sum() and total == (foreign & (mixed.target.weight > 0)).sum() < count


def test_no_patch_is_the_identity() -> None:
    own, donors = unlabeled(), labeled()
    for rows, copies in (("all", 2), ("sample", 1)):
        mixed = patches(4, (0,) * copies, rows=rows)(own, donors).view(own, donors)
        assert torch.equal(mixed.image, own.image.repeat(copies, 1, 1, 1))
        assert torch.equal(mixed.target.label, own.target.label.repeat(copies, 1, 1))
        assert torch.equal(mixed.target.weight, own.target.weight.repeat(copies, 1, 1))


def test_all_patches_are_the_labeled_image() -> None:
    own, donors = unlabeled(2), labeled(2)
    mixed = patches(4, (16,), rows="all")(own, donors).view(own, donors)
    assert sorted(mixed.image.flatten(1).sum(1).tolist()) == sorted(donors.image.flatten(1).sum(1).tolist())


def test_the_order_of_classes_changes_no_mask() -> None:
    logits, order = 5 * drawn(2, 6, 16, 16), torch.tensor([4, 0, 5, 2, 1, 3])
    own, donors = unlabeled(), labeled(2)
    sources = []
    for scored in (logits, logits[:, order]):
        torch.manual_seed(0)
        sources.append(patches(rows="all")(replace(own, entropy=entropy(scored)), donors).source)
    assert torch.equal(*sources)


def test_entropy_maps_of_one_byte_keep_the_masks() -> None:
    """Blobs of doubt as a network has them; the same five patches before and after the file."""
    for seed in range(50):
        coarse = drawn(1, 1, 9, 9, seed=seed) ** 3 * math.log(21)
        doubt = torch.nn.functional.interpolate(coarse, size=(321, 321), mode="bilinear")[:, 0]
        stored = coded(doubt, 21)
        assert stored.dtype == torch.uint8
        read = stored.float() * math.log(21) / 255
        for k in (2, 3, 5):
            assert torch.equal(top_patches(patch_sums(doubt, 4), k), top_patches(patch_sums(read, 4), k))


# --- rows and donors --------------------------------------------------------------------------


def test_three_rows_of_three_labeled_images_with_nested_masks() -> None:
    own, donors = unlabeled(3), labeled(4)
    paste = patches(rows="all")(own, donors)
    assert paste.source.shape == (9, 16, 16)
    foreign = (paste.source >= 3).view(3, 3, 16, 16)
    assert foreign.flatten(2).sum(2).tolist() == [[2 * 16] * 3, [3 * 16] * 3, [5 * 16] * 3]
    assert (foreign[0] <= foreign[1]).all() and (foreign[1] <= foreign[2]).all()
    partner = paste.source.flatten(1).max(1).values.view(3, 3)
    assert all(len(set(partner[:, i].tolist())) == 3 for i in range(3)), "the rows of an image have different donors"


def test_donors_are_drawn_equally_often() -> None:
    for _ in range(20):
        drawn_ = draw_donors(3, 8, labeled(8), 0.0)
        assert drawn_.shape == (3, 8) and all(len(set(c)) == 3 for c in drawn_.T.tolist())
        assert (torch.bincount(drawn_.flatten(), minlength=8) == 3).all()
    assert len({tuple(draw_donors(1, 8, labeled(8))[0].tolist()) for _ in range(20)}) > 1


@pytest.mark.parametrize("donors", [1, 2])
def test_fewer_donors_than_rows_are_drawn_with_replacement(donors: int) -> None:
    mixed = patches(rows="all")(unlabeled(2), labeled(donors))
    assert mixed.source.shape[0] == 6
    assert set(mixed.source.unique().tolist()) <= set(range(2 + donors))
    assert draw_donors(3, 50, labeled(donors)).unique().tolist() == list(range(donors))


def test_one_row_draws_its_number_anew() -> None:
    mixer, seen = patches(4, (2, 3, 5), rows="sample"), []
    for _ in range(40):
        source = mixer(unlabeled(4), labeled()).source
        assert source.shape == (4, 16, 16)
        seen += (source >= 4).flatten(1).sum(1).tolist()
    counts = {k: seen.count(16 * k) for k in (2, 3, 5)}
    assert sum(counts.values()) == 160 and min(counts.values()) > 25


def test_donors_that_know_little_stand_back() -> None:
    y = classes(4, 16, 16)
    y[:2, :12] = IGNORE
    donors = View(drawn(4, 3, 16, 16), Target.from_labels(y))
    assert set(draw_donors(2, 20, donors, 0.5).unique().tolist()) == {2, 3}
    assert set(draw_donors(1, 40, donors, 0.0).unique().tolist()) == {0, 1, 2, 3}
    y[2:, :12] = IGNORE
    poor = replace(donors, target=Target.from_labels(y))
    assert set(draw_donors(2, 20, poor, 0.5).unique().tolist()) == {0, 1, 2, 3}, "where none is rich, all take part"
    source = patches(4, (16,), rows="all", known=0.5)(unlabeled(2), donors).source
    assert set(source.unique().tolist()) <= {2 + 2, 2 + 3}


def test_paste_by_hand() -> None:
    mask = torch.tensor([[[True, False]], [[False, True]]])
    paste = paste_labeled([mask, ~mask], torch.tensor([[1, 0], [0, 1]]))
    assert paste.source.flatten(1).tolist() == [[3, 0], [1, 2], [0, 2], [3, 1]]


def test_random_patches_change_and_are_as_many() -> None:
    mixer = patches(4, (5,), rows="all", select="random")
    masks = [mixer(unlabeled(), labeled()).source >= 2 for _ in range(10)]
    assert all((m.flatten(1).sum(1) == 5 * 16).all() for m in masks)
    assert any(not torch.equal(masks[0], m) for m in masks[1:])
    often = torch.stack(masks + [mixer(unlabeled(), labeled()).source >= 2 for _ in range(90)]).float().mean((0, 1))
    assert (often - 5 / 16).abs().max() < 0.15


def test_statistics_are_of_what_was_done() -> None:
    own = with_error(unlabeled(), slice(0, 4), slice(0, 4))
    mixer = patches(4, (1,), rows="all", select="oracle")
    mixer(own, labeled())
    found = {name: (total / count).item() for name, (total, count) in mixer.statistics.items()}
    assert found == {"replaced": 1 / 16, "replaced_known": 1.0, "noise_before": 1 / 16, "noise_after": 0.0}
