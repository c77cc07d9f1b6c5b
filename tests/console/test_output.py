"""The console prints every text as it is, whatever rich makes of it, in every encoding."""

from __future__ import annotations

import ast
import io

import pytest

from groupdetr.console.output import EscapingStream, PlainConsole, create_console
from tests.test_structure import TREES

ODD_NAMES = ["[other]", "screw [/M8]", "[bold]", ":car:", "[link=x]y[/link]", r"\[a]", "[/]"]


def printed(text: str) -> str:
    output = io.StringIO()
    PlainConsole(file=output).print(text)
    return output.getvalue()


def test_markup_and_emoji_have_no_meaning_and_long_lines_are_neither_broken_nor_cut() -> None:
    for name in (*ODD_NAMES, "a" * 500):
        assert printed(f"class {name} of 3") == f"class {name} of 3\n"


def test_a_table_has_every_cell_in_full_and_one_line_for_a_row() -> None:
    for name in (*ODD_NAMES, "x" * 200, "汽车" * 60, "two\nlines", "\x1b[2J"):
        output = io.StringIO()
        rows = [{"class": name, "AP": "43.2"}, {"class": "b", "AP": "-"}]
        PlainConsole(file=output).print_table(rows)
        header, row, last = output.getvalue().splitlines()
        cell = name.replace("\n", r"\n").replace("\x1b", r"\x1b")
        assert row.startswith(cell)
        assert row.removeprefix(cell).strip() == "43.2"
        assert header.split() == ["class", "AP"]
        assert last.split() == ["b", "-"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_in_any_encoding_is_written(encoding: str) -> None:
    raw = io.BytesIO()
    output = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    console = PlainConsole(file=output)
    console.print("汽车 █ \udcff")
    console.print_table([{"class": "汽车", "AP": "1"}])
    output.flush()
    assert rb"\u6c7d\u8f66 # \udcff" in raw.getvalue()


def test_a_description_of_a_bar_is_text() -> None:
    """Otherwise a bar could not be drawn for a model whose name has brackets."""
    for module in ("console.progress", "engine.progress", "paper.parallel_runs"):
        for call in ast.walk(TREES[f"groupdetr.{module}"]):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "TextColumn":
                text = ast.unparse(call)
                assert "markup=False" in text or "percentage" in text, text


def test_only_the_console_prints() -> None:
    """A print or a console of rich somewhere else would print names in a way of its own."""
    allowed = {
        "groupdetr.console.output",
        "groupdetr.cli.main",  # errors and help, which it escapes
        "groupdetr.cli.json_output",  # JSON is ASCII
        "groupdetr.cli.completion",
        "groupdetr.visualize.display",  # asks if this is a notebook
    }
    others = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            names = {ast.unparse(node.func)} if isinstance(node, ast.Call) else set()
            if names & {"print", "Console"} and module not in allowed:
                others.append(f"{module}:{node.lineno} {ast.unparse(node)[:60]}")
    assert not others, "\n".join(others)


def test_arguments_in_the_messages_of_libraries_are_escaped_and_colours_are_kept() -> None:
    output = io.StringIO()
    EscapingStream(output).write("\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J\n")
    assert output.getvalue() == "\x1b[31mred\x1b[0m \\x1b]0;title\\x07 \\x1b[2J\n"


def test_a_command_of_a_notebook_has_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert not create_console().is_terminal
