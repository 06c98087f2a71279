"""DGCL: loss and memory against official numbers, density by hand, every option, edge cases, its place in the host."""

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toys import D, K, batch, student

from semiseg.banks import ClassBank, as_pixels, largest
from semiseg.build import build
from semiseg.components import EntropyFilter, NoMix
from semiseg.hosts.mean_teacher import MeanTeacher
from semiseg.losses import info_nce, pixel_cross_entropy
from semiseg.methods.dgcl import DensityContrast, DGCLOptions, density
from semiseg.recipe import reading, recipe
from semiseg.types import IGNORE, Output, Target, View

GOLDEN = Path(__file__).parents[1] / "golden"
E = 8


def view(labels: Tensor, features: Tensor, embedding: Tensor, logits: Tensor | None = None) -> View:
    """A view on its own feature grid, its pseudo-labels given."""
    logits = F.one_hot(labels % 200 % K, K).movedim(-1, 1).float() if logits is None else logits
    out = Output(logits, features, embedding, features)
    return View(features[:, :3], Target.from_labels(labels), teacher=out.detach(), student=out)


def halves(labels: Tensor, features: Tensor, embedding: Tensor) -> tuple[View, View]:
    """The first images as the labeled view, the others as the unlabeled one."""
    n = len(labels) // 2
    return view(labels[:n], features[:n], embedding[:n]), view(labels[n:], features[n:], embedding[n:])


def rows_of(features: Tensor, projections: Tensor, scores: Tensor) -> Tensor:
    length = features.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return torch.cat((features / length, length, projections, scores[..., None]), -1)


# --- against official numbers -------------------------------------------------------------


def golden_loss() -> tuple[DensityContrast, dict]:
    g = torch.load(GOLDEN / "dgcl_loss_small.pt", weights_only=True)
    o = DGCLOptions(embedding=16, bank=300, quota=300, anchors=30, keys=10, weight=1.0, equal_when_few=True)
    c = DensityContrast(4, 16, o)
    assert c.bank is not None
    c.bank.rows.copy_(rows_of(g["bank_features"], g["bank_projections"], g["bank_density"]))
    c.bank.filled.fill_(300)
    return c, g


def test_loss_and_gradient_are_the_official_ones() -> None:
    c, g = golden_loss()
    embedding = g["rep"].clone().requires_grad_()
    loss = c(*halves(g["label"], g["fts"], embedding), 0.5)
    torch.testing.assert_close(loss, g["loss"], rtol=0, atol=1e-6)
    loss.backward()
    torch.testing.assert_close(embedding.grad, g["grad_rep"], rtol=0, atol=1e-8)


def test_density_anchors_keys_and_eq_13_are_the_official_ones() -> None:
    c, g = golden_loss()
    labeled, unlabeled = halves(g["label"], g["fts"], g["rep"])
    seen = c._see(labeled, unlabeled, 0.5)
    for choice, k in zip(c._choose_and_remember(seen), (1, 2, 3), strict=True):
        want = g["per_class"][k]
        if k != 3:  # 17 pixels: replaced by ones, so that class 3 checks the order of ties
            unit = F.normalize(seen.features[seen.labels == k], dim=1)
            neighbors = F.normalize(g["bank_features"][k], dim=1)
            torch.testing.assert_close(density(unit, neighbors, (8, 16, 32)), want["density"], rtol=0, atol=1e-6)
        assert torch.equal(seen.embedding[choice.anchors], want["anchors"])
        torch.testing.assert_close(choice.center, want["positives"].mean(0), rtol=1e-5, atol=1e-6)
        negatives = seen.embedding[choice.negatives]
        assert torch.equal(negatives.sort(0).values, want["negatives"].sort(0).values)
        printed = info_nce(
            want["anchors"], choice.center[None], negatives, 0.5, positive_in_denominator=False, reduction="mean"
        )
        torch.testing.assert_close(printed, want["loss_if_positive_excluded"], rtol=0, atol=1e-6)


