"""The type of JSON objects: what is written to JSON and YAML files, and what is read from them."""

from __future__ import annotations

from typing import Any

# The values are Any because a reader indexes nested lists and objects, whose types JSON does not
# declare. A value that comes from a user's file is checked before it is used.
JsonObject = dict[str, Any]
