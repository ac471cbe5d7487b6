"""Checkpoints: exchange with transformers, memory-mapped loading, atomic saving, errors."""

import copy
import json
import os
import resource
import subprocess
import sys
import textwrap
import time
from itertools import count
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ftcore
from ftcore.checkpoints.checkpoint import load_model, save_model
from ftcore.checkpoints.files import write_atomically
from ftcore.checkpoints.hub import resolve_directory
from ftcore.checkpoints.tensors import split_into_shards
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

T5_SIZES = {"vocab_size": 61, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_heads": 3}
T5_SIZES |= {"num_layers": 2, "num_decoder_layers": 1, "decoder_start_token_id": 0}
GPT2_SIZES = {"vocab_size": 61, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
GPT2_SIZES |= {"bos_token_id": 1, "eos_token_id": 1}
EMBEDDING = {"t5": "shared.weight", "t5-v1.1": "shared.weight", "gpt2": "transformer.wte.weight"}
VARIANTS = ["t5", "t5-v1.1", "gpt2"]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def reference(variant: str) -> torch.nn.Module:
    """A tiny model of transformers; t5 has a tied head, t5-v1.1 an untied one."""
    torch.manual_seed(len(variant))
    if variant == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2_SIZES)).eval()
    if variant == "t5":
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**T5_SIZES)).eval()
    config = transformers.T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    model = transformers.T5ForConditionalGeneration(config).eval()  # always ties, whatever the config says
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    return model


def ours(variant: str) -> torch.nn.Module:
    torch.manual_seed(len(variant))
    if variant == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**GPT2_SIZES)).eval()
    v1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if variant == "t5-v1.1" else {}
    return T5ForConditionalGeneration(T5Config(**T5_SIZES, **v1_1)).eval()


def open_with_transformers(directory: Path) -> torch.nn.Module:
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, architecture).from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(2, 26).view(2, 12)
    if hasattr(model, "transformer"):
        outputs = model(ids)
    elif isinstance(model, T5ForConditionalGeneration):
        outputs = model(ids, decoder_input_ids=ids[:, :7])
    else:  # transformers' T5 with a cache fails where the decoder's depth is not the encoder's
        outputs = model(ids, decoder_input_ids=ids[:, :7], use_cache=False)
    return getattr(outputs, "logits", outputs)


