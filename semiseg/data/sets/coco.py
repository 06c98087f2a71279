"""COCO 2017 as a set of 81 classes: background and the 80 things (Lin et al., ECCV 2014)."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from semiseg.data.files import ImageFiles, decode, found, listed, save_png, table_of
from semiseg.data.sets.voc import voc_palette
from semiseg.types import IGNORE

CLASSES = (
    "background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
# Categories are numbered 1 to 90, ten numbers of which name nothing; larger ones are stuff.
_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CLASS_OF = {c: k for k, c in enumerate((c for c in range(1, 91) if c not in _UNUSED), 1)}
Source = Literal["panoptic", "instances"]


class COCO(ImageFiles):
    """Images in train2017 and val2017, masks in masks/*.png as `write_masks` (or UniMatch) makes them.

    Ids are names of images, as in 000000000009.  Training images need no mask.

    Args:
        root: folder of train2017, val2017 and masks.
        train_list: file below root with the training images; None: all of train2017.

    Raises FileNotFoundError or ValueError naming the folder, list or image at fault.
    """

    def __init__(self, root: str | Path, *, train_list: str | None = None) -> None:
        root = Path(root)
        train, val = found(root / "train2017"), found(root / "val2017")
        if not (root / "masks").is_dir():
            raise FileNotFoundError(
                f"folder {root / 'masks'} does not exist; make it from the annotations with "
                "semiseg.data.sets.coco.write_masks, for train2017 and for val2017"
            )
        ids = tuple(train) if train_list is None else listed(root / train_list, train, root / "train2017")
        super().__init__(
            "coco", root, CLASSES, voc_palette(len(CLASSES)), ids, val, train | val,
            found(root / "masks", suffixes=(".png",)), table_of(range(len(CLASSES))),
        )  # fmt: skip


def write_masks(root: str | Path, part: str, source: Source | None = None, *, progress: bool = False) -> int:
    """Writes masks/*.png of train2017 or val2017 from the annotations; those already there are kept.

    From panoptic annotation things become 1 to 80, stuff becomes background, and what nobody labeled IGNORE.  From
    instances the polygons are drawn, larger objects first, so that smaller ones lie on top, crowds like objects, and
    the rest is background.  The two differ at borders and where objects overlap: compare results of one source only.

    Args:
        root: folder with annotations/panoptic_PART.json and annotations/panoptic_PART/*.png, or with
            annotations/instances_PART.json.
        part: "train2017" or "val2017".
        source: None: panoptic where it is there.
        progress: show a bar on stdout.

    Returns the number of masks written.
    Raises FileNotFoundError naming the annotations that are missing, ValueError for those of something else.
    """
    folder = Path(root) / "annotations"
    source = source or ("panoptic" if (folder / f"panoptic_{part}.json").is_file() else "instances")
    path = folder / f"{source}_{part}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; download the annotations from cocodataset.org")
    try:
        content = json.loads(path.read_text())
        images, annotations = content["images"], content["annotations"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold annotations of COCO: {error!r}") from error
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)
    written = 0
    for image in tqdm(images, disable=not progress, file=sys.stdout, unit="mask"):
        target = Path(root) / "masks" / f"{Path(image['file_name']).stem}.png"
        if not target.is_file():
            of_image = by_image[image["id"]]
            ids = _panoptic(folder / f"panoptic_{part}", of_image) if source == "panoptic" else drawn(image, of_image)
            save_png(target, Image.fromarray(ids))
            written += 1
    return written


def _panoptic(folder: Path, annotations: Iterable[Mapping[str, Any]]) -> NDArray[np.uint8]:
    (annotation,) = annotations
    _, pixels = decode(folder / annotation["file_name"], "panoptic annotation", "RGB")
    r, g, b = np.moveaxis(pixels.astype(np.int64), -1, 0)
    numbers, inverse = np.unique(r + 256 * g + 256**2 * b, return_inverse=True)
    classes = {0: IGNORE} | {s["id"]: CLASS_OF.get(s["category_id"], 0) for s in annotation["segments_info"]}
    if strange := [int(n) for n in numbers if n not in classes]:
        raise ValueError(
            f"{folder / annotation['file_name']} holds segments that the JSON file does not: {strange[:6]}"
        )
    return np.array([classes[n] for n in numbers.tolist()], np.uint8)[inverse].reshape(r.shape)


def drawn(image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> NDArray[np.uint8]:
    """(H, W) class ids of an image from its instances, the larger ones below.  Raises ValueError for other categories.

    Args:
        image: an entry of "images", with height and width.
        annotations: its entries of "annotations": polygons, or uncompressed run lengths for crowds.
    """
    canvas = Image.new("L", (image["width"], image["height"]))
    for a in sorted(annotations, key=lambda a: -a["area"]):
        label = CLASS_OF.get(a["category_id"])
        if label is None:
            raise ValueError(f"annotation {a['id']}: category {a['category_id']} is none of COCO's 80 things")
        if isinstance(a["segmentation"], list):
            for polygon in a["segmentation"]:
                ImageDraw.Draw(canvas).polygon(polygon, fill=label)
        else:
            canvas.paste(label, mask=Image.fromarray(_runs(a["segmentation"], a["id"])))
    return np.array(canvas)


def _runs(segmentation: Mapping[str, Any], number: int) -> NDArray[np.uint8]:
    """(H, W), 255 inside: run lengths go down the columns, outside and inside by turns."""
    counts, (height, width) = segmentation["counts"], segmentation["size"]
    if isinstance(counts, str) or sum(counts) != height * width:
        raise ValueError(f"annotation {number}: run lengths must be a list that sums to {height} x {width} pixels")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.where(inside, 255, 0).astype(np.uint8).reshape(width, height).T.copy()
