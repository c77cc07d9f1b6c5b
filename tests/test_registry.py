"""One name is one model everywhere; recipes are saved with their class; plugins are named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pytest
import torch

import groupdetr
from groupdetr import registry
from groupdetr.checkpoints import native
from groupdetr.cli.main import main, read_options
from groupdetr.cli.options.train import TrainOptions
from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.term import Term
from groupdetr.detectors.tiny import TinyDABDETR
from groupdetr.errors import UsageError, WeightsError
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.experiments.training_settings import TINY_SETTINGS
from groupdetr.groups import attend_across_groups, match_naively
from groupdetr.registry import experiment, recipe_from_dict, recipe_to_dict
from groupdetr.settings import DEFAULT_MODEL, Settings, SettingsOptions
from groupdetr.tasks.training_config import TrainingConfig, changed_fields
from groupdetr.workflows.recipe_options import make_recipe
from tests.runs import SMALL_MODEL, SMALL_SETTINGS

PLUGIN = '''
from dataclasses import dataclass

import groupdetr
from groupdetr.detectors.tiny import TinyDABDETR


@dataclass(frozen=True)
class PluginDETR(TinyDABDETR):
    """DAB-DETR with a weight of the L1 loss that can be chosen."""

    l1_weight: float = 5.0

    def terms(self):
        weight = self.l1_weight
        return [groupdetr.Focal(2.0, 1.0), groupdetr.L1(weight, weight), groupdetr.GIoU(2.0, 2.0)]


settings = groupdetr.Settings(epochs=1, batch=4, imgsz=48, augment="flip")
groupdetr.register_model("plugin-detr", PluginDETR(num_groups=2), settings, about="mine")
'''


@dataclass(frozen=True)
class WeightedDETR(TinyDABDETR):
    """A subclass that inherits everything of a preset, its name too."""

    l1_weight: float = 5.0

    def terms(self) -> list[Term]:
        return [Focal(2.0, 1.0), L1(self.l1_weight, self.l1_weight), GIoU(2.0, 2.0)]


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget models and plugins that a test adds."""
    monkeypatch.setattr(registry, "_loaded_plugins", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(EXPERIMENTS)
    yield
    EXPERIMENTS.clear()
    EXPERIMENTS.update(before)


# one name, one model

PRESETS = [name for name in groupdetr.list_models() if "/" not in name]
# A preset of every recipe, and two rows of tables with groups and settings of their own.
SOME_NAMES = [
    *{type(experiment(name).recipe): name for name in PRESETS}.values(),
    *("table3/conditional-detr-r50-12e-group", "table7/d-tiny"),
]


@pytest.mark.parametrize("name", SOME_NAMES)
def test_a_name_is_the_same_model_everywhere(name: str) -> None:
    """`create_model`, the command line and options from Python give one recipe and its settings."""
    with torch.device("meta"):
        recipe = groupdetr.create_model(name).recipe
    from_command_line = read_options("train", ["data", "--model", name])
    from_python = TrainOptions(Path("data"), model=name)
    assert from_command_line == from_python
    config = TrainingConfig.from_model(Path("data"), name, experiment(name).settings)
    for field in fields(config):
        if field.name == "transform":
            continue  # A module of PyTorch, which only `groupdetr.train` takes.
        assert getattr(config, field.name) == getattr(from_command_line, field.name)
    trained = make_recipe(config, experiment(name), resumes=True)
    # Gradient checkpointing is a setting, which does not change what is computed.
    assert trained == recipe.with_options(recompute=config.settings.recompute)


def test_presets_have_the_published_number_of_groups_and_small_ones_have_six() -> None:
    for name in PRESETS:
        small = 6 if name.endswith(("-tiny", "-lite")) else 11
        expected = 13 if name.startswith(("lw-detr-", "rf-detr-")) else small
        assert experiment(name).recipe.num_groups == expected, name


def test_set_takes_numbers_with_an_exponent_and_no_point() -> None:
    chosen = experiment("dino-vit-tiny")
    config = TrainingConfig.from_model(Path("data"), "dino-vit-tiny", chosen.settings)
    recipe = make_recipe(replace(config, set=("eps=1e-05",)), chosen, resumes=True)
    assert recipe.eps == 1e-5  # type: ignore[attr-defined]


def test_training_without_a_model_is_training_of_the_default_model() -> None:
    without = read_options("train", ["data"])
    assert without == read_options("train", ["data", "--model", DEFAULT_MODEL])
    assert without.settings.epochs == 50


def test_keywords_of_train_are_the_settings() -> None:
    settings = {field.name: field.type for field in fields(Settings)}
    keywords = dict(SettingsOptions.__annotations__)
    assert keywords.keys() == settings.keys()
    with pytest.raises(TypeError, match=r"no keyword 'epoch'; did you mean 'epochs'"):
        groupdetr.train("data", epoch=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"no keyword 'group'; did you mean 'groups'"):
        groupdetr.train("data", group=3)  # type: ignore[call-arg]


def test_list_models_filters_by_a_pattern() -> None:
    assert groupdetr.list_models("dino*tiny") == ["dino-tiny", "dino-vit-tiny"]
    assert groupdetr.list_models() == list(EXPERIMENTS)


# choices are fields


def test_the_rows_of_table_7_are_fields_of_one_class() -> None:
    row_d = experiment("table7/d-tiny").recipe
    for row in "abc":
        assert type(experiment(f"table7/{row}-tiny").recipe) is type(row_d)
    naive = experiment("table7/b-tiny").recipe
    chosen = row_d.with_options(
        group_attention=attend_across_groups,
        match=match_naively,
        inference_group=None,
        preset=naive.preset,
    )
    assert chosen == naive
    assert (chosen.group_attention, chosen.match) == ("attend_across_groups", "match_naively")


def test_a_choice_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="group_attention must be one of attend_within_groups, "):
        experiment("dino-tiny").recipe.with_options(group_attention="attend")
    # The reference of Conditional DETR is a point, which has no box to refine.
    with pytest.raises(ValueError, match="reference_update must be one of keep_reference, not"):
        experiment("conditional-detr-tiny").recipe.with_options(reference_update="refine_boxes")


