"""A network that knows the answer on the toy data."""

import torch
import toys
from torch import Tensor

from semiseg.types import Output


class Oracle(torch.nn.Module):
    """Predicts the color of the blobs, wrong in the left columns, with features that name the predicted class."""

    def __init__(self, wrong: int = 0) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Output:
        colors = torch.tensor(toys.Blobs.palette).float() * 0.6 / 255 + 30 / 255
        colors = (colors - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        label = ((x[:, None] - colors[None, :, :, None, None]) ** 2).sum(2).argmin(1)
        label[:, :, : self.wrong] = (label[:, :, : self.wrong] + 1) % 4
        hot = torch.nn.functional.one_hot(label, 4).movedim(-1, 1).float()
        return Output(20 * hot, hot, hot[:, :0], hot)
