"""The macros of the site: an executed notebook with its outputs as a page, and the changelog."""

from __future__ import annotations

from typing import Any

import pytest

from docs.tools.macros import ROOT, cell_as_markdown, with_links_of_site


def code_cell(*outputs: dict[str, Any], execution_count: int | None = 1) -> dict[str, Any]:
    """Return a cell with code as a notebook stores it."""
    return {
        "cell_type": "code",
        "source": ["x = 1\n", "print(x)"],
        "execution_count": execution_count,
        "outputs": list(outputs),
    }


def test_text_stays_as_it_is() -> None:
    assert cell_as_markdown({"cell_type": "markdown", "source": ["# A\n", "b"]}) == "# A\nb"


def test_code_is_followed_by_its_outputs() -> None:
    printed = {"output_type": "stream", "name": "stdout", "text": ["1\n"]}
    result = {"output_type": "execute_result", "data": {"text/plain": ["2"]}}
    assert cell_as_markdown(code_cell(printed, result)) == (
        "```python\nx = 1\nprint(x)\n```\n\n```text\n1\n```\n\n```text\n2\n```"
    )
    # Of the progress and the colours of a terminal, only the last text is left.
    progress = {"output_type": "stream", "name": "stderr", "text": "\x1b[31m 10%\r100%\x1b[0m\n"}
    assert cell_as_markdown(code_cell(progress)).endswith("```text\n100%\n```")


def test_outputs_of_html_and_images_are_parts_of_the_page() -> None:
    def shown(**data: object) -> str:
        """The page of a result in several formats, whose names have _ for /."""
        formats = {name.replace("_", "/"): value for name, value in data.items()}
        return cell_as_markdown(code_cell({"output_type": "display_data", "data": formats}))

    # A table stays, without its links to files of the notebook.
    html = ['<table><tr><td>2</td></tr></table>\n<p><a href="run/a.html">run/a.html</a></p>']
    assert shown(text_plain=["2"], text_html=html).endswith(
        "\n<table><tr><td>2</td></tr></table>\n<p>run/a.html</p>"
    )
    # Preformatted text scrolls as code.
    assert shown(text_html=["<pre>a\n", "b</pre>"]).endswith("<pre><code>a\nb</code></pre>")
    assert 'src="data:image/png;base64,AABB"' in shown(image_png="AA\nBB", text_plain=["<I>"])


def test_code_that_was_not_executed_is_an_error() -> None:
    with pytest.raises(ValueError, match="so execute it: x = 1"):
        cell_as_markdown(code_cell(execution_count=None))


def test_an_error_in_a_notebook_is_an_error_of_the_site() -> None:
    failed = {"output_type": "error", "ename": "KeyError", "evalue": "'a'", "traceback": []}
    with pytest.raises(ValueError, match="KeyError: 'a'"):
        cell_as_markdown(code_cell(failed))


def test_links_of_the_changelog_and_of_notebooks_lead_to_pages_and_to_files() -> None:
    text = "See [a](docs/a.md#b), [c](groupdetr/c.py), [d](https://d.org)."
    assert with_links_of_site(text) == (
        "See [a](a.md#b), "
        "[c](https://github.com/groupdetr/groupdetr/blob/main/groupdetr/c.py), [d](https://d.org)."
    )
    text = "See [a](../docs/a.md#b), [c](c.ipynb), [d](../groupdetr/d.py), [e](#e)."
    assert with_links_of_site(text, "examples") == (
        "See [a](../a.md#b), [c](c.md), "
        "[d](https://github.com/groupdetr/groupdetr/blob/main/groupdetr/d.py), [e](#e)."
    )


def test_every_notebook_is_a_page() -> None:
    for path in (ROOT / "examples").glob("*.ipynb"):
        page = (ROOT / "docs/examples" / path.name).with_suffix(".md")
        assert f'{{{{ notebook("examples/{path.name}") }}}}' in page.read_text(encoding="utf-8")
