"""Tab completion: scripts for bash, zsh and fish, and their installation.

The library shtab writes the scripts. A script holds all commands, options and names of models, so
the shell completes without starting Python.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import types
from argparse import Action, ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from groupdetr.cli.help_texts import descriptions, unpack
from groupdetr.errors import UsageError

INSTALL = "--install-completion"
PRINT = "--print-completion"
SHELLS = ("bash", "zsh", "fish")
# Values of options that are strings, of which other values are possible, too.
VALUES = {"device": ("auto", "cpu", "cuda", "mps"), "split": ("train", "val", "test")}
# Options that are strings, and of which some values are files.
FILES = {"plugin", "pretrained_backbone"}
# The line before the one that the installation adds to a shell's configuration.
MARK = "# tab completion of groupdetr"

CommandOptions = Mapping[str, tuple[str, type]]  # summary and options of every command, by name


def run(arguments: Sequence[str], commands: CommandOptions) -> int:
    """Run ``--install-completion [SHELL]`` or ``--print-completion SHELL``.

    Without a name, the shell is that of the environment variable SHELL. Returns the exit code 0;
    `UsageError` if the shell has no tab completion.
    """
    flag, *names = arguments
    if len(names) > 1:
        raise UsageError(
            f"{flag} takes one shell, not {len(names)}", " ".join(names), f"groupdetr {flag} bash"
        )
    shell = expect_shell(names[0]) if names else login_shell()
    script = completion_script(shell, commands)
    if flag == PRINT:
        print(script)
    else:
        install(shell, script)
    return 0


def expect_shell(name: str) -> str:
    """Return the name of a shell, or raise `UsageError` if it has no tab completion."""
    if name not in SHELLS:
        raise UsageError(
            f"there is no tab completion for the shell {name!r}",
            remedy=f"name one of {', '.join(SHELLS)}: groupdetr {INSTALL} bash",
        )
    return name


def login_shell() -> str:
    """Return the name of the user's shell, which the environment variable SHELL has."""
    # Without SHELL, as on Windows, the name is empty.
    name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise UsageError(
            f"tab completion is for {', '.join(SHELLS[:-1])} and {SHELLS[-1]}, "
            "and the shell in use is not known to be one of them",
            f"environment variable SHELL: {os.environ.get('SHELL') or 'not set'}",
            f"name the shell: groupdetr {INSTALL} bash",
        )
    return name


# the script


def completion_script(shell: str, commands: CommandOptions) -> str:
    """Return the script that completes `groupdetr` in a shell."""
    import shtab

    return str(shtab.complete(create_parser(commands), shell))


def create_parser(commands: CommandOptions) -> ArgumentParser:
    """Return a parser with all commands and options. Scripts are made from it; it parses nothing.

    shtab reads parsers of argparse, and the commands are parsed by tyro, which has none.
    """
    parser = ArgumentParser(prog="groupdetr")
    parser.add_argument("--version", "-V", action="version", help="print the version")
    parser.add_argument(INSTALL, choices=SHELLS, help="install tab completion")
    parser.add_argument(PRINT, choices=SHELLS, help="print the script of tab completion")
    subparsers = parser.add_subparsers()
    for name, (summary, options) in commands.items():
        command = subparsers.add_parser(name, help=summary, description=summary)
        for option in read_options(options):
            option.add_to(command)
    return parser


@dataclass(frozen=True)
class Option:
    """An option or argument of a command, as much of it as completion needs."""

    name: str  # of the option; that of the field, unless another one is set
    kind: Any  # its type
    description: str
    is_positional: bool
    repeats: bool  # True if every value has the flag again
    default: object
    aliases: Sequence[str] = ()

    @property
    def flags(self) -> list[str]:
        """The names of the option on the command line. Those that are true by default have no-."""
        name = self.name.replace("_", "-")
        return [f"--no-{name}" if self.default is True else f"--{name}", *self.aliases]

    def add_to(self, parser: ArgumentParser) -> None:
        """Add the option to a parser."""
        description = self.description.replace("%", "%%")  # argparse formats descriptions
        if self.is_positional:
            # The number of values does not matter: all of them are files.
            action: Action = parser.add_argument(self.name, nargs="*", help=description)
        elif self.kind is bool:
            action = parser.add_argument(*self.flags, action="store_true", help=description)
        else:
            takes_many = tuple in _types_in(self.kind) and not self.repeats
            action = parser.add_argument(
                *self.flags,
                nargs="*" if takes_many else None,
                choices=self.values(),
                help=description,
            )
        if self.is_positional or self.name in FILES or Path in _types_in(self.kind):
            import shtab

            action.complete = shtab.FILE  # type: ignore[attr-defined]

    def values(self) -> Sequence[str] | None:
        """Return the values that are offered, None if there are none."""
        if self.name == "model":
            # This imports torch, but only when a script is made.
            from groupdetr.experiments.by_name import EXPERIMENTS

            return tuple(EXPERIMENTS)
        return VALUES.get(self.name) or tuple(map(str, _literals_in(self.kind))) or None


