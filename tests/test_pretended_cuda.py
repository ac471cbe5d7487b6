"""On a pretended CUDA device: no tensor on the wrong device, no hidden wait, the dtypes of autocast.

The results are those of the CPU, since the arithmetic is.
"""

import inspect
import os
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ftcore.decoding.processors
import ftcore.decoding.state
import ftcore.models.attention
import ftcore.models.gpt2
import ftcore.models.t5
import ftcore.train
import ftcore.training.loss
from ftcore import evaluate, explore, load_model
from ftcore.decoding import generate
from ftcore.study import logit_lens, patch, record
from ftcore.training.metrics_log import Meter
from tests.helpers import tiny_runs
from tests.helpers.pretended_cuda import CUDA, PretendedCuda, PretendedGenerator

FAMILIES = {"gpt2": tiny_runs.tiny_gpt2, "t5": tiny_runs.tiny_t5}
STEPS = 3


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family and a folder with its tiny model and questions."""
    folder = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](folder / "model")
    tiny_runs.questions(folder / "train.jsonl", 16)
    return request.param, folder


def train(folder: Path, output: Path, *options: str) -> int:
    files = [
        "--model",
        str(folder / "model"),
        "--train",
        str(folder / "train.jsonl"),
        "--output",
        str(output),
    ]
    sizes = "--max-steps 3 --batch-size 3 --grad-accum 2 --lr 0.01 --log-every 1 --max-target-length 8"
    return ftcore.train.main(
        [*files, "--output", str(output), *sizes.split(), "--eval-answers", "1", *options]
    )


def result(output: Path) -> Any:
    return tiny_runs.metrics(output), load_file(output / "last" / "model.safetensors")


def assert_same(one: Any, other: Any) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


# ------------------------------------------------------------------------------------------------- training

WAYS = {
    "checkpointing": "--gradient-checkpointing --label-smoothing 0.1",
    "lora": "--lora-rank 2 --num-beams 2",
    "packing": "--relative-steps --packing",
    "adafactor": "--optimizer adafactor",
}

# What a run may wait for. In a step: the loss of each micro-batch, the norm of the gradient, and what the
# selection of target tokens needs; each decoding step asks once whether all rows have ended.
ALLOWED = {
    "train.py accumulate_gradients: item",
    "train.py clip_gradients: item",
    "train.py take_step: item",  # Adafactor's own
    "training/loss.py _hidden: __bool__",
    "training/loss.py _target_hidden: __getitem__",
    "training/loss.py batch_loss: __getitem__",
    "training/loss.py batch_loss: __int__",
    "models/config.py check_ids: tolist",
    "training/optim.py _root_mean_square: item",
    "training/scoring.py score_loss: item",
    "training/scoring.py score_loss: __int__",
    "decoding/inputs.py checked_mask: __bool__",
    "decoding/inputs.py checked_source: __bool__",
    "decoding/sampling.py sample: tolist",
    "decoding/beam_search.py beam_search: tolist",
    "decoding/beam_search.py returned_hypotheses: __bool__",
    "decoding/beam_search.py returned_hypotheses: __int__",
    "decoding/text.py <genexpr>: tolist",
    "checkpoints/tensors.py <dictcomp>: to the CPU",  # a save
    "training/run.py <listcomp>: __bool__",  # a save: are all weights finite?
    "training/state.py save_state: item",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_equals_that_of_the_cpu(family, way, tmp_path):
    _, folder = family
    options = [*WAYS[way].split(), "--device"]
    assert train(folder, tmp_path / "cpu", *options, "cpu") == 0
    with PretendedCuda() as cuda:
        assert train(folder, tmp_path / "cuda", *options, "cuda") == 0
    assert_same(result(tmp_path / "cpu"), result(tmp_path / "cuda"))
    assert cuda.waits.keys() <= ALLOWED, cuda.waits.keys() - ALLOWED
    assert cuda.waits["train.py accumulate_gradients: item"] <= 2 * STEPS  # a micro-batch each
    assert cuda.waits["train.py clip_gradients: item"] == STEPS


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_resumed_run_equals_an_uninterrupted_one(family, precision, tmp_path, monkeypatch):
    _, folder = family
    options = ["--precision", precision, "--device", "cuda"]
    add, taken = Meter.add, []

    def add_and_stop(self: Meter, *arguments: Any) -> None:
        add(self, *arguments)
        taken.append(self)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with PretendedCuda():
        assert train(folder, tmp_path / "whole", *options) == 0
        with monkeypatch.context() as stopping:
            stopping.setattr(Meter, "add", add_and_stop)
            assert train(folder, tmp_path / "stopped", *options) == 0
        assert len(taken) == 2
        assert ftcore.train.main(["--output", str(tmp_path / "stopped"), "--resume"]) == 0
    assert_same(result(tmp_path / "whole"), result(tmp_path / "stopped"))


def test_a_gradient_that_overflows_is_skipped_and_the_scale_lowered(family, tmp_path, monkeypatch):
    _, folder = family
    scales = []
    update = torch.amp.GradScaler.update

    def spy(self: Any) -> None:
        update(self)
        scales.append(self.get_scale())

    monkeypatch.setattr(torch.amp.GradScaler, "update", spy)
    make = ftcore.train.grad_scaler
    monkeypatch.setattr("ftcore.train.grad_scaler", lambda *given: huge(make(*given)))
    with PretendedCuda():
        assert train(folder, tmp_path / "run", "--precision", "fp16", "--device", "cuda") == 0
    assert scales == [2.0**12] * STEPS
    skipped = [line["skipped_steps"] for line in tiny_runs.metrics(tmp_path / "run") if "train_loss" in line]
    assert skipped == [1, 0, 0]


def huge(scaler: torch.amp.GradScaler) -> torch.amp.GradScaler:
    """A scale at which gradients overflow, and one at which they do not."""
    scaler._init_scale, scaler._backoff_factor = 2.0**127, 2.0**-115
    return scaler


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("precision", HALF)
def test_dtypes_under_autocast(family, precision):
    """Products in half precision; norms, scores, softmax and T5's residual stream in float32."""
    name, folder = family
    half = HALF[precision]
    model, ids = load_model(folder / "model"), torch.tensor([[5, 6, 7, 8]])
    stack = "encoder." if name == "t5" else ""
    expected = {"q": half, "v": half, "z": half, "neurons": half}
    expected |= dict.fromkeys(["scores", "pattern", "resid_post"], torch.float32)
    if (name, precision) == ("t5", "fp16"):
        expected["neurons"] = torch.float32  # `wo` is computed in float32, since its sums exceed float16
    names = {f"{stack}{kind}.0": dtype for kind, dtype in expected.items()}
    with PretendedCuda():
        model, ids = model.to("cuda"), ids.to("cuda")
        inputs = (ids, None, ids) if name == "t5" else (ids,)
        with torch.autocast("cuda", half), record(model, *names) as acts:
            logits = model(*inputs)
        assert {name: acts[name].dtype for name in names} == names
        assert logits.dtype == half


