"""Mask2Former: scores of pixels from masks, the set loss with ignored pixels, torchvision's weights, two trainings."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn
from toys import B, Blobs, K, S, batch

from semiseg.build import build
from semiseg.components import entropy
from semiseg.data.splits import seeded_split
from semiseg.hosts.mask2former import Mask2FormerOptions, build_on_labels, label_by_masks, mask_set
from semiseg.inference.model import load_exported
from semiseg.methods.upc import UPCOptions
from semiseg.methods.wpl import WPLOptions
from semiseg.models import mask2former as model
from semiseg.models.mask2former import Mask2Former, MaskQueries, class_scores, log_probabilities
from semiseg.options import Options
from semiseg.recipe import Recipe, recipe
from semiseg.training import stages
from semiseg.training.loop import Fit
from semiseg.training.run import train
from semiseg.types import IGNORE, Batch, Target

pytest.importorskip("transformers")
from transformers import Mask2FormerConfig, ResNetConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher, Mask2FormerLoss

from semiseg.models.mask2former_loss import MaskLoss, Matcher, planes_of

Q, P = 6, 64


def network(seed: int = 0, **changes) -> Mask2Former:
    torch.manual_seed(seed)
    small = {"width": 32, "queries": Q, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "feedforward": (32, 32)}
    return Mask2Former("tiny", K, **(small | changes))


def said(side: int = 16, layers: int = 2) -> MaskQueries:
    """Random queries after each layer, with gradient."""
    g = torch.Generator().manual_seed(3)

    def some(*shape: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(B, *shape, generator=g).requires_grad_() for _ in range(layers))

    return MaskQueries(some(Q, K + 1), some(Q, side, side), torch.zeros(B, 1, 1, 1), torch.zeros(B, 1, 1, 1))


def labels(ignored: slice | None = None) -> Tensor:
    """Three stripes per image, of classes that differ between images."""
    y = torch.zeros(B, S, S, dtype=torch.long)
    for row in range(B):
        y[row, 10:20], y[row, 20:] = (row + 1) % K, (row + 2) % K
    if ignored is not None:
        y[:, ignored] = IGNORE
    return y


# --- scores -----------------------------------------------------------------------------------


def test_probabilities_sum_to_one_though_scores_do_not() -> None:
    x, net = torch.randn(2, 3, 33, 40), network().eval()
    out, scores = net(x), net.queries(x).scores((33, 40))
    assert out.logits.shape == (2, K, 33, 40) and (scores.sum(1) - 1).abs().min() > 1e-3
    torch.testing.assert_close(out.logits.exp().sum(1), torch.ones(2, 33, 40))
    torch.testing.assert_close(out.logits.softmax(1), scores / scores.sum(1, keepdim=True))
    assert out.features.shape == (2, 32, 17, 20) and out.embedding.shape[1] == 0 and out.deep.shape[:2] == (2, 128)


def two_masks(sure: float) -> tuple[Tensor, Tensor]:
    """Query 0: class 1 in the upper half; query 1: class 2 in the lower; the others: no object."""
    classes = torch.full((1, Q, K + 1), -sure)
    classes[0, 0, 1] = classes[0, 1, 2] = classes[0, 2:, K] = sure
    masks = torch.full((1, Q, S, S), -sure)
    masks[0, 0, : S // 2] = masks[0, 1, S // 2 :] = sure
    return classes, masks


def test_two_perfect_masks_leave_no_doubt() -> None:
    scores = class_scores(*two_masks(40.0), (S, S))
    torch.testing.assert_close(scores.sum(1), torch.ones(1, S, S))
    logits = log_probabilities(scores)
    assert entropy(logits).max() < 1e-5
    assert (logits.argmax(1)[0, : S // 2] == 1).all() and (logits.argmax(1)[0, S // 2 :] == 2).all()


def test_masks_are_enlarged_before_the_sigmoid() -> None:
    classes, masks = torch.randn(1, Q, K + 1), torch.randn(1, Q, 4, 4) * 10
    big = F.interpolate(masks, size=(9, 9), mode="bilinear", align_corners=False).sigmoid()
    expected = torch.zeros(1, K, 9, 9)
    for q in range(Q):
        for k in range(K):
            expected[0, k] += classes[0, q].softmax(0)[k] * big[0, q]
    torch.testing.assert_close(class_scores(classes, masks, (9, 9)), expected)


def test_a_pixel_that_no_query_claims_is_equally_likely_of_every_class() -> None:
    logits = log_probabilities(torch.zeros(1, K, 2, 2))
    torch.testing.assert_close(entropy(logits), torch.full((1, 2, 2), math.log(K)))


class Fixed(SimpleNamespace):
    """A network that says the same of every image."""

    def queries(self, x: Tensor) -> MaskQueries:
        return MaskQueries((self.classes,), (self.masks,), x, x)


def test_doubt_is_of_the_normalized_scores_or_counts_what_is_missing() -> None:
    classes, masks = two_masks(40.0)
    masks[0, 1] = -40.0
    masks[0, 0] = 0.0  # class 1 with score 1/2, everywhere
    net, x = Fixed(classes=classes, masks=masks), torch.zeros(1, 3, S, S)
    label, doubt = label_by_masks(net, x)
    assert (label == 1).all() and doubt.max() < 1e-5
    label, doubt = label_by_masks(net, x, "missing")
    assert (label == 1).all()
    torch.testing.assert_close(doubt, torch.full((1, S, S), math.log(2)))


# --- the set loss ---------------------------------------------------------------------------------


def library() -> Mask2FormerLoss:
    encoder = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(backbone_config=encoder, num_labels=K, train_num_points=P)
    terms = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    return Mask2FormerLoss(config, terms)


def the_library_says(queries: MaskQueries, y: Tensor) -> dict[str, Tensor]:
    sets = [mask_set(Target.from_labels(y), row) for row in range(len(y))]
    masks = [torch.stack(list(s.values())).float() for s in sets]
    classes = [torch.tensor(list(s)) for s in sets]
    earlier = [
        {"masks_queries_logits": m, "class_queries_logits": c}
        for m, c in zip(queries.masks[:-1], queries.classes[:-1], strict=True)
    ]
    loss = library()
    found = loss(queries.masks[-1], queries.classes[-1], masks, classes, earlier)
    short = {"loss_cross_entropy": "class", "loss_mask": "mask", "loss_dice": "dice"}
    return {
        name: loss.weight_dict[term] * sum(v for k, v in found.items() if k.startswith(term))
        for term, name in short.items()
    }


def gradients(losses: dict[str, Tensor], queries: MaskQueries) -> tuple[Tensor, ...]:
    return torch.autograd.grad(sum(losses.values()), (*queries.masks, *queries.classes))


def test_where_nothing_is_ignored_it_is_the_library_s_loss() -> None:
    y, queries = labels(), said(layers=3)
    torch.manual_seed(1)
    theirs = the_library_says(queries, y)
    torch.manual_seed(1)
    ours = MaskLoss(K, points=P).losses(queries, Target.from_labels(y))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], msg=name)
    for a, b in zip(gradients(ours, queries), gradients(theirs, queries), strict=True):
        torch.testing.assert_close(a, b)


def test_mask_terms_are_divided_by_the_mean_number_of_masks_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    y, queries = labels(), said()
    own = sum(len(mask_set(Target.from_labels(y), row)) for row in range(len(y)))

    def losses() -> dict[str, Tensor]:
        torch.manual_seed(1)
        return MaskLoss(K, points=P).losses(queries, Target.from_labels(y))

    alone = losses()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda number: number.add_(3.0 * own))  # the other process
    two = losses()
    for name in ("mask", "dice"):
        torch.testing.assert_close(two[name], alone[name] / 2, msg=name)
    assert two["class"] == alone["class"]


def test_half_precision_of_the_network_is_left_outside() -> None:
    queries, target, found = said(), Target.from_labels(labels()), []
    for half in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            losses = MaskLoss(K, points=P).losses(queries, target)
            found.append([*losses.values(), queries.scores((S, S))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net = network()
        assert sum(MaskLoss(K, points=P).losses(net.queries(torch.rand(B, 3, S, S)), target).values()).isfinite()


def test_the_same_queries_are_matched() -> None:
    y, queries = labels(), said()
    planes, classes = planes_of(Target.from_labels(y))
    masks = [planes[row, 2 : 2 + len(c)] for row, c in enumerate(classes)]
    found = []
    for kind, given in ((Mask2FormerHungarianMatcher, masks), (Matcher, planes)):
        torch.manual_seed(1)
        found.append(kind(2.0, 5.0, 5.0, P)(queries.masks[-1], queries.classes[-1], given, classes))
    for (q, i), (p, j), c in zip(*found, classes, strict=True):
        assert q.tolist() == p.tolist() and i.tolist() == j.tolist() and len(q) == len(c) > 1


def test_ignored_pixels_have_no_gradient() -> None:
    queries, ignored = said(side=S), slice(4, 16)
    y = labels(ignored)
    ours = MaskLoss(K, points=4 * P).losses(queries, Target.from_labels(y))
    theirs = the_library_says(queries, y)
    inner = (..., slice(5, 15), slice(None))  # bilinear points reach one pixel beyond a border
    for mine, library_s in zip(gradients(ours, queries)[:2], gradients(theirs, queries)[:2], strict=True):
        assert (mine[inner] == 0).all() and (mine != 0).any()
        assert (library_s[inner] != 0).any(), "there it belongs to no mask, so that every mask learns to avoid it"


@pytest.mark.parametrize("term", ["mask", "dice"])
def test_ignored_pixels_choose_no_query(term: str) -> None:
    y = torch.full((1, S, S), IGNORE)
    y[:, :8], y[:, 8:16] = 1, 0
    masks = torch.full((1, 2, S, S), -5.0)
    masks[:, 0, :8], masks[:, 0, 16:] = 5.0, 5.0  # right where it is known, and all over what is not
    masks[:, 1, 2:8] = 5.0  # not quite right, and nothing else
    planes, classes = planes_of(Target.from_labels(y))
    cost = {"cost_class": 0.0, "cost_mask": 0.0, "cost_dice": 0.0, f"cost_{term}": 1.0}
    ((queries, found),) = Matcher(**cost, num_points=2000)(masks, torch.zeros(1, 2, K + 1), planes, classes)
    assert dict(zip(classes[0][found].tolist(), queries.tolist(), strict=True))[1] == 0


def test_what_lies_under_ignored_pixels_changes_nothing() -> None:
    y, queries = labels(slice(4, 16)), said(side=S)
    target = Target.from_labels(y)
    other = replace(target, label=torch.where(y == IGNORE, 3, y))
    shifted = tuple(m.detach().clone() for m in queries.masks)
    for m in shifted:
        m[..., 5:15, :] += torch.randn(B, Q, 10, S)
    losses = []
    for q, t in ((queries, target), (queries, other), (queries._replace(masks=shifted), target)):
        torch.manual_seed(1)
        loss = MaskLoss(K, points=P)
        loss.importance_sample_ratio = 0.0  # points from the unsure masks would move with them
        losses.append(torch.stack(list(loss.losses(q, t).values())))
    assert torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


@pytest.mark.parametrize("every", [True, False])
def test_images_without_a_known_pixel_are_finite(every: bool) -> None:
    y, queries = labels(), said()
    y[0 if not every else slice(None)] = IGNORE
    losses = MaskLoss(K, points=P).losses(queries, Target.from_labels(y))
    assert all(torch.isfinite(v) for v in losses.values())
    found = gradients(losses, queries)
    assert all(torch.isfinite(g).all() for g in found) and (found[0][0] == 0).all()
    assert losses["class"] > 0 and (losses["mask"] == 0) == every


def test_weights_scale_a_pixel_in_the_sum_and_where_asked_in_the_divisor() -> None:
    target, queries = Target.from_labels(labels()), said()
    half = torch.full((B, S, S), 0.5)
    found = []
    for t in (target, target.times(half), target.only(half)):
        torch.manual_seed(1)
        loss = MaskLoss(K, points=P)
        loss.matcher.cost_mask = loss.matcher.cost_dice = 0.0  # the same pairs for all
        found.append(loss.losses(queries, t)["mask"])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0] / 2)


def test_a_set_has_a_mask_for_each_known_class() -> None:
    y = labels(slice(0, 12))
    planes, classes = planes_of(Target.from_labels(y))
    assert [c.tolist() for c in classes] == [[1, 2], [2, 3], [0, 3]]
    assert planes.shape == (B, 4, S, S)
    assert (
        torch.equal(planes[:, 2:].sum(1), planes[:, 0]) and planes[0, 2].sum() == 8 * S and planes[2, 2].sum() == 12 * S
    )


# --- weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_s_weights_give_the_same_maps(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = tv.get_model(name).eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    small = {"width": 32, "queries": 2, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "feedforward": (32, 32)}
    ours = Mask2Former(name, K, weights=tmp_path / "w.pth", **small).eval().backbone
    x = torch.randn(1, 3, 64, 64)
    h = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    with torch.no_grad():
        for layer, found in zip((net.layer1, net.layer2, net.layer3, net.layer4), ours(x).feature_maps, strict=True):
            h = layer(h)
            assert torch.equal(h, found)


def test_weights_of_another_network_are_reported(tmp_path: Path) -> None:
    torch.save(tv.get_model("resnet34").state_dict(), tmp_path / "w.pth")
    encoder = network().backbone
    with pytest.raises(ValueError, match=r"w\.pth does not fit resnet18: .* unknown"):
        model.load_encoder(encoder, "resnet18", tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"torchvision's resnet34 does not fit: \d+ missing or of another shape"):
        model.load_encoder(encoder, "resnet34", tmp_path / "w.pth")
    with pytest.raises(ValueError, match="backbone 'tiny' has no pretrained weights"):
        model.load_encoder(encoder, "tiny", "imagenet")


def test_bad_networks_are_named() -> None:
    with pytest.raises(ValueError, match="no backbone 'vgg'; expected one of tiny, resnet18"):
        Mask2Former("vgg", K)
    with pytest.raises(ValueError, match="a multiple of 32 and of heads=2, got 48"):
        network(width=48)


def test_without_the_library_the_message_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs the package transformers: pip install 'semiseg\[mask2former\]'"):
        network()
    build(recipe("stpp", scale="smoke"), K)  # no other method asks for it


def test_the_package_imports_no_model_and_building_one_prints_nothing() -> None:
    code = """
