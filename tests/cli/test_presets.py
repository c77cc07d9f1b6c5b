"""`groupdetr presets`: a list that is readable at 80 columns, and the search in it."""

from __future__ import annotations

import textwrap

import pytest

import groupdetr
from groupdetr.cli.main import main
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.experiments.by_name import EXPERIMENTS, library_experiments
from groupdetr.files.preset_table import FILE, read_preset_table
from groupdetr.workflows.presets import ABBREVIATIONS, PRESETS, table_of

Captured = pytest.CaptureFixture[str]


def printed_lines(capsys: Captured, *arguments: str) -> list[str]:
    assert main(["presets", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_name_is_complete_on_a_line_of_at_most_80_columns(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not depend on the terminal, and there are neither colours nor spaces at the end."""
    monkeypatch.setenv("COLUMNS", "30")
    lines = printed_lines(capsys)
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() and line.isprintable() for line in lines)
    first_words = [line.split()[0] for line in lines if line]
    assert set(EXPERIMENTS) <= set(first_words)
    row = next(line for line in lines if line.startswith("table3/dino-4scale-r50-12e-group "))
    assert row.split() == ["table3/dino-4scale-r50-12e-group", "11", "900", "12", "50.1"]


def test_the_presets_come_first(capsys: Captured) -> None:
    lines = printed_lines(capsys)
    assert lines[:3] == [ABBREVIATIONS, "", PRESETS["box"]]
    names = [
        line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in EXPERIMENTS
    ]
    is_row_of_a_table = ["/" in name for name in names]
    assert is_row_of_a_table == sorted(is_row_of_a_table)


def test_the_models_of_plugins_fit_too_however_long_their_names_are(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "detector-of-a-plugin-with-a-name-of-more-than-forty-four-columns"
    about = "a description that is so long that it goes on in the next line, and in one more"
    monkeypatch.setattr("groupdetr.registry.EXPERIMENTS", EXPERIMENTS | {})
    groupdetr.register_model(name, TinyConditionalDETR(num_groups=3), about=about)
    lines = printed_lines(capsys, "detector-*")
    assert max(map(len, lines)) <= 80
    start = lines.index(name) + 1
    values, *descriptions = textwrap.dedent("\n".join(lines[start:])).split(maxsplit=3)
    assert values == "3"
    assert " ".join(descriptions[-1].split()) == about


def test_a_pattern_selects_names(capsys: Captured) -> None:
    lines = printed_lines(capsys, "table7/*-tiny")
    names = [line.split()[0] for line in lines if line.startswith("table7/")]
    assert names == [f"table7/{row}-tiny" for row in "abcd"]
    assert not any("Presets" in line for line in lines)


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        pytest.param("dino", "groupdetr presets '*dino*'", id="part of a name"),
        pytest.param("dino-tinny", "groupdetr presets dino-tiny", id="misspelled"),
        pytest.param("*yolo*", "groupdetr presets, which lists all models", id="nothing similar"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(
    pattern: str, remedy: str, capsys: Captured
) -> None:
    assert main(["presets", pattern]) == 2
    error = capsys.readouterr().err
    assert f"no model matches {pattern!r}" in error
    assert f"do:    {remedy}" in error


def test_an_unknown_model_names_only_similar_models(capsys: Captured) -> None:
    assert main(["train", "data", "--model", "dino-tinny"]) == 2
    error = capsys.readouterr().err
    assert "did you mean dino-tiny or dino-vit-tiny" in error
    assert "conditional-detr" not in error
    assert main(["train", "data", "--model", "nope"]) == 2
    error = capsys.readouterr().err
    assert "do:    `groupdetr presets` lists all" in error
    assert not [name for name in EXPERIMENTS if name in error]


def test_the_table_that_is_read_without_torch_is_that_of_the_models() -> None:
    remedy = (
        "write it anew: python -c 'from groupdetr.workflows.presets import write_preset_table; "
        "write_preset_table()'"
    )
    table = table_of(library_experiments())
    assert FILE.read_text(encoding="utf-8") == table.to_text(), remedy
    assert read_preset_table() == table
