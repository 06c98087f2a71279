"""Predictions for image files: the same whole and by windows, every kind of image, and what is left on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import command

from semiseg.data.files import read_rgb, size_of
from semiseg.data.sets.digits import Digits
from semiseg.data.transforms import Normalize
from semiseg.evaluate import sliding, whole
from semiseg.inference.model import Model
from semiseg.inference.predict import Wanted, find_images, predict_files, read_image
from semiseg.runs import Run

DATA = Digits()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images of one size, one larger, one in a folder below."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, size in (("a.png", (32, 32)), ("b.png", (32, 32)), ("c.jpg", (150, 40)), ("more/a.png", (20, 33))):
        pixels = np.random.default_rng(len(name) + size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_small_images_get_the_same_whole_and_by_windows(model: Model) -> None:
    image = DATA.image("val-0003")[None]
    p = whole(model.network, Normalize()(image)).detach().softmax(1)
    assert torch.equal(model.probabilities(image), p)
    for window in (32, 33, 100):
        assert torch.equal(model.probabilities(image, window), p)
    assert not torch.equal(model.probabilities(image, 16), p)


def test_large_images_are_seen_by_windows(model: Model) -> None:
    e = model.recipe.evaluation
    assert model.windows(4 * e.size, e.size) == (4 * e.size, 4 * e.size)
    assert model.windows(4 * e.size + 1, e.size) == (e.size, 2 * e.size // 3)
    image = torch.randint(0, 256, (1, 3, 140, 70), dtype=torch.uint8)
    with torch.no_grad():
        wanted = sliding(model.network, Normalize()(image), e.size, 2 * e.size // 3)
    assert torch.equal(model.probabilities(image), wanted)
    with pytest.raises(ValueError, match="window is the side of a square in pixels, at least 1; got 0"):
        model.probabilities(image, 0)


def test_written_files_hold_what_the_network_said(model: Model, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wanted = Wanted(probabilities="npy", entropy=True)
    outcome = predict_files(model, find_images([photos]), out, wanted, batch=2)
    assert outcome.written == ["a", "b", "c", "more/a"] and not outcome.failed
    for name, file in find_images([photos]).items():
        image = read_image(file)
        with Image.open(out / "masks" / f"{name}.png") as mask:
            ids, palette = torch.from_numpy(np.array(mask)), mask.getpalette()
            assert mask.mode == "P" and tuple(palette[3:6]) == DATA.palette[1]
        torch.testing.assert_close(ids, model(image))
        p = torch.from_numpy(np.load(out / "probabilities" / f"{name}.npy"))
        assert p.dtype == torch.float16 and p.shape == (11, *image.shape[1:])
        torch.testing.assert_close(p.float(), model.probabilities(image[None])[0], atol=1e-3, rtol=1e-2)
        gray = torch.from_numpy(np.array(Image.open(out / "entropy" / f"{name}.png"))).float()
        q = p.double()
        nats = -torch.special.xlogy(q, q).sum(0) / np.log(11)
        assert (gray - 255 * nats).abs().max() < 2 and gray.shape == image.shape[1:]
        shown = torch.from_numpy(np.array(Image.open(out / "overlays" / f"{name}.png"))).permute(2, 0, 1)
        assert torch.equal(shown[:, ids == 0], image[:, ids == 0]), "the background is left clear"
        color = torch.tensor(DATA.palette)[ids.long()].permute(2, 0, 1)
        mixed = (image + 0.55 * (color - image.float())).round()
        assert (shown - mixed)[:, ids > 0].abs().max() <= 1 if (ids > 0).any() else True
    assert not list(out.rglob("*.part"))


def test_what_exists_is_skipped_unless_asked_for(model: Model, photos: Path, tmp_path: Path) -> None:
    images, out = find_images([photos]), tmp_path / "out"
    predict_files(model, images, out, Wanted(overlay=False))
    (out / "masks" / "a.png").write_bytes(b"mine")
    (out / "masks" / "b.png").unlink()
    again = predict_files(model, images, out, Wanted(overlay=False))
    assert again.written == ["b"] and len(again.skipped) == 3
    assert (out / "masks" / "a.png").read_bytes() == b"mine"
    assert predict_files(model, images, out, Wanted(overlay=True)).skipped == [], "overlays are missing"
    assert predict_files(model, images, out, overwrite=True).written == list(images)


def test_predictions_of_two_models_are_not_mixed(model: Model, photos: Path, tmp_path: Path) -> None:
    images, out, other = find_images([photos]), tmp_path / "out", tmp_path / "other"
    predict_files(model, images, out)
    other.mkdir()
    save_file({"x": torch.zeros(1)}, other / "model.safetensors")
    retrained = replace(model, folder=other)
    with pytest.raises(ValueError, match=rf"out holds predictions of another model, {model.folder.name}, weights "):
        predict_files(retrained, images, out)
    assert predict_files(retrained, images, out, overwrite=True).written == list(images)
    assert len(predict_files(retrained, images, out).skipped) == len(images)


def test_an_interrupted_write_leaves_nothing(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space"):
        predict_files(model, find_images([photos]), tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_probabilities_as_safetensors(model: Model, photos: Path, tmp_path: Path) -> None:
    predict_files(model, find_images([photos / "a.png"]), tmp_path, Wanted(False, "safetensors"))
    p = load_file(tmp_path / "probabilities" / "a.safetensors")["probabilities"]
    assert p.dtype == torch.float16 and p.float().sum(0).sub(1).abs().max() < 1e-2
    with pytest.raises(ValueError, match="unknown format of probabilities 'csv'; expected npy or safetensors"):
        Wanted(probabilities="csv")  # type: ignore[arg-type]


def test_files_folders_and_patterns(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would both be written as a;"):
        find_images([photos / "a.png", photos / "more"])
    assert list(find_images([photos])) == ["a", "b", "c", "more/a"]
    assert list(find_images([f"{photos}/*.png"])) == ["a", "b"]
    assert list(find_images([f"{photos}/**/*.png"])) == ["a", "b", "more/a"]
    assert list(find_images([photos / "a.png", photos / "a.png"])) == ["a"]
    (photos / "out").mkdir()
    Image.new("RGB", (8, 8)).save(photos / "out" / "z.png")
    assert "out/z" in find_images([photos]) and "out/z" not in find_images([photos], photos / "out")
    (tmp_path / "empty").mkdir()
    for given, message in (
        (tmp_path / "empty", "no image in folder"),
        (f"{photos}/*.tif", "no image matches"),
        (photos / "z.png", r"does not exist; expected an image, a folder or a pattern"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            find_images([given])


def _saved(path: Path, image: Image.Image, **options: object) -> Tensor:
    image.save(path, **options)
    return read_image(path)


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    wanted = torch.from_numpy(rgb).permute(2, 0, 1)
    image = Image.fromarray(rgb)
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.fromarray(rgb[..., 0]))
    assert torch.equal(_saved(tmp_path / "rgba.png", alpha), wanted)
    gray = torch.from_numpy(rgb[..., 0]).expand(3, -1, -1)
    assert torch.equal(_saved(tmp_path / "gray.png", Image.fromarray(rgb[..., 0])), gray)
    assert torch.equal(_saved(tmp_path / "la.png", Image.fromarray(rgb[..., 0]).convert("LA")), gray)
    deep = Image.fromarray(rgb[..., 0].astype(np.uint16) * 256 + 77)
    assert torch.equal(_saved(tmp_path / "deep.png", deep), gray) and torch.equal(
        _saved(tmp_path / "d.tif", deep), gray
    )
    few = Image.fromarray(rgb).quantize(256)
    assert torch.equal(
        _saved(tmp_path / "few.png", few), torch.from_numpy(np.array(few.convert("RGB"))).permute(2, 0, 1)
    )
    with pytest.raises(ValueError, match=r"float\.tif holds floating-point numbers"):
        _saved(tmp_path / "float.tif", Image.fromarray(rgb[..., 0].astype(np.float32)))


def test_images_are_turned_as_their_camera_says(tmp_path: Path, model: Model) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = _saved(tmp_path / "turned.png", Image.fromarray(rgb), exif=exif)
    assert torch.equal(turned, torch.from_numpy(np.rot90(rgb, -1).copy()).permute(2, 0, 1))
    for file in ("turned.jpg", "turned.png", "turned.tif", "turned.webp"):
        _saved(tmp_path / file, Image.fromarray(rgb), exif=exif)
        assert size_of(tmp_path / file) == read_rgb(tmp_path / file).shape[:2] == (40, 24)
    assert np.array_equal(read_rgb(tmp_path / "turned.tif"), np.rot90(rgb, -1))
    predict_files(model, find_images([tmp_path / "turned.png"]), tmp_path / "out")
    assert Image.open(tmp_path / "out" / "masks" / "turned.png").size == (24, 40)


def test_the_predict_command_goes_on_after_an_unreadable_image(run: Run, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes((photos / "c.jpg").read_bytes()[:400])
    (photos / "text.png").write_text("not an image")
    out = tmp_path / "out"
    result = command("predict", run.folder, photos, "--out", out, "--no-progress", "--device", "cpu", "--entropy")
    assert result.exit_code == 1
    assert "4 of 6 images predicted" in result.output and "2 could not be read" in result.output
    for name in ("broken.jpg", "text.png"):
        assert f"{name} is corrupt, truncated or not an image file" in result.output
    assert sorted(p.name for p in out.iterdir()) == ["entropy", "masks", "model.txt", "overlays"]
    (photos / "broken.jpg").unlink(), (photos / "text.png").unlink()
    result = command("predict", run.folder, photos, "--out", out, "--no-progress", "--device", "cpu", "--entropy")
    assert result.exit_code == 0 and "0 of 4 images predicted" in result.output
    assert "4 were there already (--overwrite predicts them again)" in result.output
