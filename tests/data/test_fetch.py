"""Data sets: from an address to a folder, verified, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from web import Site, serving

from semiseg.data.fetch import download
from semiseg.data.fetch import sets as fetch
from semiseg.data.fetch.download import DownloadError, WrongHash
from semiseg.data.fetch.sets import fetched, instructions
from semiseg.data.fetch.sources import SOURCES


def tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return file.getvalue()


BODY = tar({"VOCdevkit/VOC2012/JPEGImages/a.jpg": b"jpeg", "VOCdevkit/other.txt": b"other"})
SHA = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """VOC's archive, at two addresses."""
    monkeypatch.setattr(download, "_PAUSE", 0)
    with serving() as site:
        site.files["/voc.tar"] = BODY
        urls = (f"{site.url}/gone.tar", f"{site.url}/voc.tar")
        monkeypatch.setitem(SOURCES, "voc", replace(SOURCES["voc"], urls=urls, known=SHA, file="voc.tar"))
        yield site


def test_a_data_set_is_fetched_once_and_says_what_it_is(site: Site, tmp_path: Path) -> None:
    root = tmp_path / "voc"
    assert fetch.fetch("voc", root) is True
    assert (root / "JPEGImages" / "a.jpg").read_bytes() == b"jpeg"
    assert sorted(p.name for p in root.iterdir()) == ["JPEGImages", "fetched.json"]
    record = json.loads((root / "fetched.json").read_text())
    assert (record["name"], record["hash"], record["sha256"], record["bytes"]) == ("voc", SHA, SHA, len(BODY))
    asked = len(site.asked)
    assert fetch.fetch("voc", root) is False and len(site.asked) == asked
    assert list((tmp_path / "downloads").iterdir()) == []


def test_the_archive_is_kept_when_asked_for_and_then_used(site: Site, tmp_path: Path) -> None:
    fetch.fetch("voc", tmp_path / "voc", keep=True)
    asked = len(site.asked)
    fetch.fetch("voc", tmp_path / "again", keep=True)
    assert len(site.asked) == asked and (tmp_path / "again" / "JPEGImages").is_dir()


def test_interrupted_it_goes_on(site: Site, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "voc.tar.part"
    part.parent.mkdir()
    part.write_bytes(BODY[:100])
    fetch.fetch("voc", tmp_path / "voc")
    assert site.asked[-1] == ("/voc.tar", "bytes=100-")


def test_where_no_address_works_it_says_what_to_do_by_hand(site: Site, tmp_path: Path) -> None:
    del site.files["/voc.tar"]
    place = re.escape(str(tmp_path / "downloads" / "voc.tar"))
    with pytest.raises(DownloadError, match=rf"(?s)gone.tar: 404.*voc.tar: 404.*save voc.tar as {place} and run this"):
        fetch.fetch("voc", tmp_path / "voc")
    (tmp_path / "downloads" / "voc.tar").write_bytes(BODY)
    assert fetch.fetch("voc", tmp_path / "voc") is True


def test_another_address_and_another_hash(site: Site, tmp_path: Path) -> None:
    site.files["/new.tar"] = tar({"VOCdevkit/VOC2012/new.txt": b"new"})
    new = f"sha256:{hashlib.sha256(site.files['/new.tar']).hexdigest()}"
    urls = (f"{site.url}/new.tar",)
    with pytest.raises(WrongHash, match=f"expected {SHA}, found {new}.*confirms the change, pass the hash found"):
        fetch.fetch("voc", tmp_path / "voc", urls=urls)
    assert not (tmp_path / "voc").exists() and list((tmp_path / "downloads").iterdir()) == []
    fetch.fetch("voc", tmp_path / "voc", urls=urls, known=new)
    assert (tmp_path / "voc" / "new.txt").is_file()
    with pytest.raises(FileExistsError, match=f"holds another version, {new}; move it away"):
        fetch.fetch("voc", tmp_path / "voc")


def test_archives_that_lead_outside_leave_nothing(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/voc.tar"] = tar({"VOCdevkit/VOC2012/a": b"a", "VOCdevkit/VOC2012/../../../evil": b"evil"})
    known = f"sha256:{hashlib.sha256(site.files['/voc.tar']).hexdigest()}"
    with pytest.raises(ValueError, match="leads outside of its folder"):
        fetch.fetch("voc", tmp_path / "data" / "voc", known=known)
    assert not list(tmp_path.rglob("evil")) and not (tmp_path / "data" / "voc").exists()


def test_a_folder_in_use_is_refused_before_anything_is_fetched(site: Site, tmp_path: Path) -> None:
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="voc is not empty"):
        fetch.fetch("voc", tmp_path / "voc")
    assert site.asked == []
    (tmp_path / "voc" / "fetched.json").write_text("{")
    with pytest.raises(ValueError, match=r"fetched.json is damaged"):
        fetched(tmp_path / "voc")


def test_what_is_not_open_is_explained() -> None:
    with pytest.raises(ValueError, match=r"(?s)registered users only.*leftImg8bit_trainvaltest.zip.*into data/cs"):
        fetch.fetch("cityscapes", Path("data/cs"))
    assert "annotations/" in instructions("coco", Path("data/coco"))
    with pytest.raises(ValueError, match="unknown data set 'imagenet'; expected one of voc, sbd, camvid, cityscapes"):
        fetch.fetch("imagenet", Path("data/imagenet"))


def test_every_source_can_be_had_one_way_or_the_other() -> None:
    for source in SOURCES.values():
        assert bool(source.urls) != bool(source.manual) and source.terms and source.page
        if source.urls:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", source.known) and source.folder and source.file
        else:
            assert source.complete and "{root}" in source.manual
