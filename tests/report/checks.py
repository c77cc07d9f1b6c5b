"""Checks of every page: its tags are balanced, and it loads nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID_TAGS = {"meta", "link", "img", "br", "hr", "input"}
ADDRESS_ATTRIBUTES = {"src", "href", "xlink:href", "action"}
FORBIDDEN_TAGS = {"script", "iframe", "object", "embed", "base", "form"}
ALLOWED_LINKS = {"https://arxiv.org/abs/2207.13085"}


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[tuple[str, str]] = []  # (tag, address)
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{attrs} contain a script"
            if name in ADDRESS_ATTRIBUTES:
                self.addresses.append((tag, value or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags, f"</{tag}> closes no tag"
        assert self.open_tags.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parse(html: str) -> _Parser:
    """Parse a page or a part of it, and fail unless all tags are balanced."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert not parser.open_tags, f"never closed: {parser.open_tags}"
    return parser


def assert_self_contained(html: str) -> None:
    """Fail if the page loads something or runs a script."""
    parser = parse(html)
    for tag, address in parser.addresses:
        is_allowed_link = tag == "a" and address in ALLOWED_LINKS
        assert address.startswith("data:") or is_allowed_link, f"{tag} loads {address[:80]}"
    assert not FORBIDDEN_TAGS & set(parser.tags)
    style = "".join(re.findall(r"<style>.*?</style>", html, re.DOTALL))
    assert "@import" not in style
    assert "url(" not in style


def numbers_in_svg(html: str) -> list[float]:
    """Return all coordinates in the SVG charts of a page."""
    values = re.findall(r'(?:points|x|y|x1|x2|y1|y2|cx|cy|d)="([^"]*)"', html)
    return [float(number) for value in values for number in re.split(r"[ ,]+", value) if number]
