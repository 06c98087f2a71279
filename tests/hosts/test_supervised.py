"""The baseline: its official reading passes over labeled images."""

import pytest

from semiseg.recipe import reading, recipe


@pytest.mark.parametrize(
    ("data", "steps"),
    [
        ("voc", {"92": 5, "183": 11, "366": 23, "732": 45, "1464": 91, "1_16": 41, "1_8": 82, "1_4": 165, "1_2": 330}),
        ("cityscapes", {"1_30": 6, "1_16": 11, "1_8": 23, "1_4": 46, "1_2": 93}),
        ("coco", {"1_512": 14, "1_256": 29, "1_128": 58, "1_64": 115, "1_32": 231}),
    ],
)
def test_an_epoch_is_a_pass_over_labeled_images(data: str, steps: dict[str, int]) -> None:
    """Labeled images over 16, a quarter of them rounded up on each of 4 GPUs, the rest of a batch dropped."""
    made = {split: reading(recipe("supervised", data, split, "paper"), "official") for split in steps}
    assert {split: each.optimization.epoch_steps for split, each in made.items()} == steps
    assert all(each.optimization.batch == 16 for each in made.values())


def test_lists_of_other_names_and_scales_keep_their_steps() -> None:
    made = reading(recipe("supervised", "voc", "my_list", "paper"), "official")
    assert made.optimization.epoch_steps is None and made.optimization.crop == 321
    tiny = recipe("supervised")
    assert reading(tiny, "official") == tiny


def test_whole_images_or_windows_cut_at_the_border() -> None:
    voc, city, coco = (
        reading(recipe("supervised", data, "1_8", "paper"), "official") for data in ("voc", "cityscapes", "coco")
    )
    assert voc.evaluation.protocol == coco.evaluation.protocol == "whole"
    e = city.evaluation
    assert (e.protocol, e.size, e.step, e.border) == ("sliding", 801, 534, "cut")
    assert (voc.network.stem, coco.network.stem) == ("deep", "resnet")
    assert city.optimization.ohem_share == pytest.approx(200_000 / (4 * 801**2), rel=1e-4)
