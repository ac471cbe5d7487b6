"""Checks of steps 11 and 12: the key-value cache; greedy and beam search.

`wrong` maps the sentence of a known mistake to what it computes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from time import perf_counter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ftcore.checkpoints.checkpoint import load_model
from ftcore.data.tokenizer import load_tokenizer
from ftcore.decoding import generate
from ftcore.lessons.gpt2_steps import PROMPT
from ftcore.lessons.step import Wrong, load_weights, named, same, shipped
from ftcore.models import GPT2Config, GPT2LMHeadModel
from ftcore.study import randomize_weights

VOCABULARY, HEADS = 30, 4

# model, ids, most, end, beams, length_penalty
BeamSearchCase = tuple[GPT2LMHeadModel, list[int], int, int, int, float]


def reference_model(seed: int = 0, layers: int = 3) -> GPT2LMHeadModel:
    """A small random GPT-2 of ftcore, in eval mode."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=24,
        n_layer=layers,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    randomize_weights(model, seed)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(0.2)  # with large embeddings, a tied head repeats the last token
    return model


def random_ids(length: int) -> list[int]:
    """Draw token ids of the reference model."""
    return torch.randint(VOCABULARY, (length,)).tolist()


@torch.no_grad()
def cache(module: ModuleType) -> str:
    """Step 11."""
    reference = reference_model()
    model = _own_gpt2(reference)
    _cached_logits(module, model, reference)
    for length in (6, 9):
        _write(module, model, reference, random_ids(length), 7)
    return _speed(module)


def _own_gpt2(reference: Any) -> Any:
    """The student's GPT-2 with the weights of the reference."""
    model = import_module("step06_gpt2").GPT2(reference.config).eval()
    load_weights("GPT2", model, reference)
    return model


def _speed(module: ModuleType) -> str:
    """How long the student's GPT-2 writes with the shipped weights, with and without a cache."""
    directory, count = shipped("gpt2-mini"), 80
    if directory is None:
        return ""
    reference: Any = load_model(directory)
    model, ids = _own_gpt2(reference), load_tokenizer(directory).encode(PROMPT)
    start = perf_counter()
    right = import_module("step06_gpt2").write(model, ids, count)
    middle = perf_counter()
    got = module.write(model, ids, count, reference.config.n_head)
    end = perf_counter()
    same("The text with the weights of gpt2-mini", got, right)
    seconds = f"{end - middle:.2f} s with your cache, {middle - start:.2f} s without"
    return f"Your GPT-2 writes {count} tokens in {seconds}."


def _cached_logits(module: ModuleType, model: Any, reference: GPT2LMHeadModel) -> None:
    """Two texts of 16 tokens, fed as 7, 1, 3 and 5."""
    ids = torch.randint(VOCABULARY, (2, 16))
    past: list[tuple[Tensor, Tensor]] = []
    start = before = 0
    for new in (7, 1, 3, 5):
        end = start + new
        wrong = {
            sentence: partial(_logits_with, reference, ids[:, :end], start, **change)
            for sentence, change in _wrong_caches(before, start, end).items()
        }
        got = module.cached_logits(model, ids[:, start:end], HEADS, past)
        right = reference(ids[:, :end])[:, start:]
        same(f"cached_logits of ids {(2, new)} with {start} in the cache", got, right, wrong)
        before, start = start, end


def _wrong_caches(before: int, start: int, end: int) -> dict[str, dict[str, Tensor]]:
    """What `_logits_with` changes, by mistake. The call before fed `before` to `start`, this one the rest."""
    new, key, query = end - start, torch.arange(end), torch.arange(start, end)[:, None]
    causal = key <= query  # (T, S)
    order = torch.cat([key[start:], key[before:start], key[:before]]).argsort()  # newest first
    visible = {
        "A new position sees later ones: the causal mask is missing.": causal | (key >= start),
        "The first rows of the causal mask are used, expected its last ones.": key <= query - start,
        "The new positions do not see those in the cache.": causal & (key >= start),
        "The new positions see those in the cache, but not themselves.": key < start,
        "The new keys are put before those in the cache, expected after them.": order <= query,
    }
    return {sentence: {"visible": mask} for sentence, mask in visible.items()} | {
        "The positions of the new tokens start at 0. They go on after those in the cache.": {
            "positions": torch.cat([torch.arange(start), torch.arange(new)])
        },
        "The cache keeps the last call's keys and values only. Each call adds to it.": {
            "visible": causal & (key >= before),
            "positions": torch.cat([key[:start], key[start:] - before]),
        },
    }


