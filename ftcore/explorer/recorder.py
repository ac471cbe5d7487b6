"""What happens inside a model while it reads a text and writes an answer, as the page shows it.

A text is answered several times: greedily, by sampling, and by beam search. Each answer is a run: one pass
over all that the decoder reads, which gives what the steps of its generation gave. What runs share, the
encoder or GPT-2's prompt, is recorded once.

Letters: T positions that a run reads, P of them the prompt's (1 for T5, its start token), S positions of T5's
source, H heads, L blocks, V vocabulary. All that is recorded is of one text, without a batch dimension.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ftcore.analysis.beams import beam_trace
from ftcore.analysis.inputs import num_heads
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding import generate
from ftcore.explorer.packing import packed, quantised, token_ids
from ftcore.explorer.structure import Stack, Sublayer, stacks
from ftcore.explorer.tokens import mentioned, pieces
from ftcore.models import GPT2Config, GPT2LMHeadModel, Model
from ftcore.study import patch, record
from ftcore.study.names import find_hook_points

NEXT = 200  # next tokens that are recorded at each position
TEMPERATURES = tuple(round(0.1 * step, 1) for step in range(1, 21))  # those that the page's slider has
LENS = 5  # tokens that the lens shows at each position
MOST_WEIGHTS = 160_000_000  # attention weights of one text: GPT-2 small at its 1024 positions is just below


@dataclass(frozen=True)
class Search:
    """How the answers are found."""

    max_new_tokens: int = 20
    num_beams: int = 4
    temperature: float = 1.0
    top_k: int = 50
    seed: int = 0


def record_text(model: Model, tokenizer: Tokenizer, text: str, search: Search) -> dict[str, Any]:
    """All that the page shows of one text, as JSON.

    Raises:
        ValueError: the text is empty, or too long for the model or for a page.
    """
    source = source_ids(model, tokenizer, text, search.max_new_tokens)
    found = answers(model, source, search)
    runs: list[dict[str, Any]] = []
    for name, ids in found["ids"].items():
        # All positions of the prompt but the last, after which each run goes on in its own way.
        shared = prompt_length(model, source) - 1 if runs else 0
        runs.append({"name": name} | record_run(model, source, ids, shared))
    said = {
        "text": text,
        "source": source.tolist(),
        "encoder": record_encoder(model, source),
        "runs": runs,
        "beams": found["beams"],
        "search": asdict(search),
        "temperatures": TEMPERATURES,
    }
    return said | {"pieces": pieces(tokenizer, mentioned(said))}


def describe(model: Model, name: str) -> dict[str, Any]:
    """What the page says about a model, and the parts that it draws."""
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


# Texts and answers


def source_ids(model: Model, tokenizer: Tokenizer, text: str, max_new_tokens: int) -> Tensor:
    """(1, S) T5's source, or GPT-2's prompt.

    Raises:
        ValueError: there is nothing to read, or too much.
    """
    ids = tokenizer.encode(text)
    is_gpt2 = isinstance(model, GPT2LMHeadModel)
    if not ids:
        raise ValueError("the text is empty; GPT-2 can only continue one")
    limit = most_tokens(model) - (max_new_tokens if is_gpt2 else 0)
    if len(ids) > limit:
        raise ValueError(
            f"the text has {len(ids)} tokens, expected at most {limit}"
            + (f" and {max_new_tokens} new ones" if is_gpt2 else "")
        )
    return torch.tensor([ids], device=next(model.parameters()).device)


def most_tokens(model: Model) -> int:
    """How long a text can be: for the positions that GPT-2 has, and for the page."""
    maps = len(stacks(model)[0].blocks) * num_heads(model)  # each as wide and as high as the text is long
    limit = int((MOST_WEIGHTS / maps) ** 0.5)
    return min(limit, model.config.n_positions) if isinstance(model, GPT2LMHeadModel) else limit


def prompt_length(model: Model, source: Tensor) -> int:
    """P: positions that are read before the first token is written."""
    return source.shape[1] if isinstance(model, GPT2LMHeadModel) else 1


def answers(model: Model, source: Tensor, search: Search) -> dict[str, Any]:
    """`ids`: what the decoder has read and written, by each search; `beams`: the candidates of each step."""
    length: dict[str, Any] = {"max_new_tokens": search.max_new_tokens, "num_return_sequences": 1}
    drawing: dict[str, Any] = {"do_sample": True, "temperature": search.temperature, "top_k": search.top_k}
    chance = torch.Generator(source.device).manual_seed(search.seed)
    trace = beam_trace(model, source, num_beams=search.num_beams, do_sample=False, **length)
    ids = {
        "greedy": greedy(model, source, search.max_new_tokens),
        "sampling": generate(model, source, generator=chance, num_beams=1, **drawing, **length)[0],
        "beams": trace.ids[0],
    }
    return {"ids": ids, "beams": [[asdict(candidate) for candidate in step] for step in trace.steps]}


def greedy(model: Model, source: Tensor, max_new_tokens: int) -> Tensor:
    """(T + 1,) what the decoder has read, and the last token, that it has only written."""
    alone: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False}
    return generate(model, source, max_new_tokens=max_new_tokens, **alone)[0]


def logits_of(model: Model, source: Tensor, ids: Tensor) -> Tensor:
    """(T, V) what the model thinks comes next at each position of `ids` (T,)."""
    if isinstance(model, GPT2LMHeadModel):
        return model(ids[None])[0].float()
    return model(source, decoder_input_ids=ids[None])[0].float()


# Recording


@torch.no_grad()
def record_encoder(model: Model, source: Tensor) -> dict[str, Any] | None:
    """T5's encoder; GPT-2 has none."""
    if isinstance(model, GPT2LMHeadModel):
        return None
    stack = stacks(model)[0]
    with record(model, *_names(stack)) as acts:
        model.encode(source)
        return _stack_of(model, stack, acts, start=0)


