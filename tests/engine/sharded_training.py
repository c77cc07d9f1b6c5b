"""Trains one detector with and without FSDP, in the processes that a launcher has started.

    python sharded_training.py DATA OUT OPTIONS

``OPTIONS`` are keywords of `groupdetr.train`, in JSON. OUT/ddp and OUT/fsdp are whole trainings.
OUT/ddp-fsdp is one that is stopped after two steps without FSDP and resumed with it, and
OUT/fsdp-ddp is the opposite.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import groupdetr


def main(data: Path, out: Path, options: str) -> None:
    keywords = json.loads(options)
    for name, fsdp in (("ddp", False), ("fsdp", True)):
        groupdetr.train(data, out=out / name, fsdp=fsdp, **keywords)
    for name, fsdp in (("ddp-fsdp", False), ("fsdp-ddp", True)):
        groupdetr.train(data, out=out / name, fsdp=fsdp, stop_after=2, **keywords)
        groupdetr.train(resume=out / name, fsdp=not fsdp)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
