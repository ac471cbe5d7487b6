"""Benchmark cases, the job that runs one in a backend, and published model shapes. Imports no torch."""

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Case:
    """One row of the table, for one model family. Lengths are in tokens."""

    name: str
    kind: Literal["load", "ready", "generate", "train", "convert"]
    rows: int = 1
    beams: int = 1
    source: int = 0  # GPT-2's prompt or T5's input; in training the maximum
    target: int = 0  # new tokens; in training the maximum of T5's target
    steps: int = 0  # optimizer steps per round
    learning_rate: float = 0.0
    random: bool = False  # train on blocks of random ids, without padding, instead of the examples of --train
    padded: Literal["", "transformers", "all"] = ""  # libraries that pad each batch to `source` and `target`
    axis: str = ""  # of the growth figure: what varies

    def fit(self, positions: int) -> "Case":
        """Shorten to a model with fewer positions. Raises ValueError for fewer than two."""
        if positions < 2:
            raise ValueError(f"n_positions is {positions}, expected at least 2: a prompt and a new token")
        target = min(self.target, positions // 2)
        return replace(self, source=min(self.source, positions - target), target=target)

    def quick(self) -> "Case":
        """Shorten to a smoke test."""
        if self.kind == "generate":
            return replace(self, source=max(1, self.source // 4), target=-(-self.target // 8))
        if self.random:
            return replace(self, rows=2, source=self.source // 8, target=self.target // 8, steps=2)
        return replace(self, steps=min(self.steps, 2))


@dataclass(frozen=True)
class Job:
    """A case in one backend, with the settings that all backends share."""

    backend: str
    case: Case
    checkpoint: str  # directory
    vocab_size: int
    dtype: str
    device: str
    threads: int
    compile: bool = False  # transformers' training
    batches: str = ""  # file of the training batches
    task: str = ""  # of `train`
    train: str = ""  # training file
    dropout: float = 0.0
    python: str = ""  # interpreter of an engine's environment; "" is the running one
    cache: str = ""  # directory of compiled code; "" is the user's

    @property
    def padded(self) -> bool:
        """Whether this backend pads each batch to the case's lengths."""
        return self.case.padded in ("all", self.backend)


def _cases(source: int, target: int, train: Case, blocks: Case) -> list[Case]:
    return [
        Case("load", "load"),
        Case("ready-first", "ready", source=16, target=2),
        Case("ready", "ready", source=16, target=2),
        Case("prefill", "generate", source=512, target=1),
        Case("greedy", "generate", source=source, target=target),
        Case("greedy-b8", "generate", rows=8, source=source, target=target),
        Case("beam4", "generate", beams=4, source=source, target=target),
        Case("beam4-b8", "generate", rows=8, beams=4, source=source, target=target),
        train,
        replace(train, name="train-tutorial", padded="transformers"),
        replace(train, name="train-padded", padded="all"),
        replace(blocks, name="train-blocks", kind="train", rows=16, steps=4, learning_rate=1e-5, random=True),
    ]


# Training sizes and rates follow the best-known tutorials: GPT-2 on emotion messages, T5 on SQuAD.
GPT2_CASES = _cases(
    16,
    84,
    Case("train", "train", rows=4, source=64, target=64, steps=4, learning_rate=5e-5),
    Case("", "train", source=1024),
)
T5_CASES = _cases(
    256,
    64,
    Case("train", "train", rows=8, source=512, target=128, steps=4, learning_rate=1e-5),
    Case("", "train", source=512, target=114),  # of T5's span corruption
)
ROWS = [case.name for case in T5_CASES]
DEFAULT_ROWS = [name for name in ROWS if name != "train-blocks"]  # minutes on a CPU
# Models and rows that are measured on CUDA unless others are given, the most important first.
CUDA_PLAN = [
    ("gpt2", ["train-blocks", "greedy"]),
    ("t5-small", ["greedy"]),
    ("gpt2-xl", ["greedy"]),  # one row: limited by memory bandwidth
    ("gpt2", ["greedy-b8", "beam4-b8"]),
    ("t5-small", ["train-blocks", "greedy-b8", "beam4-b8"]),
]
ENGINES = {  # of `--engine`, and the packages that each needs in its environment, beside torch
    "openvino": "optimum-intel[openvino]",
    "onnxruntime": "optimum-onnx[onnxruntime]",
    "llama.cpp": "llama-cpp-python, gguf and safetensors",
}
MAX_THREADS = 1024  # OpenMP aborts the process where it cannot start as many as requested

GROWTH_MODELS = ["gpt2", "gpt2-medium", "gpt2-large"]


def growth_cases(*, is_first: bool) -> list[Case]:
    """One size varied at a time, for the first model; one case of the others, for the axis "parameters"."""
    base = Case("model", "generate", source=16, target=32, axis="parameters")
    if not is_first:
        return [base]
    return [
        *(replace(base, name=f"source-{n}", axis="source", source=n, target=1) for n in (32, 128, 512, 1023)),
        *(replace(base, name=f"rows-{n}", axis="rows", rows=n) for n in (1, 2, 4, 8, 16)),
        *(replace(base, name=f"beams-{n}", axis="beams", beams=n) for n in (1, 2, 4, 8)),
        base,
    ]


# Published shapes: the keys of config.json that differ from the defaults of GPT2Config and T5Config.


def _gpt2(n_layer: int, n_head: int, n_embd: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}


def _t5(layers: int, heads: int, width: int, d_ff: int, d_kv: int = 64) -> dict[str, Any]:
    sizes = {"num_layers": layers, "num_heads": heads, "d_model": width, "d_ff": d_ff, "d_kv": d_kv}
    return {"model_type": "t5", "decoder_start_token_id": 0, **sizes}


_FLAN = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "t5-small": _t5(6, 8, 512, 2048),
    "t5-base": _t5(12, 12, 768, 3072),
    "t5-large": _t5(24, 16, 1024, 4096),
    "t5-3b": _t5(24, 32, 1024, 16384, d_kv=128),
    "flan-t5-small": _t5(8, 6, 512, 1024) | _FLAN,
    "flan-t5-base": _t5(12, 12, 768, 2048) | _FLAN,
    "flan-t5-large": _t5(24, 16, 1024, 2816) | _FLAN,
    "flan-t5-xl": _t5(24, 32, 2048, 5120) | _FLAN,
}
