"""The command line: find the command, read its options, run its workflow, and print errors."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from itertools import pairwise
from typing import IO, Any, cast

from groupdetr.cli.help_texts import HelpStream, set_help_texts
from groupdetr.cli.json_output import print_json
from groupdetr.console.output import EscapingStream
from groupdetr.console.text import escape_controls
from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.files.preset_table import read_preset_table, unknown_model
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
    # On a CPU, a network that runs many times is faster if freed memory is kept for the next pass.
    keeps_freed_memory: bool = False


COMMANDS = {
    "demo": Command(
        "train with and without groups on drawn images, and compare (offline, minutes)",
        "groupdetr.cli.options.demo:DemoOptions",
        "groupdetr.workflows.demo:demo",
    ),
    "paper": Command(
        "reproduce a table or figure of the paper, at small scale or on COCO",
        "groupdetr.cli.options.paper:PaperOptions",
        "groupdetr.workflows.paper:paper",
    ),
    "compare": Command(
        "compare runs: curves, gains, costs, and what each detects that others miss",
        "groupdetr.cli.options.compare:CompareOptions",
        "groupdetr.workflows.compare:compare_command",
    ),
    "check": Command(
        "list everything in a dataset that would break or mislead training",
        "groupdetr.cli.options.check:CheckOptions",
        "groupdetr.workflows.check:check_command",
    ),
    "convert": Command(
        "write a dataset as COCO, YOLO or Pascal VOC",
        "groupdetr.cli.options.convert:ConvertOptions",
        "groupdetr.workflows.convert:convert_command",
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
        keeps_freed_memory=True,
    ),
    "groups": Command(
        "compare the groups of a run: AP, use of queries, agreement, uncertainty",
        "groupdetr.cli.options.groups:GroupsOptions",
        "groupdetr.workflows.groups:groups_command",
        keeps_freed_memory=True,
    ),
    "predict": Command(
        "detect objects in images, folders, videos and cameras",
        "groupdetr.cli.options.predict:PredictOptions",
        "groupdetr.workflows.predict:predict",
        keeps_freed_memory=True,
    ),
    "ui": Command(
        "show detections and errors on a local web page",
        "groupdetr.cli.options.ui:UIOptions",
        "groupdetr.workflows.ui:ui_command",
        keeps_freed_memory=True,
    ),
    "export": Command(
        "write a detector for ONNX, OpenVINO, torch.export or transformers, verified",
        "groupdetr.cli.options.export:ExportOptions",
        "groupdetr.workflows.export:export_command",
    ),
    "import": Command(
        "convert published weights to a file that this library trains from and predicts with",
        "groupdetr.cli.options.import_weights:ImportOptions",
        "groupdetr.workflows.import_weights:import_checkpoint",
    ),
    "push": Command(
        "publish a detector on the Hugging Face hub, with a model card",
        "groupdetr.cli.options.push:PushOptions",
        "groupdetr.workflows.push:push_command",
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
    diverged, 5: an exported detector does not agree with PyTorch, 130: interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # With line buffering, a log file has every line as soon as it is printed. Characters that
        # the encoding of a terminal or file lacks, as on Windows, are escaped, as in stderr.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        return run(arguments)
    except WriteError as error:
        # A run that is resumed stays in its folder.
        resumes = any(argument.partition("=")[0] == "--resume" for argument in arguments)
        way = "copy the run there, and resume the copy" if resumes else "--out chooses the folder"
        remedy = f"{error.remedy}; {way}"
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
        explained = from_os_error(error)
        print(explain(explained), file=sys.stderr)
        return explained.exit_code
    except (MemoryError, RuntimeError) as error:
        # Imported here: it imports torch, and `groupdetr --help` does not.
        from groupdetr.engine.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print(explain(out_of_memory(error)), file=sys.stderr)
        return GroupDETRError.exit_code


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
    expect_no_empty_argument(arguments)
    expect_one_process(name)
    # With --json, stdout holds one JSON value and nothing else. All that a command, a library or a
    # plugin prints on the way goes to stderr.
    with redirect_stdout(sys.stderr) if "--json" in arguments else nullcontext():
        options = read_options(name, arguments[1:])
        values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        values.pop("plugin", None)  # The plugins are loaded already.
        as_json = values.pop("json", False)
        if command.keeps_freed_memory:
            from groupdetr.data.freed_memory import keep_freed_memory

            keep_freed_memory()
        result = load(command.workflow)(**values)
    if as_json:
        print_json(result)
    elif hasattr(result, "show"):
        # What a command has not printed while it ran, such as tables.
        result.show()
    # Workflows that can end without success return an object with an exit code.
    return int(getattr(result, "exit_code", 0))


def expect_no_empty_argument(arguments: Sequence[str]) -> None:
    """Raise `UsageError` for an argument without text. As a path, it would be the current folder.

    A shell passes one for a variable in quotes that has no value.
    """
    for before, argument in pairwise(arguments):
        is_option = argument.startswith("--") and argument.endswith("=")
        if is_option or not argument.strip():
            place = argument[:-1] if is_option else before
            raise UsageError(
                "an argument is empty",
                f"after {place}",
                "give it a value, or leave it out; a variable of the shell may have none",
            )


def expect_one_process(name: str) -> None:
    """Raise `UsageError` if a launcher started several processes of a command that runs in one.

    Only a training shares its work between processes.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if name != "train" and "RANK" in os.environ and processes != "1":
        raise UsageError(
            f"groupdetr {name} runs in one process, and a launcher started {processes}",
            remedy=f"start it without torchrun: groupdetr {name} ...",
        )


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
    expect_known_models(values_of(arguments, "--model"))
    keywords: dict[str, Any] = {}
    # A module of options may have a function `prepare`, for defaults that depend on options.
    prepare = getattr(sys.modules[options_class.__module__], "prepare", None)
    if prepare is not None:
        arguments, keywords["default"] = prepare(arguments)
    set_help_texts(options_class)
    stdout = cast(IO[str], HelpStream(sys.stdout))
    # tyro's messages have arguments in them, which may be names of files.
    with redirect_stderr(EscapingStream(sys.stderr)), redirect_stdout(EscapingStream(stdout)):
        return tyro.cli(
            options_class,
            args=arguments,
            prog=f"groupdetr {name}",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            **keywords,
        )


