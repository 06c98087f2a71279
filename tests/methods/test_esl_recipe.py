"""ESL as recipes: the paper's numbers, the ablations of its tables, and bad arguments."""

import pytest
import torch
from toys import K

from semiseg.build import build
from semiseg.methods.esl import DynamicLabels, ESLOptions
from semiseg.recipe import Recipe, recipe
from semiseg.registry import methods


def variant(**changes) -> Recipe:
    return recipe("esl", "digits", "1_8", "smoke").changed({f"esl.{name}": value for name, value in changes.items()})


def test_recipe_is_section_4_1() -> None:
    voc, city = recipe("esl", "voc", "1_8", "paper"), recipe("esl", "cityscapes", "1_8", "paper")
    own = ESLOptions()
    assert voc[ESLOptions] == own and (own.eta, own.parts, own.embedding, own.negatives) == (0.95, 5, 512, 255)
    assert (own.unlabeled_weight, own.contrast_weight, own.temperature) == (0.2, 0.1, 0.5)
    assert (own.sure, own.momentum, own.share) == (0.95, 0.99, 0.1)
    o = voc.optimization
    assert (o.crop, o.batch, o.epochs, o.lr, o.weight_decay, o.head_lr_factor) == (513, 8, 80, 1e-3, 1e-4, 10)
    o = city.optimization
    assert (o.crop, o.batch, o.epochs, o.lr, o.weight_decay, o.ohem) == (769, 8, 200, 1e-2, 5e-4, True)
    assert city.consistency.unlabeled_from_epoch == 0 and voc.consistency.unlabeled_from_epoch == 1
    assert voc.consistency.cutmix_p == 1.0 and recipe("mean_teacher", "voc", "1_8", "paper").consistency.cutmix_p == 0.5


def test_what_a_method_does_not_use_is_not_in_its_record() -> None:
    for method in methods():
        assert ("esl" in recipe(method).as_dict()) == (method == "esl")
    assert "tau" not in recipe("esl").as_dict()["consistency"] and "ddfp" not in recipe("esl").as_dict()


def test_tables_2_to_4_are_arguments() -> None:
    p = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.03, 0.01]).view(1, 6, 1, 1)
    want = {("hard", 0.95): 1, ("dynamic", 0.8): 2, ("dynamic", 0.9): 3, ("dynamic", 0.99): 5, ("top", 0.95): 5}
    for (label, eta), number in want.items():
        h = build(variant(label=label, eta=eta), K)
        assert (h.label.soften(p) > 0).sum() == number, (label, eta)
    for k in (1, 3, 5, 7, 10):
        h = build(variant(parts=k), K)
        assert h.auxiliary.parts.prototypes.shape[:2] == (K, k) and len(h.auxiliary.bank.rows) == K * k
    without = build(variant(parts=0), K)
    assert without.auxiliary is None and without.student.project is None


def test_every_option_arrives() -> None:
    odd = variant(
        queue=7, negatives=9, draw="classes", temperature=0.3, share=0.2, max_anchors=11, sure=0.4, momentum=0.8,
        divisor="present", unlabeled_weight=0.6, contrast_weight=0.7, color=True, collect_steps=13, embedding=24,
    )  # fmt: skip
    h = build(odd, K)
    a, o = h.auxiliary, h.auxiliary.options
    assert (a.bank.rows.shape[1:], o.negatives, o.draw, o.temperature) == ((7, 24), 9, "classes", 0.3)
    assert (o.share, o.max_anchors, o.sure, o.divisor, o.contrast_weight) == (0.2, 11, 0.4, "present", 0.7)
    assert (a.parts.momentum, a.parts.collect_steps, h.unlabeled_weight) == (0.8, 13, 0.6)
    assert h.color and not build(variant(), K).color
    assert h.mix.p == 1.0 and h.student.project[-1].out_channels == 24


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DynamicLabels(0.0), "0 < eta <= 1 and top >= 1, got eta=0.0"),
        (lambda: ESLOptions(label="soft"), "esl.label should be 'dynamic', 'top' or 'hard', got 'soft'"),
        (lambda: ESLOptions(embedding=0), "esl.embedding should be greater than 0, got 0"),
        (lambda: ESLOptions(share=0.0), "esl.share should be greater than 0, got 0.0"),
        (lambda: ESLOptions(share=1.1), "esl.share should be less than or equal to 1, got 1.1"),
        (lambda: ESLOptions(temperature=0.0), "esl.temperature should be greater than 0, got 0.0"),
        (lambda: ESLOptions(negatives=0), "esl.negatives should be greater than 0, got 0"),
        (lambda: ESLOptions(eta=0.0), "esl.eta should be greater than 0, got 0.0"),
        (lambda: ESLOptions(eta=1.5), "esl.eta should be less than or equal to 1, got 1.5"),
        (lambda: ESLOptions(parts=-1), "esl.parts should be greater than or equal to 0, got -1"),
        (lambda: ESLOptions(draw="all"), "esl.draw should be 'entries' or 'classes', got 'all'"),
        (lambda: ESLOptions(divisor="kept"), "esl.divisor should be 'classes' or 'present', got 'kept'"),
        (lambda: ESLOptions(queue=0), "esl.queue should be greater than 0, got 0"),
        (lambda: ESLOptions(collect_steps=0), "esl.collect_steps should be greater than 0, got 0"),
    ],
)
def test_bad_arguments(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
