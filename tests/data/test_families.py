"""Published lists: the table is consistent, files are verified, families stay apart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from semiseg.data import families
from semiseg.data.families import FAMILIES, ListFile, list_files, partitions, published_split
from semiseg.data.open import open_split, parse_split
from semiseg.recipe import recipe
from semiseg.runs import RECORD, Run
from semiseg_book import tables

TRAIN = tuple(f"2007_{i:06d}" for i in range(8))
SIZES = {"voc": 10582, "cityscapes": 2975, "coco": 118287}


def test_the_table_divides_each_data_set() -> None:
    assert {file.family for file in list_files()} == set(FAMILIES)
    for family in FAMILIES:
        for name in partitions(family):
            kinds = {f.kind: f for f in list_files() if (f.family, f.name) == (family, name)}
            if "unlabeled" in kinds:
                assert sum(file.lines for file in kinds.values()) == SIZES[kinds["labeled"].data], (family, name)
            else:
                assert family == "coco"
    assert len({(f.family, f.name, f.kind) for f in list_files()}) == len(list_files())
    assert all(len(f.sha256) == 64 and len(f.commit) == 40 for f in list_files())


def test_labeled_images_of_each_partition_are_as_many_as_papers_say() -> None:
    labeled = {(f.family, f.name): f.lines for f in list_files() if f.kind == "labeled"}
    assert labeled["classic", "92"] == 92 and labeled["classic", "1464"] == 1464
    assert labeled["cps", "1_16"] == labeled["u2pl", "1_16"] == 662
    assert labeled["cityscapes_cps", "1_8"] == labeled["cityscapes_u2pl", "1_8"] == 372
    assert labeled["coco", "1_512"] == 232


def test_families_of_one_name_are_different_files() -> None:
    hashes = {f.family: f.sha256 for f in list_files() if (f.name, f.kind) == ("1_8", "labeled")}
    assert len(set(hashes.values())) == len(hashes) == 4


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small lists in place of the published ones, in three formats of the field."""
    texts = {
        ("cps", "1_8", "labeled"): "2007_000003\n2007_000001\n",
        ("cps", "1_8", "unlabeled"): "\n".join(key for key in TRAIN if key not in ("2007_000003", "2007_000001")),
        ("u2pl", "1_8", "labeled"): "JPEGImages/2007_000000.jpg SegmentationClass/2007_000000.png\n",
        ("coco", "1_512", "labeled"): "/train/2007_000005.jpg\t/masks/2007_000005.png\n",
    }
    files = []
    for (family, name, kind), text in texts.items():
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        like = next(f for f in list_files() if f.family == family)
        file = replace(like, name=name, kind=kind, lines=len(text.splitlines()), sha256=sha256)
        file.place(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        file.place(tmp_path).write_text(text)
        files.append(file)
    monkeypatch.setattr(families, "list_files", lambda: tuple(files))
    return tmp_path


def test_all_formats_are_read(lists: Path) -> None:
    split = published_split("cps", "1_8", lists, TRAIN)
    assert (split.name, split.family) == ("1_8", "cps")
    assert split.labeled == ("2007_000003", "2007_000001") and len(split.unlabeled) == 6
    paths = published_split("u2pl", "1_8", lists, TRAIN)
    assert (paths.family, paths.labeled, len(paths.unlabeled)) == ("u2pl", ("2007_000000",), 7)
    assert published_split("coco", "1_512", lists, TRAIN).labeled == ("2007_000005",)
    assert split.sha256 != paths.sha256


def test_bad_requests(lists: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown family 'mine' of lists; expected one of classic, cps, u2pl"):
        published_split("mine", "1_8", lists, TRAIN)
    with pytest.raises(ValueError, match=r"unknown partition '1_4' of family cps; expected one of 1_8"):
        published_split("cps", "1_4", lists, TRAIN)
    with pytest.raises(ValueError, match=r"2 of 2 ids are not training images.*needs all 10582 training images"):
        published_split("cps", "1_8", lists, ("2008_1", "2008_2"))
    path = lists / "cps" / "1_8" / "labeled.txt"
    path.write_text("2007_000003\n")
    with pytest.raises(
        ValueError, match=r"labeled.txt is not the published list: its SHA256 is [0-9a-f]{64}, expected"
    ):
        published_split("cps", "1_8", lists, TRAIN)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"does not exist; fetch it: semiseg data fetch splits --family cps"):
        published_split("cps", "1_8", lists, TRAIN)


class Images:
    train = TRAIN


def test_notebooks_open_published_splits(lists: Path) -> None:
    split = open_split(Images(), parse_split("1/8", "cps"), 0, family="cps", lists=str(lists))
    assert split == published_split("cps", "1_8", lists, TRAIN)
    with pytest.raises(ValueError, match="are two splits; give one of them"):
        open_split(Images(), "1_8", 0, labeled_list="l.txt", family="cps")
    assert open_split(Images(), "1_8", 0).family == "seeded"


@pytest.mark.parametrize(("value", "family", "name"), [(92, "classic", "92"), ("1464", "classic", "1464"),
                                                       (1512, "coco", "1_512"), (18, "u2pl", "1_8")])  # fmt: skip
def test_names_as_papermill_injects_them(value: object, family: str, name: str) -> None:
    assert parse_split(value, family) == name


def test_names_of_another_family_are_refused() -> None:
    message = r"unknown split '1_8'; did you mean '183'\? Valid are 92, 183, 366, 732, 1464"
    with pytest.raises(ValueError, match=message):
        parse_split("1_8", "classic")
    with pytest.raises(ValueError, match="unknown split 92"):
        parse_split(92)


def test_addresses_are_raw_files_at_a_commit() -> None:
    file = ListFile("cps", "voc", "1_8", "labeled", "a/b", "c" * 40, "d/e.txt", 1, "f" * 64)
    assert file.url == f"https://raw.githubusercontent.com/a/b/{'c' * 40}/d/e.txt"


# --- tables -------------------------------------------------------------------------------


def run(root: Path, method: str, seed: int, family: str, lists: str) -> Run:
    made = recipe(method, "digits", "1_8", "tiny", seed)
    scores = {"miou": 0.5, "iou": [0.5], "epoch": 1}
    record = {
        "recipe": made.as_dict(), "data": {"sha256": "d"}, "duration_s": 60.0,
        "split": {"family": family, "sha256": lists, "labeled": 1, "unlabeled": 1},
        "last": {"student": scores, "teacher": scores, "step": 1}, "best": {"student": scores, "teacher": scores},
    }  # fmt: skip
    folder = root / f"{method}-{family}-{seed}"
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(record))
    return Run.read(folder)


