"""Mistakes in how sublayers, norms and embeddings are put together."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch.nn.functional as F
from torch import Tensor, nn

from ftcore.study.fault_injection import Divergence, Line, Sublayer, is_norm, pre_norm
from ftcore.study.recording import dotted
from ftcore.study.report import Cause

# Each is `hidden + inner(norm(hidden))` with a mistake, as a line of code.
LINES: dict[str, tuple[str, str, Line]] = {
    "residual missing": (
        "x = {inner}({norm}(x))",
        "x is not added.",
        lambda x, norm, inner: inner(norm(x)),
    ),
    "norm over the residual": (
        "x = {norm}(x); x = x + {inner}(x)",
        "The norm's output replaces the residual stream.",
        lambda x, norm, inner: norm(x) + inner(norm(x)),
    ),
    "post-norm": (
        "x = {norm}(x + {inner}(x))",
        "The norm belongs before the sublayer.",
        lambda x, norm, inner: norm(x + inner(x)),
    ),
    "norm after the sublayer": (
        "x = x + {norm}({inner}(x))",
        "The norm belongs before the sublayer.",
        lambda x, norm, inner: x + norm(inner(x)),
    ),
    "norm missing": (
        "x = x + {inner}(x)",
        "The sublayer's input is not normalized.",
        lambda x, norm, inner: x + inner(x),
    ),
}


def sublayers(divergence: Divergence) -> Iterator[Cause]:
    """A wrong line for all sublayers, or for those of one kind."""
    for group in _groups(divergence.sublayers):
        norm, inner = (name.rpartition(".")[2] for name in (group[0].norm, group[0].inner))
        expected = f"Expected x = x + {inner}({norm}(x))"
        for name, (code, why, line) in LINES.items():
            sentence = f"{expected}, mine computes {code.format(norm=norm, inner=inner)}. {why}"
            lines = dict.fromkeys(divergence.sublayers, pre_norm) | dict.fromkeys(group, line)
            yield from divergence.try_mistake(name, sentence, lines=lines)


def _groups(found: list[Sublayer]) -> list[list[Sublayer]]:
    """All sublayers, then those of one kind, such as attention, then those of one kind in one stack."""
    groups: dict[tuple[str, ...], list[Sublayer]] = defaultdict(list)
    for part in found:
        stack = "".join(letter for letter in part.inner if not letter.isdigit())
        for key in ((), (part.inner.rpartition(".")[2],), (stack, stack)):
            groups[key].append(part)
    distinct = {tuple(group): group for _, group in sorted(groups.items(), key=lambda item: len(item[0]))}
    return list(distinct.values())


def norm_used_twice(divergence: Divergence) -> Iterator[Cause]:
    """In each block, one norm in the place of another, or of all others."""
    blocks: dict[str, list[Sublayer]] = defaultdict(list)
    for part in divergence.sublayers:
        blocks[_block(part, divergence.sublayers)].append(part)
    indices = range(max(map(len, blocks.values()), default=0))
    for used, right in product(indices, (*indices, None)):
        pairs = [
            (parts[used], part)
            for parts in blocks.values()
            for index, part in enumerate(parts)
            if used < len(parts) and index != used and right in (index, None)
        ]
        if not pairs:
            continue
        weights = {
            dotted(wrong.norm, name): weight
            for other, wrong in pairs
            for name, weight in divergence.modules[other.norm].named_parameters()
        }
        other, wrong = pairs[0]
        sentence = f"{other.norm} is also applied before {wrong.inner}, where {wrong.norm} belongs."
        yield from divergence.try_mistake("norm used twice", sentence, weights=weights)


def _block(part: Sublayer, parts: list[Sublayer]) -> str:
    """The smallest module with this sublayer and others."""
    name = part.norm
    while name and sum(other.norm.startswith(f"{name}.") for other in parts) < 2:
        name = name.rpartition(".")[0]
    return name


def final_norm(divergence: Divergence) -> Iterator[Cause]:
    """Try a stack without its final norm."""
    in_sublayers = {part.norm for part in divergence.sublayers}
    norms = [
        name
        for name, part in divergence.modules.items()
        if is_norm(part) and name not in in_sublayers and name != divergence.call.module_name
    ]
    for names in dict.fromkeys([*((name,) for name in norms), tuple(norms)]):
        sentence = f"{' and '.join(names)} is not applied to the last block's output."
        outputs = dict.fromkeys(names, Tensor.detach)  # the unchanged input
        yield from divergence.try_mistake("final norm missing", sentence, outputs=outputs)


# GPT-2's position embeddings, from ids (B, T) and the table, with a mistake.
POSITIONS: tuple[tuple[str, str, Callable[..., Tensor]], ...] = (
    (
        "positions ignore left padding",
        "Positions are counted from the left edge, expected from the first token.",
        lambda ids, table: table[: ids.shape[-1]].expand(*ids.shape, -1),
    ),
    (
        "positions missing",
        "No position embedding is added.",
        lambda ids, table: 0 * F.embedding(ids, table),
    ),
    (
        "positions off by one",
        "Positions are counted from 1, expected from 0.",
        lambda ids, table: table[(ids + 1).clamp(max=len(table) - 1)],
    ),
    (
        "positions off by one",
        "The first two tokens have position 0, expected 0 and 1.",
        lambda ids, table: table[(ids - 1).clamp(min=0)],
    ),
)


def positions(divergence: Divergence) -> Iterator[Cause]:
    """Try mistakes of GPT-2's positions."""
    for name, part in divergence.modules.items():
        if isinstance(part, nn.Embedding) and name.endswith("wpe"):
            for mistake, sentence, embed in POSITIONS:
                outputs = {name: partial(embed, table=part.weight)}
                yield from divergence.try_mistake(mistake, sentence, outputs=outputs)


def embedding_scale(divergence: Divergence) -> Iterator[Cause]:
    """Try embeddings multiplied by the square root of the width."""
    tables = {
        name: part.weight
        for name, part in divergence.modules.items()
        if isinstance(part, nn.Embedding) and not name.endswith("relative_attention_bias")
    }
    tokens = {name: table for name, table in tables.items() if not name.endswith("wpe")}
    for scaled in (tokens, tables) if tables != tokens else (tokens,):
        width = next((table.shape[1] for table in scaled.values()), 0)
        sentence = (
            f"The embeddings are multiplied by sqrt({width}), as in Vaswani et al. 2017. GPT-2 and T5 use "
            "them as they are."
        )
        outputs = {name: partial(F.embedding, weight=table * width**0.5) for name, table in scaled.items()}
        yield from divergence.try_mistake("embedding scaled", sentence, outputs=outputs)
