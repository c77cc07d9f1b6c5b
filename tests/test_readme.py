"""Every command and every Python example of the README works, in the order of the page."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from groupdetr.data.synthetic import SyntheticConfig, generate_image, write
from tests.runs import environment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# Commands that would take minutes are shortened. All others are run as they are written. The demo
# runs in tests/test_wheel.py.
SHORTENED = {
    "groupdetr demo": "groupdetr demo --help",
    "--minutes 10": "--minutes 0.2",
    "minutes=10": "minutes=0.1",
    "pytest": "pytest --collect-only -q tests/ops",
}


def code_blocks(language: str) -> list[str]:
    """Return the contents of the README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def shell_commands() -> list[str]:
    """Return all commands without those of installation, which a test does not repeat."""
    commands = []
    for block in code_blocks("bash"):
        for line in block.splitlines():
            line = line.split("#")[0]
            commands += [command.strip() for command in line.split("&&")]
    return [command for command in commands if command and not command.startswith("pip install")]


def shorten(command: str) -> str:
    """Return a command or code that takes seconds in place of one that takes minutes."""
    for part, replacement in SHORTENED.items():
        if re.search(rf"{re.escape(part)}\b", command):
            command = command.replace(part, replacement)
    return command


@pytest.mark.slow
@pytest.mark.fair_sample
def test_all_commands_and_python_examples_of_the_readme_work(tmp_path: Path) -> None:
    config = SyntheticConfig(image_size=64, num_classes=3)
    write(config, tmp_path / "data/mine", {"train": 16, "val": 4})
    Image.fromarray(generate_image(config, "other", 0).image).save(tmp_path / "photo.jpg")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for command in shell_commands():
        command = shorten(command)
        run_python(["-m", *shlex.split(command)], tmp_path, command)
    for block in code_blocks("python"):
        run_python(["-c", shorten(block)], tmp_path, block)
    assert (tmp_path / "runs/mine/predict/photo.jpg").is_file()


def run_python(arguments: list[str], folder: Path, source: str) -> None:
    """Run Python in a folder. If it fails, the message has ``source`` and the output."""
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    output = f"{process.stdout[-2000:]}\n{process.stderr[-2000:]}"
    assert process.returncode == 0, f"{source}\n{output}"


def test_the_readme_begins_with_the_two_commands_that_set_everything_up() -> None:
    first_blocks = [block.strip() for block in code_blocks("bash")[:2]]
    assert first_blocks == [
        "pip install -e . && groupdetr demo",
        "pip install -e '.[dev]' && pytest",
    ]
    assert README.index(first_blocks[1]) < 300


def test_every_file_that_the_documentation_links_to_exists() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