def assert_same_model(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Equal names, bitwise equal weights, equal logits up to float32 rounding."""
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    torch.testing.assert_close(logits(one), logits(other), atol=1e-5, rtol=1e-5)


def reference_directory(variant: str, directory: Path) -> torch.nn.Module:
    model = reference(variant)
    model.save_pretrained(directory)
    return model


def change_json(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | changes))


# ------------------------------------------------------------------------------ exchange with transformers


@pytest.mark.parametrize("shard", [None, "4KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_load_from_transformers(variant: str, shard: str | None, tmp_path: Path) -> None:
    theirs = reference(variant)
    theirs.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    assert (tmp_path / "model.safetensors").exists() == (shard is None)

    model = load_model(tmp_path)
    assert_same_model(model, theirs)
    assert not model.training
    assert (model.lm_head.weight is model.get_parameter(EMBEDDING[variant])) == (variant != "t5-v1.1")


@pytest.mark.parametrize("size", [5 * 10**9, 4000], ids=["whole", "sharded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_save_for_transformers(variant: str, size: int, tmp_path: Path) -> None:
    model = ours(variant)
    save_model(model, tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors").exists() == (size > 4000)

    assert_same_model(model, open_with_transformers(tmp_path))
    assert_same_model(model, load_model(tmp_path))


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_keeps_the_directory(variant: str, tmp_path: Path) -> None:
    theirs = reference_directory(variant, tmp_path / "a")
    save_model(load_model(tmp_path / "a"), tmp_path / "b")
    assert_same_model(open_with_transformers(tmp_path / "b"), theirs)

    before, after = (load_file(tmp_path / side / "model.safetensors") for side in "ab")
    assert before.keys() == after.keys()  # tied tensors are left out by the same rule
    with safe_open(tmp_path / "b" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    configs = [json.loads((tmp_path / side / "config.json").read_text()) for side in "ab"]
    differing = {key for key in configs[0] if configs[0][key] != configs[1].get(key)}
    assert differing == ({"tie_word_embeddings"} if variant == "t5-v1.1" else set())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_t5_tying_and_scaling_are_independent(tied: bool, scaled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(**T5_SIZES, tie_word_embeddings=tied, scale_decoder_outputs=scaled)
    model = T5ForConditionalGeneration(config).eval()
    save_model(model, tmp_path)
    for other in (load_model(tmp_path), open_with_transformers(tmp_path)):
        assert_same_model(model, other)
        assert (other.lm_head.weight is other.shared.weight) == tied


def test_an_untied_gpt2_stays_untied(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(**GPT2_SIZES, tie_word_embeddings=False)).eval()
    save_model(model, tmp_path)
    for other in (load_model(tmp_path), open_with_transformers(tmp_path)):
        assert_same_model(model, other)
        assert other.lm_head.weight is not other.transformer.wte.weight


@pytest.mark.parametrize("variant", ["t5", "t5-v1.1"])
def test_a_head_tied_or_untied_by_hand_is_saved_as_is(variant: str, tmp_path: Path) -> None:
    model = ours(variant)
    tied = variant == "t5-v1.1"
    model.lm_head.weight = model.shared.weight if tied else torch.nn.Parameter(torch.randn(61, 16))
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] == tied
    for other in (load_model(tmp_path), open_with_transformers(tmp_path)):
        assert_same_model(model, other)
        assert (other.lm_head.weight is other.shared.weight) == tied


@pytest.mark.parametrize("variant", VARIANTS)
def test_from_pretrained_and_save_pretrained(variant: str, tmp_path: Path) -> None:
    model = ours(variant)
    model.save_pretrained(tmp_path, max_shard_size=4000)
    assert_same_model(type(model).from_pretrained(str(tmp_path)), model)
    other = T5ForConditionalGeneration if variant == "gpt2" else GPT2LMHeadModel
    with pytest.raises(ValueError, match=rf"describes a {type(model).__name__}, not a {other.__name__}; use"):
        other.from_pretrained(tmp_path)
    assert ftcore.load_model is load_model and ftcore.save_model is save_model


# ------------------------------------------------------------------------------ pytorch_model.bin


def as_bin(directory: Path, **options: object) -> Path:
    """Replace model.safetensors by a pytorch_model.bin with all names; tied ones share memory."""
    state = open_with_transformers(directory).state_dict()
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin", **options)
    return directory / "pytorch_model.bin"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pickled_state_dict_loads(variant: str, zipped: bool, tmp_path: Path) -> None:
    theirs = reference_directory(variant, tmp_path)
    as_bin(tmp_path, _use_new_zipfile_serialization=zipped)
    model = load_model(tmp_path)
    assert_same_model(model, theirs)
    assert (model.lm_head.weight is model.get_parameter(EMBEDDING[variant])) == (variant != "t5-v1.1")


def test_a_sharded_pickle_loads(tmp_path: Path) -> None:
    theirs = reference_directory("t5", tmp_path)
    whole = as_bin(tmp_path)
    names = sorted(state := torch.load(whole, weights_only=True))
    whole.unlink()
    weight_map = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in names if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same_model(load_model(tmp_path), theirs)


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    theirs = reference_directory("gpt2", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert_same_model(load_model(tmp_path), theirs)


def test_a_pickle_with_code_raises(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    reference_directory("gpt2", tmp_path)
    torch.save({"transformer.wte.weight": Attack()}, as_bin(tmp_path))
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin: damaged, or a pickle of more than plain tensors"
    ):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------ names


T5_TIED = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
GPT2_TIED = ["transformer.wte.weight", "lm_head.weight"]


@given(data=st.data(), family=st.sampled_from(["t5", "gpt2"]))
@settings(deadline=None, max_examples=20)
def test_any_of_the_tied_names_loads(
    data: st.DataObject, family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tied = T5_TIED if family == "t5" else GPT2_TIED
    kept = data.draw(st.lists(st.sampled_from(tied), min_size=1, unique=True))
    directory = tmp_path_factory.mktemp("tied")
    theirs = reference_directory(family, directory)
    state = {name: t.clone() for name, t in theirs.state_dict().items() if name in kept or name not in tied}
    save_file(state, directory / "model.safetensors")

    model = load_model(directory)
    assert_same_model(model, theirs)
    assert len({id(model.get_parameter(name)) for name in tied}) == 1


def test_a_differing_second_embedding_raises(tmp_path: Path) -> None:
    state = {name: t.clone() for name, t in reference_directory("t5", tmp_path).state_dict().items()}
    state["decoder.embed_tokens.weight"] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"decoder\.embed_tokens\.weight differs from shared\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_files_with_and_without_prefix_head_and_masks(prefix: str, head: bool, tmp_path: Path) -> None:
    theirs = reference_directory("gpt2", tmp_path)
    state = {
        name.replace("transformer.", prefix): tensor.clone()
        for name, tensor in theirs.state_dict().items()
        if head or name != "lm_head.weight"
    }
    for layer in range(2):
        state[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril()
        state[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, tmp_path / "model.safetensors")
    assert_same_model(load_model(tmp_path), theirs)


def test_the_unused_table_of_old_t5_files_is_ignored(tmp_path: Path) -> None:
    theirs = reference_directory("t5", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(32, 3)
    save_file(state, tmp_path / "model.safetensors")
    assert_same_model(load_model(tmp_path), theirs)


# ------------------------------------------------------------------------------ memory mapping


def mapped_ranges(file: Path) -> list[tuple[int, int]]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(file))]
    return [(int(start, 16), int(end, 16)) for start, end in spans]


@linux
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_views_of_the_memory_map(variant: str, kind: str, tmp_path: Path) -> None:
    reference_directory(variant, tmp_path)
    if kind == "pytorch_model.bin":
        as_bin(tmp_path)
    model = load_model(tmp_path)
    ranges = mapped_ranges(tmp_path / kind)
    outside = [
        name
        for name, parameter in model.named_parameters()
        if not any(start <= parameter.data_ptr() < end for start, end in ranges)
    ]
    assert outside == []


@linux
def test_loading_takes_no_memory_and_no_time(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=40_000, n_positions=16, n_embd=256, n_layer=2, n_head=4)
    save_model(GPT2LMHeadModel(config), tmp_path)  # 47 MB
    size = (tmp_path / "model.safetensors").stat().st_size
    script = f"""
        import sys, torch
        from ftcore import load_model
        def resident():
            lines = open("/proc/self/status").read().splitlines()
            return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))
        load_model({str(Path(tmp_path / "warm"))!r})  # excludes imports and allocators
        before = resident()
        model = load_model({str(tmp_path)!r})
        loaded = resident()
        with torch.no_grad():
            checksum = sum(p.sum() for p in model.parameters())
        print(loaded - before, resident() - before, "torch._dynamo" in sys.modules)
    """
    save_model(ours("gpt2"), tmp_path / "warm")
    grown, touched, compiler = run_python(script).split()
    assert int(grown) < size / 20  # no page of the weights is read
    assert int(touched) < size * 1.2  # resident once
    assert compiler == "False"  # takes seconds to import


def run_python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_training_does_not_write_to_the_file(kind: str, tmp_path: Path) -> None:
    reference_directory("t5", tmp_path)
    if kind == "pytorch_model.bin":
        as_bin(tmp_path)
    content = (tmp_path / kind).read_bytes()
    trained = []
    for model in (load_model(tmp_path), copy.deepcopy(load_model(tmp_path))):  # memory-mapped, copied
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.arange(2, 26).view(2, 12)
        for _ in range(3):
            model(ids, decoder_input_ids=ids).logsumexp(-1).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.append(model)
    assert_same_model(*trained)
    assert not torch.equal(trained[0].shared.weight, load_model(tmp_path).shared.weight)
    assert (tmp_path / kind).read_bytes() == content


@pytest.mark.parametrize("variant", VARIANTS)
def test_loading_leaves_no_meta_tensors_and_the_rng_state(variant: str, tmp_path: Path) -> None:
    reference_directory(variant, tmp_path)
    state = torch.get_rng_state()
    model = load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    assert [name for name, tensor in tensors if tensor.is_meta] == []
    assert all(parameter.requires_grad for parameter in model.parameters())


# ------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_dtypes(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = reference(variant)
    save_model(ours(variant), tmp_path / "ours", dtype)
    theirs.to(dtype).save_pretrained(tmp_path / "theirs")
    for directory in (tmp_path / "ours", tmp_path / "theirs"):
        assert json.loads((directory / "config.json").read_text())["dtype"] == str(dtype)[6:]
        wide = {name for name, p in load_model(directory, dtype=None).named_parameters() if p.dtype != dtype}
        wo = {name for name, _ in theirs.named_parameters() if name.endswith(".wo.weight")}
        assert wide == (wo if dtype == torch.float16 else set())  # as in transformers
        assert {p.dtype for p in load_model(directory).parameters()} == {torch.float32}
        oracle = dict(open_with_transformers(directory).named_parameters())
        for name, parameter in load_model(directory, dtype=dtype).named_parameters():
            assert parameter.dtype == oracle[name].dtype
            assert torch.equal(parameter, oracle[name])


def test_an_integer_dtype_raises(tmp_path: Path) -> None:
    reference_directory("gpt2", tmp_path)
    with pytest.raises(ValueError, match=r"dtype is torch\.int8, expected a floating-point type"):
        load_model(tmp_path, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"dtype is torch\.int8, expected a floating-point type"):
        save_model(ours("gpt2"), tmp_path / "new", torch.int8)
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------ the other files


def test_unused_config_keys_are_kept(tmp_path: Path) -> None:
    reference_directory("t5", tmp_path)
    change_json(tmp_path / "config.json", task_specific_params={"a": [1]}, torch_dtype="float32")
    save_model(load_model(tmp_path), tmp_path / "new")
    values = json.loads((tmp_path / "new" / "config.json").read_text())
    assert values["task_specific_params"] == {"a": [1]}
    assert values["model_type"] == "t5" and values["architectures"] == ["T5ForConditionalGeneration"]
    assert values["dtype"] == "float32" and "torch_dtype" not in values


def test_generation_config_is_saved_with_the_model(tmp_path: Path) -> None:
    reference_directory("t5", tmp_path)
    change_json(tmp_path / "generation_config.json", num_beams=4)
    model = load_model(tmp_path)
    assert model.generation_config == json.loads((tmp_path / "generation_config.json").read_text())
    save_model(model, tmp_path / "new")
    assert open_with_transformers(tmp_path / "new").generation_config.num_beams == 4
    assert load_model(tmp_path / "new").generation_config == model.generation_config

    save_model(ours("t5"), tmp_path / "new")  # has none; the older one must be removed
    assert load_model(tmp_path / "new").generation_config is None


# ------------------------------------------------------------------------------ overwriting


def test_saving_removes_stale_weights(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"a tokenizer")
    model = ours("t5")
    for size in (2000, 5000, 10**9, 5000, 10**9):
        for parameter in model.parameters():
            parameter.data.add_(1)
        save_model(model, tmp_path, max_shard_size=size)
        assert_same_model(load_model(tmp_path), model)
        assert_same_model(open_with_transformers(tmp_path), model)
        files = {path.name for path in tmp_path.glob("*.safetensors")}
        if size == 10**9:
            assert files == {"model.safetensors"}
        else:
            index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
            assert files == set(index["weight_map"].values())
            assert index["metadata"]["total_size"] == 4 * index["metadata"]["total_parameters"]
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "spiece.model"}


def test_saving_over_the_mapped_file(tmp_path: Path) -> None:
    save_model(ours("gpt2"), tmp_path)
    model = load_model(tmp_path)
    with torch.no_grad():
        model.transformer.wpe.weight.add_(1)
    before = copy.deepcopy(model)
    save_model(model, tmp_path)
    assert_same_model(model, before)
    assert_same_model(load_model(tmp_path), before)


def test_write_atomically_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary: Path) -> None:
        assert temporary.parent == tmp_path and temporary != path
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise ArithmeticError("write failed")

    with pytest.raises(ArithmeticError, match="write failed"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    (tmp_path / ".file.part").write_text("left by a killed process")
    write_atomically(str(path), lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_file_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_model(ours("gpt2"), tmp_path)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "config.json": 0o640,
        "model.safetensors": 0o640,
    }


def test_a_full_disk_leaves_the_old_model(tmp_path: Path) -> None:
    model = ours("t5")
    save_model(model, tmp_path, max_shard_size=5000)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    larger = T5ForConditionalGeneration(T5Config(**T5_SIZES | {"d_ff": 4000}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # simulates a full disk
    try:
        with pytest.raises(OSError, match=r"\.safetensors.*cannot be written .*File too large"):
            save_model(larger, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_an_interrupt_between_renames_leaves_complete_weights(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = ours("gpt2"), ours("gpt2")
    for parameter in new.parameters():
        parameter.data.add_(1)
    old.generation_config = new.generation_config = {"eos_token_id": 1}
    save_model(old, tmp_path)
    replace, calls = Path.replace, []

    def cut(self: Path, target: Path) -> Path:
        if len(calls) == renames:
            raise KeyboardInterrupt
        calls.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        save_model(new, tmp_path)
    assert_same_model(load_model(tmp_path), new if renames else old)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_a_killed_process_leaves_a_directory_that_loads(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20000, n_positions=8, n_embd=64, n_layer=1, n_head=1))

    def save_forever(sender: Connection) -> None:
        for step in count():
            for parameter in model.parameters():
                torch.nn.init.constant_(parameter, step)
            save_model(model, tmp_path)
            sender.send(step)

    for delay in (0.003, 0.011, 0.017):
        receiver, sender = Pipe(duplex=False)
        process = get_context("fork").Process(target=save_forever, args=(sender,))
        process.start()
        saved = [receiver.recv() for _ in range(3)][-1]
        time.sleep(delay)
        process.kill()
        process.join()
        values = {value for p in load_model(tmp_path).parameters() for value in p.unique().tolist()}
        assert len(values) == 1 and values.pop() >= saved


# ------------------------------------------------------------------------------ errors


def broken_config(directory: Path) -> None:
    (directory / "config.json").write_text('{\n"model_type": "gpt2",\n')


def list_config(directory: Path) -> None:
    (directory / "config.json").write_text("[1]")


def without_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def run_directory(directory: Path) -> None:
    (directory / "best").mkdir()
    (directory / "config.json").rename(directory / "best" / "config.json")


def unknown_type(directory: Path) -> None:
    change_json(directory / "config.json", model_type="bert")


def without_type(directory: Path) -> None:
    (directory / "config.json").write_text("{}")


def wrong_value(directory: Path) -> None:
    change_json(directory / "config.json", n_layer="two")


def wrong_sizes(directory: Path) -> None:
    change_json(directory / "config.json", n_layer=3, vocab_size=62)


def without_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def truncated(directory: Path) -> None:
    with open(directory / "model.safetensors", "r+b") as file:
        file.truncate(5000)


def empty_file(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"")


def truncated_bin(directory: Path) -> None:
    with open(as_bin(directory), "r+b") as file:
        file.truncate(5000)


def truncated_old_bin(directory: Path) -> None:
    with open(as_bin(directory, _use_new_zipfile_serialization=False), "r+b") as file:
        file.truncate(5000)


def wrapped_bin(directory: Path) -> None:
    path = as_bin(directory)
    torch.save({"state_dict": {}}, path)


def lfs_pointer(directory: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 548105171\n"
    (directory / "model.safetensors").write_text(pointer)


def changed_tensors(directory: Path, **changes: torch.Tensor | None) -> None:
    state = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    save_file(state, directory / "model.safetensors")


def missing_tensor(directory: Path) -> None:
    changed_tensors(directory, **{"transformer.h.1.mlp.c_fc.weight": None})


def missing_embedding(directory: Path) -> None:
    changed_tensors(directory, **{"transformer.wte.weight": None})


def unexpected_tensor(directory: Path) -> None:
    changed_tensors(directory, **{"score.weight": torch.zeros(2, 16)})


def transposed_tensor(directory: Path) -> None:
    changed_tensors(directory, **{"transformer.h.0.mlp.c_fc.weight": torch.zeros(64, 16)})


def integer_tensor(directory: Path) -> None:
    changed_tensors(directory, **{"transformer.ln_f.bias": torch.zeros(16, dtype=torch.int8)})


def missing_shards(directory: Path) -> None:
    without_weights(directory)
    save_model(ours("gpt2"), directory, max_shard_size=4000)
    sorted(directory.glob("model-*"))[1].unlink()


def broken_index(directory: Path) -> None:
    missing_shards(directory)
    (directory / "model.safetensors.index.json").write_text("{}")


FAULTS = [
    (broken_config, ValueError, r"config\.json, line 3: broken JSON: .*column 1"),
    (list_config, ValueError, r"config\.json: expected a JSON object, found list"),
    (
        without_config,
        FileNotFoundError,
        r"gpt2: no config\.json; expected a directory in Hugging Face's format$",
    ),
    (run_directory, FileNotFoundError, r"no config\.json; expected .*, such as \S+/gpt2/best$"),
    (
        unknown_type,
        ValueError,
        r"config\.json: model_type is 'bert', expected \"t5\", \"mt5\", \"umt5\" or \"gpt2\"",
    ),
    (
        without_type,
        ValueError,
        r"config\.json: model_type is missing, expected \"t5\", \"mt5\", \"umt5\" or \"gpt2\"",
    ),
    (wrong_value, ValueError, r"config\.json: n_layer is 'two', expected a whole number"),
    (
        wrong_sizes,
        ValueError,
        r"model\.safetensors does not fit config\.json "
        r"\(wrong: transformer\.wte\.weight is \(61, 16\), expected \(62, 16\); "
        r"missing: transformer\.h\.2\.ln_1\.weight \(16,\), .* and 8 more\)",
    ),
    (without_weights, FileNotFoundError, r"gpt2: no weights; expected one of model\.safetensors, "),
    (truncated, ValueError, r"model\.safetensors: cannot be read, 5000 bytes long .*incomplete"),
    (empty_file, ValueError, r"model\.safetensors: cannot be read, 0 bytes long"),
    (truncated_bin, ValueError, r"pytorch_model\.bin: cannot be read, 5000 bytes long"),
    (truncated_old_bin, ValueError, r"pytorch_model\.bin: (damaged|cannot be read)"),
    (wrapped_bin, ValueError, r"pytorch_model\.bin: expected a state dict"),
    (
        lfs_pointer,
        ValueError,
        r"model\.safetensors: a git-lfs pointer, not the file itself: run `git lfs pull`",
    ),
    (missing_tensor, ValueError, r"missing: transformer\.h\.1\.mlp\.c_fc\.weight \(16, 64\)\)"),
    (missing_embedding, ValueError, r"missing: transformer\.wte\.weight \(61, 16\)\)"),
    (
        unexpected_tensor,
        ValueError,
        r"unexpected: score\.weight \(2, 16\)\); both must be of the same GPT2LMHead",
    ),
    (transposed_tensor, ValueError, r"h\.0\.mlp\.c_fc\.weight is \(64, 16\), expected \(16, 64\)"),
    (integer_tensor, ValueError, r"ln_f\.bias is torch\.int8, expected a floating-point type"),
    (
        missing_shards,
        FileNotFoundError,
        r"1 of \d+ shards are missing: model-00002-of-\d+\.safetensors$",
    ),
    (broken_index, ValueError, r"model\.safetensors\.index\.json: weight_map does not map"),
]


@pytest.mark.parametrize(("fault", "kind", "message"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_errors_are_one_line(fault, kind: type[Exception], message: str, tmp_path: Path) -> None:
    directory = tmp_path / "gpt2"
    reference_directory("gpt2", directory)
    fault(directory)
    with pytest.raises(kind, match=message) as caught:
        load_model(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


def test_paths_that_are_not_directories_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference_directory("gpt2", tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_directory(str(tmp_path / "model")) == resolve_directory("~/model") == tmp_path / "model"
    with pytest.raises(ValueError, match=r"config\.json: a file, expected its directory"):
        resolve_directory(tmp_path / "model" / "config.json")
    with pytest.raises(FileNotFoundError, match="no such directory, and not a name on the Hugging Face hub"):
        resolve_directory(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.json: a file, expected a directory to save the model in"):
        save_model(ours("gpt2"), tmp_path / "model" / "config.json")


def test_split_into_shards() -> None:
    sizes = {"a": 3, "b": 3, "c": 7, "d": 20, "e": 1}
    assert split_into_shards(sizes, 10) == {
        "model-00001-of-00004.safetensors": ["a", "b"],
        "model-00002-of-00004.safetensors": ["c"],
        "model-00003-of-00004.safetensors": ["d"],
        "model-00004-of-00004.safetensors": ["e"],
    }
    assert split_into_shards(sizes, 34) == {"model.safetensors": [*"abcde"]}
