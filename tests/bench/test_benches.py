"""The benchmarks still run: each is imported, says what it takes, and does the smallest part of its work."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from semiseg.data.sets.digits import Digits
from semiseg.recipe import Recipe, recipe

HERE = Path(__file__).parent
NAMES = tuple(path.stem for path in sorted(HERE.glob("bench_*.py")))


def smoke(method: str = "mean_teacher", *_: str) -> Recipe:
    return recipe(method, "digits", "1_8", "smoke")


class Few(Digits):
    """The embedded set with few images."""

    def __init__(self, train_scenes: int = 96, val_scenes: int = 8, size: int = 32) -> None:
        super().__init__(train_scenes, val_scenes, size)


@pytest.fixture
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A benchmark that gets the smallest recipe and few images where it asks for them."""
    monkeypatch.syspath_prepend(HERE)  # one of them imports another
    module = importlib.import_module(request.param)
    monkeypatch.setattr(module, "recipe", smoke)
    monkeypatch.setattr(module, "Digits", Few)
    return module


def spine(bench: ModuleType, small: Callable[..., None], folder: Path) -> None:
    small(N=512, D=16, K=4)
    assert all(bench._flow_step(naive, 1)["seconds"] > 0 for naive in (False, True))
    assert set(bench.step_times("cpu", 1)) == {"supervised", "mean_teacher", "ddfp"}
    assert bench.loader_rate(1)["images_per_second"] > 0


def loader(bench: ModuleType, small: Callable[..., None], folder: Path) -> None:
    bench.photographs(folder / "voc", 4)
    assert bench.compare(folder / "voc", 48, 1, 1, 1, 0)["semiseg_over_pil"] > 0
    assert bench.processor(folder / "voc", 48, 2, 1, 1)["semiseg_over_pil"] > 0
    assert bench.embedded(1) > 0


def hosts(bench: ModuleType, small: Callable[..., None], folder: Path) -> None:
    made = list(bench.recipes(("supervised", "unimatch")))
    labels = [each.label for each in made]
    assert labels == ["supervised", "unimatch", "unimatch+upc", "unimatch+wpl"]
    found = bench.measure(made, rounds=1, steps=1, warm=0, device="cpu")
    assert list(found) == labels and all(0 < v["low"] <= v["median"] <= v["high"] for v in found.values())
    one, two = ({"median": v, "low": v, "high": v} for v in (1.0, 2.0))
    added = bench.with_added({"how": "", "seconds": {bench.REFERENCE: one}}, {bench.REFERENCE: two, "x": two}, {})
    assert added["seconds"] == {bench.REFERENCE: one, "x": one}, "in the time of the first session"


def dgcl(bench: ModuleType, small: Callable[..., None], folder: Path) -> None:
    small(K=4, D=8, BANK=64, QUOTA=16, SCALES=(2, 4), ANCHORS=4, KEYS=2)  # as many negatives as there are pixels
    naive, ours = (bench.make(variant, "cpu", 12, 1)() for variant in ("naive", "ours"))
    assert ours == pytest.approx(naive, rel=1e-4), "the same loss, written in two ways"
    assert bench.step_times("cpu", 1, 1)["ratio"] > 0


def esl(bench: ModuleType, small: Callable[..., None], folder: Path) -> None:
    small(K=4, P=2, Q=4, E=8, L=16, IMAGES=2, SIDE=33, GRID=9, DEEP=5)
    assert bench._loss(0.5, 1, "cpu")["anchors"] > 0
    assert bench.straightness([1000.0, 2000.0], [3.0, 5.0])["per_1000"] == pytest.approx(2.0)
    assert set(bench.step_times("cpu", 1)) == {"mean_teacher", "esl", "esl_without_contrast"}


def wpl(bench: ModuleType, small: Callable[..., None], folder: Path) -> None:
    small(B=1, D=16, SIDE=9, CROP=33, K=4, BATCH=1)
    bench.photographs(folder / "voc", 4)
    assert bench.weights_of_a_step(1)["processor"] > 0
    assert set(bench.augmentations(folder / "voc", 1, 1)) == {"unimatch", "augseg"}
    assert bench.step_times(1, 1)["ratio"] > 0


def upc(bench: ModuleType, small: Callable[..., None], folder: Path) -> None:
    assert bench.masks(smoke(), 32, "cpu", 1)["masks_all"] > 0
    assert bench.labeling(smoke(), 32, 4, 2, (1.0,), "cpu")["speed"] > 0
    assert bench.plan_alone("cpu", 1, (48,))["seconds_48"] > 0
    assert 0 < bench.entropy_maps(2, 2)["bytes_per_pixel"] < 1


SMALLEST = {f"bench_{part.__name__}": part for part in (spine, loader, hosts, dgcl, esl, wpl, upc)}


@pytest.mark.parametrize("bench", NAMES, indirect=True)
def test_the_smallest_part_of_a_benchmark_runs(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(**sizes: object) -> None:
        for size, value in sizes.items():
            monkeypatch.setattr(bench, size, value)

    SMALLEST[bench.__name__](bench, small, tmp_path)


@pytest.mark.parametrize("bench", NAMES, indirect=True)
def test_a_benchmark_says_what_it_takes(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", [bench.__name__, "--help"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 0 and "--out OUT" in capsys.readouterr().out
