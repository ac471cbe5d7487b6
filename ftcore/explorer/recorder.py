"""Activations of a model that reads a text and generates answers, as the page shows them.

The text is answered by greedy search, by sampling and by beam search. Each answer is one run, recorded in a
single pass over all its decoder inputs. What runs share (T5's encoder, GPT-2's prompt) is recorded once.

Shapes: T positions of a run, the first P of them the prompt's (T5: 1, the start token), S source positions of
T5, H heads of width K, L blocks, V vocabulary. Recorded tensors have no batch dimension.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ftcore.analysis.beams import beam_trace
from ftcore.analysis.inputs import check_number, num_heads
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding import generate
from ftcore.explorer import MAX_BEAMS, MAX_NEW_TOKENS, MAX_SEED
from ftcore.explorer.serialize import find_token_ids, quantize_attention, split_characters, token_texts
from ftcore.models import GPT2Config, GPT2LMHeadModel, Model
from ftcore.models.config import convert
from ftcore.models.non_finite import require_finite
from ftcore.output import progress_bar
from ftcore.study import record
from ftcore.study.hooks import head_outputs
from ftcore.study.lens import readout
from ftcore.study.names import find_hook_points

TEMPERATURES = tuple(round(0.1 * step, 1) for step in range(1, 21))  # steps of the page's slider
NEXT_TOP_K = 200  # next tokens recorded at each position
LENS_TOP_K = 5  # logit-lens tokens recorded at each position
MAX_ATTENTION_WEIGHTS = 160_000_000  # of one stack; GPT-2 small at its 1024 positions is just below


@dataclass(frozen=True)
class Search:
    """Settings of the three searches.

    Raises:
        ValueError: a value of another type or beyond the limits of a page.
    """

    max_new_tokens: int = 20
    num_beams: int = 4
    temperature: float = 1.0
    top_k: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"max_new_tokens": (1, MAX_NEW_TOKENS), "num_beams": (2, MAX_BEAMS)}
        limits |= {"top_k": (0, MAX_SEED), "seed": (0, MAX_SEED)}
        for name, (low, high) in limits.items():
            object.__setattr__(self, name, check_number(name, getattr(self, name), low, high))
        object.__setattr__(self, "temperature", convert("temperature", self.temperature, float))


@dataclass(frozen=True)
class Sublayer:
    """One residual branch. Activation names are those of `ftcore.study.names`."""

    kind: str  # "self-attention", "cross-attention" or "feed-forward"
    output: str  # what it adds to the residual stream: "attn.3"
    residual: str  # the residual stream after it: "resid_mid.3"
    pattern: str | None = None  # attention weights
    z: str | None = None  # concatenated head outputs


@dataclass(frozen=True)
class Stack:
    """The encoder or the decoder, as the page draws it."""

    name: str  # "encoder" or "decoder"
    input: str  # the residual stream before the first block: "resid_pre.0"
    blocks: list[list[Sublayer]]

    @property
    def sublayers(self) -> list[Sublayer]:
        """The sublayers of all blocks, in order."""
        return [sublayer for block in self.blocks for sublayer in block]

    @property
    def written(self) -> set[str]:
        """The names of activations (B, T, D) that can be patched."""
        return {name for part in self.sublayers for name in (part.output, part.residual)}


def stacks(model: Model) -> list[Stack]:
    """GPT-2's decoder, or T5's encoder and decoder."""
    if isinstance(model, GPT2LMHeadModel):
        return [_stack("decoder", "", len(model.transformer.h))]
    return [
        _stack("encoder", "encoder.", len(model.encoder.block)),
        _stack("decoder", "decoder.", len(model.decoder.block), cross_attention=True),
    ]


def _stack(name: str, prefix: str, depth: int, *, cross_attention: bool = False) -> Stack:
    attentions = {"self-attention": prefix} | ({"cross-attention": "cross."} if cross_attention else {})
    blocks = [
        [
            Sublayer(kind, f"{at}attn.{i}", f"{at}resid_mid.{i}", f"{at}pattern.{i}", f"{at}z.{i}")
            for kind, at in attentions.items()
        ]
        + [Sublayer("feed-forward", f"{prefix}mlp.{i}", f"{prefix}resid_post.{i}")]
        for i in range(depth)
    ]
    return Stack(name, f"{prefix}resid_pre.0", blocks)


def all_heads(model: Model) -> list[tuple[str, int]]:
    """Every attention head, as the name of its sublayer's z and its index."""
    names = [sublayer.z for stack in stacks(model) for sublayer in stack.sublayers if sublayer.z]
    return [(name, head) for name in names for head in range(num_heads(model))]


def describe(model: Model, name: str) -> dict[str, Any]:
    """The model's facts and structure, for the page's header and network."""
    config = model.config
    return {
        "name": name,
        "architecture": config.architecture,
        "family": "T5" if config.is_encoder_decoder else "GPT-2",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "heads": num_heads(model),
        "width": config.n_embd if isinstance(config, GPT2Config) else config.d_model,
        "stacks": [asdict(stack) for stack in stacks(model)],
    }


