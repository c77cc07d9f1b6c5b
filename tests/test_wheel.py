"""The package that users install: its files, its description, and that it works on its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from groupdetr.version import __version__
from tests.runs import environment

pytestmark = [pytest.mark.slow, pytest.mark.fair_sample]

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The wheel."""
    return dist / f"groupdetr-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """What a package index reads and shows of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        file = archive.read(f"groupdetr-{__version__}.dist-info/METADATA")
    return Parser().parsestr(file.decode())


def test_the_wheel_has_all_modules_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("groupdetr/**/*.py")}
    page = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("groupdetr/web/page/*.*")}
    tables = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("groupdetr/files/*.json")}
    assert names == {*modules, *page, *tables, "groupdetr/py.typed"}


def test_the_source_distribution_has_everything_that_the_tests_read(dist: Path) -> None:
    with tarfile.open(dist / f"groupdetr-{__version__}.tar.gz") as archive:
        prefix = f"groupdetr-{__version__}/"
        names = {name.removeprefix(prefix) for name in archive.getnames()}
    files = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "SECURITY.md", ".ci/run"}
    for folder, pattern in [
        ("tests", "**/*.py"),
        ("docs", "**/*.*"),
        ("benchmarks", "*.*"),
        ("examples", "**/*.*"),
        (".github", "**/*.*"),
    ]:
        paths = [path for path in (ROOT / folder).glob(pattern) if path.is_file()]
        paths = [path for path in paths if "__pycache__" not in path.parts]
        files |= {path.relative_to(ROOT).as_posix() for path in paths}
    assert files <= names, files - names


def test_the_metadata_have_the_version_and_the_addresses_of_the_project(metadata: Message) -> None:
    assert metadata["Version"] == __version__
    addresses = [value.split(", ") for value in metadata.get_all("Project-URL", [])]
    assert {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} == {
        name for name, _ in addresses
    }
    assert all(address.startswith("https://") for _, address in addresses)


def test_links_and_images_of_the_description_work_outside_the_repository(
    metadata: Message,
) -> None:
    """On a package index there are no other files. Links are to files of this version's tag."""
    description = metadata.get_payload()
    assert isinstance(description, str)
    targets = re.findall(r"\]\(([^)\s]+)", description)
    targets += re.findall(r"(?:src|href)=[\"']([^\"']+)", description)
    targets += re.findall(r"^\[[^\]]+\]: *(\S+)", description, re.MULTILINE)
    relative = [target for target in targets if not target.startswith(("https://", "#"))]
    assert not relative
    ours = [target for target in targets if f"/groupdetr/groupdetr/v{__version__}/" in target]
    ours += [target for target in targets if f"/groupdetr/blob/v{__version__}/" in target]
    assert len(ours) > 10
    for target in ours:
        path = target.split(f"/v{__version__}/")[1].split("#")[0]
        assert (ROOT / path).is_file(), target
        is_image = path.endswith((".png", ".jpg", ".svg"))
        assert target.startswith("https://raw.githubusercontent.com/") == is_image


def test_tests_run_from_the_source_distribution(dist: Path, tmp_path: Path) -> None:
    """They need no git folder, and they test the code beside them."""
    with tarfile.open(dist / f"groupdetr-{__version__}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / f"groupdetr-{__version__}"
    program = "import groupdetr; print(groupdetr.__file__)"
    assert Path(run([sys.executable, "-c", program], folder).strip()).is_relative_to(folder)
    tests = ["tests/ops", "tests/structures", "tests/test_structure.py", "tests/test_hosting.py"]
    output = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], folder)
    assert " passed" in output


def test_the_wheel_runs_the_demo_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """The demo runs in an environment and a folder that know nothing of this repository.

    The environment takes the dependencies from that of the tests, because installing them again
    would download gigabytes.
    """
    fresh = tmp_path / "environment"
    venv.create(fresh, with_pip=True)
    scripts = fresh / ("Scripts" if sys.platform == "win32" else "bin")
    python = str(scripts / "python")
    run([python, "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)], tmp_path)
    # A line of a .pth file adds a folder to the path, but not what .pth files in that folder add,
    # such as the repository itself.
    site_packages = Path(pytest.__file__).parents[1]
    own_packages = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    (Path(own_packages.strip()) / "dependencies.pth").write_text(
        str(site_packages), encoding="utf-8"
    )

    program = "import groupdetr, torch; print(groupdetr.__file__)"
    imported = Path(run([python, "-c", program], tmp_path).strip())
    assert imported.is_relative_to(fresh)
    arguments = ["demo", "--epochs", "0.2", "--groups", "2", "--out", "demo"]
    output = run([str(scripts / "groupdetr"), *arguments], tmp_path)
    assert (tmp_path / "demo/report.html").is_file(), output


def run(command: list[str], folder: Path | None = None) -> str:
    """Run a command to its successful end, without this repository on the path of imports."""
    variables = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    process = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    output = f"{process.stdout[-3000:]}\n{process.stderr[-3000:]}"
    assert process.returncode == 0, output
    return process.stdout
