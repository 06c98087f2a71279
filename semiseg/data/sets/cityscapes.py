"""Cityscapes in its official layout (Cordts et al., CVPR 2016)."""

from __future__ import annotations

from pathlib import Path

from semiseg.data.files import Bytes, ImageFiles, found, listed, table_of

# Name, label id in *_gtFine_labelIds.png and color of the 19 classes that are evaluated; all other ids are ignored.
LABELS = (
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)), ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)), ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)  # fmt: skip
CLASSES = tuple(name for name, _, _ in LABELS)
_IDS = 34  # label ids are 0 to 33; license plates, -1, are 255 in the files
_IMAGE, _LABELS, _TRAIN_LABELS = "_leftImg8bit", "_gtFine_labelIds", "_gtFine_labelTrainIds"


class Cityscapes(ImageFiles):
    """Images in leftImg8bit/{train,val}/CITY/*_leftImg8bit.png, masks in gtFine/.../*_gtFine_labelIds.png.

    Ids are frames, as in aachen_000000_000019; lists name them so, or by the path of their image in any folder.
    Masks of the 19 training ids, *_gtFine_labelTrainIds.png, are read where there are no others.

    Args:
        root: folder of leftImg8bit and gtFine.
        train_list: file below root with the training images; None: all of leftImg8bit/train.
        extra: add leftImg8bit/train_extra, 19,998 images for which there are coarse masks only, as unlabeled ones.

    Raises FileNotFoundError or ValueError naming the folder, list or image at fault.
    """

    def __init__(self, root: str | Path, *, train_list: str | None = None, extra: bool = False) -> None:
        root = Path(root)
        if not (root / "leftImg8bit").is_dir():
            raise FileNotFoundError(f"root {root} holds no folder leftImg8bit; expected the layout of Cityscapes")
        train, val = _frames(root / "leftImg8bit" / "train"), _frames(root / "leftImg8bit" / "val")
        ids = tuple(train) if train_list is None else listed(root / train_list, train, root / "leftImg8bit" / "train")
        more = _frames(root / "leftImg8bit" / "train_extra") if extra else {}
        masks, table = _masks(root / "gtFine")
        super().__init__(
            "cityscapes", root, CLASSES, [color for _, _, color in LABELS], (*ids, *more), val,
            {**train, **val, **more}, masks, table,
        )  # fmt: skip


def _frames(folder: Path) -> dict[str, Path]:
    """Image by frame; the city, which is in the frame's name, is left out."""
    return {key.rsplit("/", 1)[-1]: path for key, path in found(folder, _IMAGE, (".png",)).items()}


def _masks(folder: Path) -> tuple[dict[str, Path], Bytes]:
    """Mask by frame, and what its values mean."""
    parts = [folder / part for part in ("train", "val")]
    for ending, table in (
        (_LABELS, table_of([label for _, label, _ in LABELS], [*range(_IDS), 255])),
        (_TRAIN_LABELS, table_of(range(len(LABELS)))),
    ):
        masks = {k.rsplit("/", 1)[-1]: p for part in parts for k, p in found(part, ending, (".png",)).items()}
        if masks:
            return masks, table
    raise FileNotFoundError(
        f"no *{_LABELS}.png in {folder}; download gtFine_trainvaltest.zip from cityscapes-dataset.com"
    )
