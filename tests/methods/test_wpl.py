"""WPL: recorded numbers of the released code, ranks with ties and dead channels, what the banks take in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from torch import Tensor

from semiseg.components import ConfidentLabels, CutMix, weigh_and_mix
from semiseg.hosts.mean_teacher import MeanTeacher
from semiseg.losses import pixel_cross_entropy
from semiseg.methods.wpl import RankWeight, WPLOptions, nearest, shared_channels, signatures
from semiseg.recipe import reading, recipe
from semiseg.types import IGNORE, Output, Paste, Target, View

GOLDEN = torch.load(Path(__file__).parents[1] / "golden" / "wpl_weights.pt", weights_only=True)
GIVEN, WANTED = GOLDEN["inputs"], GOLDEN["outputs"]
K, TAU = 21, 0.95


def output(features: Tensor, label: Tensor, confidence: Tensor) -> Output:
    """Logits whose softmax gives the label that confidence."""
    rest = ((1 - confidence) / (K - 1)).clamp(min=1e-12)[:, None].repeat(1, K, 1, 1)
    p = rest.scatter(1, label[:, None], confidence[:, None].double().to(rest))
    return Output(p.log(), features, features[:, :0], features)


def view(features: Tensor, label: Tensor, confidence: Tensor, ignore: Tensor, boxes: Tensor | None = None) -> View:
    valid = (ignore != IGNORE).float()
    target = Target(label, (confidence >= TAU).float() * valid, valid)
    return View(features[:, :3], target, output(features, label, confidence), boxes=boxes)


def rank_weight(classes: int, width: int, **options: Any) -> RankWeight:
    return RankWeight(classes, width, WPLOptions(**options))


def released(**options: Any) -> RankWeight:
    """A weighter with the recorded memories."""
    weigher = rank_weight(K, 64, **{"memory": 600, "quota": 10**6} | options)
    for bank, held in ((weigher.labeled, "memory_labelled"), (weigher.unlabeled, "memory_unlabelled")):
        for k, vectors in enumerate(GIVEN[held]):
            if vectors is not None:
                bank.push(vectors, torch.full((len(vectors),), k), quota=600)
    return weigher


def recorded() -> tuple[View, View, Paste]:
    own = view(*(GIVEN[k] for k in ("feature_u_w", "mask_u_w", "conf_u_w", "ignore")))
    other = view(*(GIVEN[k] for k in ("feat_u_w_mix", "mask_u_w_mix", "conf_u_w_mix", "ignore_mix")))
    box = GIVEN["box1"].bool()
    b = len(box)
    rows = torch.arange(b)[:, None, None].expand_as(box)
    return own, other, Paste(torch.where(box, rows + b, rows))


def test_weights_equal_the_recorded_ones() -> None:
    own, other, paste = recorded()
    for resolution in ("features", "full"):  # the recorded maps have one size, so both must agree
        weigher = released(resolution=resolution)
        assert torch.equal(weigher(own), WANTED["weight_u_w"])
        assert torch.equal(((weigher(own) - 1) * 5).round().long(), WANTED["overlap_count_u_w"])
        assert torch.equal(paste(weigher(own), weigher(other)), WANTED["weight_s1"])
    assert WANTED["weight_u_w"].unique().numel() > 3, "the record would not tell ranks apart"


@pytest.mark.parametrize(("name", "mixed"), [("s1", True), ("w_fp", False)])
def test_losses_equal_the_recorded_ones_in_both_readings(name: str, mixed: bool) -> None:
    own, other, paste = recorded()
    logits = GIVEN["logits_s1" if mixed else "logits_fp"]
    weigher, paper = released(), released(in_divisor=False, offset=0.0)

    def loss(w: RankWeight) -> Tensor:
        factor = paste(w(own), w(other)) if mixed else w(own)
        target = paste.target(own.target, other.target) if mixed else own.target
        return pixel_cross_entropy(logits, target.times(factor) if w.in_divisor else target.only(factor), "valid")

    torch.testing.assert_close(loss(weigher), WANTED[f"loss_u_{name}"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(loss(paper), GOLDEN["paper_variant"][f"loss_u_{name}"], rtol=1e-6, atol=1e-7)
    assert abs(loss(weigher) - loss(paper)) > 1e-2


def test_reliable_pixels_are_the_recorded_ones() -> None:
    own, other, paste = recorded()
    boxes = paste((GIVEN["boxes"] == 1).to(torch.uint8), (GIVEN["boxes_mix"] == 1).to(torch.uint8)).bool()
    target = paste.target(own.target, other.target)
    teacher = Output.merged(paste, own.teacher, other.teacher)
    strong = Output(GIVEN["logits_s1"], GIVEN["feats_s1"], GIVEN["feats_s1"][:, :0], GIVEN["feats_s1"])
    mixed = View(own.image, target, teacher, strong, boxes=boxes)
    nothing = Target(target.label, torch.zeros_like(target.weight), target.weight)
    weigher = rank_weight(K, 64, memory=600, quota=10**6)
    weigher.observe(View(own.image, nothing, own.teacher, strong), mixed)
    assert int(WANTED["reliable1"].sum()) == len(WANTED["offered_labels1"]) > 0
    assert torch.equal(weigher.unlabeled.filled, WANTED["offered_labels1"].bincount(minlength=K))
    total = torch.stack([weigher.unlabeled[k].sum() for k in range(K)])
    want = torch.zeros(K).index_add(0, WANTED["offered_labels1"], WANTED["offered_feat_sum1"])
    torch.testing.assert_close(total, want, rtol=1e-5, atol=1e-4)
    assert int(weigher.labeled.filled.sum()) == 0


# --- ranks --------------------------------------------------------------------------------


def pixel(*values: float) -> Tensor:
    return torch.tensor(values)[None, :, None, None]


def test_a_prototype_agrees_with_itself_and_order_does_not_matter() -> None:
    z = torch.rand(1, 16, 3, 3)
    signature = signatures(z[0, :, 1, 1][None], 5)
    assert shared_channels(z, signature)[0, 0, 1, 1] == 5
    assert torch.equal(shared_channels(z, signature), shared_channels(z, signature.flip(1)))
    assert torch.equal(shared_channels(z, signature), shared_channels(z * 7, signature))


def test_ties_all_count_and_dead_channels_never() -> None:
    signature = torch.tensor([[0, 1]])
    assert shared_channels(pixel(3, 2, 1, 0), signature).item() == 2
    assert shared_channels(pixel(3, 2, 2, 0), signature).item() == 2  # 1 and 2 tie for the second place
    assert shared_channels(pixel(3, 0, 0, 0), signature).item() == 1  # every dead channel ties for it
    assert shared_channels(pixel(0, 0, 0, 0), signature).item() == 0
    assert shared_channels(pixel(-1, -2, -3, -4), signature).item() == 0
    assert signatures(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), 3).tolist() == [[1, 2, 0]]


def test_counts_equal_a_loop_over_sorted_channels() -> None:
    g = torch.Generator().manual_seed(0)
    z, prototypes = torch.rand(2, 40, 4, 5, generator=g), torch.rand(6, 40, generator=g)
    found = shared_channels(z, signatures(prototypes, 7))
    for b, y, x in ((0, 0, 0), (1, 3, 4), (0, 2, 1)):
        mine = set(z[b, :, y, x].argsort(descending=True)[:7].tolist())
        wanted = [len(mine & set(p.argsort(descending=True)[:7].tolist())) for p in prototypes]
        assert found[b, :, y, x].tolist() == wanted


def test_k_must_fit_the_features() -> None:
    with pytest.raises(ValueError, match=r"wpl\.k must be in 1\.\.4, the number of feature channels, got 5"):
        rank_weight(3, 4)


# --- banks and prototypes ---------------------------------------------------------------------


def seen(weight: float = 1.0, boxes: bool | None = True, right: bool = True, seed: int = 0) -> tuple[View, View]:
    """Labeled and mixed views of 4 x 4 features under 8 x 8 images, everything sure."""
    g = torch.Generator().manual_seed(seed)
    features, label = torch.rand(2, 6, 4, 4, generator=g), torch.randint(0, 3, (2, 8, 8), generator=g)
    logits = 20 * torch.nn.functional.one_hot(label if right else (label + 1) % 3, 3).movedim(-1, 1).float()
    out = Output(logits, features, features[:, :0], features)
    target = Target(label, torch.full(label.shape, weight), torch.full(label.shape, weight))
    inside = None if boxes is None else torch.full((2, 3, 8, 8), boxes)
    one = View(torch.rand(2, 3, 8, 8), target, out, out, boxes=inside)
    return one, one


def test_without_prototypes_every_pixel_is_left_to_the_host_or_to_nobody() -> None:
    weigher = rank_weight(3, 6, k=3)
    assert torch.equal(weigher(seen()[1]), torch.ones(2, 8, 8))
    weigher.unlabeled.push(torch.rand(9, 6), torch.arange(9) % 3, quota=9)
    assert torch.equal(weigher(seen()[1]), torch.ones(2, 8, 8)), "an empty labeled bank makes no prototype"
    weigher.labeled.push(torch.rand(1, 6), torch.tensor([1]), quota=1)
    one = seen()[1]
    assert (weigher(one)[one.target.hard != 1] == 1).all() and weigher(one)[one.target.hard == 1].unique().numel() > 1


@pytest.mark.parametrize(
    ("reliable", "boxes", "stored"),
    [("detector", True, True), ("detector", False, False), ("detector", None, False), ("confidence", None, True),
     ("none", True, False)],
)  # fmt: skip
def test_what_confirms_an_unlabeled_pixel(reliable: str, boxes: bool | None, stored: bool) -> None:
    weigher = rank_weight(3, 6, k=3, reliable=reliable)
    weigher.observe(*seen(boxes=boxes))
    assert (weigher.unlabeled.filled > 0).all() == stored == bool((weigher.unlabeled.filled > 0).any())
    assert (weigher.labeled.filled > 0).all()


def test_wrong_unsure_and_ignored_labeled_pixels_are_not_stored() -> None:
    for wrong in (seen(right=False), seen(weight=0.0)):
        weigher = rank_weight(3, 6, k=3)
        weigher.observe(wrong[0], seen()[1])
        assert int(weigher.labeled.filled.sum()) == 0
    weigher = rank_weight(3, 6, k=3, sure=1.0)
    weigher.observe(*seen())
    assert int(weigher.labeled.filled.sum()) == 0


def test_quota_is_per_image_and_class_and_the_oldest_leave() -> None:
    weigher = rank_weight(3, 6, k=3, quota=2, memory=6)
    weigher.observe(*seen())
    assert weigher.labeled.filled.tolist() == [4, 4, 4]  # two images
    for seed in range(3):
        weigher.observe(*seen(seed=seed))
    assert weigher.labeled.filled.tolist() == [6, 6, 6]


def test_prototype_is_one_flat_mean_over_both_banks() -> None:
    weigher = rank_weight(2, 3, k=1)
    weigher.labeled.push(torch.tensor([[3.0, 0, 0]]), torch.tensor([0]), quota=1)
    weigher.unlabeled.push(torch.tensor([[0.0, 3, 0], [0, 3, 0]]), torch.tensor([0, 0]), quota=2)
    prototypes, ready = weigher.prototypes()
    assert prototypes[0].tolist() == [1, 2, 0] and ready.tolist() == [True, False]


def test_banks_are_part_of_the_checkpoint() -> None:
    one, other = (rank_weight(3, 6, k=3, offset=0.0) for _ in range(2))
    one.observe(*seen())
    other.load_state_dict(one.state_dict())
    mixed = seen()[1]
    assert torch.equal(one(mixed), other(mixed)) and one(mixed).min() < 1


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_other_similarities_lie_in_0_1_and_are_1_for_the_prototype_itself(similarity: str) -> None:
    weigher = rank_weight(3, 6, k=3, similarity=similarity)
    z = torch.rand(1, 6, 2, 2)
    found = weigher.similarities(z, z[0, :, 0].T)
    torch.testing.assert_close(found[0, 0, 0, 0], torch.tensor(1.0), rtol=0, atol=1e-3)
    assert found.min() >= 0 and found.max() <= 1 + 1e-6 and found.std() > 0
    opposite = weigher.similarities(-z, z[0, :, 0].T)
    assert opposite.min() >= 0 and opposite[0, 0, 0, 0] < 1e-3


def test_nearest_is_torchs() -> None:
    plane = torch.arange(35.0).view(1, 1, 5, 7)
    for size in ((2, 3), (9, 8), (5, 7)):
        want = torch.nn.functional.interpolate(plane, size=size, mode="nearest")
        assert torch.equal(nearest(plane, torch.Size(size)), want)


# --- options ------------------------------------------------------------------------------


def prepared(**options: Any) -> RankWeight:
    """A weighter of 3 classes and 6 channels with labeled vectors of every class."""
    made = rank_weight(3, 6, **{"k": 3, "offset": 0.0} | options)
    g = torch.Generator().manual_seed(5)
    made.labeled.push(torch.rand(9, 6, generator=g), torch.arange(9) % 3, quota=9)
    return made


def test_full_resolution_ranks_the_features_brought_to_image_size() -> None:
    """The released code written out: corner-aligned bilinear features, every channel of every pixel sorted."""
    weigher, mixed = prepared(resolution="full", offset=1.0), seen()[1]
    assert mixed.teacher is not None
    fine = torch.nn.functional.interpolate(mixed.teacher.features, (8, 8), mode="bilinear", align_corners=True)
    mine = fine.argsort(1, descending=True)[:, :3]
    of_class = weigher.prototypes()[0].argsort(1, descending=True)[:, :3]
    wanted = torch.empty(2, 8, 8)
    for b in range(2):
        for y in range(8):
            for x in range(8):
                own = set(mine[b, :, y, x].tolist())
                wanted[b, y, x] = 1 + len(own & set(of_class[mixed.target.hard[b, y, x]].tolist())) / 3
    torch.testing.assert_close(weigher(mixed), wanted)
    coarse = prepared(offset=1.0)(mixed)
    assert 0 < (coarse != wanted).float().mean() < 1, "on the feature grid some pixels get another weight"
    stored = rank_weight(3, 6, k=3, resolution="full", quota=99, reliable="confidence")
    stored.observe(*seen())
    assert int(stored.unlabeled.filled.sum()) == 2 * 8 * 8, "one vector per image pixel, not per feature"


@pytest.mark.parametrize("resolution", ["features", "full"])
def test_weights_of_a_mosaic_are_the_mosaic_of_the_weights(resolution: str) -> None:
    """A mixer may come before or after; here along the feature grid, where no feature is cut in two."""
    weigher, (own, other) = prepared(), (seen(seed=1)[1], seen(seed=2)[1])
    rows = torch.arange(2)[:, None, None].expand(2, 8, 8).clone()
    rows[0, 2:6, 4:] = 1  # a neighbor
    rows[1, :4, :4] = 2  # a labeled image
    paste = Paste(rows)
    before, after = paste(weigher(own), weigher(other)), weigher(paste.view(own, other))
    assert torch.equal(before, after) and not torch.equal(before, weigher(own))


def test_offset_unknown_and_divisor_name_the_two_readings() -> None:
    own = seen()[1]
    plain, official = prepared(), prepared(offset=1.0)
    torch.testing.assert_close(official(own), plain(own) + 1)
    for offset, unknown, value in ((0.0, None, 0.0), (1.0, None, 1.0), (1.0, 0.5, 0.5)):
        nothing = rank_weight(3, 6, k=3, offset=offset, unknown=unknown)
        assert (nothing(own) == value).all() and nothing.statistics["prototypes"].tolist() == [0, 3]
    text, code = (reading(recipe("unimatch").having(WPLOptions()), name)[WPLOptions] for name in ("paper", "official"))
    assert (text.offset, text.in_divisor) == (0, False)
    assert (code.offset, code.in_divisor, code.resolution) == (1, True, "full")
    for wrong, message in (
        ({"similarity": "dot"}, "should be 'rank', 'cosine' or 'euclidean', got 'dot'"),
        ({"reliable": "yes"}, "should be 'detector', 'confidence' or 'none', got 'yes'"),
        ({"resolution": "image"}, "should be 'features' or 'full', got 'image'"),
        *(({name: 0}, "should be greater than 0, got 0") for name in ("k", "memory", "quota")),
        *(({name: 85}, "should be less than or equal to 1, got 85") for name in ("sure", "box_score")),
        *(
            ({name: -0.1}, "should be greater than or equal to 0, got -0.1")
            for name in ("sure", "box_score", "offset", "unknown")
        ),
    ):
        with pytest.raises(ValueError, match=f"wpl.{next(iter(wrong))} {message}"):
            WPLOptions(**wrong)


def test_similarities_by_hand() -> None:
    z, prototype = pixel(3, 4), torch.tensor([[1.0, 0]])
    cosine, euclidean = (rank_weight(1, 2, k=1, similarity=s) for s in ("cosine", "euclidean"))
    assert cosine.similarities(z, prototype).item() == pytest.approx(0.6)
    assert euclidean.similarities(z, prototype).item() == pytest.approx(1 - (2 - 1.2) ** 0.5 / 2)
    assert torch.equal(cosine.similarities(z, prototype), cosine.similarities(7 * z, 2 * prototype))
    dead = pixel(0, 0)
    assert cosine.similarities(dead, prototype).item() == 0 and torch.isfinite(euclidean.similarities(dead, prototype))


def test_a_prototype_with_fewer_active_channels_than_k_fills_up_with_the_first_dead_ones() -> None:
    signature = signatures(torch.tensor([[0.0, 2, 0, 0]]), 3)
    assert signature.tolist() == [[1, 0, 2]]
    assert shared_channels(pixel(0, 5, 0, 0), signature).item() == 1, "what the pixel does not show is not shared"


@pytest.mark.parametrize("reliable", ["detector", "confidence"])
def test_unsure_and_padded_unlabeled_pixels_are_not_stored(reliable: str) -> None:
    labeled, mixed = seen()
    assert mixed.teacher is not None
    unsure = replace(mixed, teacher=mixed.teacher._replace(logits=mixed.teacher.logits / 20))
    padded = replace(
        mixed, target=Target(mixed.target.label, mixed.target.weight, torch.zeros_like(mixed.target.weight))
    )
    for view_of in (unsure, padded):
        weigher = rank_weight(3, 6, k=3, reliable=reliable)
        weigher.observe(labeled, view_of)
        assert int(weigher.unlabeled.filled.sum()) == 0 < int(weigher.labeled.filled.sum())


def test_only_pixels_inside_a_box_of_their_own_class_confirm() -> None:
    labeled, mixed = seen()
    boxes = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    boxes[0, 1, :4] = True  # upper half of the first image, class 1 alone
    weigher = rank_weight(3, 6, k=3, quota=99)
    weigher.observe(labeled, replace(mixed, boxes=boxes))
    assert mixed.student is not None
    there = nearest(mixed.target.hard, torch.Size((4, 4)))[0, :2] == 1
    assert weigher.unlabeled.filled.tolist() == [0, int(there.sum()), 0] and there.any()
    wanted = mixed.student.features[0, :, :2][:, there].T
    assert {tuple(v) for v in weigher.unlabeled[1].tolist()} == {tuple(v) for v in wanted.tolist()}


def test_what_is_stored_is_the_students_strong_view_and_what_is_weighed_the_teachers_weak_one() -> None:
    labeled, mixed = seen()
    assert mixed.teacher is not None
    other = mixed.teacher._replace(features=mixed.teacher.features + 10)
    weigher = rank_weight(3, 6, k=3, quota=99)
    weigher.observe(labeled, mixed.seen_by(other))
    assert weigher.unlabeled.rows[:, :1].min() >= 10
    weigher = prepared()
    assert torch.equal(weigher(mixed), weigher(mixed.seen_by(other)))
    assert not torch.equal(
        weigher(mixed), weigher(replace(mixed, teacher=other._replace(features=other.features.flip(1))))
    )


def test_no_labeled_pixel_in_a_batch_and_no_kept_one_leave_a_finite_step() -> None:
    weigher = rank_weight(toys.K, toys.D, sure=0.0)
    host = MeanTeacher(toys.student(), label=ConfidentLabels(0.0), weigh=weigher, divisor="valid")
    given = toys.batch()
    step = host.losses(given._replace(y=torch.full_like(given.y, IGNORE)), 0.5)
    assert int(weigher.labeled.filled.sum()) == 0 and step.statistics["prototypes"][0] == 0
    assert step.losses["unlabeled"] > 0 and torch.isfinite(step.losses["labeled"])
    weigher.unknown = 0.0
    assert host.losses(given._replace(y=torch.full_like(given.y, IGNORE)), 0.5).losses["unlabeled"] == 0


# --- in a host --------------------------------------------------------------------------------


def test_a_host_weighs_the_unlabeled_term_and_pasted_labels_keep_weight_1() -> None:
    torch.manual_seed(0)
    weigher = rank_weight(toys.K, toys.D, k=10, sure=0.0)  # two tens of sixteen channels always share four
    host = MeanTeacher(
        toys.student(), label=ConfidentLabels(0.0), mix=CutMix(p=1.0), weigh=weigher, color=True, divisor="valid"
    )
    batch = toys.batch()._replace(u_boxes=torch.ones(toys.B, toys.K, toys.S, toys.S, dtype=torch.bool))
    first, second = (host.losses(batch, 0.5) for _ in range(2))
    assert first.losses["unlabeled"] > 0 and int(weigher.labeled.filled.sum()) > 0
    total, count = second.statistics["weight"]
    assert 1 < total / count < 2
    assert {"weight_right", "weight_wrong", "prototypes"} <= second.statistics.keys()
    assert any("weigh.labeled.rows" in name for name in host.state_dict())

    labeled, mixed = seen()
    rows = torch.arange(2)[:, None, None].expand(2, 8, 8).clone()
    rows[:, :4] += 2
    small = rank_weight(3, 6, k=3)
    small.observe(*seen())
    target = weigh_and_mix(small, Paste(rows), mixed, labeled, mixed)
    assert (target.weight[:, :4] == 1).all() and torch.equal(target.weight[:, 4:], small(mixed)[:, 4:])
    assert torch.equal(target.weight, target.denominator)
    small.in_divisor = False
    assert (weigh_and_mix(small, Paste(rows), mixed, labeled, mixed).denominator == 1).all()
