"""The help of every command fits into a terminal, and says what happens without an option."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from groupdetr.cli.main import COMMANDS, main


def help_of(command: str, columns: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            main([command, "--help"])
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_into_a_terminal(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = help_of(command, 70, capsys)
    assert max(map(len, lines)) <= 70
    assert not any(re.fullmatch("│ +│", line) for line in lines)
    texts = [line.rstrip("│ ") for line in lines]
    for line, following in pairwise(texts):
        if all(re.match("│? {6,}[^ ]", one) for one in (line, following)):
            # Another word of the next line would not have fitted.
            assert len(line) + 1 + len(following.strip("│ ").split()[0]) > 70 - len("  │")
    options_of_command = "\n".join(lines).split("settings options")[0]
    assert not re.search(r"\{None\}|None: |default: (None|True|False|)\)", options_of_command)