# ------------------------------------------------------------------- generation, scoring, hooks, the commands

SEARCHES = {
    "greedy": {"repetition_penalty": 1.2, "min_new_tokens": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
    "samples": {"do_sample": True, "top_k": 20, "top_p": 0.9, "num_return_sequences": 2},
    "limits": {"bad_words_ids": [[5], [6, 7]], "suppress_tokens": [8], "forced_eos_token_id": 3},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_ids_are_those_of_the_cpu(family, search):
    _, folder = family
    model, ids = load_model(folder / "model"), torch.tensor([[9, 9, 5, 6], [4, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    arguments = {"max_new_tokens": 6, "pad_token_id": 0} | SEARCHES[search]
    wanted = generate(model, ids, mask, generator=torch.Generator().manual_seed(3), **arguments)
    with PretendedCuda() as cuda:
        generator = torch.Generator("cuda").manual_seed(3)
        found = generate(model.to("cuda"), ids, mask, generator=generator, **arguments)
        assert found.device == CUDA
        steps = found.shape[1] - (1 if model.config.is_encoder_decoder else ids.shape[1])
    assert torch.equal(found, wanted)
    assert cuda.waits.keys() <= ALLOWED, cuda.waits.keys() - ALLOWED
    assert sum(count for wait, count in cuda.waits.items() if wait.endswith("tolist")) <= steps + 3


def test_hooks_see_and_change_tensors_of_the_device(family):
    name, folder = family
    stack = "decoder." if name == "t5" else ""
    with PretendedCuda():
        model = load_model(folder / "model").to("cuda")
        ids = torch.tensor([[5, 6, 7]], device="cuda")
        inputs = (ids, None, ids) if name == "t5" else (ids,)
        with record(model, f"{stack}pattern.0", f"{stack}z.0") as acts:
            before = model(*inputs)
        assert acts[f"{stack}pattern.0"].device == CUDA
        with patch(model, f"{stack}z.0", lambda heads: heads * 0), torch.no_grad():
            after = model(*inputs)
        assert not torch.equal(before, after)
        assert logit_lens(model, *inputs).device == CUDA


def test_commands_run(family, tmp_path, capsys):
    _, folder = family
    checkpoint = ["--model", str(folder / "model"), "--device", "cuda"]
    with PretendedCuda():
        data = ["--data", str(folder / "train.jsonl"), "--max-target-length", "8"]
        assert evaluate.main([*checkpoint, *data]) == 0
        pages = ["--prompt", "abc", "--other", "abd", "--out", str(tmp_path / "page.html")]
        assert explore.main([*checkpoint, *pages, "--max-new-tokens", "3", "--num-beams", "2"]) == 0
        assert train(folder, tmp_path / "run", "--dry-run", "--device", "cuda") == 0
        assert train(folder, tmp_path / "run", "--check", "--device", "cuda") == 0
    assert "exact_match" in capsys.readouterr().out


# ----------------------------------------------------------------------------- what the device would refuse


def planted(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, old: str, new: str) -> None:
    """Replace `old` by `new` in the source of a function of a module, or of a method of a class."""
    function = getattr(place, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, source
    names: dict[str, Any] = {}
    wrapped = inspect.unwrap(function)
    file = inspect.getfile(wrapped)
    exec(compile(source.replace(old, new), file, "exec"), wrapped.__globals__, names)
    monkeypatch.setattr(place, name, names[name])


def forward(model: Any) -> None:
    ids = torch.tensor([[5, 6, 7]], device="cuda")
    mask = torch.tensor([[0, 1, 1]], device="cuda")
    for given in (None, mask):
        model(ids, given, ids) if model.config.is_encoder_decoder else model(ids, given)


def search(model: Any) -> None:
    arguments = {"do_sample": True, "num_beams": 2, "num_return_sequences": 2, "repetition_penalty": 1.2}
    ids, mask = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 1]])
    generate(model, ids, mask, max_new_tokens=3, min_new_tokens=3, pad_token_id=0, **arguments)


def with_a_generator_of_the_cpu(model: Any) -> None:
    ids = torch.tensor([[5, 6, 7]])
    generate(model, ids, do_sample=True, generator=PretendedGenerator("cpu"), max_new_tokens=2)


FAULTS: list[tuple[str, Any, str, str, str, Callable[[Any], None]]] = [
    ("gpt2", ftcore.models.attention, "attention_mask_bias", ", device=like.device", "", forward),
    ("gpt2", ftcore.models.gpt2.GPT2Model, "_position_ids", ", device=device", "", forward),
    ("t5", ftcore.models.t5, "relative_position_bias", ", device=table.weight.device", "", forward),
    ("t5", ftcore.decoding.state.DecoderState, "prefill", ", device=logits.device", "", search),
    ("t5", ftcore.decoding.processors, "token_set", ", device=ids.device", "", search),
]


@pytest.mark.parametrize(
    ("family_name", "place", "name", "old", "new", "use"), FAULTS, ids=[fault[2] for fault in FAULTS]
)
def test_a_tensor_on_the_wrong_device_is_found(
    family_name, place, name, old, new, use, tmp_path, monkeypatch
):
    model = load_model(FAMILIES[family_name](tmp_path))
    with PretendedCuda():
        use(model.to("cuda"))
        planted(monkeypatch, place, name, old, new)
        if place is ftcore.models.attention:
            monkeypatch.setattr(ftcore.models.gpt2, name, getattr(place, name))
        with pytest.raises(RuntimeError, match="same device"):
            use(model)


def test_a_generator_on_the_wrong_device_is_found(tmp_path):
    with PretendedCuda(), pytest.raises(RuntimeError, match="generator"):
        with_a_generator_of_the_cpu(load_model(tiny_runs.tiny_gpt2(tmp_path)).to("cuda"))


def test_a_batch_that_stays_on_the_cpu_is_found(family, tmp_path, monkeypatch):
    _, folder = family
    moved = "tensor.to(run.device, non_blocking=True)"
    planted(monkeypatch, ftcore.train, "accumulate_gradients", moved, "tensor")
    with PretendedCuda(), pytest.raises(RuntimeError, match="same device"):
        train(folder, tmp_path / "run", "--device", "cuda")


def test_a_hidden_wait_is_found(tmp_path, monkeypatch):
    look = "hidden.sum().item(); mean_square ="
    planted(monkeypatch, ftcore.models.t5.T5LayerNorm, "forward", "mean_square =", look)
    model = load_model(tiny_runs.tiny_t5(tmp_path))
    with PretendedCuda() as cuda:
        forward(model.to("cuda"))
    assert cuda.waits.keys() - ALLOWED == {"models/t5.py forward: item"}


def test_a_norm_in_half_precision_is_found(tmp_path, monkeypatch):
    planted(monkeypatch, ftcore.models.t5.T5LayerNorm, "forward", "at_least_float32(hidden)", "hidden")
    model = load_model(tiny_runs.tiny_t5(tmp_path)).half()
    states = torch.full((1, 2, 16), 300.0, dtype=torch.float16)
    with PretendedCuda():
        norm = model.encoder.final_layer_norm.to("cuda")
        outputs: Tensor = norm(states.to("cuda"))
    assert not outputs.abs().sum() > 0 or not outputs.isfinite().all()
