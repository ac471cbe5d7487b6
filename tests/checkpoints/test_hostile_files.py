"""Weight files that are not what they seem: refused in one line, before they take time or memory."""

import collections
import json
import os
import pickle
import pickletools
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftcore.checkpoints.checkpoint import load_model, model_from_config, new_model, save_model
from ftcore.checkpoints.tensors import read_tensors
from ftcore.data import load_tokenizer
from ftcore.lora.lora import merge_lora
from ftcore.models import GPT2LMHeadModel, T5ForConditionalGeneration
from ftcore.output import one_line
from tests.helpers.tiny_lora import VOCAB, logits, tiny

EMBEDDING = "transformer.wte.weight"
LIMIT = 5  # seconds


class Subclass(Tensor):
    pass


def gpt2(directory: Path) -> Path:
    save_model(tiny("gpt2"), directory)
    return directory


def as_bin(directory: Path, change: Callable[[dict], object] = lambda state: None, **options: object) -> Path:
    """The model as pytorch_model.bin."""
    state = load_file(directory / "model.safetensors")
    change(state)
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin", **options)
    return directory / "pytorch_model.bin"


def assert_refused(directory: Path, *words: str, kind: type[Exception] = ValueError) -> None:
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        load_model(directory)
    message = str(caught.value)
    assert time.monotonic() - start < LIMIT
    assert message.isprintable() and len(message) < 2000
    assert [word for word in (str(directory), *words) if word not in message] == [], message


# ------------------------------------------------------------------------------ tensors in a .bin file


def sparse() -> Tensor:
    return torch.eye(VOCAB, 16).to_sparse()


TENSORS: dict[str, Callable[[], object]] = {
    "stride 0": lambda: torch.zeros(1).expand(VOCAB, 16),
    "huge with stride 0": lambda: torch.zeros(1).expand(10**7, 10**7),
    "overlapping": lambda: torch.zeros(VOCAB + 16).as_strided((VOCAB, 16), (1, 1)),
    "sparse": sparse,
    "compressed sparse rows": lambda: sparse().to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(VOCAB, 16), 0.1, 0, torch.qint8),
    "on the meta device": lambda: torch.empty(VOCAB, 16, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2, 16), torch.zeros(3, 16)]),
    "of a subclass": lambda: torch.zeros(VOCAB, 16).as_subclass(Subclass),
    "complex": lambda: torch.zeros(VOCAB, 16, dtype=torch.complex64),
    "integer": lambda: torch.zeros(VOCAB, 16, dtype=torch.int64),
    "bool": lambda: torch.zeros(VOCAB, 16, dtype=torch.bool),
    "float8": lambda: torch.zeros(VOCAB, 16, dtype=torch.float8_e4m3fn),
    "transposed": lambda: torch.zeros(16, VOCAB),
    "no dimensions": lambda: torch.zeros(()),
    "no elements": lambda: torch.zeros(VOCAB, 0),
    "a number": lambda: 1.5,
    "a list": lambda: [torch.zeros(VOCAB, 16)],
    "bytes": lambda: bytearray(100),
    "a counter": lambda: collections.Counter("abc"),
    "a dtype": lambda: torch.float32,
}


@pytest.mark.filterwarnings("ignore")  # some of these tensors are experimental or deprecated
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("name", TENSORS)
def test_unusual_tensors_raise(name: str, zipped: bool, tmp_path: Path) -> None:
    def change(state: dict) -> None:
        state[EMBEDDING] = TENSORS[name]()
        state["lm_head.weight"] = state[EMBEDDING]  # tied names are compared element by element

    try:
        as_bin(gpt2(tmp_path), change, _use_new_zipfile_serialization=zipped)
    except (RuntimeError, NotImplementedError):
        pytest.skip("torch cannot save it in this format")
    assert_refused(tmp_path, "pytorch_model.bin")


def test_a_name_that_is_no_text_raises(tmp_path: Path) -> None:
    as_bin(gpt2(tmp_path), lambda state: state.update({7: torch.zeros(1)}))
    assert_refused(tmp_path, "pytorch_model.bin: expected a state dict: tensors by name")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_usual_tensors_load(zipped: bool, tmp_path: Path) -> None:
    """Parameters, ordered dictionaries, transposed tensors, several views of one storage, masks."""

    def change(state: dict) -> None:
        for name, tensor in state.items():
            state[name] = torch.nn.Parameter(tensor.t().contiguous().t() if tensor.dim() == 2 else tensor)
        state["lm_head.weight"] = state[EMBEDDING].detach()
        state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()

    path = as_bin(gpt2(tmp_path), change, _use_new_zipfile_serialization=zipped)
    state = collections.OrderedDict(torch.load(path, weights_only=True))
    state._metadata = collections.OrderedDict(version=1)  # as a module's state_dict has
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(logits(load_model(tmp_path)), logits(tiny("gpt2")))


