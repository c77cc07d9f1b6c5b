"""The package runs on Linux, macOS and Windows: what only some systems have is not relied upon."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from groupdetr.data.dataset import SampleIndex
from groupdetr.data.loader import BatchDataset
from groupdetr.registry import experiment
from groupdetr.tasks.registry import task_class
from tests.test_structure import TREES

POSIX_MODULES = {
    *("crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "readline", "resource", "spwd"),
    *("syslog", "termios", "tty"),
}
# Functions and constants of modules that exist everywhere.
POSIX_NAMES = {
    "os": {
        *("chown", "chroot", "fork", "forkpty", "getegid", "geteuid", "getgid", "getpgid"),
        *("getuid", "killpg", "mkfifo", "nice", "posix_spawn", "sched_getaffinity", "setpgid"),
        *("setsid", "statvfs", "sysconf", "uname", "wait", "WNOHANG"),
    },
    "signal": {
        *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP"),
        *("SIGTSTP", "SIGUSR1", "SIGUSR2", "alarm", "pause", "pthread_sigmask", "setitimer"),
    },
}


def with_conditions(node: ast.AST, conditions: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Yield all nodes of a tree with the conditions of the `if` statements that they are in."""
    yield node, conditions
    for name, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        inside = conditions
        if isinstance(node, ast.If) and name == "body":
            inside = f"{conditions} {ast.unparse(node.test)}"
        for child in children:
            if isinstance(child, ast.AST):
                yield from with_conditions(child, inside)


def posix_only(node: ast.AST) -> Iterator[str]:
    """Yield the names in a node that Windows does not have."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in POSIX_MODULES)
    elif isinstance(node, ast.ImportFrom):
        if node.module in POSIX_MODULES:
            yield str(node.module)
        names = POSIX_NAMES.get(str(node.module), set())
        yield from (alias.name for alias in node.names if alias.name in names)
    elif (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.attr in POSIX_NAMES.get(node.value.id, set())
    ):
        yield node.attr


def test_what_only_some_systems_have_is_used_only_after_a_test_of_the_system() -> None:
    wrong = [
        f"{module}:{getattr(node, 'lineno', 0)} {name}"
        for module, tree in TREES.items()
        for node, conditions in with_conditions(tree)
        for name in posix_only(node)
        if not ("sys.platform" in conditions or f"'{name}')" in conditions)
    ]
    assert not wrong, "\n".join(wrong)


# Calls that read or write text, and the modes in which they do not.
TEXT_METHODS = {"read_text", "write_text"}
# What these open is not text. The module `av` is imported where it is used.
_BINARY_OWNERS = ("Image", "tarfile", "webbrowser", "os", "archive", "av", "self.av")
BINARY_MODES = {"rb", "wb", "ab", "r+b", "rb+", "w+b", "xb"}


def reads_text_without_an_encoding(call: ast.Call) -> bool:
    """True if a call reads or writes text in the encoding of the system."""
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if "encoding" in arguments:
        return False
    if isinstance(call.func, ast.Name):
        name, owner = call.func.id, ""
    elif isinstance(call.func, ast.Attribute):
        name, owner = call.func.attr, ast.unparse(call.func.value)
    else:
        return False
    if name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        constants = [a.value for a in call.args if isinstance(a, ast.Constant)]
        is_binary = bool(BINARY_MODES & {*constants, arguments.get("mode", "").strip("'")})
        # `os.open` returns a number, and the files of an archive are binary.
        return not is_binary and owner not in _BINARY_OWNERS
    if name in ("run", "Popen", "check_output") and owner == "subprocess":
        return arguments.get("text") == "True" or "universal_newlines" in arguments
    # Functions of ours have these names, too. They are not methods.
    return bool(owner) and name in TEXT_METHODS


def test_calls_that_read_text_are_recognised() -> None:
    """The test of all files below relies on it."""
    for source in (
        *("path.read_text()", "path.open()", "open(path, 'w')"),
        "subprocess.run(command, text=True)",
    ):
        assert reads_text_without_an_encoding(parse_call(source)), source
    for source in (
        *("path.read_text(encoding='utf-8')", "open(path, 'rb')", "path.open(mode='wb')"),
        *("Image.open(path)", "os.open(path, os.O_RDONLY)", "archive.open(name)"),
        "write_text(path, text)",
    ):
        assert not reads_text_without_an_encoding(parse_call(source)), source


def parse_call(source: str) -> ast.Call:
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    return call


def test_text_files_name_their_encoding() -> None:
    """Otherwise Python 3.11 to 3.14 use the encoding of the system, which is cp1252 on Windows."""
    wrong = [
        f"{module}:{node.lineno} {ast.unparse(node)[:80]}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and reads_text_without_an_encoding(node)
    ]
    assert not wrong, "\n".join(wrong)


# One preset of each task
@pytest.mark.parametrize("preset", ["conditional-detr-tiny", "mask2former-tiny", "petr-tiny"])
def test_datasets_can_be_sent_to_processes_that_are_not_forked(
    preset: str, data_for: Callable[[str], Path]
) -> None:
    """macOS and Windows start new processes, to which the data loader sends its dataset."""
    chosen = experiment(preset)
    task_type = task_class(chosen.task)
    data = task_type.read(data_for(preset), None)
    task = task_type(data, replace(chosen.settings, imgsz=48), num_detections=10)
    dataset = BatchDataset(task.train)
    samples = [SampleIndex(epoch=1, index=0), SampleIndex(epoch=1, index=3)]
    batch = dataset.__getitems__(samples)
    batch_of_copy = pickle.loads(pickle.dumps(dataset)).__getitems__(samples)
    cpu = torch.device("cpu")
    assert torch.equal(batch_of_copy.images(cpu).pixels, batch.images(cpu).pixels)
    for target_of_copy, target in zip(batch_of_copy.targets, batch.targets, strict=True):
        assert torch.equal(target_of_copy.boxes, target.boxes)
