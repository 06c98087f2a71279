from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from semiseg.data.transforms import (
    MEAN,
    SMALLEST,
    STD,
    Normalize,
    PadTo,
    RandomLongSide,
    SeparableBlur,
    StrongView,
    WeakView,
)
from semiseg.types import IGNORE


def coded(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image every pixel of which has a value of its own, 1..height*width, and a mask with the same values."""
    values = torch.arange(1, height * width + 1, dtype=torch.uint8).reshape(height, width)
    return values.expand(3, -1, -1).clone(), values


@pytest.mark.parametrize("size", [(12, 20), (20, 12), (5, 20), (9, 9)])
def test_weak_view_moves_image_label_and_valid_alike(size: tuple[int, int]) -> None:
    image, mask = coded(*size)
    view = WeakView(10, (1.0, 1.0), mirror=True)
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        crop, label, valid, *_ = view(image, mask)
        assert crop.shape == (3, 10, 10) and label.shape == valid.shape == (10, 10) and valid.dtype == torch.bool
        assert torch.equal(valid, label != IGNORE)
        assert torch.equal(crop[0][valid], label[valid])
        assert valid.sum() == min(10, size[0]) * min(10, size[1])
        seen.add(tuple(label.flatten().tolist()))
    assert len(seen) > 1  # crops or mirrors differ


def test_resized_image_and_label_stay_aligned() -> None:
    ramp = (torch.arange(40) * 5).to(torch.uint8).expand(40, 40)
    torch.manual_seed(0)
    for transposed in (ramp, ramp.T):
        for _ in range(20):
            crop, label, valid, *_ = WeakView(24, (0.5, 2.0), mirror=True)(transposed.expand(3, -1, -1), transposed)
            error = crop[0][valid].float() - label[valid].float()
            assert error.abs().max() <= 5 * 1.01  # one pixel of the original
            assert error.mean().abs() <= 1  # no drift to one side


def test_long_side_covers_its_range_and_keeps_the_aspect() -> None:
    torch.manual_seed(0)
    sizes = [RandomLongSide((0.5, 2.0))(torch.zeros(3, 10, 20, dtype=torch.uint8)).shape[-2:] for _ in range(400)]
    assert {width for _, width in sizes} == set(range(10, 41))
    assert all(height == int(width / 2 + 0.5) for height, width in sizes)


def test_resizing_agrees_with_pil() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
    labels = rng.integers(0, 21, (30, 30), dtype=np.uint8)
    for factor in (0.5, 0.8, 1.0, 1.6):
        resize = RandomLongSide((factor, factor))
        size = (int(30 * factor),) * 2
        image = resize(tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)))
        (mask,) = resize(tv_tensors.Mask(torch.from_numpy(labels)[None]))
        expected = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1
        assert np.array_equal(mask.numpy(), np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)))


def test_padding_lies_right_and_below_black_ignored_and_not_valid() -> None:
    image, mask = coded(4, 6)
    crop, label, valid, *_ = WeakView(10, (1.0, 1.0), mirror=False)(image, mask)
    assert torch.equal(label[:4, :6], mask) and torch.equal(crop[:, :4, :6], image)
    outside = torch.ones(10, 10, dtype=torch.bool)
    outside[:4, :6] = False
    assert (label[outside] == IGNORE).all() and (crop[:, outside] == 0).all()
    assert torch.equal(valid, ~outside)
    assert PadTo(3)(image) is image


def test_unknown_labels_are_valid_pixels() -> None:
    image, mask = coded(12, 12)
    _, label, valid, *_ = WeakView(8, (1.0, 1.0), mirror=False)(image, None)
    assert (label == IGNORE).all() and valid.all()
    mask[:] = IGNORE
    assert WeakView(8, (1.0, 1.0), mirror=False)(image, mask).valid.all()


@pytest.mark.parametrize("mirror", [False, True])
def test_mirror(mirror: bool) -> None:
    image, mask = coded(10, 10)
    view = WeakView(10, (1.0, 1.0), mirror=mirror)
    torch.manual_seed(0)
    labels = [view(image, mask).label for _ in range(40)]
    mirrored = sum(torch.equal(label, mask.flip(-1)) for label in labels)
    assert mirrored + sum(torch.equal(label, mask) for label in labels) == 40
    assert 10 <= mirrored <= 30 if mirror else mirrored == 0


def test_strong_view_changes_color_and_no_geometry() -> None:
    image = torch.full((3, 32, 32), 60, dtype=torch.uint8)
    image[0, 8:20, 4:16] = 220  # a red square, centered at row 13.5 and column 9.5, which must stay there
    view, changed, place = StrongView(), 0, torch.arange(32)
    for seed in range(40):
        torch.manual_seed(seed)
        strong = view(image)
        assert strong.shape == image.shape and strong.dtype == torch.uint8
        changed += not torch.equal(strong, image)
        background = strong[:, 31:, 31:].float()
        contrast = (strong.float() - background).abs().sum(0)
        assert contrast[26:].max() == 0 and contrast[13, 9] == contrast.max() > 10
        assert (contrast.sum(1) @ place.float() / contrast.sum()).item() == pytest.approx(13.5, abs=0.1)
        assert (contrast.sum(0) @ place.float() / contrast.sum()).item() == pytest.approx(9.5, abs=0.1)
    assert 30 <= changed < 40  # 0.2 x 0.8 x 0.5 = 8 % of the views stay as they are


def test_strong_view_leaves_its_input() -> None:
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    before = image.clone()
    for seed in range(10):
        torch.manual_seed(seed)
        StrongView()(image)
    assert torch.equal(image, before)


def test_views_draw_on_torch_alone() -> None:
    image, mask = coded(12, 20)

    def views() -> list[Tensor]:
        crop = WeakView(10, mirror=True)(image, mask)
        return [*crop[:3], *(StrongView()(crop.image) for _ in range(5))]

    def others() -> list[object]:
        return [random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()]

    before = others()
    torch.manual_seed(4)
    one = views()
    assert others() == before
    torch.manual_seed(4)
    assert all(torch.equal(a, b) for a, b in zip(one, views(), strict=True))
    torch.manual_seed(5)
    assert not all(torch.equal(a, b) for a, b in zip(one, views(), strict=True))


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_separable_blur_is_the_two_dimensional_one(sigma: float) -> None:
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    difference = SeparableBlur(13, (sigma, sigma))(image).int() - v2.GaussianBlur(13, (sigma, sigma))(image).int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 0.01


def test_normalize() -> None:
    image = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = (image.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).double().view(
        3, 1, 1
    )
    assert Normalize()(image).dtype == torch.float32
    torch.testing.assert_close(Normalize()(image).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Normalize((0.5,) * 3, (0.25,) * 3)(image), (image / 255 - 0.5) / 0.25)


def test_strong_view_of_the_smallest_image() -> None:
    image = torch.randint(0, 256, (3, SMALLEST, SMALLEST), dtype=torch.uint8)
    for seed in range(10):
        torch.manual_seed(seed)
        assert StrongView()(image).shape == image.shape


def test_bad_scale() -> None:
    for scale in ((0.0, 1.0), (2.0, 0.5)):
        with pytest.raises(ValueError, match="two positive factors in ascending order"):
            WeakView(8, scale, mirror=True)
