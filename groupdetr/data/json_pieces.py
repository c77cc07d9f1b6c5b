"""A JSON file with one very long list, parsed piece by piece.

The Python objects of COCO's train annotations take 3 GB. Here those of one piece exist at a time.

Nothing is assumed about the content. A piece is cut where a list of objects may be cut, and it is
taken only if it parses as a list by itself. Then everything before its end is closed, so the cut
was neither inside of a text nor inside of an inner list. The file around the list is parsed with a
text in the place of the list, which has to come back as the value of the list's key. Whatever does
not fit this form is left to the parser of `json_file.py`, which explains what is wrong.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import orjson

from groupdetr.structures.json_object import JsonObject

_PIECE = 1 << 17  # bytes; its objects fit into the caches of a processor
_BETWEEN_OBJECTS = re.compile(rb"\}\s*,\s*\{")
_LAST_OBJECT = re.compile(rb"\}\s*\]")
_MAX_ENDS = 3  # places that may be the end of the list
_PLACEHOLDER = "the list that was cut out of this file"
_SPACES = np.frombuffer(b" \t\r\n", dtype=np.uint8)


class NotPlainError(Exception):
    """A file is not in the plain form that this module reads. It may have faults, or not."""


class JsonPieces:
    """The bytes of a JSON object with a long list of objects under the key ``key``.

    `NotPlainError` if the bytes are not of that form, if they are no valid JSON in UTF-8, or if
    any object has a key twice.
    """

    def __init__(self, raw: bytes, key: str) -> None:
        self.raw = raw
        self.key = key
        self._view = memoryview(raw)  # a slice of it is no copy
        self._spans: list[tuple[int, int]] = []  # of the pieces that were read: first byte and end
        self._ends: list[int] = []  # index in the list after each piece
        self._piece: tuple[int, list[JsonObject]] = (-1, [])  # the last one that `row` has read

    def pieces(self) -> Iterator[list[JsonObject]]:
        """Yield the objects of the list, one piece after the other."""
        opening = re.search(b'"%s"\\s*:\\s*\\[' % self.key.encode(), self.raw)
        if opening is None:
            raise NotPlainError("no such list")
        self._opening = start = opening.end() - 1  # the bracket
        start += 1
        while True:
            cut = _BETWEEN_OBJECTS.search(self.raw, start + _PIECE)
            items = None if cut is None else self._read(start, cut.start() + 1)
            if cut is None or items is None:
                break
            yield items
            start = cut.end() - 1
        yield self._last_piece(start)

    def _last_piece(self, start: int) -> list[JsonObject]:
        """Return the objects from ``start`` to the end of the list."""
        ends = _LAST_OBJECT.finditer(self.raw, start)
        for _, match in zip(range(_MAX_ENDS), ends):
            end = match.start() + 1
            items = self._read(start, end)
            if items is not None:
                self._closing = match.end() - 1
                return items
        raise NotPlainError("the end of the list was not found")

    def _read(self, start: int, end: int) -> list[JsonObject] | None:
        """Return the objects in a part of the bytes; None if it does not hold whole objects."""
        text = self._as_list(start, end)
        items = _parse(text)
        if items is None:
            return None
        _expect_single_keys(text, sum(map(len, items)), items)
        self._spans.append((start, end))
        self._ends.append((self._ends[-1] if self._ends else 0) + len(items))
        return items

    def _as_list(self, start: int, end: int) -> bytes:
        """Return a part of the bytes in brackets."""
        return b"".join((b"[", self._view[start:end], b"]"))

    def rest(self) -> JsonObject:
        """Return the object without the list. All pieces must have been read before."""
        placeholder = orjson.dumps(_PLACEHOLDER)
        around = self.raw[: self._opening] + placeholder + self.raw[self._closing + 1 :]
        try:
            content = orjson.loads(around)
        except orjson.JSONDecodeError:
            raise NotPlainError("it is not valid") from None
        if not isinstance(content, dict) or around.count(placeholder) != 1:
            raise NotPlainError("it is not one object")
        if content.pop(self.key, None) != _PLACEHOLDER:
            raise NotPlainError("the list is not a value of the outer object")
        # Usually there are only objects, and lists of objects, that have no inner objects.
        num_keys = 1 + len(content)
        for value in content.values():
            objects = value if isinstance(value, list) else [value]
            num_keys += sum(len(item) for item in objects if isinstance(item, dict))
        _expect_single_keys(around, num_keys, {**content, self.key: None})
        return content

    def rows(self) -> Sequence[JsonObject]:
        """Return the objects of the list as a sequence, which parses them when they are used."""
        return _Rows(self)

    def row(self, index: int) -> JsonObject:
        """Return one object of the list. Its piece is parsed again, unless it was the last one."""
        number = bisect_right(self._ends, index)
        if self._piece[0] != number:
            start, end = self._spans[number]
            self._piece = number, _parse(self._as_list(start, end)) or []
        items = self._piece[1]
        return items[index - self._ends[number]]  # counted from the end of the piece

    def __len__(self) -> int:
        return self._ends[-1]


class _Rows(Sequence[JsonObject]):
    def __init__(self, pieces: JsonPieces) -> None:
        self._pieces = pieces

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._pieces.row(int(index))


def _parse(text: bytes) -> list[JsonObject] | None:
    """Return a list of JSON objects, None if the text is anything else."""
    try:
        items = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return items if set(map(type, items)) == {dict} else None


def _expect_single_keys(text: bytes, num_keys: int, content: object) -> None:
    """Raise `NotPlainError` unless no object in ``text`` has a key twice.

    ``content`` is what the parser made of the text. ``num_keys`` is the number of its keys if
    there are no inner objects.

    The parser keeps the last one of equal keys. So keys are counted: in what it returned, and in
    the text, where a colon follows each. More colons may be inside of texts, but there cannot be
    fewer than keys. If there are more, only colons after a quote are counted, which are as many as
    keys at least as long as no colon follows a space.
    """
    characters = np.frombuffer(text, dtype=np.uint8)
    is_colon = characters == ord(":")
    if np.count_nonzero(is_colon) == num_keys:  # half the time of `bytes.count`
        return
    before_colon = characters[np.flatnonzero(is_colon) - 1]
    if np.isin(before_colon, _SPACES).any():
        raise NotPlainError("there may be a space before a colon")
    after_quote = int((before_colon == ord('"')).sum())
    if after_quote != num_keys and after_quote != _count_keys(content):
        raise NotPlainError("a key may occur twice")


def _count_keys(value: object) -> int:
    """Return the number of keys of all objects in a JSON value."""
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    if isinstance(value, list) and not {dict, list}.isdisjoint(map(type, value)):
        return sum(map(_count_keys, value))
    return 0