def record_text(
    model: Model, tokenizer: Tokenizer, text: str, search: Search, *, progress: bool = False
) -> dict[str, Any]:
    """Record everything that the page shows of one text: nested dicts and lists with tensors as leaves.

    Args:
        progress: show progress bars on standard error.

    Raises:
        ValueError: the text is empty, or too long for the model or for a page.
    """
    source = source_ids(model, tokenizer, text, search.max_new_tokens)
    answers, beams = generate_answers(model, source, search, progress=progress)
    runs: list[dict[str, Any]] = []
    for name, ids in progress_bar(answers.items(), "activations", unit="", leave=False, disable=not progress):
        # Runs diverge after the last prompt position; earlier positions are in the first run.
        start = prompt_length(model, source) - 1 if runs else 0
        characters = split_characters(tokenizer, ids.tolist())
        runs.append({"name": name, "characters": characters} | record_run(model, source, ids, start))
    recording = {
        "text": text,
        "source": source.tolist(),
        "source_characters": split_characters(tokenizer, source[0].tolist()),
        "encoder": record_encoder(model, source),
        "runs": runs,
        "beams": beams,
        "search": asdict(search),
        "temperatures": TEMPERATURES,
    }
    return recording | {"pieces": token_texts(tokenizer, find_token_ids(recording))}


def source_ids(model: Model, tokenizer: Tokenizer, text: str, max_new_tokens: int) -> Tensor:
    """(1, S) T5's encoder input, or GPT-2's prompt.

    Raises:
        ValueError: the text is empty or too long, or max_new_tokens is.
    """
    ids = tokenizer.encode(text)
    is_gpt2 = isinstance(model, GPT2LMHeadModel)
    if not ids:
        raise ValueError("the text is empty; GPT-2 needs at least one token")
    limit = max_text_tokens(model)
    check_number("`max_new_tokens`", max_new_tokens, 1, min(MAX_NEW_TOKENS, limit - 1))
    limit -= max_new_tokens if is_gpt2 else 0
    if len(ids) > limit:
        raise ValueError(
            f"the text has {len(ids)} tokens, expected at most {limit}"
            + (f" and {max_new_tokens} new ones" if is_gpt2 else "")
        )
    return torch.tensor([ids], device=next(model.parameters()).device)


def max_text_tokens(model: Model) -> int:
    """The longest text: bounded by GPT-2's positions and by the size of the page."""
    maps = len(stacks(model)[0].blocks) * num_heads(model)  # each with length ** 2 weights
    limit = int((MAX_ATTENTION_WEIGHTS / maps) ** 0.5)
    return min(limit, model.config.n_positions) if isinstance(model, GPT2LMHeadModel) else limit


def prompt_length(model: Model, source: Tensor) -> int:
    """P: positions before the first generated token of a source (1, S)."""
    return source.shape[1] if isinstance(model, GPT2LMHeadModel) else 1


def generate_answers(
    model: Model, source: Tensor, search: Search, *, progress: bool = False
) -> tuple[dict[str, Tensor], list[list[dict[str, Any]]]]:
    """Decoder ids (T + 1,) of each search, and the candidates of each step of beam search."""
    limits: dict[str, Any] = {"max_new_tokens": search.max_new_tokens, "num_return_sequences": 1}
    sampling: dict[str, Any] = {"do_sample": True, "num_beams": 1}
    sampling |= {"temperature": search.temperature, "top_k": search.top_k}
    generator = torch.Generator(source.device).manual_seed(search.seed)
    answers = {}
    with progress_bar(total=3, desc="searches", unit="", leave=False, disable=not progress) as bar:
        answers["greedy"] = greedy_search(model, source, search.max_new_tokens)
        bar.update()
        (answers["sampling"],) = generate(model, source, generator=generator, **sampling, **limits)
        bar.update()
        trace = beam_trace(model, source, num_beams=search.num_beams, do_sample=False, **limits)
        answers["beams"] = trace.ids[0]
        bar.update()
    return answers, [[asdict(candidate) for candidate in step] for step in trace.steps]


def greedy_search(model: Model, source: Tensor, max_new_tokens: int) -> Tensor:
    """(T + 1,) decoder ids for a source (1, S): the T inputs and the last generated token."""
    return batch_greedy_search(model, source, max_new_tokens)[0]


def batch_greedy_search(model: Model, source: Tensor, max_new_tokens: int) -> Tensor:
    """(R, T + 1) `greedy_search` for R sources (R, S); rows that end early are padded."""
    return generate(
        model, source, max_new_tokens=max_new_tokens, num_beams=1, num_return_sequences=1, do_sample=False
    )


def decoder_logits(model: Model, source: Tensor, ids: Tensor, start: int = 0) -> Tensor:
    """(T - start, V) next-token logits in float32 for decoder inputs `ids` (T,), from position `start` on.

    GPT-2 ignores `source`. `batch_logits` takes several rows.
    """
    return batch_logits(model, source, ids[None], start)[0]