def golden_memory() -> tuple[DensityContrast, list[dict]]:
    steps = torch.load(GOLDEN / "dgcl_memory.pt", weights_only=True)["steps"]
    return DensityContrast(3, 8, DGCLOptions(embedding=4, bank=1300, quota=1000, exclude=())), steps


def test_memory_holds_what_the_official_one_holds() -> None:
    """Theirs starts with the newest block, ours ends with it; of the oldest block another part may be left."""
    c, steps = golden_memory()
    for n, step in enumerate(steps, 1):
        c(*halves(step["label"], step["fts"], step["rep"]), 0.5)
        assert c.bank.filled.tolist() == step["sizes"]
        for k in range(3):
            oldest_first = c.bank.rows[k].roll(-int(c.bank.head[k]), 0)
            end, start = 1300, 0
            for earlier in reversed(steps[:n]):
                size = int((earlier["label"] == k).sum())
                if start + size > step["sizes"][k]:
                    break
                ours, theirs = oldest_first[end - size : end], slice(start, start + size)
                torch.testing.assert_close(ours[:, :8] * ours[:, 8:9], step["bank_features"][k][theirs])
                assert torch.equal(ours[:, 9:13], step["bank_projections"][k][theirs])
                start, end = start + size, end - size
            assert start > min(step["sizes"][k], 900) - 1


@pytest.mark.parametrize("n", range(6))
def test_density_is_stored_as_the_official_memory_does(n: int) -> None:
    c, steps = golden_memory()
    for k in range(3 if n else 0):  # the official bank before this step
        parts = [steps[n - 1][f"bank_{name}"][k] for name in ("features", "projections", "density")]
        size = len(parts[0])
        c.bank.rows[k, :size] = rows_of(parts[0], parts[1], parts[2][:size])
        c.bank.filled[k], c.bank.head[k] = size, size % 1300
    start = c.bank.head.tolist()
    c(*halves(steps[n]["label"], steps[n]["fts"], steps[n]["rep"]), 0.5)
    for k in range(3):
        new = int((steps[n]["label"] == k).sum())
        ours, theirs = c.bank.rows[k].roll(-start[k], 0)[:new, 13], steps[n]["bank_density"][k][:new]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert (theirs != 0).any() == (n > 2), "0 while the bank holds at most 1,000"


# --- density and its top-k ----------------------------------------------------------------


def test_density_by_hand() -> None:
    angles = torch.tensor([0.0, 60.0, 90.0, 180.0]).deg2rad()
    bank = torch.stack((angles.cos(), angles.sin()), 1)
    probe = torch.tensor([[1.0, 0.0]])
    for scales, own, want in (
        ((1,), False, 1.0), ((2,), False, 0.75), ((3,), False, 0.5), ((1, 2), False, (1 + 0.75) / 2),
        ((9,), False, 0.125), ((3,), True, (1 + 1 + 0.5) / 3), ((1,), True, 1.0), ((1, 2, 9), True, (1 + 1 + 0.3) / 3),
    ):  # fmt: skip
        torch.testing.assert_close(density(probe, bank, scales, own), torch.tensor([want]), rtol=0, atol=1e-6)


def test_blocks_do_not_change_the_density() -> None:
    unit, bank = F.normalize(torch.randn(50, 8), dim=1), F.normalize(torch.randn(700, 8), dim=1)
    torch.testing.assert_close(density(unit, bank, (8, 16), block=7), density(unit, bank, (8, 16)))


@pytest.mark.parametrize(("m", "k"), [(5, 5), (97, 3), (1000, 8), (1003, 32), (4096, 1)])
def test_elimination_finds_the_k_largest(m: int, k: int) -> None:
    for rows in (torch.randn(20, m), torch.randint(0, 4, (20, m)).float(), torch.arange(float(m)).expand(2, m)):
        values, places = largest(rows, k)
        assert torch.equal(values, rows.topk(k, dim=1).values)
        assert torch.equal(rows.gather(1, places), values)
        assert all(len(set(row)) == k for row in places.tolist()), "no place twice"


