"""One's own images: what counts as what, the meaning of masks, and one clear error per fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from semiseg.data.checks import check
from semiseg.data.classes import read_classes
from semiseg.data.inspect.report import inspect, to_text
from semiseg.data.open import open_data, open_split
from semiseg.data.sets.folder import Folder
from semiseg.data.splits import split_from_files, write_lists
from semiseg.recipe import recipe
from semiseg.training.run import train


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.folder(tmp_path / "own")


def test_images_with_mask_train_or_validate_and_the_others_are_unlabeled(root: Path) -> None:
    data = Folder(root)
    assert (len(data.train), len(data.val), len(data.masked)) == (13, 2, 8)
    assert set(data.train) & set(data.val) == set() and set(data.val) < {f"day {i % 2}/{i}" for i in range(10)}
    bare = [key for key in data.train if key not in data.masked]
    assert bare == ["bare", *(f"unlabeled/{i}" for i in range(4))]
    assert all(data.mask(key) is None and data.image(key).shape == (3, 40, 40) for key in bare)
    assert Folder(root).val == data.val != Folder(root, val_seed=1).val
    assert len(Folder(root, val_share=0.5).val) == 5
    assert data.size("bare") == (40, 40) and data.files("bare") == (root / "images/bare.png", None)


def test_only_images_with_mask_are_labeled(root: Path) -> None:
    data = Folder(root)
    full, quarter = open_split(data, "full", 0), open_split(data, "1_4", 0)
    assert set(full.labeled) == set(data.masked) and len(full.unlabeled) == 5
    assert len(quarter.labeled) == 2 and len(quarter.unlabeled) == 11 and set(quarter.labeled) <= set(full.labeled)
    check(data, quarter.labeled)


def test_lists_of_ids_with_folders_and_spaces_read_back(root: Path, tmp_path: Path) -> None:
    data = Folder(root)
    split = open_split(data, "1_2", 0)
    write_lists(split, tmp_path / "lists")
    again = split_from_files(tmp_path / "lists/labeled.txt", tmp_path / "lists/unlabeled.txt", data.train)
    assert again.sha256 == split.sha256
    paths = trees.write(tmp_path / "paths.txt", [f"somewhere/images/{key}.jpg" for key in split.labeled])
    assert split_from_files(paths, None, data.train).labeled == split.labeled


def test_validation_by_list_and_by_folder(root: Path) -> None:
    trees.write(root / "val.txt", ["images/day 0/4.jpg", "day 1/5"])
    data = Folder(root)
    assert data.val == ("day 0/4", "day 1/5") and len(data.masked) == 8
    trees.save(root / "val/images/new.png", trees.pixels(9))
    trees.save(root / "val/masks/new.png", trees.blocks([2, 1, 0]))
    data = Folder(root)
    assert data.val == ("val/new",) and len(data.masked) == 10
    assert data.mask("val/new")[0, 0] == 2


def test_training_list(root: Path) -> None:
    trees.write(root / "small.txt", ["day 0/0", "day 1/1", "bare"])
    data, every = Folder(root, train_list="small.txt"), Folder(root)
    assert data.val == every.val, "the validation images do not depend on it"
    kept = [key for key in ("day 0/0", "day 1/1") if key not in data.val]
    assert data.train == (*kept, "bare", *(f"unlabeled/{i}" for i in range(4)))


def test_classes_are_inferred_from_the_values(root: Path) -> None:
    data = Folder(root)
    assert data.classes == ("0", "1", "2") and data.palette[0] == (0, 0, 0)
    for path in (root / "masks").rglob("*.png"):
        trees.save(path, trees.blocks([0, 128, 255, 7]))
    data = Folder(root)
    assert data.classes == ("0", "7", "128")
    assert data.mask(data.masked[0]).unique().tolist() == [0, 1, 2, 255]


def test_a_file_names_values_and_ignored_ones(root: Path) -> None:
    (root / "classes.toml").write_text('names = ["a", "b"]\nvalues = [2, 1]\nignore = 0\n')
    data = Folder(root)
    assert data.classes == ("a", "b")
    assert data.mask(data.val[0])[0, [0, 15, 39]].tolist() == [255, 1, 0]
    (root / "classes.toml").rename(root / "classes.json")
    (root / "classes.json").write_text('{"names": ["x", "y", "z"]}')
    assert Folder(root).classes == ("x", "y", "z")
    assert Folder(root).sha256 != data.sha256
    assert open_data("folder", str(root), "p, q, r").classes == ("p", "q", "r")


def test_black_and_white_masks_need_to_say_what_255_is(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        trees.save(path, trees.blocks([0, 255]))
    with pytest.raises(ValueError, match=r'hold no values but 0, 255; .*names = \["background", "object"\] and values'):
        Folder(root)
    data = Folder(root, classes=["background", "object"])
    report = inspect(data, open_split(data, "full", 0))
    assert [f.what for f in report.of("error")] == [
        "the labeled masks hold no values but 0 and 255, and 255 means 'ignore'"
    ]
    (root / "classes.toml").write_text('names = ["background", "object"]\nvalues = [0, 255]\n')
    data = Folder(root)
    assert data.mask(data.val[0]).unique().tolist() == [0, 1]
    assert inspect(data, open_split(data, "full", 0)).ok
    Image.fromarray(trees.blocks([0, 255])).convert("1").save(root / "masks/day 0/0.png")
    (root / "classes.toml").write_text('names = ["background", "object"]\n')
    assert Folder(root).mask("day 0/0").unique().tolist() == [0, 1], "one bit per pixel"


COLORS = np.array([[0, 0, 0], [200, 10, 10], [10, 10, 200], [255, 255, 255]], np.uint8)


def test_colored_masks(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        trees.save(path, COLORS[trees.blocks([0, 1, 2, 3])])
    with pytest.raises(ValueError, match=r"has mode RGB; list the colors .*\(0, 0, 0\), \(10, 10, 200\), \(200, 10, 1"):
        Folder(root)
    data = Folder(root, classes=["a", "b", "c"])
    report = inspect(data, open_split(data, "full", 0))
    assert "10 masks with colors instead of class ids" in {f.what for f in report.of("error")}
    assert "mode RGB, colors (0, 0, 0), (10, 10, 200)" in to_text(report)
    text = 'names = ["a", "b", "c"]\ncolors = [[200, 10, 10], [0, 0, 0], [10, 10, 200]]\nignore = [[255, 255, 255]]\n'
    (root / "classes.toml").write_text(text)
    data = Folder(root)
    assert data.palette[2] == (10, 10, 200)
    assert data.mask(data.val[0])[0, [0, 15, 25, 39]].tolist() == [1, 0, 2, 255]
    rgba = np.dstack([COLORS[trees.blocks([0, 1, 2, 3])], trees.blocks([9, 250])])
    key = data.masked[0]
    trees.save(root / f"masks/{key}.png", rgba)
    assert data.mask(key)[0, 39] == 255 and inspect(data, open_split(data, "full", 0)).ok
    trees.save(root / f"masks/{key}.png", COLORS[trees.blocks([0, 1])] + np.uint8(1))
    with pytest.raises(ValueError, match=r"colors of no class: \(1, 1, 1\), \(201, 11, 11\); list them"):
        data.mask(key)


def test_endings_and_other_folders(tmp_path: Path) -> None:
    for i in range(3):
        trees.save(tmp_path / f"photo/{i}.tif", trees.pixels(i))
        trees.save(tmp_path / f"truth/{i}_mask.bmp", trees.blocks([0, 1]))
    data = Folder(tmp_path, images="photo", masks="truth", mask_ending="_mask")
    assert len(data.masked) == 2 and data.mask(data.val[0]).unique().tolist() == [0, 1]


def test_an_ending_that_all_masks_have_is_found(tmp_path: Path) -> None:
    for i in (1, 10, 100):
        trees.save(tmp_path / f"images/{i}.png", trees.pixels(i))
        trees.save(tmp_path / f"masks/{i}_L.png", trees.blocks([0, 1]))
    trees.save(tmp_path / "images/2.png", trees.pixels(2))
    data = Folder(tmp_path)
    assert {*data.masked, *data.val} == {"1", "10", "100"}
    trees.save(tmp_path / "masks/2.png", trees.blocks([0, 1]))
    with pytest.raises(ValueError, match="1 image with a mask of the same name"):
        Folder(tmp_path)  # now names agree as they are
    (tmp_path / "masks/2.png").rename(tmp_path / "masks/2_R.png")
    with pytest.raises(ValueError, match=r"0 images with a mask .*first mask 100_L"):
        Folder(tmp_path)


def _twice(root: Path) -> None:
    shutil.copy(root / "images/bare.png", root / "images/bare.jpg")


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (shutil.rmtree, {}, FileNotFoundError, r"root .*own does not exist; expected a folder with images and masks"),
        (lambda r: (r / "masks").rename(r / "m"), {}, FileNotFoundError, r"folder .*masks does not exist"),
        (_twice, {}, ValueError, r"images holds both bare.jpg and bare.png; keep one"),
        (lambda r: trees.save(r / "images/unlabeled/0.png", trees.pixels(0)), {}, ValueError,
         "would both be called unlabeled/0"),
        (lambda r: None, {"mask_ending": "_gt"}, ValueError,
         "0 images with a mask of the same name; at least one is needed to train"),
        (lambda r: None, {"val_share": 1.5}, ValueError, "val_share must lie between 0 and 1, got 1.5"),
        (lambda r: trees.write(r / "val.txt", ["day 0/99"]), {}, FileNotFoundError,
         r"val.txt names 1 ids without image in .*the first: 99"),
        (lambda r: trees.write(r / "val.txt", ["bare"]), {}, FileNotFoundError,
         r"own: 1 validation images have no mask of the same name, first: bare; .*, the first mask day 0/0"),
        (lambda r: None, {"train_list": "t.txt"}, FileNotFoundError, r"list file .*t.txt does not exist"),
        (lambda r: None, {"classes": "none.toml"}, FileNotFoundError, r"file of classes .*none.toml does not exist"),
        (lambda r: None, {"classes": ["a"]}, ValueError, "classes: names must be a list of 2 to 254 names"),
        (lambda r: [(r / f"classes.{s}").touch() for s in ("toml", "json")], {}, ValueError,
         "holds both classes.toml and classes.json"),
        (lambda r: trees.save(r / "masks/day 0/0.png", trees.pixels(0)[..., 0]), {}, ValueError,
         "more than 64 different values so far; masks hold class ids, as PNG"),
        (lambda r: trees.save(r / "masks/day 0/0.png", trees.blocks([1]).astype(np.uint16)), {}, ValueError,
         r"0.png has mode I;16; a mask holds class ids"),
        (lambda r: (r / "masks/day 0/0.png").write_bytes(b"x"), {}, ValueError, r"mask .*0.png is corrupt"),
    ],
)  # fmt: skip
def test_one_fault_one_error(root: Path, spoil: Callable, options: dict, error: type, message: str) -> None:
    spoil(root)
    with pytest.raises(error, match=message):
        Folder(root, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names = [", "c.toml is not valid TOML"),
        ('names = ["a", "b"]\ncolours = 1', "unknown key 'colours'; valid are names, colors, values, ignore"),
        ('names = ["a", "a"]', "the name 'a' stands for two classes"),
        ('names = ["a", "b"]\nvalues = [0]', "values must have one entry for each of the 2 names"),
        ('names = ["a", "b"]\nvalues = [0, 300]', "300 in values is not an integer from 0 to 255"),
        ('names = ["a", "b"]\ncolors = [[0, 0, 0], [1, 2]]', r"\[1, 2\] in colors is not three integers from 0 to 255"),
        ('names = ["a", "b"]\nignore = "x"', "'x' in ignore is neither a value"),
        ('names = ["a", "b"]\nvalues = [0, 0]', "0 means two things"),
        ('names = ["a", "b"]\nignore = [1]', "1 means two things"),
        ('names = ["a", "b"]\ncolors = [[0, 0, 0], [0, 0, 0]]', r"\[0, 0, 0\] means two things"),
    ],
)
def test_faults_of_the_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / "c.toml")


def test_values_outside_the_classes_are_named(root: Path) -> None:
    data = Folder(root, classes=["a", "b"])
    with pytest.raises(ValueError, match=r"holds the values \[2\]; valid are 0, 1 and 255 \(ignore\)"):
        data.mask(data.val[0])


def test_an_image_turned_by_its_tag_needs_a_mask_that_is_turned(root: Path) -> None:
    lying = Image.fromarray(trees.pixels(1, 20, 40))
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(root / "images/turned.png", exif=exif)
    trees.save(root / "masks/turned.png", trees.blocks([0, 1], 20, 40))
    data = Folder(root, classes=["a", "b", "c"])
    assert data.size("turned") == (40, 20) == tuple(data.image("turned").shape[1:])
    with pytest.raises(ValueError, match=r"turned is 40 x 20 but its mask 20 x 40 \(height x width\); the EXIF tag"):
        check(data, ("turned",))


def test_a_folder_trains(root: Path, tmp_path: Path) -> None:
    data = open_data("folder", str(root))
    run = train(recipe("mean_teacher", "folder", "1_2", "smoke"), data, open_split(data, "1_2", 0), tmp_path / "run",
                progress=False)  # fmt: skip
    assert run.record["split"]["labeled"] == 4 and run.record["split"]["unlabeled"] == 9
    assert run.record["data"] == {
        "name": "folder", "sha256": data.sha256, "classes": ["0", "1", "2"], "val": 2,
        "palette": [list(color) for color in data.palette],
    }  # fmt: skip
    assert sum(map(sum, run.record["last"]["teacher"]["confusion"])) == 2 * 40 * 40
