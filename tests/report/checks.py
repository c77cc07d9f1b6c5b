"""What every page must be: balanced, and in need of nothing from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input"}
ADDRESSES = {"src", "srcset", "href", "xlink:href", "action", "poster"}
ALLOWED_LINKS = {"https://arxiv.org/abs/2207.13085"}


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[tuple[str, str]] = []  # (tag, address)
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs), f"a script hides in {attrs}"
        self.addresses += [
            (tag, value or "")
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "action")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(html: str) -> _Parser:
    """Reads a page or a part of it, and fails unless all tags are balanced."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert not parser.open, f"never closed: {parser.open}"
    return parser


def assert_self_contained(html: str) -> None:
    parser = parsed(html)
    for tag, address in parser.addresses:
        assert address.startswith("data:") or (tag == "a" and address in ALLOWED_LINKS), (
            f"{tag} loads {address[:80]}"
        )
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(parser.tags)
    style = "".join(re.findall(r"<style>.*?</style>", html, re.DOTALL))
    assert "@import" not in style
    assert "url(" not in style


def numbers_in_svg(html: str) -> list[float]:
    """Every coordinate that a chart draws; fails on nan and inf, which SVG does not know."""
    drawn = re.findall(r'(?:points|x|y|x1|x2|y1|y2|cx|cy|d)="([^"]*)"', html)
    return [float(number) for value in drawn for number in re.split(r"[ ,]+", value) if number]