# --- labels -------------------------------------------------------------------------------


def test_entropy_filter_drops_the_most_uncertain_share_of_valid_pixels() -> None:
    logits = torch.randn(2, K, 10, 10) * torch.rand(2, 1, 10, 10) * 8
    valid = torch.ones(2, 10, 10, dtype=torch.bool)
    valid[:, :, :4] = False
    out = Output(logits, logits, logits[:, :0], logits)
    keep = EntropyFilter(0.25)(out, valid, 0.0)
    p = logits.softmax(1)
    h = -(p * p.log()).sum(1)
    assert keep.weight.sum() == 0.75 * valid.sum() and not keep.weight[~valid].any()
    assert h[keep.weight > 0].max() < h[valid & (keep.weight == 0)].min()
    assert torch.equal(keep.label, logits.argmax(1)) and torch.equal(keep.denominator, valid.float())
    nothing = EntropyFilter()(out, torch.zeros_like(valid), 0.0)
    assert nothing.weight.sum() == nothing.denominator.sum() == 0


def test_the_dropped_share_falls_as_the_paper_or_the_code_has_it() -> None:
    text = EntropyFilter(0.2)
    assert [text.share(t) for t in (0, 0.25, 1)] == pytest.approx([0.2, 0.15, 0])
    code = EntropyFilter(0.8, least=0.1, start=0.1, stages=9)  # ten epochs, the first without unlabeled images
    by_epoch = [code.share(epoch / 10) for epoch in range(1, 10)]
    assert by_epoch == pytest.approx([max(0.8 * (1 - i / 9), 0.1) for i in range(9)])
    assert code.share(0.199) == code.share(0.1) != code.share(0.2)
    for bad in ({"drop": 1.0}, {"drop": 0.1, "least": 0.2}, {"start": 1.0}):
        with pytest.raises(ValueError, match="EntropyFilter needs"):
            EntropyFilter(**bad)


def test_unsupervised_loss_of_the_code_is_the_mean_over_kept_pixels_times_all_over_kept() -> None:
    target = Target.from_labels(torch.randint(0, K, (2, 8, 8))).only((torch.arange(8) < 6).float().expand(2, 8, 8))
    logits = torch.randn(2, K, 8, 8)
    kept = pixel_cross_entropy(logits, target, "kept")
    torch.testing.assert_close(pixel_cross_entropy(logits, target, "kept_scaled"), kept * 8 / 6)
    padded = replace(target, denominator=target.weight)
    torch.testing.assert_close(pixel_cross_entropy(logits, padded, "kept_scaled"), kept * 8 / 6)
    assert pixel_cross_entropy(logits, target.only(torch.zeros(2, 8, 8)), "kept_scaled") == 0


# --- edge cases and options of the loss ---------------------------------------------------


SMALL = DGCLOptions(embedding=E, bank=40, quota=20, anchors=5, keys=4, negatives=30, scales=(2, 4), exclude=())


def small(labels=None, project=None, **options) -> DensityContrast:
    torch.manual_seed(0)
    return DensityContrast(K, D, replace(SMALL, **options), labels=labels, project=project)


def scene(labels: Tensor | None = None, seed: int = 0) -> tuple[View, View]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (4, 8, 8), generator=g) if labels is None else labels
    center = torch.randn(K + 1, D, generator=g)
    features = center[labels.clamp(max=K)].movedim(-1, 1) + torch.randn(4, D, 8, 8, generator=g)
    embedding = torch.randn(4, E, 8, 8, generator=g).requires_grad_()
    return halves(labels, features, embedding)


def warmed(**options) -> DensityContrast:
    c = small(**options)
    for seed in (1, 2, 3):
        assert c(*scene(seed=seed), 0.5).item() == 0 or seed > 2 or not c.bank
    return c


