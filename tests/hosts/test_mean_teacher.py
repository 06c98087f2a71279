"""The host: which terms are active when, what its options mean, and that plain plug-ins change nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from toys import B, K, S, batch, student

from semiseg.build import build
from semiseg.components import ConfidentLabels, CutMix, NoMix, UniformWeight
from semiseg.hosts.mean_teacher import MeanTeacher
from semiseg.hosts.supervised import Supervised
from semiseg.recipe import reading, recipe
from semiseg.types import IGNORE, View


def host(**options) -> MeanTeacher:
    torch.manual_seed(0)
    options = {"label": ConfidentLabels(0.0), "mix": NoMix()} | options
    return MeanTeacher(student(dropout=0.0), **options).train()


def test_losses_are_the_formulas() -> None:
    """Eq. 1, 3, 4 recomputed with plain torch calls on the same pass."""
    h, b = host(), batch()
    reference = copy.deepcopy(h)
    losses = h.losses(b, 0.5).losses
    with torch.no_grad():
        pseudo = reference.teacher.model(torch.cat((b.x, b.u_weak))).logits[B:].argmax(1)
    logits = reference.student(torch.cat((b.x, b.u_strong[0]))).logits
    torch.testing.assert_close(losses["labeled"], F.cross_entropy(logits[:B], b.y, ignore_index=IGNORE))
    pseudo[~b.u_valid] = IGNORE
    torch.testing.assert_close(losses["unlabeled"], F.cross_entropy(logits[B:], pseudo, ignore_index=IGNORE))


def test_divisor_valid_counts_rejected_pixels() -> None:
    b = batch()
    tau = host().teacher(b.u_weak).logits.softmax(1).amax(1).median().item()
    kept, valid = (host(label=ConfidentLabels(tau), divisor=d).losses(b, 0.5) for d in ("kept", "valid"))
    share, of = kept.statistics["kept"].tolist()
    assert 0 < share < of, "the threshold must reject some pixels"
    torch.testing.assert_close(valid.losses["unlabeled"], kept.losses["unlabeled"] * share / of)


def test_explicit_plain_plug_ins_change_nothing() -> None:
    class NoLoss:
        on = "mixed"

        def __call__(self, labeled: View, unlabeled: View, t: float) -> torch.Tensor:
            assert unlabeled.student is not None and labeled.student is not None
            return labeled.image.new_zeros(())

    plain = host().losses(batch(), 0.5).losses
    filled = host(weigh=UniformWeight(), mix=CutMix(0.0), auxiliary=NoLoss()).losses(batch(), 0.5).losses
    assert filled.pop("auxiliary") == 0
    assert {k: v.item() for k, v in plain.items()} == {k: v.item() for k, v in filled.items()}


def test_an_auxiliary_loss_on_the_weak_view_sees_the_students_weak_output() -> None:
    seen = {}

    class Spy:
        on = "weak"

        def __call__(self, labeled: View, unlabeled: View, t: float) -> torch.Tensor:
            seen.update(image=unlabeled.image, student=unlabeled.student, t=t)
            return unlabeled.student.logits.mean()

    b = batch()
    step = host(auxiliary=Spy()).losses(b, 0.25)
    assert torch.equal(seen["image"], b.u_weak) and seen["t"] == 0.25
    assert seen["student"].logits.shape == (B, K, S, S)
    assert step.losses["auxiliary"].requires_grad


def test_the_unlabeled_term_trains_the_student_and_never_the_teacher() -> None:
    h = host()
    h.losses(batch(), 0.5).losses["unlabeled"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in h.student.parameters())
    assert all(p.grad is None for p in h.teacher.parameters())


def test_warm_up_uses_labels_only_and_keeps_the_teacher_a_copy() -> None:
    h = host(unlabeled_from=0.5)
    assert set(h.losses(batch(), 0.49).losses) == {"labeled"}
    with torch.no_grad():
        h.student.classify.bias.add_(1.0)
    h.after_step()
    assert torch.equal(h.teacher.model.classify.bias, h.student.classify.bias)
    assert set(h.losses(batch(), 0.5).losses) == {"labeled", "unlabeled"}
    with torch.no_grad():
        h.student.classify.bias.add_(1.0)
    h.after_step()  # a = 1/2 in the first step of the average
    torch.testing.assert_close(h.teacher.model.classify.bias, h.student.classify.bias - 0.5)


def test_nothing_confident_gives_zero_not_nan() -> None:
    step = host(label=ConfidentLabels(0.9999)).losses(batch(), 0.5)
    assert step.losses["unlabeled"].item() == 0 and step.statistics["kept"][0] == 0
    sum(step.losses.values()).backward()


def test_labeled_and_unlabeled_batches_may_differ_in_size() -> None:
    step = host(mix=CutMix(1.0)).losses(batch(labeled=2), 0.5)
    assert step.losses["unlabeled"] > 0 and step.losses["labeled"] > 0


def test_an_unknown_component_is_an_error() -> None:
    with pytest.raises(TypeError, match="detector"):
        host(detector=None)


def test_supervised_has_one_term_and_its_teacher_only_watches() -> None:
    torch.manual_seed(0)
    h, b = Supervised(student(dropout=0.0), decay=0.9).train(), batch()
    step = h.losses(b, 0.0)
    logits = copy.deepcopy(h.student)(b.x).logits
    assert set(step.losses) == {"labeled"}
    torch.testing.assert_close(step.losses["labeled"], F.cross_entropy(logits, b.y, ignore_index=IGNORE))
    h.after_step()
    assert int(h.teacher.steps) == 1


def test_the_ramp_counts_copies_from_the_first_step_with_unlabeled_images() -> None:
    for counted, steps in ((False, 1), (True, 3)):
        h = host(unlabeled_from=0.2, copy_until=0.6, count_copies=counted)
        for t in (0.0, 0.1, 0.3, 0.5, 0.7):
            h.losses(batch(), t)
            h.after_step()
        assert h.teacher.steps == steps


def test_padding_is_a_pixel_where_asked() -> None:
    b = batch()
    everywhere = b._replace(u_valid=torch.ones_like(b.u_valid))
    ours, theirs, wanted = (
        host(padding=padding).losses(given, 0.5).losses["unlabeled"]
        for padding, given in ((False, b), (True, b), (False, everywhere))
    )
    assert theirs == wanted != ours


def test_sides_of_the_box_reach_the_mixer_of_every_host_with_cutmix() -> None:
    for method in ("mean_teacher", "cutmix_seg", "u2pl", "ddfp", "dgcl", "esl"):
        made = recipe(method, "digits", "1_8", "smoke").changed({"consistency.cutmix_sides": "width"})
        if method == "u2pl":
            made = made.changed({"u2pl.mixer": "cutmix"})
        assert build(made, K).mix.sides == "width", method


def test_the_official_reading_teaches_itself_with_a_deep_stem() -> None:
    made = reading(recipe("mean_teacher", "cityscapes", "1_8", "paper"), "official")
    assert (made.consistency.teacher, made.consistency.cutmix_sides) == ("self", "width")
    assert (made.network.stem, made.network.pyramid_dropout, made.evaluation.border) == ("deep", 0.1, "cut")
    tiny = reading(recipe("mean_teacher", "digits", "1_8", "tiny"), "official")
    assert tiny.network == recipe("mean_teacher").network and tiny.consistency.teacher == "self"
