"""Tokenizers run by the `tokenizers` package: tokenizer.json, and GPT-2's vocab.json with merges.txt.

GPT-2's is a byte-level BPE (Radford et al. 2019, section 2.2). The bytes of a text are written as 256
printable characters, " " as "Ġ"; then adjacent symbols are merged within each word, the first pair of
merges.txt first, until none of the pairs is left. Any text can be encoded, and decoding restores it.
GPT-2 appends nothing to a text. RoBERTa (Liu et al. 2019) puts it between <s> and </s>. CodeT5, a T5 for
code, has RoBERTa's tokenizer with T5's sentinels after its vocabulary.

A T5Tokenizer takes only pieces and Unicode table from tokenizer.json, in its own pipeline: split at
white space, then "▁" before each word. Other normalizers in the file are not applied.
"""

import base64
from collections.abc import Iterator
from reprlib import repr as shown
from typing import Any

from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram

from ftcore.data.tokenizer_files import T5_TOKENS, SpecialTokens, TokenizerFiles, read_special_tokens
from ftcore.data.tokenizer_interface import Tokenizer, native_errors
from ftcore.data.tokenizer_t5 import check_unicode_table

GPT2_TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
ROBERTA_TOKENS = T5_TOKENS | {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}

# The byte that each character of a byte-level BPE stands for: printable ones for themselves, those from
# U+0100 on for the other bytes, in order.
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = dict(zip(LETTERS, sorted(range(256), key=lambda byte: (chr(byte) not in LETTERS, byte)), strict=True))


class PipelineTokenizer(Tokenizer):
    """A pipeline of the `tokenizers` package: normalizer, pre-tokenizer, model, post-processor, decoder.

    `around` are the special tokens before and after each text; None leaves them to the pipeline.
    """

    def __init__(
        self,
        files: TokenizerFiles,
        pipeline: Pipeline,
        special: SpecialTokens,
        around: tuple[list[str], list[str]] | None = None,
    ) -> None:
        known = {token.content for token in pipeline.get_added_tokens_decoder().values()}
        with native_errors(files.vocabulary, "no ids are left for special tokens"):
            pipeline.add_tokens(special.tokens(known))
        if around is not None:
            before, after = around
            pipeline.post_processor = processors.TemplateProcessing(
                single=[*before, "$A", *after],
                special_tokens=[(token, pipeline.token_to_id(token)) for token in {*before, *after}],
            )
        vocabulary = pipeline.get_vocab(with_added_tokens=True)
        tokens = {number: token for token, number in vocabulary.items()}
        if len(tokens) < len(vocabulary):
            token, number = next(item for item in vocabulary.items() if tokens[item[1]] != item[0])
            both = f"{shown(token)} and {shown(tokens[number])}"
            raise ValueError(
                f"{files.vocabulary}: {both} have the id {number}, expected one token for each id"
            )
        named = {name: vocabulary[token] for name, token in special.names().items()}
        super().__init__(files, named, vocab_size=max(vocabulary.values()) + 1)
        self._clean_up &= not isinstance(pipeline.model, BPE)  # as in transformers
        self._pipeline = pipeline

    def token_bytes(self, token: int) -> bytes:
        letters = self._pipeline.id_to_token(token) or ""
        if isinstance(self._pipeline.decoder, decoders.ByteLevel) and BYTES.keys() >= set(letters):
            return bytes(map(BYTES.__getitem__, letters))
        return super().token_bytes(token)

    def _encode(self, text: str) -> list[int]:
        # A quarter faster than `encode` even for one text: it computes no offsets.
        return self._pipeline.encode_batch_fast([text])[0].ids

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._pipeline.decode(ids, skip_special_tokens=skip_special_tokens)

    def _id_of(self, token: str) -> int | None:
        return self._pipeline.token_to_id(token)


