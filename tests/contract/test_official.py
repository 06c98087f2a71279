"""The official readings are what released code ran: every value of book/official/*.toml, field by field."""

import re

import pytest

from semiseg import registry
from semiseg_book.official import DATA_TITLES, differences, page, summary, tables

NAMES = [*registry.methods(), *registry.plug_ins()]
# The page says what differs yet in each.
OPEN = set(["ael", "cps", "mask2former", "u2pl", "augseg", "dgcl", "esl", "ddfp", "upc", "wpl"])


@pytest.mark.parametrize("name", NAMES)
def test_the_official_reading_is_the_table(name: str) -> None:
    assert bool(list(differences(tables()[name]))) == (name in OPEN)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_says_where_each_setting_stands(name: str) -> None:
    table = tables()[name]
    assert bool(table.commit) == bool(re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", table.repository))
    assert re.fullmatch(r"([0-9a-f]{40})?", table.commit) and len(table.settings) > 30
    seen = [
        (row.topic, row.name, data, host) for row in table.settings for data in row.data for host in row.hosts or ("",)
    ]
    assert len(seen) == len(set(seen)), "a setting stands twice"
    for row in table.settings:
        assert row.source and row.official and set(row.data) <= DATA_TITLES.keys(), row.name


def test_the_page_names_what_is_not_reproduced() -> None:
    text = page()
    for table in tables().values():
        assert f"(official-{table.name})=" in text and f"(official-{table.name})" in summary()
        for row in table.settings:
            assert not row.reason or row.reason.rstrip(".") in text
        for _, line in differences(table):
            assert f"- {line}" in text