def test_a_class_takes_part_once_its_own_bank_is_ready() -> None:
    own, every = small(), small(ready="all")
    labels = torch.randint(0, K - 1, (4, 8, 8))  # the last class never occurs
    active = {"class": 0, "all": 0}
    for seed in range(6):
        active["class"] += own(*scene(labels, seed), 0.5).item() > 0
        active["all"] += every(*scene(labels, seed), 0.5).item() > 0
    assert active == {"class": 4, "all": 0}, "more than the quota is held after two steps"
    assert own.bank.filled.tolist() == [40, 40, 40, 0]
    assert every(*scene(seed=9), 0.5).item() == 0
    every(*scene(seed=8), 0.5)
    assert every(*scene(seed=7), 0.5).item() > 0, "the last class has filled its bank"


@pytest.mark.parametrize("memory", [True, False])
def test_edge_cases(memory: bool) -> None:
    c = warmed(memory=memory)
    few = torch.zeros(4, 8, 8, dtype=torch.long)
    few[0, 0, 0] = 1  # fewer pixels than k, than anchors and than keys
    assert c(*scene(few), 0.5).item() > 0
    before = None if c.bank is None else c.bank.filled.clone()
    for labels in (torch.zeros(4, 8, 8, dtype=torch.long), torch.full((4, 8, 8), IGNORE)):
        labeled, unlabeled = scene(labels)  # one class, nothing to push it from; nothing known at all
        loss = c(labeled, unlabeled, 0.5)
        loss.backward()
        assert loss.item() == 0
    assert before is None or torch.equal(c.bank.filled, before)


def test_one_class_alone_is_finite_without_the_positive_in_the_denominator() -> None:
    c = small(memory=False, positive_in_denominator=False)
    assert c(*scene(torch.zeros(4, 8, 8, dtype=torch.long)), 0.5).item() == 0


def test_first_step_with_empty_banks_and_without_memory() -> None:
    for memory, active in ((True, False), (False, True)):
        loss = small(memory=memory)(*scene(), 0.5)
        assert (loss.item() > 0) == active and loss.requires_grad


def test_excluded_classes_are_negatives_only() -> None:
    c = small(exclude=(0,), memory=False)
    seen = c._see(*scene(), 0.5)
    choices = c._choose_and_remember(seen)
    assert {int(seen.labels[choice.anchors[0]]) for choice in choices} == {1, 2, 3}
    assert any((seen.labels[choice.negatives] == 0).any() for choice in choices)
    assert all((seen.labels[choice.negatives] != seen.labels[choice.anchors[0]]).all() for choice in choices)
    with_memory = small(exclude=(0,))
    with_memory(*scene(), 0.5)
    assert with_memory.bank.filled[0] == 0 and (with_memory.bank.filled[1:] > 0).all()


def chosen(sampling: str, memory: bool = False, **options) -> tuple[list, object, DensityContrast]:
    c = small(sampling=sampling, memory=memory, **options)
    labeled, unlabeled = scene()
    if sampling == "confidence":
        logits = torch.randn(4, K, 8, 8, generator=torch.Generator().manual_seed(5)) * 3
        labeled = replace(labeled, teacher=labeled.teacher._replace(logits=logits[:2]))
        unlabeled = replace(unlabeled, teacher=unlabeled.teacher._replace(logits=logits[2:]))
    seen = c._see(labeled, unlabeled, 0.5)
    return c._choose_and_remember(seen), seen, c


def test_density_in_batch_measures_among_the_pixels_of_the_class() -> None:
    choices, seen, _ = chosen("density")
    mine = (seen.labels == 2).nonzero()[:, 0]
    unit = F.normalize(seen.features[mine], dim=1)
    near = (unit @ unit.T).sort(1, descending=True).values
    rho = (near[:, :2].mean(1) + near[:, :4].mean(1)) / 2
    assert set(choices[2].anchors.tolist()) == set(mine[rho.argsort()[:5]].tolist())
    torch.testing.assert_close(choices[2].center, seen.embedding[mine[rho.argsort()[-4:]]].mean(0))
    assert choices[2].scores[1] < choices[2].scores[0] < choices[2].scores[2]


