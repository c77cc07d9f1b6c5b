"""Trainings as jobs of Slurm, submitted with submitit."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import yaml

from groupdetr.engine.run_folder import write_json
from groupdetr.errors import UsageError
from groupdetr.paper.trainings import Store, StoredTraining

# What a job asks for unless --slurm says something else.
DEFAULTS: Mapping[str, object] = {"timeout_min": 3 * 24 * 60, "gpus_per_node": 1}
CLUSTER = "cluster"  # the parameter that names submitit's executor: slurm, or local for a test


def parse_parameters(assignments: Sequence[str]) -> dict[str, object]:
    """Return the parameters of submitit from texts such as partition=gpu."""
    parameters: dict[str, object] = {}
    for text in assignments:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(
                f"--slurm takes name=value, not {text!r}",
                remedy="for example --slurm partition=gpu gpus_per_node=8",
            )
        parameters[name] = yaml.safe_load(value)
    return parameters


def submit_all(
    runs: Sequence[StoredTraining], assignments: Sequence[str], store: Store
) -> list[StoredTraining]:
    """Submit the trainings that are not waiting or running already, and return them.

    The numbers of the jobs are recorded in ``OUT/slurm/jobs.json``. `UsageError` if there is no
    submitit or no Slurm, or for a parameter that submitit does not know.
    """
    submitit = import_submitit()
    given = parse_parameters(assignments)
    cluster = str(given.pop(CLUSTER, "slurm"))
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise UsageError(
            "this machine has no Slurm: there is no program sbatch",
            remedy="run the command on a node that submits jobs, or use --on local, or --plan",
        )
    folder = store.out / "slurm"
    file = folder / "jobs.json"
    jobs = read_jobs(file)
    defaults = DEFAULTS if cluster == "slurm" else {"timeout_min": DEFAULTS["timeout_min"]}
    submitted = []
    for run in runs:
        if is_active(submitit, folder, jobs.get(run.training.name)):
            continue
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        try:
            executor.update_parameters(name=run.training.name[:40], **{**defaults, **given})
        except (NameError, TypeError, ValueError) as error:
            raise UsageError(
                f"submitit does not take these parameters: {error}",
                remedy="see --slurm, and the parameters of submitit's AutoExecutor",
            ) from error
        command = [sys.executable, "-m", *run.command()]
        job = executor.submit(submitit.helpers.CommandFunction(command))
        jobs[run.training.name] = {"job": str(job.job_id), "cluster": cluster}
        write_json(file, jobs)
        submitted.append(run)
    return submitted


def read_jobs(file: Path) -> dict[str, dict[str, str]]:
    """Return the jobs that were submitted before, by the name of the training."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def is_active(submitit: Any, folder: Path, job: Mapping[str, str] | None) -> bool:
    """True if a job is waiting or running."""
    if job is None:
        return False
    number = job["job"]
    if job["cluster"] == "slurm":
        return not submitit.SlurmJob(folder=folder, job_id=number).done()
    # The number of a local job is that of its process.
    paths = submitit.core.utils.JobPaths(folder=folder, job_id=number, task_id=0)
    return not paths.result_pickle.exists() and psutil.pid_exists(int(number))


def import_submitit() -> Any:
    """Return the module submitit. `UsageError` if it is not installed."""
    try:
        return import_module("submitit")
    except ImportError as error:
        raise UsageError(
            "--on slurm needs submitit, which is not installed",
            remedy="pip install 'groupdetr[slurm]'",
        ) from error
