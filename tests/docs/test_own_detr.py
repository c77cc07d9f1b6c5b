"""`docs/own-detr.md` turns a plain DETR of forty lines into Group DETR, in thirty lines."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groupdetr.analysis.isolation import isolation
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Target
from tests.docs.stock_detr import StockDETR

PAGE = (Path(__file__).parents[2] / "docs/own-detr.md").read_text()
CODE = "".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.S))
CLASSES = 3


def random_batch(seed: int = 0) -> tuple[Tensor, list[Target]]:
    """Two images with one bright square each. The class is the colour of the square."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.rand(2, 3, 32, 32, generator=generator)
    targets = []
    for image in images:
        left, top, label = torch.randint(0, CLASSES, (3,), generator=generator).tolist()
        image[label, 8 * top : 8 * top + 12, 8 * left : 8 * left + 12] = 1
        box = torch.tensor([[8.0 * left + 6, 8.0 * top + 6, 12, 12]]) / 32
        targets.append(Target(torch.tensor([label]), box))
    return images, targets


def run_page(changes: dict[str, str] | None = None) -> dict[str, Any]:
    """Run the code of the page, with texts of it replaced, and return its variables."""
    code = CODE
    for old, new in (changes or {}).items():
        assert old in code
        code = code.replace(old, new)
    torch.manual_seed(0)
    images, targets = random_batch()
    variables: dict[str, Any] = {
        "YourDETR": StockDETR,
        "num_classes": CLASSES,
        "images": images,
        "targets": targets,
    }
    exec(compile(code, "docs/own-detr.md", "exec"), variables)
    return variables


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The variables of the page with smaller groups."""
    return run_page({"K, N = 11, 100": "K, N = 4, 6"})


@pytest.fixture(autouse=True)
def _same_random_numbers(page: dict[str, Any]) -> None:
    """The first test creates the page, which takes random numbers; it has those of the others."""
    torch.manual_seed(0)


def measure(model: Any, images: Tensor, num_groups: int) -> Any:
    """The isolation of the model, measured as on the page."""
    memory = model.eval().encode(images)
    queries = model.queries.weight.expand(len(images), -1, -1)
    return isolation(lambda queries: model.decode(queries, memory), queries, num_groups)


def lines_of_code(code: str) -> int:
    return sum(bool(line.strip()) for line in code.splitlines())


def test_thirty_lines_change_a_detr_of_forty() -> None:
    assert lines_of_code(CODE) <= 30
    assert lines_of_code(inspect.getsource(StockDETR)) <= 45


def test_the_page_runs_as_it_is_written() -> None:
    variables = run_page()
    assert variables["logits"].shape == (3, 2, 1100, CLASSES + 1)
    assert variables["final"].boxes.shape == (2, 100, 4)
    assert variables["result"].holds


def test_the_losses_are_the_mean_of_those_of_single_groups(page: dict[str, Any]) -> None:
    """Every group is run on its own, as K detectors that share their weights."""
    model, criterion, num_groups = page["model"].eval(), page["criterion"], page["K"]
    images, targets = page["images"], page["targets"]
    memory = model.encode(images)
    queries = model.queries.weight.expand(len(images), -1, -1)
    losses = criterion(Outputs.from_flat(*model.decode(queries, memory), num_groups), targets)
    singles = []
    for group in queries.chunk(num_groups, dim=1):
        outputs = Outputs.from_flat(*model.decode(group, memory), num_groups=1)
        singles.append(criterion(outputs, targets))
    assert len(losses) == 9  # three terms of three layers
    for name, loss in losses.items():
        mean = sum(single[name].item() for single in singles) / num_groups
        assert loss.item() == pytest.approx(mean, rel=1e-5)


def test_inference_is_group_0(page: dict[str, Any]) -> None:
    model, images = page["model"].eval(), page["images"]
    with torch.no_grad():
        queries = model.queries.weight.expand(len(images), -1, -1)
        logits, _ = model.decode(queries, model.encode(images))
        final = Outputs.from_flat(*model(images), num_groups=1).final
    torch.testing.assert_close(final.logits, logits[-1, :, : page["N"]], rtol=0, atol=1e-5)


def test_without_step_2_the_groups_leak(page: dict[str, Any]) -> None:
    model = StockDETR(CLASSES, page["K"] * page["N"])
    result = measure(model, page["images"], page["K"])
    assert result.leak > 0.01
    assert not result.holds


class SplitAfterBatch(nn.Module):
    """Groups that are split after the batch axis: [K*N,B,C] is reshaped to [N,K*B,C].

    With ``batch_first`` it is reshaped to [K*B,N,C].
    """

    def __init__(self, attention: nn.MultiheadAttention, num_queries: int, batch_first: bool):
        super().__init__()
        self.attention = attention
        self.num_queries = num_queries
        self.batch_first = batch_first

    def forward(self, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        flat = query.transpose(0, 1)  # [K*N,B,C]
        channels = flat.shape[-1]
        if self.batch_first:
            x = flat.reshape(-1, self.num_queries, channels)
            attended = self.attention(x, x, x)[0]
        else:
            x = flat.reshape(self.num_queries, -1, channels).transpose(0, 1)
            attended = self.attention(x, x, x)[0].transpose(0, 1)
        return attended.reshape(flat.shape).transpose(0, 1), None


@pytest.mark.parametrize("batch_first", [False, True])
def test_groups_that_are_split_after_the_batch_axis_leak(
    page: dict[str, Any], batch_first: bool
) -> None:
    num_groups, num_queries = page["K"], page["N"]
    model = StockDETR(CLASSES, num_groups * num_queries)
    for layer in model.transformer.decoder.layers:
        layer.self_attn = SplitAfterBatch(layer.self_attn, num_queries, batch_first)
    result = measure(model, page["images"], num_groups)
    assert result.leak > 0.01
    assert not result.holds


def test_denoising_queries_are_isolated_and_reveal_nothing(page: dict[str, Any]) -> None:
    """The sequence of a group is [DN_k | Q_k], and `tgt_mask` is the mask of one group."""
    num_groups, num_queries, num_denoising = page["K"], page["N"], 2
    sequence = num_denoising + num_queries
    blocked = torch.zeros(sequence, sequence, dtype=torch.bool)
    blocked[num_denoising:, :num_denoising] = True  # matching queries do not see denoising queries
    model, images = copy.deepcopy(page["model"]).eval(), page["images"]
    memory = model.encode(images)
    layers = model.transformer.decoder.layers
    for layer in layers:
        layer.self_attn.num_queries = sequence

    def decode(queries: Tensor) -> Tensor:
        for layer in layers:
            queries = layer(queries, memory, tgt_mask=blocked)
        return queries

    queries = torch.randn(len(images), num_groups * sequence, memory.shape[-1])
    assert isolation(decode, queries, num_groups).holds

    def split(x: Tensor) -> list[Tensor]:
        """The denoising and the matching queries of all groups."""
        groups = x.unflatten(1, (num_groups, sequence))
        return [*groups.split([num_denoising, num_queries], dim=2)]

    other_denoising = queries.clone()
    split(other_denoising)[0].normal_()
    (denoising, matching), (other, same) = split(decode(queries)), split(decode(other_denoising))
    assert (denoising - other).abs().max() > 0.01
    assert torch.equal(matching, same)


def test_training_k_groups_lowers_the_loss_of_the_one_at_inference(page: dict[str, Any]) -> None:
    """On images that are not trained, to less than two thirds."""
    model, criterion, num_groups = copy.deepcopy(page["model"]), page["criterion"], page["K"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(seed: int, groups: int) -> Tensor:
        images, targets = random_batch(seed)
        losses = criterion(Outputs.from_flat(*model(images), num_groups=groups), targets)
        return torch.stack([*losses.values()]).sum()

    def validation_loss() -> float:
        model.eval()
        with torch.no_grad():
            return sum(loss(seed, groups=1).item() for seed in range(1000, 1010)) / 10

    before = validation_loss()
    model.train()
    for step in range(80):
        optimizer.zero_grad()
        loss(step, num_groups).backward()
        optimizer.step()
    assert validation_loss() < 2 / 3 * before