def test_confidence_sampling_ranks_by_the_teachers_probability() -> None:
    choices, seen, _ = chosen("confidence")
    for k, choice in enumerate(choices):
        mine = (seen.labels == k).nonzero()[:, 0]
        order = mine[seen.confidence[mine].argsort()]
        assert choice.anchors.tolist() == order[:5].tolist()
        torch.testing.assert_close(choice.center, seen.embedding[order[-4:]].mean(0))


def test_random_sampling_has_random_anchors_and_the_average_as_center() -> None:
    choices, seen, c = chosen("random")
    for k, choice in enumerate(choices):
        mine = seen.labels == k
        torch.testing.assert_close(choice.center, seen.embedding[mine].mean(0))
        assert mine[choice.anchors].all() and len(choice.anchors.unique()) == 5
    again = c._choose_and_remember(seen)
    assert any(set(a.anchors.tolist()) != set(b.anchors.tolist()) for a, b in zip(choices, again, strict=True))


def test_memory_adds_its_densest_projections_to_the_center() -> None:
    c = warmed()
    bank = c.bank[1].clone()
    seen = c._see(*scene(), 0.5)
    mine = (seen.labels == 1).nonzero()[:, 0]
    rho = density(F.normalize(seen.features[mine], dim=1), bank[:, :D], (2, 4))
    stored = bank[bank[:, -1].topk(4).indices, D + 1 : -1]
    want = torch.cat((seen.embedding[mine[rho.topk(4).indices]], stored)).mean(0)
    torch.testing.assert_close(c._choose_and_remember(seen)[1].center, want)


@pytest.mark.parametrize("center", ["fresh_projections", "features"])
def test_other_centers_project_the_features_of_the_memory(center: str) -> None:
    head = torch.nn.Linear(D, E).requires_grad_(False)
    c, plain = warmed(center=center, project=lambda v: torch.tanh(head(v))), warmed()
    assert torch.equal(c.bank.rows, plain.bank.rows)
    rows = c.bank[1].clone()
    rows = rows[rows[:, -1].topk(4).indices]
    features = rows[:, :D] * rows[:, D : D + 1]
    seen = c._see(*scene(), 0.5)
    mine = (seen.labels == 1).nonzero()[:, 0]
    rho = density(F.normalize(seen.features[mine], dim=1), c.bank[1][:, :D], (2, 4))
    keys = mine[rho.topk(4).indices]
    got = c._choose_and_remember(seen)[1].center
    if center == "features":
        want = torch.tanh(head(torch.cat((seen.features[keys], features)).mean(0)))
    else:
        want = torch.cat((seen.embedding[keys], torch.tanh(head(features)))).mean(0)
    torch.testing.assert_close(got, want)


def test_neighbors_and_own_neighbor_change_the_density() -> None:
    unit, bank = F.normalize(torch.randn(9, D), dim=1), F.normalize(torch.randn(80, D), dim=1)
    values = [density(unit, bank, scales) for scales in ((8,), (16,), (32,), (64,), (8, 16, 32))]
    assert all((a > b).all() for a, b in pairwise(values[:4])), "more neighbors, farther away"
    torch.testing.assert_close(values[4], torch.stack(values[:3]).mean(0))
    torch.testing.assert_close(density(unit, bank, (8,), own=True), (1 + 7 * density(unit, bank, (7,))) / 8)