import sys, semiseg.training.run, semiseg.training.stages, semiseg_book.chapters.hosts
from semiseg.build import build
from semiseg.recipe import recipe
assert not [m for m in sys.modules if m.startswith("transformers.models.mask2former")]
build(recipe("mask2former", scale="smoke"), 4)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# --- the two trainings --------------------------------------------------------------------------------


def smoke(*parts: Options) -> Recipe:
    return recipe("mask2former", "digits", "1_4", "smoke").having(*parts)


def given_batch() -> Batch:
    b, g = batch(), torch.Generator().manual_seed(5)
    given = torch.where(b.u_valid, torch.randint(0, K, b.u_hidden.shape, generator=g), IGNORE)
    return b._replace(u_given=given, u_entropy=torch.rand(given.shape, generator=g) * b.u_valid)


class Heard(nn.Module):
    """A criterion that keeps what it was given."""

    def losses(self, queries: MaskQueries, target: Target) -> dict[str, Tensor]:
        self.target, self.rows = target, len(queries.masks[-1])
        return {"mask": queries.masks[-1].sum() * 0}


def test_patches_are_replaced_before_the_sets_are_made() -> None:
    b = given_batch()
    host = build(smoke(UPCOptions(rows="all")), K)
    host.criterion = heard = Heard()
    step = host.losses(b, 0.5)
    assert heard.rows == len(b.x) + 3 * len(b.u_weak) == len(heard.target.weight)
    paste_share, mixed = step.statistics["replaced"], heard.target.label[len(b.x) :]
    own = torch.where(b.u_given == IGNORE, 0, b.u_given).repeat(3, 1, 1)
    changed = (mixed != own).float().mean()
    assert torch.isclose(paste_share[0] / paste_share[1], torch.tensor(10 / 48)) and 0.1 < changed < 10 / 48
    foreign = heard.target.label[len(b.x) :][mixed != own]
    assert len(foreign.unique()) == K
    labeled = Target.from_labels(b.y)
    assert torch.equal(heard.target.label[: len(b.x)], labeled.label)


