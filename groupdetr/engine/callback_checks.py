"""The checks of callbacks before a training."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from difflib import get_close_matches

from groupdetr.engine.callbacks import HOOKS, Callback

# Names that other libraries give to these moments, where the nearest name would mislead.
HOOKS_ELSEWHERE = {
    "on_fit_start": "on_train_start",
    "on_train_begin": "on_train_start",
    "on_pretrain_routine_end": "on_train_start",
    "on_fit_end": "on_train_end",
    "on_batch_end": "on_step_end",
    "on_train_batch_end": "on_step_end",
    "on_optimizer_step": "on_step_end",
    "on_epoch_end": "on_evaluation_end",
    "on_train_epoch_end": "on_evaluation_end",
    "on_fit_epoch_end": "on_evaluation_end",
    "on_validation_end": "on_evaluation_end",
    "on_validation_epoch_end": "on_evaluation_end",
    "on_val_end": "on_evaluation_end",
    "on_test_end": "on_evaluation_end",
    "on_evaluate": "on_evaluation_end",
    "on_validation_batch_end": "on_evaluation_progress",
    "on_log": "on_record",
    "on_save": "on_checkpoint",
    "on_save_checkpoint": "on_checkpoint",
    "on_model_save": "on_checkpoint",
}


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise `TypeError` for callbacks that would silently do nothing, or fail when called.

    These are objects of other classes, methods that begin with ``on_`` and are not hooks, and hooks
    with other parameters.
    """
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list of callbacks, not {callbacks!r}")
    for callback in callbacks:
        if isinstance(callback, type) and issubclass(callback, Callback):
            name = callback.__name__
            raise TypeError(f"callbacks takes objects, not classes: pass {name}() for {name}")
        if not isinstance(callback, Callback):
            kind = type(callback).__name__
            raise TypeError(f"a callback must inherit from groupdetr.Callback; {kind} does not")
        _expect_known_hooks(callback)
        for hook in HOOKS:
            _expect_parameters(callback, hook)


def _expect_known_hooks(callback: Callback) -> None:
    """Raise `TypeError` for a method whose name begins with ``on_`` and is not that of a hook."""
    for name in dir(callback):
        if not name.startswith("on_") or name in HOOKS:
            continue
        if not callable(getattr(callback, name)):
            continue
        nearest = get_close_matches(name, HOOKS, n=1)
        suggestion = HOOKS_ELSEWHERE.get(name) or (nearest[0] if nearest else None)
        hint = f"did you mean {suggestion}? " if suggestion else ""
        raise TypeError(
            f"{type(callback).__name__}.{name} would never be called: there is no such hook; "
            f"{hint}The hooks are {', '.join(HOOKS)}. Other methods must not begin with on_."
        )


def _expect_parameters(callback: Callback, hook: str) -> None:
    """Raise `TypeError` unless a hook can be called with its arguments."""
    method = getattr(callback, hook)
    parameters = list(inspect.signature(getattr(Callback, hook)).parameters)
    expected = f"def {hook}({', '.join(parameters)})"
    name = f"{type(callback).__name__}.{hook}"
    if not callable(method):
        raise TypeError(f"{name} must be a method: {expected}")
    signature = inspect.signature(method)
    try:
        signature.bind(*parameters[1:])
    except TypeError as error:
        raise TypeError(f"{name} cannot be called with its arguments: {expected}") from error
