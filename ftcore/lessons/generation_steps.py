"""Checks of steps 11 and 12: the key-value cache; greedy and beam search."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ftcore.decoding import generate
from ftcore.lessons.step import Wrong, load_weights, same
from ftcore.models import GPT2Config, GPT2LMHeadModel
from ftcore.study import randomize_weights

VOCABULARY = 30


def reference_model(seed: int = 0, layers: int = 3) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=24,
        n_layer=layers,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    randomize_weights(model, seed)
    return model.eval()


@torch.no_grad()
def cache(module: ModuleType) -> None:
    reference = reference_model()
    model = import_module("step06_gpt2").GPT2(reference.config).eval()
    load_weights("GPT2", model, reference)
    cached_logits(module, model, reference)
    for length in (6, 9):
        written(module, model, reference, torch.randint(0, VOCABULARY, (2, length)))


def cached_logits(module: ModuleType, model: Any, reference: GPT2LMHeadModel) -> None:
    """16 tokens, fed as 7, 1, 3 and 5."""
    ids = torch.randint(0, VOCABULARY, (2, 16))
    past: list[tuple[Tensor, Tensor]] = []
    start = before = 0
    for new in (7, 1, 3, 5):
        end = start + new
        got = module.cached_logits(model, ids[:, start:end], past)
        mistakes = {
            sentence: partial(logits_with, reference, ids[:, :end], start, **change)
            for sentence, change in cache_mistakes(before, start, end).items()
        }
        right = reference(ids[:, :end])[:, start:]
        same(f"cached_logits of {new} tokens, with {start} in the cache,", got, right, mistakes)
        before, start = start, end


def cache_mistakes(before: int, start: int, end: int) -> dict[str, dict[str, Tensor]]:
    """Arguments of `logits_with`, by mistake; the last call fed `before` to `start`, this one up to `end`."""
    new, query = end - start, torch.arange(start, end)[:, None]
    key = torch.arange(end)[None]
    causal = key <= query  # (T, S)
    return {
        "The positions of new tokens start at 0. They count on after those in the cache.": {
            "positions": torch.cat([torch.arange(start), torch.arange(new)])
        },
        "New positions attend to later ones: no causal mask.": {"visible": causal | (key >= start)},
        "New positions use the first rows of the causal mask, expected the last ones.": {
            "visible": key <= query - start
        },
        "New positions do not attend to those in the cache.": {"visible": causal & (key >= start)},
        "New positions attend only to those in the cache, not to themselves.": {"visible": key < start},
        "The cache holds the keys and values of the last call alone. They are appended to it.": {
            "visible": causal & (key >= before)
        },
        "New keys stand before those in the cache, expected after them.": {
            "visible": (key >= start) | (key <= query - new)
        },
    }


def logits_with(
    model: GPT2LMHeadModel,
    ids: Tensor,
    start: int,
    positions: Tensor | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Logits from `start` on, with other positions (S,), or with other visible keys (T, S) from there on."""
    body, length = model.transformer, ids.shape[1]
    mask = torch.ones(length, length).tril().bool()
    if visible is not None:
        mask[start:] = visible
    bias = torch.zeros(length, length).masked_fill(~mask, -torch.inf)
    hidden = body.wte(ids) + body.wpe(torch.arange(length) if positions is None else positions)
    for block in body.h:
        hidden = block(hidden, bias, None)
    return model.lm_head(body.ln_f(hidden))[:, start:]


def written(module: ModuleType, model: Any, reference: GPT2LMHeadModel, prompt: Tensor) -> None:
    new, length = 7, prompt.shape[1]
    write = partial(generate, reference, max_new_tokens=new)
    right = write(prompt)
    mistakes = {
        "The prompt's last token is fed twice: first with the prompt, then alone.": lambda: torch.cat(
            [prompt, write(torch.cat([prompt, prompt[:, -1:]], 1))[:, length + 1 :]], 1
        ),
        "The prompt's last token is not fed.": lambda: torch.cat(
            [prompt, write(prompt[:, :-1])[:, length - 1 :]], 1
        ),
        "All tokens are fed again at every step, although the cache holds them.": lambda: fed_again(
            reference, prompt, new
        ),
        "The prompt is missing in the result.": right[:, length:],
    }
    with counted_positions(model) as computed:
        got = module.write(model, prompt, new)
    same(f"write(model, prompt, {new})", got, right, mistakes)
    name, most = max(computed.items(), key=lambda item: item[1])
    if most > length + new - 1:
        raise Wrong(
            f"write(model, prompt, {new}) computes {most} positions in {name}, expected {length + new - 1}: "
            f"{length} of the prompt and {new - 1} new ones.",
            causes=["Positions that are in the cache are computed again: feed the new tokens alone."],
        )


