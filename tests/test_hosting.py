"""The files that describe the project to GitHub, to contributors and to who cites it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from groupdetr.version import __version__
from tests.test_remedies import OPTION, options_of

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = [ROOT / f".github/ISSUE_TEMPLATE/{name}.yml" for name in ("bug", "feature")]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(workflow: Path) -> list[str]:
    """Return the commands of all steps of a workflow."""
    jobs = read_yaml(workflow)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_github_runs_every_check_of_the_local_ci() -> None:
    local = {
        line
        for line in read(".ci/run").splitlines()
        if re.match(r"(groupdetr|ruff|mypy|pytest|zensical)\b", line)
    }
    assert len(local) >= 5
    hosted = {
        line for run in commands(ROOT / ".github/workflows/ci.yml") for line in run.split("\n")
    }
    missing = {line for line in local if not any(run.startswith(line) for run in hosted)}
    assert not missing


def test_tests_and_the_wheel_run_on_three_systems_and_two_versions_of_python() -> None:
    jobs = read_yaml(ROOT / ".github/workflows/ci.yml")["jobs"]
    for job in (jobs["tests"], jobs["wheel-runs"]):
        rows = {(row["system"], row["python"]) for row in job["strategy"]["matrix"]["include"]}
        assert rows == {
            ("ubuntu-latest", "3.11"),
            ("ubuntu-latest", "3.13"),
            ("macos-latest", "3.13"),
            ("windows-latest", "3.13"),
        }
    assert "groupdetr demo --epochs 1 --out demo" in commands(ROOT / ".github/workflows/ci.yml")


def test_every_dependency_has_a_lowest_version_that_github_tests() -> None:
    content = tomllib.loads(read("pyproject.toml"))
    project = content["project"]
    extras = project["optional-dependencies"]
    lists = [content["build-system"]["requires"], project["dependencies"], *extras.values()]
    lowest: dict[str, set[str]] = {}
    for requirement in (requirement for dependencies in lists for requirement in dependencies):
        match = re.fullmatch(r"([\w-]+)>=([\w.]+)(,<[\w.]+)?", requirement)
        assert match, f"{requirement} has no lowest version"
        lowest.setdefault(match[1], set()).add(match[2])
    different = {name: versions for name, versions in lowest.items() if len(versions) > 1}
    assert not different, "one package has one lowest version"
    assert ".ci/lowest" in commands(ROOT / ".github/workflows/ci.yml")
    assert "--resolution lowest-direct" in read(".ci/lowest")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_of_workflows_have_limits_and_need_jobs_that_exist(workflow: Path) -> None:
    content = read_yaml(workflow)
    # A workflow may only read, unless one of its jobs says otherwise.
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 90
        if "needs" in job:
            assert job["needs"] in content["jobs"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            if "uses" in step:
                assert re.fullmatch(r"[\w.-]+/[\w./-]+@(v\d+|release/v\d+)", step["uses"])


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_what_github_requires(form: Path) -> None:
    content = read_yaml(form)
    assert content["name"]
    assert content["description"]
    ids = [item["id"] for item in content["body"] if item["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    for item in content["body"]:
        assert item["type"] in ("textarea", "input", "checkboxes", "dropdown", "markdown")
        assert item["attributes"]["label"]


def test_the_bug_form_asks_for_commands_that_exist() -> None:
    text = FORMS[0].read_text(encoding="utf-8")
    asked = re.findall(r"groupdetr (\w+)([^`\n]*)", text)
    assert ("doctor", " --json") in asked
    for command, arguments in asked:
        assert set(OPTION.findall(arguments)) <= options_of(command)


def test_the_version_is_written_once_in_the_code_and_the_citation_has_it() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert "version" in project["dynamic"]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == __version__
    heading = f"## [{__version__}] - {citation['date-released'].isoformat()}\n"
    assert heading in read("CHANGELOG.md")


def test_the_changelog_has_an_address_for_every_version() -> None:
    text = read("CHANGELOG.md")
    versions = re.findall(r"^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$", text, re.MULTILINE)
    assert len(versions) == len(re.findall(r"^## ", text, re.MULTILINE))
    assert versions[0] == ("Unreleased", "")
    assert all(date for _, date in versions[1:])
    for version, _ in versions:
        assert re.search(rf"^\[{re.escape(version)}\]: https://", text, re.MULTILINE)


def test_the_citation_is_that_of_the_readme() -> None:
    paper = yaml.safe_load(read("CITATION.cff"))["preferred-citation"]
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    readme = " ".join(read("README.md").split())
    assert f"title = {{{paper['title']}}}" in readme
    assert f"author = {{{authors}}}" in readme
    assert f"year = {{{paper['year']}}}" in readme
