"""What UPC is compared with, and UPC inside its hosts: areas, labels, rows; where a mask comes from; no gradient."""

import copy
from dataclasses import replace

import pytest
import torch
from test_upc import classes, drawn, labeled, unlabeled
from toys import B, K, S, batch, student

from semiseg.build import build, mixer
from semiseg.components import entropy
from semiseg.hosts.cps import CPSOptions, CrossPseudoSupervision
from semiseg.hosts.cutmix_seg import CutMixSegmentation, CutMixSegOptions
from semiseg.methods.upc import PatchCutMix, UPCOptions, patch_mask, patch_sums, top_patches
from semiseg.methods.upc_controls import (
    LabeledCopyPaste,
    LabeledCutMix,
    PixelErasing,
    RandomErasing,
    least_certain,
)
from semiseg.recipe import Recipe, recipe
from semiseg.types import IGNORE, Mixer, Paste, Target, View


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- boxes and objects of labeled images --------------------------------------------------


def boxes_are_boxes(mask: torch.Tensor, low: float, high: float) -> None:
    for plane in mask:
        rows, columns = plane.any(1), plane.any(0)
        assert torch.equal(plane, rows[:, None] & columns[None]), "one rectangle"
        for side in (rows, columns):
            places = side.nonzero().flatten()
            assert len(places) == places[-1] - places[0] + 1
        assert low <= plane.float().mean().item() <= high


def test_a_box_of_a_labeled_image() -> None:
    own, donors, shares = unlabeled(4, (64, 48)), labeled(5, (64, 48)), []
    for _ in range(20):
        paste = LabeledCutMix(2)(own, donors)
        assert paste.source.shape == (8, 64, 48) and paste.erased is None
        foreign = paste.source >= 4
        boxes_are_boxes(foreign, 0.015, 0.42)
        shares += foreign.float().mean((1, 2)).tolist()
        mixed, rows = paste.view(own, donors), torch.arange(8) % 4
        assert torch.equal(paste.source[~foreign], rows[:, None, None].expand_as(foreign)[~foreign])
        partner = paste.source.flatten(1).max(1).values - 4
        assert (partner[:4] != partner[4:]).all(), "every row has another donor"
        expected = torch.where(foreign[:, None], donors.image[partner], own.image[rows])
        assert torch.equal(mixed.image, expected)
    assert min(shares) < 0.08 and max(shares) > 0.34, "from 2 to 40 %"


def test_all_pixels_of_one_object_class() -> None:
    own = unlabeled(3)
    y = classes(3, 16, 16)
    y[:, :3] = IGNORE
    donors = View(drawn(3, 3, 16, 16), Target.from_labels(y))
    for background, copied in ((0, {1, 2, 3}), (None, {0, 1, 2, 3})):
        seen = set()
        for _ in range(20):
            source = LabeledCopyPaste(1, background)(own, donors).source
            for plane in source:
                mask, j = plane >= 3, int(plane.max()) - 3
                (k,) = y[j][mask].unique().tolist()
                assert torch.equal(mask, y[j] == k), "every pixel of the class, no other, none unknown"
                seen.add(k)
        assert seen == copied


def test_without_an_object_nothing_is_copied() -> None:
    own, nothing = unlabeled(2), View(drawn(2, 3, 16, 16), Target.from_labels(torch.zeros(2, 16, 16, dtype=torch.long)))
    unknown = View(nothing.image, Target.from_labels(torch.full((2, 16, 16), IGNORE)))
    for donors in (nothing, unknown):
        mixed = LabeledCopyPaste()(own, donors).view(own, donors)
        assert torch.equal(mixed.image, own.image) and torch.equal(mixed.target.label, own.target.label)


# --- erasing ------------------------------------------------------------------------------


def erased_pixels_carry_no_label(paste: Paste, own: View, donors: View) -> None:
    mixed, erased = paste.view(own, donors), paste.erased
    assert erased is not None and (paste.source < len(own.image)).all()
    copies = len(erased) // len(own.image)
    assert (mixed.target.weight[erased] == 0).all() and (mixed.target.denominator[erased] == 0).all()
    assert torch.equal(mixed.target.weight[~erased], own.target.weight.repeat(copies, 1, 1)[~erased])
    same = (mixed.image == own.image.repeat(copies, 1, 1, 1)).all(1)
    assert torch.equal(same, ~erased), "noise there, and only there"
    assert (mixed.target.at(erased.shape[1:])[erased] == IGNORE).all()


