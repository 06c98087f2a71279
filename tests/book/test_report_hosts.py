"""The page on training schemes: steps are watched without changing them, and pictures show what was compared."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixers import LeftHalf
from toys import Blobs, K, S, batch, student

from semiseg.components import ConfidentLabels
from semiseg.hosts.cps import CPSOptions, CrossPseudoSupervision, ToggledBoxes
from semiseg.hosts.cutmix_seg import CutMixSegmentation, CutMixSegOptions
from semiseg.hosts.mask2former import mask_set
from semiseg.hosts.mean_teacher import MeanTeacher
from semiseg.hosts.supervised import Supervised
from semiseg.losses import pixel_cross_entropy, squared_error
from semiseg.recipe import recipe
from semiseg.runs import RECORD, Run
from semiseg.types import IGNORE, Target
from semiseg_book.chapters import hosts as figures

matplotlib.use("Agg")
DATA = Blobs()
SURE, CROSSED = CutMixSegOptions(tau=0.0), CPSOptions()


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return student(dropout=0.0).eval()


def hosts() -> dict:
    return {
        "mean_teacher": MeanTeacher(student(), label=ConfidentLabels(0.0)),
        "cutmix_seg": CutMixSegmentation(student(), SURE),
        "cps": CrossPseudoSupervision(student(), CROSSED, mix=ToggledBoxes(CROSSED.boxes, CROSSED.area)),
    }


@pytest.mark.parametrize("name", hosts())
def test_watching_a_step_changes_nothing(name: str) -> None:
    host = hosts()[name]
    figures.staged(host, network(1), network(2))
    own = [m for n, m in host.named_children() if n.startswith("weigh")]
    torch.manual_seed(7)
    before = {k: v.item() for k, v in host.losses(batch(), 1.0).losses.items()}
    drawn = torch.rand(1)
    torch.manual_seed(7)
    figures.watched(host, batch())
    assert [m for n, m in host.named_children() if n.startswith("weigh")] == own
    torch.manual_seed(7)
    assert {k: v.item() for k, v in host.losses(batch(), 1.0).losses.items()} == before
    assert torch.equal(torch.rand(1), drawn)


def test_the_difference_is_the_one_that_is_minimized() -> None:
    b = batch()
    for host, compare, total, over in (
        (MeanTeacher(student(), label=ConfidentLabels(0.0)), figures.per_pixel_cross_entropy, pixel_cross_entropy, ()),
        (CutMixSegmentation(student(), SURE), figures.per_pixel_squared_error, squared_error, ("sum",)),
    ):
        figures.staged(host, network(1), network(2))
        (scene,) = figures.watched(host, b, seed=3)
        torch.manual_seed(3)
        loss = host.losses(b, 1.0).losses["unlabeled"]
        target, logits = scene.mixed.target, scene.mixed.student.logits
        torch.testing.assert_close(compare(logits, target).sum() / target.denominator.sum(), loss)
        torch.testing.assert_close(total(logits, target, *over), loss)


def test_squared_error_of_hard_labels_is_drawn_as_of_one_hot_ones() -> None:
    logits, y = torch.randn(1, K, 4, 4), torch.randint(0, K, (1, 4, 4))
    soft = Target(F.one_hot(y, K).movedim(-1, 1).float(), torch.ones(1, 4, 4), torch.ones(1, 4, 4))
    hard = Target.from_labels(y)
    assert torch.equal(figures.per_pixel_squared_error(logits, hard), figures.per_pixel_squared_error(logits, soft))


def test_both_networks_of_cps_are_seen_as_they_live() -> None:
    host = figures.staged(
        CrossPseudoSupervision(student(), CROSSED, mix=LeftHalf()), network(1), network(2), network(3)
    )
    first, second = figures.watched(host, batch())
    for scene, mine, other in ((first, host.student, host.other), (second, host.other, host.student)):
        assert torch.equal(scene.weak.target.label, other(batch().u_weak).logits.argmax(1))
        torch.testing.assert_close(scene.mixed.student.logits, mine(scene.mixed.image).logits)
        assert torch.equal(scene.mixed.target.label[:, :, S // 2 :], scene.weak.target.label[:, :, S // 2 :])
    assert torch.equal(host.other.classify.weight, network(3).classify.weight)
    assert torch.equal(host.teacher.model.classify.weight, network(2).classify.weight)


def test_weights_of_another_architecture_are_refused() -> None:
    narrow = network(1).aspp
    with pytest.raises(ValueError, match=r"weights of another architecture: missing \['backbone"):
        figures.staged(MeanTeacher(student()), narrow, network(2))
    figures.staged(MeanTeacher(student(embedding=4)), network(1), network(2))


def test_a_host_without_weigher_cannot_be_watched() -> None:
    with pytest.raises(ValueError, match="Supervised has no weigher to watch from"):
        figures.watched(Supervised(student()), batch())


def test_targets_are_drawn_in_the_colors_of_their_classes() -> None:
    y = torch.tensor([[[0, 1], [2, IGNORE]]])
    colors = (255 * figures.drawn(Target.from_labels(y), 0, DATA.palette)).round().astype(int)
    assert colors.tolist() == [[[0, 0, 0], [255, 0, 0]], [[0, 255, 0], [224, 224, 224]]]
    half = torch.tensor([0.0, 0.5, 0.5, 0.0])[None, :, None, None]
    mixed = figures.drawn(Target(half, torch.ones(1, 1, 1), torch.ones(1, 1, 1)), 0, DATA.palette)
    assert mixed[0, 0].tolist() == [0.5, 0.5, 0.0]


def test_pictures_undo_the_normalization() -> None:
    from semiseg.data.transforms import Normalize

    image = DATA.image(DATA.train[0])
    shown = figures.picture(Normalize()(image))
    np.testing.assert_allclose(255 * shown, image.movedim(0, -1).numpy(), atol=1e-3)


def test_the_panels_of_a_step() -> None:
    host = figures.staged(CutMixSegmentation(student(), SURE), network(1), network(2))
    (scene,) = figures.watched(host, batch())
    fig = figures.step(scene, DATA, (0, 2), figures.per_pixel_squared_error, who="other")
    assert [ax.get_title() for ax in fig.axes[2:4]] == ["weak view", "other's label"] and len(fig.axes) == 16
    assert all(ax.get_title() == "" for ax in fig.axes[8:])
    np.testing.assert_array_equal(fig.axes[8].images[0].get_array(), figures.picture(batch().x[2]))
    difference = figures.per_pixel_squared_error(scene.mixed.student.logits, scene.mixed.target)
    np.testing.assert_array_equal(fig.axes[15].images[0].get_array(), difference[2].numpy())


def test_labels_alone_compares_with_the_mask() -> None:
    fig, net = figures.labels_alone(network(1), batch(), DATA, (0, 1)), network(1)
    assert [ax.get_ylabel() for ax in fig.axes[::2]] == ["labeled image", "its mask", "student says", "difference"]
    ce = F.cross_entropy(net(batch().x).logits, batch().y, ignore_index=IGNORE, reduction="none")
    shown = torch.tensor(np.asarray(fig.axes[6].images[0].get_array()))
    torch.testing.assert_close(shown, ce[0].detach())
    assert (shown[:2] == 0).all(), "ignored rows compare nothing"


# --- ideas --------------------------------------------------------------------------------


def test_images_are_ranked_by_agreement() -> None:
    fig, scores = figures.by_reliability(DATA, DATA.train[:6], (network(1), network(2), network(3)), columns=3)
    assert scores == sorted(scores, reverse=True) and len(scores) == 6
    assert [ax.get_title() for ax in fig.axes[:3]] == [f"{scores[i]:.2f}" for i in (0, 2, 5)]
    _, same = figures.by_reliability(DATA, DATA.train[:2], (network(1), network(1)), columns=2)
    assert same == [1.0, 1.0]


def test_uncertain_pixels_keep_their_likeliest_classes() -> None:
    (scene,) = figures.watched(
        figures.staged(MeanTeacher(student(), label=ConfidentLabels(0.0)), network(1), network(2)), batch()
    )
    logits, entropy = scene.mixed.teacher.logits, scene.mixed.entropy
    uncertain = (entropy >= entropy.median()) & (scene.mixed.target.weight > 0)
    fig = figures.unreliable_pixels(scene.mixed, uncertain, DATA, (0, 1), low=2)
    label, possible = (np.asarray(fig.axes[i].images[0].get_array()) for i in (4, 6))
    known = scene.mixed.target.weight[0] > 0
    gray = [torch.tensor(np.isclose(plane, 224 / 255).all(-1)) for plane in (label, possible)]
    assert torch.equal(gray[0], ~(known & ~uncertain[0])) and torch.equal(gray[1], ~uncertain[0])
    kept = figures.candidates(logits, uncertain, 2)
    assert ((kept > 0).sum(1) == 2 * uncertain).all()
    torch.testing.assert_close(kept.sum(1), uncertain.float())
    assert torch.equal(kept.argmax(1)[uncertain], logits.argmax(1)[uncertain])


def test_a_label_map_is_the_sum_of_its_masks() -> None:
    target = Target.from_labels(batch().y)
    masks = mask_set(target, 1)
    assert sorted(masks) == batch().y[1][batch().y[1] != IGNORE].unique().tolist()
    assert torch.equal(torch.stack(list(masks.values())).sum(0), target.weight[1].long())
    (scene,) = figures.watched(
        figures.staged(CutMixSegmentation(student(), CutMixSegOptions()), network(1), network(2)), batch()
    )
    fig = figures.sets_of_masks(scene.labeled, DATA, (0, 1), most=2)
    sizes = torch.stack([mask.sum() for mask in mask_set(target, 0).values()]).sort(descending=True).values
    drawn = [float(np.asarray(ax.images[0].get_array()).sum()) for ax in fig.axes[4::2]]
    assert len(fig.axes) == 8 and drawn == sizes[:2].tolist()


# --- the table ----------------------------------------------------------------------------


def test_schemes_without_record_say_how_to_make_one(tmp_path: Path) -> None:
    runs = []
    for seed, (miou, seconds) in enumerate([(0.5, 100.0), (0.54, 140.0)]):
        r = recipe("cps", "digits", "1_8", "tiny", seed)
        scores = {"miou": miou}
        record = {
            "recipe": r.as_dict(), "data": {"sha256": "d"}, "split": {"sha256": "s"}, "duration_s": seconds,
            "last": {"student": scores, "teacher": scores, "step": 1000}, "best": {"teacher": scores},
        }  # fmt: skip
        (tmp_path / r.name).mkdir(parents=True)
        (tmp_path / r.name / RECORD).write_text(json.dumps(record))
        runs.append(Run.read(tmp_path / r.name))
    shown = figures.comparison(runs, ["supervised", "cps"])
    assert shown.loc["CPS"].tolist() == ["52.0 ± 2.8", 2, "0.120", ""]
    assert shown.loc["supervised"].tolist() == ["no record", 0, "", 'recipe("supervised", seed=0)']
    assert figures.comparison(runs, ["cps"], split="1_4").loc["CPS", "seeds"] == 0
    assert figures.comparison(runs[:1], ["cps"]).loc["CPS", "mIoU, %"] == "50.0"
