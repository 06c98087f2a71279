"""ST++: which images are reliable, labels from several scales, their way to disk and back, and the retraining step."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import Blobs, K, S, batch, student

from semiseg import registry
from semiseg.build import build
from semiseg.components import entropy
from semiseg.data.loader import TrainingStream
from semiseg.data.pseudo_labels import PseudoLabeled, coded, label_images
from semiseg.data.splits import seeded_split
from semiseg.data.transforms import MEAN, STD, Cutout
from semiseg.hosts.stpp import SelfTraining, STPPOptions, pseudo_label, reliability, split_half
from semiseg.methods.wpl import WPLOptions
from semiseg.recipe import reading, recipe
from semiseg.types import IGNORE, Batch, Paste, View

# --- which images are reliable --------------------------------------------------------------


def maps(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)[:, None, :]


def test_equal_predictions_are_fully_reliable() -> None:
    same = torch.randint(0, K, (1, 5, 7)).expand(3, 5, 7)
    assert reliability(same, K) == 1.0
    assert reliability(torch.zeros(3, 5, 7, dtype=torch.long), K) == 1.0, "pure background"


def test_reliability_is_the_mean_of_both_mious_without_absent_classes() -> None:
    last, first, second = [0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 1, 1]
    # second against last: background 1/2, class 1 1, class 2 0 of 1; class 3 is in neither
    assert reliability(maps(first, second, last), K) == pytest.approx((1 + (1 / 2 + 1 + 0) / 3) / 2)
    assert reliability(maps(second, first, last), 21) == reliability(maps(first, second, last), K)
    assert reliability(maps(last, last, second), K) == pytest.approx((1 / 2 + 1 + 0) / 3), "the last is the truth"


def test_half_of_an_odd_number_is_rounded_down_and_ties_keep_their_order() -> None:
    ids, scores = ("a", "b", "c", "d", "e"), (0.5, 0.9, 0.5, 1.0, 0.5)
    assert split_half(ids, scores) == (("d", "b"), ("a", "c", "e"))
    assert split_half(("a", "b"), (0.3, 0.3)) == (("a",), ("b",))


# --- labels from several scales ---------------------------------------------------------------


class PerPixel(nn.Module):
    """Logits from the color of the pixel alone: mirrored images give mirrored predictions."""

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.weight = torch.randn(K, 3, generator=torch.Generator().manual_seed(0)) if weight is None else weight
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> SimpleNamespace:
        self.shapes.append(tuple(x.shape))
        return SimpleNamespace(logits=torch.einsum("kc,bchw->bkhw", self.weight, x))


def test_mirroring_changes_nothing_for_a_symmetric_network() -> None:
    x, network = torch.randn(2, 3, 9, 12), PerPixel()
    plain = network(x).logits
    label, doubt = pseudo_label(network, x, scales=(1.0,), flip=True)
    assert torch.equal(label, plain.argmax(1))
    torch.testing.assert_close(doubt, entropy(plain))


def test_several_scales_of_a_flat_image_change_nothing() -> None:
    x, network = torch.randn(2, 3, 1, 1).expand(2, 3, 8, 12).contiguous(), PerPixel()
    label, doubt = pseudo_label(network, x)
    assert network.shapes == [(4, 3, int(8 * s), int(12 * s)) for s in (0.5, 0.75, 1.0, 1.5, 2.0)]
    torch.testing.assert_close(doubt, entropy(network(x).logits))
    assert torch.equal(label, network(x).logits.argmax(1))


def test_probabilities_of_all_passes_are_averaged() -> None:
    class LeftRight(nn.Module):
        def forward(self, x: Tensor) -> SimpleNamespace:
            logits = torch.full((len(x), 2, *x.shape[-2:]), -50.0)
            logits[:, 0, :, :2], logits[:, 1, :, 2:] = 50.0, 50.0  # sure, whatever the image: mirrored, of the opposite
            return SimpleNamespace(logits=logits)

    x = torch.zeros(1, 3, 4, 4)
    _, doubt = pseudo_label(LeftRight(), x, scales=(1.0,), flip=True)
    torch.testing.assert_close(doubt, torch.full((1, 4, 4), math.log(2)))
    label, doubt = pseudo_label(LeftRight(), x, scales=(1.0,), flip=False)
    assert label[0, 0].tolist() == [0, 0, 1, 1] and doubt.max() < 1e-30


# --- disk ---------------------------------------------------------------------------------------


def test_entropy_survives_disk_to_half_a_step(tmp_path: Path) -> None:
    data, doubt = Blobs(), torch.rand(S, S) * math.log(K)
    label = torch.randint(0, K, (S, S))
    label_images(data, data.train[:1], tmp_path, lambda x: (label.expand(len(x), S, S), doubt.expand(len(x), S, S)))
    given, code = PseudoLabeled(data, tmp_path).given(data.train[0])
    assert torch.equal(given, label.to(torch.uint8)) and code.dtype == torch.uint8
    assert (code * (math.log(K) / 255) - doubt).abs().max() <= 0.5 * math.log(K) / 255 + 1e-6
    assert coded(torch.tensor([0.0, math.log(K)]), K).tolist() == [0, 255]


def test_missing_damaged_and_foreign_labels_are_named(tmp_path: Path) -> None:
    data = Blobs()
    labeled = PseudoLabeled(data, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no pseudo-label at .*train-000\.png"):
        labeled.given("train-000")
    label_images(data, ["train-000"], tmp_path, lambda x: (torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)))
    with pytest.raises(ValueError, match=r"pseudo-label of train-000 .*size differs from the image's, \(32, 32\)"):
        labeled.given("train-000")
    (tmp_path / "entropy" / "train-000.png").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"entropy/train-000\.png is no pseudo-label: .*delete it"):
        labeled.given("train-000")


@pytest.fixture
def on_disk(tmp_path: Path) -> PseudoLabeled:
    """Labels equal to the hidden masks, and for the entropy the red channel: both show where they come from."""
    data, shown = Blobs(), iter(Blobs().train)

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        keys = [next(shown) for _ in images]
        red = torch.stack([data.image(key)[0] for key in keys]).float()
        return torch.stack([data.mask(key) for key in keys]), red * (math.log(K) / 255)

    label_images(data, data.train, tmp_path, predict, batch=5)
    return PseudoLabeled(data, tmp_path)


def stream(data: Blobs | PseudoLabeled, **options) -> TrainingStream:
    split = seeded_split(data.train, "1_4", 0)
    return TrainingStream(data, split, crop=28, batch=4, seed=0, scale=(0.6, 1.3), **options)


def test_label_and_entropy_take_the_way_of_the_image(on_disk: PseudoLabeled) -> None:
    padded = 0
    for step in range(4):
        b = stream(on_disk)[step]
        assert b.u_given is not None and b.u_entropy is not None
        assert torch.equal(b.u_given, b.u_hidden), "as the mask: nearest pixel, IGNORE on padding"
        red = b.u_weak[:, 0] * STD[0] + MEAN[0]
        torch.testing.assert_close(b.u_entropy / math.log(K), red, msg="as the image: bilinear")
        assert (b.u_entropy[~b.u_valid] == 0).all() and (b.u_given[~b.u_valid] == IGNORE).all()
        padded += int((~b.u_valid).sum())
    assert padded > 0


def test_labels_from_disk_change_no_image_and_labeled_images_stay_plain(on_disk: PseudoLabeled) -> None:
    plain, given, cut = stream(Blobs())[3], stream(on_disk)[3], stream(on_disk, cutout=1.0)[3]
    for name in ("x", "y", "u_weak", "u_strong", "u_valid", "u_hidden"):
        assert torch.equal(getattr(plain, name), getattr(given, name)), name
    for name in ("x", "y", "u_weak", "u_entropy"):
        assert torch.equal(getattr(given, name), getattr(cut, name)), f"cutout is for strong views: {name}"
    assert plain.u_given is None and plain.u_entropy is None


def test_labeled_images_never_get_the_strong_view(on_disk: PseudoLabeled) -> None:
    class Black:
        def draw(self) -> None: ...
        def paint(self, images: Tensor, drawn: list[None]) -> Tensor:
            return torch.zeros_like(images)

    plain, black = stream(on_disk)[0], stream(on_disk, strong=Black())[0]
    assert torch.equal(plain.x, black.x) and black.u_strong.std((-2, -1)).max() < 1e-6


def test_cutout_fills_a_rectangle_with_noise_and_ignores_it(on_disk: PseudoLabeled) -> None:
    given, cut = stream(on_disk)[0], stream(on_disk, cutout=1.0)[0]
    changed = (given.u_strong != cut.u_strong).any(2)[0]
    assert given.u_given is not None and cut.u_given is not None
    for where, before, after in zip(changed, given.u_given, cut.u_given, strict=True):
        rows, columns = where.any(1).nonzero().flatten(), where.any(0).nonzero().flatten()
        box = torch.zeros_like(where)
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert 0.015 < box.float().mean() < 0.42 and where[box].float().mean() > 0.95
        assert (after[box] == IGNORE).all() and torch.equal(after[~box], before[~box])


def test_cutout_draws_its_share_area_and_ratio() -> None:
    cutout, image, label = Cutout(0.5), torch.zeros(1, 3, 100, 50, dtype=torch.uint8), torch.zeros(100, 50)
    areas, ratios = [], []
    torch.manual_seed(0)
    for _ in range(200):
        found = cutout(image, label)[1] == IGNORE
        if found.any():
            h, w = int(found.any(1).sum()), int(found.any(0).sum())
            areas.append(h * w / 5000)
            ratios.append(h / w)
    assert 80 < len(areas) < 120 and 0.015 < min(areas) < 0.05 and 0.2 < max(areas) < 0.41
    assert 0.25 < min(ratios) < 0.6 and 2 < max(ratios) < 3.6
    assert (label == 0).all() and (image == 0).all(), "the input stays"
    with pytest.raises(ValueError, match="Cutout needs p in"):
        Cutout(1.5)


# --- the retraining step ----------------------------------------------------------------------------


def given_batch() -> Batch:
    b, g = batch(), torch.Generator().manual_seed(5)
    given = torch.where(b.u_valid, torch.randint(0, K, b.u_hidden.shape, generator=g), IGNORE)
    return b._replace(u_given=given, u_entropy=torch.rand(given.shape, generator=g) * b.u_valid)


def test_the_loss_is_one_mean_over_all_supervised_pixels() -> None:
    b, host = given_batch(), SelfTraining(student(dropout=0.0))
    assert b.u_given is not None
    found = host.losses(b, 0.5)
    logits = host.student(torch.cat((b.x, b.u_strong[0]))).logits
    expected = F.cross_entropy(logits, torch.cat((b.y, b.u_given)), ignore_index=IGNORE)
    torch.testing.assert_close(sum(found.losses.values()), expected)
    assert all(loss > 0 for loss in found.losses.values())
    hits, number = found.statistics["pseudo_label_accuracy"].tolist()
    assert number == b.u_valid.sum() and hits == (b.u_given == b.u_hidden)[b.u_valid].sum()


def test_without_color_the_student_sees_the_weak_view() -> None:
    b, host = given_batch(), SelfTraining(student(dropout=0.0), color=False)
    swapped = b._replace(u_strong=b.u_strong.flip(0, 1) * 0)
    assert host.losses(b, 0.5).losses["unlabeled"] == host.losses(swapped, 0.5).losses["unlabeled"]


class TheMoreUncertainHalf:
    """Two rows per image: its left or right half, whichever holds more entropy, from two labeled images."""

    def __init__(self) -> None:
        self.own: View | None = None

    def __call__(self, own: View, donors: View) -> Paste:
        assert own.entropy is not None
        self.own, (b, h, w) = own, own.target.weight.shape
        source = torch.arange(b)[:, None, None].expand(b, h, w).repeat(2, 1, 1)
        halves = own.entropy.view(b, h, 2, w // 2).sum((1, 3)).argmax(1).repeat(2)
        for row, half in enumerate(halves.tolist()):
            source[row, :, half * w // 2 : (half + 1) * w // 2] = b + row % len(donors.image)
        return Paste(source)


def test_a_mixer_reads_the_entropy_from_disk_and_may_return_more_rows() -> None:
    b, mix = given_batch(), TheMoreUncertainHalf()
    assert b.u_given is not None and b.u_entropy is not None
    host = SelfTraining(student(dropout=0.0), mix=mix)
    found = host.losses(b, 0.5)
    assert mix.own is not None and mix.own.entropy is b.u_entropy and torch.equal(mix.own.image, b.u_strong[0])
    paste = mix(mix.own, View(b.x, mix.own.target))
    images, labels = paste(b.u_strong[0], b.x), paste(b.u_given, b.y)
    logits = host.student(torch.cat((b.x, images))).logits
    expected = F.cross_entropy(logits, torch.cat((b.y, labels)), ignore_index=IGNORE)
    torch.testing.assert_close(sum(found.losses.values()), expected)
    assert len(images) == 2 * len(b.u_weak)
    hits, number = found.statistics["pasted"].tolist()
    assert hits / number == 0.5


def test_pixels_weighted_by_rank_statistics_read_the_teacher() -> None:
    r = recipe("stpp", scale="smoke")
    host = build(r.having(WPLOptions(sure=0.0, reliable="confidence")), K)
    plain = build(r, K)
    assert host.teacher_reads and not plain.teacher_reads
    for _ in range(3):
        found = host.losses(given_batch(), 0.5)
    assert found.losses["unlabeled"] > 0 and 1 < found.statistics["weight"][0] / found.statistics["weight"][1] < 2


def test_without_labels_from_disk_the_step_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="retraining needs labels from disk"):
        SelfTraining(student()).losses(batch(), 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": (2, 5)}, r"compares three epochs of its first training; got epochs=\(2, 5\)"),
        ({"epochs": (5, 5, 5)}, r"stpp\.epochs tuple should have at most 2 items"),
        ({"teacher": "first"}, r"stpp\.teacher should be 'last' or 'best_val', got 'first'"),
        ({"labeled_by": "both"}, r"stpp\.labeled_by should be 'student' or 'teacher', got 'both'"),
        ({"scales": ()}, r"stpp\.scales should have more values, got \(\)"),
        ({"scales": (1.0, 0.0)}, r"stpp\.scales must be positive factors, got \(1\.0, 0\.0\)"),
        ({"color": False}, r"stpp\.cutout must be 0 where color is off, got 0\.5"),
        ({"cutout": 1.5}, r"stpp\.cutout should be less than or equal to 1, got 1\.5"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STPPOptions(**options)


def test_the_official_reading_labels_with_the_best_epoch_and_averages_nothing() -> None:
    made = reading(recipe("stpp", "voc", "1_8", "paper"), "official")
    assert made[STPPOptions].teacher == "best_val" and made.consistency.decay == 0
    assert (made.optimization.resize_base, made.network.weights) == (400, "imagenet_v1")
    city = reading(recipe("stpp", "cityscapes", "1_8", "paper"), "official")
    assert (city.evaluation.protocol, city.optimization.resize_base) == ("whole", None)
    cuts = [registry.method("stpp").loading(r)["cutout"] for r in (recipe("stpp"), made)]
    assert [cut.whole for cut in cuts] == [round, int] and [cut.p for cut in cuts] == [0.5, 0.5]


def test_sides_of_a_cut_are_rounded_or_rounded_down() -> None:
    for seed in range(5):
        for whole in (round, int):
            torch.manual_seed(seed)
            cut = Cutout(1.0, (0.1, 0.1), (1.0, 1.0), whole).draw(1, 50, 50)  # sides of 15.81
            assert cut is not None and cut.noise.shape[-2:] == (whole(250**0.5),) * 2
