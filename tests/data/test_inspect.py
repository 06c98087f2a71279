"""Every kind of finding has its message; clean data gives none."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semiseg.data.inspect.report import DataReport, inspect, to_html, to_text
from semiseg.data.inspect.survey import Finding
from semiseg.data.sets.digits import Digits
from semiseg.data.sets.voc import VOC
from semiseg.data.splits import Split, seeded_split

LABELED, UNLABELED, VAL = ("a", "b", "c"), ("u", "v", "w"), ("x", "y")
SPLIT = Split("abc", LABELED, UNLABELED, "file")
SIZE = (20, 30)  # height and width
MASK = np.tile(np.array([0, 8, 12, 255, 0], dtype=np.uint8), (20, 6))  # background, cat, dog, ignored


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VOC's layout: three labeled, three unlabeled, two validation images, all different."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for key in LABELED + UNLABELED + VAL:
        picture = Image.fromarray(draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        picture.save(tmp_path / "JPEGImages" / f"{key}.jpg")
    for key in LABELED + VAL:
        Image.fromarray(MASK).save(mask(tmp_path, key))
    lists = tmp_path / "ImageSets/Segmentation"
    (lists / "train_aug.txt").write_text("\n".join(LABELED + UNLABELED))
    (lists / "val.txt").write_text("\n".join(VAL))
    return tmp_path


def image(root: Path, key: str) -> Path:
    return root / "JPEGImages" / f"{key}.jpg"


def mask(root: Path, key: str) -> Path:
    return root / "SegmentationClass" / f"{key}.png"


def look(root: Path, split: Split = SPLIT, **options: int) -> DataReport:
    return inspect(VOC(root, classes=("cat", "dog")), split, **options)


def only(report: DataReport) -> Finding:
    assert len(report.findings) == 1, to_text(report)
    return report.findings[0]


def test_clean_data_gives_no_finding(root: Path) -> None:
    report = look(root, crop=24)
    assert report.findings == () and report.ok and report.verdict == "nothing to complain about"
    assert report.sizes["images"].to_dict() == {"labeled": 3, "unlabeled": 3, "val": 2}
    assert set(report.sizes["height"]) == {"20 / 20 / 20"} and set(report.sizes["width"]) == {"30 / 30 / 30"}
    counted = report.classes["labeled, % of pixels"].to_dict()
    assert counted == {"background": 40.0, "cat": 20.0, "dog": 20.0, "(ignored)": 20.0}
    assert set(report.classes["val, images"]) == {2}


def test_the_embedded_set_is_clean_and_needs_no_files() -> None:
    data = Digits(train_scenes=200, val_scenes=60)
    assert inspect(data, seeded_split(data.train, "1_2", 0), crop=32).findings == ()


def _write(pixels: np.ndarray, mode: str | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        picture = Image.fromarray(pixels)
        (picture.convert(mode) if mode else picture).save(path, "JPEG" if path.suffix == ".jpg" else "PNG")

    return write


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


WHITE = np.full((*SIZE, 3), 255, dtype=np.uint8)


@pytest.mark.parametrize(
    ("spoil", "severity", "what", "where"),
    [
        (lambda r: _cut(mask(r, "b")), "error", "1 mask cannot be read", "b: mask b.png is corrupt"),
        (lambda r: mask(r, "a").unlink(), "error", "1 labeled image without mask", "a"),
        (lambda r: _write(WHITE)(mask(r, "a")), "error", "1 mask with colors instead of class ids",
         "a: mode RGB, colors (255, 255, 255)"),
        (lambda r: _write(MASK.astype(np.uint16) * 200)(mask(r, "b")), "error", "1 mask of a type other than 8 bits",
         "b: mode I;16, values up to 51000"),
        (lambda r: _write(MASK + 22)(mask(r, "y")), "error", "1 mask with values that are no class",
         "y: holds the values [21, 22, 30, 34]; valid are 0 to 20 and 255 (ignore)"),
        (lambda r: _write(MASK[:, :20])(mask(r, "x")), "error", "1 mask not as large as the image (height x width)",
         "x: image 20 x 30, mask 20 x 20"),
        (lambda r: shutil.copy(mask(r, "a"), mask(r, "nobody")), "warning", "1 mask without image", "nobody.png"),
        (lambda r: shutil.copy(image(r, "a"), image(r, "y")), "error",
         "1 validation image also used for training, under another name", "a (labeled) = y (val)"),
        (lambda r: shutil.copy(image(r, "a"), image(r, "u")), "warning",
         "1 image more than once, under different names", "a (labeled) = u (unlabeled)"),
        (lambda r: _write(WHITE[..., 0])(image(r, "u")), "note",
         "1 image of mode L: gray, repeated in three channels; the strong view's colors do nothing to them", "u"),
        (lambda r: _write(WHITE, "CMYK")(image(r, "u")), "warning",
         "1 image of mode CMYK: printing colors (CMYK), converted without a color profile", "u"),
        (lambda r: _write(np.full(SIZE, 255, np.uint8))(mask(r, "x")), "warning",
         "1 mask of val images with nothing but 255 (ignore)", "x"),
    ],
)  # fmt: skip
def test_one_fault_one_finding(root: Path, spoil: Callable, severity: str, what: str, where: str) -> None:
    spoil(root)
    finding = only(look(root))
    assert (finding.severity, finding.what) == (severity, what)
    assert len(finding.where) == 1 and finding.where[0].startswith(where)
    assert str(root) not in to_text(look(root)), "folders are left out"


def test_all_unreadable_files_are_listed(root: Path) -> None:
    _cut(image(root, "u"))
    image(root, "x").write_bytes(b"text")
    image(root, "b").unlink(), image(root, "b").touch()
    report = look(root)
    finding = only(report)
    assert finding.what == "3 images cannot be read" and not report.ok and report.verdict == "1 error"
    assert [place.split(":")[0] for place in finding.where] == ["b", "u", "x"]
    assert all(f"{key}: image {key}.jpg is corrupt" in to_text(report, examples=1) for key in "bux")


def test_validation_images_need_masks(root: Path) -> None:
    class Half(VOC):
        def mask(self, key: str) -> torch.Tensor | None:
            return None if key == "y" else super().mask(key)

    finding = only(inspect(Half(root, classes=("cat", "dog")), SPLIT))
    assert finding.what == "1 validation image without mask" and finding.where == ("y",)


@pytest.mark.parametrize(("mode", "severity"), [("RGBA", "warning"), ("LA", "warning"), ("1", "note")])
def test_modes_of_png_images(root: Path, mode: str, severity: str) -> None:
    path = image(root, "u")
    Image.open(path).convert(mode).save(path, "PNG")
    finding = only(look(root))
    assert finding.severity == severity and finding.what.startswith(f"1 image of mode {mode}: ")


def test_deep_images(root: Path) -> None:
    Image.fromarray(np.full(SIZE, 40000, np.uint16)).save(image(root, "u"), "PNG")
    finding = only(look(root))
    assert finding.severity == "warning"
    assert finding.what == "1 image with 16 bits per channel, of which the upper 8 are read"


def test_a_gray_data_set_is_only_noted(root: Path) -> None:
    for key in LABELED + UNLABELED + VAL:
        Image.open(image(root, key)).convert("L").save(image(root, key))
    assert only(look(root)).severity == "note"


def test_orientation_tags(root: Path) -> None:
    picture = Image.open(image(root, "v"))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(image(root, "v"), exif=exif)
    finding = only(look(root))
    assert finding.what == "1 image with an orientation tag, which is followed" and finding.where == ("v",)
    assert finding.severity == "note"
    exif[0x0112] = 3  # upside down: the mask may not be
    Image.open(image(root, "a")).save(image(root, "a"), exif=exif)
    warning, note = look(root).findings
    assert warning.what == "1 image with a mask and an orientation tag, which is followed"
    assert (warning.severity, warning.where, note.where) == ("warning", ("a",), ("v",))


def test_black_and_white_masks(root: Path) -> None:
    for key in LABELED:
        _write(np.where(MASK == 8, 255, 0).astype(np.uint8))(mask(root, key))
    finding = only(look(root))
    assert finding.severity == "error" and finding.where == LABELED
    assert finding.what == "the labeled masks hold no values but 0 and 255, and 255 means 'ignore'"


def test_absent_and_rare_classes(root: Path) -> None:
    without = np.where(MASK == 12, 0, MASK)
    _write(without)(mask(root, "a"))
    _write(without)(mask(root, "b"))
    finding = only(look(root))
    assert (finding.severity, finding.what) == ("note", "1 class in a single labeled image")
    assert finding.where == ("dog",)
    _write(without)(mask(root, "c"))
    finding = only(look(root))
    assert (finding.severity, finding.where) == ("warning", ("dog",))
    assert finding.what == "1 class in no labeled mask: no method can learn them"
    for key in LABELED:
        _write(MASK)(mask(root, key))
    for key in VAL:
        _write(without)(mask(root, key))
    assert only(look(root)).what == "1 class in no validation mask: their IoU cannot be measured"


def test_small_images(root: Path) -> None:
    finding = only(look(root, crop=31))
    assert finding.what == "6 training images smaller than the crop of 31 pixels in height and width"
    assert finding.where[0] == "a: 20 x 30" and look(root, crop=30).findings == ()
    _write(WHITE[:6])(image(root, "w"))
    assert only(look(root)).what == "1 training image below 7 pixels"


def test_lists(root: Path) -> None:
    def whats(labeled: tuple[str, ...], unlabeled: tuple[str, ...]) -> list[str]:
        return [f.what for f in look(root, Split("s", labeled, unlabeled, "file")).of("error")]

    assert whats((), UNLABELED) == ["no image is labeled"]
    assert whats(("a", "b", "c", "z"), UNLABELED) == ["1 id of the split is not in the list of training images"]
    assert whats(("a", "b"), ("b", "u", "v")) == ["1 id both labeled and unlabeled"]
    assert whats(("a", "a"), UNLABELED) == ["1 id more than once among the labeled images"]
    assert whats(("a", "x", "y"), UNLABELED)[-1] == "2 ids both labeled and val"


def test_amounts(root: Path) -> None:
    few = only(look(root, Split("s", LABELED, ("u",), "file")))
    assert (few.severity, few.what) == ("warning", "fewer unlabeled images (1) than labeled ones (3)")
    none = only(look(root, Split("s", LABELED, (), "file")))
    assert (none.severity, none.what) == ("note", "no image is unlabeled")
    data = VOC(root, classes=("cat", "dog"))
    data.val = ()
    assert [f.what for f in inspect(data, SPLIT).of("error")] == ["no validation images"]


def test_text_shows_some_places_and_errors_first(root: Path) -> None:
    for key in UNLABELED + VAL:
        image(root, key).write_bytes(image(root, "a").read_bytes())
    mask(root, "b").unlink()
    report = look(root)
    assert [f.severity for f in report.findings] == ["error", "error"]
    assert "2 validation images also used for training, under another name" in to_text(report)
    text = to_text(look(root, crop=99), examples=2)
    assert text.startswith("voc, split abc: 2 errors, 1 warning\n")
    assert "ERROR: 1 labeled image without mask\n    b\n    -> add the masks" in text
    assert "    a: 20 x 30\n    b: 20 x 30\n    and 4 more\n" in text


class _Sources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.open += [tag] * (tag not in ("img", "meta"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(root: Path) -> None:
    image(root, "u").write_bytes(b"<b>no image</b>")
    page = to_html(look(root, shown=3))
    parser = _Sources()
    parser.feed(page)
    assert parser.open == [] and len(parser.sources) == 3 * 3
    assert all(source.startswith("data:image/") for source in parser.sources)
    assert "http" not in page and "1 image cannot be read" in page and "a (labeled)" in page and "x (val)" in page


def test_names_are_escaped(root: Path) -> None:
    shutil.copy(mask(root, "a"), root / "SegmentationClass" / "<i>.png")
    assert "&lt;i&gt;.png" in to_html(look(root)) and "<i>.png" not in to_html(look(root))


def test_pictures_show_masks_over_images(root: Path) -> None:
    report = look(root, shown=6)
    shown = [(p.key, p.part) for p in report.pictures]
    assert shown == [*((key, "labeled") for key in LABELED), *((key, "val") for key in VAL)]
    painted = np.asarray(Image.open(io.BytesIO(report.pictures[0].files[1])))
    assert painted.shape == (147, 220, 3)
    colors = {tuple(c) for c in painted.reshape(-1, 3).tolist()}
    assert colors == {*VOC(root, classes=("cat", "dog")).palette, (224, 224, 224)}
    assert look(root, shown=0).pictures == ()


def test_progress_goes_to_stdout(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    look(root)
    inspect(VOC(root, classes=("cat", "dog")), SPLIT, progress=True)
    out = capsys.readouterr()
    assert "8/8" in out.out and out.err == ""
