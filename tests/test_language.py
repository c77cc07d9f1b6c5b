"""One thing has one name, and the name is the field's: old private words do not come back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for folder in ("groupdetr", "tests", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]

# Words that this library once used where the field has others. None may be a name again: of a
# class, a function, a parameter, an attribute or a variable.
OLD_NAMES = {
    "said",
    "say",
    "saying",
    "speaker",
    "listen_first",
    "speak_first",
    "SpeakingDecoder",
    "LookFirstLayer",
    "compete",
    "Compete",
    "competes",
    "separately",
    "jointly",
    "end_to_end",
    "kept_at_inference",
    "aim",
    "PointAim",
    "ScaledAim",
    "ModulatedAim",
    "query_place",
    "key_place",
    "content_of_queries",
    "content_of_tokens",
    "OfBox",
    "OfPaddedBox",
    "attend_mask",
    "Movable",
    "unseen",
    "among",
    "of_groups",
    "Canvas",
    "Bitmaps",
    "bitmaps",
    "SpaceHead",
    "MovingHead",
    "SplitRegression",
    "think",
    "start_rare",
    "start_as_loud",
    "start_at",
    "start_all_over",
    "start_around",
    "start_around_the_reference",
    "proposable",
    "copies_apart",
    "known_pairs",
    "copies_that_fit",
    "objects_of",
    "AsTheyAre",
    "TopDown",
    "attending",
    "first_offsets",
    "Pairing",
    "lay_out",
    "laid_out",
    "everyone",
    "AtPoints",
    "Absent",
    "told",
    "AtOnce",
    "ByChunks",
    "learner",
    "taught",
    "mended",
    "picture",
    "pictures",
    "Picture",
    "Pictures",
    "one_thread",
    "FlipAnd",
    "CropOrNot",
    "jittering",
    "flipping",
    "Placement",
    "placement",
    "burden",
    "heaviest",
    "Worst",
    "worst_of",
    "survey",
    "remarks",
    "Footage",
    "footage",
    "filmed",
    "located",
    "spelled",
    "Pieces",
    "Evaluated",
    "Compared",
    "sees",
    "Examination",
    "of_all",
    "agreed",
    "give_back",
    "Way",
    "Probe",
    "thrift",
    "ran_out",
    "Exhibit",
    "exhibit",
    "EXHIBIT",
    "Arm",
    "Longer",
    "Watching",
    "Verb",
    "VERBS",
    "Verbs",
    "FIGURES",
    "BOX_FIGURES",
    "asks",
    "wanted",
    "looks",
    "everybody",
    "whoever",
    "nobody",
    "dearer",
}
# Words that stood for several things at once. They may not name a function, a class or a parameter.
AMBIGUOUS_NAMES = {
    "found",
    "place",
    "places",
    "drawn",
    "seen",
    "learned",
    "beside",
    "here",
    "there",
    "of",
}


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name in a file, with its line."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield getattr(node, "lineno", 0), value


def defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The names of functions, classes and parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def test_old_private_names_do_not_come_back() -> None:
    old = []
    for path in FILES:
        tree, file = ast.parse(path.read_text()), path.relative_to(ROOT)
        old += [f"{file}:{line} {name}" for line, name in names(tree) if name in OLD_NAMES]
        old += [
            f"{file}:{line} {name}" for line, name in defined_names(tree) if name in AMBIGUOUS_NAMES
        ]
    assert not old, "\n".join(old)


def test_an_image_is_an_image() -> None:
    texts = [*FILES, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*")]
    # This file, and the names of classes that others have chosen
    excepted = (Path(__file__), ROOT / "groupdetr/weights/objects365_names.py")
    for path in texts:
        if path.suffix in (".py", ".md", ".sh") and path not in excepted:
            assert not re.search("picture", path.read_text(), re.IGNORECASE), path
