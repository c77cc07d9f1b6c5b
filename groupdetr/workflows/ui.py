"""`groupdetr ui`: a local web page of a detector."""

from __future__ import annotations

from pathlib import Path

from groupdetr.data.records import CocoSplit
from groupdetr.engine.run_folder import RunFolder, training_data
from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.settings import RANGES, expect_whole_number
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.validation import read_own_split, with_classes_of
from groupdetr.tasks.trained_detector import task_of, weights_and_metadata
from groupdetr.web.server import WebServer, expect_installed, listen, serve
from groupdetr.web.session import DetectorFacts, WebSession
from groupdetr.web.validation_set import ValidationSet
from groupdetr.workflows.exported_files import (
    expect_usable_with_exported_file,
    is_exported,
)
from groupdetr.workflows.own_dataset import expect_data_with_images, is_training_data

MAX_PORT = 65_535
NAME_DATA = "add --data DATA"


def ui(
    run: str | Path,
    data: str | Path | None = None,
    *,
    images: str | Path | None = None,
    cache: bool = True,
    split: str | None = None,
    imgsz: int | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    open: bool = False,
    device: str = "auto",
) -> WebServer:
    """Serve a web page of a detector, print its address, and return the server, which runs on.

    The keywords are the options of `groupdetr ui`. The page detects objects in images that are
    dropped on it, and shows the errors in the val split of ``data``, the dataset of the run by
    default. An exported file is run by its runtime, and needs ``data`` for that.
    `WebServer.close` ends the server, and so does the end of the program.

    `UsageError` for a detector of scenes, and for a port that is taken.

    >>> page = groupdetr.ui("runs/mine")
    >>> page.close()
    """
    expect_whole_number("imgsz", imgsz, *RANGES["imgsz"])
    expect_whole_number("port", port, 0, MAX_PORT)
    expect_installed()
    run = Path(run)
    expect_data_with_images(data, images)
    if is_exported(run):
        expect_usable_with_exported_file(run, {}, device, "serve the page of")
    elif task_of(run).input_kind != "images":
        raise UsageError(
            "this detector takes scenes of several cameras, and the page shows single images",
            str(run),
            "draw its detections with groupdetr predict RUN, which writes an image of each scene",
        )
    # The port is taken before the detector is loaded, so that a wrong one is an error at once.
    listening = listen(host, port)
    try:
        session = open_exported(run, imgsz) if is_exported(run) else open_run(run, device, imgsz)
        named = None if data is None else Path(data)
        named_images = None if images is None else Path(images)
        add_validation_set(session, run, named, named_images, split, imgsz, cache)
    except BaseException:
        listening.close()
        raise
    server = serve(session, host, listening)
    if open:
        server.open_browser()
    return server


def open_run(run: Path, device: str, imgsz: int | None) -> WebSession:
    """Return the session of a run or of a weights file, without a validation set."""
    detector = Detector(run, device, imgsz)
    facts = DetectorFacts(
        name=run.name,
        model=detector.recipe.preset,
        num_groups=detector.recipe.num_groups,
        imgsz=str(detector.imgsz),
        device=str(detector.device),
    )
    return WebSession(detector, facts)


def open_exported(file: Path, imgsz: int | None) -> WebSession:
    """Return the session of an exported file, without a validation set."""
    # Imported here: it imports torch.export, which takes a second.
    from groupdetr.deployment.exported_detector import ExportedDetector
    from groupdetr.deployment.runtimes import runtime_name

    detector = ExportedDetector.load(file, imgsz)
    size = detector.metadata["size"]
    shortest_side = str(detector.metadata["imgsz"])
    facts = DetectorFacts(
        name=file.name,
        model=detector.metadata["model"],
        num_groups=1,
        imgsz=shortest_side if size is None else f"{size[0]} × {size[1]}",
        device=f"{runtime_name(file)} on the CPU",
        note=(
            "This is an exported file, which has one group of queries. The page of the run that "
            "was exported shows all groups."
        ),
    )
    return WebSession(detector, facts)


def add_validation_set(
    session: WebSession,
    run: Path,
    data: Path | None,
    images: Path | None,
    split: str | None,
    imgsz: int | None,
    cache: bool = True,
) -> None:
    """Give a session the split that the page shows the errors of.

    A dataset that was named is read at once. That of the run is read when the page needs it, and
    need not be there: then the page says why it has no validation set.
    """
    detector = session.detector
    if data is not None and is_training_data(run, data, images):
        data = images = None
    if data is not None:
        named = with_classes_of(detector, detector.task.read_split(data, images, split, cache))
        session.validation = ValidationSet(detector, session.lock, lambda: named)
        return
    if not run.is_dir():
        what = "weights without a run do not say which dataset they belong to"
        if is_exported(run):
            what = "an exported file does not say which dataset it belongs to"
        session.no_data = f"{what}: {NAME_DATA}"
        return
    try:
        own_data, own_images = training_data(run, NAME_DATA)
    except GroupDETRError as error:
        session.no_data = f"{error.what}: {error.remedy}"
        return

    def read() -> CocoSplit:
        own_split, _ = read_own_split(detector, own_data, own_images, split or "val", cache)
        return with_classes_of(detector, own_split)

    # `groupdetr val` writes to this folder for the val split at the size of the training.
    is_as_trained = imgsz is None or imgsz == weights_and_metadata(run)[1].get("imgsz")
    recorded = RunFolder(run).val if is_as_trained else None
    session.validation = ValidationSet(detector, session.lock, read, recorded, own_data)


def ui_command(
    *,
    run: Path,
    data: Path | None,
    images: Path | None,
    cache: bool,
    split: str | None,
    imgsz: int | None,
    host: str,
    port: int | None,
    open: bool,
    device: str,
) -> None:
    """Serve the page until Ctrl-C. The arguments are the options of `groupdetr ui`."""
    server = ui(
        run,
        data,
        images=images,
        cache=cache,
        split=split,
        imgsz=imgsz,
        host=host,
        port=port,
        open=open,
        device=device,
    )
    server.wait()