def expect_known_models(names: Sequence[str]) -> None:
    """Raise `UsageError` for a name that no model has, without a wait for torch.

    Once a plugin is loaded, the registry knows more models than the table, and it looks them up. A
    path is left to the command, because some take a run in place of a model.
    """
    if not names or "groupdetr.registry" in sys.modules:
        return
    table = read_preset_table()
    for name in names:
        if name not in table.presets and not os.path.lexists(name):
            raise unknown_model(name, table.presets, table.unavailable)


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


def out_of_memory(error: BaseException) -> GroupDETRError:
    """Return the error for a command that has run out of memory."""
    reason = next(iter(str(error).splitlines()), "")
    remedy = "use smaller images or batches, or a machine with more memory"
    return GroupDETRError("there is not enough memory", reason, remedy)


def from_os_error(error: OSError) -> GroupDETRError:
    """Return the error for what the system cannot do, such as to read or write a file."""
    if error.filename is None:
        # The output may be such a file: groupdetr check DATA > FILE.
        what = f"the system reports an error: {error.strerror or error or type(error).__name__}"
        remedy = "check the free disk space, also where the output goes, and the drives"
        return GroupDETRError(what, remedy=remedy)
    remedy = "check the path, its permissions and the free disk space; --out chooses the folder"
    if error.errno == errno.ENAMETOOLONG:
        remedy = "use shorter names"
    return UsageError(error.strerror or type(error).__name__, str(error.filename), remedy)


if __name__ == "__main__":
    sys.exit(main())
