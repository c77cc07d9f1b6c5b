"""The command line: finds the verb, reads its options, and turns errors into one line what, where, and what to type."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Protocol

from groupdetr import __version__
from groupdetr.errors import GroupDETRError, UsageError

VERBS = {
    "demo": "train with and without groups on drawn pictures, and see the difference (offline, minutes)",
    "check": "list what in a data set would break or mislead training",
    "train": "train a detector on your data",
    "val": "evaluate a run: COCO AP, per class, per group",
    "predict": "find objects in pictures, folders and globs",
    "import": "convert published weights to a file this library trains from and predicts with",
    "doctor": "look at this machine, and prove that groups do not leak into each other",
    "presets": "list the models and the paper's experiments",
}


class Verb(Protocol):
    """A dataclass of options that knows what to do."""

    def run(self) -> int: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 ok, 2 usage, 3 data, 4 diverged."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            line_buffering=True
        )  # who reads a log file wants to see where training is
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(usage())
            return 0
        if arguments[0] in ("-V", "--version"):
            print(f"groupdetr {__version__}")
            return 0
        return read(arguments[0], arguments[1:]).run()
    except GroupDETRError as error:
        print(explained(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(explained(unusable(error)), file=sys.stderr)
        return UsageError.exit_code


def unusable(error: OSError) -> UsageError:
    """A file or folder that the system does not let us read or write, as an error a user can act on."""
    remedy = "check the path, its permissions and the space that is left; --out says where to write"
    return UsageError(error.strerror or type(error).__name__, str(error.filename), remedy)


def usage() -> str:
    lines = [f"  {verb:<9} {what}" for verb, what in VERBS.items()]
    head = "groupdetr VERB [options]: detectors trained with groups of queries (Group DETR, arXiv 2207.13085)"
    return "\n".join([head, "", *lines, "", "groupdetr VERB --help lists the options of a verb."])


def read(verb: str, arguments: list[str]) -> Verb:
    """The verb with its options filled in. Wrong options end the program with code 2, as tyro words it."""
    import tyro

    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        raise UsageError(
            f"there is no verb {verb!r}", remedy=f"did you mean {near[0]}?" if near else usage()
        )
    module = import_module(
        f"groupdetr.cli.options.{'import_weights' if verb == 'import' else verb}"
    )
    arguments, default = (
        module.prepared(arguments) if hasattr(module, "prepared") else (arguments, None)
    )
    given = {} if default is None else {"default": default}
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    return tyro.cli(module.Options, args=arguments, prog=f"groupdetr {verb}", config=style, **given)


def explained(error: GroupDETRError) -> str:
    """One line what, one line where, one line what to do."""
    lines = [f"error: {error.what}"]
    lines += [f"  where: {error.where}"] if error.where else []
    lines += [f"  do:    {error.remedy}"] if error.remedy else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
