"""Fig. 7: what a training step keeps for the backward pass."""

from __future__ import annotations

import torch

from groupdetr.analysis.training_memory import MIB, MemoryStep, saved_for_backward


def kept(groups: int, naive: bool) -> float:
    step = MemoryStep(
        "conditional-detr-tiny", groups, naive, batch=1, height=256, width=256, queries=20
    )
    run, parameters = step.build()
    return saved_for_backward(run, parameters)


def test_naive_attention_keeps_the_weights_of_every_query_and_token() -> None:
    """With 1024 tokens, an encoder layer has 1024 x 1024 weights in each of four heads."""
    efficient, naive = kept(1, naive=False), kept(1, naive=True)
    encoder_weights = 4 * 1024 * 1024 * 4 / MIB
    assert naive - efficient > encoder_weights
    extra_of_groups = kept(6, naive=True) - naive
    # Three layers of cross-attention from 5 x 20 further queries.
    decoder_weights = 3 * 4 * 100 * 1024 * 4 / MIB
    # Efficient attention keeps a little of its own: one number of every query and head.
    difference = extra_of_groups - (kept(6, naive=False) - efficient)
    assert 0.9 * decoder_weights < difference < 1.1 * decoder_weights


def test_what_is_kept_is_counted_once_and_without_what_is_excluded() -> None:
    x = torch.zeros(2**20, requires_grad=True)  # 4 MiB

    def run() -> None:
        y = x * 2
        (y * y).sum().backward()

    assert saved_for_backward(run, [x]) == 4.0
