"""Every command and every line of Python in the README works, typed in the order in which it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from groupdetr.data.synthetic import SyntheticConfig, draw, write
from tests.runs import environment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORTER = {  # what would take minutes takes seconds here; all else is typed as it stands
    "groupdetr demo": "groupdetr demo --epochs 0.1",
    "--minutes 10": "--minutes 0.2",
    "pytest": "pytest --collect-only -q tests/ops",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def typed() -> list[str]:
    """The commands, without installation, which whoever runs this test has done."""
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    commands = [part.strip() for line in lines for part in line.split("&&")]
    return [command for command in commands if command and not command.startswith("pip install")]


@pytest.mark.slow
@pytest.mark.fair_sample
def test_the_readme_does_what_it_says(tmp_path: Path) -> None:
    config = SyntheticConfig(image_size=64, num_classes=3)
    write(config, tmp_path / "data/mine", {"train": 16, "val": 4})
    from PIL import Image

    Image.fromarray(draw(config, "other", 0).image).save(tmp_path / "photo.jpg")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for command in typed():
        for long, short in SHORTER.items():
            command = (
                command.replace(long, short)
                if re.search(rf"{re.escape(long)}\b", command)
                else command
            )
        run(["-m", *shlex.split(command)], tmp_path, command)
    for block in blocks("python"):
        run(["-c", block], tmp_path, block)
    assert (tmp_path / "runs/demo/report.html").is_file()
    assert (tmp_path / "runs/mine/predict/photo.jpg").is_file()


def run(arguments: list[str], folder: Path, what: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{what}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_two_commands_that_set_everything_up_stand_at_the_top() -> None:
    first = [block.strip() for block in blocks("bash")[:2]]
    assert first == ["pip install -e . && groupdetr demo", "pip install -e '.[dev]' && pytest"]
    assert README.index(first[1]) < 300


def test_every_file_that_the_documentation_links_to_exists() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
