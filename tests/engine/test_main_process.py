"""Only the main process of several gets results and evaluates; errors and waiting reach all."""

from __future__ import annotations

from pathlib import Path

from tests.runs import torchrun

PROGRAM = """
import sys, time
from pathlib import Path
import torch
from accelerate import Accelerator
from groupdetr.engine import main_process
from groupdetr.engine.main_process import gather_to_main, run_on_main
from groupdetr.errors import DataError
from groupdetr.structures.detections import Detections

main_process.INTERVAL = 0.05
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index

# Rank 1 has more than rank 0, and detections of every kind of field.
own = []
for index in range(rank, 5, 2 - rank):
    scores = torch.full((index,), index / 8)
    labels, boxes = torch.arange(index), torch.rand(index, 4)
    masks = ({"size": [2, 2], "counts": b"04"},) * index if index % 2 else None
    own.append((index, Detections(scores, labels, boxes, masks)))
everything = gather_to_main(own, accelerator)
assert len(everything) == (7 if rank == 0 else 0)
for index, detections in everything:
    assert detections.scores.tolist() == [index / 8] * index
    assert (detections.labels.dtype, detections.boxes.shape) == (torch.int64, (index, 4))
    assert detections.masks is None or len(detections.masks) == index

def slow():
    time.sleep(0.3)  # several intervals
    return "result"

assert run_on_main(slow, accelerator) == ("result" if rank == 0 else None)

def fail():
    raise DataError("a box is not finite", "image 7", "remove it")

class Strange(Exception):
    def __init__(self, first, second):
        super().__init__(first)

def fail_strangely():
    raise Strange("odd", 1)

for function, expected in ((fail, "a box is not finite\\nimage 7"), (fail_strangely, "odd")):
    try:
        run_on_main(function, accelerator)
    except Exception as error:
        assert expected in str(error), repr(error)
        if function is fail:
            assert type(error) is DataError and error.where == "image 7"
    else:
        raise AssertionError("it must fail in every process")
Path(sys.argv[1], f"process-{rank}-has-ended").touch()
# A process that ends while it is connected may be aborted by gloo's threads.
accelerator.end_training()
"""


def test_two_processes(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = torchrun(2, [str(tmp_path)], program=[str(program)])
    assert process.returncode == 0, process.stderr
    # Not what they printed: the lines of two processes may be mixed.
    for rank in range(2):
        assert (tmp_path / f"process-{rank}-has-ended").is_file()
