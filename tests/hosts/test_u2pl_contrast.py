"""U2PL's contrast: parity with the released code and its closed forms, the queues, who is a negative of what."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semiseg.components import EntropyFilter, entropy, quantile
from semiseg.hosts.u2pl_contrast import U2PLOptions, UnreliableContrast
from semiseg.types import IGNORE, Output, Target, View

GOLDEN = torch.load(Path(__file__).parents[1] / "golden" / "u2pl.pt", weights_only=True)
A, B = GOLDEN["A_all_classes_empty_bank"], GOLDEN["B_all_classes_filled_bank"]
C, D = GOLDEN["C_constant_pools"], GOLDEN["D_absent_classes"]
E, SINGLE = GOLDEN["E_negative_keys"], GOLDEN["F_single_class"]
OFFICIAL: dict[str, Any] = {"reliable": "surest", "keys": "own", "pairs": "position", "quota": None}


def made(case: dict[str, Any] = A, **options) -> UnreliableContrast:
    """With the settings of the recording, and its queues as they were before."""
    plain: dict[str, Any] = {"queue": 20, "first_queue": 30, "anchors": 16, "negatives": 5, "weight": 1.0}
    own = U2PLOptions(**{"embedding": 8, "low_rank": 2, "high_rank": 5} | plain | options)
    contrast = UnreliableContrast(6, own, EntropyFilter(own.drop))
    for queue, rows in zip(contrast.queues, case.get("bank_before", []), strict=False):
        queue.append(F.normalize(rows, dim=1), torch.zeros(len(rows), dtype=torch.long))
    return contrast


def views(case: dict[str, Any]) -> tuple[View, View]:
    n, found = len(case["label_l"]), []
    for half, rows in (("l", slice(0, n)), ("u", slice(n, None))):
        p, rep = case[f"prob_{half}"], case["rep"][rows].clone().requires_grad_()
        said = Output(p.log(), p[:, :0], case["rep_teacher"][rows], p[:, :0])
        target = Target.from_labels(case[f"label_{half}"].long())
        doubt = case["entropy_u"] if half == "u" else None
        found.append(View(p[:, :3], target, said, said._replace(embedding=rep), entropy=doubt))
    return found[0], found[1]


def planes(case: dict[str, Any]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor, Tensor]:
    """What `contrast` reads but for the mask."""
    n = len(case["label_l"])
    rep, teacher = (tuple(case[name].split(n)) for name in ("rep", "rep_teacher"))
    label = torch.cat((case["label_l"], case["label_u"])).long()
    return rep, teacher, label, torch.cat((case["prob_l"], case["prob_u"]))


# --- parity -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [A, B], ids=["empty", "filled"])
def test_released_code_draw_by_draw(case: dict[str, Any]) -> None:
    """Masks, new keys, queues, loss and gradient, with the recorded random numbers."""
    contrast, (labeled, unlabeled) = made(case, **OFFICIAL), views(case)
    masks = contrast.divide(unlabeled, 0.0, torch.Size((9, 9)))
    for mask, name in zip(masks, ("low_mask", "high_mask"), strict=True):
        assert torch.equal(mask, case[name][2:, 0])
    torch.manual_seed(case["seed"])
    loss = contrast(labeled, unlabeled, 0.0)
    assert loss.item() == pytest.approx(case["loss"].item(), abs=1e-6) and loss > 1
    loss.backward()
    grad = torch.cat((labeled.student.embedding.grad, unlabeled.student.embedding.grad))
    torch.testing.assert_close(grad, case["grad_rep"], atol=1e-8, rtol=1e-4)
    for queue, rows in zip(contrast.queues, case["bank_after"], strict=True):
        torch.testing.assert_close(queue[0], F.normalize(rows, dim=1))
    assert contrast.statistics["new_keys"][0] == sum(case["new_keys"])
    assert contrast.statistics["queues_empty"].tolist() == [sum(not len(rows) for rows in case["bank_after"]), 6]


@pytest.mark.parametrize("pairs", ["class", "position"])
def test_closed_form_where_sampling_does_not_matter(pairs: str) -> None:
    loss = made(C, pairs=pairs).contrast(*planes(C), C["low_mask"][:, 0])
    assert loss.item() == pytest.approx(C["closed_form"].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("pairs", "form", "value"),
    [("position", "closed_form_of_official_behaviour", 1.4735), ("class", "closed_form_if_fixed", 1.9163)],
)
def test_absent_classes_confuse_positions_but_not_classes(pairs: str, form: str, value: float) -> None:
    loss = made(D, pairs=pairs).contrast(*planes(D), D["low_mask"][:, 0])
    assert loss.item() == pytest.approx(D[form].item(), abs=1e-6) == pytest.approx(value, abs=1e-4)


def test_negative_keys_of_both_readings() -> None:
    label, rank, high = E["label"].long(), E["rank"].long(), E["high_mask"][:, 0]
    p = (-rank.float()).softmax(1)
    labeled = torch.zeros_like(high)
    labeled[: len(label) // 2] = True
    rows = label[high], p.movedim(1, -1)[high], labeled[high]
    options = (U2PLOptions(embedding=4, queue=1, first_queue=1, keys=keys) for keys in ("own", "others"))
    own, others = (UnreliableContrast(21, o, EntropyFilter(o.drop)).negative_of(*rows) for o in options)
    assert own.sum(0).tolist() == E["new_keys_official"]
    found = [list(pair) for pair in zip(others[rows[2]].sum(0).tolist(), others[~rows[2]].sum(0).tolist(), strict=True)]
    assert found == E["keys_paper_labelled_unlabelled"]


def test_one_class_gives_zero_and_a_gradient() -> None:
    contrast, (labeled, unlabeled) = made(**OFFICIAL), views(SINGLE)
    loss = contrast(labeled, unlabeled, 0.0)
    assert loss == SINGLE["loss"] == 0
    assert [int(queue.filled) for queue in contrast.queues] == SINGLE["new_keys"]
    loss.backward()
    assert (labeled.student.embedding.grad == 0).all() and contrast.statistics["anchors"].tolist() == [0, 1]


# --- masks --------------------------------------------------------------------------------


def test_reliable_pixels_are_all_but_the_unreliable_or_the_surest_alone() -> None:
    unlabeled = views(A)[1]
    ours, released = (made(reliable=r).divide(unlabeled, 0.0, torch.Size((9, 9))) for r in ("kept", "surest"))
    assert torch.equal(ours[1], released[1]) and torch.equal(ours[0], ~ours[1])
    assert released[0].float().mean() == pytest.approx(0.2, abs=0.01)
    late = made(reliable="surest").divide(unlabeled, 0.95, torch.Size((9, 9)))[0]
    assert 0 < late.sum() <= 3, "in the end almost none is left"


def test_quantile_is_that_of_the_library() -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    for q in (0.0, 0.1234, 0.5, 0.8, 0.9999, 1.0):
        torch.testing.assert_close(quantile(values, q), torch.quantile(values, q))
    assert quantile(torch.tensor([3.0]), 0.7) == 3


def test_ignored_pixels_stay_out_of_everything() -> None:
    """Whatever the networks say at pixels without a label changes neither loss nor queues."""
    outcomes = []
    for noise in (0.0, 50.0):
        contrast, (labeled, unlabeled) = made(quota=4), views(A)
        seen = []
        for view in (labeled, unlabeled):
            label = torch.where(view.target.weight > 0, view.target.label, IGNORE)
            label[:, :3] = IGNORE
            changed = torch.zeros_like(view.teacher.embedding)
            changed[:, :, :3] = noise
            said = view.teacher._replace(embedding=view.teacher.embedding + changed)
            learned = view.student._replace(embedding=view.student.embedding.detach() + changed)
            doubt = None if view.entropy is None else view.entropy + changed[:, 0]
            seen.append(View(view.image, Target.from_labels(label), said, learned, entropy=doubt))
        torch.manual_seed(0)
        outcomes.append((contrast(*seen, 0.0), contrast.state_dict()))
    assert outcomes[0][0] == outcomes[1][0] > 0
    assert all(torch.equal(outcomes[0][1][k], outcomes[1][1][k]) for k in outcomes[0][1])


def test_nothing_labeled_is_zero() -> None:
    contrast, pair = made(A), views(A)
    void = [
        View(v.image, Target.from_labels(torch.full_like(v.target.label, IGNORE)), v.teacher, v.student, v.entropy)
        for v in pair
    ]
    assert contrast(*void, 0.0) == 0 and contrast.statistics["queue_filled"][0] == 0


# --- queues -------------------------------------------------------------------------------


def pushed(contrast: UnreliableContrast, angle: float, pixels: int = 3) -> None:
    """Labeled pixels of class 1 that the teacher finds likely to be of class 0: negatives of class 0."""
    label = torch.tensor([1, IGNORE])[:, None, None].expand(2, 1, pixels)
    p = torch.tensor([0.6, 0.3, 0.05, 0.03, 0.01, 0.01])[None, :, None, None].expand(2, 6, 1, pixels)
    key = torch.zeros(1, 8, 1, pixels)
    key[:, 0], key[:, 1] = angle, torch.arange(1.0, pixels + 1)
    contrast.remember((key, key), label, p, label != IGNORE)


def test_queues_are_first_in_first_out() -> None:
    contrast = made(quota=None, first_queue=4)
    for angle in (10.0, 20.0):
        pushed(contrast, angle)
    ratios = (contrast.queues[0][0][:, 0] / contrast.queues[0][0][:, 1]).sort().values
    torch.testing.assert_close(ratios, torch.tensor([10 / 3, 20 / 3, 20 / 2, 20.0]))
    assert [int(q.filled) for q in contrast.queues] == [4, 0, 0, 0, 0, 0], "class 1 is its own, 2 to 5 are unlikely"
    pushed(contrast, 30.0, pixels=9)
    assert (contrast.queues[0][0][:, 0] / contrast.queues[0][0][:, 1]).min() == pytest.approx(30 / 9), "the last four"


def test_a_quota_bounds_what_one_step_replaces() -> None:
    contrast = made(quota=2)
    pushed(contrast, 1.0, pixels=15)
    assert int(contrast.queues[0].filled) == 2 == contrast.statistics["new_keys"][0]
    torch.manual_seed(1)
    other = made(quota=2)
    pushed(other, 1.0, pixels=15)
    assert not torch.equal(contrast.queues[0][0], other.queues[0][0]), "drawn at random"


def test_queues_are_state_and_hold_no_gradient() -> None:
    contrast = made(B)
    labeled, unlabeled = views(B)
    loss = contrast(labeled, unlabeled, 0.0)
    twin = made()
    twin.load_state_dict(copy.deepcopy(contrast.state_dict()))
    torch.manual_seed(0)
    again = contrast(labeled, unlabeled, 0.0)
    torch.manual_seed(0)
    assert twin(*views(B), 0.0) == again != loss
    assert not any(rows.requires_grad for rows in contrast.buffers()) and not list(contrast.parameters())
    assert sum(name.endswith("rows") for name in contrast.state_dict()) == 6


def test_anchors_are_sure_and_the_positive_is_the_mean_of_the_teachers_class() -> None:
    """Pools of one anchor: the loss is InfoNCE against mean and queue, and only that anchor has a gradient."""
    contrast = made(C, pairs="class")
    rep, teacher, label, p = planes(C)
    rep = tuple(r.clone().requires_grad_() for r in rep)
    reliable = torch.zeros_like(label, dtype=torch.bool)
    p = p.clone().fill_(0.01)
    for c in (0, 3):
        i = ((label == c) & (torch.arange(4)[:, None, None] == 2)).nonzero()
        reliable[tuple(i[:4].T)] = True
        p[i[0, 0], c, i[0, 1], i[0, 2]] = 0.9
    contrast.contrast(rep, teacher, label, p, reliable).backward()
    touched = [(r.grad.abs().sum(1) > 0).nonzero().tolist() for r in rep]
    assert touched[0] == [] and len(touched[1]) == 2
    n, m = len(rep[0]), torch.cat(teacher).movedim(1, -1)
    wanted = []
    for c in (0, 3):
        i = next(tuple(j) for j in touched[1] if label[n + j[0], j[1], j[2]] == c)
        a = rep[1][i[0], :, i[1], i[2]]
        mean = m[reliable & (label == c)].mean(0)
        cosine = F.cosine_similarity(a[None], torch.stack((mean, *[contrast.queues[c].rows[0, 0]] * 5)))
        wanted.append(F.cross_entropy(cosine[None] / 0.5, torch.tensor([0])))
    pools = [bool((q[0] - q[0][:1]).abs().max() < 1e-6) for q in contrast.queues]
    assert all(pools), "all vectors of a queue are equal here, so that the draw does not matter"
    loss = contrast.contrast(rep, teacher, label, p, reliable)
    torch.testing.assert_close(loss, torch.stack(wanted).mean())


# --- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: U2PLOptions(embedding=0), r"u2pl\.embedding should be greater than 0, got 0"),
        (
            lambda: UnreliableContrast(3, U2PLOptions(), EntropyFilter(0.2)),
            r"low_rank=3 with 3 classes.*choose one in 1\.\.2",
        ),
        (
            lambda: UnreliableContrast(2, U2PLOptions(keys="own"), EntropyFilter(0.2)),
            r"low_rank=3 with 2 classes.*choose one in 1\.\.1",
        ),
        (lambda: U2PLOptions(low_rank=4, high_rank=4), "needs low_rank < high_rank, got 4 and 4"),
        (lambda: U2PLOptions(low_rank=0), r"u2pl\.low_rank should be greater than or equal to 1, got 0"),
        (lambda: U2PLOptions(keys="all"), r"u2pl\.keys should be 'others' or 'own', got 'all'"),
        (lambda: U2PLOptions(pairs="id"), r"u2pl\.pairs should be 'class' or 'position', got 'id'"),
        (lambda: U2PLOptions(reliable="all"), r"u2pl\.reliable should be 'kept' or 'surest', got 'all'"),
    ],
)
def test_bad_arguments(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_two_classes_work_with_a_lower_rank() -> None:
    own = U2PLOptions(embedding=4, low_rank=1, anchors=4, negatives=4, sure=0.0, queue=8, first_queue=8)
    contrast = UnreliableContrast(2, own, EntropyFilter(0.2))
    g = torch.Generator().manual_seed(0)
    pair = []
    for _ in range(2):
        logits = torch.randn(2, 2, 8, 8, generator=g)
        said = Output(logits, logits[:, :0], torch.randn(2, 4, 8, 8, generator=g), logits[:, :0])
        target = Target.from_labels(torch.randint(0, 2, (2, 8, 8), generator=g))
        pair.append(View(logits[:, :1], target, said, said, entropy=entropy(logits)))
    assert contrast(*pair, 0.0) > 0 and contrast.statistics["queues_empty"].tolist() == [0, 2]
    assert EntropyFilter(0.2).share(0.0) == 0.2
