"""WPL's detector: Faster R-CNN trained on the labeled images alone, boxes made from their masks (Sec. 3.3).

It is the second opinion about a pseudo-label: it gives one class to a region, the segmentation network one to each
pixel.  No image outside the labeled list, no instance annotation, and no detection weights are used.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torchvision.models as tv
from lightning_fabric import Fabric
from torch import Tensor
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, box_iou
from torchvision.transforms import v2

from ..data.boxes import Boxes, Detections, component_boxes
from ..data.dataset import SegmentationData
from ..data.splits import Split
from ..models.backbones import load_backbone, tiny
from ..models.names import BACKBONES
from ..options import Options, one_of, option, options
from ..runs import write_text


@options
class DetectorOptions(Options):
    """WPL's Faster R-CNN and its training on the labeled images."""

    part = "detector"
    backbone: str = option("encoder", default="resnet50")
    weights: str | None = option("of the encoder, never of a detector", default="imagenet")
    size: int = option("short side of the images", default=513, unit="pixels", gt=0)
    batch: int = option("images per step", default=8, gt=0)
    epochs: int = option("at most", default=200, gt=0)
    patience: int = option("epochs without a better F1 on held-out labeled images", default=20, gt=0)
    held_out: float = option("share of the labeled images that says when to stop", default=0.2, gt=0, lt=1)
    lr: float = option("learning rate", default=1e-4, gt=0)
    weight_decay: float = option("of all parameters", default=5e-4, ge=0)
    min_pixels: int = option("of a component that gets a box", default=90, unit="pixels")
    most: int = option("boxes of an image", default=50, gt=0)
    things: tuple[str, ...] | None = option(
        "classes with boxes; none: all but what is usually stuff", default=None, later=True
    )

    def __post_init__(self) -> None:
        one_of("backbone", self.backbone, BACKBONES)


