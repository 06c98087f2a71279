"""Recipes from words: changed options, plug-ins, and the message when a word is wrong."""

import re

import pytest

from semiseg.options import UPC, WPL
from semiseg.recipes import recipe
from semiseg.variants import changed, parse_changes, suffix_of, text_of, variant, with_plug_ins


def test_text_and_values_are_inverse() -> None:
    values = {"ddfp.eps": 1.0, "ddfp.step": "vat", "upc.k": (2,), "dgcl.memory": False, "upc.n": 3}
    assert parse_changes(text_of(values)) == values
    assert parse_changes("") == {} and suffix_of({}) == ""
    assert suffix_of(values) == "eps-1.0-step-vat-k-2-memory-False-n-3"


def test_changes_replace_options_together_and_nothing_else() -> None:
    base = recipe("dgcl")
    made = changed(base, parse_changes("dgcl.sampling=random dgcl.memory=False"))
    assert (made.dgcl.sampling, made.dgcl.memory) == ("random", False)
    assert changed(made, {"dgcl.sampling": "density", "dgcl.memory": True}) == base
    assert changed(base, {}) == base


def test_integers_become_floats_where_the_option_is_one_and_lists_tuples() -> None:
    made = changed(recipe("ddfp"), {"ddfp.eps": 1, "ddfp.weights": [0.5, 2]})
    assert isinstance(made.ddfp.eps, float) and made.ddfp.weights == (0.5, 2)


def test_variant_is_the_recipe_with_its_plug_ins() -> None:
    made = variant("cps", "upc,wpl", "upc.select=random", data="digits", split="1_4", scale="tiny", seed=2)
    assert made.upc == UPC(select="random") and made.wpl == WPL() and (made.split, made.seed) == ("1_4", 2)
    assert with_plug_ins(recipe("cps"), " ") == recipe("cps")
    assert variant("esl", data="digits", split="1_8", scale="tiny", seed=0) == recipe("esl")


@pytest.mark.parametrize(("plug_ins", "changes", "message"), [
    ("dropout", "", "unknown plug-in 'dropout'; expected one of upc, wpl"),
    ("", "eps=1", "'eps=1' is not part.option=value, as in ddfp.eps=1.0"),
    ("", "ddfp.eps", "'ddfp.eps' is not part.option=value"),
    ("", "ddfp.eps=", "'ddfp.eps=' is not part.option=value"),
    ("", "ddfp.eps=1 ddfp.eps=2", "ddfp.eps stands twice"),
    ("", "ddpf.eps=1", "unknown part of a recipe 'ddpf'; expected one of network, "),
    ("", "ddfp.epsilon=1", "unknown option of ddfp 'epsilon'; expected one of eps, tap, "),
    ("", "upc.n=3", "upc.n needs the plug-in upc, which does not take part in ddfp"),
    ("", "ddfp.eps=big", "ddfp.eps is a number, now 2.05; got 'big'"),
    ("", "ddfp.learn_means=no", "ddfp.learn_means is now True; 'no' is of another kind"),
    ("", "ddfp.step=3", "ddfp.step is now 'density'; 3 is of another kind"),
    ("upc", "upc.k=2", "upc.k is now (2, 3, 5); 2 is of another kind"),
    ("upc", "upc.k=(99,)", "UPC needs n >= 1 and each k in 0..n*n"),
])  # fmt: skip
def test_a_wrong_word_is_one_clear_error(plug_ins: str, changes: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        variant("ddfp", plug_ins, changes, data="digits", split="1_8", scale="tiny", seed=0)
