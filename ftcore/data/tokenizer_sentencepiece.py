"""T5's tokenizer: SentencePiece unigrams (Kudo 2018), out of spiece.model or tokenizer.json.

Two things are worth knowing:

- The search of `tokenizers` finds the pieces, for spiece.model too. It takes each word by itself, while
  SentencePiece's own adds up the scores of the whole text. Where two ways to cut a word score the same,
  rounding decides there: far enough into a text `xxx` is `xx|x`. Here it is always `x|xx`.
- There is one pipeline: the Unicode table that comes with the pieces, a split at white space, and "▁" before
  each word. Other normalizers that a tokenizer.json may list are passed over.

mT5's tokenizer is of the same kind. Its sentinels are pieces of the vocabulary that begin a word, such as
`▁<extra_id_0>`. It has pieces for single bytes too, but they are not used: a letter that it lacks is <unk>.
"""

import base64
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import Unigram

from ftcore.data.spiece import Kind, read_sentencepiece_model
from ftcore.data.tokenizer_files import TokenizerFiles, read_special_tokens
from ftcore.data.tokenizer_interface import PieceTokenizer

T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # the ids 0, 1 and 2


def unigrams_from_spiece(files: TokenizerFiles) -> PieceTokenizer:
    """The pieces that SentencePiece trained, and the sentinels behind them."""
    try:
        model = read_sentencepiece_model(files.content["spiece.model"])
    except ValueError as error:
        raise files.error("spiece.model", str(error)) from None
    pieces = model.pieces + [(sentinel, 0.0) for sentinel in reversed(files.sentinels(100))]
    marked = [
        AddedToken(piece, normalized=False, special=kind == Kind.CONTROL)
        for (piece, _), kind in zip(model.pieces, model.kinds, strict=True)
        if kind in (Kind.CONTROL, Kind.USER_DEFINED)
    ]
    return _t5(files, Unigram(pieces, model.unk_id, False), model.character_map, marked)


def unigrams_from_json(files: TokenizerFiles) -> PieceTokenizer:
    """The pieces and the Unicode table of a tokenizer.json, in T5's pipeline."""
    values = files.json("tokenizer.json")
    try:
        pieces = [(piece, score) for piece, score in values["model"]["vocab"]]
        model = Unigram(pieces, values["model"]["unk_id"], False)
        character_map = _character_map(values["normalizer"])
    except Exception as error:  # the tokenizers package raises nothing more particular
        raise files.error("tokenizer.json", f"not a tokenizer ({type(error).__name__}: {error})") from None
    return _t5(files, model, character_map)


def _character_map(normalizer: dict[str, Any] | None) -> bytes:
    """SentencePiece's Unicode table out of tokenizer.json's "normalizer", b"" where there is none."""
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    tables = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    return base64.b64decode(tables[0]) if tables else b""


def _t5(
    files: TokenizerFiles, model: Unigram, character_map: bytes, marked: Iterable[AddedToken] = ()
) -> PieceTokenizer:
    """T5's pipeline around its pieces; `marked` are those to find before the text is cut into words."""
    pipeline = Pipeline(model)
    if character_map:
        pipeline.normalizer = normalizers.Precompiled(character_map)
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    pipeline.decoder = decoders.Metaspace(prepend_scheme="always")
    special = read_special_tokens(files, T5_TOKENS, files.sentinels(100))
    special.extra.extend(marked)
    special.add_to(pipeline)
    eos = special.names()["eos_token"]
    pipeline.post_processor = processors.TemplateProcessing(
        single=["$A", eos], special_tokens=[(eos, pipeline.token_to_id(eos))]
    )
    return PieceTokenizer(files.content, pipeline, special.names(), tidy=files.tidy)
