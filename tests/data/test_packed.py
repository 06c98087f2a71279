"""A pack is the data set it was made of, in one file that is whole or refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from toys import Blobs, command

from semiseg.data import packed
from semiseg.data.dataset import SegmentationData, ids_of
from semiseg.data.loader import training_batches
from semiseg.data.open import open_data, open_split
from semiseg.data.packed import Pack, pack
from semiseg.data.sets.digits import Digits
from semiseg.data.sets.patchwork import Patchwork
from semiseg.data.shrunk import Shrunk
from semiseg.data.splits import first


def mine(root: Path) -> SegmentationData:
    """Images of several sizes, some of them without mask."""
    trees.save(trees.folder(root) / "images/day 0/0.jpg", trees.pixels(0, 30, 50))
    trees.save(root / "masks/day 0/0.png", trees.blocks([0, 1, 2], 30, 50))
    trees.save(root / "unlabeled/1.jpg", trees.pixels(1, 71, 33))
    return open_data("folder", str(root))


SETS: dict[str, Callable[[Path], SegmentationData]] = {
    "folder": mine,
    "camvid": lambda root: open_data("camvid", str(trees.camvid(root))),
    "voc": lambda root: open_data("voc", str(trees.voc(root, list("abcdef"), ["x"])), "dog,cat", "train"),
    "digits": lambda root: Digits(12, 4),
    "patchwork": lambda root: Patchwork(6, 3, 3, 3),
    "more": lambda root: open_data(
        "camvid", str(trees.camvid(root / "c")), unlabeled=str(trees.folder(root / "f") / "unlabeled")
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_a_pack_is_its_source(name: str, tmp_path: Path) -> None:
    data = SETS[name](tmp_path / "root")
    packed = pack(data, tmp_path / "data.safetensors")
    for attribute in ("name", "classes", "palette", "train", "val", "mirror", "sha256"):
        assert getattr(packed, attribute) == getattr(data, attribute), attribute
    assert packed.longest == 0 and packed.masked == getattr(data, "masked", data.train)
    parts = [getattr(data, part, ()) for part in ("train", "val", "tune", "test")]
    assert [packed.train, packed.val, packed.tune, packed.test] == parts
    if not packed.test:
        with pytest.raises(ValueError, match="has no part 'test'"):
            ids_of(packed, "test")
    for key in chain(*parts):
        image, mask = data.image(key), data.mask(key)
        assert torch.equal(packed.image(key), image) and packed.size(key) == image.shape[-2:]
        assert (packed.mask(key) is None) == (mask is None)
        assert mask is None or torch.equal(packed.mask(key), mask)
    splits = [open_split(each, "1_2", 3) for each in (data, packed)]
    assert splits[0] == splits[1] and splits[0].sha256 == splits[1].sha256


def test_batches_of_a_pack_are_those_of_the_folder_whoever_reads_it(tmp_path: Path) -> None:
    data = mine(tmp_path / "root")
    packed, split = pack(data, tmp_path / "p"), open_split(data, "1_2", 0)
    options = {"crop": 24, "batch": 3, "steps": 4, "seed": 0}
    plain = list(training_batches(data, split, **options))
    for there, workers in ((packed, 0), (packed, 2), (pickle.loads(pickle.dumps(packed)), 0)):
        found = training_batches(there, split, workers=workers, **options)
        for one, two in zip(plain, found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one[:6], two[:6], strict=True))


def test_a_pack_depends_on_content_alone(tmp_path: Path) -> None:
    data = mine(tmp_path / "root")
    one, two = pack(data, tmp_path / "one"), pack(data, tmp_path / "two")
    assert one.path.read_bytes() == two.path.read_bytes() and one.content == two.content
    assert pack(one, tmp_path / "three").content == one.content, "a pack of a pack"
    trees.save(tmp_path / "root/unlabeled/0.png", trees.pixels(7))
    (tmp_path / "root/unlabeled/0.jpg").unlink()
    assert pack(open_data("folder", str(tmp_path / "root")), tmp_path / "four").content != one.content


def test_a_shrunk_pack_says_so_and_is_the_shrunk_set(tmp_path: Path) -> None:
    data = mine(tmp_path / "root")
    small, shrunk = pack(data, tmp_path / "p", longest=20), Shrunk(data, 20)
    assert small.sha256 == shrunk.sha256 != data.sha256 and small.longest == 20
    for key in data.train:
        assert torch.equal(small.image(key), shrunk.image(key)) and max(small.size(key)) == 20
    again = open_data("folder", str(tmp_path / "p"), longest=20)
    assert isinstance(again, Pack) and again.sha256 == shrunk.sha256, "it is not shrunk twice"
    with pytest.raises(ValueError, match="holds images shrunk to 20 pixels; longest=24 needs another pack"):
        open_data("folder", str(tmp_path / "p"), longest=24)
    whole = pack(data, tmp_path / "whole").path
    assert open_data("folder", str(whole), longest=20).sha256 == shrunk.sha256


def test_a_pack_opens_as_the_root_of_its_own_kind(tmp_path: Path) -> None:
    path = str(pack(SETS["voc"](tmp_path / "voc"), tmp_path / "p").path)
    assert isinstance(open_data("voc", path), Pack) and isinstance(open_data("voc", path, "cat,dog"), Pack)
    for arguments, message in (
        (("camvid", path), "is a pack of data='voc', not of 'camvid'"),
        (("voc", path, "cat"), "classes='cat' cannot be asked of a pack"),
        (("voc", path, "", "val"), "train_list='val' cannot be asked of a pack"),
    ):
        with pytest.raises(ValueError, match=message):
            open_data(*arguments)
    with pytest.raises(ValueError, match="unlabeled='more' cannot be asked of a pack"):
        open_data("voc", path, unlabeled="more")
    with pytest.raises(KeyError, match="no image 'q' in"):
        Pack(path).image("q")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def only_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def lists(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"background", b"foreground", 1))


def sizes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-12 - 12 * 32 - 8] ^= 1
    path.write_bytes(content)


def digests(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [truncate, only_the_header, lists, sizes, digests])
def test_a_truncated_or_altered_pack_is_refused_in_one_line(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    path = pack(Digits(8, 4), tmp_path / "p").path
    spoil(path)
    with pytest.raises(ValueError, match=r"p is truncated or altered \(.*\); pack it again") as caught:
        Pack(path)
    assert "\n" not in str(caught.value)


def test_an_altered_pixel_is_found_when_its_image_is_read(tmp_path: Path) -> None:
    data = Digits(8, 4)
    path = pack(data, tmp_path / "p").path
    content = bytearray(path.read_bytes())
    place = content.find(data.image("train-0002").permute(1, 2, 0).numpy().tobytes())
    content[place + 100] ^= 1
    path.write_bytes(content)
    there = Pack(path)
    assert torch.equal(there.image("train-0001"), data.image("train-0001"))
    for read in (there.image, there.mask):
        with pytest.raises(ValueError, match=r"altered .*image train-0002 is not what was written"):
            read("train-0002")


def test_what_is_no_pack(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no pack at .*nothing; make one with semiseg data pack"):
        Pack(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="text is truncated or altered"):
        Pack(tmp_path / "text")
    from safetensors.numpy import save_file

    save_file({"weights": np.zeros(3)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="weights is no pack of images"):
        Pack(tmp_path / "weights")
    for name in ("text", "weights"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match="is no pack of images, so it is not overwritten"):
            pack(Digits(2, 2), tmp_path / name, overwrite=True)
        assert (tmp_path / name).read_bytes() == before


class Unfitting(Blobs):
    """One image is a row short."""

    def image(self, key: str) -> torch.Tensor:
        return super().image(key)[:, key == "train-003" :]


def test_an_old_pack_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(Digits(4, 2), tmp_path / "p").path
    before = path.read_bytes()
    with pytest.raises(ValueError, match="p is there already; choose another file, or ask to overwrite it"):
        pack(Digits(5, 2), path)
    with pytest.raises(ValueError, match="image train-003 is 31 x 32 but its mask 32 x 32"):
        pack(Unfitting(), path, overwrite=True)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(packed.os, "replace", stop)
        pack(Digits(5, 2), path, overwrite=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert len(pack(Digits(5, 2), path, overwrite=True).train) == 5


def test_the_command_packs_and_a_run_on_the_pack_has_the_record_of_one_on_the_folder(tmp_path: Path) -> None:
    mine(tmp_path / "mine")
    options = ("--data", "folder", "--root", tmp_path / "mine")
    made = command("data", "pack", tmp_path / "p.safetensors", *options)
    assert made.exit_code == 0, made.output
    packed = Pack(tmp_path / "p.safetensors")
    assert f"{len(packed.train)} training and {len(packed.val)} validation images" in made.output
    assert packed.sha256[:12] in made.output and packed.content[:12] in made.output
    records = []
    for name, root in (("a", tmp_path / "mine"), ("b", packed.path)):
        result = command(
            "train", "--method", "mean_teacher", "--data", "folder", "--root", root, "--split", "1_2", "--scale",
            "smoke", "--no-progress", "--out", tmp_path / "runs" / name,
        )  # fmt: skip
        assert result.exit_code == 0, result.exception
        record = json.loads((tmp_path / "runs" / name / "run.json").read_text())
        records.append({k: record[k] for k in ("recipe_sha256", "data", "split", "last", "best")})
    assert records[0] == records[1]
    again = command("data", "pack", packed.path, *options)
    assert isinstance(again.exception, ValueError) and "is there already" in str(again.exception)
    assert command("data", "check", "--data", "folder", "--root", packed.path).exit_code == 0


def test_split_of_fewer_images(tmp_path: Path) -> None:
    data = Digits(12, 4)
    assert first(pack(data, tmp_path / "p").train, 3, 0) == first(data.train, 3, 0)