@torch.no_grad()
def record_run(model: Model, source: Tensor, ids: Tensor, start: int = 0) -> dict[str, Any]:
    """One answer.

    Args:
        ids: (T + 1,) as `greedy` gives it.
        start: leave out the positions before this one, which another run has as well.
    """
    stack, read = stacks(model)[-1], ids[:-1]
    with record(model, *_names(stack)) as acts:
        logits = logits_of(model, source, read)
        inside = _stack_of(model, stack, acts, start)
        residuals = [acts[block[-1].after] for block in stack.blocks]  # (1, T, D) each
    return inside | {
        "ids": ids.tolist(),
        "start": start,
        "prompt_length": prompt_length(model, source),
        "next": next_tokens(logits[start:], ids[start + 1 :]),
        "lens": lens(model, source, ids, residuals, start),
    }


def next_tokens(logits: Tensor, chosen: Tensor) -> dict[str, Any]:
    """What may come next, after each of T positions.

    With the logarithm of the sum over the whole vocabulary at every temperature of the slider, the
    probabilities of the tokens that are here are exact: at that temperature, with or without a top-k.

    Args:
        logits: (T, V)
        chosen: (T,) the token that did come.
    """
    top = logits.topk(min(NEXT, logits.shape[-1]))
    sums = [(logits / temperature).logsumexp(-1) for temperature in TEMPERATURES]
    own = logits.gather(1, chosen[:, None])  # (T, 1)
    return {
        "ids": packed(token_ids(top.indices)),
        "logits": packed(top.values),
        "log_sums": packed(torch.stack(sums, 1)),  # (T, temperatures)
        "chosen_logit": packed(own[:, 0]),
        "chosen_rank": packed((logits > own).sum(1).int()),  # 0 for the likeliest
    }


def lens(
    model: Model, source: Tensor, ids: Tensor, residuals: Sequence[Tensor], start: int
) -> dict[str, Any]:
    """The logit lens, a block at a time: all of it would be L times the largest tensor of the model.

    In the place of the last block's residual stream, an earlier one is read by the model's own norm and head.
    """
    last = stacks(model)[-1].blocks[-1][-1].after
    tokens, probabilities, chosen = [], [], []
    for residual in residuals:
        with patch(model, last, residual):
            guess = logits_of(model, source, ids[:-1])[start:].log_softmax(-1)  # (T, V)
        top = guess.topk(min(LENS, guess.shape[-1]))
        tokens.append(top.indices)
        probabilities.append(top.values.exp())
        chosen.append(guess.gather(1, ids[start + 1 :, None])[:, 0].exp())
    return {
        "ids": packed(token_ids(torch.stack(tokens))),  # (L, T, 5)
        "probabilities": packed(torch.stack(probabilities)),  # (L, T, 5)
        "chosen": packed(torch.stack(chosen)),  # (L, T) the probability of the token that did come
    }


def _names(stack: Stack) -> list[str]:
    """Everything to record in a stack."""
    parts = [(part.pattern, part.z, part.writes, part.after) for part in stack.sublayers]
    return [stack.before, *(name for names in parts for name in names if name)]


def _stack_of(model: Model, stack: Stack, acts: Any, start: int) -> dict[str, Any]:
    """Attention, and how large all is that is added to the residual stream, from position `start` on."""
    attention, written, by_heads = {}, {}, {}
    for part in stack.sublayers:
        written[part.writes] = packed(_sizes(acts[part.writes][0, start:]))  # (T,)
        if part.pattern and part.z:
            attention[part.pattern] = packed(quantised(acts[part.pattern][0, :, start:]))  # (H, T, S)
            by_heads[part.pattern] = packed(_head_sizes(model, part, acts[part.z][0, start:]))  # (H, T)
    after = [stack.before, *(part.after for part in stack.sublayers)]
    stream = {name: packed(_sizes(acts[name][0, start:])) for name in after}
    return {"attention": attention, "written": written, "heads": by_heads, "stream": stream}


def _sizes(vectors: Tensor) -> Tensor:
    """(..., D) -> (...): Euclidean norms, in float32."""
    return vectors.float().norm(dim=-1)


def _head_sizes(model: Model, part: Sublayer, z: Tensor) -> Tensor:
    """(H, T) how much each head alone adds to the stream; `z` is (T, H * K)."""
    assert part.z is not None
    (place,) = find_hook_points(model, part.z)
    project = model.get_submodule(place.module_name)  # linear, perhaps with a bias, which is no head's
    alone = head_masks(model, z)[:, None] * z  # (H, T, H * K)
    return _sizes(project(alone) - project(torch.zeros_like(z)))


def head_masks(model: Model, z: Tensor) -> Tensor:
    """(H, H * K) for each head 1 where `z` (..., H * K) is its own, else 0."""
    count = num_heads(model)
    return torch.eye(count, dtype=z.dtype, device=z.device).repeat_interleave(z.shape[-1] // count, 1)
