"""Hostile variants of a file: other kinds of files in its place, then seeded mutations of its content.

The first `len(REPLACEMENTS)` seeds replace the file. All others change bytes or text, or where the file is
JSON, JSON lines, safetensors, a zip archive or a pickle of tensors, what is inside: the result is again a file
of that format.
"""

import gzip
import io
import json
import math
import os
import pickle
import reprlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch

EXECUTED = "executed"  # a file that exists after a pickle was executed

# JSON text that json.dumps does not write: a string "@deep@" becomes the text, a key "@again@x" a second "x".
RAW = {
    "@deep@": "[" * 100_000 + "]" * 100_000,
    "@open@": '{"a":' * 100_000,
    "@digits@": "9" * 5_000,
    "@float@": "1e999",
    "@surrogate@": r'"\ud800"',
}
NUMBERS = [0, 1, -1, 2, 3, 255, 65_536, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**9, 10**30, -(10**9), -(10**30)]
NUMBERS += [0.0, 0.5, -0.5, 1e-45, 1e-308, 1e308, -1e308, math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "x", "\0", "\x1b[31m", "\x1b]0;x\x07\r", "\u2028", "\u202e", "\ufeff", "é" * 50_000, "a\nb", "-1"]
TEXTS += ["0.7", "None", "~nosuchuser", "../..", "..", "/", "/etc/passwd", "a/b", "<|endoftext|>", "</s>", *RAW]
VALUES = [None, True, False, *NUMBERS, *TEXTS, [], [[]], {}, [None], [{}], {"": None}, [-1], [[1.5]], ["x"] * 1000]

SNIPPETS = [b'"', b"'", b",", b";", b"\n", b"\r", b"\t", b"\0", b"{", b"}", b"[", b"]", b":", b"\\", b"\x1b[31m"]
SNIPPETS += [b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff\xfe", "\u2028".encode(), b"x" * 200_000, b'"' * 1001]
SNIPPETS += [b"\xff" * 10, b"\xff" * 9 + b"\x01", b"\x80" * 4 + b"\x08", b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\n" * 5_000]


class Command:
    """Pickled as a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {EXECUTED}",)


def zipped(name: str, content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr(name, content)
    return archive.getvalue()


def as_json(value: Any) -> bytes:
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.replace('"@again@', '"').encode()


def torch_saved(value: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def in_archive(data: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
    """Rewrite a zip archive with one changed member, so that its checksum is right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w", compresslevel=1) as new:
        for info in old.infolist():
            if info.filename == member:
                new.writestr(info.filename, change(old.read(info)), zipfile.ZIP_DEFLATED)
            else:
                new.writestr(info, old.read(info))
    return target.getvalue()


# A name, and the content as a function of the valid content, or the system call that takes the file's place.
REPLACEMENTS: dict[str, Callable[[bytes], bytes] | Callable[[Path], object]] = {
    "empty": lambda data: b"",
    "a line break": lambda data: b"\n",
    "zeros": lambda data: bytes(1000),
    "gzip": gzip.compress,
    "zip": lambda data: zipped("config.json", data),
    "xlsx": lambda data: zipped("xl/workbook.xml", b"<xml/>"),
    "parquet": lambda data: b"PAR1" + data + b"PAR1",
    "arrow": lambda data: b"ARROW1\0\0" + data,
    "git-lfs pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n",
    "HTML": lambda data: b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
    "UTF-16": lambda data: data.decode(errors="replace").encode("utf-16"),
    "UTF-16 without its mark": lambda data: data.decode(errors="replace").encode("utf-16-le"),
    "UTF-32": lambda data: data.decode(errors="replace").encode("utf-32"),
    "Latin-1": lambda data: b"caf\xe9\n" + data,
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "carriage returns": lambda data: data.replace(b"\n", b"\r"),
    "JSON null": lambda data: b"null",
    "JSON list": lambda data: b"[]\n",
    "JSON object": lambda data: b"{}\n",
    "deep JSON": lambda data: b"[" * 100_000,
    "deep JSON object": lambda data: b'{"a":' * 100_000,
    "varints": lambda data: b"\xff" * 1_000_000,
    "pickle of a command": lambda data: pickle.dumps(Command(), protocol=2),
    "archive of a command": lambda data: torch_saved({"a": Command()}),
    "archive of a list": lambda data: torch_saved([1]),
    "zip bomb": lambda data: in_archive(torch_saved({}), "archive/data.pkl", lambda _: b"\x80\x02" + b"(" * 10**8),
    "missing": Path.unlink,
    "directory": Path.mkdir,
    "symbolic link to itself": lambda path: path.symlink_to(path.name),
    "unreadable": lambda path: path.touch(mode=0),
}
SYSTEM = ("missing", "directory", "symbolic link to itself", "unreadable")


def mutate(path: Path, seed: int) -> str:
    """Change or replace a file; returns what was done. The same seed does the same again."""
    data, rng = path.read_bytes(), Random(f"{path.name} {seed}")
    if seed < len(REPLACEMENTS):
        name, replace = list(REPLACEMENTS.items())[seed]
        if name not in SYSTEM:
            path.write_bytes(replace(data))
        elif name == "missing":
            path.unlink()
        else:
            path.unlink()
            replace(path)
        return name
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        inside = rng.random() < 0.7
        kinds = [in_safetensors, in_json, in_json_lines] if inside else []
        if inside and not done:  # a damaged archive is not opened here
            kinds = [in_torch, in_zip, *kinds]
        name, data = next(changed for kind in [*kinds, in_bytes] if (changed := kind(data, rng)))
        done.append(name)
    path.write_bytes(data)
    return "; ".join(done)


Changed = tuple[str, bytes]


def in_bytes(data: bytes, rng: Random) -> Changed:
    start, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 8, rng.randrange(1, len(data) + 2)])
    end, other = min(start + length, len(data)), rng.randrange(len(data) + 1)
    match rng.choice(["flip", "delete", "truncate", "snippet", "repeat", "splice", "number", "case"]):
        case "flip":
            content = bytes(byte ^ (1 << rng.randrange(8)) for byte in data[start : start + 4])
            return f"flip at {start}", data[:start] + content + data[start + 4 :]
        case "delete":
            return f"delete {start}:{end}", data[:start] + data[end:]
        case "truncate":
            return f"truncate at {start}", data[:start]
        case "snippet":
            snippet = rng.choice(SNIPPETS)
            return f"insert {reprlib.repr(snippet)} at {start}", data[:start] + snippet + data[start:]
        case "repeat":
            count = rng.choice([2, 3, 1000]) if end - start < 1000 else 2
            return f"repeat {start}:{end} {count} times", data[:start] + data[start:end] * count + data[end:]
        case "splice":
            return f"copy {start}:{end} to {other}", data[:other] + data[start:end] + data[other:]
        case "number":
            number = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1])
            return f"number {number} at {start}", data[:start] + number.to_bytes(8, "little") + data[start + 8 :]
        case _:
            changed = bytes(rng.choice(b"0123456789-.eE \n\"'{}[]nulltruefalse") for _ in range(min(length, 20)))
            return f"write {changed!r} at {start}", data[:start] + changed + data[start + len(changed) :]


