"""What an analysis returns prints in a few short lines, however long the text is."""

import pytest
import torch

from ftcore import load_tokenizer
from ftcore.analysis import (
    activation_patching,
    attention_maps,
    beam_trace,
    copy_scores,
    head_ablation,
    hidden_states,
    logit_attribution,
    logit_difference,
    relative_bias_curves,
    residual_norms,
    top_activations,
)
from ftcore.analysis.results import MOST_NUMBERS, Tensors, one_per_line
from ftcore.data import DataLoader, Dataset, Record
from tests.helpers import tiny_checkpoints
from tests.helpers.tiny_models import random_inputs, tiny

METRIC = logit_difference(torch.tensor([5]), torch.tensor([6]))
RESULTS = {
    "attention_maps": lambda model, inputs: attention_maps(model, inputs),
    "hidden_states": lambda model, inputs: hidden_states(model, inputs),
    "logit_attribution": lambda model, inputs: logit_attribution(model, inputs, torch.tensor([[5]])),
    "activation_patching": lambda model, inputs: activation_patching(
        model, inputs, inputs, METRIC, "decoder.resid_pre.*", progress=False
    ),
    "copy_scores": lambda model, _: copy_scores(model),
    "head_ablation": lambda model, inputs: head_ablation(model, inputs, METRIC, progress=False),
    "relative_bias_curves": lambda model, _: relative_bias_curves(model, "encoder"),
    "residual_norms": lambda model, inputs: residual_norms(model, inputs),
    "top_activations": lambda model, inputs: top_activations(model, [inputs], "encoder.neurons.0"),
    "beam_trace": lambda model, inputs: beam_trace(
        model, inputs["input_ids"][:1], num_beams=3, max_new_tokens=5
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_print_in_few_lines(name):
    text = repr(RESULTS[name](tiny("t5"), random_inputs("t5")))
    assert len(text) < 1200
    assert len(text.splitlines()) < 16


def test_large_tensors_print_as_their_shape_and_small_ones_in_numbers():
    maps = Tensors(cross=torch.zeros(2, 1, 4, 3, 5), scores=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert repr(maps).splitlines() == [
        "cross (2, 1, 4, 3, 5)",
        "scores tensor([[1., 2.],",
        "               [3., 4.]])",
    ]
    assert isinstance(maps, dict) and maps["cross"].shape == (2, 1, 4, 3, 5)
    assert one_per_line({"long": torch.zeros(MOST_NUMBERS + 1)}) == f"long ({MOST_NUMBERS + 1},)"
    assert one_per_line({"edges": [1, 2]}) == "edges [1, 2]"


def test_a_trace_prints_its_finished_hypotheses():
    trace = beam_trace(tiny("t5"), random_inputs("t5")["input_ids"][:1], num_beams=3, max_new_tokens=5)
    head, *finished = repr(trace).splitlines()
    assert head.startswith(f"{len(trace.steps)} steps, ")
    assert [line.partition(" ")[2] for line in finished] == [str(trace.tokens(one)) for one in trace.finished]


def test_data_prints_its_size(tmp_path):
    tokenizer = load_tokenizer(tiny_checkpoints.save_t5(tmp_path))
    records = [Record("a b", "c", ("c",), group="a long passage")] * 5
    dataset = Dataset(records, tokenizer, decoder_only=False, max_source_length=9, max_target_length=9)
    assert repr(tokenizer) == f"<{type(tokenizer).__name__} of {tokenizer.vocab_size} ids>"
    assert repr(dataset) == "<Dataset of 5 examples>"
    assert repr(DataLoader(dataset, 2, pad_id=0)) == "<DataLoader of 3 batches>"
    assert repr(records[0]) == "Record(source='a b', target='c', references=('c',))"