def test_a_box_of_noise() -> None:
    own, donors = unlabeled(4, (64, 48)), labeled(4, (64, 48))
    mixer = RandomErasing(2)
    for _ in range(10):
        paste = mixer(own, donors)
        assert paste.source.shape == (8, 64, 48)
        boxes_are_boxes(paste.erased, 0.015, 0.42)
        erased_pixels_carry_no_label(paste, own, donors)
    total, count = mixer.statistics["erased"]
    assert total == paste.erased.sum() and count == paste.erased.numel() and mixer.statistics["replaced"][0] == 0


@pytest.mark.parametrize("size", [(16, 16), (7, 5), (321, 321)])
def test_as_many_uncertain_pixels_as_patches_have(size: tuple[int, int]) -> None:
    own, donors = unlabeled(2, size), labeled(2, size)
    paste = PixelErasing(4, (2, 5), rows="all")(own, donors)
    area = size[0] * size[1]
    assert paste.erased.flatten(1).sum(1).tolist() == [2 * area // 16] * 2 + [5 * area // 16] * 2
    erased_pixels_carry_no_label(paste, own, donors)
    for row, erased in enumerate(paste.erased):
        assert own.entropy[row % 2][erased].min() >= own.entropy[row % 2][~erased].max()


def test_uncertain_pixels_of_equal_entropy_and_of_padding() -> None:
    own = unlabeled(1, (4, 4))
    own = replace(own, entropy=torch.zeros(1, 4, 4))
    own.target.denominator[0, 0] = 0
    assert least_certain(own, torch.tensor([3]))[0].nonzero().tolist() == [[1, 0], [1, 1], [1, 2]]
    assert least_certain(own, torch.tensor([13]))[0, 0].tolist() == [True, False, False, False], "padding last"
    with pytest.raises(ValueError, match="pixel erasing needs the entropy"):
        PixelErasing(4, (2, 3, 5), "sample")(replace(own, entropy=None), labeled(1, (4, 4)))


def test_one_row_draws_the_number_of_pixels() -> None:
    mixer = PixelErasing(4, (2, 5), rows="sample")
    seen = {int(n) for _ in range(20) for n in mixer(unlabeled(), labeled()).erased.flatten(1).sum(1)}
    assert seen == {32, 80}


@pytest.mark.parametrize("make", [LabeledCutMix, RandomErasing])
def test_boxes_that_cannot_be(make) -> None:
    for wrong in ({"rows": 0}, {"area": (0.0, 0.4)}, {"area": (0.5, 0.4)}, {"area": (0.1, 1.0)}, {"ratio": (2.0, 3.0)}):
        with pytest.raises(ValueError, match="needs rows >= 1, area in"):
            make(**wrong)
    with pytest.raises(ValueError, match="rows must be >= 1"):
        LabeledCopyPaste(0)


# --- options to mixers --------------------------------------------------------------------


def mixer_of(options: UPCOptions, data: str = "digits") -> Mixer:
    made = mixer(recipe("cps", data).having(options), None, K)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("patches", PatchCutMix), ("box", LabeledCutMix), ("copy_paste", LabeledCopyPaste), ("erase", RandomErasing),
        ("erase_pixels", PixelErasing),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", ["sample", "all"])
def test_the_mixer_that_the_options_ask_for(kind: str, made: type, rows: str) -> None:
    mix = mixer_of(UPCOptions(replace=kind, rows=rows))
    assert type(mix) is made
    paste = mix(unlabeled(2), labeled(4))
    assert len(paste.source) == (6 if rows == "all" else 2), "as many rows as UPC has"


def test_options_reach_the_mixer() -> None:
    assert UPCOptions().replace == "patches"
    asked = UPCOptions(5, (7, 9), select="random", divide="mean", known=0.5, rows="all")
    made = mixer_of(asked).options
    assert made == asked and (made.n, made.k, made.select, made.divide, made.known, made.rows) == (
        5, (7, 9), "random", "mean", 0.5, "all",
    )  # fmt: skip
    pixels = mixer_of(replace(asked, replace="erase_pixels"))
    assert (pixels.n, pixels.k, pixels.rows) == (5, (7, 9), "all")
    assert [mixer_of(replace(asked, replace=kind)).known for kind in ("box", "copy_paste")] == [0.5, 0.5]
    copying = UPCOptions(replace="copy_paste")
    assert [mixer_of(copying, data).background for data in ("digits", "camvid")] == [0, None]
    city, voc = (recipe("cps", data, "1_8", "paper").having(copying) for data in ("cityscapes", "voc"))
    assert [build(r.having(recipe("cps").network), K).mix.background for r in (city, voc)] == [None, 0]


def test_options_survive_a_record() -> None:
    made = recipe("stpp").having(UPCOptions(5, (7,), rows="all", select="oracle", replace="box"))
    read = Recipe.from_dict(made.as_dict())
    assert read[UPCOptions] == made[UPCOptions] and read.as_dict() == made.as_dict() and made.label == "stpp+upc"
    for wrong in ({"select": "best"}, {"replace": "all"}, {"rows": "3"}, {"divide": "max"}):
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=rf"upc\.{name} should be '\w+',? .*or '\w+', got '{value}'"):
            UPCOptions(**wrong)
    for known, message in ((2, "less than or equal to 1, got 2"), (-0.1, "greater than or equal to 0, got -0.1")):
        with pytest.raises(ValueError, match=f"upc.known should be {message}"):
            UPCOptions(known=known)


