"""Hostile variants of a file: other files in its place, then seeded mutations of its content.

Mutations change bytes; or where the file is JSON, JSON lines, safetensors, a zip archive or a pickle of
tensors, what is inside, so that the result is a file of that format again.
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
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch

EXECUTED = "executed"  # a file that exists after a pickle was executed

# JSON that json.dumps does not write: a string "@deep@" becomes this text, a key "@again@x" a second "x".
RAW = {
    "@deep@": "[" * 100_000 + "]" * 100_000,
    "@open@": '{"a":' * 100_000,
    "@digits@": "9" * 5_000,
    "@float@": "1e999",
    "@surrogate@": r'"\ud800"',
    "@again@": '"',
}
NUMBERS = [0, 1, -1, 2, 3, 255, 2**16, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**9, -(10**9), 10**30, -(10**30)]
NUMBERS += [0.0, 0.5, -0.5, 1e-45, 1e-308, 1e308, -1e308, math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "x", "é" * 50_000, "a\nb", "\0", "\x1b[31m", "\x1b]0;x\x07\r", "\u2028", "\u202e", "\ufeff"]
TEXTS += ["-1", "0.7", "None", "~nosuchuser", "..", "../..", "/", "/etc/passwd", "a/b", "</s>", *RAW]
VALUES = [None, True, False, *NUMBERS, *TEXTS, [], [[]], [None], [{}], [-1], [[1.5]], ["x"] * 1000, {}]

SNIPPETS = [
    b'"',
    b"'",
    b",",
    b";",
    b":",
    b"\n",
    b"\r",
    b"\t",
    b"\0",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\\",
    b"\x1b[31m",
]
SNIPPETS += [b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff\xfe", b"\xff" * 9 + b"\x01", b"\x80" * 4 + b"\x08"]
SNIPPETS += ["\u2028".encode(), b"<|endoftext|>", b"x" * 200_000, b'"' * 1001, b"\n" * 5_000]

Changed = tuple[str, bytes]  # what was done, and the result


class Command:
    """Pickled as a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {EXECUTED}",)


def torch_saved(value: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def as_zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def zip_members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@cache
def zip_bomb() -> bytes:
    """100 MB of opcodes in 100 kB; each would take 50 bytes of memory."""
    members = zip_members(torch_saved({})) | {"archive/data.pkl": b"\x80\x02" + b"(" * 10**8}
    return as_zip(members, zipfile.ZIP_DEFLATED)


# Name -> the new content as a function of the valid one.
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "a line break": lambda data: b"\n",
    "zeros": lambda data: bytes(1000),
    "varints": lambda data: b"\xff" * 1_000_000,
    "gzip": gzip.compress,
    "zip": lambda data: as_zip({"config.json": data}),
    "xlsx": lambda data: as_zip({"xl/workbook.xml": b"<xml/>"}),
    "parquet": lambda data: b"PAR1" + data + b"PAR1",
    "arrow": lambda data: b"ARROW1\0\0" + data,
    "git-lfs pointer": lambda data: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:01\nsize 12345\n"
    ),
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
    "deep JSON list": lambda data: b"[" * 100_000,
    "deep JSON object": lambda data: b'{"a":' * 100_000,
    "pickle of a command": lambda data: pickle.dumps(Command(), protocol=2),
    "archive of a command": lambda data: torch_saved({"a": Command()}),
    "archive of a list": lambda data: torch_saved([1]),
    "zip bomb": lambda data: zip_bomb(),
}
# Name -> what is created in the place of the file.
ENTRIES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "symbolic link to itself": lambda path: path.symlink_to(path.name),
    "unreadable": lambda path: path.touch(mode=0),
}
REPLACEMENTS = [*CONTENTS, *ENTRIES]


def mutate(path: Path, seed: int) -> str:
    """Replace the file by that of REPLACEMENTS, or from their number on mutate it. Returns what was done."""
    data, rng = path.read_bytes(), Random(f"{path.name} {seed}")
    if seed < len(CONTENTS):
        path.write_bytes(CONTENTS[REPLACEMENTS[seed]](data))
        return REPLACEMENTS[seed]
    if seed < len(REPLACEMENTS):
        path.unlink()
        ENTRIES[REPLACEMENTS[seed]](path)
        return REPLACEMENTS[seed]
    done: list[str] = []
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        kinds = [in_safetensors, in_json, in_json_lines] if rng.random() < 0.7 else []
        if kinds and not done:  # a damaged archive is not opened here
            kinds = [in_torch, in_zip, *kinds]
        name, data = next(changed for kind in [*kinds, in_bytes] if (changed := kind(data, rng)))
        done.append(name)
    path.write_bytes(data)
    return "; ".join(done)


