"""`groupdetr doctor --module` answers for any module, and says why when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from groupdetr.cli.main import main
from tests.cli.test_json import printed_json
from tests.json_docs import assert_documented

FILE = """
import torch
from torch import nn

from tests.analysis.test_module_isolation import HandwrittenGroups, SplitAfterBatch

IMAGES = torch.rand(2, 3, 32, 32)

def separate():
    return HandwrittenGroups(3), IMAGES, 3

def alone():
    return HandwrittenGroups(3)

def unknown_groups():
    model = HandwrittenGroups(3)
    del model.num_groups
    return model

def leaking():
    model = HandwrittenGroups(3)
    model.decoder.layers[0].self_attn = SplitAfterBatch(model.decoder.layers[0].self_attn, 3)
    return model, (IMAGES,), 3

def decoder():
    layer = nn.TransformerDecoderLayer(16, 2, 16, batch_first=True)
    tokens = torch.rand(2, 12, 16)
    return nn.TransformerDecoder(layer, 1), {"tgt": tokens, "memory": tokens}, 3

def evaluation():
    return HandwrittenGroups(3).eval(), IMAGES, 3

def fails():
    raise KeyError("weights")

def wrong_inputs():
    return HandwrittenGroups(3), torch.rand(2, 5, 8, 8), 3

def number():
    return 3

def odd_groups():
    return HandwrittenGroups(3), IMAGES, "3"

constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    # Two files of one name cannot be loaded in one process.
    path = tmp_path / f"doctor_{abs(hash(request.node.nodeid))}.py"
    path.write_text(FILE)
    return str(path)


def test_a_sound_module_passes(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = printed_json(["doctor", "--module", f"{module}:separate"], capsys)
    assert_documented("doctor", result)
    assert result["holds"]
    assert result["isolation"]["queries"] == ["query_embed.weight"]


def test_a_module_alone_gets_random_images(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--module", f"{module}:alone", "--queries", "query_embed"]
    assert main(["doctor", *options, "--groups", "3"]) == 0
    assert "3 groups of 5 queries in query_embed.weight" in capsys.readouterr().out
    # K is an attribute of the module, unless it is called otherwise.
    assert main(["doctor", *options]) == 0
    options = ["--module", f"{module}:unknown_groups"]
    assert main(["doctor", *options]) == 2
    assert "--groups K" in capsys.readouterr().err


def test_a_leak_is_named(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = printed_json(["doctor", "--module", f"{module}:leaking"], capsys, exit_code=1)
    assert_documented("doctor", result)
    assert main(["doctor", "--module", f"{module}:leaking"]) == 1
    out = capsys.readouterr().out
    assert "the first module that leaks is decoder.layers.0.self_attn.attention" in out
    assert "GROUPS LEAK" in out


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("decoder", (), "several inputs may be the queries: tgt, memory"),
        ("evaluation", (), "measured in training mode"),
        ("fails", (), "the function fails: KeyError: 'weights'"),
        ("wrong_inputs", (), "the module fails with the inputs of the function: RuntimeError"),
        ("number", (), "the function returns (int), not a module"),
        ("odd_groups", (), "the number of groups is '3'"),
        ("constant", (), "is a int, not a function"),
        ("nothing", (), "has no 'nothing'"),
        ("separate", ("--groups", "4"), "--groups is 4, and the function returns 3 groups"),
        ("separate", ("--queries", "query"), "those with rows for 3 groups are: query_embed"),
        ("separate", ("--model", "dino-tiny"), "leave out one of them"),
    ],
)
def test_what_cannot_be_told_is_said(
    function: str,
    options: tuple[str, ...],
    message: str,
    module: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--module", f"{module}:{function}", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_options_are_for_modules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--module", "my_module"]) == 2
    assert "'my_module' does not name a function" in capsys.readouterr().err
    assert main(["doctor", "--queries", "query_embed"]) == 2
    assert "leave out --queries" in capsys.readouterr().err
