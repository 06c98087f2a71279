"""semiseg data: what it prints and with which status it ends."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_fetch import tar
from typer.testing import CliRunner
from web import Site, serving

from semiseg.cli import app, main
from semiseg.data import families
from semiseg.data.fetch import download
from semiseg.data.fetch.sources import SOURCES

LABELED, UNLABELED, VAL = ("a", "b", "c"), ("u", "v", "w", "z"), ("x", "y")
MASK = np.tile(np.array([0, 8, 12, 255, 0], dtype=np.uint8), (20, 6))  # background, cat, dog, ignored


def call(*arguments: object) -> tuple[int, str]:
    """Status and what was printed; errors that `main` turns into a line and status 2 count as such."""
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if isinstance(result.exception, ValueError | OSError):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


# --- check --------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VOC's layout, and a list of labeled images."""
    root = tmp_path / "set"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for key in LABELED + UNLABELED + VAL:
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(image(root, key))
    for key in LABELED + VAL:
        save(MASK, mask(root, key))
    lists = root / "ImageSets/Segmentation"
    (lists / "train_aug.txt").write_text("\n".join(LABELED + UNLABELED))
    (lists / "val.txt").write_text("\n".join(VAL))
    (root / "labeled.txt").write_text("\n".join(LABELED))
    return root


def image(root: Path, key: str) -> Path:
    return root / "JPEGImages" / f"{key}.jpg"


def mask(root: Path, key: str) -> Path:
    return root / "SegmentationClass" / f"{key}.png"


def save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path)


def check(root: Path, *more: object) -> tuple[int, str]:
    return call("check", "--root", root, "--classes", "cat,dog", "--labeled-list", root / "labeled.txt", *more)


def test_clean_data_pass(root: Path) -> None:
    status, text = check(root, "--crop", 24)
    assert status == 0 and text.startswith(
        "voc, split labeled: nothing to complain about\n(lists: family file, SHA256 "
    )
    assert "labeled         3" in text and "cat" in text


def _outside(root: Path) -> None:
    changed = MASK.copy()
    changed[0, 0] = 77
    save(changed, mask(root, "b"))


def _black_and_white(root: Path) -> None:
    for key in LABELED:
        save(np.where(MASK == 8, 255, 0).astype(np.uint8), mask(root, key))


def _without_dogs(root: Path) -> None:
    for key in LABELED:
        save(np.where(MASK == 12, 0, MASK).astype(np.uint8), mask(root, key))


@pytest.mark.parametrize(
    ("spoil", "status", "what"),
    [
        (lambda r: mask(r, "a").unlink(), 1, "ERROR: 1 labeled image without mask\n    a\n"),
        (lambda r: shutil.copy(mask(r, "a"), mask(r, "q")), 0, "WARNING: 1 mask without image\n    q.png\n"),
        (lambda r: save(MASK[:, :20], mask(r, "a")), 1,
         "ERROR: 1 mask not as large as the image (height x width)\n    a: image 20 x 30, mask 20 x 20\n"),
        (_outside, 1, "ERROR: 1 mask with values that are no class\n    b: holds the values [77]; valid are 0 to 20"),
        (_black_and_white, 1, "ERROR: the labeled masks hold no values but 0 and 255, and 255 means 'ignore'\n    a\n"),
        (lambda r: save(np.zeros((20, 30, 3), np.uint8), mask(r, "c")), 1,
         "ERROR: 1 mask with colors instead of class ids\n    c: mode RGB, colors (0, 0, 0)\n"),
        (lambda r: image(r, "u").write_bytes(b"no image"), 1,
         "ERROR: 1 image cannot be read\n    u: image u.jpg is corrupt, truncated or not an image file\n"),
        (lambda r: mask(r, "b").write_bytes(mask(r, "b").read_bytes()[:50]), 1,
         "ERROR: 1 mask cannot be read\n    b: mask b.png is corrupt"),
        (lambda r: (r / "labeled.txt").write_text("a\nb\nc\nx\n"), 1, "ERROR: 1 id both labeled and val\n    x\n"),
        (lambda r: (r / "ImageSets/Segmentation/train_aug.txt").write_text("a\nb\nc\nu\nv\nw\ny\n"), 1,
         "ERROR: 1 id both unlabeled and val\n    y\n"),
        (lambda r: shutil.copy(image(r, "a"), image(r, "x")), 1,
         "ERROR: 1 validation image also used for training, under another name\n    a (labeled) = x (val)\n"),
        (_without_dogs, 0, "WARNING: 1 class in no labeled mask: no method can learn them\n    dog\n"),
    ],
)  # fmt: skip
def test_every_fault_is_told_and_errors_end_with_status_1(root: Path, spoil: Callable, status: int, what: str) -> None:
    spoil(root)
    found, text = check(root)
    assert what in text and found == status