@pytest.mark.parametrize(
    ("field", "value"),
    [("dropout", "high"), ("num_groups", 2.5), ("num_queries", "7"), ("shared_heads", 1)],
)
def test_a_value_of_another_type_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be (float|int|bool), not"):
        experiment("dino-tiny").recipe.with_options(**{field: value})


# saved recipes


def test_a_recipe_is_saved_with_its_class_and_all_fields() -> None:
    for name in PRESETS:
        recipe = experiment(name).recipe.with_options(num_groups=3, num_classes=7)
        saved = recipe_to_dict(recipe)
        assert saved.keys() == {"class", *asdict(recipe)}, name
        restored = recipe_from_dict(saved)
        assert type(restored) is type(recipe), name
        assert restored == recipe, name


def test_a_subclass_does_not_load_as_the_class_whose_name_it_inherits(
    clean_registry: None, tmp_path: Path
) -> None:
    recipe = WeightedDETR(preset="dab-detr-tiny", l1_weight=3.0, num_classes=2)
    file = tmp_path / "weights.safetensors"
    native.save(recipe.build(), file, {"recipe": recipe_to_dict(recipe)})
    with pytest.raises(WeightsError, match=r"tests\.test_registry:WeightedDETR, which is not kno"):
        groupdetr.Detector(file)

    groupdetr.register_model("weighted-detr", WeightedDETR())
    model = groupdetr.Detector(file).model
    assert model.recipe == recipe
    assert [term.loss_weight for term in model.recipe.terms()] == [1.0, 3.0, 2.0]


def test_unknown_fields_and_missing_classes_are_refused_by_name() -> None:
    saved = recipe_to_dict(experiment("dino-tiny").recipe)
    with pytest.raises(WeightsError, match=r"does not have: depth, width"):
        recipe_from_dict({**saved, "width": 3, "depth": 4}, "best.safetensors")
    del saved["class"]
    with pytest.raises(WeightsError, match="has no class") as error:
        recipe_from_dict(saved, "best.safetensors")
    assert error.value.where == "best.safetensors"


# plugins


def test_a_registered_name_cannot_be_taken(clean_registry: None) -> None:
    groupdetr.register_model("mine", TinyDABDETR(), TINY_SETTINGS)
    groupdetr.register_model("mine", TinyDABDETR(), TINY_SETTINGS)  # The same again does no harm.
    with pytest.raises(ValueError, match="there is a model 'mine' already"):
        groupdetr.register_model("mine", TinyDABDETR(num_queries=9), TINY_SETTINGS)


