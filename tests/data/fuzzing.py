"""How often the tests with random content try: forty times, or as often as a variable says."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck

# GROUPDETR_FUZZ_EXAMPLES=10000 pytest tests/data/test_fuzz.py
EXAMPLES = int(os.environ.get("GROUPDETR_FUZZ_EXAMPLES", "40"))
FUZZ: dict[str, Any] = {
    "max_examples": EXAMPLES,
    "deadline": None,
    # The same examples in every run of CI. Long runs by hand look for new ones.
    "derandomize": EXAMPLES <= 100,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "database": None,
}