def test_an_id_in_both_lists(root: Path) -> None:
    (root / "unlabeled.txt").write_text("c\nu\nv\nw\n")
    status, text = check(root, "--unlabeled-list", root / "unlabeled.txt")
    assert status == 1 and "ERROR: 1 id both labeled and unlabeled\n    c\n" in text


def test_the_page(root: Path, tmp_path: Path) -> None:
    image(root, "u").write_bytes(b"no image")
    page = tmp_path / "new" / "report.html"
    status, text = check(root, "--html", page, "--pictures", 2)
    assert status == 1 and text.endswith(f"page with pictures: {page}\n")
    html = page.read_text()
    assert html.count("<img") == 2 * 3 and "1 image cannot be read" in html and "rgb(64, 0, 0)" in html
    assert [p.name for p in page.parent.iterdir()] == ["report.html"]


def test_more_places_on_request(root: Path) -> None:
    assert "    a: 20 x 30\n    and 6 more\n" in check(root, "--crop", 31, "--examples", 1)[1]


def test_splits_by_name(root: Path) -> None:
    for key in UNLABELED:
        save(MASK, mask(root, key))
    status, text = call("check", "--root", root, "--classes", "cat,dog", "--split", "1/4", "--seed", 1)
    assert status == 0 and text.startswith("voc, split 1_4: ") and "family seeded" in text
    assert call("check", "--data", "digits", "--split", "full")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs root"),
        (("--root", "nowhere"), "root nowhere does not exist; expected a folder laid out like PASCAL VOC"),
        (("--data", "imagenet", "--root", "."), "unknown data 'imagenet'; expected one of digits, voc"),
        (("--data", "digits", "--split", "1_3"), "unknown split '1_3'; did you mean '1_8'?"),
        (("--data", "digits", "--family", "mine"), "unknown family 'mine' of lists; expected one of classic, cps"),
        (("--data", "digits", "--labeled-list", "gone.txt"), "list file gone.txt does not exist"),
        (("--data", "digits", "--unlabeled-list", "l.txt"), "--unlabeled-list needs --labeled-list"),
        (("--data", "digits", "--pictures", "-1"), "Invalid value for '--pictures'"),
        (("--nonsense",), "No such option"),
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_status_2(arguments: tuple[str, ...], message: str) -> None:
    status, text = call("check", *arguments)
    assert status == 2 and message in " ".join(text.replace("│", " ").split())


def test_lists_that_name_nothing_there_end_with_status_2(root: Path) -> None:
    image(root, "v").unlink()
    status, text = check(root)
    assert status == 2 and "names 1 ids without image" in text and text.endswith("the first: v")
    (root / "labeled.txt").write_text("")
    shutil.copy(image(root, "u"), image(root, "v"))
    assert check(root) == (2, f"{root / 'labeled.txt'}: the list is empty")


def test_errors_are_one_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["semiseg", "data", "check", "--root", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("semiseg: root nowhere does not exist") and said.count("\n") == 1


def test_commands_that_need_no_torch_do_not_wait_for_it() -> None:
    parts = "semiseg.cli, semiseg.runs, semiseg_book.missing, semiseg.data.families, semiseg.data.fetch.sets"
    script = f"import sys, {parts}; print(sorted({{'torch', 'torchvision', 'FrEIA'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


# --- fetch and list -----------------------------------------------------------------------


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "_PAUSE", 0)
    with serving() as site:
        yield site


def offer(site: Site, monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes]) -> None:
    """A small archive in place of a benchmark's."""
    body = tar({f"{SOURCES[name].folder}/{path}": content for path, content in files.items()})
    site.files[f"/{name}.tar"] = body
    known = f"sha256:{hashlib.sha256(body).hexdigest()}"
    url = f"{site.url}/{name}.tar"
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], urls=(url,), known=known, file=f"{name}.tar"))


