"""The committed facts agree with the code and with each other."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from semiseg.data.sets import camvid, cityscapes, coco, voc
from semiseg_book.benchmarks import by_chance, facts, mask_origins

SHARES = {"1_16": 16, "1_8": 8, "1_4": 4, "1_2": 2}


def test_numbers_of_classes_are_those_of_the_code() -> None:
    found = facts("benchmarks").set_index(["data", "setting"]).classes
    modules = {"voc": voc, "cityscapes": cityscapes, "coco": coco, "camvid": camvid}
    for (data, _), number in found.items():
        assert number == len(modules[data].CLASSES)


@pytest.mark.parametrize("name", ["benchmarks", "own_masks", "shared_images", "lists_of_codes"])
def test_every_row_names_its_source(name: str) -> None:
    table = facts(name)
    assert len(table) and (table.source.str.len() > 5).all()


def test_counts_are_possible() -> None:
    benchmarks = facts("benchmarks").set_index(["data", "setting"])
    own, shared = facts("own_masks"), facts("shared_images")
    blended, classic = benchmarks.training["voc", "blended"], benchmarks.training["voc", "classic"]
    assert (own.own <= own.labeled.clip(upper=classic)).all()
    assert (shared["shared"] <= shared.labeled).all()
    for row in shared.itertuples():
        assert row.training == benchmarks.training[row.data, row.setting]
    counts = pd.concat([own.assign(training=blended), shared])
    for row in counts[counts.partition.isin(SHARES)].itertuples():
        assert abs(row.labeled * SHARES[row.partition] - row.training) <= SHARES[row.partition]


def test_sharing_is_judged_by_chance() -> None:
    table = by_chance(facts("shared_images")).set_index(["setting", "lists", "partition"])
    assert table["shared by chance"]["blended", "U2PL and CPS", "1_16"] == 41  # 662 * 662 / 10582
    assert table.verdict["classic", "U2PL and CPS", "183"] == "the same list"
    assert table.verdict["classic", "U2PL and CPS", "732"] == "unrelated"
    assert set(table.verdict[["blended", "fine"]]) == {"unrelated"}
    made = facts("shared_images").head(1).assign(shared=50)
    assert by_chance(made).verdict.tolist() == ["differ"]


def test_figure_shows_the_counts() -> None:
    fig = mask_origins(facts("own_masks"))
    texts = {t.get_text().replace("\n", " ") for t in fig.axes[0].texts}
    assert {"93 of 662", "662 of 662", "1464 of 2646"} <= texts
    assert [round(bar.get_height()) for bar in fig.axes[0].containers[1]] == [100, 100, 55, 28]
    plt.close(fig)
