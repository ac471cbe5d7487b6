"""Generation, hooks and commands on a GPU: the ids and activations of the CPU, the ids of CUDA graphs."""

from copy import deepcopy
from random import Random
from typing import Any

import pytest
import torch

from ftcore import evaluate, explore
from ftcore import generate as generate_command
from ftcore.decoding import generate, prepare_for_decoding
from ftcore.fast.decoding import use_graphs
from ftcore.study import logit_lens, patch, record
from ftcore.study.names import short_names
from tests.helpers import tiny_runs
from tests.helpers.oracle import BOUND, error
from tests.helpers.parity_matrix import IMPROBABLE, chi_square
from tests.helpers.resumed_runs import FAMILIES
from tests.helpers.small_models import EOS, PAD, SEARCHES, VOCAB, assert_same_ids, inputs, model_of
from tests.helpers.tiny_models import random_inputs, tiny

pytestmark = pytest.mark.cuda

MODELS = ["gpt2", "t5, gated, untied", "umt5"]
DETERMINISTIC = [search for search, options in SEARCHES.items() if "do_sample" not in options]


@pytest.mark.parametrize("search", DETERMINISTIC)
@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_the_cpu(name, search, device):
    model = deepcopy(model_of(name)).to(device)
    for seed in range(3):
        ids, mask = inputs(Random(seed))
        options = {"max_new_tokens": 12, "eos_token_id": EOS, "pad_token_id": PAD} | SEARCHES[search]
        got, want = (generate(each, ids, mask, **options) for each in (model, model_of(name)))
        assert got.device.type == device.type
        assert got.tolist() == want.tolist()


@pytest.mark.parametrize("name", ["gpt2", "t5, relu, tied"])
def test_draws_have_the_distribution_of_the_cpu(name, device):
    model, ids = deepcopy(model_of(name)).to(device), torch.tensor([[5, 6, 7]])
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, "eos_token_id": None}
    drawn = generate(model, ids, num_return_sequences=1000, generator=generator, **options)[:, -1].cpu()
    start = (torch.zeros(1, 1, dtype=torch.long),) if "t5" in name else ()
    with torch.no_grad():
        logits = model_of(name)(ids, None, *start)[0, -1]
    assert chi_square(drawn.bincount(minlength=VOCAB), logits.double().softmax(-1)) > IMPROBABLE


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", MODELS)
def test_ids_of_cuda_graphs_are_those_of_the_page(name, search, device):
    model = deepcopy(model_of(name)).to(device)
    prepare = prepare_for_decoding if device.type == "cuda" else use_graphs  # prepared for a CPU: no graphs
    prepared: Any = prepare(model, torch.float32)
    assert_same_ids(name, prepared, search)
    assert prepared.fast_step.graphs


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_activations_are_those_of_the_cpu(family, device):
    """Every one that has a short name, the logit lens, and logits after a patch."""
    found = []
    for where in (torch.device("cpu"), device):
        model = tiny(family).to(where)
        batch = {name: ids.to(where) for name, ids in random_inputs(family).items()}
        stack = "" if family == "gpt2" else "decoder."
        with torch.no_grad():
            with record(model, *short_names(model)) as acts:
                model(**batch)
            with patch(model, f"{stack}z.0", torch.zeros_like(acts[f"{stack}z.0"])):
                patched = model(**batch)
            found.append({**acts, "lens": logit_lens(model, **batch), "patched": patched})
        assert {each.device.type for each in found[-1].values()} == {where.type}
    on_cpu, on_device = found
    for name, values in on_cpu.items():
        visible = values.isfinite()  # masked scores are -inf
        assert torch.equal(on_device[name].isfinite().cpu(), visible), name
        assert error(on_device[name].cpu()[visible], values[visible]) < BOUND[torch.float32], name


@pytest.mark.parametrize("family", FAMILIES)
def test_commands_run(family, device, tmp_path, capsys):
    build = FAMILIES[family]
    checkpoint = ["--model", str(build(tmp_path / "model")), "--device", device.type]
    data = tiny_runs.questions(tmp_path / "data.jsonl", 6)
    assert evaluate.main([*checkpoint, "--data", str(data), "--max-target-length", "8"]) == 0
    page = ["--prompt", "abc", "--other", "abd", "--out", str(tmp_path / "page.html")]
    assert explore.main([*checkpoint, *page, "--max-new-tokens", "3", "--num-beams", "2"]) == 0
    for options in ("--num-beams 2", "--sample --seed 1", "--fast"):
        assert generate_command.main([*checkpoint, "--prompt", "abc", *options.split()]) == 0
