"""Recipes: the papers' numbers, checks at construction, changes in one language, and the named disagreements."""

import re
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import pytest

from semiseg import registry
from semiseg.build import build
from semiseg.hosts.u2pl_contrast import U2PLOptions
from semiseg.methods.ddfp import DDFPOptions
from semiseg.methods.dgcl import DGCLOptions
from semiseg.methods.upc import UPCOptions
from semiseg.methods.wpl import WPLOptions, with_alpha
from semiseg.models.normalization import DualBatchNorm2d
from semiseg.options import Consistency, Evaluation, Network, Optimization
from semiseg.recipe import (
    Recipe,
    from_toml,
    parse_changes,
    reading,
    recipe,
    to_toml,
    with_plug_ins,
)
from semiseg.runs import differences
from semiseg.scales import DATA, labeled_share
from semiseg_book.experiments import text_of


def test_paper_scale_is_section_4_1() -> None:
    voc, city = recipe("ddfp", "voc", "1_8", "paper"), recipe("ddfp", "cityscapes", "1_8", "paper")
    assert voc.network == Network("resnet101", 16, "imagenet", 256, 48, (6, 12, 18))
    o, c = voc.optimization, voc.consistency
    assert (o.crop, o.batch, o.epochs, o.lr, o.optimizer, o.resize) == (513, 16, 80, 1e-3, "sgd", (0.5, 2.0))
    assert (c.tau, c.decay, voc[DDFPOptions].eps, voc.evaluation.protocol) == (0.95, 0.999, 4.0, "center_crop")
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
        (("fixmatch",), "unknown method 'fixmatch'"),
        (("ddpf",), "unknown method 'ddpf'; did you mean 'ddfp'? Valid are supervised, mean_teacher, "),
        (
            ("ddfp", "imagenet"),
            "unknown data 'imagenet'; expected one of digits, voc, cityscapes, camvid, coco, folder",
        ),
        (("ddfp", "citiscapes"), "unknown data 'citiscapes'; did you mean 'cityscapes'?"),
        (("ddfp", "camvid", "1_8", "paper"), "unknown scale for data=camvid 'paper'; expected one of smoke, tiny"),
        (("ddfp", "voc", "1_8", "huge"), "unknown scale 'huge'; expected one of smoke, tiny, paper"),
        (("ddfp", "digits", "1_8", "paper"), "unknown scale for data=digits 'paper'; expected one of smoke, tiny"),
        (("ddfp", "digits", "1_8", "tiny", -1), "seed must be an integer >= 0, got -1"),
    ],
)
def test_unknown_names_say_what_is_valid(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe(*arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Network("vgg"), "unknown backbone 'vgg'"),
        (lambda: Network(output_stride=32), "network.output_stride should be 8 or 16, got 32"),
        (lambda: Optimization(crop=0), "optimization.crop should be greater than 0, got 0"),
        (lambda: Optimization(lr="fast"), "optimization.lr should be a valid number"),
        (lambda: Optimization(resize=(2.0, 0.5)), "optimization.resize must be 0 < low <= high, got (2.0, 0.5)"),
        (lambda: Optimization(optimizer="lion"), "optimization.optimizer should be 'sgd' or 'adamw', got 'lion'"),
        (lambda: Optimization(croop=3), "unknown option of optimization 'croop'; did you mean 'crop'?"),
        (lambda: Consistency(divisor="all"), "consistency.divisor should be 'kept', 'valid', 'kept_scaled' or"),
        (lambda: Consistency(teacher="none"), "consistency.teacher should be 'ema', 'self' or 'ema_train', got 'none'"),
        (lambda: Consistency(tau=1.0), "consistency.tau should be less than 1, got 1.0"),
        (lambda: DDFPOptions(tap="logits"), "ddfp.tap should be 'decoder_input' or 'features', got 'logits'"),
        (lambda: DDFPOptions(eps=-1), "ddfp.eps should be greater than or equal to 0, got -1"),
        (lambda: replace(DDFPOptions(), noise=-0.1), "ddfp.noise should be greater than or equal to 0, got -0.1"),
        (lambda: Optimization(resize=(1.0,)), "optimization.resize has too few values, got (1.0,)"),
        (lambda: DGCLOptions(scales=()), "dgcl.scales should have more values, got ()"),
        (lambda: Evaluation("sliding", 100, 200), "0 < step <= size"),
        (lambda: with_plug_ins(recipe("supervised"), "upc"), "UPC changes unlabeled images, and supervised has none"),
        (lambda: recipe("ddfp").having(DGCLOptions()), "ddfp does not read the options of dgcl"),
        (lambda: recipe("ddfp")[UPCOptions], "ddfp has no options of upc"),
        (lambda: recipe("mask2former").changed("optimization.ohem=True"), "no cross-entropy over pixels"),
        (lambda: with_plug_ins(recipe("cps"), "upc").changed("upc.n=40"), "crops of 32 pixels cannot be"),
        (lambda: Recipe.from_dict({"method": "ddfp"}), "not a recipe: it has no data"),
        (lambda: Recipe.from_dict(recipe("ddfp").as_dict() | {"ddpf": {}}), "unknown part of a recipe 'ddpf'"),
        (lambda: Recipe.from_dict(recipe("ddfp").as_dict() | {"ddfp": 3}), "ddfp is 3, not its options"),
    ],
)  # fmt: skip
def test_parts_are_checked_when_built(make, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make()
    assert "\n" not in str(error.value)


def test_recipes_are_frozen_and_their_hash_is_of_what_matters() -> None:
    r = recipe("mean_teacher")
    with pytest.raises(FrozenInstanceError):
        r.seed = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        r.consistency.tau = 3  # type: ignore[misc]
    assert r.sha256 != r.changed("consistency.tau=0.5").sha256
    assert recipe("cps").sha256 == recipe("cps").having(Consistency(tau=0.5, decay=0.99)).sha256, "no tau"
    ddfp = recipe("ddfp")
    assert ddfp.sha256 != ddfp.changed("ddfp.eps=1").sha256 and hash(ddfp) == hash(recipe("ddfp"))
    assert differences(ddfp.as_dict(), replace(ddfp, seed=4).as_dict()) == ["seed: 0 != 4"]
    file = ddfp.changed("network.weights=/some/where/encoder.pth")
    assert file.as_dict()["network"]["weights"] == "encoder.pth", "where the file lies is not the recipe"


def test_an_option_added_later_is_recorded_where_it_is_changed_only() -> None:
    r = recipe("ddfp")
    assert "samples" not in r.as_dict()["ddfp"] and "clip_norm" not in r.as_dict()["optimization"]
    assert r.changed("ddfp.samples=10").as_dict()["ddfp"]["samples"] == 10


def test_companions_are_recorded_where_they_are_asked() -> None:
    boxes = with_plug_ins(recipe("unimatch"), "wpl")
    assert boxes.as_dict()["detector"]["backbone"] == "tiny"
    sure = boxes.changed("wpl.reliable=confidence")
    assert "detector" not in sure.as_dict() and sure.label == "unimatch+wpl"
    assert recipe("unimatch").having(WPLOptions()) == boxes, "a plug-in brings its companion along"
    assert boxes.without("wpl") == recipe("unimatch")


# --- one language -------------------------------------------------------------------------


def test_text_and_values_are_inverse() -> None:
    values = {"ddfp.eps": 1.0, "ddfp.step": "vat", "upc.k": (2,), "dgcl.memory": False, "upc.n": 3, "wpl.unknown": None}
    assert parse_changes(text_of(values)) == values and parse_changes("") == {}


def test_words_values_and_files_say_the_same() -> None:
    word = recipe("ddfp").changed("ddfp.eps=1 ddfp.step=vat optimization.clip_norm=none network.rates=1,3")
    value = recipe("ddfp").changed(
        {"ddfp.eps": 1, "ddfp.step": "vat", "optimization.clip_norm": None, "network.rates": [1, 3]}
    )
    file = from_toml('method = "ddfp"\n[ddfp]\neps = 1\nstep = "vat"\n[network]\nrates = [1, 3]\n')
    built = recipe("ddfp").having(replace(recipe("ddfp")[DDFPOptions], eps=1.0, step="vat"))
    assert word == value == file == built.changed({"network.rates": (1, 3)})
    assert isinstance(word[DDFPOptions].eps, float) and word[DDFPOptions].eps == 1.0


def test_one_number_will_do_where_several_are_valid() -> None:
    upc = with_plug_ins(recipe("cps"), "upc")
    assert upc.changed("upc.k=2")[UPCOptions].k == (2,) and upc.changed("upc.k=2,3")[UPCOptions].k == (2, 3)
    things = with_plug_ins(recipe("unimatch"), "wpl").changed("detector.things=cat,dog").value("detector.things")
    assert things == ("cat", "dog")


def test_changes_replace_options_together_and_nothing_else() -> None:
    base = recipe("dgcl")
    made = base.changed("dgcl.sampling=random dgcl.memory=False")
    assert (made[DGCLOptions].sampling, made[DGCLOptions].memory) == ("random", False)
    assert made.changed({"dgcl.sampling": "density", "dgcl.memory": True}) == base == base.changed({})


def test_files_hold_everything_and_what_they_leave_out_is_usual() -> None:
    made = with_plug_ins(recipe("unimatch", "digits", "1_4", "tiny", 2), "upc,wpl").changed("upc.select=random")
    text = to_toml(made)
    assert from_toml(text) == made and 'select = "random" # which patches are replaced' in text
    assert from_toml(text, seed=5, split="1_8") == replace(made, seed=5, split="1_8")
    assert from_toml('method = "cps"\nplug_ins = ["upc"]') == with_plug_ins(recipe("cps"), "upc")


@pytest.mark.parametrize(("plug_ins", "changes", "message"), [
    ("dropout", "", "unknown plug-in 'dropout'; expected one of upc, wpl"),
    ("", "eps=1", "'eps=1' is not part.option=value, as in ddfp.eps=1.0"),
    ("", "ddfp.eps", "'ddfp.eps' is not part.option=value"),
    ("", "ddfp.eps=", "'ddfp.eps=' is not part.option=value"),
    ("", "ddfp.eps=1 ddfp.eps=2", "ddfp.eps stands twice"),
    ("", "ddpf.eps=1", "unknown part of a recipe 'ddpf'; did you mean 'ddfp'? Valid are network, "),
    ("", "ddfp.epss=1", "unknown option of ddfp 'epss'; did you mean 'eps'? Valid are eps, tap, "),
    ("", "upc.n=3", "upc.n needs the plug-in upc, which does not take part in ddfp"),
    ("upc", "detector.size=3", "detector.size needs the plug-in wpl, which does not take part in ddfp+upc"),
    ("", "dgcl.tau=3", "unknown part of a recipe 'dgcl'"),
    ("", "consistency.unlabeled_weight=2", "ddfp does not read consistency.unlabeled_weight; of consistency it"),
    ("", "ddfp.eps=big", "ddfp.eps should be a valid number"),
    ("", "ddfp.learn_means=perhaps", "ddfp.learn_means should be a valid boolean"),
    ("", "ddfp.step=3", "ddfp.step should be 'density', "),
    ("upc", "upc.k=(99,)", "UPC needs n >= 1 and each k in 0..n*n"),
])  # fmt: skip
def test_a_wrong_word_is_one_clear_error(plug_ins: str, changes: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        with_plug_ins(recipe("ddfp"), plug_ins).changed(changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "message"), [
    ("method = ", "not a TOML file: "),
    ('split = "1_8"', 'the file says no method, as in method = "ddfp"'),
    ('method = "ddfp"\nsede = 1', "unknown entry 'sede'; did you mean 'seed'?"),
    ('method = "ddfp"\n[ddpf]\neps = 1', "unknown part of a recipe 'ddpf'; did you mean 'ddfp'?"),
    ('method = "ddfp"\n[ddfp]\nepz = 1', "unknown option of ddfp 'epz'; did you mean 'eps'?"),
])  # fmt: skip
def test_a_wrong_file_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        from_toml(text)


# --- readings -----------------------------------------------------------------------------


def test_readings_name_the_disagreements() -> None:
    base = recipe("ddfp", "digits", "1_8", "smoke")
    literal, released = reading(base, "paper"), reading(base, "official")
    assert reading(base, "default") == base
    own = literal[DDFPOptions]
    assert literal.consistency.divisor == "valid" and own.weights == (1.0, 0.5) and own.noise == 0
    assert differences(base.as_dict(), released.as_dict()) == ["consistency.teacher: 'ema' != 'self'"]

    ours, text, code = (build(r, 4) for r in (base, literal, released))
    assert ours.perturb.tap == code.perturb.tap == "decoder_input" and text.perturb.tap == "features"
    assert ours.perturb.flow.means.requires_grad and not text.perturb.flow.means.requires_grad
    assert text.perturb.options.sampling == "equal" and text.perturbed_weights == (1.0, 0.5)
    assert (text.divisor, ours.divisor) == ("valid", "kept")
    assert ours.teacher.decay == 0.99 and not ours.teacher.own_statistics
    assert code.teacher.decay == 0.0 and code.teacher.own_statistics
    doubled = [any(isinstance(m, DualBatchNorm2d) for m in h.student.modules()) for h in (ours, text, code)]
    assert doubled == [True, False, True]


def test_plug_ins_have_readings_and_others_are_refused() -> None:
    wpl = with_plug_ins(recipe("unimatch"), "wpl")
    assert reading(wpl, "paper")[WPLOptions] == replace(wpl[WPLOptions], offset=0.0, in_divisor=False)
    assert reading(wpl, "official")[WPLOptions] == replace(wpl[WPLOptions], resolution="full", box_score=0.95)
    with pytest.raises(ValueError, match="unknown variant 'offical'; did you mean 'official'"):
        reading(wpl, "offical")
    with pytest.raises(ValueError, match="unknown variant 'paper'; expected one of default"):
        reading(recipe("esl"), "paper")


def test_alpha_scales_the_terms_of_pseudo_labels() -> None:
    for name, method in registry.methods().items():
        if method.unlabeled_weights:
            base = recipe(name)
            changed = {d.split(":")[0] for d in differences(base.as_dict(), with_alpha(base, 0.5).as_dict())}
            assert changed == set(method.unlabeled_weights)
    assert with_alpha(recipe("unimatch"), 0.4).value("unimatch.weights") == pytest.approx((0.1, 0.1, 0.2))
    assert with_alpha(recipe("u2pl"), 0.5)[U2PLOptions].weight == recipe("u2pl")[U2PLOptions].weight
    with pytest.raises(ValueError, match="unknown host with a factor alpha 'cps'"):
        with_alpha(recipe("cps"), 0.5)


def test_epochs_become_shares_of_training() -> None:
    host = build(recipe("ddfp", "digits", "1_8", "smoke"), 4)
    assert (host.unlabeled_from, host.perturb_from) == (1 / 4, 2 / 4)


def test_ohem_is_used_when_asked_for() -> None:
    base = recipe("supervised", "digits", "1_8", "smoke")
    assert build(base, 4).criterion is not build(base.changed("optimization.ohem=True"), 4).criterion


def test_on_coco_another_optimizer_keeps_its_own_numbers() -> None:
    made, voc = (recipe("mask2former", data, "1_8", "paper").optimization for data in ("coco", "voc"))
    for name in ("optimizer", "lr", "head_lr_factor", "weight_decay", "clip_norm"):
        assert getattr(made, name) == getattr(voc, name), name
    shared = recipe("supervised", "coco", "1_8", "paper").optimization
    assert (made.crop, made.batch, made.epochs) == (shared.crop, shared.batch, shared.epochs)
    assert recipe("cps", "coco", "1_8", "paper").optimization == shared


def test_the_share_of_labeled_images_is_read_from_the_name_of_the_list() -> None:
    found = [labeled_share("voc", split) for split in ("full", "1_8", "1464", "1_0", "my_list")]
    assert found == [1, Fraction(1, 8), Fraction(1464, 10582), None, None]
    assert labeled_share("folder", "92") is None and labeled_share("folder", "1_4") == Fraction(1, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Optimization(scales=(0.5, 0.0)), r"optimization\.scales must be positive factors, got \(0\.5, 0\.0\)"),
        (lambda: Optimization(scales=()), r"optimization\.scales should have more values"),
        (lambda: Optimization(resize=(1.5, 2.0), resize_law="halves"), "needs bounds of resize around 1"),
        (lambda: Evaluation(border="open"), r"evaluation\.border should be 'inside' or 'cut', got 'open'"),
    ],
)
def test_bad_geometry_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