def test_rank_statistics_weigh_pixels_of_unlabeled_images_alone() -> None:
    torch.manual_seed(0)
    b, host = given_batch(), build(smoke(WPLOptions(sure=0.0, reliable="confidence")), K)
    heard, criterion = Heard(), host.criterion
    for _ in range(3):
        host.criterion = heard
        host.losses(b, 0.5)
    weight = heard.target.weight
    assert torch.equal(weight[: len(b.x)], Target.from_labels(b.y).weight)
    assert len(weight[len(b.x) :].unique()) > 2
    host.criterion = criterion
    assert host.losses(b, 0.5).losses["mask"] > 0


def test_the_student_sees_strong_colors_where_they_are_asked_for() -> None:
    b = given_batch()
    swapped = b._replace(u_strong=b.u_strong * 0)
    for color in (True, False):
        host = build(smoke().changed({"mask2former.color": color}), K).eval()
        losses = []
        for each in (b, swapped):
            torch.manual_seed(0)
            losses.append([v.item() for v in host.losses(each, 0.5).losses.values()])
        assert (losses[0] != losses[1]) == color


def test_without_labels_from_disk_the_step_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="retraining needs labels from disk"):
        build(smoke(), K).losses(batch(), 0.0)


def test_the_first_training_reads_labeled_images_alone() -> None:
    host, b = build_on_labels(smoke(), K).eval(), batch()
    empty = b._replace(u_weak=b.u_weak[:0], u_strong=b.u_strong[:, :0])
    torch.manual_seed(0)
    one = host.losses(b, 0.0).losses
    torch.manual_seed(0)
    assert one == host.losses(empty, 0.0).losses and set(one) == {"class", "mask", "dice"}


