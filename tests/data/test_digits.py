"""The embedded benchmark: same bytes for the same seed, honest splits, masks that show the digit."""

from __future__ import annotations

import hashlib

import pytest
import torch
from sklearn.datasets import load_digits

from semiseg.data.dataset import SegmentationData
from semiseg.data.sets.digits import Digits

DEFAULT_SHA256 = "6a688ce1abd65e85a40f99db424d013d84c580d1700d3fc4e4083b3082c780fe"


@pytest.fixture(scope="module")
def default() -> Digits:
    return Digits()


@pytest.fixture(scope="module")
def small() -> Digits:
    return Digits(train_scenes=24, val_scenes=8)


def _luminance(image: torch.Tensor) -> torch.Tensor:
    return (image.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.double).view(3, 1, 1)).sum(0)


def test_default_content_is_pinned(default: Digits) -> None:
    """Results are comparable only on the same pixels; a platform that renders others must be noticed."""
    assert default.sha256 == DEFAULT_SHA256


def test_sha256_covers_images_masks_and_ids(small: Digits) -> None:
    keys = small.train + small.val
    digest = hashlib.sha256()
    for key in keys:
        digest.update(small.image(key).numpy().tobytes())
    for key in keys:
        digest.update(small.mask(key).numpy().tobytes())
    digest.update("\n".join(keys).encode())
    assert small.sha256 == digest.hexdigest()


def test_same_seed_same_scenes_other_seed_others(small: Digits) -> None:
    again, other = Digits(24, 8), Digits(24, 8, seed=1)
    assert again.sha256 == small.sha256
    assert other.sha256 != small.sha256
    assert again.source == small.source
    assert other.source != small.source
    assert not torch.equal(other.image("train-0000"), small.image("train-0000"))


def test_scenes_cannot_be_changed_from_outside(small: Digits) -> None:
    before = small.image("val-0000").clone()
    small.image("val-0000").zero_()
    small.mask("val-0000").fill_(7)
    assert torch.equal(small.image("val-0000"), before)
    assert set(small.mask("val-0000").unique().tolist()) != {7}


def test_contract(small: Digits) -> None:
    data: SegmentationData = small
    assert (data.name, data.mirror) == ("digits", False)
    assert data.classes == ("background", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert len(set(data.palette)) == len(data.classes)
    assert data.train[0] == "train-0000" and data.train[-1] == "train-0023" and len(data.train) == 24
    assert data.val[0] == "val-0000" and data.val[-1] == "val-0007" and len(data.val) == 8
    mask = data.mask("val-0003")
    assert mask is not None and (mask.shape, mask.dtype) == ((32, 32), torch.uint8)
    assert (data.image("val-0003").shape, data.image("val-0003").dtype) == ((3, 32, 32), torch.uint8)


def test_digits_of_training_and_validation_are_disjoint(default: Digits) -> None:
    train, val = ({default.source[key] for key in part} for part in (default.train, default.val))
    assert not train & val
    assert (len(train), len(val)) == (len(default.train), len(default.val))  # nor does one come twice


def test_more_scenes_than_digits_reuse_digits_of_their_own_part() -> None:
    data = Digits(train_scenes=1400, val_scenes=460, size=16)
    train, val = ({data.source[key] for key in part} for part in (data.train, data.val))
    assert not train & val
    assert (len(train), len(val)) == (1347, 450)  # every digit before any comes back
    other = Digits(train_scenes=1, val_scenes=460, size=16, seed=1)
    assert {other.source[key] for key in other.val} != val


def test_mask_holds_the_digit_of_its_source_and_background(default: Digits) -> None:
    numbers = load_digits().target
    for key in default.train + default.val:
        assert set(default.mask(key).unique().tolist()) == {0, int(numbers[default.source[key]]) + 1}


@pytest.mark.parametrize("part", ["train", "val"])
def test_every_class_is_frequent(default: Digits, part: str) -> None:
    keys = default.train if part == "train" else default.val
    counts = torch.stack([default.mask(key).unique()[-1] for key in keys]).bincount(minlength=11)
    assert counts[1:].min() >= 0.06 * len(keys)


def test_mask_lies_on_the_ink(default: Digits) -> None:
    """Ink is darker than the ground: in every scene by a margin, on average by the middle of the contrast range."""
    gaps = []
    for key in default.val:
        light, ink = _luminance(default.image(key)), default.mask(key) > 0
        gaps.append(float(light[~ink].mean() - light[ink].mean()))
        assert 0.04 < float(ink.double().mean()) < 0.5, key
    assert min(gaps) > 20
    assert 80 < sum(gaps) / len(gaps) < 140


def test_looks_differ_between_scenes(default: Digits) -> None:
    """Color of the ink is no clue to the class: means per scene spread far more than means per class."""
    means, numbers = [], []
    for key in default.train:
        mask = default.mask(key)
        means.append(default.image(key)[:, mask > 0].double().mean(1))
        numbers.append(int(mask.max()))
    scenes, labels = torch.stack(means), torch.tensor(numbers)
    classes = torch.stack([scenes[labels == label].mean(0) for label in range(1, 11)])
    assert scenes.std(0).min() > 25
    assert classes.std(0).max() < 0.3 * scenes.std(0).min()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_scenes": 0}, "train_scenes must be an integer of at least 1, got 0"),
        ({"val_scenes": -3}, "val_scenes must be an integer of at least 1, got -3"),
        ({"size": 15}, "size must be an integer of at least 16, got 15"),
        ({"size": 32.5}, "size must be an integer of at least 16, got 32.5"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": True}, "seed must be an integer of at least 0, got True"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**arguments)


def test_unknown_id_names_the_valid_ones(small: Digits) -> None:
    for read in (small.image, small.mask):
        with pytest.raises(KeyError, match="no scene 'train-0024' in the digits; ids go from train-0000 to train-0023"):
            read("train-0024")
