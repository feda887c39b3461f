"""Traces as they lie on disk: JSON of any size, compressed or not, damaged or not, item by item.

A trace of a GPU server is often larger than the memory it is read in, has control characters where names
should be, or ends where the job was killed. So items are decoded one by one; one that is no JSON is counted
and left out, and a file that stops early gives what it has.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gimlet_lab.errors import GimletError

#: Bytes read, or unpacked, at once.
CHUNK = 1 << 22

#: No item of a trace is longer; what seems so is damaged.
MAX_ITEM = 1 << 24

#: Between two objects of a list: where to go on after a damaged one.
_NEXT = re.compile(r"\}\s*,\s*(?=\{\s*\")")

_decoder = json.JSONDecoder(strict=False)


class TraceFileError(GimletError, ValueError):
    """A file that is no trace of a kind this program reads."""


class TraceFile:
    """A trace being read.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    skipped : int
        Items that were no JSON.
    cut_short : bool
        The file ends before its lists do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = 0
        self.cut_short = False
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._chunks: Iterator[str] = iter(())

    def entries(self, lists: frozenset[str]) -> Iterator[tuple[str, Any]]:
        """Each entry of the outer object; of those in ``lists``, item by item under the list's name.

        A file that is a bare list is one of ``traceEvents``.

        Raises
        ------
        TraceFileError
            If the file cannot be read or does not begin as a trace does.
        """
        try:
            with self.path.open("rb") as file:
                self._chunks = self._texts(file)
                yield from self._entries(lists)
        except FileNotFoundError:
            raise TraceFileError(f"{self.path}: there is no such file") from None
        except IsADirectoryError:
            raise TraceFileError(f"{self.path}: is a folder, not a trace") from None
        except OSError as error:
            raise TraceFileError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def _texts(self, file: BinaryIO) -> Iterator[str]:
        """The file as text, piece by piece; what is no UTF-8 is replaced."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        pieces = self._unpacked(file) if packed else iter(lambda: file.read(CHUNK), b"")
        yield from map(decoder.decode, pieces)

    def _unpacked(self, file: BinaryIO) -> Iterator[bytes]:
        """What gzip packed, up to where it is damaged or cut short."""
        unpacker, data = zlib.decompressobj(31), b""
        try:
            while data := data or file.read(CHUNK // 8):
                yield unpacker.decompress(data, CHUNK)
                data = unpacker.unconsumed_tail
                if unpacker.eof:
                    data = unpacker.unused_data or file.read(CHUNK // 8)
                    if data:
                        unpacker = zlib.decompressobj(31)
        except zlib.error:
            self.cut_short = True
        if not unpacker.eof:
            self.cut_short = True

    def _entries(self, lists: frozenset[str]) -> Iterator[tuple[str, Any]]:
        begins = self._peek()
        if begins == "[":
            yield from (("traceEvents", item) for item in self._items())
            return
        if begins != "{":
            raise TraceFileError(f"{self.path}: is not JSON, not a trace")
        self._at += 1
        while True:
            begins = self._peek()
            if begins == ",":
                self._at += 1
            elif begins == "}":
                return
            elif begins != '"':
                self.cut_short = True
                return
            else:
                try:
                    key = self._value()
                    if self._peek() != ":":
                        self.cut_short = True
                        return
                    self._at += 1
                    if key in lists and self._peek() == "[":
                        yield from ((key, item) for item in self._items())
                    else:
                        yield key, self._value()
                except ValueError:
                    self.cut_short = True
                    return

    def _items(self) -> Iterator[Any]:
        self._at += 1
        while True:
            begins = self._peek()
            if begins == "]":
                self._at += 1
                return
            if begins == ",":
                self._at += 1
            elif not begins:
                self.cut_short = True
                return
            else:
                try:
                    item = self._value()
                except ValueError:
                    if not self._resume():
                        self.cut_short = True
                        return
                    self.skipped += 1
                else:
                    yield item

    def _peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            rest = self._buffer[self._at : self._at + 64].lstrip()
            if rest:
                self._at = self._buffer.index(rest[0], self._at)
                return rest[0]
            self._at = min(self._at + 64, len(self._buffer))
            if self._at == len(self._buffer) and not self._more():
                return ""

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = _decoder.raw_decode(self._buffer, self._at)
            except ValueError as error:
                # Damaged, or only not all there yet: a text that does not end is told at its beginning.
                held = len(self._buffer) - self._at
                unfinished = getattr(error, "pos", 0) >= len(self._buffer) - 16 or "Untermin" in str(error)
                if not unfinished or held > MAX_ITEM or not self._more():
                    raise
            except RecursionError:
                raise ValueError("nested too deep") from None
            else:
                if end == len(self._buffer) and self._more():
                    continue  # a number may go on
                self._at = end
                return value

    def _resume(self) -> bool:
        """Go to the next object of the list; False where there is none."""
        while True:
            found = _NEXT.search(self._buffer, self._at)
            if found:
                self._at = found.end()
                return True
            self._at = max(self._at, len(self._buffer) - 256)
            if not self._more():
                return False

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        if self._ended:
            return False
        chunk = next((text for text in self._chunks if text), "")
        self._ended = not chunk
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return bool(chunk)
