"""UniMatch: the three unlabeled terms, what teaches them, and the released box."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor

from semiseg import registry
from semiseg.build import build
from semiseg.components import ConfidentLabels, NoMix, random_box
from semiseg.data.splits import seeded_split
from semiseg.hosts.unimatch import RandomBox, UniMatch, UniMatchOptions
from semiseg.losses import pixel_cross_entropy
from semiseg.methods.wpl import RankWeight, WPLOptions
from semiseg.recipe import reading, recipe, with_plug_ins
from semiseg.training.run import train
from semiseg.types import IGNORE, Batch, Paste, Target, View


def batch() -> Batch:
    one = toys.batch()
    return one._replace(u_strong=torch.cat((one.u_strong, one.u_strong.flip(1))))


def host(own: UniMatchOptions | None = None, **components) -> UniMatch:
    torch.manual_seed(0)
    options = own or UniMatchOptions()
    return UniMatch(toys.student(dropout=0.0), options, label=ConfidentLabels(0.0), **components).train()


def views(b: int = 6, side: int = 64) -> tuple[View, View]:
    target = Target(torch.zeros(b, side, side, dtype=torch.long), *(torch.ones(b, side, side) for _ in range(2)))
    return (View(torch.rand(b, 3, side, side), target),) * 2


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="UniMatch needs 2 strong views, the loader gives 1"):
        host().losses(toys.batch(), 0.5)


def test_terms_are_halves_of_the_weighted_cross_entropies() -> None:
    """With no mixing and no dropout everything can be computed from plain passes."""
    h = host(UniMatchOptions(drop=0.0, weights=(0.2, 0.3, 0.5)), mix=NoMix())
    given, m = batch(), toys.B
    found = h.losses(given, 0.5)
    both = h.student(torch.cat((given.x, given.u_weak, given.u_weak)))  # the decoder sees the weak images twice
    low, deep = h.student.backbone(torch.cat((given.x, given.u_weak)))
    low, deep = (torch.cat((v, v[toys.B :])) for v in (low, deep))
    on = h.student.read(h.student.fuse(low, deep), deep, given.x.shape[-2:]).logits
    assert both.logits.shape == on.shape
    target = ConfidentLabels(0.0)(both.rows(m, 2 * m)._replace(logits=on[m : 2 * m]), given.u_valid, 0.5)
    strong = h.student(given.u_strong.flatten(0, 1)).logits
    torch.testing.assert_close(
        found.losses["labeled"], F.cross_entropy(on[:m], given.y, ignore_index=IGNORE) / 2, rtol=1e-5, atol=1e-6
    )
    wanted = {
        "strong_1": 0.2 * pixel_cross_entropy(strong[:m], target, "valid") / 2,
        "strong_2": 0.3 * pixel_cross_entropy(strong[m:], target, "valid") / 2,
        "dropped": 0.5 * pixel_cross_entropy(on[2 * m :], target, "valid") / 2,
    }
    for name, value in wanted.items():
        assert found.losses[name] > 0
        torch.testing.assert_close(found.losses[name], value, rtol=1e-5, atol=1e-6)
    assert found.losses["strong_1"] / 0.2 != found.losses["strong_2"] / 0.3


def test_dropped_channels_change_their_term_alone_and_labeled_images_lose_none() -> None:
    options = (UniMatchOptions(drop=share) for share in (0.0, 0.5))
    plain, dropped = (host(own, mix=NoMix()).losses(batch(), 0.5).losses for own in options)
    assert plain["dropped"] != dropped["dropped"]
    seen: list[tuple[Tensor, Tensor]] = []
    h = host(UniMatchOptions(drop=0.5))
    fuse = h.student.fuse
    h.student.fuse = lambda low, deep: (seen.append((low, deep)), fuse(low, deep))[1]  # type: ignore[method-assign]
    h.losses(batch(), 0.5)
    for plane in seen[0]:
        zero = (plane == 0).all((2, 3)).float().mean(1)
        weak, moved = zero[toys.B : 2 * toys.B], zero[2 * toys.B :]
        assert (moved > weak + 0.2).all() and (moved < 1).all()
        clean, scaled = plane[toys.B : 2 * toys.B], plane[2 * toys.B :]
        kept = ~(scaled == 0).all((2, 3))
        torch.testing.assert_close(scaled[kept], 2 * clean[kept])


def test_no_gradient_through_the_pseudo_label_and_padding_is_not_supervised() -> None:
    h = host(UniMatchOptions(weights=(1.0, 1.0, 0.0)), mix=NoMix())
    given = batch()
    leaf = given.u_weak.clone().requires_grad_()
    found = h.losses(given._replace(u_weak=leaf), 0.5).losses
    (g,) = torch.autograd.grad(found["strong_1"] + found["strong_2"], leaf, allow_unused=True)
    assert g is None
    nothing = given._replace(u_valid=torch.zeros_like(given.u_valid))
    empty = h.losses(nothing, 0.5).losses
    assert empty["strong_1"] == 0 and torch.isfinite(sum(empty.values()))


def test_the_average_only_watches() -> None:
    h = host(decay=0.5)
    before = h.losses(batch(), 0.5).losses["dropped"]
    torch.manual_seed(0)
    again = UniMatch(toys.student(dropout=0.0), UniMatchOptions(), label=ConfidentLabels(0.0)).train()
    for p in again.teacher.parameters():
        p.data.zero_()
    assert torch.equal(before, again.losses(batch(), 0.5).losses["dropped"])
    with torch.no_grad():
        h.student.classify.bias.add_(1.0)
    h.after_step()
    assert torch.allclose(h.teacher.model.classify.bias, h.student.classify.bias - 0.5)


class Rows:
    """A mixer with three rows per image."""

    def __call__(self, own: View, donors: View) -> Paste:
        source = NoMix()(own, donors).source.repeat(3, 1, 1)
        source[:, :8] = len(own.image)
        return Paste(source)


def test_weights_reach_all_three_terms_and_mixers_may_return_more_rows() -> None:
    weigher = RankWeight(toys.K, toys.D, WPLOptions(k=10, sure=0.0))
    h = host(weigh=weigher, mix=Rows())
    given = batch()._replace(u_boxes=torch.ones(toys.B, toys.K, toys.S, toys.S, dtype=torch.bool))
    found = h.losses(given, 0.5)
    assert all(value > 0 for value in found.losses.values()) and {"weight", "weight_right"} <= found.statistics.keys()
    assert weigher.unlabeled.filled.max() <= 6 * toys.B, "one per image: three rows of two views"
    weigher.unknown, weigher.options = 0.0, replace(weigher.options, offset=0.0)
    weigher.similarities = lambda features, prototypes: torch.zeros(len(features), toys.K, 8, 8)  # type: ignore[method-assign]
    none = h.losses(given, 0.5).losses
    assert none["dropped"] == 0
    assert none["strong_1"] > 0, "pasted labels keep weight 1"


# --- the box --------------------------------------------------------------------------------


def test_boxes_come_in_half_of_the_images_from_the_next_one() -> None:
    torch.manual_seed(0)
    own, donors = views(b=400, side=32)
    source = RandomBox()(own, donors).source
    rows = torch.arange(400)[:, None, None]
    moved = source != rows
    assert (source[moved] == ((rows + 1) % 400).expand_as(source)[moved]).all()
    assert moved.any((1, 2)).float().mean() == pytest.approx(0.5, abs=0.08)
    assert not (RandomBox(p=0.0)(own, donors).source != rows).any()


def test_box_shapes_have_the_measured_bias() -> None:
    """Released code, measured: mean area 0.208 of the image, 73 % taller than wide."""
    torch.manual_seed(0)
    drawn = [random_box(400, 400) for _ in range(1500)]
    y, x = (torch.tensor([box[i].start for box in drawn]).float() for i in range(2))
    height, width = (torch.tensor([box[i].stop - box[i].start for box in drawn]).float() for i in range(2))
    area = height * width / 400**2
    assert (y + height <= 400).all() and (x + width <= 400).all()
    assert area.min() > 0.019 and area.max() < 0.405
    assert float(area.mean()) == pytest.approx(0.208, abs=0.02)
    assert float((height > width).float().mean()) == pytest.approx(0.73, abs=0.05)


def test_bad_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"area in \(0, 1\]"):
        RandomBox(area=(0.5, 0.1))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"drop": 1.0}, r"unimatch\.drop should be less than 1, got 1\.0"),
        ({"weights": (1.0, -0.5, 0.5)}, r"unimatch\.weights must be >= 0, got \(1\.0, -0\.5, 0\.5\)"),
    ],
)
def test_options_out_of_range(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniMatchOptions(**option)


# --- released donors ------------------------------------------------------------------------


class Box(RandomBox):
    """Always the upper left quarter."""

    def __call__(self, own: View, donors: View) -> Paste:
        plain = NoMix()(own, donors).source
        b = len(plain) // 2 if self.apart else len(plain)
        partner = plain[b:] if self.apart else plain.roll(-1, 0)
        source = plain[:b].clone()
        source[:, :16, :16] = partner[:, :16, :16]
        return Paste(source)


def twice(given: Batch) -> Batch:
    """Two crops of each unlabeled image."""
    again = {name: torch.cat((v, v.flip(-1)), v.dim() - 4 if name == "u_strong" else 0) for name, v in (
        ("u_weak", given.u_weak), ("u_strong", given.u_strong), ("u_hidden", given.u_hidden)
    )}  # fmt: skip
    everywhere = torch.ones_like(given.u_valid)
    return given._replace(**again, u_valid=torch.cat((given.u_valid, everywhere)))


def test_boxes_apart_show_the_donor_of_the_same_row() -> None:
    torch.manual_seed(0)
    own, donors = views(b=20, side=32)
    source = RandomBox(p=1.0, apart=True)(own, donors).source
    rows = torch.arange(10)[:, None, None]
    assert len(source) == 10 and ((source == rows) | (source == rows + 10)).all() and (source >= 10).any((1, 2)).all()


@pytest.mark.parametrize(("donor", "mode"), [("same", "eval"), ("same", "train"), ("next", "eval")])
def test_donors_are_labeled_in_a_pass_of_their_own(donor: str, mode: str) -> None:
    """The whole first term, from plain passes in the order of the released code: donors, labels, mixed images."""
    options = UniMatchOptions(weights=(1.0, 0.0, 0.0), drop=0.0, donor=donor, donor_mode=mode)
    h, m = host(options, mix=Box(apart=True)), toys.B
    given = twice(batch()) if donor == "same" else batch()
    net = copy.deepcopy(h.student)
    found = h.losses(given, 0.5)
    images = given.u_weak[m:] if donor == "same" else given.u_weak
    net.train(mode == "train")
    with torch.no_grad():
        donors = net(images).logits.argmax(1)
    net.train()
    colors, valid = given.u_strong[0][m:], given.u_valid[m:]
    if donor == "next":
        donors, colors, valid = (v.roll(-1, 0) for v in (donors, given.u_strong[0], given.u_valid))
    low, deep = net.backbone(torch.cat((given.x, given.u_weak[:m])))
    low, deep = (torch.cat((v, v[m:])) for v in (low, deep))
    label = net.read(net.fuse(low, deep), deep, given.x.shape[-2:]).logits[m : 2 * m].argmax(1)
    image, known = given.u_strong[0][:m].clone(), given.u_valid[:m].clone()
    for own, other in ((image, colors), (label, donors), (known, valid)):
        own[..., :16, :16] = other[..., :16, :16]
    mixed = torch.cat((image, h_second(given, m, donor)))
    wanted = F.cross_entropy(net(mixed).logits[:m], torch.where(known, label, IGNORE), ignore_index=IGNORE) / 2
    torch.testing.assert_close(found.losses["strong_1"], wanted)
    assert found.statistics["kept"][1] == given.u_valid[:m].sum()


def h_second(given: Batch, m: int, donor: str) -> Tensor:
    """The second mixed view, which the student reads with the first."""
    own = given.u_strong[1][:m].clone()
    other = given.u_strong[1][m:] if donor == "same" else given.u_strong[1].roll(-1, 0)
    own[..., :16, :16] = other[..., :16, :16]
    return own


def test_labeled_images_are_dropped_too_where_asked() -> None:
    seen: list[Tensor] = []
    h = host(UniMatchOptions(drop=0.5, drop_labeled=True), mix=NoMix())
    fuse = h.student.fuse
    h.student.fuse = lambda low, deep: (seen.append(deep), fuse(low, deep))[1]  # type: ignore[method-assign]
    found, m = h.losses(batch(), 0.5).losses, toys.B
    plane = seen[0]
    assert len(plane) == 4 * m
    kept = ~(plane[2 * m : 3 * m] == 0).all((2, 3))
    assert 0 < kept.float().mean() < 1
    torch.testing.assert_close(plane[2 * m : 3 * m][kept], 2 * plane[:m][kept])
    torch.manual_seed(0)
    none = host(UniMatchOptions(drop=0.0, drop_labeled=True), mix=NoMix()).losses(batch(), 0.5).losses
    assert found["dropped"] > 0 and none["dropped"] != found["dropped"]


def test_the_official_reading_loads_two_crops_unless_a_plug_in_mixes() -> None:
    method, base = registry.method("unimatch"), recipe("unimatch", "digits", "1_8", "smoke")
    made = reading(base, "official")
    assert method.loading(base) == {"views": 2, "crops": 1} and method.loading(made) == {"views": 2, "crops": 2}
    assert method.loading(with_plug_ins(made, "upc")) == {"views": 2, "crops": 1}
    h = build(made, toys.K)
    assert h.mix.apart and h.mix.whole is int and h.teacher.decay == 0
    assert not build(base, toys.K).apart and not build(with_plug_ins(made, "upc"), toys.K).apart


def test_a_run_of_the_official_reading_reads_its_two_crops(tmp_path: Path) -> None:
    data = toys.Blobs()
    made = reading(recipe("unimatch", "digits", "1_4", "smoke"), "official")
    run = train(made, data, seeded_split(data.train, "1_4", 0), tmp_path / "unimatch", progress=False)
    assert (run.metrics.loss_strong_1 > 0).all()
