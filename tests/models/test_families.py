"""Small models of every published architecture equal transformers', which also loads what we save.

The keys of each config.json are those of the published one. Sizes are smaller in the same proportions, and
the weights are random.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from ftcore import load_model, load_tokenizer, save_model
from ftcore.checkpoints.checkpoint import model_from_config
from ftcore.decoding import generate
from ftcore.study import randomize_weights
from tests.helpers.oracle import BOUND, distance, error, float64_reference, padding, positions, tokens

# -------------------------------------------------------------------------------- published configurations

T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_heads": 8,
    "num_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
SUMMARIES = {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "prefix": "summarize: "}
T5_SMALL = T5 | {"n_positions": 512, "task_specific_params": {"summarization": SUMMARIES}}
V1_1 = T5 | {
    "d_ff": 1024,
    "feed_forward_proj": "gated-gelu",
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "tie_word_embeddings": False,
    "transformers_version": "4.10.0.dev0",
    "use_cache": True,
}
NEWER = {"classifier_dropout": 0.0, "dense_act_fn": "gelu_new", "is_gated_act": True}
NEWER |= {"relative_attention_max_distance": 128}
MT5 = V1_1 | {
    "architectures": ["MT5ForConditionalGeneration"],
    "model_type": "mt5",
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": 250112,
}
BYT5 = V1_1 | {
    "d_ff": 3584,
    "d_model": 1472,
    "gradient_checkpointing": False,
    "num_decoder_layers": 4,
    "num_layers": 12,
    "tokenizer_class": "ByT5Tokenizer",
    "vocab_size": 384,
}
CODET5 = T5_SMALL | {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "feed_forward_proj": "relu",
    "gradient_checkpointing": False,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "num_decoder_layers": 6,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 32100,
}
EFFICIENT = T5 | {"feed_forward_proj": "relu", "n_positions": 512, "torch_dtype": "float32"}

GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
OPENAI = GPT2 | {"n_ctx": 1024}
DISTILLED = OPENAI | {"_num_labels": 1, "gradient_checkpointing": False, "n_inner": None, "n_layer": 6}
DIALOGUE = {"task_specific_params": {"conversational": {"max_length": 1000}}}
CLASSES = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
SWITCHES = {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}
CEREBRAS = {"activation_function": "gelu", "architectures": ["GPT2Model"], "n_inner": 3072, "n_layer": 10}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

VARIANTS = {
    "t5-small": T5_SMALL,
    "t5-3b": T5_SMALL | {"architectures": ["T5WithLMHeadModel"], "d_kv": 128, "num_heads": 32},
    "t5-v1_1-small": V1_1,
    "t5-v1_1-small, opened and saved by transformers 4.33": V1_1 | NEWER,
    "t5-base-lm-adapt": V1_1 | {"d_model": 768, "num_heads": 12, "num_layers": 12, "num_decoder_layers": 12},
    "flan-t5-small": V1_1 | {"n_positions": 512, "task_specific_params": {"summarization": SUMMARIES}},
    "flan-t5-xl in blip2": V1_1 | NEWER | {"bos_token_id": 1, "dense_act_fn": "gelu"},
    "flan-ul2": V1_1 | NEWER | {"d_kv": 256, "dropout_rate": 0.0, "feed_forward_proj": "gated-silu"}
    | {"dense_act_fn": "silu"},
    "mt5-small": MT5,
    "umt5-small": MT5 | NEWER | {
        "architectures": ["UMT5ForConditionalGeneration"],
        "model_type": "umt5",
        "scalable_attention": True,
        "vocab_size": 256384,
    },
    "byt5-small": BYT5,
    "codet5-small": CODET5,
    "t5-efficient-tiny": EFFICIENT | {"d_ff": 1024, "d_model": 256, "num_heads": 4, "num_layers": 4},
    "t5-efficient-base-kv16": EFFICIENT | {"d_ff": 3072, "d_kv": 16, "d_model": 768, "num_heads": 12},
    "t5-efficient-small-dl16": EFFICIENT | {"num_decoder_layers": 16},
    "gpt2": OPENAI,
    "gpt2-medium": OPENAI | {"n_embd": 1024, "n_head": 16, "n_layer": 24, "n_special": 0},
    "gpt2-xl": OPENAI | {"n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True},
    "distilgpt2": DISTILLED | CLASSES,
    "DialoGPT-small": OPENAI | DIALOGUE,
    "stanford-crfm/alias-gpt2-small-x21": GPT2 | SWITCHES | {"n_inner": None, "scale_attn_weights": True},
    "Cerebras-GPT-111M": GPT2 | CEREBRAS | NO_DROPOUT | {"n_positions": 2048, "scale_attn_weights": True},
}  # fmt: skip


AUTO = {True: transformers.AutoModelForSeq2SeqLM, False: transformers.AutoModelForCausalLM}


def shrunk(keys: dict[str, Any]) -> dict[str, Any]:
    """Scale the sizes down; the number of heads and special ids at the end of the vocabulary are kept."""
    divisors = {"d_model": 16, "d_kv": 16, "d_ff": 32, "num_layers": 4, "num_decoder_layers": 4}
    divisors |= {"n_embd": 16, "n_inner": 16, "n_layer": 6, "n_positions": 8, "n_ctx": 8}
    small = {
        key: max(1, value // divisors[key]) if key in divisors and value is not None else value
        for key, value in keys.items()
    }
    small["vocab_size"] = 97
    if keys["model_type"] == "gpt2":
        small |= {"bos_token_id": 96, "eos_token_id": 96}
    return small


def reference_model(keys: dict[str, Any], directory: Path) -> nn.Module:
    """transformers' model for these keys, saved in a directory as on the hub."""
    write_config(keys, directory)
    config = transformers.AutoConfig.from_pretrained(directory)
    model = AUTO[config.is_encoder_decoder].from_config(config)
    if keys.get("tie_word_embeddings") is False:  # T5Config always says tied; the published heads are untied
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    model.load_state_dict(randomize_weights(model_from_config(keys)).state_dict())
    model.save_pretrained(directory)
    write_config(keys, directory)
    return reopened(directory)


