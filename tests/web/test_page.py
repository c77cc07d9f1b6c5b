"""The page in a headless Chromium: what it draws, and what its sliders change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

import groupdetr
from groupdetr.structures.detections import decode_mask
from groupdetr.tasks.detection2d.group_detections import best_of_each_group
from groupdetr.web.server import WebServer

if sys.platform == "win32":
    pytest.skip("the browser is controlled over pipes", allow_module_level=True)

from tests.browser import Browser, find_browser
from tests.deployment.exports import write_weights

NUM_BOXES = "Number(document.querySelector('#canvas').dataset.boxes)"
NUM_ROWS = "document.querySelectorAll('#table tr[data-index]').length"
# The number of pixels of the canvas that are not transparent
NUM_PIXELS = """(() => {
  const canvas = document.querySelector('#canvas');
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let drawn = 0;
  for (let i = 3; i < pixels.length; i += 4) drawn += pixels[i] > 0;
  return drawn;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed")
    with Browser(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Browser, server: WebServer) -> Iterator[Browser]:
    """The page as it is when it is opened. At the end, none of its scripts may have failed."""
    browser.errors.clear()
    browser.resize(1200, 900)
    browser.open("about:blank")
    browser.open(server.address)
    browser.wait_for("typeof info !== 'undefined' && info !== null && state.tab")
    yield browser
    assert not browser.errors


@pytest.fixture(scope="module")
def photos(shapes: Path) -> list[Path]:
    return sorted((shapes / "images/val").iterdir())[:2]


def choose(page: Browser, photos: list[Path]) -> None:
    page.choose_files("#files", photos)
    page.wait_for(f"state.images.length === {len(photos)} && state.images.every((i) => i.data)")
    page.wait_for("document.querySelector('#image').complete && state.view")


def count_above(server: WebServer, photo: Path, score: float) -> int:
    return len(server.session.detector.predict(photo, score)[0].scores)


def test_the_boxes_of_an_image_are_drawn_and_the_slider_changes_their_number(
    page: Browser, server: WebServer, photos: list[Path]
) -> None:
    choose(page, photos[:1])
    all_scores = server.session.detector.predict(photos[0], 0.0)[0].scores
    median = round(float(np.median(all_scores)), 2)
    numbers = []
    for threshold in (0.01, median, 1.0):
        page.set_value("#score", threshold)
        numbers.append(page.evaluate(NUM_BOXES))
        assert numbers[-1] == page.evaluate(NUM_ROWS) == count_above(server, photos[0], threshold)
        assert (page.evaluate(NUM_PIXELS) > 0) == (numbers[-1] > 0)
    assert numbers[0] > numbers[1] > numbers[2] == 0


def test_the_sliders_ask_the_server_for_nothing(
    page: Browser, server: WebServer, photos: list[Path]
) -> None:
    choose(page, photos[:1])
    page.evaluate("performance.clearResourceTimings()")
    with server.session.lock:  # the network cannot run
        for threshold in (0.01, 0.1, 0.02):
            page.set_value("#score", threshold)
            for group in (0, 1, 2):
                page.set_value("#group", group)
                assert page.evaluate(NUM_ROWS) is not None
    requests = page.evaluate("performance.getEntriesByType('resource').map((e) => e.name)")
    assert not requests


def test_the_boxes_of_all_groups_are_those_of_predict_at_every_threshold(
    page: Browser, server: WebServer, photos: list[Path]
) -> None:
    choose(page, photos[:1])
    groups = server.session.detector.detect_each_group(Image.open(photos[0]).convert("RGB"))
    page.set_value("#group", 2)
    scores_of_primary = groups[0].scores.tolist()
    middle = len(scores_of_primary) // 2
    # Between two scores, because the page has fewer digits of them.
    for threshold in (0.0, sum(scores_of_primary[middle : middle + 2]) / 2):
        page.evaluate(f"setScore({threshold})")
        expected = best_of_each_group(groups[0].above(threshold), groups)
        indices = page.evaluate("scene().others")  # [K,D], -1 for none
        for group, of_group in enumerate(indices):
            scores = groups[group].scores.double().numpy()
            shown = [np.nan if index < 0 else scores[index] for index in of_group]
            np.testing.assert_allclose(shown, expected.scores[:, group], atol=1e-6)
        assert page.evaluate(NUM_BOXES) == np.isfinite(expected.scores).sum() > 0


def test_the_assignment_in_the_page_is_the_best_one(page: Browser) -> None:
    random = np.random.default_rng(0)
    for rows, columns in ((1, 1), (5, 3), (3, 7), (20, 20), (0, 4)):
        values = random.random((rows, columns)).round(3)
        values[random.random(values.shape) < 0.5] = 0
        shown = page.evaluate(f"assign({values.tolist()}, {columns})")
        best = values[linear_sum_assignment(values, maximize=True)].sum()
        used = [column for column in shown if column >= 0]
        assert len(set(used)) == len(used)
        total = sum(values[row, column] for row, column in enumerate(shown) if column >= 0)
        assert total == pytest.approx(best)


def test_masks_are_decoded_as_they_were_encoded(
    browser: Browser, photos: list[Path], tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "masks.safetensors", "mask2former-tiny", num_classes=3)
    with groupdetr.ui(weights, imgsz=64, port=0, device="cpu") as server:
        browser.open(server.address)
        browser.wait_for("typeof info !== 'undefined' && info !== null && info.masks")
        choose(browser, photos[:1])
        detections = server.session.detector.predict(photos[0], 0.01)[0].detections
        assert detections.masks
        browser.evaluate("setScore(0.01)")
        assert browser.evaluate(NUM_PIXELS) > 0
        for index, rle in enumerate(detections.masks):
            shown = browser.evaluate(f"""(() => {{
              const canvas = maskCanvas(state.view.groups[0].detections[{index}].mask, "#ff0000");
              const {{ width, height }} = canvas;
              const {{ data }} = canvas.getContext("2d").getImageData(0, 0, width, height);
              return Array.from({{ length: width * height }}, (_, i) => data[4 * i + 3] > 0);
            }})()""")
            assert np.array_equal(shown, decode_mask(rle).ravel())


def test_classes_are_hidden_and_shown_again(page: Browser, photos: list[Path]) -> None:
    choose(page, photos[:1])
    page.set_value("#score", 0.01)
    before = page.evaluate(NUM_BOXES)
    of_class = int(page.evaluate("document.querySelector('.chip b').textContent"))
    page.click("#chips .chip")
    assert page.evaluate(NUM_BOXES) == before - of_class
    page.click("#chips .chip[aria-pressed=false]")
    assert page.evaluate(NUM_BOXES) == before


def test_several_images_wait_in_a_strip_and_one_that_cannot_be_read_says_why(
    page: Browser, photos: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "<b>broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:200])
    page.choose_files("#files", [photos[0], broken, photos[1]])
    page.wait_for("state.images.length === 3 && state.images.every((i) => i.data || i.error)")
    page.wait_for("document.querySelector('#status').classList.contains('failed')")
    assert "<b>broken.jpg" in page.evaluate("document.querySelector('#status').textContent")
    page.click("#strip button:nth-child(3)")
    assert page.evaluate("document.querySelector('#image-name').textContent") == photos[1].name
    page.errors[:] = [error for error in page.errors if "422" not in error]


def open_errors(page: Browser, server: WebServer) -> None:
    page.open(f"{server.address}#validation")
    page.wait_for("document.querySelectorAll('#tiles .tile').length")
    # The page asks again a little after the slider has moved. The cards that are there already
    # belong to the threshold before.
    page.evaluate("window.cardsBefore = state.cards; true")
    page.set_value("#errors-score", 0.01)
    page.wait_for("state.cards !== cardsBefore && state.cards.length")


def test_every_error_is_listed_and_leads_to_its_image(page: Browser, server: WebServer) -> None:
    open_errors(page, server)
    validation = server.session.validation
    assert validation is not None
    mistakes = validation.mistakes(0.01)
    for kind in ("false_positive", "missed", "confused"):
        of_kind = mistakes.of_kind(kind).items()
        page.click(f"[data-kind={kind}]")
        expected = min(len(of_kind), 48)
        page.wait_for(f"document.querySelectorAll('#cards .card').length === {expected}")
        if of_kind:
            page.click("#cards .card")
            page.wait_for("!document.querySelector('#viewer').hidden && state.view.groups")
            assert page.evaluate("state.view.index") == of_kind[0].image
            page.click("#back")
            page.wait_for("document.querySelectorAll('#cards .card').length")


def test_more_errors_are_added_once_and_only_to_their_own_list(
    page: Browser, server: WebServer
) -> None:
    """Two clicks before the answer, and a click on another kind of errors before it."""
    open_errors(page, server)
    page.evaluate("""
      window.askErrors = async (start) => {
        const kind = state.kind; // of the question; the answer comes later
        await new Promise((resolve) => setTimeout(resolve, 100));
        const items = [0, 1].map((offset) => ({
          image: 0, kind, box: [0, 0, 9, 9], score: 0.5, iou: 0, object: 0, detection: 0,
          file_name: `${kind} ${start + offset}`,
        }));
        const summary = { detected: 0, false_positive: 9, missed: 9, confused: 9,
                          precision: 0, recall: 0, F1: 0 };
        return { items, summary, total: 9 };
      };
      refreshErrors();
    """)
    names = "[...document.querySelectorAll('#cards .card')].map((card) => card.title)"
    page.wait_for(f"{names}[1] === 'false_positive 1'")
    page.evaluate("$('more').click(); $('more').click()")
    page.wait_for(f"{names}.length > 2")
    page.evaluate("window.later = false; setTimeout(() => { later = true; }, 300); true")
    page.wait_for("later")
    assert page.evaluate(names) == [f"false_positive {number}" for number in range(4)]
    page.evaluate("$('more').click(); document.querySelector('[data-kind=missed]').click()")
    page.evaluate("later = false; setTimeout(() => { later = true; }, 300); true")
    page.wait_for("later")
    assert page.evaluate(names) == ["missed 0", "missed 1"]


def test_the_results_in_an_image_are_those_of_the_evaluation(
    page: Browser, server: WebServer
) -> None:
    open_errors(page, server)
    validation = server.session.validation
    assert validation is not None
    assert validation.split is not None
    mistakes = validation.mistakes(0.01)
    for index in range(len(validation.split)):
        page.open(f"{server.address}#validation/{index}")
        page.wait_for(f"state.view && state.view.index === {index} && state.view.pairs")
        counts = page.evaluate("""(() => {
          const { result, missed } = results(state.view, 0);
          const counts = { missed: missed.size, detected: 0, false_positive: 0, confused: 0 };
          for (const kind of result.values()) counts[kind] += 1;
          return counts;
        })()""")
        kinds = [item.kind for item in mistakes.items() if item.image == index]
        expected = {kind: kinds.count(kind) for kind in ("missed", "false_positive", "confused")}
        expected["detected"] = mistakes.detected_image.tolist().count(index)
        assert counts == expected


def test_a_phone_scrolls_down_but_not_sideways(
    page: Browser, server: WebServer, photos: list[Path]
) -> None:
    page.resize(390, 800)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) <= 390
    choose(page, photos)
    page.set_value("#score", 0.01)
    page.set_value("#group", 2)
    assert page.evaluate(width) <= 390
    open_errors(page, server)
    assert page.evaluate(width) <= 390
