"""Bytes to text: UTF-8 with or without BOM, UTF-16 with BOM, latin-1 with a note; broken UTF-8 and binary: errors."""

from pathlib import Path

from featherweight.core.errors import InputError, Problem

ESCAPED = range(0xDC80, 0xDD00)  # surrogates that stand for bytes which are not UTF-8


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """The text of a file and notes on how it was decoded. Raises InputError for empty, binary or broken files."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return utf16(path, data), (f"{path}: read as UTF-16",)
    if b"\0" in data:
        raise InputError(Problem("not a text file", line_of(path, data.index(b"\0"), data), "text", "a NUL byte"))
    text, notes = decode(path, data)
    if not text.strip():
        raise InputError(Problem("the file is empty", str(path), "at least one row", f"{len(data)} bytes without text"))
    return text, notes


def decode(path: Path, data: bytes) -> tuple[str, tuple[str, ...]]:
    """UTF-8, else latin-1; a file that is mostly UTF-8 with a few bad bytes is broken, not latin-1."""
    try:
        return data.decode("utf-8-sig"), ()
    except UnicodeDecodeError as error:
        where, byte = line_of(path, error.start, data), f"byte 0x{data[error.start]:02x}"
    escaped = data.decode("utf-8", "surrogateescape")
    bad = sum(ord(c) in ESCAPED for c in escaped)
    good = sum(ord(c) > 127 for c in escaped) - bad
    if good > bad or data.startswith(b"\xef\xbb\xbf"):
        raise InputError(Problem("broken UTF-8", where, "UTF-8 as in the rest of the file", byte,
                                 "repair the line or save the file as UTF-8"))  # fmt: skip
    return data.decode("latin-1"), (f"{where}: {byte} is not UTF-8; the file was read as latin-1",)


def utf16(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-16")
    except UnicodeDecodeError as error:
        raise InputError(Problem("broken UTF-16", str(path), got=str(error), fix="save the file as UTF-8")) from error


def line_of(path: Path, position: int, data: bytes) -> str:
    return f"{path}:{data.count(10, 0, position) + 1}"
