"""Prototypes of parts: K-means on directions, few pixels, few directions, the quota."""

import pytest
import torch
import torch.nn.functional as F

from semiseg.banks import as_pixels
from semiseg.methods.parts import Parts, group_means
from semiseg.types import IGNORE

K, L = 4, 5


def plane(*rows: int) -> torch.Tensor:
    """(1, 8, 8) labels, the given classes in horizontal bands."""
    return torch.tensor(rows).repeat_interleave(8 // len(rows))[None, :, None].expand(1, 8, 8).contiguous()


def collected(features: torch.Tensor, label: torch.Tensor, parts: int = 3, **options) -> Parts:
    made = Parts(K, parts, features.shape[1], **({"collect_steps": 1, "pool": 1000} | options))
    made.collect(features, label)
    return made


def test_k_means_finds_directions_whatever_the_length() -> None:
    g = torch.Generator().manual_seed(0)
    axis = torch.randint(0, 3, (1, 8, 8), generator=g)
    length = 10 ** torch.empty(1, 1, 8, 8).uniform_(-1, 1, generator=g)
    deep = length * (F.one_hot(axis, L).movedim(-1, 1) + 0.05 * torch.rand(1, L, 8, 8, generator=g))
    made = collected(deep, torch.full((1, 8, 8), 2))
    assert made.active.tolist() == [[False] * 3, [False] * 3, [True] * 3, [False] * 3]
    found = made.prototypes[2].argmax(1).tolist()
    assert sorted(found) == [0, 1, 2]
    for k, a in enumerate(found):
        torch.testing.assert_close(made.prototypes[2, k], as_pixels(deep)[(axis == a).flatten()].mean(0))


def test_one_part_is_the_class_mean() -> None:
    deep, label = torch.randn(1, L, 8, 8), plane(0, 3)
    made = collected(deep, label, parts=1)
    torch.testing.assert_close(made.prototypes[3, 0], deep[0, :, 4:].flatten(1).mean(1))


@pytest.mark.filterwarnings("error")
def test_fewer_pixels_or_directions_than_parts() -> None:
    label = torch.full((1, 8, 8), IGNORE)
    label[0, 0, :2], label[0, 1] = 1, 2
    deep = torch.randn(1, L, 8, 8)
    deep[0, :, 1] = deep[0, :, 1, :1]  # class 2: eight equal pixels
    made = collected(deep, label)
    assert made.active.sum(1).tolist() == [0, 2, 1, 0]
    points = made.prototypes[1, :2]
    assert {tuple(v) for v in points.tolist()} == {tuple(v) for v in deep[0, :, 0, :2].T.tolist()}


def test_collecting_takes_the_quota_and_ends_after_its_steps() -> None:
    made = Parts(K, 3, L, collect_steps=2, pool=10)
    deep, label = torch.randn(1, L, 8, 8), plane(0, 3)
    made.collect(deep, label)
    assert [len(v) for v in made._pool] == [5, 0, 0, 5] and not made.ready and not made.active.any()
    made.collect(deep, label)
    assert made.ready and made._pool == [] and made.active.sum(1).tolist() == [3, 0, 0, 3]


def test_group_means_by_hand() -> None:
    x = torch.tensor([[1.0, 2], [3, 4]]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    mean, count = group_means(x, torch.tensor([[[2, -1], [2, 0]]]), 4)
    assert mean.tolist() == [[4, 4], [0, 0], [2, 2], [0, 0]] and count.tolist() == [1, 0, 2, 0]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="Parts needs positive numbers, got classes=4, parts=0"):
        Parts(K, 0, L)
