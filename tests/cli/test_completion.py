"""Tab completion in bash, zsh and fish, and its installation. The shells are really started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from groupdetr.cli.completion import SHELLS, completion_script, read_options
from groupdetr.cli.main import COMMANDS, load, main

OPTIONS = {name: (command.summary, load(command.options)) for name, command in COMMANDS.items()}

# What is typed, and a word that the Tab key then writes. In the folder are data/ and photo.jpg.
EXAMPLES = [
    pytest.param("groupdetr tr", "train", id="command"),
    pytest.param("groupdetr train --group-d", "--group-detr", id="alias of an option"),
    pytest.param("groupdetr train --no-ch", "--no-check", id="option that is true by default"),
    pytest.param("groupdetr doctor --model petr-t", "petr-tiny", id="preset"),
    pytest.param(
        "groupdetr train --model table3/conditional-detr-r50-12e-g",
        "table3/conditional-detr-r50-12e-group",
        id="row of a table",
    ),
    pytest.param(
        "groupdetr val runs --device cu", "cuda", id="value of an option that is a string"
    ),
    pytest.param("groupdetr predict run pho", "photo.jpg", id="second argument"),
    pytest.param("groupdetr train data --weights pho", "photo.jpg", id="file of an option"),
]


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, an image, and the scripts of all shells."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "data").mkdir()
    (folder / "photo.jpg").touch()
    (folder / "functions").mkdir()
    for shell in SHELLS:
        (folder / shell).write_text(completion_script(shell, OPTIONS), encoding="utf-8")
    shutil.copy(folder / "zsh", folder / "functions/_groupdetr")
    return folder


# Calls the function that is registered for groupdetr, as bash does when Tab is pressed.
BASH_PROGRAM = """
source ./bash
registered=$(complete -p groupdetr)
PATH=/nonexistent
function=${registered##*-F }; function=${function%% *}
COMP_WORDS=("$@"); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
$function
printf '%s\\n' "${COMPREPLY[@]}"
"""


@needs("bash")
@pytest.mark.parametrize(("typed", "completed"), EXAMPLES)
def test_bash_completes_without_starting_a_program(
    typed: str, completed: str, folder: Path
) -> None:
    """While the function runs, PATH has no folder in which a program could be."""
    command = ["bash", "-c", BASH_PROGRAM, "bash", *typed.split(" ")]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert completed in process.stdout.split()
    assert not process.stderr


@needs("fish")
@pytest.mark.parametrize(("typed", "completed"), EXAMPLES)
def test_fish_completes(typed: str, completed: str, folder: Path) -> None:
    command = ["fish", "-c", f"source ./fish; complete -C '{typed}'"]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    words = [line.split("\t")[0].rstrip("/") for line in process.stdout.splitlines()]
    assert completed in words


@needs("zsh")
@pytest.mark.parametrize(("typed", "completed"), EXAMPLES)
def test_zsh_completes(typed: str, completed: str, folder: Path) -> None:
    """zsh completes only on a terminal, so this test is its terminal."""
    setup = "PS1='READY '; fpath=($PWD/functions $fpath); autoload -Uz compinit; compinit -u -D\r"
    # The line that zsh completes begins after the prompt of its second line.
    line = press_tab(["zsh", "-f", "-i"], setup, typed, completed, folder)
    assert re.search(rf"READY .*\s{re.escape(completed)}[ /]", line)


def press_tab(command: list[str], setup: str, typed: str, expected: str, folder: Path) -> str:
    """Return what a shell shows after ``setup``, ``typed`` and the Tab key.

    It waits for ten minutes at most.
    """
    import pty
    import select

    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execvpe(command[0], command, {**os.environ, "TERM": "dumb"})

    def read_until(text: str, output: str = "") -> str:
        deadline = time.monotonic() + 600
        while not re.search(text, output) and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                output += os.read(terminal, 65536).decode(errors="replace")
        return output

    try:
        read_until(r"[%#>$] ")
        os.write(terminal, setup.encode())
        read_until(r"\n[^\n]*READY ")
        os.write(terminal, f"{typed}\t".encode())
        return "READY " + read_until(rf"{re.escape(expected)}[ /]")
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_completion_has_exactly_the_options_that_the_command_has(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    # Lines that list an option begin with it. Descriptions are indented by more than two columns.
    listed = re.findall(r"^[│ ] (-.*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    options = set(re.findall(r"--[a-z][a-z-]*", " ".join(listed)))
    completed = {"--help"}
    for option in read_options(OPTIONS[command][1]):
        if not option.is_positional:
            completed |= set(option.flags)
    assert completed == options


needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="for Linux and macOS")


@needs_posix
@pytest.mark.parametrize("shell", SHELLS)
def test_installing_twice_writes_the_same_as_installing_once(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = empty_home(tmp_path, monkeypatch)
    (home / ".bashrc").write_text("alias ll='ls -l'", encoding="utf-8")
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert main(["--install-completion"]) == 0
    once = contents(home)
    assert main(["--install-completion", shell]) == 0
    assert contents(home) == once
    former, *added = once[".bashrc"].splitlines()
    assert former == "alias ll='ls -l'"
    assert bool(added) == (shell == "bash")


@needs_posix
@needs("bash")
def test_a_new_bash_completes_after_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = empty_home(tmp_path / "a home", monkeypatch)
    assert main(["--install-completion", "bash"]) == 0
    assert str(home / ".bashrc") in capsys.readouterr().out
    command = ["bash", "-i", "-c", "complete -p groupdetr"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.endswith("groupdetr\n")


def empty_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder the user's home for this test and the programs that it starts."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(folder))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Return the texts of all files in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        pytest.param(["--install-completion", "tcsh"], "/bin/bash", id="named"),
        pytest.param(["--install-completion"], "/bin/tcsh", id="in use"),
        pytest.param(["--print-completion"], "", id="unknown"),
        pytest.param(["--print-completion", "bash", "zsh"], "/bin/bash", id="two"),
    ],
)
def test_another_shell_is_an_error_that_names_the_right_command(
    arguments: list[str],
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SHELL", variable)
    assert main(arguments) == 2
    assert "bash" in capsys.readouterr().err.splitlines()[-1]
