"""Getting the benchmarks that are open to everyone: download, verify, unpack.

fetch("voc", Path("data/voc"))
VOC(Path("data/voc"), train_list="train")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pooch

from semiseg.data.fetch.archives import unpack
from semiseg.data.fetch.download import DownloadError, WrongHash, download
from semiseg.data.fetch.sources import SOURCES, Source

RECORD = "fetched.json"
DOWNLOADS = "downloads"


def fetch(
    name: str, root: Path, *, urls: tuple[str, ...] = (), known: str = "", keep: bool = False, progress: bool = True
) -> bool:
    """A data set in a folder of its own, with `fetched.json` saying what it was made from.

    The archive lies in the folder `downloads` beside `root` until it is unpacked; one that was put there by other
    means, under the name the error message or `semiseg data list` gives, is used instead of a download.

    Args:
        name: one of SOURCES.
        root: folder of the data set; must not exist, be empty, or hold what an earlier call put there.
        urls: other addresses of the same archive.
        known: another hash to verify it by, as "sha256:..." or "md5:...".
        keep: leave the archive where it was downloaded to.
        progress: show bars, on a terminal only.

    Returns whether something was fetched; False: it was there.
    Raises ValueError for a name without archive, DownloadError, ValueError for an archive not to be trusted, and
    FileExistsError where `root` holds something else.
    """
    source = _source(name)
    if not source.urls:
        raise ValueError(instructions(name, root))
    expected = known or source.known
    if (there := fetched(root)) is not None:
        if expected in (there["hash"], there["sha256"]):
            return False
        raise FileExistsError(f"{root} holds another version, {there['hash']}; move it away, or choose another folder")
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; move it away, or choose another folder")
    archive = root.parent / DOWNLOADS / source.file
    try:
        download(urls or source.urls, archive, expected, progress=progress)
    except DownloadError as error:
        raise type(error)(f"{error}{_advice(error, source, archive)}") from error
    record = {
        "name": name, "title": source.title, "file": source.file, "bytes": archive.stat().st_size,
        "hash": expected, "sha256": f"sha256:{pooch.file_hash(str(archive))}", "terms": source.terms,
        "page": source.page, "urls": list(urls or source.urls),
    }  # fmt: skip
    unpack(archive, source.folder, root, {RECORD: json.dumps(record, indent=2) + "\n"}, progress=progress)
    if not keep:
        archive.unlink()
    return True


def fetched(root: Path) -> dict[str, Any] | None:
    """What `fetch` wrote beside the data, None where it put nothing.  Raises ValueError where it is damaged."""
    path = root / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["hash"], record["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged; delete it if the data beside it are whole") from error
    return record


def instructions(name: str, root: Path) -> str:
    """How to get a data set by hand."""
    source = _source(name)
    return source.manual.format(page=source.page, root=root)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(SOURCES)}")
    return SOURCES[name]


def _advice(error: DownloadError, source: Source, archive: Path) -> str:
    """What else can be done where all addresses fail."""
    if isinstance(error, WrongHash):
        return f" If {source.page} confirms the change, pass the hash found."
    return f"\nFrom elsewhere, as for instance {source.page} says, save {source.file} as {archive} and run this again."