class _TinyBody(nn.Module):
    """The encoder of the embedded set, one map of stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = tiny()
        self.out_channels = self.encoder.deep_channels  # asked for by FasterRCNN

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)[1]


def _pyramid(name: str, weights: str | None) -> BackboneWithFPN:
    """A feature pyramid on torchvision's encoder, with classification weights or none.

    Pretrained layers of stride 2 and 4 stay as they are, as in torchvision's detectors.
    """
    net = tv.get_model(name)
    load_backbone(net, name, weights)
    mobile = name == "mobilenet_v2"
    for part in (net.features[:4],) if mobile else (net.conv1, net.bn1, net.layer1):
        part.requires_grad_(weights is None)
    if mobile:
        return BackboneWithFPN(net.features, {"6": "0", "13": "1", "17": "2"}, [32, 96, 320], 128)
    wide = 4 if name in ("resnet50", "resnet101") else 1
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    return BackboneWithFPN(net, layers, [64 * wide * 2**i for i in range(4)], 256)


def make_detector(o: DetectorOptions, things: int) -> FasterRCNN:
    """A network for so many classes; images are resized so that the short side has `o.size` pixels.

    torchvision trains on 512 regions of an image and predicts from 1000, for up to 100 boxes; here as many for each of
    `o.most`: on a CPU they take most of the time.
    """
    common = {"min_size": o.size, "max_size": 2 * o.size, "box_detections_per_img": o.most}
    if o.backbone != "tiny":
        body = _pyramid(o.backbone, o.weights)
        levels = len(body.fpn.inner_blocks) + 1  # and a pooled one
        anchors = AnchorGenerator(tuple((32 * 2**i,) for i in range(levels)), ((0.5, 1.0, 2.0),) * levels)
        return FasterRCNN(
            body, things + 1, rpn_anchor_generator=anchors, box_batch_size_per_image=5 * o.most,
            rpn_pre_nms_top_n_train=20 * o.most, rpn_post_nms_top_n_train=20 * o.most,
            rpn_pre_nms_top_n_test=10 * o.most, rpn_post_nms_top_n_test=10 * o.most, **common,
        )  # fmt: skip
    body, hidden = _TinyBody(), 128
    sides = (o.size // 4, o.size // 2, 3 * o.size // 4, o.size)
    return FasterRCNN(
        body, rpn_anchor_generator=AnchorGenerator((sides,), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2), box_head=TwoMLPHead(body.out_channels * 25, hidden),
        box_predictor=FastRCNNPredictor(hidden, things + 1), rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=64,
        rpn_pre_nms_top_n_test=100, rpn_post_nms_top_n_test=32, rpn_batch_size_per_image=64,
        box_batch_size_per_image=64, **common,
    )  # fmt: skip


def _sample(data: SegmentationData, key: str, o: DetectorOptions, things: Sequence[int]) -> tuple[Tensor, Boxes]:
    mask = data.mask(key)
    if mask is None:
        raise ValueError(f"labeled image {key} of {data.name} has no mask, so it has no boxes to learn from")
    return data.image(key), component_boxes(mask, things, o.min_pixels)


def train_detector(
    data: SegmentationData, labeled: Sequence[str], things: Sequence[int], o: DetectorOptions, seed: int = 0
) -> tuple[FasterRCNN, list[dict[str, float]]]:
    """Train on the labeled images, but for a held-out share that says when to stop.

    Args:
        labeled: ids.  At least two of them must have a box.
        things: classes with boxes.
        o: numbers.

    Returns:
        The network of the best epoch by F1 on the held-out images, and a row per epoch: loss, F1.

    Raises:
        ValueError: too few labeled images with boxes, or one without a mask.
    """
    samples = [_sample(data, key, o, things) for key in labeled]
    samples = [s for s in samples if len(s[1].labels)]
    if len(samples) < 2:
        raise ValueError(
            f"a detector needs two labeled images with boxes, {data.name} gives {len(samples)}; "
            "WPL needs none with reliable='confidence' or 'none'"
        )
    torch.manual_seed(seed)
    order = torch.randperm(len(samples)).tolist()
    cut = max(1, round(o.held_out * len(samples)))
    held, learned = [samples[i] for i in order[:cut]], [samples[i] for i in order[cut:]]
    fabric = Fabric(devices=1)
    net = make_detector(o, len(things))
    net, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), o.lr, weight_decay=o.weight_decay))
    augment = v2.Compose([v2.RandomHorizontalFlip(0.5)] * data.mirror + [v2.ColorJitter(0.4, 0.4, 0.4, 0.1)])
    best_state, rows = {}, list[dict[str, float]]()
    for epoch in range(1, o.epochs + 1):
        loss = _one_epoch(fabric, net, optimizer, learned, things, o, augment)
        score = f1([predict(net, image, things) for image, _ in held], [boxes for _, boxes in held])
        rows.append({"epoch": epoch, "loss": loss, "f1": score})
        if best_epoch(rows) is rows[-1]:
            best_state = copy.deepcopy(net.state_dict())
        if epoch - best_epoch(rows)["epoch"] >= o.patience:
            break
    net.load_state_dict(best_state)
    return net.module.eval(), rows


def best_epoch(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The row of highest F1, the first of equal ones; as long as nothing is found, the newest row."""
    best = max(rows, key=lambda row: row["f1"])
    return best if best["f1"] > 0 else rows[-1]


def _one_epoch(
    fabric: Fabric, net: nn.Module, optimizer: torch.optim.Optimizer, samples: list[tuple[Tensor, Boxes]],
    things: Sequence[int], o: DetectorOptions, augment: v2.Transform,
) -> float:  # fmt: skip
    """One pass in random order; the mean loss."""
    net.train()
    if o.weights is not None:  # few images: keep the statistics of the pretrained encoder
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    total, chunks = 0.0, torch.randperm(len(samples)).split(o.batch)
    for chunk in chunks:
        images, targets = zip(*(_augmented(samples[i], things, augment) for i in chunk), strict=True)
        losses = net(fabric.to_device(list(images)), fabric.to_device(list(targets)))
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        total += loss.item()
    return total / len(chunks)


def _augmented(
    sample: tuple[Tensor, Boxes], things: Sequence[int], augment: v2.Transform
) -> tuple[Tensor, dict[str, Tensor]]:
    """Network input in [0, 1] and its target; label 0 is the detector's background."""
    image, boxes = sample
    edges = tv_tensors.BoundingBoxes(boxes.edges, format="XYXY", canvas_size=image.shape[-2:])
    image, edges = augment(tv_tensors.Image(image), edges)
    places = torch.tensor([list(things).index(k) + 1 for k in boxes.labels.tolist()])
    return image.as_subclass(Tensor) / 255, {"boxes": edges.as_subclass(Tensor), "labels": places}