def reopened(directory: Path) -> nn.Module:
    config = transformers.AutoConfig.from_pretrained(directory)
    cls = AUTO[config.is_encoder_decoder]
    return cls.from_pretrained(directory, attn_implementation="eager").eval()


def write_config(keys: dict[str, Any], directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(keys, indent=2), encoding="utf-8")


@dataclass
class Published:
    """A small model of a published architecture, saved by transformers."""

    keys: dict[str, Any]
    reference: nn.Module
    directory: Path

    @property
    def is_t5(self) -> bool:
        return self.keys["model_type"] != "gpt2"

    def inputs(self, length: int, side: str) -> dict[str, Tensor]:
        mask = padding(length, rows=3, length=length, side=side)
        inputs = {"input_ids": tokens(length, rows=3, length=length), "attention_mask": mask}
        return inputs | ({"decoder_input_ids": tokens(1, rows=3, length=40)} if self.is_t5 else {})

    def reference_logits(self, inputs: dict[str, Tensor], model: nn.Module | None = None) -> Tensor:
        """Without a cache, which in transformers breaks if the decoder is deeper than the encoder."""
        more = {} if self.is_t5 else {"position_ids": positions(inputs["attention_mask"])}
        return (model or self.reference)(**inputs, **more, use_cache=False).logits

    @contextmanager
    def in_precision(self, dtype: torch.dtype) -> Iterator[nn.Module]:
        """The reference, temporarily in another precision."""
        upcasting = [m for m in self.reference.modules() if getattr(m, "reorder_and_upcast_attn", False)]
        for attention in upcasting if dtype == torch.float64 else []:
            attention.reorder_and_upcast_attn = False  # requires float32, and computes the same
        with float64_reference():
            yield self.reference.to(dtype)
        for attention in upcasting:
            attention.reorder_and_upcast_attn = True
        self.reference.zero_grad()  # first: casting a parameter casts its gradient too
        self.reference.float()


