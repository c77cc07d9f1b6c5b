"""Fixtures that all tests share: small synthetic datasets, and the folder of real ones."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

if shutil.which("nvidia-smi") is None:
    # Without a GPU, Triton's kernels run in its interpreter. The variable must be set before Triton
    # is imported, which torchvision does too.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# No test connects to the Hugging Face hub, neither in this process nor in another one. The variable
# must be set before huggingface-hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings

from groupdetr.data.nuscenes import synthetic as nuscenes
from groupdetr.data.synthetic import SyntheticConfig, write
from groupdetr.engine.run_folder import RunFolder
from groupdetr.registry import experiment
from groupdetr.tasks.registry import task_class
from groupdetr.workflows.task_workflows import WORKFLOWS
from tests.hub import hub, hub_cache, no_network  # noqa: F401

# The outcome of a test depends neither on its luck nor on the load of the machine: hypothesis tries
# the same examples in every run, and has no limit of time for one of them.
settings.register_profile("sure", derandomize=True, deadline=None)
settings.load_profile("sure")

# A shell lets its background jobs ignore Ctrl-C. Tests of Ctrl-C would wait for ever there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let every test have the same random numbers, whichever tests ran before it."""
    seed_everything()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Seed again, because the first test of a file also creates the fixtures of the others."""
    seed_everything()


def seed_everything() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Use one thread. With small tensors, several threads mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _search_own_garbage() -> None:
    """Let the garbage collector search only the objects that the tests of this module make.

    A process that has run thousands of tests has millions of objects, of imported libraries. Each
    measurement of memory collects garbage, and would take seconds.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def empty_pages() -> Iterator[None]:
    """Let the trainings of this process write empty pages.

    A page takes as long as the rest of a training of two steps. Other tests read pages.
    """

    def report(run: RunFolder, *_: object) -> Path:
        run.report.write_text("")
        return run.report

    with pytest.MonkeyPatch.context() as patch:
        for kind, workflows in WORKFLOWS.items():
            patch.setitem(WORKFLOWS, kind, replace(workflows, report=report))
        yield


@pytest.fixture(autouse=True)
def _forget_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules of files that a test has written, such as plugins.

    Another test may write a module of the same name.
    """
    before = set(sys.modules)
    yield
    folder = tmp_path_factory.getbasetemp()
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(folder):
            del sys.modules[name]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic COCO dataset: 24 training and 6 validation images of 48 pixels, 3 classes."""
    folder = tmp_path_factory.mktemp("shapes")
    write(
        SyntheticConfig(image_size=48, num_classes=3, max_objects=3),
        folder,
        {"train": 24, "val": 6},
    )
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic nuScenes dataset with 4 training and 4 validation samples.

    A sample has six images of 160 x 90 pixels.
    """
    root = tmp_path_factory.mktemp("nuscenes")
    nuscenes.write(nuscenes.SyntheticNuScenesConfig(samples=4, width=160, height=90), root)
    return root


@pytest.fixture(scope="session")
def data_for(shapes: Path, scenes: Path) -> Callable[[str], Path]:
    """A function that returns the dataset that a preset is trained on."""

    def folder(preset: str) -> Path:
        task = task_class(experiment(preset).task)
        return scenes if task.input_kind == "scenes" else shapes

    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets, which the environment variable GROUPDETR_TEST_DATA names."""
    folder = os.environ.get("GROUPDETR_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GROUPDETR_TEST_DATA does not name the folder of real datasets")
    return Path(folder)