def read_options(options: type) -> Iterator[Option]:
    """Yield the options that tyro reads from a dataclass, those of nested dataclasses included."""
    import tyro

    hints = get_type_hints(options, include_extras=True)
    texts = descriptions(options)
    for field in dataclasses.fields(options):
        kind, *annotations = unpack(hints[field.name])
        if tyro.conf.Suppress in annotations:
            continue
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from read_options(kind)
            continue
        aliases = [getattr(annotation, "aliases", None) or () for annotation in annotations]
        # An option may have another name than its field, such as one that is a keyword of Python.
        # Only what has aliases is a setting of an option.
        names = [item.name for item in annotations if hasattr(item, "aliases") and item.name]
        yield Option(
            names[0] if names else field.name,
            kind,
            _first_sentence(texts.get(field.name, "")),
            is_positional=tyro.conf.Positional in annotations,
            repeats=tyro.conf.UseAppendAction in annotations,
            default=field.default,
            aliases=[alias for group in aliases for alias in group],
        )


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].removesuffix(".")


def _types_in(hint: Any) -> set[Any]:
    """Return the types of a union, such as {int, NoneType} of ``int | None``. tuple[X] is tuple."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return {get_origin(member) or member for member in members}


def _literals_in(hint: Any) -> Iterator[object]:
    """Yield the values of all Literals in a type."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for member in get_args(hint):
            yield from _literals_in(member)


# the installation


def install(shell: str, script: str) -> None:
    """Write the script to where the shell finds it, and print what was written.

    bash and zsh need a line in their configuration. It is added once. `UsageError` on Windows.
    """
    if sys.platform == "win32":
        raise UsageError(
            "tab completion is installed for bash, zsh and fish on Linux and macOS only",
            remedy=f"in a bash on Windows, type: source <(groupdetr {PRINT} bash)",
        )
    path = script_path(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script + "\n", encoding="utf-8")
    print(f"wrote {path}")
    if shell != "fish":  # fish reads the folder by itself
        _configure(*configuration(shell, path))
    print("Open a new terminal, type groupdetr and a space, and press the Tab key.")
    print("After an update of groupdetr, run this command again: the script has a list of options.")


def script_path(shell: str) -> Path:
    """Return the path of the script, in the folder where the shell looks for such scripts."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return {
        "bash": data / "bash-completion/completions/groupdetr",
        "zsh": data / "zsh/site-functions/_groupdetr",
        "fish": config / "fish/completions/groupdetr.fish",
    }[shell]


def configuration(shell: str, script: Path) -> tuple[Path, str]:
    """Return the configuration file of bash or zsh, and the line that it needs."""
    if shell == "bash":
        quoted = quote(str(script))
        return Path.home() / ".bashrc", f"[ ! -r {quoted} ] || source {quoted}"
    folder = Path(os.environ.get("ZDOTDIR") or Path.home())
    functions = quote(str(script.parent))
    return folder / ".zshrc", f"fpath=({functions} $fpath); autoload -Uz compinit; compinit"


def _configure(path: Path, line: str) -> None:
    """Add a line to a configuration file, unless the file has it already."""
    former = path.read_text(encoding="utf-8") if path.is_file() else ""
    if line in former.splitlines():
        print(f"{path} has the line that it needs already")
        return
    with path.open("a", encoding="utf-8") as file:
        separator = "\n" if former and not former.endswith("\n") else ""
        file.write(f"{separator}\n{MARK}\n{line}\n")
    print(f"added a line to {path}: {line}")