def test_the_plan_is_labels_then_all_from_the_initial_weights() -> None:
    def plan(r: Recipe, labeled: int) -> tuple[stages.Stage, ...]:
        split = SimpleNamespace(labeled=("l",) * labeled, unlabeled=("u",) * 50, name="x")
        return stages.plan(Fit(r, Blobs(), split, Path("run"), {}))

    first, last = (s.recipe.optimization for s in plan(recipe("mask2former", "voc", "1_8", "paper"), 183))
    assert (first.epochs * first.epoch_steps, last.epochs * last.epoch_steps) == (30_000, 60_000)
    assert (first.batch, last.batch, last.crop, last.weight_decay) == (16, 8, 512, 1e-4), "16 images in every step"
    assert last.lr * last.head_lr_factor == pytest.approx(1e-4) and last.clip_norm == 0.01
    short = plan(recipe("mask2former", "voc", "1_8", "tiny"), 183)
    assert [s.recipe.network.backbone for s in short] == ["resnet18", "resnet18"]
    city = recipe("mask2former", "cityscapes", "1_8", "paper")
    assert (city.optimization.crop, city.optimization.weight_decay) == (1024, 5e-4)
    one, two = plan(smoke(UPCOptions(), WPLOptions()), 4)
    assert one.recipe.plug_ins == () and two.recipe.plug_ins == ("upc", "wpl") and one.images is None
    assert two.recipe[UPCOptions] == UPCOptions()