def _logits_with(
    model: GPT2LMHeadModel,
    ids: Tensor,
    start: int,
    positions: Tensor | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Logits from `start` on, with other positions (S,), or with other visible keys (T, S) from there on."""
    body, length = model.transformer, ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    if visible is not None:
        mask[start:] = visible
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    hidden = body.wte(ids) + body.wpe(torch.arange(length) if positions is None else positions)
    for block in body.h:
        hidden = block(hidden, bias, None)
    return model.lm_head(body.ln_f(hidden))[:, start:]


def _write(module: ModuleType, model: Any, reference: GPT2LMHeadModel, ids: list[int], count: int) -> None:
    right, first = greedy(reference, ids, count), greedy(reference, ids[:1], 1)
    wrong = {
        "The prompt is returned too, expected the new ids only.": [*ids, *right],
        "The prompt's last token is fed twice: with the prompt, and alone.": (
            greedy(reference, [*ids, ids[-1]], count)
        ),
        "The prompt's last token is not fed.": greedy(reference, ids[:-1], count),
        "The last token is fed, but not the prompt before it.": greedy(reference, ids[-1:], count),
        "All tokens are fed again, although the cache has them.": _fed_again(reference, ids, count),
        "The first position's logits are used. The last position predicts the next token.": (
            first + greedy(reference, ids + first, count - 1)
        ),
    }
    with _counted_positions(model) as computed:
        got = module.write(model, list(ids), count, HEADS)
    what = f"write(model, {ids}, {count}, {HEADS})"
    same(what, got, right, wrong)
    expected = len(ids) + count - 1  # the last new token is not fed
    name, most = max(computed.items(), key=lambda item: item[1])
    if most > expected:
        raise Wrong(
            f"{what} computes {most} positions in {name}, expected {expected}: "
            f"{len(ids)} of the prompt, and {count - 1} new ones.",
            causes=["Positions that the cache has are computed again: feed the new token alone."],
        )


def _fed_again(model: GPT2LMHeadModel, ids: list[int], count: int) -> list[int]:
    new: list[int] = []
    fed = list(ids)
    for _ in range(count):
        new += greedy(model, fed, 1)
        fed += ids + new
    return new


def greedy(model: GPT2LMHeadModel, ids: list[int], most: int, end: int | None = None) -> list[int]:
    """The new tokens of ftcore's greedy search, at most `most`."""
    return generate(model, torch.tensor([ids]), max_new_tokens=most, eos_token_id=end)[0, len(ids) :].tolist()


@contextmanager
def _counted_positions(model: nn.Module) -> Iterator[Counter[str]]:
    """Count the positions that pass each layer."""
    computed: Counter[str] = Counter({"a layer": 0})

    def count(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        computed[name] += output.shape[-2]  # (B, T, D), or (T, D) of position vectors

    layers = {name: part for name, part in model.named_modules() if list(part.parameters(recurse=False))}
    hooks = [part.register_forward_hook(partial(count, name)) for name, part in layers.items()]
    try:
        yield computed
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def search(module: ModuleType) -> str:
    """Step 12."""
    cases = []
    for seed, length, most in ((1, 1, 5), (2, 4, 8), (3, 2, 3)):
        model, ids = reference_model(seed, layers=1), random_ids(length)
        cases += [(model, ids, most, end) for end in _likely_ends(model, ids)]
    for case in cases:
        _greedy_search(module, *case)
    options = ((2, 0.0), (3, 1.0), (4, 2.0))  # beams, length_penalty
    _beam_search(module, [(*case, *option) for case in cases for option in options])
    return _texts(module)


def _texts(module: ModuleType) -> str:
    """What both searches find with the shipped GPT-2."""
    directory = shipped("gpt2-mini")
    if directory is None:
        return ""
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    ids, end = tokenizer.encode(PROMPT), model.config.eos_token_id
    greedy, beams = module.greedy_search(model, ids, 24, end), module.beam_search(model, ids, 24, end, 4)
    found = f"greedy: {tokenizer.decode(greedy)!r}, with 4 beams: {tokenizer.decode(beams)!r}"
    return f"Your searches continue {PROMPT!r}, {found}"


def _likely_ends(model: GPT2LMHeadModel, ids: list[int]) -> list[int]:
    """Tokens that a search comes across: its second one, and the second choice for it."""
    text = torch.tensor([ids + greedy(model, ids, 2)])
    return model(text)[0, -2].topk(2).indices.tolist()


def _greedy_search(module: ModuleType, model: GPT2LMHeadModel, ids: list[int], most: int, end: int) -> None:
    endless = greedy(model, ids, most)
    never = min(set(range(VOCABULARY)) - set(endless))
    wrong = {
        "It is a token too short.": endless[:-1],
        "It is a token too long.": greedy(model, ids, most + 1),
        "The prompt is returned too, expected the new ids only.": [*ids, *endless],
    }
    got = module.greedy_search(model, list(ids), most, never)
    same(f"greedy_search(logits, {ids}, {most}, end={never})", got, endless, wrong)

    right = greedy(model, ids, most, end)
    wrong = {"The search goes on after `end`.": endless, "`end` is not returned.": right[:-1]}
    got = module.greedy_search(model, list(ids), most, end)
    same(f"greedy_search(logits, {ids}, {most}, end={end})", got, right, wrong)


def _beam_search(module: ModuleType, cases: list[BeamSearchCase]) -> None:
    """Ids are few numbers: a mistake is named only if it explains the results of all cases."""
    got = [module.beam_search(model, list(ids), *options) for model, ids, *options in cases]
    for found, (model, ids, most, end, beams, penalty) in zip(got, cases, strict=True):
        right = generate(
            model,
            torch.tensor([ids]),
            max_new_tokens=most,
            eos_token_id=end,
            num_beams=beams,
            length_penalty=penalty,
            early_stopping="never",  # stops once the best text is certain
        )[0, len(ids) :].tolist()
        what = f"beam_search(logits, {ids}, {most}, end={end}, beams={beams}, length_penalty={penalty})"
        try:
            same(what, found, right)
        except Wrong as error:
            wrong = {
                sentence: partial(_beam_searches, cases, **change) for sentence, change in WRONG_BEAMS.items()
            }
            raise Wrong(str(error), error.report, named(got, wrong)) from None


def _beam_searches(cases: list[BeamSearchCase], **mistake: Any) -> list[list[int]]:
    return [_beam_search_with(*case, **mistake) for case in cases]


def _beam_search_with(
    logits: Callable[[Tensor], Tensor],
    ids: list[int],
    most: int,
    end: int,
    beams: int,
    penalty: float,
    *,
    score: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(-1),
    carry: Callable[[Tensor, float], Tensor] = lambda scores, divisor: scores,
    completes: bool = True,
    keeps_complete: bool = True,
    keeps_all: bool = False,
    goes_on: bool = False,
    counts_prompt: bool = False,
    uses_penalty: bool = True,
) -> list[int]:
    """The new ids of beam search, with these mistakes.

    Args:
        score: logits (N, V) -> scores of the next token (N, V).
        carry: scores of the beams (N,), the divisor of complete texts -> scores that the next step adds to.
        completes: whether a text with `end` is complete.
        keeps_complete: whether texts that are complete before the last step are set aside.
        keeps_all: whether those below the N best candidates are too.
        goes_on: whether they stay beams.
        counts_prompt: whether the length includes the prompt.
        uses_penalty: whether complete texts are divided by length ** penalty.
    """
    running, scores = torch.tensor([ids]), torch.zeros(1)  # (N, T), (N,)
    complete: list[tuple[float, list[int]]] = []
    for length in range(1, most + 1):
        divisor = (length + counts_prompt * len(ids)) ** penalty if uses_penalty else 1.0
        best, index = (scores[:, None] + score(logits(running)[:, -1])).flatten().topk(2 * beams)
        texts = torch.cat([running[index // VOCABULARY], index[:, None] % VOCABULARY], 1)  # (2N, T + 1)
        ends = (texts[:, -1] == end) & completes
        if keeps_complete:
            first = ends & ((torch.arange(2 * beams) < beams) | keeps_all)
            complete += zip((best[first] / divisor).tolist(), texts[first].tolist(), strict=True)
        is_beam = ~ends | goes_on
        running, best = texts[is_beam][:beams], best[is_beam][:beams]
        scores = carry(best, divisor)
    complete += zip((best / divisor).tolist(), running.tolist(), strict=True)
    return max(complete)[1][len(ids) :]


WRONG_BEAMS: dict[str, dict[str, Any]] = {
    "A beam's score is log p of its last token, expected the sum of all.": {
        "carry": lambda scores, divisor: 0 * scores
    },
    "Scores are divided by the length at each step, expected those of complete texts only.": {
        "carry": lambda scores, divisor: scores / divisor
    },
    "A beam goes on after `end`. It is complete then.": {"completes": False},
    "A complete text is set aside, but stays a beam too.": {"goes_on": True},
    "Texts that end before the last step are lost. Set them aside.": {"keeps_complete": False},
    "All complete texts are set aside, expected those among the first N candidates.": {"keeps_all": True},
    "The logits are summed, expected log p.": {"score": lambda logits: logits},
    "p is summed, expected log p.": {"score": lambda logits: logits.softmax(-1)},
    "The prompt counts as length, expected the new tokens only.": {"counts_prompt": True},
    "length_penalty is not used.": {"uses_penalty": False},
}