def in_bytes(data: bytes, rng: Random) -> Changed:
    start = rng.randrange(len(data) + 1)
    end = min(start + rng.choice([1, 1, 2, 4, 8, rng.randrange(len(data) + 1)]), len(data))
    before, part, after = data[:start], data[start:end], data[end:]
    snippet, other = rng.choice(SNIPPETS), rng.randrange(len(data) + 1)
    number = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1])
    text = bytes(rng.choice(b"0123456789-.eE \n\"'{}[]nulltruefalse") for _ in part[:20])
    changes = {
        "flip": before + bytes(byte ^ (1 << rng.randrange(8)) for byte in part[:4]) + part[4:] + after,
        "delete": before + after,
        "truncate": before,
        f"insert {snippet[:20]!r}": before + snippet + part + after,
        "repeat": before + part * (1000 if len(part) < 1000 else 3) + after,
        f"copy to {other}": data[:other] + part + data[other:],
        f"write {number}": before + number.to_bytes(8, "little") + data[start + 8 :],
        f"write {text!r}": before + text + part[20:] + after,
    }
    name = rng.choice(list(changes))
    return f"{start}:{end} {name}", changes[name]


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of all values of nested dictionaries and lists."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


def in_tree(tree: Any, rng: Random, values: list[Any]) -> str:
    """Change, rename or remove one value of nested dictionaries and lists."""
    container, key = rng.choice(list(places(tree)))
    value, (other, other_key) = container[key], rng.choice(list(places(tree)))
    near = [[value], [value, value], {"a": value}, None if other is container else other[other_key]]
    if isinstance(value, str):
        near += [value + "x", value[1:], value.upper(), (value * 1000)[:10_000]]
    if isinstance(value, int | float):
        near += [value + 1, -value, value * 1000, str(value), float(max(-(10**300), min(value, 10**300)))]
    match rng.randrange(8):
        case 0:
            del container[key]
            return f"remove {key!r}"
        case 1 if isinstance(container, dict):
            names = [name for name in container if isinstance(name, str)]
            new = rng.choice([rng.choice(TEXTS), f"{key}x", *names, *(f"@again@{name}" for name in names)])
            container[new] = container.pop(key)
            return f"rename {key!r} to {reprlib.repr(new)}"
        case 2 | 3 | 4:
            container[key] = rng.choice(near)
        case _:
            container[key] = rng.choice(values)
    return f"{key!r} = {reprlib.repr(container[key])}"


def in_json(data: bytes, rng: Random) -> Changed | None:
    try:
        tree = json.loads(data)
        name = in_tree(tree, rng, VALUES)
        text = json.dumps(tree)
    except (ValueError, RecursionError, TypeError, IndexError):
        return None  # no JSON, or nothing in it
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}' if mark == "@again@" else f'"{mark}"', raw)
    return name, text.encode()


def in_json_lines(data: bytes, rng: Random) -> Changed | None:
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    if (changed := in_json(lines[number], rng)) is None:
        return None
    return f"line {number + 1}: {changed[0]}", b"\n".join([*lines[:number], changed[1], *lines[number + 1 :]])


def in_safetensors(data: bytes, rng: Random) -> Changed | None:
    size = int.from_bytes(data[:8], "little")
    if size > len(data) or (changed := in_json(data[8 : 8 + size], rng)) is None:
        return None
    name, header = changed
    return f"header: {name}", len(header).to_bytes(8, "little") + header + data[8 + size :]


def in_zip(data: bytes, rng: Random) -> Changed | None:
    if not data.startswith(b"PK"):
        return None
    members = zip_members(data)
    member = rng.choice(list(members))
    name, members[member] = in_bytes(members[member], rng)
    return f"{member}: {name}", as_zip(members)


def in_torch(data: bytes, rng: Random) -> Changed | None:
    """Change a value of a saved dictionary, also to tensors that no reader expects."""
    if not data.startswith((b"PK", b"\x80\x02\x8a")) or rng.random() < 0.3:
        return None
    tree = torch.load(io.BytesIO(data), weights_only=True)
    tensors = [torch.zeros(()), torch.zeros(0), torch.zeros(2, 3), torch.full((2,), math.nan)]
    tensors += [
        torch.zeros(4, 4).to_sparse(),
        torch.empty(4, 4, device="meta"),
        torch.zeros(1).expand(10**10),
    ]
    tensors += [torch.zeros(3, dtype=kind) for kind in (torch.bool, torch.complex64, torch.float8_e4m3fn)]
    name = in_tree(tree, rng, VALUES + tensors * 3)
    return name, torch_saved(tree, zipped=data.startswith(b"PK"))