@pytest.fixture(scope="module", params=VARIANTS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    directory = tmp_path_factory.mktemp("published")
    keys = shrunk(VARIANTS[request.param])
    return Published(keys, reference_model(keys, directory), directory)


# ----------------------------------------------------------------------------------- equal to transformers


def test_state_dict(published: Published) -> None:
    ours = load_model(published.directory).state_dict()
    theirs = published.reference.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_and_gradients(published: Published, dtype: torch.dtype, side: str) -> None:
    ours = load_model(published.directory, dtype=dtype)
    inputs = published.inputs(100, side)
    seen = torch.ones(3, 40, dtype=torch.bool) if published.is_t5 else inputs["attention_mask"].bool()
    labels = tokens(2, *seen.shape)[seen]
    got = ours(**inputs)[seen]  # (tokens, V)
    F.cross_entropy(got, labels).backward()
    with published.in_precision(dtype) as theirs:
        want = published.reference_logits(inputs)[seen]
        F.cross_entropy(want, labels).backward()
        gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert error(got, want) < BOUND[dtype]
    for name, parameter in ours.named_parameters():
        assert distance(parameter.grad, gradients[name]) < BOUND[dtype], name


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation(published: Published, num_beams: int) -> None:
    ours = load_model(published.directory)
    inputs = {key: value for key, value in published.inputs(12, "left").items() if key != "decoder_input_ids"}
    end = published.keys["eos_token_id"]
    options = {"max_new_tokens": 12, "num_beams": num_beams, "pad_token_id": 0, "eos_token_id": end}
    deeper = published.is_t5 and ours.config.num_decoder_layers > ours.config.num_layers
    want = published.reference.generate(**inputs, **options, do_sample=False, use_cache=not deeper)
    got = generate(ours, inputs["input_ids"], attention_mask=inputs["attention_mask"], **options)
    start = 1 if published.is_t5 else 12
    assert up_to(end, got, start) == up_to(end, want, start)


def up_to(end: int, rows: Tensor, start: int) -> list[list[int]]:
    """The new tokens of each row up to the first EOS, since transformers pads T5's beams with EOS."""
    lists = [row[start:] for row in rows.tolist()]
    return [row[: row.index(end) + 1] if end in row else row for row in lists]


def test_transformers_reads_what_is_saved(published: Published, tmp_path: Path) -> None:
    save_model(load_model(published.directory), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    again = reopened(tmp_path)
    assert type(again) is type(published.reference)
    assert written["architectures"] == [type(again).__name__]
    excluded = {"architectures", "tie_word_embeddings", "torch_dtype"}  # written from the model
    for key in published.keys.keys() - excluded:
        assert written[key] == published.keys[key], key
    inputs = published.inputs(50, "right")
    with torch.no_grad():
        assert torch.equal(published.reference_logits(inputs, again), published.reference_logits(inputs))
        assert error(load_model(tmp_path)(**inputs), load_model(published.directory)(**inputs)) == 0


# ------------------------------------------------------------------------------------------ text to text


@pytest.mark.parametrize("name", ["flan-t5-small", "gpt2", "byt5-small"])
def test_text_to_text_with_real_tokenizers(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Text to text from a small model in a published layout, and from its saved copy."""
    keys = shrunk(VARIANTS[name]) | {"vocab_size": VARIANTS[name]["vocab_size"]}
    (tmp_path / "published").mkdir()
    if name == "byt5-small":
        (tmp_path / "published" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    else:
        folder = request.getfixturevalue("real_data") / ("gpt2" if name == "gpt2" else "t5")
        shutil.copytree(folder, tmp_path / "published", dirs_exist_ok=True)
    reference = reference_model(keys, tmp_path / "published")
    save_model(load_model(tmp_path / "published"), tmp_path / "saved")
    load_tokenizer(tmp_path / "published").save_pretrained(tmp_path / "saved")
    text = "translate English to German: The house is wonderful, isn't it?"
    for directory in (tmp_path / "published", tmp_path / "saved"):
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
        ours = load_tokenizer(directory)
        input_ids = theirs(text, return_tensors="pt")["input_ids"]
        assert ours.encode(text) == input_ids[0].tolist()
        want = reference.generate(input_ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
        got = generate(load_model(directory), input_ids, max_new_tokens=20, pad_token_id=0)
        assert got.tolist() == want.tolist()
        assert ours.decode(got[0]) == theirs.decode(want[0], skip_special_tokens=True)
