"""The command line: find the verb, read its options, run its workflow, and explain errors."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.version import __version__

INTERRUPTED = 130  # exit code of a program that Ctrl-C stopped


@dataclass(frozen=True)
class Verb:
    """A verb: its one-line summary, and where its options and its workflow are.

    They are imported only when the verb runs, so that `groupdetr --help` does not wait for torch.
    The workflow is a function that takes the fields of the options as keyword arguments.
    """

    summary: str
    options: str  # module:class
    workflow: str  # module:function


VERBS = {
    "demo": Verb(
        "train with and without groups on synthetic images, and compare (offline, minutes)",
        "groupdetr.cli.options.demo:DemoOptions",
        "groupdetr.workflows.demo:demo",
    ),
    "check": Verb(
        "list what in a dataset would break or mislead training",
        "groupdetr.cli.options.check:CheckOptions",
        "groupdetr.workflows.check:check",
    ),
    "train": Verb(
        "train a detector on your data",
        "groupdetr.cli.options.train:TrainOptions",
        "groupdetr.workflows.train:train",
    ),
    "val": Verb(
        "evaluate a run: COCO AP, per class, per group",
        "groupdetr.cli.options.val:ValOptions",
        "groupdetr.workflows.validate:validate",
    ),
    "predict": Verb(
        "detect objects in images, folders and globs",
        "groupdetr.cli.options.predict:PredictOptions",
        "groupdetr.workflows.predict:predict",
    ),
    "import": Verb(
        "convert published weights to a file that this library trains from and predicts with",
        "groupdetr.cli.options.import_weights:ImportOptions",
        "groupdetr.workflows.import_weights:import_checkpoint",
    ),
    "doctor": Verb(
        "show this machine, and test that groups do not leak into each other",
        "groupdetr.cli.options.doctor:DoctorOptions",
        "groupdetr.workflows.doctor:doctor",
    ),
    "presets": Verb(
        "list the models and the paper's experiments",
        "groupdetr.cli.options.presets:PresetsOptions",
        "groupdetr.workflows.presets:presets",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    0 ok, 1 a test failed, 2 usage, 3 data, 4 diverged, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A log file then shows every line at once.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        return run(arguments)
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
    """Run the verb that the arguments begin with."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"groupdetr {__version__}")
        return 0
    name = arguments[0]
    if name not in VERBS:
        near = get_close_matches(name, VERBS, n=1)
        remedy = f"did you mean {near[0]}?" if near else usage()
        raise UsageError(f"there is no verb {name!r}", remedy=remedy)
    verb = VERBS[name]
    options = read_options(name, arguments[1:])
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    result = load(verb.workflow)(**values)
    # Workflows that can end without success return an object with an exit code.
    return int(getattr(result, "exit_code", 0))


def read_options(verb: str, arguments: list[str]) -> Any:
    """Return the options of a verb. Wrong options end the program with code 2, as tyro does."""
    import tyro

    options_class = load(VERBS[verb].options)
    keywords: dict[str, Any] = {}
    # A module of options may have a function `prepare`, for defaults that depend on options.
    prepare = getattr(sys.modules[options_class.__module__], "prepare", None)
    if prepare is not None:
        arguments, keywords["default"] = prepare(arguments)
    return tyro.cli(
        options_class,
        args=arguments,
        prog=f"groupdetr {verb}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        **keywords,
    )


def load(path: str) -> Any:
    """Import a name given as module:name."""
    module, name = path.split(":")
    return getattr(import_module(module), name)


def usage() -> str:
    """Return the text of `groupdetr --help`."""
    title = (
        "groupdetr VERB [options]: detectors trained with groups of queries "
        "(Group DETR, arXiv 2207.13085)"
    )
    lines = [f"  {name:<9} {verb.summary}" for name, verb in VERBS.items()]
    last = "groupdetr VERB --help lists the options of a verb."
    return "\n".join([title, "", *lines, "", last])


def explain(error: GroupDETRError) -> str:
    """Return one line what, one line where, one line what to do."""
    lines = [f"error: {error.what}"]
    if error.where:
        lines.append(f"  where: {error.where}")
    if error.remedy:
        lines.append(f"  do:    {error.remedy}")
    return "\n".join(lines)


def from_os_error(error: OSError) -> UsageError:
    """Return a file or folder that the system refuses to read or write as a usage error."""
    remedy = "check the path, its permissions and the space that is left; --out chooses the folder"
    return UsageError(error.strerror or type(error).__name__, str(error.filename), remedy)


if __name__ == "__main__":
    sys.exit(main())