# ------------------------------------------------------------------------------ the pickle in a .bin file


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", b"3\n")


def before_1_6(path: Path, pickled: bytes) -> None:
    header = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(value, protocol=2) for value in header) + pickled)


PICKLES = {
    "marks": b"\x80\x02" + b"(" * 3 * 10**7,
    "nested lists": b"\x80\x02" + b"(l" * 3 * 10**6 + b"a" * 3 * 10**6 + b".",
    "nested tuples": b"\x80\x02)" + b"\x85" * 3 * 10**6 + b".",
    "empty dictionaries": b"\x80\x02" + b"}" * 3 * 10**6 + b".",
    "a long line": b"\x80\x02c" + b"x" * 3 * 10**7,
    "a string beyond the file": b"\x80\x02X\xff\xff\xff\xff",
    "bytes beyond memory": b"\x80\x04\x8e" + struct.pack("<Q", 2**62),
    "a call": b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R.",
    "a call by name of strings": b"\x80\x04X\x05\0\0\0posixX\x06\0\0\0system\x93X\x02\0\0\0id\x85R.",
    "bytes of any size": b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x20\x85R.",
    "storage of any size": b"\x80\x02}X\1\0\0\0actorch\nFloatStorage\n\x8a\x05\0\0\0\0\x20\x85Rs.",
    "not a pickle": os.urandom(1000),
    "empty": b"",
}


@pytest.mark.parametrize("write", [archive, before_1_6])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_would_take_time_or_memory_raise(name: str, write: Callable, tmp_path: Path) -> None:
    (gpt2(tmp_path) / "model.safetensors").unlink()
    write(tmp_path / "pytorch_model.bin", PICKLES[name])
    assert_refused(tmp_path, "pytorch_model.bin")


