"""Findings of datasets that were translated to COCO annotations: told by their own files and lines.

The rules for COCO annotations number images and annotations. The user of another format knows
neither of these numbers. So they are replaced by the locations from which the records were read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from groupdetr.data.findings import Finding
from groupdetr.data.formats import FindLocation
from groupdetr.data.image_files import is_image_name
from groupdetr.data.records import CocoSplit

_NUMBERED = re.compile(r"(?:an annotation of )?(image|annotation) (\d+)")
_CATEGORIES = re.compile(r"categor(?:y|ies) (\d+(?:, \d+)*)")


def with_locations(findings: Iterable[Finding], splits: Iterable[CocoSplit]) -> list[Finding]:
    """Return findings whose records are named by the file and line that they were read from."""
    find_location = next((split.find_location for split in splits if split.find_location), None)
    if find_location is None:
        return list(findings)
    result = []
    for finding in findings:
        if match := _CATEGORIES.fullmatch(finding.record):
            result.append(_at_classes(finding, match[1].split(", "), find_location))
            continue
        match = _NUMBERED.fullmatch(finding.record)
        location = find_location(match[1], int(match[2])) if match else None
        if location is None:
            result.append(finding)
        elif match and match[1] == "image" and _is_about_image_file(finding):
            # It names the image already. The file that lists the image is of use, too.
            lists_it = ", ".join(filter(None, location)) if location.file != finding.file else ""
            result.append(replace(finding, record=lists_it))
        else:
            result.append(replace(finding, file=location.file, record=location.record))
    # Every split has the same classes, whose problems are named once.
    return list(dict.fromkeys(result))


def _at_classes(finding: Finding, numbers: list[str], find_location: FindLocation) -> Finding:
    """Return a finding about categories that names the file with the names of the classes."""
    locations = [find_location("category", int(number)) for number in numbers]
    known = [location for location in locations if location is not None]
    if not known:
        return finding
    record = ", ".join(location.record for location in known)
    return replace(finding, file=known[0].file, record=record)


def _is_about_image_file(finding: Finding) -> bool:
    return is_image_name(finding.file)
