"""AEL: confidences by hand, what is drawn, cut, pasted, weighed and sampled."""

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor

from semiseg.components import ConfidentLabels, NoMix
from semiseg.hosts.ael import AEL, AdaptiveCutMix, AELOptions, ConfidenceBank, CopyPaste
from semiseg.types import IGNORE, Output, Target, View


def bank(*values: float) -> ConfidenceBank:
    made = ConfidenceBank(len(values))
    made.value.copy_(torch.tensor(values))
    return made


def test_the_bank_is_the_average_of_labeled_probabilities() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 3, 0], [1, 0, 0], [5, 0, 0]]).T[None, :, None]  # (1, 3, 1, 4)
    y = torch.tensor([[[0, 1, 0, IGNORE]]])
    made = bank(0.5, 0.5, 0.5)
    made.update(logits, Target.from_labels(y))
    p = logits.softmax(1)
    wanted = 0.999 * 0.5 + 0.001 * (p[0, 0, 0, 0] + p[0, 0, 0, 2]) / 2
    torch.testing.assert_close(made.value[0], wanted)
    assert made.value[2] == 0.5, "absent"
    decaying = ConfidenceBank(3, absent_decays=True)
    decaying.value.fill_(0.5)
    decaying.update(logits, Target.from_labels(y))
    assert decaying.value[2].item() == pytest.approx(0.4995)
    torch.testing.assert_close(decaying.value[:2], made.value[:2])


def test_draws_tilt_towards_needy_classes_by_the_recorded_probabilities() -> None:
    torch.manual_seed(0)
    made = bank(0, 0.25, 0.5, 0.75, 1)
    drawn = torch.cat([made.draw(1, 0.5) for _ in range(6000)]).bincount(minlength=5) / 6000
    torch.testing.assert_close(drawn, torch.tensor([0.278, 0.243, 0.208, 0.169, 0.102]), rtol=0, atol=0.02)
    assert len(set(made.draw(3).tolist())) == 3
    assert {int(made.draw(1, among=(2, 4))) for _ in range(50)} == {2, 4}


def test_keep_rate_is_1_for_the_neediest_class() -> None:
    rate = bank(0.2, 0.6, 1.0).keep_rate()
    torch.testing.assert_close(rate, torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(bank(0.2, 0.6, 1.0).keep_rate(2.0), torch.tensor([1.0, 0.25, 0.0]))
    assert torch.isfinite(bank(1, 1).keep_rate()).all()


def views(masks: Tensor) -> tuple[View, View]:
    ones = torch.ones(masks.shape)
    view = View(torch.rand(len(masks), 3, *masks.shape[1:]), Target(masks, ones, ones))
    return view, view


def test_the_box_of_a_needy_component_is_pasted_from_another_image() -> None:
    masks = torch.zeros(3, 16, 16, dtype=torch.long)
    masks[1, 2:6, 3:9] = 1
    made = bank(1.0, -60.0)  # only class 1 is ever drawn
    source = AdaptiveCutMix(made, least=0.05)(*views(masks)).source
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[2:6, 3:9] = True
    for i in (0, 2):
        assert torch.equal(source[i] == 1, inside) and (source[i][~inside] == i).all()
    assert (source[1] == 2).float().mean() == pytest.approx(0.5, abs=0.05), "no other image shows it: half of the next"
    small = AdaptiveCutMix(made, least=0.2)(*views(masks)).source
    assert (small[0] == 1).float().mean() == pytest.approx(0.5, abs=0.05), "its component is too small"


def test_copy_paste_moves_only_pixels_of_the_drawn_class_with_their_labels() -> None:
    torch.manual_seed(0)
    x, y = torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long)
    x[0], x[1] = 0.2, 0.8
    y[1, 8:24, 8:24] = 2
    pasted = 0
    for _ in range(20):
        new_x, new_y = CopyPaste(bank(0.0, 1.0, -60.0), p=1.0, number=1)(x, y)
        changed = new_y[0] != 0
        assert set(new_y[0].unique().tolist()) <= {0, 2}
        if changed.any():
            pasted += 1
            assert (new_x[0][:, changed] > 0.3).all()
        assert torch.equal(new_x[0][:, ~changed], x[0][:, ~changed])
        assert torch.equal(new_y[1][y[1] == 2], y[1][y[1] == 2])
    assert pasted > 10
    assert CopyPaste(bank(0, 0), 0.0, 1)(x, y)[1].equal(y) and y.sum() == 2 * 16 * 16, "inputs stay as they are"


def host(on_labeled: bool = True, **components) -> AEL:
    torch.manual_seed(0)
    own, made = AELOptions(on_labeled=on_labeled), ConfidenceBank(toys.K)
    return AEL(toys.student(), own, made, label=ConfidentLabels(0.0), **components).train()


def test_consistency_is_weighted_by_squared_confidence_and_sampled_by_the_students_class() -> None:
    h = host()
    logits = torch.randn(2, toys.K, 4, 4, generator=torch.Generator().manual_seed(1))
    weight = torch.rand(2, 4, 4)
    target = Target(torch.ones(2, 4, 4, dtype=torch.long), weight, torch.ones(2, 4, 4))
    ce = F.cross_entropy(logits, target.label, reduction="none")
    torch.testing.assert_close(h._consistency(logits, target), (ce * weight).sum() / weight.sum())  # all equally needy
    h.bank.value.copy_(torch.tensor([0.0, 1, 1, 1]))
    kept = weight * (logits.argmax(1) == 0)
    torch.testing.assert_close(h._consistency(logits, target), (ce * kept).sum() / kept.sum())


def test_every_term_is_active_and_the_bank_learns() -> None:
    h = host(paste=None)
    found = h.losses(toys.batch(), 0.5)
    assert set(found.losses) == {"labeled", "unlabeled", "labeled_consistency"}
    assert all(v > 0 for v in found.losses.values()) and (h.bank.value > 0).all()
    assert "labeled_consistency" not in host(on_labeled=False).losses(toys.batch(), 0.5).losses
    sum(found.losses.values()).backward()
    assert all(p.grad is None for p in h.teacher.parameters())
    assert "bank.value" in h.state_dict()


def test_squared_confidence_of_the_teacher_is_the_weight() -> None:
    seen: list[Target] = []
    h = host(mix=NoMix(), on_labeled=False)
    h._consistency = lambda logits, target: (seen.append(target), logits.sum() * 0)[1]  # type: ignore[method-assign]
    given = toys.batch()
    h.losses(given, 0.5)
    h.teacher.eval()
    p = h.teacher(torch.cat((given.x, given.u_weak))).rows(toys.B).logits.softmax(1).amax(1)
    torch.testing.assert_close(seen[0].weight, p**2 * given.u_valid)


def test_labels_of_pasted_pixels_reach_the_supervised_term() -> None:
    seen: list[Target] = []

    def criterion(output: Output, target: Target) -> Tensor:
        seen.append(target)
        return output.logits.mean()

    class Nothing(CopyPaste):
        def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x, torch.full_like(y, 3)

    h = host(criterion=criterion)
    h.paste = Nothing(h.bank, p=0.5, number=1)
    h.losses(toys.batch(), 0.5)
    assert (seen[0].label == 3).all()
