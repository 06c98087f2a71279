"""Unpacking of downloaded archives, which may hold anything."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from tqdm import tqdm

Member = tuple[str, str, Callable[[], IO[bytes] | None]]  # name, kind: "file", "folder" or "link", and its content


def unpack(
    archive: Path, folder: str, target: Path, further: Mapping[str, str] | None = None, *, progress: bool = True
) -> int:
    """Puts what lies below `folder` of a tar or zip archive into `target`, which appears at once and whole.

    Args:
        archive: .tar, .tgz, .tar.gz or .zip.
        folder: path inside the archive, as in "VOCdevkit/VOC2012".
        target: must not exist, or be empty.
        further: texts by name, written into `target` too.
        progress: show a bar, on a terminal only.

    Returns the number of files.  Raises ValueError, with nothing left behind, for an archive with a path outside of
    its own folder, a link or a device, without `folder`, or damaged; FileExistsError where `target` holds something;
    OSError without space.
    """
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty; move it away, or choose another folder")
    staging = target.with_name(f".{target.name}.part")
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        with _told(archive, target):
            count = _extract(archive, PurePosixPath(folder), staging, progress)
        if not count:
            raise ValueError(f"{archive} holds no folder {folder}: another archive than expected")
        for name, text in (further or {}).items():
            (staging / name).write_text(text, encoding="utf-8")
        if target.exists():
            target.rmdir()
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return count


def _extract(archive: Path, folder: PurePosixPath, staging: Path, progress: bool) -> int:
    count = 0
    bar = tqdm(_members(archive), unit=" files", desc=f"unpacking {archive.name}", disable=None if progress else True)
    for name, kind, content in bar:
        path = _inside(archive, name)
        if not path.is_relative_to(folder):
            continue
        if kind not in ("file", "folder"):
            raise ValueError(f"{archive}: refused, {name} is a {kind}, and a data set needs none")
        place = staging / path.relative_to(folder)
        (place if kind == "folder" else place.parent).mkdir(parents=True, exist_ok=True)
        if kind == "file" and (source := content()) is not None:
            with source, place.open("wb") as file:
                shutil.copyfileobj(source, file, 2**20)
            count += 1
    return count


def _inside(archive: Path, name: str) -> PurePosixPath:
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.root or path.drive or ".." in path.parts:
            raise ValueError(f"{archive}: refused, it holds the path {name!r}, which leads outside of its folder")
    return PurePosixPath(name)


def _members(archive: Path) -> Iterator[Member]:
    return _of_zip(archive) if archive.suffix == ".zip" else _of_tar(archive)


def _of_tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as tar:
        for member in tar:
            link = "link" if member.issym() or member.islnk() else "device"
            kind = "file" if member.isreg() else "folder" if member.isdir() else link
            yield member.name, kind, lambda member=member: tar.extractfile(member)  # type: ignore[misc]


def _of_zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            link = stat.S_ISLNK(info.external_attr >> 16)
            kind = "folder" if info.is_dir() else "link" if link else "file"
            yield info.filename, kind, lambda info=info: file.open(info)  # type: ignore[misc]


@contextmanager
def _told(archive: Path, target: Path) -> Iterator[None]:
    """Damage and lack of space, each as one message."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged ({error}); delete it and fetch it again") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = os.fspath(target.parent)
        raise OSError(f"no space left in {where} to unpack {archive.name}, which is kept") from error