@contextmanager
def counted_positions(model: nn.Module) -> Iterator[Counter[str]]:
    """Count the positions that pass each layer."""
    computed: Counter[str] = Counter()

    def count(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        computed[name] += output.shape[-2]  # (B, T, D), or (T, D) of position vectors

    layers = {name: part for name, part in model.named_modules() if list(part.parameters(recurse=False))}
    hooks = [part.register_forward_hook(partial(count, name)) for name, part in layers.items()]
    try:
        yield computed
    finally:
        for hook in hooks:
            hook.remove()


def fed_again(model: GPT2LMHeadModel, prompt: Tensor, new: int) -> Tensor:
    ids, fed = prompt, prompt
    for _ in range(new):
        ids = torch.cat([ids, model(fed)[:, -1:].argmax(-1)], 1)
        fed = torch.cat([fed, ids], 1)
    return ids


@torch.no_grad()
def search(module: ModuleType) -> None:
    for seed, length, new in ((1, 1, 5), (2, 4, 8), (3, 2, 10), (4, 3, 3)):
        model = reference_model(seed, layers=1)
        prompt = torch.randint(0, VOCABULARY, (1, length))
        for eos_id in likely_ends(model, prompt, new):
            greedy_search(module, model, prompt, new, eos_id)
            for beams, length_penalty in ((2, 1.0), (2, 0.0), (3, 1.0), (4, 2.0)):
                beam_search(module, model, prompt, new, eos_id, beams, length_penalty)


def likely_ends(model: GPT2LMHeadModel, prompt: Tensor, new: int) -> list[int]:
    """Tokens that a search comes across: near the end the best, the second and the third choice."""
    ids = generate(model, prompt, max_new_tokens=new)
    best = model(ids)[0, -3:].topk(3).indices
    return [int(best[0, 0]), int(best[1, 1]), int(best[2, 2])]


def greedy_search(module: ModuleType, model: Any, prompt: Tensor, new: int, eos_id: int) -> None:
    right = generate(model, prompt, max_new_tokens=new, eos_token_id=eos_id)
    mistakes = {
        "The search goes on after the end token.": lambda: generate(model, prompt, max_new_tokens=new),
        "The end token is missing.": right[:, :-1],
        "The prompt is missing in the result.": right[:, prompt.shape[1] :],
    }
    what = f"greedy_search(logits, {prompt.tolist()}, {new}, eos_id={eos_id})"
    same(what, module.greedy_search(model, prompt, new, eos_id), right, mistakes)


def beam_search(
    module: ModuleType, model: Any, prompt: Tensor, new: int, eos_id: int, beams: int, length_penalty: float
) -> None:
    right = generate(
        model,
        prompt,
        max_new_tokens=new,
        eos_token_id=eos_id,
        num_beams=beams,
        length_penalty=length_penalty,
        early_stopping="never",  # stops once the best sequence is certain
    )

    def divisor(length: int) -> float:
        return length**length_penalty

    wrong = partial(beam_search_with, model, prompt, new, beams, eos_id=eos_id, divisor=divisor)
    mistakes = {
        "A beam's score is that of its last token, expected the sum of all.": partial(
            wrong, carry=lambda totals, length: 0 * totals
        ),
        "Scores are divided by the length at every step, expected only those of complete sequences.": partial(
            wrong, carry=lambda totals, length: totals / divisor(length)
        ),
        "A beam goes on after its end token. It is complete then and is set aside.": partial(
            wrong, eos_id=-1
        ),
        "Complete sequences are dropped. They are set aside and compete in the end.": partial(
            wrong, keeps_complete=False
        ),
        "Logits are summed, expected log-probabilities.": partial(wrong, score=lambda logits: logits),
        "Probabilities are summed, expected log-probabilities.": partial(
            wrong, score=lambda logits: logits.softmax(-1)
        ),
        "The prompt counts as length. Only new tokens do.": partial(
            wrong, divisor=lambda length: divisor(length + prompt.shape[1])
        ),
        "length_penalty has no effect.": partial(wrong, divisor=lambda length: 1.0),
    }
    arguments = f"{new}, eos_id={eos_id}, num_beams={beams}, length_penalty={length_penalty}"
    got = module.beam_search(model, prompt, new, eos_id, beams, length_penalty)
    same(f"beam_search(logits, {prompt.tolist()}, {arguments})", got, right, mistakes)


def beam_search_with(
    logits: Callable[[Tensor], Tensor],
    prompt: Tensor,
    new: int,
    beams: int,
    *,
    eos_id: int,
    divisor: Callable[[int], float],
    score: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(-1),
    carry: Callable[[Tensor, int], Tensor] = lambda totals, length: totals,
    keeps_complete: bool = True,
) -> Tensor:
    """Beam search of one prompt, (1, T) -> (1, up to T + new), with these mistakes.

    Args:
        divisor: of the sum of a complete sequence, from its number of new tokens.
        score: logits (N, V) -> scores of the next token.
        carry: sums and number of new tokens -> what the next step adds to.
        keeps_complete: whether sequences that end before the last step compete.
    """
    running, scores = prompt, torch.zeros(1)  # (N, T), (N,)
    complete: list[tuple[float, Tensor]] = []
    for length in range(1, new + 1):
        totals = (scores[:, None] + score(logits(running)[:, -1])).flatten()  # (N * V,)
        best, index = totals.topk(2 * beams)
        parents, tokens = index // VOCABULARY, index % VOCABULARY
        ids = torch.cat([running[parents], tokens[:, None]], 1)  # (2N, T + 1)
        ends = tokens == eos_id
        if keeps_complete:
            complete += [
                (float(best[rank]) / divisor(length), ids[rank]) for rank in range(beams) if ends[rank]
            ]
        running, best = ids[~ends][:beams], best[~ends][:beams]
        scores = carry(best, length)
    complete += zip((best / divisor(new)).tolist(), running, strict=True)
    return max(complete, key=lambda hypothesis: hypothesis[0])[1][None]
