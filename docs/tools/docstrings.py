"""Extension of griffe, which reads the library for the reference: docstrings become Markdown.

Docstrings are written to be read in an editor. On the site,

- examples, lines that begin with ``>>>``, become blocks of Python code;
- tables, which are drawn with lines of ``=``, become tables;
- names of the public interface in backticks link to their entries;
- characters that Markdown would interpret, as in ``B*K``, stay as they are;
- the comment beside or above a field of a class becomes the docstring of the field;
- a field without a comment has that of the field of a base class.
"""

from __future__ import annotations

import re
import tokenize
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import griffe

CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
RULER = re.compile(r"=+( +=+)+")  # the first, the second and the last line of a table


class PlainDocstrings(griffe.Extension):
    """Replaces every docstring of a package by Markdown."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Griffe calls this when it has read all modules of a package."""
        public_names = {str(name) for name in pkg.exports or ()}
        for module in modules(pkg):
            add_field_comments(module)
        for item in objects(pkg):
            # Whether a class or its instances have a field says nothing to a reader.
            item.labels -= {"class-attribute", "instance-attribute"}
            if item.docstring is not None:
                item.docstring.value = to_markdown(item.docstring.value, public_names, pkg.name)
        # Last, because what is inherited is Markdown already.
        for item in objects(pkg):
            if item.is_class:
                inherit_field_comments(item)


def objects(item: griffe.Object) -> Iterator[griffe.Object]:
    """Yield an object and everything that is defined in it. Imported names are left out."""
    yield item
    for member in item.members.values():
        if not member.is_alias:
            yield from objects(member)


def modules(pkg: griffe.Module) -> Iterator[griffe.Module]:
    """Yield a package and all modules in it."""
    for item in objects(pkg):
        if item.is_module:
            yield item


def own_fields(item: griffe.Class) -> Iterator[griffe.Attribute]:
    """Yield the fields of a class that have no docstring."""
    for member in item.members.values():
        if not member.is_alias and member.is_attribute and member.docstring is None:
            yield member


def add_field_comments(module: griffe.Module) -> None:
    """Give the fields of all classes of a module their comments as docstrings."""
    comments = read_comments(module.filepath)
    for item in module.members.values():
        if item.is_alias or not item.is_class:
            continue
        for field in own_fields(item):
            text = field_comment(comments, field.lineno, field.endlineno)
            if text:
                field.docstring = griffe.Docstring(text, parent=field)


def inherit_field_comments(item: griffe.Class) -> None:
    """Give the fields of a class that have no docstring that of a base class, if there is one."""
    for field in own_fields(item):
        for base in item.mro():
            inherited = base.members.get(field.name)
            if inherited is not None and inherited.docstring is not None:
                field.docstring = griffe.Docstring(inherited.docstring.value, parent=field)
                break


def read_comments(path: Path) -> dict[int, str]:
    """Return the comments of a file by line. Those that have a line of their own begin with ``#``.

    A comment beside code is returned without the ``#``.
    """
    comments = {}
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                beside_code = bool(token.line[: token.start[1]].strip())
                text = token.string.lstrip("#").strip()
                comments[token.start[0]] = text if beside_code else f"#{text}"
    return comments


def field_comment(comments: dict[int, str], first: int, last: int) -> str:
    """Return the comments above and beside the code in the lines from ``first`` to ``last``."""
    above: list[str] = []
    line = first - 1
    while comments.get(line, "").startswith("#"):
        above.insert(0, comments[line][1:])
        line -= 1
    beside = comments.get(last, "")
    return " ".join([*above, beside]).strip()


def to_markdown(docstring: str, public_names: Collection[str] = (), package: str = "") -> str:
    """Return a docstring as Markdown. ``public_names`` of the ``package`` become links."""
    blocks = []
    for block in re.split(r"\n\s*\n", docstring):
        lines = block.split("\n")
        if RULER.fullmatch(lines[0]):
            blocks.append(table(lines, public_names, package))
            continue
        # An example may follow its sentence without an empty line.
        starts = [number for number, line in enumerate(lines) if line.startswith(">>>")]
        start = starts[0] if starts else len(lines)
        if start:
            blocks.append(prose("\n".join(lines[:start]), public_names, package))
        if start < len(lines):
            blocks.append(example(lines[start:]))
    return "\n\n".join(blocks)


def example(lines: list[str]) -> str:
    """Return an example as a block of code, without prompts if it shows no output."""
    code = all(line.startswith((">>> ", "... ")) or line == "..." for line in lines)
    if code:
        return "\n".join(["```python", *(line[4:] for line in lines), "```"])
    return "\n".join(["```pycon", *lines, "```"])


def table(lines: list[str], public_names: Collection[str], package: str) -> str:
    """Return a table as Markdown. A row whose first cell is empty continues the row before it."""
    columns = [match.span() for match in re.finditer("=+", lines[0])]
    # The text of the last column may be longer than its ruler.
    columns[-1] = (columns[-1][0], None)
    rows: list[list[str]] = []
    for line in lines:
        if RULER.fullmatch(line):
            continue
        cells = [line[start:end].strip() for start, end in columns]
        if rows and not cells[0]:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells)]
        else:
            rows.append(cells)
    rows.insert(1, ["---"] * len(columns))
    formatted = []
    for row in rows:
        cells = [prose(cell, public_names, package) for cell in row]
        formatted.append(f"| {' | '.join(cells)} |")
    return "\n".join(formatted)


def prose(text: str, public_names: Collection[str], package: str) -> str:
    """Return text in which Markdown interprets nothing but backticks and lists."""
    parts = []
    end = 0
    for match in CODE.finditer(text):
        parts += [escape(text[end : match.start()]), link(match, public_names, package)]
        end = match.end()
    parts.append(escape(text[end:]))
    # Markdown wants an empty line before a list.
    return re.sub(r"(?<=\S)\n(?=- )", "\n\n", "".join(parts), count=1)


def escape(text: str) -> str:
    """Return text without the characters that Markdown would take for emphasis or HTML."""
    return text.replace("<", "&lt;").replace("*", r"\*").replace("__", r"\_\_")


def link(code: re.Match[str], public_names: Collection[str], package: str) -> str:
    """Return code in backticks, with a link if it is a public name.

    A name that is also a word, such as ``train``, is linked if it has the name of the package.
    """
    name = code[2].removeprefix(f"{package}.")
    is_word = name.islower() and "_" not in name
    if name in public_names and (not is_word or name != code[2]):
        return f"[{code[0]}][{package}.{name}]"
    return code[0]