class Stopped(Exception):
    """The process dies."""


def test_a_run_that_died_between_its_stages_continues(tmp_path: Path, monkeypatch) -> None:
    data = Blobs(12, 2)
    split = seeded_split(data.train, "1_4", 0)
    changes = "optimization.epochs=1 optimization.batch=2 optimization.epoch_steps=1 mask2former.epochs=1"
    r = smoke(UPCOptions()).changed(changes)

    def go(name: str) -> object:
        return train(r, data, split, tmp_path / name, progress=False)

    whole, fits, fit = go("whole"), [], stages.fit

    def counted(fabric: object, task: Fit, *rest: object) -> object:
        fits.append(task.folder.name)
        return fit(fabric, task, *rest)

    def dies(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(stages, "fit", counted)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(stages, "write_labels", dies)
        go("parts")
    parts = go("parts")
    assert fits == ["stage1", "stage2"]
    assert parts.metrics.drop(columns="seconds").equals(whole.metrics.drop(columns="seconds"))
    assert [s["name"] for s in parts.record["stages"]] == ["stage1", "stage2"]
    assert parts.record["stages"][1]["labels"]["images"] == len(split.unlabeled)
    curve = parts.metrics
    assert curve.loss_mask.gt(0).all() and curve.score_sum.gt(0).all() and "replaced" in curve

    a, b = (load_exported(r, len(data.classes), run.folder / "model.safetensors") for run in (whole, parts))
    x = data.image(data.val[0])[None].float() / 255
    assert torch.equal(a.teacher(x).logits, b.teacher(x).logits)
    assert torch.equal(a.student(x).logits, a.teacher(x).logits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask2FormerOptions(epochs=0), r"mask2former\.epochs should be greater than 0, got 0"),
        (lambda: Mask2FormerOptions(labeled_by="both"), r"labeled_by should be 'student' or 'teacher', got 'both'"),
        (lambda: Mask2FormerOptions(doubt="none"), r"doubt should be 'normalized' or 'missing', got 'none'"),
        (
            lambda: build(smoke().changed("network.backbone=mobilenet_v2"), K),
            "Mask2Former has no backbone 'mobilenet_v2'; expected one of tiny, resnet18",
        ),
        (lambda: smoke().changed("optimization.ohem=True"), "no cross-entropy over pixels that OHEM"),
        (lambda: smoke().changed("network.projection=1"), "does not read network.projection"),
        (lambda: smoke().changed("optimization.clip_norm=0.0"), r"clip_norm should be greater than 0, got 0\.0"),
    ],
)
def test_options_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recipe_survives_its_record() -> None:
    r = smoke(Mask2FormerOptions(epochs=3, queries=7, doubt="missing"))
    again = Recipe.from_dict(r.as_dict())
    assert again[Mask2FormerOptions] == r[Mask2FormerOptions] and again.sha256 == r.sha256