def test_loss_options_by_hand() -> None:
    a, p, n = torch.randn(3, E), torch.randn(1, E), torch.randn(6, E)
    raw_p, raw_n = (a @ p.T)[:, 0] / 0.5, a @ n.T / 0.5
    printed = info_nce(a, p, n, 0.5, cosine=False, positive_in_denominator=False, reduction="sum")
    torch.testing.assert_close(printed, -(raw_p.exp() / raw_n.exp().sum(1)).log().sum())
    mean = info_nce(a, p, n, 0.5, cosine=False)
    torch.testing.assert_close(mean, -(raw_p.exp() / (raw_p.exp() + raw_n.exp().sum(1))).log().mean())
    assert torch.equal(info_nce(a, p, n, 0.5, per_anchor=6), info_nce(a, p, n, 0.5))
    one = torch.stack([info_nce(a[:1], p, n, 0.5, per_anchor=1) for _ in range(60)])
    each = torch.stack([info_nce(a[:1], p, n[j : j + 1], 0.5) for j in range(6)])
    assert {round(v, 4) for v in one.tolist()} == {round(v, 4) for v in each.tolist()}


def test_reduction_weight_and_own_negatives_reach_the_loss() -> None:
    c = warmed(weight=1.0, negatives=10_000)
    base = c(*scene(), 0.5).item()

    def with_(**options) -> float:
        return warmed(negatives=10_000, **({"weight": 1.0} | options))(*scene(), 0.5).item()

    assert with_(weight=0.25) == pytest.approx(0.25 * base)
    assert with_(reduction="sum") == pytest.approx(base * 5 * K, rel=1e-5), "5 anchors in each of K classes"
    assert with_(positive_in_denominator=False) < base
    assert with_(cosine=False) != pytest.approx(base, rel=1e-3)
    few = warmed(negatives=10, negatives_of="anchor")
    assert len(few._choose_and_remember(few._see(*scene(), 0.5))[0].negatives) == 80


def test_contrast_labels_have_a_filter_of_their_own() -> None:
    shared, strict = small(), small(labels=EntropyFilter(0.8, least=0.1))
    labeled, unlabeled = scene()
    logits = torch.randn(2, K, 8, 8)
    unlabeled = replace(unlabeled, teacher=unlabeled.teacher._replace(logits=logits))
    n = unlabeled.target.label.numel()
    assert torch.equal(shared._see(labeled, unlabeled, 0.0).labels[n:], unlabeled.target.label.flatten())
    labels = strict._see(labeled, unlabeled, 0.0).labels[n:]
    kept = labels != IGNORE
    assert kept.sum() == pytest.approx(0.2 * n, abs=1)
    assert torch.equal(labels[kept], as_pixels(logits)[kept].argmax(1))
    assert strict.statistics["contrast_kept"].tolist() == [kept.sum(), n]
    assert (strict._see(labeled, unlabeled, 0.99).labels[n:] != IGNORE).sum() == pytest.approx(0.9 * n, abs=1)


POSITIVE = ("embedding", "bank", "quota", "pixels", "tau", "anchors", "keys", "negatives")