def pipeline_from_json(files: TokenizerFiles) -> PipelineTokenizer:
    """The pipeline in tokenizer.json, or T5's pipeline with the pieces in it."""
    values = files.json("tokenizer.json")
    model = values.get("model")
    is_unigram = isinstance(model, dict) and model.get("type") == "Unigram"
    # transformers has no class for uMT5, and takes the whole pipeline from its file.
    is_t5 = is_unigram and files.tokenizer_class in (None, "T5Tokenizer") and files.model_type != "umt5"
    with native_errors(files.vocabulary, "not a tokenizer"):
        for table in _unicode_tables(values.get("normalizer")):
            check_unicode_table(table)
        pipeline = _t5_pipeline(values) if is_t5 else Pipeline.from_str(files.text("tokenizer.json"))
        pipeline.no_padding()
        pipeline.no_truncation()
    if is_t5:
        special = read_special_tokens(files, T5_TOKENS, files.sentinels(100))
        return PipelineTokenizer(files, pipeline, special, ([], [special.names()["eos_token"]]))
    if files.tokenizer_class == "T5Tokenizer":  # uMT5's: saved without config.json, it would become T5's
        files.name_class("PreTrainedTokenizerFast")
    defaults = {None: GPT2_TOKENS, "GPT2Tokenizer": GPT2_TOKENS, "RobertaTokenizer": ROBERTA_TOKENS}
    special = read_special_tokens(files, defaults.get(files.tokenizer_class, {}))
    tokenizer = PipelineTokenizer(files, pipeline, special)
    if max(tokenizer.encode(""), default=0) >= tokenizer.vocab_size:
        raise files.error("tokenizer.json", "post_processor adds an id that no token has")
    return tokenizer


def _t5_pipeline(values: dict[str, Any]) -> Pipeline:
    """T5's pipeline with the pieces and the Unicode table of a tokenizer.json."""
    pieces = [(piece, score) for piece, score in values["model"]["vocab"]]
    pipeline = Pipeline(Unigram(pieces, values["model"]["unk_id"], False))
    for table in _unicode_tables(values.get("normalizer")):
        pipeline.normalizer = normalizers.Precompiled(table)
        break
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    pipeline.decoder = decoders.Metaspace(prepend_scheme="always")
    return pipeline


def _unicode_tables(normalizer: Any) -> Iterator[bytes]:
    """The Unicode tables of a normalizer in tokenizer.json, in order."""
    match normalizer:
        case {"precompiled_charsmap": table}:
            yield base64.b64decode(table)
        case {"normalizers": [*steps]}:
            for step in steps:
                yield from _unicode_tables(step)


def pipeline_from_merges(files: TokenizerFiles) -> PipelineTokenizer:
    """GPT-2's or RoBERTa's byte-level BPE from vocab.json and merges.txt."""
    vocabulary = {
        token: files.number("vocab.json", "the id", number, token=token)
        for token, number in files.json("vocab.json").items()
    }
    merges = _merges(files, vocabulary)
    with native_errors(files.vocabulary, "not a byte-level BPE"):
        pipeline = Pipeline(BPE(vocabulary, merges))
    add_prefix_space = files.flag("add_prefix_space")
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    pipeline.decoder = decoders.ByteLevel()

    is_roberta = files.tokenizer_class == "RobertaTokenizer"
    required = ("eos_token", "cls_token", "sep_token") if is_roberta else ("eos_token",)
    special = read_special_tokens(files, ROBERTA_TOKENS if is_roberta else GPT2_TOKENS, required=required)
    names = special.names()
    if is_roberta:
        return PipelineTokenizer(files, pipeline, special, ([names["cls_token"]], [names["sep_token"]]))
    add_bos = files.flag("add_bos_token") and "bos_token" in names
    before = [names["bos_token"]] if add_bos else []
    after = [names["eos_token"]] if files.flag("add_eos_token") else []
    return PipelineTokenizer(files, pipeline, special, (before, after))


def _merges(files: TokenizerFiles, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs in merges.txt, validated: the package panics at a pair that is not in the vocabulary."""
    merges = []
    for number, line in enumerate(files.text("merges.txt").split("\n"), start=1):
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            expected = "expected two tokens of vocab.json that make up a third"
            raise files.error(f"merges.txt:{number}", f"found {shown(line)}, {expected}")
        merges.append((left, right))
    return merges
