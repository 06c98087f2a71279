"""Downloads that go on where they were interrupted and are kept only if their hash is right.

path = download(("https://host/file.tar",), Path("data/downloads/file.tar"), "sha256:...")
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pooch
import requests
from tqdm import tqdm

_CHUNK = 2**16  # bytes; of what arrived, a broken connection costs less than this
_ATTEMPTS = 5  # in a row that bring nothing new
_PAUSE = 0.5  # seconds after the first of them, twice that after the second, ...
_TIMEOUT = (15, 60)  # seconds: to connect, and between two chunks


class DownloadError(OSError):
    """Says what went wrong, where, and what is kept."""


class WrongHash(DownloadError):
    """A whole file, but another one than expected."""


def download(urls: Sequence[str], target: Path, known: str, *, progress: bool = True) -> Path:
    """A file from the first address that gives the right one; nothing is done where it is there already.

    An interrupted download leaves `target` + ".part" and goes on from there the next time, at servers that can.

    Args:
        urls: addresses of the same file.
        target: where it goes; appears only once whole and right.
        known: its hash, as "sha256:..." or "md5:...".
        progress: show a bar, on a terminal only.

    Raises:
        DownloadError: no address gave the file; the message has the reason for each.
        WrongHash: each gave another file.
        OSError: the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    refused: list[DownloadError] = []
    for url in urls:
        try:
            return _from(url, target, known, progress)
        except DownloadError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    kind = WrongHash if all(isinstance(error, WrongHash) for error in refused) else DownloadError
    raise kind("\n  ".join([f"no {target.name} to be had:", *map(str, refused)]))


def _from(url: str, target: Path, known: str, progress: bool) -> Path:
    """Once more from the start where a continued file turns out wrong: its first part may be of another version."""
    continued = part_of(target).exists()
    try:
        return _retrieve(url, target, known, progress)
    except WrongHash:
        if not continued:
            raise
        return _retrieve(url, target, known, progress)


def _retrieve(url: str, target: Path, known: str, progress: bool) -> Path:
    pooch.get_logger().setLevel("WARNING")
    algorithm = known.split(":")[0]
    found = ""

    def fetch(url: str, file: str, _: Any) -> None:
        nonlocal found
        part = part_of(target)
        resume(url, part, progress=progress)
        found = f"{algorithm}:{pooch.file_hash(str(part), alg=algorithm)}"
        os.replace(part, file)

    try:
        return Path(pooch.retrieve(url, known, fname=target.name, path=target.parent, downloader=fetch))
    except ValueError as error:  # pooch deletes what it refuses
        raise WrongHash(
            f"{url}: not the expected file, and so not kept; expected {known}, found {found}. "
            "Has it changed, or did a proxy or login page answer instead?"
        ) from error


def part_of(target: Path) -> Path:
    """Where the beginning of an unfinished download lies."""
    return target.with_name(target.name + ".part")


def resume(url: str, part: Path, *, progress: bool = True) -> None:
    """Fills `part` from where it ends; tries again as long as each attempt brings something.

    Raises DownloadError when the server refuses or the connection stays lost, OSError without space; what has arrived
    is kept in all cases, and also on KeyboardInterrupt.
    """
    idle, most = 0, _size(part)
    while True:
        try:
            return _attempt(url, part, progress)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema):
            raise DownloadError(f"{url!r} is not an address of the web, as in https://host/file") from None
        except requests.RequestException as error:
            idle = 0 if _size(part) > most else idle + 1
            most = max(most, _size(part))
            if idle >= _ATTEMPTS:
                raise DownloadError(
                    f"{url}: no connection ({_reason(error)}); {_kept(part)}run the same command again to go on"
                ) from error
            time.sleep(_PAUSE * idle)


def _attempt(url: str, part: Path, progress: bool) -> None:
    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            if _stated(answer)[1] == have:
                return  # it was complete
            part.unlink()  # longer than the file itself: of something else
            return _attempt(url, part, progress)
        if not answer.ok:
            status = f"{answer.status_code} {answer.reason}"
            raise DownloadError(f"{url}: {status}; {_kept(part)}is the address still right?")
        start = have if _stated(answer)[0] == have else 0  # a server without ranges sends all of it
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        with _space(part):
            _room(part, total, start)
            _save(answer, part, start, total, progress)
        if total is not None and _size(part) < total:
            raise requests.ConnectionError(f"ended after {_size(part)} of {total} bytes")


def _stated(answer: requests.Response) -> tuple[int | None, int | None]:
    """Start and total of 'bytes 5-9/10', or of 'bytes */10'."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    start, total = match.groups() if match else (None, None)
    return (int(start) if start else None), (int(total) if total and total != "*" else None)


def _save(answer: requests.Response, part: Path, start: int, total: int | None, progress: bool) -> None:
    bar = tqdm(
        total=total, initial=start, unit="B", unit_scale=True, desc=part.name.removesuffix(".part"),
        disable=None if progress else True,
    )  # fmt: skip
    with bar, part.open("ab" if start else "wb") as file:
        for chunk in answer.iter_content(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def _room(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise OSError(errno.ENOSPC, f"{megabytes(total - start)} to come, {megabytes(free)} free")


@contextmanager
def _space(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC or isinstance(error, requests.RequestException):
            raise
        detail = "" if error.strerror == os.strerror(errno.ENOSPC) else f" ({error.strerror})"
        raise OSError(
            f"no space left in {part.parent}{detail}; {_kept(part)}make room and run the same command again to go on"
        ) from error


def _kept(part: Path) -> str:
    return f"{megabytes(_size(part))} are kept in {part}; " if _size(part) else ""


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _reason(error: Exception) -> str:
    """The innermost cause, which is the readable one."""
    while error.__context__ is not None and isinstance(error.__context__, Exception):
        error = error.__context__
    return str(error) or type(error).__name__


def megabytes(size: int) -> str:
    """In decimal units, as disks and servers are labeled."""
    if size < 10**5:
        return f"{size} bytes"
    return f"{size / 1e9:.2f} GB" if size >= 10**9 else f"{size / 1e6:.1f} MB"
