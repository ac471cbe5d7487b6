"""Compiled blocks: equal losses and gradients, compiled once per class of block."""

import re
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._inductor import config as inductor

import ftcore.train
from ftcore.decoding import generate
from ftcore.fast import compiler, prepare_for_training
from ftcore.fast.compiler import compile_blocks
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.training.gradient_checkpointing import checkpoint_blocks
from ftcore.training.loss import batch_loss
from tests.helpers import parallel_runs, tiny_runs

VOCAB = 40
COMPILATIONS = {"gpt2": 1, "t5": 2}  # T5's encoder and decoder have different blocks

pytestmark = pytest.mark.usefixtures("compilations")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace only: compiling to C++ takes long."""
    monkeypatch.setattr(compiler, "compile_separately", parallel_runs.traced)


def random_model(family: str, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    if family == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 3}
        config = T5Config(vocab_size=VOCAB, **sizes, dropout_rate=dropout, decoder_start_token_id=0)
        return T5ForConditionalGeneration(config).double().train()
    drops = dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], dropout)
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **sizes, **drops)).double().train()


def compiled(model: Any) -> Any:
    copy = deepcopy(model)
    compile_blocks(copy)
    return copy


def batch(rows: int, length: int, targets: int | None = None, padding: int = 0) -> dict[str, Tensor]:
    """With `padding` on the left of the last row, for which GPT-2 needs a mask."""
    ids = torch.arange(rows * length).view(rows, length) % (VOCAB - 2) + 2
    mask = torch.ones_like(ids)
    mask[-1, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids[:, :targets]}


def gradients(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The loss, all gradients, and the next random number."""
    torch.manual_seed(7)
    model.zero_grad()
    loss = batch_loss(model, inputs).total
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters()), torch.rand(1)]


@pytest.mark.parametrize("family", COMPILATIONS)
def test_losses_and_gradients_of_batches_of_any_size(family: str, compilations: Callable[[], int]) -> None:
    """Including sizes that equal those of the model: 2 heads, a width of 16."""
    model = random_model(family)
    fast = compiled(model)
    for rows, length, targets, padding in ((3, 9, 5, 0), (4, 11, 7, 2), (2, 16, 8, 0), (5, 7, 16, 3)):
        inputs = batch(rows, length, targets if family == "t5" else None, padding)
        # Sums in float64 in a different order.
        torch.testing.assert_close(gradients(fast, inputs), gradients(model, inputs), rtol=1e-8, atol=1e-8)
    assert compilations() == 2  # T5's encoder and decoder; GPT-2 with a mask and without


@pytest.mark.parametrize("family", COMPILATIONS)
@pytest.mark.usefixtures("traced")
def test_gradient_checkpointing_repeats_the_dropout_masks(family: str) -> None:
    model = compiled(random_model(family, dropout=0.3))
    checkpointed = deepcopy(model)
    checkpoint_blocks(checkpointed)
    results = [gradients(one, batch(3, 9)) for one in (model, checkpointed)]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    other = gradients(random_model(family, dropout=0.0), batch(3, 9))
    assert results[0][0] != other[0]


@pytest.mark.parametrize("family", COMPILATIONS)
@pytest.mark.usefixtures("traced")
def test_nothing_is_compiled_without_gradients_or_with_a_cache(
    family: str, compilations: Callable[[], int]
) -> None:
    model = random_model(family).eval()
    fast = compiled(model)
    ids = batch(2, 6)["input_ids"]
    arguments: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}
    wanted, got = (generate(one, ids, **arguments) for one in (model, fast))
    assert torch.equal(got, wanted)
    with torch.no_grad():
        losses = [batch_loss(one, batch(2, 6)).total for one in (model, fast)]
    assert losses[0] == losses[1]
    assert compilations() == 0


