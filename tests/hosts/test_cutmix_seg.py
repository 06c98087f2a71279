"""CutMix-Seg: clean images to the teacher, mosaics to the student, and a factor of confidence."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mixers import Copies, LeftHalf, Thrice
from toys import B, K, S, batch, student

from semiseg.build import build
from semiseg.components import CutMix, NoMix, UniformWeight
from semiseg.hosts.cutmix_seg import CutMixSegmentation, CutMixSegOptions
from semiseg.methods.upc import UPCOptions
from semiseg.recipe import reading, recipe
from semiseg.types import IGNORE, Mixer, Paste, PixelWeighter, View


def host(mix: Mixer | None = None, weigh: PixelWeighter | None = None, **options) -> CutMixSegmentation:
    torch.manual_seed(0)
    return CutMixSegmentation(student(dropout=0.0), CutMixSegOptions(**options), mix=mix, weigh=weigh).train()


def unlabeled(seed: int = 3, **options) -> torch.Tensor:
    h = host(**options)
    torch.manual_seed(seed)
    return h.losses(batch(), 0.0).losses["unlabeled"]


class Recorded:
    """A mixer that keeps its paste."""

    def __init__(self, mix) -> None:
        self.mix = mix

    def __call__(self, own: View, donors: View) -> Paste:
        self.paste = self.mix(own, donors)
        return self.paste


def median_confidence() -> float:
    return host().teacher(batch().u_weak).logits.softmax(1).amax(1).median().item()


def test_losses_are_the_formulas() -> None:
    mix, tau = Recorded(CutMix(1.0)), median_confidence()
    h, b = host(mix=mix, tau=tau), batch()
    reference = copy.deepcopy(h)
    step = h.losses(b, 0.0)
    logits = mix.paste(reference.teacher.model(b.u_weak).logits)  # pasting logits is pasting probabilities
    goal, valid = logits.softmax(1), mix.paste(b.u_valid.float())
    assert not torch.equal(mix.paste(b.u_weak), b.u_weak)
    said = reference.student(torch.cat((b.x, mix.paste(b.u_weak)))).logits[B:].softmax(1)
    c = (goal.amax(1) >= tau).float().mean()
    torch.testing.assert_close(step.losses["unlabeled"], c * ((said - goal).square().sum(1) * valid).mean())
    assert 0 < c < 1 and step.losses["unlabeled"] > 0
    assert (step.statistics["confidence"][0] / step.statistics["confidence"][1]).item() == pytest.approx(c.item())


def test_by_default_every_image_gets_a_box_of_half_the_area() -> None:
    mix = Recorded(host().mix)
    for _ in range(20):
        host(mix=mix).losses(batch(), 0.0)
        foreign = mix.paste.source != torch.arange(B)[:, None, None]
        assert (foreign.float().mean((1, 2)) - 0.5).abs().max() < 1.5 / S
    small = build(recipe("cutmix_seg", "digits", "1_8", "smoke"), K).mix
    assert (small.p, small.area) == (1.0, 0.5)


def test_confidence_scales_the_loss_of_all_pixels() -> None:
    tau = median_confidence()
    sure, some = unlabeled(tau=0.0), unlabeled(tau=tau)
    h = host(tau=tau)
    torch.manual_seed(3)
    hits, of = h.losses(batch(), 0.0).statistics["confidence"].tolist()
    torch.testing.assert_close(some, sure * hits / of)


def test_confidence_of_a_pixel_masks_it() -> None:
    tau, b = median_confidence(), batch()
    h = host(mix=NoMix(), tau=tau, confidence="pixel")
    reference = copy.deepcopy(h)
    loss = h.losses(b, 0.0).losses["unlabeled"]
    goal = reference.teacher.model(b.u_weak).logits.softmax(1)
    said = reference.student(torch.cat((b.x, b.u_weak))).logits[B:].softmax(1)
    kept = (goal.amax(1) >= tau) & b.u_valid
    torch.testing.assert_close(loss, (said - goal).square().sum(1)[kept].sum() / kept.numel())


@pytest.mark.parametrize("confidence", ["batch", "pixel"])
def test_a_teacher_that_is_sure_of_nothing_teaches_nothing(confidence: str) -> None:
    h = host(tau=1.0, confidence=confidence)
    step = h.losses(batch(), 0.0)
    assert step.losses["unlabeled"].item() == 0 and step.statistics["confidence"][0] == 0
    step.losses["unlabeled"].backward()
    assert all((p.grad == 0).all() for p in h.student.parameters() if p.grad is not None)
    assert h.student.classify.weight.grad is not None, "zero, but a gradient"


def test_the_teacher_sees_whole_images_and_the_student_colors_only_when_asked_for() -> None:
    for color, of in ((False, "u_weak"), (True, "u_strong")):
        spy, b = Spy(), batch()
        h, read = host(color=color, mix=LeftHalf(), weigh=spy), []
        h.teacher.register_forward_hook(lambda module, args, output, read=read: read.append(args[0]))
        h.losses(b, 0.0)
        assert torch.equal(read[0], torch.cat((b.x, b.u_weak)))
        image = b.u_weak if of == "u_weak" else b.u_strong[0]
        assert torch.equal(spy.mixed.image[:, :, :, S // 2 :], image[:, :, :, S // 2 :])


class Spy(UniformWeight):
    def observe(self, labeled: View, mixed: View) -> None:
        self.labeled, self.mixed = labeled, mixed


def test_pasted_labels_are_one_hot_and_sure() -> None:
    spy, b = Spy(), batch()
    hits, of = host(mix=LeftHalf(), weigh=spy, tau=1.0).losses(b, 0.0).statistics["confidence"].tolist()
    target, known = spy.mixed.target, b.y[:, :, : S // 2] != IGNORE
    one_hot = F.one_hot(torch.where(known, b.y[:, :, : S // 2], 0), K).movedim(-1, 1).float()
    assert torch.equal(target.label[:, :, :, : S // 2], one_hot)
    assert torch.equal(target.weight[:, :, : S // 2], known.float())
    assert hits / of == 0.5


def test_upc_on_this_host() -> None:
    h = build(recipe("cutmix_seg", "digits", "1_8", "smoke").having(UPCOptions(rows="all")), K)
    h.weigh = spy = Spy()
    step = h.losses(batch(), 0.5)
    pasted, target = spy.mixed.hidden == IGNORE, spy.mixed.target
    assert len(pasted) == 3 * B and pasted.flatten(1).any(1).all() and step.losses["unlabeled"] > 0
    assert ((target.label.amax(1) == 1) | (target.weight == 0))[pasted].all(), "one-hot labels, or none"


def test_mixers_may_return_more_rows() -> None:
    once, twice = (host(mix=m, tau=0.0).eval().losses(batch(), 0.0) for m in (NoMix(), Copies()))
    torch.testing.assert_close(once.losses["unlabeled"], twice.losses["unlabeled"])
    step = host(mix=Thrice(), tau=0.0).losses(batch(), 0.0)
    assert step.losses["unlabeled"] > 0 and step.statistics["confidence"][1] == 3 * B * S * S


def test_the_weight_scales_the_term() -> None:
    torch.testing.assert_close(unlabeled(tau=0.0, weight=3.0), 3 * unlabeled(tau=0.0))


def test_recipes_take_the_threshold_of_their_scale() -> None:
    taus = [recipe("cutmix_seg", *where)[CutMixSegOptions].tau for where in (("digits",), ("voc", "1_8", "paper"))]
    assert taus == [recipe("mean_teacher", "digits").consistency.tau, 0.97]
    assert recipe("cutmix_seg", "voc", "1_8", "paper").consistency.decay == 0.99
    step = build(recipe("cutmix_seg", "digits", "1_8", "smoke"), K).losses(batch(), 0.0)
    assert step.losses["unlabeled"] > 0 and step.statistics["confidence"][0] > 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"confidence": "image"}, r"cutmix_seg\.confidence should be 'batch' or 'pixel', got 'image'"),
        ({"tau": 1.2}, r"cutmix_seg\.tau should be less than or equal to 1, got 1\.2"),
        ({"tau": -0.1}, r"cutmix_seg\.tau should be greater than or equal to 0, got -0\.1"),
        ({"weight": -1}, r"cutmix_seg\.weight should be greater than 0, got -1"),
    ],
)
def test_bad_options(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CutMixSegOptions(**option)


def test_the_official_reading_is_the_script_for_deeplabv3plus() -> None:
    made = reading(recipe("cutmix_seg", "voc", "1_8", "paper"), "official")
    o = made.optimization
    assert (o.optimizer, o.weight_decay, o.lr, o.head_lr_factor, o.power) == ("adamw", 0.0, 1e-5, 1.0, 0.0)
    assert (o.epochs, o.epoch_steps, o.crop, o.batch) == (40, 1000, 321, 10)
    assert o.scales == (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    base = recipe("cutmix_seg", "digits", "1_8", "smoke")
    ours, theirs = build(base, K), build(reading(base, "official"), K)
    assert (ours.options.color, ours.teacher.own_statistics) == (False, False)
    assert (theirs.options.color, theirs.teacher.own_statistics) == (True, True)
