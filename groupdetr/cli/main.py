"""The command line: find the command, read its options, run its workflow, and print errors."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from groupdetr.cli.json_output import print_json
from groupdetr.console.output import EscapingStream
from groupdetr.console.text import escape_controls
from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.files.writing import WriteError
from groupdetr.version import __version__

INTERRUPTED = 130  # exit code of a program that Ctrl-C stopped


@dataclass(frozen=True)
class Command:
    """A command such as `groupdetr train`: its one-line summary, its options and its workflow.

    Options and workflow are imported only when the command runs, so `groupdetr --help` does not
    wait for torch. The workflow is a function that takes the fields of the options as keyword
    arguments, except for ``plugin`` and ``json``, which `run` uses itself.
    """

    summary: str
    options: str  # module:class
    workflow: str  # module:function


COMMANDS = {
    "demo": Command(
        "train with and without groups on synthetic images, and compare (offline, minutes)",
        "groupdetr.cli.options.demo:DemoOptions",
        "groupdetr.workflows.demo:demo",
    ),
    "check": Command(
        "list everything in a dataset that would break or mislead training",
        "groupdetr.cli.options.check:CheckOptions",
        "groupdetr.workflows.check:check_command",
    ),
    "train": Command(
        "train a detector on your data",
        "groupdetr.cli.options.train:TrainOptions",
        "groupdetr.workflows.train:train_command",
    ),
    "val": Command(
        "evaluate a run: COCO AP, per class, per group",
        "groupdetr.cli.options.val:ValOptions",
        "groupdetr.workflows.validate:validate_command",
    ),
    "predict": Command(
        "detect objects in images, folders and globs",
        "groupdetr.cli.options.predict:PredictOptions",
        "groupdetr.workflows.predict:predict",
    ),
    "import": Command(
        "convert published weights to a file that this library trains from and predicts with",
        "groupdetr.cli.options.import_weights:ImportOptions",
        "groupdetr.workflows.import_weights:import_checkpoint",
    ),
    "doctor": Command(
        "show this machine, and test that the groups of a detector are isolated",
        "groupdetr.cli.options.doctor:DoctorOptions",
        "groupdetr.workflows.doctor:doctor",
    ),
    "presets": Command(
        "list the models and the paper's experiments",
        "groupdetr.cli.options.presets:PresetsOptions",
        "groupdetr.workflows.presets:presets",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    0: success, 1: a test failed or another error, 2: wrong usage, 3: invalid data, 4: the training
    diverged, 130: interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # With line buffering, a log file has every line as soon as it is printed. Characters that
        # the encoding of a terminal or file lacks, as on Windows, are escaped, as in stderr.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        return run(arguments)
    except WriteError as error:
        remedy = f"{error.remedy}; --out chooses the folder"
        print(explain(WriteError(error.what, error.where, remedy)), file=sys.stderr)
        return error.exit_code
    except GroupDETRError as error:
        print(explain(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(explain(from_os_error(error)), file=sys.stderr)
        return UsageError.exit_code


def run(arguments: list[str]) -> int:
    """Run the command that the arguments begin with, and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"groupdetr {__version__}")
        return 0
    if arguments[0] in ("--install-completion", "--print-completion"):
        from groupdetr.cli import completion

        return completion.run(
            arguments, {name: (c.summary, load(c.options)) for name, c in COMMANDS.items()}
        )
    name = arguments[0]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean {near[0]}?" if near else usage()
        raise UsageError(f"there is no command {name!r}", remedy=remedy)
    command = COMMANDS[name]
    # With --json, stdout holds one JSON value and nothing else. All that a command, a library or a
    # plugin prints on the way goes to stderr.
    with redirect_stdout(sys.stderr) if "--json" in arguments else nullcontext():
        options = read_options(name, arguments[1:])
        values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        values.pop("plugin", None)  # The plugins are loaded already.
        as_json = values.pop("json", False)
        result = load(command.workflow)(**values)
    if as_json:
        print_json(result)
    elif hasattr(result, "show"):
        # What a command has not printed while it ran, such as tables.
        result.show()
    # Workflows that can end without success return an object with an exit code.
    return int(getattr(result, "exit_code", 0))


def read_options(name: str, arguments: list[str]) -> Any:
    """Return the options of the command ``name``.

    If they are wrong, tyro prints an error and ends the program with exit code 2.
    """
    import tyro

    options_class = load(COMMANDS[name].options)
    # Plugins come first, because they define the models whose defaults other options have.
    for plugin in values_of(arguments, "--plugin"):
        from groupdetr.registry import load_plugin

        load_plugin(plugin)
    keywords: dict[str, Any] = {}
    # A module of options may have a function `prepare`, for defaults that depend on options.
    prepare = getattr(sys.modules[options_class.__module__], "prepare", None)
    if prepare is not None:
        arguments, keywords["default"] = prepare(arguments)
    # tyro's messages have arguments in them, which may be names of files.
    with redirect_stderr(EscapingStream(sys.stderr)), redirect_stdout(EscapingStream(sys.stdout)):
        return tyro.cli(
            options_class,
            args=arguments,
            prog=f"groupdetr {name}",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            **keywords,
        )


def values_of(arguments: Sequence[str], flag: str) -> list[str]:
    """Return the values of all occurrences of a flag, given as --flag value or --flag=value."""
    values = []
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            values.append(arguments[i + 1])
        elif argument.startswith(f"{flag}="):
            values.append(argument.split("=", 1)[1])
    return values


def load(path: str) -> Any:
    """Import a name given as module:name."""
    module, name = path.split(":")
    return getattr(import_module(module), name)


def usage() -> str:
    """Return the text of `groupdetr --help`."""
    title = (
        "groupdetr COMMAND [options]: detectors trained with groups of queries "
        "(Group DETR, arXiv 2207.13085)"
    )
    lines = [f"  {name:<9} {command.summary}" for name, command in COMMANDS.items()]
    last = [
        "groupdetr COMMAND --help lists the options of a command.",
        "groupdetr --install-completion sets up tab completion in bash, zsh and fish.",
    ]
    return "\n".join([title, "", *lines, "", *last])


def explain(error: GroupDETRError) -> str:
    """Return the text of an error: what is wrong, where, and what to do."""
    lines = [f"error: {_indent(error.what)}"]
    if error.where:
        lines.append(f"  where: {_indent(error.where)}")
    if error.remedy:
        lines.append(f"  do:    {_indent(error.remedy)}")
    return "\n".join(lines)


def _indent(text: str) -> str:
    """Return a text that is safe to print, with its lines below the first one indented.

    A name with a line break therefore cannot look like another part of the message.
    """
    return escape_controls(text, keep_lines=True).replace("\n", "\n" + " " * 9)


def from_os_error(error: OSError) -> UsageError:
    """Return the usage error for a file or folder that the system cannot read or write."""
    remedy = "check the path, its permissions and the free disk space; --out chooses the folder"
    return UsageError(error.strerror or type(error).__name__, str(error.filename), remedy)


if __name__ == "__main__":
    sys.exit(main())
