"""Recipes: the papers' numbers, checks at construction, and the named disagreements."""

from dataclasses import FrozenInstanceError, replace

import pytest

from semiseg.build import build
from semiseg.models.normalization import DualBatchNorm2d
from semiseg.options import DDFP, Consistency, Evaluation, Network, Optimization
from semiseg.recipes import DATA, differences, official, paper, recipe


def test_paper_scale_is_section_4_1() -> None:
    voc, city = recipe("ddfp", "voc", "1_8", "paper"), recipe("ddfp", "cityscapes", "1_8", "paper")
    assert voc.network == Network("resnet101", 16, "imagenet", 256, 48, (6, 12, 18))
    o, c = voc.optimization, voc.consistency
    assert (o.crop, o.batch, o.epochs, o.lr, o.optimizer, o.resize) == (513, 16, 80, 1e-3, "sgd", (0.5, 2.0))
    assert (c.tau, c.decay, voc.ddfp.eps, voc.evaluation.protocol) == (0.95, 0.999, 4.0, "center_crop")
    o = city.optimization
    assert (o.crop, o.epochs, o.lr, city.consistency.tau) == (769, 200, 1e-2, 0.7)
    assert (city.evaluation.protocol, city.evaluation.size, city.evaluation.step) == ("sliding", 801, 534)


def test_scales_of_other_data() -> None:
    city, own = recipe("unimatch", "cityscapes", "1_8", "tiny"), recipe("augseg", "folder", "1_8", "paper")
    for made in (city, own, recipe("mean_teacher", "folder", "full", "smoke")):
        assert (made.evaluation.protocol, made.evaluation.size, made.evaluation.step) == ("sliding", 512, 342)
    assert own.optimization == recipe("augseg", "voc", "1_8", "paper").optimization
    coco = recipe("unimatch", "coco", "1_512", "paper")
    o = coco.optimization
    assert (o.crop, o.batch, o.epochs, o.lr, o.head_lr_factor) == (513, 8, 30, 4e-3, 10.0)
    assert (coco.consistency.tau, coco.evaluation.protocol) == (0.95, "whole")
    for data in DATA:
        assert recipe("ddfp", data, "1_8", "smoke").name == f"{data}-smoke/ddfp-1_8-seed0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fixmatch",), "unknown method 'fixmatch'; expected one of supervised, mean_teacher, "),
        (
            ("ddfp", "imagenet"),
            "unknown data 'imagenet'; expected one of digits, voc, cityscapes, camvid, coco, folder",
        ),
        (("ddfp", "camvid", "1_8", "paper"), "unknown scale for data=camvid 'paper'; expected one of smoke, tiny"),
        (("ddfp", "voc", "1_8", "huge"), "unknown scale 'huge'; expected one of smoke, tiny, paper"),
        (("ddfp", "digits", "1_8", "paper"), "unknown scale for data=digits 'paper'; expected one of smoke, tiny"),
        (("ddfp", "digits", "1_8", "tiny", -1), "seed must be an integer >= 0, got -1"),
    ],
)
def test_unknown_names_say_what_is_valid(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(*arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Network("vgg"), "unknown backbone 'vgg'"),
        (lambda: Network(output_stride=32), "unknown output stride 32; expected one of 8, 16"),
        (lambda: Optimization(crop=0), "crop must be > 0, got 0"),
        (lambda: Optimization(resize=(2.0, 0.5)), "resize must be 0 < low <= high"),
        (lambda: Optimization(optimizer="lion"), "unknown optimizer 'lion'; expected one of sgd, adamw"),
        (lambda: Consistency(divisor="all"), "unknown divisor 'all'; expected one of kept, valid"),
        (lambda: Consistency(teacher="none"), "unknown teacher 'none'; expected one of ema, self"),
        (lambda: DDFP(tap="logits"), "unknown tap 'logits'; expected one of decoder_input, features"),
        (lambda: Evaluation("sliding", 100, 200), "0 < step <= size"),
    ],
)
def test_parts_are_checked_when_built(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_recipes_are_frozen_and_their_hash_is_of_what_matters() -> None:
    r = recipe("mean_teacher")
    with pytest.raises(FrozenInstanceError):
        r.seed = 3  # type: ignore[misc]
    assert r.sha256 == replace(r, ddfp=DDFP(eps=1.0)).sha256, "mean_teacher has no eps"
    assert r.sha256 != replace(r, consistency=replace(r.consistency, tau=0.5)).sha256
    ddfp = recipe("ddfp")
    assert ddfp.sha256 != replace(ddfp, ddfp=replace(ddfp.ddfp, eps=1.0)).sha256
    assert differences(ddfp.as_dict(), replace(ddfp, seed=4).as_dict()) == ["seed: 0 != 4"]


def test_variants_name_the_disagreements() -> None:
    base = recipe("ddfp", "digits", "1_8", "smoke")
    literal, released = paper(base), official(base)
    assert literal.consistency.divisor == "valid" and literal.ddfp.weights == (1.0, 0.5) and literal.ddfp.noise == 0
    assert differences(base.as_dict(), released.as_dict()) == ["consistency.teacher: 'ema' != 'self'"]

    ours, text, code = (build(r, 4) for r in (base, literal, released))
    assert ours.perturb.tap == code.perturb.tap == "decoder_input" and text.perturb.tap == "features"
    assert ours.perturb.flow.means.requires_grad and not text.perturb.flow.means.requires_grad
    assert text.perturb.sampling == "equal" and text.perturbed_weights == (1.0, 0.5)
    assert (text.divisor, ours.divisor) == ("valid", "kept")
    assert ours.teacher.decay == 0.99 and not ours.teacher.own_statistics
    assert code.teacher.decay == 0.0 and code.teacher.own_statistics
    doubled = [any(isinstance(m, DualBatchNorm2d) for m in h.student.modules()) for h in (ours, text, code)]
    assert doubled == [True, False, True]


def test_epochs_become_shares_of_training() -> None:
    host = build(recipe("ddfp", "digits", "1_8", "smoke"), 4)
    assert (host.unlabeled_from, host.perturb_from) == (1 / 4, 2 / 4)


def test_ohem_is_used_when_asked_for() -> None:
    base = recipe("supervised", "digits", "1_8", "smoke")
    hard = replace(base, optimization=replace(base.optimization, ohem=True))
    assert build(base, 4).criterion is not build(hard, 4).criterion
