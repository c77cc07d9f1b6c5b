"""The macros of the site: a page that shows an executed notebook, and the page of the changelog.

A page with a notebook consists of ``{{ notebook("examples/name.ipynb") }}`` and, above it,
``render_macros: true`` between two lines of ``---``. Nothing is executed when the site is built.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/groupdetr/groupdetr/blob/main/"
RELATIVE_LINK = re.compile(r"\]\((?!https?:|#)([^)\s]+)\)")
HTML_LINK = re.compile(r"<a\b[^>]*>(.*?)</a>", re.DOTALL)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of text for a terminal


def define_env(env: Any) -> None:
    """Zensical calls this before it renders the pages, to find the macros."""
    env.macro(notebook)
    env.macro(changelog)


def changelog() -> str:
    """Return CHANGELOG.md with the links of the site."""
    return with_links_of_site((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def with_links_of_site(text: str, folder: str = "") -> str:
    """Return text of a file in ``folder`` with links to pages of the site and to files on GitHub.

    The file becomes a page in the folder of the same name in ``docs``: ``examples/a.ipynb`` becomes
    ``docs/examples/a.md``.
    """

    def link_of_site(match: re.Match[str]) -> str:
        path, _, anchor = match[1].partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        anchor = anchor and f"#{anchor}"
        if path.endswith(".ipynb"):
            page = str(PurePosixPath(path).with_suffix(".md"))
        elif path.startswith("docs/"):
            page = path.removeprefix("docs/")
        else:
            return f"]({REPOSITORY}{path}{anchor})"
        return f"]({posixpath.relpath(page, folder or '.')}{anchor})"

    return RELATIVE_LINK.sub(link_of_site, text)


def notebook(path: str) -> str:
    """Return a notebook, whose first cell begins with the title, as Markdown."""
    cells = json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]
    folder = posixpath.dirname(path)
    blocks = []
    for cell in cells:
        block = cell_as_markdown(cell)
        if cell["cell_type"] == "markdown":
            block = with_links_of_site(block, folder)
        blocks.append(block)
    title, _, rest = "\n\n".join(blocks).partition("\n")
    return f"{title}\n\nThis page is the notebook [{path}]({REPOSITORY}{path}).\n{rest}"


def cell_as_markdown(cell: dict[str, Any]) -> str:
    """Return a cell of a notebook as Markdown. ``ValueError`` for code that was not executed."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    if cell["cell_type"] != "code" or not source.strip():
        return ""
    if cell["execution_count"] is None:
        raise ValueError(f"the notebook has a cell without outputs, so execute it: {source}")
    blocks = [fence(source, "python")]
    for output in cell["outputs"]:
        blocks.append(output_as_markdown(output))
    return "\n\n".join(blocks)


def output_as_markdown(output: dict[str, Any]) -> str:
    """Return one output of a cell: an image if there is one, otherwise HTML or text.

    ``ValueError`` for an error, which a notebook of the site must not have.
    """
    if output["output_type"] == "error":
        raise ValueError(f"the notebook has an error: {output['ename']}: {output['evalue']}")
    if output["output_type"] == "stream":
        return fence(plain(output["text"]), "text")
    data = output["data"]
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            content = "".join(data[kind]).replace("\n", "")
            return f'<p><img alt="output" src="data:{kind};base64,{content}"></p>'
    if "text/html" in data:
        # Its links lead to files that the notebook wrote, and that the site does not have.
        html = HTML_LINK.sub(r"\1", "".join(data["text/html"]))
        # The theme lets only code scroll that is wider than the page.
        return html.replace("<pre>", "<pre><code>").replace("</pre>", "</code></pre>")
    return fence(plain(data["text/plain"]), "text")


def plain(text: str | list[str]) -> str:
    """Return text of an output, which may be a list of lines, without the colours of a terminal.

    Of a line that a progress bar overwrites, the last version remains.
    """
    lines = COLOURS.sub("", "".join(text)).split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def fence(text: str, language: str) -> str:
    """Return text as a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"
