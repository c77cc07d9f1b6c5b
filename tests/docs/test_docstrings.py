"""The extension that turns the docstrings and comments of the library into Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("griffe", reason="the reference is built with the extra docs")

import griffe

from docs.tools.docstrings import PlainDocstrings, to_markdown


def load(folder: Path, source: str) -> griffe.Module:
    """Return a package with this source, as the reference shows it."""
    (folder / "shop").mkdir()
    (folder / "shop/__init__.py").write_text(source)
    extensions = griffe.load_extensions(PlainDocstrings)
    package = griffe.load("shop", search_paths=[folder], extensions=extensions)
    assert isinstance(package, griffe.Module)
    return package


def field_docstrings(item: griffe.Object) -> dict[str, str]:
    """Return the docstrings of the members of a class by their names."""
    members = item.members.items()
    return {name: member.docstring.value for name, member in members if member.docstring}


def test_an_example_without_output_is_code_that_can_be_copied() -> None:
    docstring = "Add.\n\n>>> for x in (1, 2):\n...     y = x\n\nThe end."
    assert to_markdown(docstring) == (
        "Add.\n\n```python\nfor x in (1, 2):\n    y = x\n```\n\nThe end."
    )


def test_an_example_with_output_keeps_its_prompts() -> None:
    assert to_markdown("So:\n>>> 1 + 1\n2") == "So:\n\n```pycon\n>>> 1 + 1\n2\n```"


def test_text_is_shown_as_it_is_written() -> None:
    docstring = "Flat queries [B,K*N,C], K*N < 9, and `__init__` but not __new__ of ``a*b``."
    assert to_markdown(docstring) == (
        r"Flat queries [B,K\*N,C], K\*N &lt; 9, and `__init__` but not \_\_new\_\_ of ``a*b``."
    )


def test_a_list_is_a_list() -> None:
    assert to_markdown("Both:\n- one\n- two") == "Both:\n\n- one\n- two"


def test_a_table_is_a_table() -> None:
    docstring = """\
======  ==================
paper   here
======  ==================
Q_k     axis 1
SA      self-attention,
        within groups
======  =================="""
    assert to_markdown(docstring).split("\n") == [
        "| paper | here |",
        "| --- | --- |",
        "| Q_k | axis 1 |",
        "| SA | self-attention, within groups |",
    ]


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("See `Basket`.", "See [`Basket`][shop.Basket]."),
        ("See ``shop.Basket``.", "See [``shop.Basket``][shop.Basket]."),
        ("See `pack_all`.", "See [`pack_all`][shop.pack_all]."),
        ("See `shop.pay`.", "See [`shop.pay`][shop.pay]."),
        ("The option ``pay``.", "The option ``pay``."),
        ("See `Bag`.", "See `Bag`."),
    ],
)
def test_public_names_become_links_unless_they_are_words(text: str, markdown: str) -> None:
    assert to_markdown(text, ["Basket", "pack_all", "pay"], "shop") == markdown


def test_comments_beside_and_above_fields_become_their_docstrings(tmp_path: Path) -> None:
    package = load(
        tmp_path,
        '''
class Basket:
    """A basket."""

    size: int = 3  # litres

    # of all fruits,
    # in grams
    weight: float
    # the first
    apples: int = 1  # fresh
    price: float
    """In euros."""
    colour: str = "#ff0000"
''',
    )
    assert field_docstrings(package["Basket"]) == {
        "size": "litres",
        "weight": "of all fruits, in grams",
        "apples": "the first fresh",
        "price": "In euros.",
    }


def test_a_field_without_a_comment_has_that_of_its_base_class(tmp_path: Path) -> None:
    package = load(
        tmp_path,
        """
class Bag:
    size: int = 3  # litres of A*B
    colour: str = "red"  # of the outside


class Basket(Bag):
    size: int = 5
    colour: str = "blue"  # of the handle
""",
    )
    assert field_docstrings(package["Basket"]) == {
        "size": r"litres of A\*B",
        "colour": "of the handle",
    }