def batch_logits(model: Model, source: Tensor, ids: Tensor, start: int) -> Tensor:
    """(R, T - start, V) `decoder_logits` for R sources (R, S) and decoder inputs (R, T).

    Raises:
        FloatingPointError: logits that are NaN or infinite.
    """
    inputs = (ids,) if isinstance(model, GPT2LMHeadModel) else (source, None, ids)

    def forward() -> Tensor:
        return model.lm_head(model.last_hidden(*inputs)[:, start:])  # the head is the widest matrix of all

    logits = forward().float()
    require_finite(logits, model, forward, "the model's output")
    return logits


@torch.no_grad()
def record_encoder(model: Model, source: Tensor) -> dict[str, Any] | None:
    """Record T5's encoder on a source (1, S); None for GPT-2."""
    if isinstance(model, GPT2LMHeadModel):
        return None
    stack = stacks(model)[0]
    with record(model, *_activation_names(stack)) as acts:
        model.encode(source)
        return _record_stack(model, stack, acts, start=0)


@torch.no_grad()
def record_run(model: Model, source: Tensor, ids: Tensor, start: int = 0) -> dict[str, Any]:
    """Record one answer, decoder ids (T + 1,), from position `start` on."""
    stack = stacks(model)[-1]
    with record(model, *_activation_names(stack)) as acts:
        logits = decoder_logits(model, source, ids[:-1], start)
        recorded = _record_stack(model, stack, acts, start)
        residuals = [acts[block[-1].residual][0, start:] for block in stack.blocks]  # (T, D) each
    return recorded | {
        "ids": ids.tolist(),
        "start": start,
        "prompt_length": prompt_length(model, source),
        "next": next_tokens(logits, ids[start + 1 :]),
        "lens": logit_lens(model, residuals),
    }


def next_tokens(logits: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """Top next tokens of T positions, from `logits` (T, V); `chosen` (T,) are those that follow in the run.

    The log-sum-exp over the whole vocabulary is kept for every temperature, so that the page's probabilities
    are exact with any temperature and top-k.
    """
    top = logits.topk(min(NEXT_TOP_K, logits.shape[-1]))
    chosen_logit = logits.gather(1, chosen[:, None])  # (T, 1)
    log_sums = [(logits / temperature).logsumexp(-1) for temperature in TEMPERATURES]
    return {
        "ids": top.indices,
        "logits": top.values,
        "log_sums": torch.stack(log_sums, 1),  # (T, len(TEMPERATURES))
        "chosen_logit": chosen_logit[:, 0],
        "chosen_rank": (logits > chosen_logit).sum(1),  # 0 is the most likely
    }


def logit_lens(model: Model, residuals: Sequence[Tensor]) -> dict[str, Tensor]:
    """Top tokens (L, T, k) and their probabilities after each block, from the residual streams (T, D) there.

    One block at a time: (T, V) logits in memory, where `ftcore.study.logit_lens` returns (L, B, T, V).

    Raises:
        FloatingPointError: logits that are NaN or infinite.
    """
    tops = []
    for residual in residuals:
        forward = partial(readout, model, residual)
        logits = forward().float()  # (T, V)
        require_finite(logits, model, forward, "the logit lens")
        tops.append(logits.softmax(-1).topk(min(LENS_TOP_K, logits.shape[-1])))
    return {
        "ids": torch.stack([top.indices for top in tops]),
        "probs": torch.stack([top.values for top in tops]),
    }


def _activation_names(stack: Stack) -> list[str]:
    """Patterns for all blocks: resolving a name searches the whole model."""
    names = [name for part in stack.sublayers for name in (part.pattern, part.z, part.output, part.residual)]
    return [stack.input, *dict.fromkeys(f"{name.rpartition('.')[0]}.*" for name in names if name)]


def _record_stack(model: Model, stack: Stack, acts: Any, start: int) -> dict[str, Any]:
    """Attention (H, T, S), and norms of heads (H, T), outputs (T,) and residuals (T,), from `start` on."""
    recorded: dict[str, Any] = {"attention": {}, "head_norms": {}, "output_norms": {}, "residual_norms": {}}
    for name in (stack.input, *(part.residual for part in stack.sublayers)):
        recorded["residual_norms"][name] = _norm(acts[name][0, start:])
    for part in stack.sublayers:
        recorded["output_norms"][part.output] = _norm(acts[part.output][0, start:])
        if part.pattern and part.z:
            recorded["attention"][part.pattern] = quantize_attention(acts[part.pattern][0, :, start:])
            recorded["head_norms"][part.pattern] = _head_norms(model, part.z, acts[part.z][0, start:])
    return recorded


def _norm(vectors: Tensor) -> Tensor:
    """(..., D) -> (...): Euclidean norms, in float32."""
    return vectors.float().norm(dim=-1)


def _head_norms(model: Model, name: str, z: Tensor) -> Tensor:
    """(H, T) norm of what each head alone adds to the residual stream, without bias; `z` is (T, H * K)."""
    (hook_point,) = find_hook_points(model, name)
    projection = model.get_submodule(hook_point.module_name)
    return _norm(head_outputs(projection, z[None], num_heads(model))[0])
