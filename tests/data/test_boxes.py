"""Boxes around components, as planes, and detections on disk."""

from pathlib import Path

import pytest
import torch

from semiseg.data.boxes import Boxes, Detections, component_boxes, planes


def test_components_touch_by_edge_or_corner_and_stuff_has_no_box() -> None:
    mask = torch.zeros(8, 10, dtype=torch.uint8)
    mask[1:3, 2:5] = 1
    mask[3, 5] = 1  # touches by its corner
    mask[6:8, 8:10] = 1
    mask[5, 0:4] = 2
    mask[0, 0] = 255
    boxes = component_boxes(mask, things=(1,))
    assert boxes.edges.tolist() == [[2, 1, 6, 4], [8, 6, 10, 8]] and boxes.labels.tolist() == [1, 1]
    assert component_boxes(mask, (1, 2)).labels.tolist() == [1, 1, 2]
    assert component_boxes(mask, (1, 2), min_pixels=5).edges.tolist() == [[2, 1, 6, 4]]
    assert component_boxes(mask, (3, 255)).edges.shape == (0, 4)


def test_planes_are_the_box_of_a_mask_again_and_overlap_freely() -> None:
    mask = torch.zeros(6, 7, dtype=torch.uint8)
    mask[2:4, 1:6] = 1
    mask[0:3, 3] = 2
    inside = planes(component_boxes(mask, (1, 2)), 3, (6, 7))
    assert torch.equal(inside[1].nonzero().amin(0), torch.tensor([2, 1])) and int(inside[1].sum()) == 10
    assert bool(inside[1, 2, 3] and inside[2, 2, 3]) and not inside[0].any()
    outside = Boxes(
        torch.tensor([[-3.0, -2, 2, 2], [5, 5, 99, 99], [3, 3, 3, 5]]), torch.tensor([0, 0, 1]), torch.ones(3)
    )
    assert [int(p.sum()) for p in planes(outside, 2, (6, 7))] == [4 + 2, 0]


def some_detections() -> Detections:
    one = Boxes(torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]), torch.tensor([1, 2]), torch.tensor([0.9, 0.4]))
    none = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    return Detections({"a": one, "folder/b": none})


def test_detections_survive_the_disk(tmp_path: Path) -> None:
    detections = some_detections()
    detections.save(tmp_path / "found.safetensors")
    read = Detections.read(tmp_path / "found.safetensors")
    assert read.sha256 == detections.sha256 and list(read.found) == ["a", "folder/b"]
    assert all(torch.equal(a, b) for a, b in zip(read["a"], detections["a"], strict=True))
    assert read.above(0.5)["a"].labels.tolist() == [1] and read.above(0.5).sha256 != read.sha256
    assert read.missing(["a", "c"]) == ["c"]
    assert [p.name for p in tmp_path.iterdir()] == ["found.safetensors"]


def test_a_missing_or_foreign_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train a detector first"):
        Detections.read(tmp_path / "no")
    (tmp_path / "junk").write_bytes(b"junk" * 10)
    with pytest.raises(ValueError, match="does not hold detections"):
        Detections.read(tmp_path / "junk")
