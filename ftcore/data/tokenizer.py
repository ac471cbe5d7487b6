"""Text <-> token ids: selects the kind of tokenizer by the files in a directory.

    files in the directory             tokenizer                    encode appends   <extra_id_0>
    spiece.model                       T5: SentencePiece unigrams   </s>             the highest id
    tokenizer.json of a T5Tokenizer    the same                     </s>             the highest id
    vocab.json and merges.txt          GPT-2: byte-level BPE        nothing          -
    the same of a RobertaTokenizer     CodeT5: the same             </s>, <s> first  the highest id
    any other tokenizer.json           as in the file               as in the file   -
    none, but the class ByT5Tokenizer  bytes: id = byte + 3         </s>             259, the others above it

With several of them, tokenizer.json wins, as in transformers. The ids are those of transformers. Where
SentencePiece itself cuts a text in another way (docs/data.md), spiece.model follows SentencePiece.

T5's sentinels absorb the spaces around them where the files say so (`lstrip`, `rstrip`), as many
tokenizer.json files do; spiece.model alone does not.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as shown
from typing import TYPE_CHECKING

from ftcore.checkpoints.hub import resolve_directory
from ftcore.data.tokenizer_files import TokenizerFiles
from ftcore.data.tokenizer_interface import IGNORED_LABEL, Tokenizer
from ftcore.data.tokenizer_pipeline import pipeline_from_json, pipeline_from_merges
from ftcore.data.tokenizer_t5 import ByteTokenizer, SentencePieceTokenizer
from ftcore.lora.adapter import adapter_chain

if TYPE_CHECKING:
    from ftcore.models import GPT2Config, T5Config

__all__ = ["IGNORED_LABEL", "Tokenizer", "check_vocabulary", "load_tokenizer"]


def load_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """Load the tokenizer of a directory; an adapter without one has its base model's.

    Args:
        name: a directory, or the name of a model on the hub (see `resolve_directory`).

    Raises:
        FileNotFoundError: no such directory, or no tokenizer in it.
        ValueError: a file that is damaged or of another kind; the message names it.
    """
    for directory in _directories(name):
        if (tokenizer := _load(TokenizerFiles(directory))) is not None:
            return tokenizer
    raise FileNotFoundError(
        f"{directory}: no tokenizer; expected tokenizer.json, spiece.model or vocab.json + merges.txt"
    )


def _directories(name: str | os.PathLike[str]) -> Iterator[Path]:
    """The directory of a name; for an adapter, then that of its base model."""
    directory = resolve_directory(name, weights=False)
    yield directory
    yield from adapter_chain(directory, weights=False)[1:]


def _load(files: TokenizerFiles) -> Tokenizer | None:
    """The tokenizer in the files of a directory, None without one."""
    if files.tokenizer_class == "ByT5Tokenizer":
        return ByteTokenizer(files)
    if "tokenizer.json" in files.content:
        return pipeline_from_json(files)
    if "spiece.model" in files.content:
        _require_class(files, "spiece.model", "T5Tokenizer", "MT5Tokenizer")
        return SentencePieceTokenizer(files)
    if "vocab.json" in files.content and "merges.txt" in files.content:
        _require_class(files, "vocab.json", "GPT2Tokenizer", "RobertaTokenizer")
        return pipeline_from_merges(files)
    return None


def _require_class(files: TokenizerFiles, vocabulary: str, *expected: str) -> None:
    """Raise ValueError for a class that reads this vocabulary in another way, with other ids."""
    if files.tokenizer_class not in (None, *expected):
        raise files.error(
            vocabulary,
            f"read as a {expected[0]}'s, but tokenizer_class is {shown(files.tokenizer_class)}; "
            "save that tokenizer as tokenizer.json, with transformers",
        )


def check_vocabulary(
    tokenizer: Tokenizer, config: "T5Config | GPT2Config", where: str | os.PathLike[str]
) -> None:
    """Raise ValueError if a tokenizer has ids without a row in a model's embedding.

    Fewer ids than rows is usual: T5 has 32100 ids and, rounded up for the hardware, 32128 rows. The message
    starts with `where` and names both numbers.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{os.fspath(where)}: the tokenizer has {tokenizer.vocab_size} ids, but the embedding only "
            f"{config.vocab_size} rows (vocab_size in config.json); take the tokenizer that belongs to it"
        )