def makers() -> list:
    return [
        tables.over_seeds,
        tables.with_counts,
        lambda runs: tables.paired_gain(runs, "mean_teacher", "supervised"),
        lambda runs: tables.gain_summary(runs, [("mean_teacher", "supervised")]),
    ]


@pytest.mark.parametrize("make", makers())
def test_tables_refuse_to_mix_families(tmp_path: Path, make) -> None:
    runs = [run(tmp_path, "supervised", 0, "cps", "a" * 64), run(tmp_path, "mean_teacher", 1, "u2pl", "b" * 64)]
    with pytest.raises(ValueError, match=r"must not stand in one table: split 1_8 is of family cps, SHA256 aaaaaaaaaaaa"
                       r" in .*supervised-cps-0 and of family u2pl, SHA256 bbbbbbbbbbbb in"):  # fmt: skip
        make(runs)
    with pytest.raises(ValueError, match="family seeded in"):
        make([run(tmp_path, "supervised", 1, "seeded", "c"), runs[1]])


@pytest.mark.parametrize("make", makers())
def test_tables_refuse_different_files_of_one_name(tmp_path: Path, make) -> None:
    runs = [run(tmp_path / "a", "supervised", 0, "file", "a"), run(tmp_path / "b", "mean_teacher", 1, "file", "b")]
    with pytest.raises(ValueError, match="must not stand in one table"):
        make(runs)


@pytest.mark.parametrize("make", makers())
def test_lists_that_belong_together_pass(tmp_path: Path, make) -> None:
    seeded = [run(tmp_path, method, seed, "seeded", str(seed)) for method in ("supervised", "mean_teacher")
              for seed in (0, 1)]  # fmt: skip
    published = [run(tmp_path, method, 0, "cps", "a") for method in ("supervised", "mean_teacher")]
    assert isinstance(make(seeded), pd.DataFrame) and isinstance(make(published), pd.DataFrame)