def test_a_detector_of_a_plugin_works_in_every_command(
    clean_registry: None,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is loaded by its name only, never by a checkpoint or a run alone."""
    monkeypatch.chdir(tmp_path)
    Path("plugin_models.py").write_text(PLUGIN, encoding="utf-8")
    run, image = (
        tmp_path / "run",
        min(path for path in shapes.rglob("*.*") if path.suffix in (".jpg", ".png")),
    )
    small = [*SMALL_MODEL, "l1_weight=3", *SMALL_SETTINGS, "--steps", "2", "--stop-after", "1"]
    train = ["train", str(shapes), "--model", "plugin-detr", "--out", str(run), *small]
    assert main(train) == 2
    assert "there is no model 'plugin-detr'" in capsys.readouterr().err
    plugin = ["--plugin", "plugin_models"]
    assert main([*train, *plugin]) == 0

    # Another process knows nothing of the plugin.
    commands = {
        "resume": ["train", "--resume", str(run)],
        "val": ["val", str(run)],
        "predict": ["predict", str(run), str(image), "--score", "0"],
        "doctor": ["doctor", "--model", str(run)],
    }
    refused = groupdetr_process(*commands["resume"])
    assert refused.returncode == 2
    assert "--plugin plugin_models" in refused.stderr
    assert main([*commands["resume"], *plugin]) == 0
    for name in ("val", "predict", "doctor"):
        # As in another process.
        with monkeypatch.context() as patch:
            patch.setattr(registry, "_loaded_plugins", [])
            patch.delitem(EXPERIMENTS, "plugin-detr")
            patch.delitem(sys.modules, "plugin_models")
            assert main(commands[name]) == 2, name
        assert "--plugin plugin_models" in capsys.readouterr().err
        assert main([*commands[name], *plugin]) == 0, name
    assert groupdetr.Detector(run).recipe.l1_weight == 3.0  # type: ignore[attr-defined]
    capsys.readouterr()
    assert main(["presets", *plugin]) == 0
    assert "plugin-detr" in capsys.readouterr().out


def groupdetr_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "groupdetr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_plugin_may_be_a_file_or_an_entry_point(
    clean_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "plugin_file.py"
    file.write_text(PLUGIN.replace("plugin-detr", "from-file"), encoding="utf-8")
    groupdetr.load_plugin(str(file))
    recipe = experiment("from-file").recipe
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe

    # An installed package declares its plugin in its metadata.
    installed = tmp_path / "site"
    metadata = installed / "plugin_package-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Name: plugin-package\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(
        "[groupdetr.models]\nmy-plugin = plugin_package:register\n", encoding="utf-8"
    )
    (installed / "plugin_package.py").write_text(
        "def register():\n    import groupdetr\n"
        "    from groupdetr.detectors.tiny import TinyDINO\n"
        "    groupdetr.register_model('from-package', TinyDINO())\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(UsageError) as error:
        experiment("from-package")
    assert "--plugin my-plugin" in str(error.value.remedy)
    groupdetr.load_plugin("my-plugin")
    assert "from-package" in groupdetr.list_models()


@pytest.mark.parametrize("name", ["no_such_plugin", "no/such/plugin.py", "..", ".x"])
def test_a_plugin_that_does_not_exist_is_an_error(clean_registry: None, name: str) -> None:
    with pytest.raises(UsageError, match=r"there is no (such )?plugin"):
        groupdetr.load_plugin(name)
    assert registry.loaded_plugins() == ()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("\0", "SyntaxError"),
    ],
)
@pytest.mark.parametrize("as_module", [False, True])
def test_a_plugin_that_fails_is_an_error_with_its_line(
    code: str,
    reason: str,
    as_module: bool,
    clean_registry: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / f"failing_{as_module}.py"
    path.write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as error:
        groupdetr.load_plugin(path.stem if as_module else str(path))
    assert reason in error.value.what
    assert error.value.where.endswith(", line 1") or code == "\0"
    assert error.value.__cause__ is not None
    assert registry.loaded_plugins() == ()


# callbacks from the command line

CALLBACK = """
import groupdetr


class StepCounter(groupdetr.Callback):
    steps = 0

    def on_step_end(self, trainer, event):
        self.steps += 1
        (trainer.run.path / "steps.txt").write_text(str(self.steps))

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
"""


def test_a_callback_from_the_command_line_survives_a_resume(
    clean_registry: None,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "plugin_callback.py"
    file.write_text(CALLBACK, encoding="utf-8")
    run = tmp_path / "run"
    callback = ["--callback", f"{file}:StepCounter"]
    options = [*SMALL_MODEL, *SMALL_SETTINGS, "--steps", "3", "--stop-after", "2"]
    arguments = ["train", str(shapes), "--model", "dab-detr-tiny", "--out", str(run), *options]
    assert main([*arguments, "--callback", f"{file}:StepCount"]) == 2
    assert "did you mean StepCounter?" in capsys.readouterr().err
    assert main([*arguments, *callback]) == 0
    assert main(["train", "--resume", str(run), *callback]) == 0
    assert (run / "steps.txt").read_text(encoding="utf-8") == "3"


def test_fields_that_weights_change_are_recorded_in_their_order() -> None:
    """The order of a set would differ between the processes of a training and its resume."""
    planned = TinyDABDETR()
    built = replace(planned, dropout=0.3, channels=32, num_groups=5, num_queries=7)
    names = [text.partition("=")[0] for text in changed_fields(built, planned)]
    assert names == [field.name for field in fields(planned) if field.name in names]
    assert len(names) == 4
