"""Downloads survive what goes wrong on the way, and keep nothing that is not right."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from web import Site, serving

from semiseg.data.fetch import download as module
from semiseg.data.fetch.download import DownloadError, WrongHash, download, megabytes, part_of

BODY = bytes(range(256)) * 40  # 10240 bytes
SHA = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(module, "_PAUSE", 0)
    monkeypatch.setattr(module, "_CHUNK", 1000)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as site:
        site.files["/f.tar"] = BODY
        yield site


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "f.tar"


def get(site: Site, target: Path, known: str = SHA, path: str = "/f.tar") -> Path:
    return download((site.url + path,), target, known)


@pytest.mark.parametrize("known", [SHA, MD5])
def test_a_right_file_is_kept_and_not_fetched_twice(site: Site, target: Path, known: str) -> None:
    assert get(site, target, known) == target and target.read_bytes() == BODY
    assert get(site, target, known).read_bytes() == BODY
    assert site.asked == [("/f.tar", None)]
    assert [path.name for path in target.parent.iterdir()] == ["f.tar"]


def test_a_part_is_continued(site: Site, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(BODY[:4000])
    assert get(site, target).read_bytes() == BODY
    assert site.asked == [("/f.tar", "bytes=4000-")] and not part_of(target).exists()


def test_a_complete_part_is_only_verified(site: Site, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(BODY)
    assert get(site, target).read_bytes() == BODY
    assert site.asked == [("/f.tar", "bytes=10240-")]


def test_a_part_longer_than_the_file_is_replaced(site: Site, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(BODY + b"more")
    assert get(site, target).read_bytes() == BODY


def test_a_part_of_another_version_is_replaced(site: Site, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(b"x" * 4000)
    assert get(site, target).read_bytes() == BODY
    assert [wanted for _, wanted in site.asked] == ["bytes=4000-", None]


def test_servers_without_ranges_send_all_again(site: Site, target: Path) -> None:
    site.ranges = False
    target.parent.mkdir()
    part_of(target).write_bytes(BODY[:4000])
    assert get(site, target).read_bytes() == BODY and len(site.asked) == 1


def test_a_connection_that_breaks_is_taken_up_again(site: Site, target: Path) -> None:
    site.cut = 3000
    assert get(site, target).read_bytes() == BODY
    assert [wanted for _, wanted in site.asked] == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


def test_a_connection_that_stays_broken_keeps_what_came(site: Site, target: Path) -> None:
    site.ranges, site.cut = False, 3000
    with pytest.raises(DownloadError, match=r"f.tar: no connection \(.*\); 3000 bytes are kept in .*f.tar.part; "
                       "run the same command again to go on"):  # fmt: skip
        get(site, target)
    assert part_of(target).read_bytes() == BODY[:3000] and not target.exists()
    site.ranges, site.cut = True, None
    assert get(site, target).read_bytes() == BODY and site.asked[-1][1] == "bytes=3000-"


def test_nobody_listens(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0)
    with serving() as site:
        url = site.url
    with pytest.raises(DownloadError, match="no connection") as caught:
        download((f"{url}/f.tar",), target, SHA)
    assert "kept" not in str(caught.value) and list(target.parent.iterdir()) == []


def test_ctrl_c_keeps_what_came(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        def __init__(self, **_: object) -> None: ...
        def __enter__(self) -> Stopped:
            return self

        def __exit__(self, *_: object) -> None: ...
        def update(self, _: int) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "tqdm", Stopped)
        get(site, target)
    assert part_of(target).read_bytes() == BODY[:1000] and not target.exists()
    assert get(site, target).read_bytes() == BODY and site.asked[-1][1] == "bytes=1000-"


def test_a_wrong_file_is_not_kept(site: Site, target: Path) -> None:
    site.files["/f.tar"] = b"<html>please log in</html>"
    found = hashlib.sha256(site.files["/f.tar"]).hexdigest()
    with pytest.raises(
        WrongHash, match=rf"not the expected file, and so not kept; expected {SHA}, found sha256:{found}"
    ):
        get(site, target)
    assert list(target.parent.iterdir()) == [] and len(site.asked) == 1


def test_a_wrong_file_in_place_stays_until_the_right_one_came(site: Site, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="404 Not Found"):
        get(site, target, path="/nowhere")
    assert target.read_bytes() == b"mine"
    assert get(site, target).read_bytes() == BODY


def test_refusals_say_so_and_keep_the_part(site: Site, target: Path) -> None:
    with pytest.raises(DownloadError, match=r"/nowhere: 404 Not Found; is the address still right\?"):
        get(site, target, path="/nowhere")
    part_of(target).write_bytes(BODY[:2000])
    with pytest.raises(DownloadError, match="404 Not Found; 2000 bytes are kept in"):
        get(site, target, path="/nowhere")
    assert part_of(target).read_bytes() == BODY[:2000]
    with pytest.raises(DownloadError, match="'nonsense' is not an address of the web"):
        download(("nonsense",), target, SHA)


def test_further_addresses_are_tried(site: Site, target: Path) -> None:
    site.files["/wrong"] = b"wrong"
    urls = tuple(f"{site.url}/{name}" for name in ("nowhere", "wrong", "f.tar"))
    assert download(urls, target, SHA).read_bytes() == BODY
    target.unlink()
    with pytest.raises(
        DownloadError, match=r"(?s)no f.tar to be had:\n.*nowhere: 404.*\n.*wrong: not the expected file"
    ):
        download(urls[:2], target, SHA)


def test_a_full_disk_is_seen_beforehand(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(target.parents[1])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(
        OSError, match=r"no space left in .*downloads \(10240 bytes to come, 10000 bytes free\); make room"
    ):
        get(site, target)
    assert list(target.parent.iterdir()) == []
    part_of(target).write_bytes(BODY[:1000])
    assert get(site, target).read_bytes() == BODY, "9240 bytes fit"


def test_a_disk_that_fills_up_keeps_what_came(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(BODY[:500])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_save", full)
        with pytest.raises(OSError, match=r"no space left in .*downloads; 500 bytes are kept in .*; make room and run"):
            get(site, target)
    assert get(site, target).read_bytes() == BODY and site.asked[-1][1] == "bytes=500-"


def test_sizes_read_well() -> None:
    assert [megabytes(n) for n in (0, 99_999, 1_500_000, 1_999_639_040)] == [
        "0 bytes",
        "99999 bytes",
        "1.5 MB",
        "2.00 GB",
    ]


def test_a_server_without_ranges_that_breaks_here_and_there_is_given_up(site: Site, target: Path) -> None:
    site.ranges = False
    lengths = [3000, 4000] * 20

    def answer(request, original=site.answer):
        site.cut = lengths.pop()
        original(request)

    site.answer = answer
    with pytest.raises(DownloadError, match="no connection"):
        get(site, target)
    assert len(site.asked) < 10
