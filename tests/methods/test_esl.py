"""ESL's contrast: parts, queues and loss by hand, its edges, and the prototypes it moves."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toys import K

from semiseg.components import entropy
from semiseg.losses import info_nce
from semiseg.methods.esl import ESLOptions, PixelToPart
from semiseg.types import IGNORE, Output, Target, View

E, L = 6, 5


def scene(labels: torch.Tensor, sure: float = 9.0, seed: int = 0) -> View:
    """A view of (b, 8, 8) labels: teacher sure of them, part = column half, embeddings random."""
    g = torch.Generator().manual_seed(seed)
    b, known = len(labels), torch.where(labels == IGNORE, 0, labels)
    logits = sure * F.one_hot(known, K).movedim(-1, 1).float()
    deep = torch.zeros(b, L, 4, 4)
    deep[:, 0, :, :2], deep[:, 1, :, 2:] = 1.0, 2.0
    z, v = (torch.randn(b, E, 8, 8, generator=g) for _ in range(2))
    out = Output(logits, deep, z, deep)
    mine = out._replace(embedding=v.requires_grad_())
    return View(torch.zeros(b, 3, 8, 8), Target.from_labels(labels), out, mine, entropy=entropy(logits))


def plane(*rows: int, b: int = 1) -> torch.Tensor:
    """(b, 8, 8) labels, the given classes in horizontal bands."""
    return torch.tensor(rows).repeat_interleave(8 // len(rows))[None, :, None].expand(b, 8, 8).contiguous()


def contrast(parts: int = 2, **options) -> PixelToPart:
    """Parts are known: prototype 0 and 1 of each class are the two columns of `scene`."""
    torch.manual_seed(0)
    usual = {"embedding": E, "share": 1.0, "max_anchors": None, "contrast_weight": 1.0, "collect_steps": 1}
    made = PixelToPart(K, L, ESLOptions(parts=parts, **(usual | options)))
    made.parts.collected.fill_(1)
    made.parts.prototypes[:, 0, 0] = 1
    if parts > 1:
        made.parts.prototypes[:, 1, 1] = 2
    made.parts.active[:, :2] = True
    return made


def test_parts_are_assigned_by_cosine_within_the_class() -> None:
    p = contrast().parts
    label = plane(0, 3)
    label[0, 0] = IGNORE
    part = p.assign(p.nearest(scene(label).teacher.deep), label)
    assert (part[0, 0] == -1).all()
    assert part[0, 1].tolist() == [0] * 4 + [1] * 4 and part[0, 7].tolist() == [6] * 4 + [7] * 4
    p.active[3, 1] = False
    assert (p.assign(p.nearest(scene(label).teacher.deep), label)[0, 7] == 6).all(), "an inactive part gets no pixel"
    p.active[3] = False
    assert (p.assign(p.nearest(scene(label).teacher.deep), label)[0, 7] == -1).all(), "nor a class without parts"
    p.prototypes[0, 0] = torch.tensor([1000.0, 500, 0, 0, 0])
    assert p.assign(p.nearest(scene(label).teacher.deep), label)[0, 1].tolist() == [0] * 4 + [1] * 4, "lengths are moot"


def test_one_mean_per_image_and_part_is_remembered() -> None:
    c, view = contrast(), scene(plane(0, 3, b=2))
    c(view, scene(plane(IGNORE)), 0.5)
    assert c.bank.filled.tolist() == [2, 2, 0, 0, 0, 0, 2, 2]
    for image in range(2):
        want = F.normalize(view.teacher.embedding[image, :, 4:, 4:].mean((1, 2)), dim=0)
        torch.testing.assert_close(c.bank[7][image], want)
    assert c.statistics["part_size"].tolist() == [2 * 64, 8]


def test_the_full_product_equals_gathered_negatives() -> None:
    c, anchors = contrast(negatives=9), F.normalize(torch.randn(5, E), dim=1)
    c.bank.append(F.normalize(torch.randn(40, E), dim=1), torch.arange(40) % 8)
    part = torch.tensor([0, 1, 5, 5, 7])
    torch.manual_seed(3)
    each = c._block(anchors, part)
    torch.manual_seed(3)
    slots = c.bank.draw(part, 9)
    rows = c.bank.rows.flatten(0, 1)[slots]
    torch.testing.assert_close(each.mean(), info_nce(anchors, rows[:, 0], rows[:, 1:], c.options.temperature))


def test_identical_features_cost_ln_256_per_class_present() -> None:
    same = scene(plane(0, 3))
    same.teacher.embedding.fill_(1.0)
    with torch.no_grad():
        same.student.embedding.fill_(3.0)
    void = scene(plane(IGNORE))
    got = contrast()(same, void, 0.5)
    assert got.item() == pytest.approx(2 / K * math.log(256), rel=1e-5), "absent classes count 0 in the mean over K"
    assert contrast(divisor="present")(same, void, 0.5).item() == pytest.approx(math.log(256), rel=1e-5)
    assert contrast(contrast_weight=0.1)(same, void, 0.5).item() == pytest.approx(0.1 * got.item(), rel=1e-5)
    assert contrast(negatives=9)(same, void, 0.5).item() == pytest.approx(2 / K * math.log(10), rel=1e-5)


def test_loss_by_hand_with_orthogonal_parts() -> None:
    """Anchors along their own part's vector, orthogonal to all others: -ln(e^2 / (e^2 + 255)), in both halves."""
    c, views = contrast(), (scene(plane(0, 3)), scene(plane(3, 3, 3, 0), seed=1))
    for view in views:
        part = c.parts.assign(c.parts.nearest(view.teacher.deep), view.target.label)
        axis = torch.tensor([0, 1, -1, -1, -1, -1, 2, 3])[part]
        directions = F.one_hot(axis, E).movedim(-1, 1).float()
        view.teacher.embedding.copy_(5 * directions)
        with torch.no_grad():
            view.student.embedding.copy_(7 * directions)
    got = c(*views, 0.5)
    assert got.item() == pytest.approx(2 / K * (math.log(math.exp(2) + 255) - 2), rel=1e-5)
    warm = contrast(temperature=1.0)(*views, 0.5)
    assert warm.item() == pytest.approx(2 / K * (math.log(math.e + 255) - 1), rel=1e-5)
    assert c.statistics["cosine_positive"].tolist() == [128, 128] and c.statistics["cosine_negative"][0] == 0
    hits, of = c.statistics["negatives_of_same_class"].tolist()
    assert of == 128 * 255 and hits / of == pytest.approx(1 / 3, abs=0.02)


