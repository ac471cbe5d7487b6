"""What a model writes where there is no gold answer: the rest of a text that it is shown the beginning of."""

from ftcore.data import ExampleDataset
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding import generate_from_ids
from ftcore.decoding.arguments import position_limit
from ftcore.metrics import exact_match, f1
from ftcore.models import Model
from ftcore.training.scoring import Answer

_BEGINNING = 16  # tokens of a text that GPT-2 is shown, at most half of it


def continuations(
    model: Model, tokenizer: Tokenizer, dataset: ExampleDataset, *, count: int, max_new_tokens: int
) -> list[Answer]:
    """What a model writes, greedily, for `count` examples spread over a data set, beside what stands there.

    GPT-2 goes on from the beginning of a text, T5 fills the holes of a corrupted one.
    """
    chosen = range(0, len(dataset), max(1, len(dataset) // count))[:count]
    examples = [dataset[index] for index in chosen]
    if dataset.decoder_only:
        texts = [example["input_ids"] for example in examples]
        starts = [min(_BEGINNING, -(-len(text) // 2)) for text in texts]
        sources = [text[:start] for text, start in zip(texts, starts, strict=True)]
        targets = [text[start:][:max_new_tokens] for text, start in zip(texts, starts, strict=True)]
        limit = position_limit(model)
        if limit is not None:
            max_new_tokens = min(max_new_tokens, limit - max(starts))
    else:
        sources = [example["input_ids"] for example in examples]
        targets = [example["labels"] for example in examples]
    written = generate_from_ids(model, tokenizer, sources, batch_size=count, max_new_tokens=max_new_tokens)
    rows = []
    for source, prediction, target in zip(sources, written, targets, strict=True):
        references = (tokenizer.decode(target),)
        scores = exact_match(prediction, references), f1(prediction, references)
        rows.append(Answer(tokenizer.decode(source, False), prediction, references, *scores))
    return rows
