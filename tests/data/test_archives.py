"""Archives: whole or not at all, and never outside of their folder."""

from __future__ import annotations

import errno
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from semiseg.data.fetch import archives
from semiseg.data.fetch.archives import unpack

GOOD = {"top/set/a.txt": b"a", "top/set/b/c.txt": b"c", "top/other.txt": b"o"}


def tarred(path: Path, files: dict[str, bytes], *further: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        for info in further:
            tar.addfile(info)
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, body in files.items():
            file.writestr(name, body)
    return path


def made(path: Path, files: dict[str, bytes]) -> Path:
    return (zipped if path.suffix == ".zip" else tarred)(path, files)


def found(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_a_folder_of_an_archive_becomes_the_target(tmp_path: Path, suffix: str) -> None:
    archive = made(tmp_path / f"f{suffix}", GOOD)
    target = tmp_path / "data" / "set"
    target.mkdir(parents=True)
    assert unpack(archive, "top/set", target, {"r.json": "{}"}) == 2
    assert found(target) == {"a.txt": b"a", "b/c.txt": b"c", "r.json": b"{}"}
    assert [p.name for p in target.parent.iterdir()] == ["set"] and archive.exists()


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize(
    "name", ["../evil.txt", "top/set/../../../evil.txt", "/evil.txt", "C:/evil.txt", "C:evil.txt", "..\\evil.txt"]
)
def test_paths_outside_are_refused(tmp_path: Path, suffix: str, name: str) -> None:
    archive = made(tmp_path / f"f{suffix}", GOOD | {name: b"evil"})
    with pytest.raises(ValueError, match=r"refused, it holds the path .*evil.*, which leads outside of its folder"):
        unpack(archive, "top/set", tmp_path / "data" / "set")
    assert not list(tmp_path.rglob("evil*")) and not list((tmp_path / "data").iterdir())


def _special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("kind", "word"), [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.FIFOTYPE, "device")]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes, word: str) -> None:
    archive = tarred(tmp_path / "f.tar", GOOD, _special("top/set/l", kind))
    with pytest.raises(ValueError, match=f"refused, top/set/l is a {word}"):
        unpack(archive, "top/set", tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["f.tar"]


def test_links_in_zip_files_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("top/set/l")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="refused, top/set/l is a link"):
        unpack(tmp_path / "f.zip", "top/set", tmp_path / "set")


def test_links_elsewhere_in_the_archive_do_no_harm(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "f.tar", GOOD, _special("top/l", tarfile.SYMTYPE))
    assert unpack(archive, "top/set", tmp_path / "set") == 2


def test_another_archive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"f.zip holds no folder VOCdevkit: another archive than expected"):
        unpack(made(tmp_path / "f.zip", GOOD), "VOCdevkit", tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["f.zip"]


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_damaged_archives(tmp_path: Path, suffix: str) -> None:
    archive = made(tmp_path / f"f{suffix}", {f"top/set/{i}": bytes(range(256)) * 200 for i in range(4)})
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"f{suffix} is damaged \(.*\); delete it and fetch it again"):
        unpack(archive, "top/set", tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == [archive.name]


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    archive, target = made(tmp_path / "f.tar", GOOD), tmp_path / "set"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="set is not empty; move it away, or choose another folder"):
        unpack(archive, "top/set", target)
    assert found(target) == {"mine.txt": b"mine"}


def test_a_full_disk_leaves_nothing_but_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = made(tmp_path / "f.tar", GOOD)
    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match=r"no space left in .* to unpack f.tar, which is kept"):
        unpack(archive, "top/set", tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["f.tar"]


def test_remains_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".set.part").mkdir()
    (tmp_path / ".set.part" / "half").write_text("half")
    unpack(made(tmp_path / "f.tar", GOOD), "top/set", tmp_path / "set")
    assert sorted(found(tmp_path / "set")) == ["a.txt", "b/c.txt"]
