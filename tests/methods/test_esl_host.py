"""ESL on its host: the terms of a step, mixers that add rows, state in the middle of collecting."""

import copy

import pytest
import torch
from toys import B, K, S, batch

from semiseg.build import build
from semiseg.components import CutMix, NoMix
from semiseg.hosts.mean_teacher import MeanTeacher
from semiseg.methods.esl import DynamicLabels
from semiseg.recipe import recipe
from semiseg.types import IGNORE, Mixer, Paste, View


def host(mix: Mixer | None = None, **changes: object) -> MeanTeacher:
    torch.manual_seed(0)
    own = {f"esl.{name}": value for name, value in changes.items()}
    made = build(recipe("esl", "digits", "1_8", "smoke").changed({"esl.parts": 3, "network.dropout": 0.0} | own), K)
    assert isinstance(made, MeanTeacher)
    made.mix = mix or made.mix
    return made.train()


def test_the_terms_of_a_step_collecting_then_contrasting() -> None:
    h = host(NoMix())
    first, second = h.losses(batch(), 0.5), h.losses(batch(1), 0.5)
    assert first.losses["auxiliary"] == 0 and "anchors" not in first.statistics
    assert second.losses["auxiliary"] > 0 and second.statistics["anchors"][0] > 0
    assert second.statistics["kept"].tolist() == [B * S * (S - 4)] * 2, "every valid pixel"
    assert {"dominant", "cosine_positive", "soft_0"} <= second.statistics.keys()
    torch.stack(list(second.losses.values())).sum().backward()
    assert h.student.project[-1].weight.grad.abs().sum() > 0 and all(p.grad is None for p in h.teacher.parameters())


@pytest.mark.parametrize("color", [False, True])
def test_the_unlabeled_term_is_soft_cross_entropy_times_its_weight(color: bool) -> None:
    """On the weak image, as CutMix is the paper's only strong augmentation, or on the color-jittered one."""
    h, b = host(NoMix(), **({"color": True} if color else {})), batch()
    reference = copy.deepcopy(h)
    got = h.losses(b, 0.5).losses["unlabeled"]
    with torch.no_grad():
        y = DynamicLabels(0.95).soften(reference.teacher.model(torch.cat((b.x, b.u_weak))).logits[B:].softmax(1))
    logits = reference.student(torch.cat((b.x, b.u_strong[0] if color else b.u_weak))).logits[B:]
    torch.testing.assert_close(got, 0.2 * -(y * logits.log_softmax(1)).sum(1)[b.u_valid].mean())


class Thrice:
    """Every unlabeled image three times, each with another donor row on its upper half (as UPC's sampling)."""

    def __call__(self, own: View, donors: View) -> Paste:
        n = len(own.image)
        source = torch.arange(n)[:, None, None].expand(n, S, S).repeat(3, 1, 1)
        source[:, : S // 2] = n + torch.arange(3 * n)[:, None, None] % len(donors.image)
        return Paste(source)


@pytest.mark.parametrize("mix", [CutMix(1.0), Thrice()])
def test_composes_with_mixers(mix) -> None:
    h = host(mix)
    for seed in range(3):
        step = h.losses(batch(seed, labeled=2), 0.5)
    assert step.losses["unlabeled"] > 0 and step.losses["auxiliary"] > 0
    assert torch.isfinite(torch.stack(list(step.losses.values()))).all()


def test_the_state_continues_in_the_middle_of_collecting_and_after_it() -> None:
    a = host(collect_steps=3)
    for seed in range(5):
        b = host(collect_steps=3)
        b.load_state_dict(copy.deepcopy(a.state_dict()))
        outcomes = []
        for h in (a, b):
            torch.manual_seed(100 + seed)
            outcomes.append(
                (h.losses(batch(seed), 0.5), {k: v for k, v in h.state_dict().items() if "_extra" not in k})
            )
        (ours, state), (theirs, copied) = outcomes
        assert all(torch.equal(ours.losses[k], theirs.losses[k]) for k in ours.losses)
        assert all(torch.equal(state[k], copied[k]) for k in state)
        assert (ours.losses["auxiliary"] > 0) == (seed >= 3)


def test_nothing_valid_gives_zero_not_nan() -> None:
    h, b = host(), batch()
    h.losses(b, 0.5)
    void = b._replace(y=torch.full_like(b.y, IGNORE), u_valid=torch.zeros_like(b.u_valid))
    step = h.losses(void, 0.5)
    assert all(v == 0 for v in step.losses.values())
    torch.stack(list(step.losses.values())).sum().backward()