def test_fetch_voc_and_then_sbd(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer(site, monkeypatch, "voc", {"JPEGImages/a.jpg": b"a"})
    offer(site, monkeypatch, "sbd", {"cls/a.mat": b"m"})
    calls = []
    stand_in = types.ModuleType("semiseg.data.fetch.sbd")
    stand_in.blended_masks = lambda sbd, voc, progress: calls.append((sbd, voc)) or 10582
    monkeypatch.setitem(sys.modules, "semiseg.data.fetch.sbd", stand_in)
    voc, sbd = tmp_path / "voc", tmp_path / "sbd"
    status, text = call("fetch", "sbd", "--root", sbd, "--voc", voc)
    assert status == 0 and f"no VOC in {voc}, so no masks were made; fetch voc, then run this again" in text
    status, text = call("fetch", "voc", "--root", voc)
    assert status == 0 and text.startswith(f"voc: unpacked and verified in {voc}\n")
    status, text = call("fetch", "sbd", "--root", sbd, "--voc", voc)
    assert status == 0 and f"sbd: already in {sbd}" in text and "masks of 10582 training images" in text
    assert calls == [(sbd, voc)]


def test_fetch_from_elsewhere(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer(site, monkeypatch, "camvid", {"train.txt": b"t"})
    known, url = SOURCES["camvid"].known, SOURCES["camvid"].urls[0]
    offer(site, monkeypatch, "camvid", {"train.txt": b"of another version"})
    site.files["/old.tar"] = tar({f"{SOURCES['camvid'].folder}/train.txt": b"t"})
    status, text = call("fetch", "camvid", "--root", tmp_path / "c", "--hash", known, "--url", url)
    assert status == 2 and f"expected {known}, found" in text
    arguments = ("--hash", known, "--url", f"{site.url}/old.tar", "--keep-archive")
    assert call("fetch", "camvid", "--root", tmp_path / "c", *arguments)[0] == 0
    assert (tmp_path / "c" / "train.txt").read_bytes() == b"t" and (tmp_path / "downloads" / "camvid.tar").is_file()


def test_fetch_stopped_by_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semiseg.data.fetch.sets.fetch", stop)
    status, text = call("fetch", "voc")
    assert status == 130 and text == "stopped; what has arrived is kept, the same command goes on from there\n"


@pytest.mark.parametrize("name", ["cityscapes", "coco"])
def test_what_is_got_by_hand(name: str, tmp_path: Path) -> None:
    status, text = call("fetch", name, "--root", tmp_path)
    assert status == 2 and "1. " in text and str(tmp_path) in text and "http" in text


def test_what_was_got_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in ("leftImg8bit", "gtFine", "train2017", "val2017", "annotations"):
        (tmp_path / folder).mkdir()
    assert call("fetch", "cityscapes", "--root", tmp_path) == (0, f"cityscapes: in {tmp_path}\n")
    stand_in = types.ModuleType("semiseg.data.sets.coco")
    stand_in.write_masks = lambda root, part, progress: len(part)
    monkeypatch.setitem(sys.modules, "semiseg.data.sets.coco", stand_in)
    status, text = call("fetch", "coco", "--root", tmp_path)
    assert status == 0 and "train2017: 9 masks in" in text and "val2017: 7 masks in" in text


def test_fetch_splits(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of one family and, where VOC is, the list of its training images; then nothing is fetched twice."""
    text, files = b"a\nb\n", []
    for file in families.list_files():
        if file.family == "coco" or file.kind == "train":
            changed = replace(file, sha256=hashlib.sha256(text).hexdigest())
            site.files[f"/{file.repository}/{file.commit}/{file.path}"] = text
            files.append(changed)
    monkeypatch.setattr(families, "RAW", site.url)
    monkeypatch.setattr(families, "list_files", lambda: tuple(files))
    folder = tmp_path / "splits"
    status, said = call("fetch", "splits", "--root", folder, "--family", "coco", "--voc", tmp_path / "voc")
    assert status == 0 and said == f"coco: 5 lists, verified, in {folder / 'coco'}\n"
    assert (folder / "coco" / "1_512" / "labeled.txt").read_bytes() == text
    assert call("fetch", "splits", "--root", folder, "--family", "coco", "--voc", tmp_path / "voc")[0] == 0
    assert len(site.asked) == 5
    assert families.fetch_train_list(tmp_path / "voc").read_bytes() == text and len(site.asked) == 6
    (folder / "coco" / "1_512" / "labeled.txt").write_bytes(b"damaged")
    assert call("fetch", "splits", "--root", folder, "--family", "coco", "--voc", tmp_path / "voc")[0] == 0
    assert (folder / "coco" / "1_512" / "labeled.txt").read_bytes() == text


def test_fetch_of_unknown_names(tmp_path: Path) -> None:
    assert call("fetch", "imagenet") == (2, "unknown data set 'imagenet'; expected one of voc, sbd, camvid, cityscapes, coco or splits")  # fmt: skip # noqa: E501
    status, text = call("fetch", "splits", "--root", tmp_path, "--family", "coco", "--family", "mine")
    assert status == 2 and "unknown family 'mine'" in text and list(tmp_path.iterdir()) == []


def test_list_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "camvid").mkdir()
    status, text = call("list", "--root", tmp_path)
    assert status == 0
    for name, source in SOURCES.items():
        assert source.title in text and source.page in text and source.terms in text
        assert (f"here      {tmp_path / name}\n" in text) == (name == "camvid")
    assert "2.00 GB to download" in text and "MD5, the one that datadings gives; no SHA256 is published" in text
    assert "classic          92, 183, 366, 732, 1464" in text