@pytest.mark.parametrize("family", COMPILATIONS)
@pytest.mark.usefixtures("traced")
def test_hooks_are_called_whenever_they_are_registered(family: str, compilations: Callable[[], int]) -> None:
    model = compiled(random_model(family))
    before = gradients(model, batch(2, 6))
    before_hooks = compilations()
    calls: list[str] = []
    inside = "decoder.block.1.layer.2.DenseReluDense.act" if family == "t5" else "transformer.h.1.mlp.act"
    block = inside.partition(".1.")[0] + ".1"
    for kind, name in product(
        ("forward", "forward_pre", "full_backward", "full_backward_pre"), (inside, block)
    ):
        register = getattr(model.get_submodule(name), f"register_{kind}_hook")
        handle = register(lambda *_, name=name: calls.append(name))
        torch.testing.assert_close(gradients(model, batch(2, 6)), before, rtol=1e-8, atol=1e-8)
        assert calls.pop() == name and not calls
        handle.remove()
    torch.testing.assert_close(gradients(model, batch(2, 6)), before, rtol=0, atol=0)
    assert compilations() == before_hooks == COMPILATIONS[family]


@pytest.mark.usefixtures("traced")
def test_hooks_on_the_position_table_do_not_disable_compilation(compilations: Callable[[], int]) -> None:
    """It is read outside of its block, and a sharded model has hooks there."""
    model = compiled(random_model("t5"))
    for name, part in model.named_modules():
        if name.endswith("relative_attention_bias"):
            part.register_forward_pre_hook(lambda module, inputs: None)
    for stack in (model.encoder, model.decoder):
        del stack.block[1:]
    gradients(model, batch(2, 6))
    assert compilations() == 2


@pytest.mark.usefixtures("traced")
def test_a_copy_uses_its_own_weights() -> None:
    model = compiled(random_model("gpt2"))
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(0.5)
    losses = [gradients(one, batch(2, 6))[0] for one in (model, copy)]
    assert losses[0] != losses[1]
    assert copy.state_dict().keys() == random_model("gpt2").state_dict().keys()


def test_a_stopped_run_resumes_exactly_and_only_compiled(tmp_path: Path) -> None:
    """Compiled dropout draws other masks, so a run cannot switch to it."""
    model = tiny_runs.tiny_gpt2(tmp_path / "model")
    data = tiny_runs.questions(tmp_path / "train.jsonl", 18)
    # Batches of 4, since one row would compile separately.
    command = (
        f"--model {model} --train {data} --batch-size 4 --max-steps 4 --lr 0.01 --eval-answers 1".split()
    )

    def train(name: str, *options: str, stop_at: int | None = None) -> dict[str, Any]:
        return parallel_runs.run([*command, "--output", str(tmp_path / name), *options], stop_at)

    def resume(name: str, *options: str) -> dict[str, Any]:
        return parallel_runs.run(["--output", str(tmp_path / name), "--resume", *options])

    def outcome(name: str) -> dict[str, Any]:
        run = tmp_path / name
        state = torch.load(run / "state" / "training_state.pt", weights_only=True)
        weights = {part: load_file(run / part / "model.safetensors") for part in ("best", "last")}
        logged = {"metrics": tiny_runs.metrics(run), "random": state["random"]["cpu"]}
        return weights | logged | {part: state[part] for part in ("optimizer", "progress")}

    assert train("whole", "--compile")["status"] == 0
    train("stopped", "--compile", stop_at=3)
    assert resume("stopped")["status"] == 0
    torch.testing.assert_close(outcome("stopped"), outcome("whole"), rtol=0, atol=0)
    train("plain", stop_at=3)
    refused = resume("plain", "--compile")
    assert refused["status"] == 2
    assert "without --compile, it cannot continue with --compile" in refused["errors"]
    assert resume("plain")["status"] == 0
    assert outcome("plain")["progress"] != outcome("whole")["progress"]


def test_a_missing_compiler_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="compile=True needs Triton on cuda:0"):
        prepare_for_training(random_model("t5"), compile=True, device=torch.device("cuda:0"))
    model = tiny_runs.tiny_gpt2(tmp_path / "model")
    words = f"--model {model} --train {tiny_runs.questions(tmp_path / 'train.jsonl', 8)} --compile"
    no_compiler = inductor.patch({"cpp.cxx": (None, "no-such-compiler")})
    with no_compiler, pytest.raises(SystemExit):
        ftcore.train.main([*words.split(), "--output", str(tmp_path / "run")])
    assert re.search(r"compile=True needs a C\+\+ compiler", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