def test_compressed_archives_raise(tmp_path: Path) -> None:
    (gpt2(tmp_path) / "model.safetensors").unlink()
    archive(tmp_path / "pytorch_model.bin", b"\x80\x02" + b"0" * 10**8, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 10**6
    assert_refused(tmp_path, "pytorch_model.bin: cannot be read", "archive/data.pkl is compressed")


@settings(deadline=None, max_examples=60)
@given(
    position=st.integers(0, 3000),
    inserted=st.binary(max_size=8),
    zipped=st.booleans(),
    removed=st.integers(0, 8),
)
def test_a_mutated_pickle_loads_or_raises(
    position: int, inserted: bytes, zipped: bool, removed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = gpt2(tmp_path_factory.mktemp("mutated"))
    path = as_bin(directory, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[:position] + inserted + content[position + removed :])
    try:
        assert logits(load_model(directory)).shape == (2, 12, VOCAB)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)


# ------------------------------------------------------------------------------ safetensors, index


def test_safetensors_headers_have_a_limit(tmp_path: Path) -> None:
    path = gpt2(tmp_path) / "model.safetensors"
    for size in (2**21 + 1, 2**40, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", size) + b"{}" * 100)
        assert_refused(tmp_path, "model.safetensors: cannot be read", f"a header of {size} bytes, expected")


def test_files_of_many_tensors_are_read(tmp_path: Path) -> None:
    """As many as the deepest T5 has."""
    state = {f"decoder.block.{n}.layer.0.SelfAttention.q.weight": torch.zeros(1) for n in range(10_000)}
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    for name in ("model.safetensors", "pytorch_model.bin"):
        assert read_tensors(tmp_path / name).keys() == state.keys()


SHARDS = ["../model.safetensors", "/etc/passwd", "./model.safetensors", "sub/model.safetensors", "a/../b"]


@pytest.mark.parametrize("shard", SHARDS)
def test_shards_stand_beside_their_index(shard: str, tmp_path: Path) -> None:
    directory = gpt2(tmp_path / "inside")
    names = list(load_file(directory / "model.safetensors"))
    (directory / "model.safetensors").replace(tmp_path / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, shard)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(
        directory, f"index.json: {shard!r} is a path, expected the name of a file beside the index"
    )


@pytest.mark.parametrize("shard", ["", ".", "..", "x" * 300, "x" * 10**6, "a\0b", "~", "\x1b[2J", "nothing"])
def test_names_that_are_no_files_raise(shard: str, tmp_path: Path) -> None:
    (gpt2(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert_refused(tmp_path, "1 of 1 shards are missing", kind=FileNotFoundError)


def test_100000_missing_shards_raise(tmp_path: Path) -> None:
    (gpt2(tmp_path) / "model.safetensors").unlink()
    weight_map = {f"t{number}": f"{number}.safetensors" for number in range(10**5)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FileNotFoundError, match=r"100000 of 100000 shards are missing: 0\.safetensors, "):
        load_model(tmp_path)


def test_a_tensor_in_two_shards_raises(tmp_path: Path) -> None:
    state = load_file(gpt2(tmp_path) / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for shard in "ab":
        save_file(state, tmp_path / f"{shard}.safetensors")
    index = {"weight_map": {name: f"{'ab'[number % 2]}.safetensors" for number, name in enumerate(state)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(tmp_path, "b.safetensors: ", " is in another shard too")


FORMATS = [
    b"\x1f\x8b\x08",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"<!DOCTYPE html><html>",
    b"PAR1",
]


@pytest.mark.parametrize("start", FORMATS)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_other_formats_are_named(name: str, start: bytes, tmp_path: Path) -> None:
    (gpt2(tmp_path) / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(start + b"0" * 300)
    with pytest.raises(ValueError, match=rf"{name}: .*(gzip|git-lfs|web page|parquet)"):
        load_model(tmp_path)


# ------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("values", [
    {"model_type": "gpt2", "n_embd": 2**20, "n_head": 1},
    {"model_type": "gpt2", "vocab_size": 2**24, "n_embd": 2**16, "n_head": 1, "n_layer": 1},
    {"model_type": "t5", "d_model": 2**24, "d_ff": 2**24},
    {"model_type": "umt5", "num_heads": 2**12, "d_kv": 2**12, "d_model": 2**20},
])  # fmt: skip
def test_a_model_larger_than_the_memory_raises(values: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=r"config\.json: a model of [\d,]+ GB, more than the memory"
    ) as caught:
        new_model(tmp_path)
    assert all(f"{key}={value}" in str(caught.value) for key, value in values.items() if key != "model_type")
    assert time.monotonic() - start < LIMIT
    with pytest.raises(ValueError, match="more than the memory here can hold"):
        model_from_config(values)


@pytest.mark.parametrize(
    "put", [lambda path: path.symlink_to("gone"), lambda path: path.symlink_to(path), Path.mkdir]
)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ],
)
def test_a_name_without_a_file_is_not_a_missing_file(name: str, put: Callable, tmp_path: Path) -> None:
    """As in a download from the hub that was cut short."""
    directory = tmp_path / "model"
    shutil.copytree(Path(__file__).parents[2] / "weights" / "gpt2-mini", directory)
    save_model(load_model(directory), tmp_path / "other")  # weights that must not be taken instead
    shutil.copy(tmp_path / "other" / "model.safetensors", directory / "pytorch_model.bin")
    (directory / name).unlink(missing_ok=True)
    put(directory / name)
    with pytest.raises((OSError, ValueError)) as caught:
        load_model(directory)
        load_tokenizer(directory)
    assert name in one_line(caught.value)


@pytest.mark.parametrize("kind", [None, 1, [], {}, "", "bert", "x" * 10**5, True])
def test_unknown_model_types_raise(kind: object) -> None:
    with pytest.raises(ValueError, match=r"^there: model_type is .*, expected \"t5\", ") as caught:
        model_from_config({"model_type": kind}, "there")
    assert len(str(caught.value)) < 200


def test_a_described_model_has_the_weights_of_the_constructor() -> None:
    """The outline that is made to measure it draws no random numbers."""
    for variant in ("gpt2", "t5", "umt5"):
        config = tiny(variant).config
        torch.manual_seed(0)
        one = model_from_config(config.to_dict()).state_dict()
        torch.manual_seed(0)
        other = (GPT2LMHeadModel if variant == "gpt2" else T5ForConditionalGeneration)(config).state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------ prefixes


WRAPPERS = ["_orig_mod.", "module.", "model.", "base_model.model.", "module._orig_mod.", "_orig_mod.module."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("variant", ["gpt2", "t5", "t5-v1.1"])
def test_prefixes_of_wrappers_are_removed(variant: str, wrapper: str, tmp_path: Path) -> None:
    save_model(tiny(variant), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({wrapper + name: tensor for name, tensor in state.items()}, tmp_path / "model.safetensors")
    assert torch.equal(logits(load_model(tmp_path)), logits(tiny(variant)))


def test_a_prefix_of_some_names_raises(tmp_path: Path) -> None:
    state = load_file(gpt2(tmp_path) / "model.safetensors")
    state["module.transformer.ln_f.bias"] = state.pop("transformer.ln_f.bias")
    save_file(state, tmp_path / "model.safetensors")
    assert_refused(tmp_path, "missing: transformer.ln_f.bias", "unexpected: module.transformer.ln_f.bias")


def test_a_name_with_and_without_prefix_raises(tmp_path: Path) -> None:
    state = load_file(gpt2(tmp_path) / "model.safetensors")
    state["ln_f.bias"] = state["transformer.ln_f.bias"] + 1
    save_file(state, tmp_path / "model.safetensors")
    assert_refused(tmp_path, "wrong: transformer.ln_f.bias is there twice, with and without its prefix")


# ------------------------------------------------------------------------------ several dtypes


HALF, FLOAT, DOUBLE, BRAIN = torch.float16, torch.float32, torch.float64, torch.bfloat16


@pytest.mark.parametrize(("others", "some", "expected"), [
    (FLOAT, BRAIN, FLOAT),
    (BRAIN, FLOAT, FLOAT),
    (HALF, BRAIN, FLOAT),  # neither holds the other's numbers
    (DOUBLE, FLOAT, DOUBLE),
    (BRAIN, BRAIN, BRAIN),
    (HALF, HALF, HALF),
])  # fmt: skip
@pytest.mark.parametrize("variant", ["gpt2", "t5", "t5-v1.1"])
def test_a_file_of_two_dtypes_is_computed_in_the_wider(
    variant: str, others: torch.dtype, some: torch.dtype, expected: torch.dtype, tmp_path: Path
) -> None:
    save_model(tiny(variant), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    mixed = {
        name: tensor.to(some if "ttention" in name or "attn" in name else others)
        for name, tensor in state.items()
    }
    save_file(mixed, tmp_path / "model.safetensors")
    model = load_model(tmp_path, dtype=None)
    for name, parameter in model.named_parameters():
        keeps_float32 = expected == HALF and name.endswith(".wo.weight")
        assert parameter.dtype == (FLOAT if keeps_float32 else expected), name
        assert torch.equal(parameter, mixed[name].to(parameter.dtype))  # no digit is lost
    assert logits(model).isfinite().all()
    save_model(model, tmp_path / "again")
    again = load_model(tmp_path / "again", dtype=None).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_wo_may_be_wider_than_the_rest(tmp_path: Path) -> None:
    for rest in (HALF, BRAIN):
        save_model(tiny("t5"), tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        state = {name: t if name.endswith(".wo.weight") else t.to(rest) for name, t in state.items()}
        save_file(state, tmp_path / "model.safetensors")
        model = load_model(tmp_path, dtype=None)
        assert all(parameter.dtype == state[name].dtype for name, parameter in model.named_parameters())
        assert logits(model).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e5m2, "float16", 16])
def test_a_dtype_without_arithmetic_raises(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dtype is .*, expected a floating-point type of 16 bits or more"):
        load_model(gpt2(tmp_path), dtype=dtype)
    with pytest.raises(ValueError, match=r"^dtype is .*, expected a floating"):
        save_model(merge_lora(tiny("gpt2")), tmp_path, dtype)


@pytest.mark.parametrize("size", ["5GB", float("nan"), None, True])
def test_a_shard_size_that_is_no_number_raises(size: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^max_shard_size is .*, expected a number"):
        save_model(tiny("gpt2"), tmp_path / "model", max_shard_size=size)


def test_the_pickles_here_are_what_they_are_called() -> None:
    assert sum(1 for _ in pickletools.genops(PICKLES["nested tuples"])) > 10**6
    assert isinstance(pickle.loads(PICKLES["empty dictionaries"]), dict)
