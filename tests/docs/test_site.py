"""The site of the documentation builds without network and without warnings, and its links work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import groupdetr

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.fair_sample,
    pytest.mark.skipif(
        find_spec("zensical") is None or find_spec("mkdocstrings_handlers") is None,
        reason="the site is built with the extra docs: pip install -e '.[docs]'",
    ),
]


@dataclass
class Page(HTMLParser):
    """What a page of the site refers to."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)  # of <a>
    resources: list[str] = field(default_factory=list)  # images, scripts, styles, icons, frames

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.ids.update(attributes.get(name, "") for name in ("id", "name"))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif tag == "link" and attributes.get("rel") not in ("canonical", "next", "prev"):
            self.resources.append(attributes["href"])
        elif "src" in attributes:
            self.resources.append(attributes["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without network from a copy of what it consists of."""
    project = tmp_path_factory.mktemp("project")
    for folder in ("docs", "groupdetr", "examples"):
        if (ROOT / folder).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, project / folder, ignore=ignored)
    for file in ("zensical.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / file, project)
    build = subprocess.run(
        [*without_network(), sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=project,
        env={**os.environ, "NO_COLOR": "1", "PATH": f"{Path(sys.executable).parent}:{os.defpath}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    assert "No issues found" in build.stdout + build.stderr
    assert "warning" not in (build.stdout + build.stderr).lower()
    return project / "site"


def without_network() -> list[str]:
    """Return the command that runs another one without network, where the system allows it."""
    command = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None:
        return []
    allowed = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if allowed.returncode == 0 else []


def read(path: Path) -> Page:
    """Return what a page of the site refers to."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """All pages of the site by their paths, but for the one that is shown for wrong addresses.

    It is shown at any address, so its links are those of the server.
    """
    paths = [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]
    return {path.resolve(): read(path) for path in paths}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for resource in page.resources:
            parts = urlsplit(resource)
            assert parts.scheme in ("", "data"), f"{path.name} loads {resource}"
            if not parts.scheme:
                assert (path.parent / unquote(parts.path)).is_file(), resource
    for style in site.rglob("*.css"):
        content = style.read_text(encoding="utf-8")
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", content), style


def test_all_links_and_anchors_resolve(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].ids if target in pages else set()
            if not target.is_file() or parts.fragment not in {*anchors, ""}:
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_every_public_name_has_an_entry(site: Path) -> None:
    entries: set[str] = set()
    for path in (site / "reference").glob("*.html"):
        entries |= read(path).ids
    modules = groupdetr._MODULES
    for name in groupdetr.__all__:
        if name != "__version__":
            assert {f"groupdetr.{name}", f"groupdetr.{modules[name]}.{name}"} & entries, name


def test_the_fields_of_a_dataclass_have_their_comments(site: Path) -> None:
    page = (site / "reference/structures.html").read_text(encoding="utf-8")
    assert "[B,3,H,W] float, normalised by the ImageNet mean and standard deviation" in page


def test_no_reference_and_no_macro_is_left_unresolved(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "][groupdetr." not in text, path.name
        assert "<autoref" not in text, path.name
        assert "Macro Rendering Error" not in text, path.name
        assert "<p>&gt;&gt;&gt;" not in text, f"{path.name} has an example that is not code"