@torch.no_grad()
def predict(net: nn.Module, image: Tensor, things: Sequence[int]) -> Boxes:
    """What an (evaluated) detector finds in an image (3, H, W) uint8, in pixels of that image."""
    net.eval()
    found = net([(image / 255).to(next(net.parameters()).device)])[0]
    labels = torch.tensor(list(things))[found["labels"].cpu() - 1]
    return Boxes(found["boxes"].cpu(), labels, found["scores"].cpu())


def detect(net: nn.Module, data: SegmentationData, ids: Sequence[str], things: Sequence[int]) -> Detections:
    """The boxes of many images, with their scores."""
    return Detections({key: predict(net, data.image(key), things) for key in ids})


# Classes whose box would be most of an image.  Cityscapes' pole is left out as in the paper's list of ten.
STUFF = {"background", "road", "sidewalk", "building", "wall", "fence", "pole", "vegetation", "terrain", "sky"}
STUFF |= {"tree", "pavement", "sign_symbol"}  # CamVid


def thing_classes(data: SegmentationData, names: Sequence[str] | None = None) -> tuple[int, ...]:
    """The classes that get boxes: those of these names, or all but STUFF.

    Raises ValueError for a name that the data does not have.
    """
    if names is None:
        return tuple(k for k, name in enumerate(data.classes) if name.lower().replace(" ", "_") not in STUFF)
    for name in names:
        one_of(f"class of {data.name}", name, tuple(data.classes))
    return tuple(sorted({data.classes.index(name) for name in names}))


def find_objects(data: SegmentationData, split: Split, o: DetectorOptions, path: Path, seed: int = 0) -> Detections:
    """Boxes of all unlabeled images by a detector trained on the labeled ones; made once and kept in a file.

    Beside the file lies what was done, as JSON.  Raises ValueError where that differs from what is asked for.
    """
    things = thing_classes(data, o.things)
    numbers = {**o.as_dict(), "weights": o.weights and Path(o.weights).name}
    numbers.pop("things", None)  # they are named beside
    asked = {"data": data.sha256, "split": split.sha256, "seed": seed, "things": list(things), "detector": numbers}
    note = path.with_suffix(".json")
    if path.is_file() and note.is_file():
        found = json.loads(note.read_text())
        changed = [key for key, value in asked.items() if found.get(key) != json.loads(json.dumps(value))]
        if changed:
            raise ValueError(
                f"{path} holds detections of another {', '.join(changed)}; delete it or choose another file"
            )
        return Detections.read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    net, rows = train_detector(data, split.labeled, things, o, seed)
    detections = detect(net, data, split.unlabeled or split.labeled, things)
    detections.save(path)
    result = {"epochs": len(rows), "best": best_epoch(rows), "duration_s": round(time.perf_counter() - began, 1)}
    write_text(note, json.dumps({**asked, **result, "sha256": detections.sha256}, indent=1))
    return detections


def hits(found: Boxes, truth: Boxes, iou: float) -> Tensor:
    """(n,) bool: which found boxes overlap a true one of their class by at least `iou`."""
    same = found.labels[:, None] == truth.labels
    return ((box_iou(found.edges, truth.edges) >= iou) & same).any(1)


def f1(found: Sequence[Boxes], truth: Sequence[Boxes], score: float = 0.5, iou: float = 0.5) -> float:
    """Harmonic mean of precision and recall of the boxes at a score; 0 where nothing is found."""
    sure = [boxes.above(score) for boxes in found]
    counts = partial(zip, strict=True)
    right = sum(int(hits(a, b, iou).sum()) for a, b in counts(sure, truth))
    recalled = sum(int(hits(b, a, iou).sum()) for a, b in counts(sure, truth))
    shown, there = sum(len(a.labels) for a in sure), sum(len(b.labels) for b in truth)
    if not right or not recalled:
        return 0.0
    precision, recall = right / shown, recalled / there
    return 2 * precision * recall / (precision + recall)
