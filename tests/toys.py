"""A network, a batch and a data set small enough for every test."""

import torch
from click.testing import Result
from torch import Tensor
from typer.testing import CliRunner

import semiseg.cli
from semiseg.models.backbones import make_backbone
from semiseg.models.deeplabv3plus import DeepLabV3Plus
from semiseg.types import IGNORE, Batch

K, B, S, D = 4, 3, 32, 16


def student(second_bn: bool = False, dropout: float = 0.1, embedding: int = 0) -> DeepLabV3Plus:
    net = make_backbone("tiny")
    return DeepLabV3Plus(
        net, K, width=D, low_width=8, rates=(1, 2), embedding=embedding, second_bn=second_bn, dropout=dropout
    )


def batch(seed: int = 0, labeled: int = B) -> Batch:
    """Labels with an ignored band, unlabeled images with a padded one."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    y = torch.randint(0, K, (labeled, S, S), generator=g)
    y[:, :2] = IGNORE
    valid = torch.ones(B, S, S, dtype=torch.bool)
    valid[:, :, -4:] = False
    hidden = torch.randint(0, K, (B, S, S), generator=g)
    return Batch(rand(labeled, 3, S, S), y, rand(B, 3, S, S), rand(1, B, 3, S, S), valid, hidden)


class Blobs:
    """Images whose color tells the class: learnable in a few steps.  Implements SegmentationData."""

    name, classes, mirror, sha256 = "blobs", ("background", "red", "green", "blue"), True, "0" * 64
    palette = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))

    def __init__(self, train: int = 16, val: int = 4, size: int = S) -> None:
        self.train = tuple(f"train-{i:03d}" for i in range(train))
        self.val = tuple(f"val-{i:03d}" for i in range(val))
        self.side = size

    def mask(self, key: str) -> Tensor:
        g = torch.Generator().manual_seed(sum(map(ord, key)))
        mask = torch.zeros(self.side, self.side, dtype=torch.uint8)
        y, x = torch.randint(0, self.side // 2, (2,), generator=g).tolist()
        mask[y : y + self.side // 2, x : x + self.side // 2] = 1 + int(torch.randint(0, 3, (), generator=g))
        return mask

    def image(self, key: str) -> Tensor:
        g = torch.Generator().manual_seed(1 + sum(map(ord, key)))
        color = torch.tensor(self.palette, dtype=torch.float)[self.mask(key).long()].movedim(-1, 0)
        return (color * 0.6 + 60 * torch.rand(3, self.side, self.side, generator=g)).to(torch.uint8)


def command(*arguments: object) -> Result:
    """`semiseg` with these arguments; an error is in `exception`, as the function behind the command raised it."""
    return CliRunner().invoke(semiseg.cli.app, [str(a) for a in arguments])
