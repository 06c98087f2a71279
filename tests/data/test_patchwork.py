"""The embedded set of textures: same bytes for the same seed, parts apart, a class that a small window shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semiseg.data.cached import Cached
from semiseg.data.dataset import SegmentationData, ids_of
from semiseg.data.open import open_data
from semiseg.data.sets.digits import Digits
from semiseg.data.sets.patchwork import COSINE, SINE, Patchwork

DEFAULT_SHA256 = "99a1470c85a4fb0f6eeb38ec22ba617cd20804af1753f0a80fee0a980b4ff895"


@pytest.fixture(scope="module")
def default() -> Patchwork:
    return Patchwork()


@pytest.fixture(scope="module")
def small() -> Patchwork:
    return Patchwork(24, 3, 8, 4)


def test_default_content_is_pinned(default: Patchwork) -> None:
    """Results are comparable only on the same pixels; a platform that renders others must be noticed."""
    assert default.sha256 == DEFAULT_SHA256


def test_same_seed_same_scenes_other_seed_others(small: Patchwork) -> None:
    again, other = Patchwork(24, 3, 8, 4), Patchwork(24, 3, 8, 4, seed=1)
    assert again.sha256 == small.sha256 != other.sha256
    assert not torch.equal(other.image("train-0000"), small.image("train-0000"))


def test_contract(small: Patchwork) -> None:
    data: SegmentationData = small
    assert (data.name, data.mirror, data.classes[0]) == ("patchwork", False, "background")
    assert len(set(data.palette)) == len(data.classes) == len(COSINE) + 1
    assert data.train[0] == "train-0000" and data.train[-1] == "train-0023" and len(data.val) == 8
    mask = data.mask("val-0003")
    assert mask is not None and (mask.shape, mask.dtype) == ((64, 64), torch.uint8)
    assert (data.image("val-0003").shape, data.image("val-0003").dtype) == ((3, 64, 64), torch.uint8)
    assert open_data("patchwork").sha256 == Patchwork().sha256


def test_parts_are_apart(small: Patchwork) -> None:
    """No scene of one part is one of another, not even its masks."""
    parts = {part: ids_of(small, part) for part in ("train", "tune", "val", "test")}
    assert [len(ids) for ids in parts.values()] == [24, 3, 8, 4]
    keys = sum(parts.values(), ())
    assert len({small.image(key).numpy().tobytes() for key in keys}) == len(keys)
    assert len({small.mask(key).numpy().tobytes() for key in keys}) == len(keys)
    assert ids_of(Cached(small), "tune") == small.tune
    with pytest.raises(ValueError, match="digits has no part 'tune'"):
        ids_of(Digits(1, 1), "tune")


def test_every_scene_shows_every_class_alike(default: Patchwork) -> None:
    count = torch.stack([torch.bincount(default.mask(k).flatten().long(), minlength=7) for k in default.train])
    share = count.double() / count.sum(1, keepdim=True)
    assert (count > 0).all()
    assert share.mean(0).min() > 0.125 and share.mean(0).max() < 0.16  # of 1/7


def _direction(window: np.ndarray) -> float:
    """Main direction of the threads in a window (3, H, W), radians counterclockwise: from the structure tensor."""
    dy, dx = np.gradient(window, axis=(1, 2))
    return 0.5 * np.arctan2(2 * (-dy * dx).sum(), (dx * dx - dy * dy).sum()) + np.pi / 2  # across the gradient


def test_a_quarter_of_the_side_shows_the_class(default: Patchwork) -> None:
    """In windows of 16 pixels and of one class, the main direction of the gradient is mostly that of the class.

    A wrong sign of an axis or names in another order would put it elsewhere.
    """
    names, right = np.arctan2(SINE, COSINE), []
    for key in default.train:
        image, mask = default.image(key).double().numpy(), default.mask(key).numpy()
        for y in range(0, 49, 8):
            for x in range(0, 49, 8):
                inside = mask[y : y + 16, x : x + 16]
                if inside[0, 0] > 0 and (inside == inside[0, 0]).all():
                    away = np.sin(_direction(image[:, y : y + 16, x : x + 16]) - names) ** 2
                    right.append(away.argmin() == inside[0, 0] - 1)
    assert len(right) > 20 and np.mean(right) > 0.6  # chance: 1/6


def test_color_is_no_clue(default: Patchwork) -> None:
    """Means of patches spread far more than means of classes."""
    means, labels = [], []
    for key in default.train:
        image, mask = default.image(key).double(), default.mask(key)
        for label in range(7):
            means.append(image[:, mask == label].mean(1))
            labels.append(label)
    patches, at = torch.stack(means), torch.tensor(labels)
    classes = torch.stack([patches[at == label].mean(0) for label in range(7)])
    assert patches.std(0).min() > 20 and classes.std(0).max() < 0.2 * patches.std(0).min()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_scenes": 0}, "patchwork: train_scenes must be an integer of at least 1, got 0"),
        ({"tune_scenes": -3}, "patchwork: tune_scenes must be an integer of at least 1, got -3"),
        ({"size": 31}, "patchwork: size must be an integer of at least 32, got 31"),
        ({"seed": True}, "patchwork: seed must be an integer of at least 0, got True"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Patchwork(**arguments)


def test_unknown_id_names_the_valid_ones(small: Patchwork) -> None:
    for read in (small.image, small.mask):
        with pytest.raises(
            KeyError, match="no scene 'val-0008' in the patchwork; ids go from train-0000 to train-0023"
        ):
            read("val-0008")


def test_bad_root_is_named() -> None:
    with pytest.raises(ValueError, match="data='patchwork' is embedded and has no root"):
        open_data("patchwork", "/somewhere")
