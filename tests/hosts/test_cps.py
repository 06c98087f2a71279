"""CPS: two networks, no gradient through a label, symmetry, and both variants."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mixers import Copies, LeftHalf, Thrice, Uncertain
from safetensors.torch import load_file
from toys import B, Blobs, K, S, batch, student

from semiseg import registry
from semiseg.build import build
from semiseg.components import NoMix, UniformWeight, entropy
from semiseg.data.splits import seeded_split
from semiseg.hosts.cps import CPSOptions, CrossPseudoSupervision, ToggledBoxes, same_backbone_other_head
from semiseg.inference.model import load_exported
from semiseg.methods.upc import PatchCutMix, UPCOptions
from semiseg.methods.wpl import WPLOptions
from semiseg.recipe import reading, recipe
from semiseg.training.loop import make_optimizer
from semiseg.training.run import train
from semiseg.types import IGNORE, Mixer, PixelWeighter, Target, View

USUAL = CPSOptions()
BOXES = ToggledBoxes(USUAL.boxes, USUAL.area)


def host(
    mix: Mixer | None = BOXES, weigh: PixelWeighter | None = None, shared_mask: bool = True, **options
) -> CrossPseudoSupervision:
    torch.manual_seed(0)
    net, own = student(dropout=0.0), CPSOptions(mixed=mix is not None, **options)
    return CrossPseudoSupervision(net, own, weigh=weigh, mix=mix, shared_mask=shared_mask).train()


def losses(h: CrossPseudoSupervision, seed: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return h.losses(batch(), 0.0).losses


def gradients(net: torch.nn.Module) -> float:
    return sum(p.grad.abs().sum().item() for p in net.parameters() if p.grad is not None)


def blank(b: int = B, side: int = S) -> View:
    plane = torch.zeros(b, side, side)
    return View(torch.zeros(b, 3, side, side), Target(plane.long(), plane, plane))


# --- the boxes ----------------------------------------------------------------------------


def test_one_box_has_its_area_and_lies_inside() -> None:
    torch.manual_seed(0)
    shares = []
    for _ in range(60):
        foreign = ToggledBoxes(1, USUAL.area)(blank(), blank()).source != torch.arange(B)[:, None, None]
        for mask in foreign:
            rows, columns = mask.any(1), mask.any(0)
            assert torch.equal(mask, rows[:, None] & columns[None])
            shares.append(mask.float().mean().item())
    assert 0.25 - 1.5 / S < min(shares) < 0.28 and 0.47 < max(shares) < 0.5 + 1.5 / S


@pytest.mark.parametrize(("boxes", "foreign"), [(1, True), (2, False), (3, True)])
def test_boxes_toggle(boxes: int, foreign: bool) -> None:
    """At area 1 each side is more than half of the image's, so every box covers the center."""
    torch.manual_seed(0)
    paste = ToggledBoxes(boxes, (1.0, 1.0))(blank(), blank())
    centers = paste.source[:, S // 2, S // 2]
    assert torch.equal(centers, (torch.arange(B) + foreign) % B)


def test_three_boxes_cover_at_most_their_area() -> None:
    torch.manual_seed(0)
    for _ in range(30):
        foreign = BOXES(blank(), blank()).source != torch.arange(B)[:, None, None]
        assert 0 < foreign.float().mean() < 0.5 + 3 / S


def test_a_single_image_has_no_neighbor() -> None:
    assert (BOXES(blank(1), blank(1)).source == 0).all()


# --- two networks -------------------------------------------------------------------------


def test_the_second_network_shares_the_backbone_alone() -> None:
    h = host()
    pairs = dict(h.student.named_parameters())
    equal = {n: torch.equal(p, pairs[n]) for n, p in h.other.named_parameters()}
    assert all(same for n, same in equal.items() if n.startswith("backbone."))
    drawn = [n for n in equal if not n.startswith("backbone.") and pairs[n].dim() == 4]
    assert drawn and not any(equal[n] for n in drawn)
    assert h.other.classify.weight.std().item() == pytest.approx(h.student.classify.weight.std().item(), rel=0.5)
    with pytest.raises(ValueError, match="Linear has no backbone to share"):
        same_backbone_other_head(torch.nn.Linear(1, 1))


def test_losses_are_the_formulas() -> None:
    """Each network learns the other's labels, on images mixed as the other's entropy says."""
    h, b = host(mix=Uncertain(), shared_mask=False, weight=1.5), batch()
    nets = copy.deepcopy((h.student, h.other))
    said = [copy.deepcopy(net).eval()(b.u_weak).logits.detach() for net in nets]
    found = h.losses(b, 0.0).losses
    for i, name in enumerate(("", "_other")):
        label, doubt = said[1 - i].argmax(1), entropy(said[1 - i]) * b.u_valid
        label[~b.u_valid] = IGNORE
        donors = View(b.x, Target.from_labels(b.y))
        paste = Uncertain()(View(b.u_weak, Target.from_labels(label), entropy=doubt), donors)
        on_x = nets[i](b.x).logits
        logits = nets[i](paste(b.u_weak, b.x)).logits
        torch.testing.assert_close(found[f"labeled{name}"], F.cross_entropy(on_x, b.y, ignore_index=IGNORE))
        cross = F.cross_entropy(logits, paste(label, b.y), ignore_index=IGNORE)
        torch.testing.assert_close(found[f"unlabeled{name}"], 1.5 * cross)


def test_losses_of_the_plain_variant_are_the_formulas() -> None:
    h, b = host(mix=None, weight=1.5), batch()
    nets = copy.deepcopy((h.student, h.other))
    found = h.losses(b, 0.0).losses
    outputs = [torch.cat((net(b.x).logits, net(b.u_weak).logits)) for net in nets]
    known = torch.cat((b.y != IGNORE, b.u_valid))
    for i, name in enumerate(("", "_other")):
        label = torch.where(known, outputs[1 - i].argmax(1), IGNORE)
        torch.testing.assert_close(
            found[f"unlabeled{name}"], 1.5 * F.cross_entropy(outputs[i], label, ignore_index=IGNORE)
        )
    assert h.student.aspp.project[1].num_batches_tracked == 2, "one pass per network and image"


@pytest.mark.parametrize("mix", [BOXES, None])
def test_no_gradient_passes_through_a_label(mix) -> None:
    h = host(mix=mix)
    losses(h)["unlabeled_other"].backward()
    assert gradients(h.student) == 0 and gradients(h.other) > 0 and gradients(h.teacher) == 0
    h.zero_grad()
    losses(h)["unlabeled"].backward()
    assert gradients(h.student) > 0 and gradients(h.other) == 0


@pytest.mark.parametrize("mix", [BOXES, None])
def test_equal_networks_stay_equal(mix) -> None:
    torch.manual_seed(0)
    net = student(dropout=0.0)
    h = CrossPseudoSupervision(net, USUAL, copy.deepcopy(net), mix=mix).train()
    optimizer = make_optimizer(h, recipe("cps", "digits", "1_8", "smoke").optimization)
    before = net.classify.weight.clone()
    for _ in range(2):
        found = losses(h)
        assert found["unlabeled"] == found["unlabeled_other"] > 0
        sum(found.values()).backward()
        optimizer.step()
    assert not torch.equal(net.classify.weight, before)
    assert all(torch.equal(a, b) for a, b in zip(h.student.parameters(), h.other.parameters(), strict=True))


@pytest.mark.parametrize("mix", [BOXES, None])
def test_swapping_the_networks_swaps_the_terms(mix) -> None:
    h = host(mix=mix)
    f1, f2 = copy.deepcopy((h.student, h.other))
    one, two = losses(h), losses(CrossPseudoSupervision(f2, USUAL, f1, mix=mix).train())
    assert one["unlabeled"] != one["unlabeled_other"]
    assert [one[k] for k in ("labeled", "labeled_other", "unlabeled", "unlabeled_other")] == [
        two[k] for k in ("labeled_other", "labeled", "unlabeled_other", "unlabeled")
    ]


def test_the_weight_scales_the_gradients() -> None:
    found = []
    for weight in (1.0, 4.0):
        h = host(weight=weight)
        losses(h)["unlabeled"].backward()
        found.append(h.student.classify.weight.grad)
    torch.testing.assert_close(found[1], 4 * found[0])


# --- labels -------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "passes"), [("eval", 2), ("train", 3)])
def test_label_mode(mode: str, passes: int) -> None:
    """Labels made with statistics of the batch move the running ones; both leave the network training."""
    h = host(label_mode=mode)
    losses(h)
    assert h.student.aspp.project[1].num_batches_tracked == passes
    assert h.student.training and h.other.training
    h.eval()
    losses(h)
    assert not h.student.training and h.student.aspp.project[1].num_batches_tracked == passes


def test_padding_is_supervised_only_as_in_the_released_code() -> None:
    for mix in (NoMix(), None):
        ours, theirs = (losses(host(mix=mix, padding=p))["unlabeled"] for p in (False, True))
        assert ours != theirs
    h, b = host(mix=NoMix(), padding=True), batch()
    f1, f2 = copy.deepcopy((h.student, h.other))
    label = copy.deepcopy(f2).eval()(b.u_weak).logits.argmax(1)
    f1(b.x)
    torch.testing.assert_close(losses(h)["unlabeled"], F.cross_entropy(f1(b.u_weak).logits, label))


def test_statistics_are_of_the_labels_the_student_learns() -> None:
    h, b = host(), batch()
    label = [copy.deepcopy(net).eval()(b.u_weak).logits.argmax(1) for net in (h.student, h.other)]
    found = h.losses(b, 0.0).statistics
    right = ((label[1] == b.u_hidden) & b.u_valid).sum()
    assert found["pseudo_label_accuracy"].tolist() == [right, (b.u_valid).sum()]
    assert found["agreement"].tolist() == [((label[0] == label[1]) & b.u_valid).sum(), b.u_valid.sum()]


# --- components -----------------------------------------------------------------------------


def test_a_paste_for_both_or_for_each() -> None:
    b = batch()
    shared, own = LeftHalf(), LeftHalf()
    h = host(mix=shared)
    doubts = [entropy(copy.deepcopy(net).eval()(b.u_weak).logits) * b.u_valid for net in (h.student, h.other)]
    h.losses(b, 0.0)
    host(mix=own, shared_mask=False).losses(b, 0.0)
    assert len(shared.asked) == 1 and len(own.asked) == 2
    torch.testing.assert_close(shared.asked[0].entropy, (doubts[0] + doubts[1]) / 2)
    for view, doubt in zip(own.asked, doubts, strict=True):
        torch.testing.assert_close(view.entropy, doubt)


class Spy(UniformWeight):
    def observe(self, labeled: View, mixed: View) -> None:
        self.labeled, self.mixed = labeled, mixed

    def forward(self, view: View) -> torch.Tensor:
        self.weighed = view
        return 2 * torch.ones_like(view.target.weight)


@pytest.mark.parametrize("mix", [LeftHalf(), None])
def test_each_network_weighs_its_own_labels_by_its_own_features(mix) -> None:
    h, b = host(mix=mix, weigh=Spy()), batch()
    h.weigh_other.in_divisor = h.weigh.in_divisor = False
    before = copy.deepcopy((h.student, h.other))
    plain, found = losses(host(mix=mix)), losses(h)
    f1, f2 = h.student, h.other
    fresh = dict(zip((f1, f2), before, strict=True))
    for mine, other, spy in ((f1, f2, h.weigh), (f2, f1, h.weigh_other)):
        torch.testing.assert_close(spy.labeled.student.logits, mine(b.x).logits)
        torch.testing.assert_close(spy.labeled.teacher.logits, other(b.x).logits)
        torch.testing.assert_close(spy.mixed.student.logits, mine(spy.mixed.image).logits)
        assert not spy.mixed.teacher.logits.requires_grad
        own = mine if mix is None else copy.deepcopy(fresh[mine]).eval()
        torch.testing.assert_close(spy.weighed.teacher.logits, own(b.u_weak).logits)
        assert torch.equal(spy.weighed.target.label, spy.weighed.teacher.logits.argmax(1))
    assert plain["unlabeled"] < found["unlabeled"] < 2 * plain["unlabeled"], "labeled pixels keep factor 1"


def test_mixers_may_return_more_rows() -> None:
    once, twice = (losses(host(mix=m).eval()) for m in (NoMix(), Copies()))
    torch.testing.assert_close(once["unlabeled"], twice["unlabeled"])
    for shared in (True, False):
        found = losses(host(mix=Thrice(), shared_mask=shared, color=True))
        assert found["unlabeled"] > 0 and found["unlabeled_other"] > 0


@pytest.mark.parametrize(("rows", "times"), [("all", 3), ("sample", 1)])
def test_upc_replaces_where_the_maker_of_the_label_is_uncertain(rows: str, times: int) -> None:
    h, b = host(mix=PatchCutMix(UPCOptions(rows=rows)), weigh=Spy(), shared_mask=False), batch()
    makers = {h.weigh: copy.deepcopy(h.other).eval(), h.weigh_other: copy.deepcopy(h.student).eval()}
    h.losses(b, 0.0)
    for spy, maker in makers.items():
        assert len(spy.mixed.image) == times * B
        own = spy.mixed.hidden != IGNORE  # pixels of labeled images bring no hidden mask
        doubt = (entropy(maker(b.u_weak).logits) * b.u_valid).repeat(times, 1, 1)
        for row in range(times * B):
            assert doubt[row][~own[row]].mean() > doubt[row][own[row]].mean(), "the uncertain patches go"
            assert torch.equal(spy.mixed.image[row][:, own[row]], b.u_weak[row % B][:, own[row]])


# --- recipe, training, export -------------------------------------------------------------


def test_recipes() -> None:
    voc, city = (recipe("cps", data, "1_8", "paper") for data in ("voc", "cityscapes"))
    assert (voc[CPSOptions].weight, city[CPSOptions].weight) == (1.0, 5.0)
    plain = CPSOptions.plain()
    assert (plain.weight, CPSOptions.plain(cityscapes=True).weight, plain.mixed) == (1.5, 6.0, False)
    o = voc.optimization
    assert (o.crop, o.batch, o.epochs, o.lr, o.head_lr_factor, o.optimizer) == (512, 8, 34, 1e-2, 1.0, "sgd")
    assert (city.optimization.epochs, city.optimization.lr, city.optimization.ohem) == (137, 2e-2, True)
    base = recipe("cps", "digits", "1_8", "smoke")
    ours, theirs = build(base, K), build(reading(base, "official"), K)
    assert (ours.options.label_mode, ours.options.padding) == ("eval", False)
    assert (theirs.options.label_mode, theirs.options.padding) == ("train", True)
    assert ours.mix.boxes == 3 and ours.mix.area == (0.25, 0.5) and ours.shared_mask
    assert build(base.having(plain), K).mix is None
    assert not build(base.having(UPCOptions()), K).shared_mask, "each pseudo-label goes with its own entropy"
    weighed = build(base.having(WPLOptions()), K)
    assert weighed.losses(batch(), 0.5).statistics["weight"][1] > 0


def test_the_optimizer_trains_both_networks_and_nothing_else() -> None:
    r = recipe("cps", "digits", "1_8", "smoke")
    h = build(r, K)
    backbones, rest = (g["params"] for g in make_optimizer(h, r.optimization).param_groups)
    held = [id(p) for p in (*backbones, *rest)]
    assert sorted(held) == sorted(id(p) for net in (h.student, h.other) for p in net.parameters())
    assert len(backbones) == 2 * len(list(h.student.backbone.parameters()))


@pytest.mark.parametrize("options", [USUAL, CPSOptions.plain()])
def test_a_run_exports_the_average_of_the_first_network(options: CPSOptions, tmp_path: Path) -> None:
    data = Blobs()
    r = recipe("cps", "digits", "1_4", "smoke").having(options)
    run = train(r, data, seeded_split(data.train, "1_4", 0), tmp_path / "cps", progress=False)
    assert (run.metrics.loss_unlabeled > 0).all() and (run.metrics.loss_unlabeled_other > 0).all()
    saved = load_file(run.folder / "model.safetensors")
    assert all(name.startswith("teacher.model.") for name in saved)
    h = load_exported(r, 4, run.folder / "model.safetensors")
    for net in (h.teacher.model, h.student):
        assert all(torch.equal(saved[f"teacher.model.{k}"], v) for k, v in net.state_dict().items())
    assert run.record["parameters"] == sum(p.numel() for p in h.student.parameters())


def test_the_teacher_follows_the_first_network() -> None:
    h = host()
    with torch.no_grad():
        h.student.classify.bias += 1
        h.other.classify.bias -= 5
    h.after_step()
    torch.testing.assert_close(h.teacher.model.classify.bias, h.student.classify.bias - 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: host(mix=None, color=True), r"cps\.color needs a mixer"),
        (lambda: ToggledBoxes(0, USUAL.area), "boxes=0"),
        (lambda: ToggledBoxes(3, (0.5, 0.25)), "0 < low <= high <= 1"),
        (lambda: CPSOptions(label_mode="both"), r"cps\.label_mode should be 'eval' or 'train', got 'both'"),
        (lambda: CPSOptions(area=(0.0, 0.5)), r"cps\.area must be 0 < low <= high <= 1, got \(0\.0, 0\.5\)"),
        (lambda: CPSOptions(weight=0), r"cps\.weight should be greater than 0, got 0"),
        (lambda: CPSOptions(boxes=0), r"cps\.boxes should be greater than 0, got 0"),
    ],
)
def test_bad_options(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- released donors ------------------------------------------------------------------------


def test_boxes_apart_show_the_donor_of_the_same_row() -> None:
    torch.manual_seed(0)
    source = ToggledBoxes(1, (1.0, 1.0), apart=True)(blank(6), blank(6)).source
    assert torch.equal(source[:, S // 2, S // 2], torch.arange(3, 6))


def test_another_crop_of_the_same_image_is_pasted_with_its_own_label() -> None:
    h = host(mix=ToggledBoxes(3, (0.25, 0.5), apart=True), donor="same", label_mode="train", padding=True)
    nets, b = copy.deepcopy((h.student, h.other)), batch()
    again = {name: torch.cat((v, v.flip(-1))) for name, v in b._asdict().items() if name in TWICE}
    b = b._replace(**again)
    torch.manual_seed(5)
    step = h.losses(b, 0.0)
    torch.manual_seed(5)
    labels = [torch.cat([net(u).logits.argmax(1) for u in b.u_weak.chunk(2)]) for net in nets]
    blanks = blank(2 * B)
    paste = ToggledBoxes(3, (0.25, 0.5), apart=True)(blanks, blanks)
    for i, name in enumerate(("", "_other")):
        nets[i](b.x)
        cross = F.cross_entropy(nets[i](paste(b.u_weak)).logits, paste(labels[1 - i]))
        torch.testing.assert_close(step.losses[f"unlabeled{name}"], cross)
    assert h.student.aspp.project[1].num_batches_tracked == 4, "two clean views, labeled images, mixed ones"
    assert step.statistics["agreement"][1] == b.u_valid.sum()


TWICE = ("u_weak", "u_valid", "u_hidden")


def test_crops_are_loaded_where_boxes_show_them() -> None:
    method, base = registry.method("cps"), recipe("cps", "digits", "1_8", "smoke").changed("cps.donor=same")
    assert method.loading(base) == {"crops": 2} and build(base, K).crops == 2
    for other in (base.having(UPCOptions()), base.changed("cps.mixed=False"), base.changed("cps.donor=next")):
        assert method.loading(other) == {"crops": 1} and build(other, K).crops == 1


@pytest.mark.parametrize(
    ("data", "epochs"),
    [
        ("voc", {"92": 30, "183": 31, "366": 31, "732": 32, "1464": 35, "full": 30}),
        ("voc", {"1_16": 32, "1_8": 34, "1_4": 40, "1_2": 60}),
        ("cityscapes", {"1_30": 124, "1_16": 128, "1_8": 137, "1_4": 160, "1_2": 240, "full": 120}),
    ],
)
def test_every_list_gets_the_same_number_of_steps(data: str, epochs: dict[str, int]) -> None:
    """Table of the repository (docs/getting_started.md), and its rule for lists that it does not have."""
    found = {split: recipe("cps", data, split, "paper").optimization for split in epochs}
    assert {split: o.epochs for split, o in found.items()} == epochs
    assert all(o.epoch_steps is None for o in found.values())
    o = recipe("cps", data, "my_list", "paper").optimization
    steps = {"voc": 39_682, "cityscapes": 44_625}[data]
    assert o.epochs * o.epoch_steps == pytest.approx(steps, rel=2e-3)
    for name in ("cps", "mean_teacher_mse")[: 2 if data == "voc" else 1]:
        read = reading(recipe(name, data, "my_list", "paper"), "official").optimization
        assert (read.epochs, read.epoch_steps) == (o.epochs, o.epoch_steps)


def test_the_official_reading_has_the_rate_that_the_division_by_gpus_leaves() -> None:
    voc, city = (reading(recipe("cps", data, "1_8", "paper"), "official") for data in ("voc", "cityscapes"))
    for made, decay, step in ((voc, 4e-4, 342), (city, 8e-4, 534)):
        o = made.optimization
        assert (o.lr, o.weight_decay, o.decay_norms) == (2.5e-3, decay, False)
        assert made.evaluation.step == step and made[CPSOptions].donor == "same"
    tiny = reading(recipe("cps", "digits", "1_8", "tiny"), "official")
    assert tiny[CPSOptions].donor == "next", "recorded readings off paper scale stay"