def test_bad_arguments_are_refused() -> None:
    for options, message in (
        ({"sampling": "random"}, "needs memory=False"),
        ({"center": "features"}, "needs the projection head"),
        ({"anchors": 0}, "dgcl.anchors should be greater than 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**options)
    for options, message in (
        ({"sampling": "mean"}, "dgcl.sampling should be 'density', 'confidence' or 'random', got 'mean'"),
        ({"sampling": "random"}, "needs memory=False"),
        ({"center": "none"}, "dgcl.center should be 'projections', 'fresh_projections' or 'features', got 'none'"),
        ({"scales": ()}, "dgcl.scales should have more values"),
        ({"scales": (8, 0)}, r"dgcl.scales must be >= 1, got \(8, 0\)"),
        ({"weight": -1.0}, "dgcl.weight should be greater than or equal to 0, got -1.0"),
        ({"unlabeled_weight": -1.0}, "dgcl.unlabeled_weight should be greater than or equal to 0, got -1.0"),
        *(({name: 0}, f"dgcl.{name} should be greater than 0, got 0") for name in POSITIVE),
    ):
        with pytest.raises(ValueError, match=message):
            DGCLOptions(**options)


# --- memory -------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The largest tensor made by any operation, memory of the banks excepted."""

    def __init__(self, bank: ClassBank) -> None:
        super().__init__()
        self.bank, self.elements = bank.rows.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for v in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(v, Tensor) and v.untyped_storage().data_ptr() != self.bank:
                self.elements = max(self.elements, v.numel())
        return out


def test_no_copy_of_a_bank_is_made() -> None:
    c = warmed(bank=600, quota=600)
    for seed in range(60):
        c(*scene(seed=seed), 0.5)
    assert c.bank.filled.min() == 600
    storage = c.bank.rows.untyped_storage().data_ptr()
    labels = torch.full((4, 8, 8), IGNORE)  # few pixels, so that nothing else is as large as a class bank
    labels[:, 0, :] = torch.arange(8) % K
    with Largest(c.bank) as seen:
        loss = c(*scene(labels), 0.5)
        loss.backward()
    assert loss.item() > 0
    assert seen.elements < 600 * D, "not even the features of one class are copied"
    assert c.bank.rows.untyped_storage().data_ptr() == storage


def test_the_quota_bounds_what_a_step_adds_and_the_bank_is_state() -> None:
    c, other = small(bank=90), small(bank=90)
    for n in (1, 2, 3):
        c(*scene(seed=n), 0.5)
        assert c.bank.filled.tolist() == [20 * n] * K, "the quota, before the class is contrasted and after"
    other.load_state_dict(copy.deepcopy(c.state_dict()))
    torch.manual_seed(3)
    want = c(*scene(seed=2), 0.5)
    torch.manual_seed(3)
    assert torch.equal(other(*scene(seed=2), 0.5), want) and want.item() > 0
    assert torch.equal(other.bank.rows, c.bank.rows)


def test_only_projections_of_anchors_get_a_gradient() -> None:
    c = warmed()
    labeled, unlabeled = scene()
    labeled.student.features.requires_grad_()
    seen = c._see(labeled, unlabeled, 0.5)
    anchors = torch.cat([choice.anchors for choice in warmed()._choose_and_remember(seen)])
    c(labeled, unlabeled, 0.5).backward()
    moved = torch.cat([v.student.embedding.movedim(1, -1).flatten(0, 2) for v in (labeled, unlabeled)])
    (whole,) = {id(v): v for v in (labeled.student.embedding._base, unlabeled.student.embedding._base)}.values()
    touched = whole.grad.movedim(1, -1).flatten(0, 2).abs().sum(1) > 0
    assert len(moved) == len(touched) and touched.nonzero()[:, 0].tolist() == sorted(anchors.tolist())
    assert labeled.student.features.grad is None


# --- in the host --------------------------------------------------------------------------


def host(color: bool = False) -> MeanTeacher:
    torch.manual_seed(0)
    net = student(embedding=E)
    contrast = DensityContrast(K, D, SMALL, labels=EntropyFilter(0.8, least=0.1))
    return MeanTeacher(
        net, label=EntropyFilter(0.2), auxiliary=contrast, mix=NoMix(), unlabeled_weight=0.5, color=color
    ).train()


def test_the_contrast_trains_the_encoder_and_the_head_but_not_the_teacher() -> None:
    h = host()
    for seed in range(3):
        step = h.losses(batch(seed), 0.5)
    assert step.losses["auxiliary"] > 0
    assert {"contrast_kept", "contrast_classes", "density_of_anchors"} <= step.statistics.keys()
    step.losses["auxiliary"].backward()
    for p in (next(h.student.backbone.parameters()), *h.student.project.parameters()):
        assert p.grad is not None and p.grad.abs().sum() > 0
    assert h.student.classify.weight.grad is None or not h.student.classify.weight.grad.any()
    assert all(p.grad is None for p in h.teacher.parameters())


def test_only_pasting_unless_colors_are_asked_for() -> None:
    plain, again, colored = host(), host(), host(color=True)
    b = batch()
    changed = b._replace(u_strong=torch.zeros_like(b.u_strong))
    torch.manual_seed(1)
    first = plain.losses(b, 0.5).losses["unlabeled"]
    torch.manual_seed(1)
    assert torch.equal(again.losses(changed, 0.5).losses["unlabeled"], first)
    torch.manual_seed(1)
    assert not torch.equal(colored.losses(changed, 0.5).losses["unlabeled"], first)


def test_a_projection_outside_training_uses_running_statistics() -> None:
    net = student(embedding=E).train()
    before = copy.deepcopy(net.state_dict())
    v = torch.randn(1, D)
    net.embed(v)
    assert net.project.training and all(torch.equal(a, before[k]) for k, a in net.state_dict().items())
    torch.testing.assert_close(net.embed(v), net.eval().project(v[:, :, None, None])[:, :, 0, 0])
    with pytest.raises(ValueError, match="no projection head"):
        student().embed(v)


# --- recipes ------------------------------------------------------------------------------


def test_variants_are_the_papers_text_and_the_released_code() -> None:
    base = recipe("dgcl", "voc", "1_8", "paper")
    d = base[DGCLOptions]
    assert (d.anchors, d.keys, d.negatives, d.bank, d.quota, d.tau, d.scales) == (
        200,
        50,
        512,
        10000,
        1000,
        0.5,
        (8, 16, 32),
    )
    paper, official = reading(base, "paper"), reading(base, "official")
    text, code = paper[DGCLOptions], official[DGCLOptions]
    assert (text.anchors, text.keys, text.weight, text.unlabeled_weight, text.exclude) == (256, 256, 1, 1, ())
    assert (text.reduction, text.center, text.negatives_of) == ("sum", "features", "anchor")
    assert not text.cosine and not text.positive_in_denominator and text.own_neighbor and text.contrast_drop is None
    assert (code.weight, code.unlabeled_weight, code.ready, code.drop_falls) == (0.125, 0.5, "all", "epochs")
    city = recipe("dgcl", "cityscapes", "1_8", "paper")
    assert reading(city, "official")[DGCLOptions].weight == 0.0625
    assert city[DGCLOptions].exclude == () and city.optimization.ohem
    assert (official.consistency.divisor, paper.consistency.divisor) == ("kept_scaled", "valid")


def test_recipes_reach_the_host() -> None:
    base = recipe("dgcl", "digits", "1_8", "smoke")
    ours, text, code = (build(reading(base, name), K) for name in ("default", "paper", "official"))
    e0 = base.consistency.unlabeled_from_epoch / base.optimization.epochs
    assert (ours.label.start, ours.label.stages) == (e0, None) and (text.label.start, text.label.stages) == (0, None)
    assert (code.label.start, code.label.stages) == (e0, 3) and code.auxiliary.labels.stages == 3
    assert ours.auxiliary.labels.drop == 0.8 and ours.auxiliary.labels.least == 0.1 and text.auxiliary.labels is None
    assert text.auxiliary.project is not None and ours.auxiliary.project is None
    assert code.teacher.own_statistics and code.teacher.decay == base.consistency.decay
    assert (ours.unlabeled_weight, text.unlabeled_weight, ours.color) == (0.5, 1.0, False)
    none = build(base.changed({"dgcl.weight": 0.0}), K)
    assert none.auxiliary is None and none.student.project is None
    for h in (ours, text, code):
        assert set(h.train().losses(batch(), 0.5).losses) == {"labeled", "unlabeled", "auxiliary"}


def test_smaller_steps_have_smaller_numbers_of_pixels_and_the_hash_ignores_what_is_not_used() -> None:
    tiny = recipe("dgcl")
    d = tiny[DGCLOptions]
    assert (d.anchors, d.keys, d.negatives, d.bank, d.quota, d.scales) == (25, 6, 64, 1240, 124, (8, 16, 32))
    tau = replace(tiny.consistency, tau=0.1)
    assert tiny.sha256 == tiny.having(tau).sha256, "DGCL has no tau"
    assert "dgcl" not in recipe("mean_teacher").as_dict() and "ddfp" not in tiny.as_dict()