def test_blocks_change_nothing(monkeypatch) -> None:
    import semiseg.methods.esl as module

    c = contrast(negatives=1000)
    c.bank.draw = lambda part, *_: torch.stack((part, (part + 1) % 8, (part + 3) % 8), 1) * 128  # type: ignore
    anchors, part = torch.randn(50, E), torch.arange(50) % 2
    c.bank.append(torch.randn(8, E), torch.arange(8))
    whole = c._contrast(anchors, part)
    monkeypatch.setattr(module, "BLOCK", 7)
    torch.testing.assert_close(c._contrast(anchors, part), whole)


def test_anchors_are_a_share_of_each_class_at_least_one_at_most_the_bound() -> None:
    def per_class(**options) -> list[int]:
        c = contrast(**options)
        owner = torch.tensor([0] * 3 + [1] * 44 + [5] * 3 + [7] * 20)
        eligible = torch.ones(70, dtype=torch.bool)
        eligible[3:10] = False
        chosen = c._choose(owner, eligible)
        assert len(chosen.unique()) == len(chosen) and eligible[chosen].all()
        return torch.bincount(owner[chosen] // 2, minlength=K).tolist()

    c, owner = contrast(share=0.1), torch.zeros(70, dtype=torch.long)
    assert len(torch.cat([c._choose(owner, owner == 0) for _ in range(5)]).unique()) > 7, "another sample each time"
    assert per_class(share=0.1) == [4, 0, 1, 2]
    assert per_class(share=1.0) == [40, 0, 3, 20]
    assert per_class(share=0.5, max_anchors=6) == [6, 0, 1, 6]


def test_unlabeled_anchors_need_a_sure_teacher_or_a_pasted_label() -> None:
    void, unlabeled = scene(plane(IGNORE)), scene(plane(0, 3), sure=2.0)
    p = unlabeled.teacher.logits.softmax(1).amax().item()
    assert 0.5 < p < 0.8
    for sure, want in ((p - 0.01, 64), (p + 0.01, 0)):
        c = contrast(sure=sure)
        c(void, unlabeled, 0.5)
        assert c.statistics["anchors"][0] == want
        assert c.bank.filled.sum() == 4, "parts are remembered however unsure the teacher is"
    pasted = replace(unlabeled, entropy=torch.where(plane(0, 3) == 3, 0.0, unlabeled.entropy))
    c = contrast(sure=p + 0.01)
    c(void, pasted, 0.5)
    assert c.statistics["anchors"][0] == 32
    c = contrast(sure=1.0)
    c(unlabeled, void, 0.5)
    assert c.statistics["anchors"][0] == 64, "labeled pixels are anchors however unsure the teacher is"


def test_gradient_reaches_the_student_alone() -> None:
    c, labeled, mixed = contrast(), scene(plane(0, 3)), scene(plane(1, 2), seed=1)
    c(labeled, mixed, 0.5).backward()
    for view in (labeled, mixed):
        g = view.student.embedding.grad
        assert g.abs().sum(1).gt(0).all(), "each pixel is an anchor here"
        assert not view.teacher.embedding.requires_grad
    assert not c.bank.rows.requires_grad and not list(c.parameters())


@pytest.mark.parametrize(
    ("labeled", "unlabeled"),
    [
        (plane(IGNORE), plane(IGNORE)),  # nothing known
        (torch.where(torch.arange(8) < 4, 2, IGNORE).expand(1, 8, 8), plane(IGNORE)),  # one part: no other queue
    ],
)
def test_no_anchor_or_no_negative_is_zero_with_a_defined_gradient(labeled, unlabeled) -> None:
    c, a, b = contrast(), scene(labeled.contiguous()), scene(unlabeled)
    before = c.parts.prototypes.clone()
    loss = c(a, b, 0.5)
    loss.backward()
    assert loss.item() == 0 and a.student.embedding.grad.abs().sum() == 0
    assert torch.isfinite(c.parts.prototypes).all() and torch.equal(c.parts.prototypes[0], before[0])


def test_one_class_only_has_its_other_parts_as_negatives() -> None:
    c = contrast()
    assert c(scene(plane(2)), scene(plane(2), seed=1), 0.5) > 0
    assert c.statistics["negatives_of_same_class"][0] == c.statistics["negatives_of_same_class"][1]
    one = contrast(parts=1)
    assert one(scene(plane(2)), scene(plane(2)), 0.5) == 0, "with one part per class there is no negative"


def test_rows_of_the_mixed_view_may_outnumber_the_labeled() -> None:
    c, mixed = contrast(), scene(plane(1, 2, b=6), seed=1)
    assert c(scene(plane(0, 3, b=2)), mixed, 0.5) > 0
    assert c.bank.filled.tolist() == [2, 2, 6, 6, 6, 6, 2, 2]


def test_prototypes_follow_present_parts_and_leave_absent_ones() -> None:
    c, view = contrast(), scene(plane(0, 3))
    view.teacher.deep[:, 2] = 7.0
    before = c.parts.prototypes.clone()
    c(view, scene(plane(IGNORE)), 0.5)
    moved = c.parts.prototypes
    assert torch.equal(moved[1:3], before[1:3]), "absent classes stay"
    want = 0.99 * before[3, 1] + 0.01 * torch.tensor([0, 2.0, 7, 0, 0])
    torch.testing.assert_close(moved[3, 1], want)
    assert c.statistics["parts_in_batch"].tolist() == [4, 8]


def test_the_mean_of_a_part_is_over_both_halves() -> None:
    c, labeled, mixed = contrast(), scene(plane(0, 3)), scene(plane(0, b=2))
    mixed.teacher.deep[:, 2] = 10.0
    c(labeled, mixed, 0.5)  # 4 coarse pixels of part 0 in the labeled image, 8 in each mixed one
    assert c.parts.prototypes[0, 0, 2].item() == pytest.approx(0.01 * 10 * 16 / 20)


def test_a_class_seen_late_gets_the_mean_of_its_first_labeled_image() -> None:
    c = contrast()
    c.parts.active[2] = False
    late = scene(plane(2, 0, b=2))
    late.teacher.deep[1] += 100
    c(scene(plane(0)), scene(plane(2)), 0.5)
    assert not c.parts.active[2].any() and c.bank.filled[4:6].sum() == 0, "an unlabeled pixel does not start a class"
    c(late, scene(plane(0)), 0.5)
    assert c.parts.active[2].tolist() == [True, False] and c.bank.filled[4:6].sum() == 0
    torch.testing.assert_close(c.parts.prototypes[2, 0], late.teacher.deep[0, :, :2].flatten(1).mean(1))
    c(late, scene(plane(0)), 0.5)
    assert c.bank.filled[4] == 2