# --- inside a host ------------------------------------------------------------------------


class Watching(PatchCutMix):
    """Remembers what it was asked, and what it answered."""

    def __call__(self, own: View, donors: View) -> Paste:
        paste = super().__call__(own, donors)
        self.__dict__.setdefault("seen", []).append((own, paste))
        return paste


@pytest.mark.parametrize("shared", [False, True])
def test_cps_has_a_mask_for_each_pseudo_label_or_one_of_the_mean(shared: bool) -> None:
    mixer = Watching(UPCOptions(4, (3,), rows="all"))
    h = CrossPseudoSupervision(student(dropout=0.0), CPSOptions(), mix=mixer, shared_mask=shared).train()
    b = batch()
    doubts = [entropy(copy.deepcopy(net).eval()(b.u_weak).logits) * b.u_valid for net in (h.student, h.other)]
    h.losses(b, 0.0)
    asked = [(doubts[0] + doubts[1]) / 2] if shared else doubts
    assert len(mixer.seen) == len(asked)
    for doubt, (_, paste) in zip(asked, mixer.seen, strict=True):
        assert torch.equal(paste.source >= B, patch_mask(top_patches(patch_sums(doubt, 4), 3), (S, S)))
    masks = [top_patches(patch_sums(d, 4), 3) for d in doubts]
    assert not torch.equal(*masks), "the networks doubt different patches, else this test sees nothing"


def test_no_gradient_flows_from_a_mask() -> None:
    mixer = Watching(UPCOptions())
    own = unlabeled()
    doubt = own.entropy.clone().requires_grad_()
    paste = mixer(replace(own, entropy=doubt * 2), labeled())
    assert not paste.source.requires_grad and doubt.grad is None
    assert not any(v.requires_grad for v in mixer.statistics.values())
    for method in ("mean_teacher", "cps", "u2pl", "cutmix_seg", "mean_teacher_mse"):
        h = build(recipe(method, "digits", "1_8", "smoke").having(UPCOptions()), K).train()
        h.mix = Watching(UPCOptions())
        h.losses(batch(), 0.9)
        for own, _ in h.mix.seen:
            assert own.entropy is not None and not own.entropy.requires_grad, method
            assert not own.target.label.requires_grad, method


@pytest.mark.parametrize(
    ("make", "options"), [(CutMixSegmentation, CutMixSegOptions()), (CrossPseudoSupervision, CPSOptions(padding=True))]
)
def test_padding_has_no_entropy_where_a_host_counts_it(make, options) -> None:
    """These hosts divide by all pixels, so that padding can only be told by its entropy."""
    mixer = Watching(UPCOptions(4, (1,), rows="all"))
    make(student(dropout=0.0), options, mix=mixer).train().losses(b := batch(), 0.9)
    for own, _ in mixer.seen:
        assert (own.entropy[~b.u_valid] == 0).all() and (own.entropy[b.u_valid] > 0).all()
