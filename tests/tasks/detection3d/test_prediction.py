"""Names in the tables of nuScenes are data: annotated images are written to the output folder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from groupdetr.tasks.detection3d.prediction import annotated_name


@pytest.mark.parametrize(
    ("scene", "token", "name"),
    [
        ("scene-0061", "ca9a282c9e77", "scene-0061-ca9a282c9e77.jpg"),
        ("../../secret", "a", ".._.._secret-a.jpg"),
        ("/etc/passwd", "a:b", "_etc_passwd-a_b.jpg"),
    ],
)
def test_the_name_of_an_annotated_image_leads_nowhere(scene: str, token: str, name: str) -> None:
    sample: Any = SimpleNamespace(scene=scene, token=token)
    assert annotated_name(sample) == name
