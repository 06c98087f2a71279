"""Scores against the counts recorded from UniMatch's evaluation, and the three protocols."""

from pathlib import Path

import pytest
import torch
import torch.nn as nn
from toys import Blobs

from semiseg.evaluate import Scores, center_crop, evaluate, scorer, sliding, whole
from semiseg.options import Evaluation
from semiseg.types import IGNORE, Output

GOLDEN = torch.load(Path(__file__).parents[1] / "golden" / "unimatch_miou.pt", weights_only=True)
CASES = [c for c in GOLDEN["cases"] if "label" not in c["name"]]  # labels outside the classes are refused before


class Fixed(nn.Module):
    """Predicts the class written in the first channel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.anchor = classes, nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> Output:
        logits = nn.functional.one_hot(x[:, 0].long(), self.classes).movedim(-1, 1).float()
        return Output(logits, x, x, x)


def batches(case: dict):
    pred, target = (case[k].reshape(case[k].shape if case[k].dim() == 3 else (1, 1, -1)) for k in ("pred", "target"))
    yield pred[:, None].expand(-1, 3, -1, -1).float(), target


@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_counts_match_recorded_ones(case: dict) -> None:
    scores = evaluate(Fixed(case["K"]), batches(case), case["K"])
    confusion = torch.tensor(scores.confusion)
    assert torch.equal(confusion.diagonal(), case["inter"])
    assert torch.equal(confusion.sum(1), case["target_area"])
    assert torch.equal(confusion.sum(0) + confusion.sum(1) - confusion.diagonal(), case["union"])


def test_pooled_over_the_set_and_absent_classes_left_out() -> None:
    over = [c for c in GOLDEN["cases"] if c["name"] in GOLDEN["aggregate"]["over"]]
    scores = evaluate(Fixed(21), (b for c in over for b in batches(c)), 21)
    want = GOLDEN["aggregate"]["iou_class"]
    for ours, theirs in zip(scores.iou, want.tolist(), strict=True):
        assert (0.0 if ours is None else 100 * ours) == pytest.approx(theirs, abs=1e-6)
    assert 100 * scores.miou == pytest.approx(GOLDEN["aggregate"]["miou"], abs=1e-6)
    assert Scores.of(torch.tensor([[3, 0], [0, 0]])).iou == (1.0, None)
    assert Scores.of(torch.zeros(2, 2, dtype=torch.long)).miou == 0.0


def test_evaluation_restores_every_mode_and_uses_none_of_training() -> None:
    net = Fixed(3).train()
    net.norm.eval()
    seen = []

    def predict(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        seen.append(network.training)
        return whole(network, images)

    evaluate(net, [(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))], 3, predict)
    assert seen == [False] and net.training and not net.norm.training


class Position(nn.Module):
    """Logits that depend on the pixel alone: windows must then agree with the whole."""

    def forward(self, x: torch.Tensor) -> Output:
        return Output(torch.stack((x[:, 0], 1 - x[:, 0]), 1), x, x, x)


@pytest.mark.parametrize(
    ("height", "width", "size", "step"), [(40, 60, 24, 16), (23, 31, 24, 8), (24, 24, 24, 24), (25, 70, 24, 24)]
)
def test_sliding_windows_cover_every_pixel_and_agree_with_the_whole(
    height: int, width: int, size: int, step: int
) -> None:
    x = torch.rand(2, 3, height, width)
    torch.testing.assert_close(sliding(Position(), x, size, step), whole(Position(), x).softmax(1))


def test_sliding_refuses_gaps() -> None:
    with pytest.raises(ValueError, match="0 < step <= size, got step=30, size=20"):
        sliding(Position(), torch.rand(1, 3, 50, 50), 20, 30)


def test_center_crop_cuts_and_pads_around_the_middle() -> None:
    image, mask = torch.rand(1, 3, 10, 6), torch.arange(60).view(1, 10, 6)
    black = torch.tensor([-1.0, -2.0, -3.0])
    cut, cut_mask = center_crop(image, mask, 8, black)
    assert torch.equal(cut[..., 1:7], image[:, :, 1:9]) and torch.equal(cut_mask[..., 1:7], mask[:, 1:9])
    assert (cut_mask[..., [0, 7]] == IGNORE).all()
    assert all((cut[0, c][:, [0, 7]] == black[c]).all() for c in range(3))
    same, same_mask = center_crop(image[..., :6, :6], mask[..., :6, :6], 6, black)
    assert torch.equal(same, image[..., :6, :6]) and torch.equal(same_mask, mask[..., :6, :6])


def test_images_without_a_labeled_pixel_have_no_score() -> None:
    class Unknown(Blobs):
        def mask(self, key: str) -> torch.Tensor:
            return torch.full_like(super().mask(key), IGNORE)

        def image(self, key: str) -> torch.Tensor:
            return Blobs().image(key)

    network = torch.nn.Sequential(Position())
    network.weight = torch.nn.Parameter(torch.zeros(()))
    data = Unknown()
    with pytest.raises(ValueError, match="blobs: no pixel of the 4 images to score has a label"):
        scorer(Evaluation("whole", 32), data, data.val)(network)


def test_windows_end_at_the_border_as_a_whole_or_cut() -> None:
    seen: list[tuple[int, int]] = []

    class Sizes(Position):
        def forward(self, x: torch.Tensor) -> Output:
            seen.append((x.shape[-2], x.shape[-1]))
            return super().forward(x)

    x = torch.rand(1, 3, 24, 60)
    for border, widths in (("inside", [24, 24, 24, 24]), ("cut", [24, 24, 24, 12])):
        seen.clear()
        torch.testing.assert_close(sliding(Sizes(), x, 24, 16, border), whole(Position(), x).softmax(1))
        rows = {height for height, _ in seen}
        assert [width for height, width in seen if height == 24] == widths
        assert rows == ({24} if border == "inside" else {24, 8}), "a window starts at 16 of 24 rows"


def test_the_protocol_of_a_recipe_reaches_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []
    monkeypatch.setattr("semiseg.evaluate.sliding", lambda network, images, **sizes: asked.append(sizes) or images)
    data = Blobs(val=1)
    scorer(Evaluation("sliding", 16, 8, border="cut"), data, data.val)(torch.nn.Conv2d(3, 3, 1))
    assert asked == [{"size": 16, "step": 8, "border": "cut"}]