def in_tree(tree: Any, rng: Random, values: list[Any]) -> str:
    """Change one value or key of nested dictionaries and lists."""
    container, key = rng.choice(list(places(tree)))
    value, others = container[key], list(places(tree))
    match rng.choice(["value", "value", "value", "near", "near", "remove", "rename", "copy", "nest"]):
        case "value":
            container[key] = rng.choice(values)
        case "near" if isinstance(value, int | float):
            by = rng.choice([value + 1, value - 1, -value, value * 1000, 0 * value, str(value), float(value), [value]])
            container[key] = by
        case "near" if isinstance(value, str):
            container[key] = rng.choice([value + "x", value[1:], value.upper(), value * 1000, [value], {value: value}])
        case "remove":
            del container[key]
            return f"remove {key!r}"
        case "rename" if isinstance(container, dict):
            names = [name for name in container if isinstance(name, str)]
            name = rng.choice([rng.choice(TEXTS), *names, *(f"@again@{name}" for name in names), f"{key}x"])
            container[name] = container.pop(key)
            return f"rename {key!r} to {reprlib.repr(name)}"
        case "copy":
            other, name = rng.choice(others)
            container[key] = other[name] if other is not container else rng.choice(values)
        case _:
            container[key] = [value, value]
    return f"{key!r} = {reprlib.repr(container[key])}"


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of all values, at every depth."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


def in_json(data: bytes, rng: Random) -> Changed | None:
    try:
        tree = json.loads(data)
        name = in_tree(tree, rng, VALUES)
        return name, as_json(tree)
    except (ValueError, RecursionError, TypeError, IndexError):
        return None  # no JSON, or nothing in it


def in_json_lines(data: bytes, rng: Random) -> Changed | None:
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    changed = in_json(lines[number], rng)
    if changed is None:
        return None
    return f"line {number + 1}: {changed[0]}", b"\n".join([*lines[:number], changed[1], *lines[number + 1 :]])


def in_safetensors(data: bytes, rng: Random) -> Changed | None:
    size = int.from_bytes(data[:8], "little")
    changed = in_json(data[8 : 8 + size], rng) if size < len(data) else None
    if changed is None:
        return None
    return f"header: {changed[0]}", len(changed[1]).to_bytes(8, "little") + changed[1] + data[8 + size :]


def in_zip(data: bytes, rng: Random) -> Changed | None:
    if not data.startswith(b"PK"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            member = rng.choice(archive.namelist())
            name, content = in_bytes(archive.read(member), rng)
        return f"{member}: {name}", in_archive(data, member, lambda _: content)
    except zipfile.BadZipFile:
        return None


def in_torch(data: bytes, rng: Random) -> Changed | None:
    """Change a value of a saved dictionary: other numbers, texts and tensors that no reader expects."""
    if not data.startswith((b"PK", b"\x80\x02\x8a")) or rng.random() < 0.3:
        return None
    tree = torch.load(io.BytesIO(data), weights_only=True)
    tensors = [torch.zeros(()), torch.zeros(0), torch.zeros(2, 3), torch.full((2,), math.nan), torch.zeros(3).bool()]
    tensors += [torch.zeros(4, 4).to_sparse(), torch.empty(4, 4, device="meta"), torch.zeros(1).expand(10**10)]
    tensors += [torch.zeros(2, dtype=torch.complex64), torch.zeros(8, dtype=torch.float8_e4m3fn)]
    values = [value for value in VALUES if not isinstance(value, str) or value not in RAW]
    name = in_tree(tree, rng, values + tensors * 3)
    return name, torch_saved(tree, zipped=data.startswith(b"PK"))
