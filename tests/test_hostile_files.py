"""Every file that ftcore reads, mutated: it is read or refused in one line that names a file.

Whatever a file holds: no other exception than ValueError, OSError and, for weights that are not finite,
FloatingPointError; no message with control characters; not more than 5 s or 1 GiB; no crash, and nothing
executed. A failing case prints reader, seed and mutation. The long study is not part of the suite:

    python -m pytest tests/test_hostile_files.py -n 0 -m study -s
"""

import ast
import base64
import http.client
import io
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers.models import BPE, Unigram

import ftcore.train
import ftcore.tune
from ftcore.checkpoints.checkpoint import load_model, save_model
from ftcore.checkpoints.files import write_json
from ftcore.cli import parse
from ftcore.data import DataLoader, load_tokenizer
from ftcore.data.corpus import Corpus
from ftcore.decoding import generate_texts
from ftcore.explorer.server import Server, Session
from ftcore.generate import GenerateOptions, read_prompts
from ftcore.lora.adapter import save_adapter
from ftcore.lora.lora import add_lora
from ftcore.training.inputs import load_checkpoint, make_dataset, read_data
from ftcore.training.options import TrainOptions
from tests.helpers import tiny_runs
from tests.helpers.case_runner import RESULTS, Outcome, Reader, in_child, run_cases
from tests.helpers.mutator import REPLACEMENTS, torch_saved

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="reads in forked processes")

CASES, STUDY_CASES = len(REPLACEMENTS) + 10, 2_000  # of each reader
PACKAGE = Path(ftcore.__file__).parent

# ------------------------------------------------------------------------------------------------------------
# Readers. Each `make` function writes valid files into a directory; each `read` function is given the path of
# the one that was mutated.

TEXT = "Ada sews.\nBea reads a book about the sea; Cy does not.\n"
GPT2_SEARCH = {"num_beams": 2, "length_penalty": 1.0, "no_repeat_ngram_size": 2, "repetition_penalty": 1.1}
GPT2_SEARCH |= {"bad_words_ids": [[5], [6, 7]], "eos_token_id": [256], "pad_token_id": 256, "early_stopping": True}
GPT2_SEARCH |= {"suppress_tokens": [9], "num_return_sequences": 1, "exponential_decay_length_penalty": [2, 1.1]}
T5_SEARCH = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_length": 1, "max_length": 20}
T5_SEARCH |= {"decoder_start_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": 1, "transformers_version": "5"}


def gpt2(directory: Path) -> None:
    tiny_runs.tiny_gpt2(directory, vocab_size=264)
    vocabulary = json.loads((directory / "vocab.json").read_text()) | {"ed": 259, "Ġed": 260}
    write_json(directory / "vocab.json", vocabulary)
    (directory / "merges.txt").write_text("#version: 0.2\ne d\nĠ ed\n", encoding="utf-8")
    token = {"content": "<|pad|>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True})
    write_json(directory / "special_tokens_map.json", {"eos_token": "<|endoftext|>", "pad_token": token})
    write_json(directory / "added_tokens.json", {"<|pad|>": 257, "<|other|>": 258})
    write_json(directory / "generation_config.json", GPT2_SEARCH)


def t5(directory: Path) -> None:
    tiny_runs.tiny_t5(directory)
    tokens = {str(number): {"content": text} for number, text in enumerate(["<pad>", "</s>", "<unk>"])}
    tokens["259"] = {"content": "<extra_id_0>", "special": True, "lstrip": True}
    settings = {"tokenizer_class": "ByT5Tokenizer", "added_tokens_decoder": tokens, "extra_ids": 1}
    settings |= {"eos_token": "</s>", "pad_token": tokens["0"], "clean_up_tokenization_spaces": False}
    write_json(directory / "tokenizer_config.json", settings | {"additional_special_tokens": ["<extra_id_0>"]})
    write_json(directory / "generation_config.json", T5_SEARCH)


def with_bin(directory: Path, zipped: bool) -> None:
    gpt2(directory)
    weights = {name: weight.clone() for name, weight in load_model(directory).state_dict().items()}
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(torch_saved(weights, zipped))


def with_bin_shards(directory: Path) -> None:
    with_bin(directory, zipped=True)
    weight_map = dict.fromkeys(load_model(directory).state_dict(), "pytorch_model-00001-of-00001.bin")
    (directory / "pytorch_model.bin").rename(directory / "pytorch_model-00001-of-00001.bin")
    write_json(directory / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})


def with_shards(directory: Path) -> None:
    t5(directory)
    save_model(load_model(directory), directory, max_shard_size=20_000)


def adapter(directory: Path, pickled: bool = False) -> None:
    (directory / "base").mkdir()
    gpt2(directory / "base")
    model = load_model(directory / "base")
    add_lora(model, rank=2, alpha=4, dropout=0.1)
    save_adapter(model, directory / "adapter", base_model="base")
    if pickled:
        (directory / "adapter" / "adapter_model.safetensors").unlink()
        tensors = {f"base_model.model.{name}": value for name, value in model.state_dict().items() if "lora_" in name}
        (directory / "adapter" / "adapter_model.bin").write_bytes(torch_saved(tensors))


def answer(path: Path) -> None:
    """Generate three tokens with the checkpoint that holds the file."""
    model, tokenizer = load_checkpoint(str(path.parent))
    generate_texts(model, tokenizer, ["Ada sews"], max_new_tokens=3)


def sentencepiece_model(directory: Path) -> bytes:
    """With a Unicode table of three rules."""
    rules, output = directory / "rules.tsv", io.BytesIO()
    rules.write_text("41\t61\nFF21\t61\nBD\t31 2044 32\n")  # A to a, fullwidth A to a, ½ to 1⁄2
    options = {"normalization_rule_tsv": str(rules), "hard_vocab_limit": False, "minloglevel": 2}
    options |= {"unk_id": 2, "bos_id": -1, "eos_id": 1, "pad_id": 0, "user_defined_symbols": ["<sep>"]}
    lines = iter([TEXT, "the cat sat on the mat", "a bat and a rat"] * 5)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=output, vocab_size=50, model_type="unigram", **options
    )
    rules.unlink()
    return output.getvalue()


def t5_pieces(directory: Path) -> None:
    (directory / "spiece.model").write_bytes(sentencepiece_model(directory))
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 3})


def t5_pipeline(directory: Path) -> None:
    model = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model(directory))
    pipeline = tokenizers.Tokenizer(Unigram([(piece.piece, piece.score) for piece in model.pieces], 2, False))
    pipeline.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
    table = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    normalizer = {"type": "Precompiled", "precompiled_charsmap": table}
    write_json(directory / "tokenizer.json", json.loads(pipeline.to_str()) | {"normalizer": normalizer})
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 1})


def bpe_pipeline(directory: Path) -> None:
    letters = {letter: number for number, letter in enumerate(tiny_runs.byte_letters())}
    merges = {"ab": ("a", "b"), "abc": ("ab", "c"), "Ġa": ("Ġ", "a")}
    vocabulary = letters | {token: 256 + number for number, token in enumerate(merges)}
    pipeline = tokenizers.Tokenizer(BPE(vocabulary, list(merges.values())))
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = tokenizers.decoders.ByteLevel()
    pipeline.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    pipeline.add_special_tokens(["<|endoftext|>"])
    pipeline.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})


def tokenize(path: Path) -> None:
    tokenizer = load_tokenizer(path.parent)
    ids = tokenizer.encode("The Ａbc sat on ½ <extra_id_0> 日本</s>")
    tokenizer.decode(ids)
    tokenizer.decode(range(tokenizer.vocab_size), skip_special_tokens=False)


DATA = {
    "squad.json": json.dumps(
        {"data": [{"title": "", "paragraphs": [{"context": "Ada sews.", "qas": [
            {"id": "1", "question": "Who sews?", "answers": [{"text": "Ada", "answer_start": 0}]},
            {"id": "2", "question": "What?", "answers": [{"text": "sews", "answer_start": 4}, {"text": "it"}]}]}]}]}
    ),
    "qa.jsonl": '{"context": "Ada sews.", "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}}\n'
    '{"context": "Bea reads.", "question": "Who?", "answer": "Bea", "is_impossible": false}\n',
    "qa.csv": 'context,question,answers\n"Ada, she sews.",Who?,Ada\nBea reads.,Who?,"[\'Bea\']"\n',
    "emotion.txt": "i feel fine; really;joy\ni feel low;sadness\n",
    "emotion.csv": "text,label\ni feel fine,0\ni feel low,1\n",
    "emotion.jsonl": '{"text": "i feel fine", "label": 0}\n{"text": "i feel low", "label": "sadness"}\n',
    "pairs.csv": 'source,target\n"a ""quoted"" text\nin lines",short\nb,c\n',
    "pairs.jsonl": '{"source": "a long text", "target": "short"}\n{"source": "b", "target": "c"}\n',
    "lm.txt": TEXT * 3 + "<|endoftext|>" + TEXT,
    "lm.jsonl": '{"text": "Ada sews and sews."}\n{"text": "Bea reads a book about the sea.", "id": 1}\n',
    "lm.csv": "id,text\n1,Ada sews and sews.\n2,Bea reads a book about the sea.\n",
    "span.txt": TEXT * 3,
    "prompts.txt": "Ada\nBea and\n",
    "prompts.jsonl": '{"prompt": "Ada"}\n{"context": "Ada sews.", "question": "Who?"}\n{"source": "Bea"}\n',
    "train.json": json.dumps(
        {"task": "emotion", "batch_size": 4, "lr": 0.1, "set": ["n_positions=64"], "dropout": 0, "freeze": None}
    ),
    "generate.json": json.dumps({"model": "m", "prompt": "Ada", "num_beams": 2, "json": True, "length_penalty": 1}),
    "record.json": json.dumps(
        {"text": "Ada", "search": {"max_new_tokens": 2, "num_beams": 2, "temperature": 1.0, "top_k": 5, "seed": 0}}
    ),
    "other.json": json.dumps({"text": "Ada", "max_new_tokens": 2}),
    "outcome.json": json.dumps(
        {"text": "Ada", "ids": [65, 66, 67, 68, 69], "other": "Bea", "max_new_tokens": 2, "interventions": [
            {"z": "z.0", "head": 1}, {"name": "attn.0", "position": 0, "other_position": 0}]}
    ),
    "head-ablations.json": json.dumps({"text": "Ada", "ids": [65, 66, 67, 68, 69], "max_new_tokens": 2}),
}


def data(directory: Path) -> None:
    for name, text in DATA.items():
        (directory / name).write_text(text)


@cache
def checkpoint(make: Callable[[Path], object]) -> tuple[Any, Any]:
    with TemporaryDirectory() as directory:
        make(Path(directory))
        return load_checkpoint(directory)


def examples(path: Path, *, task: str, family: Callable[[Path], object]) -> None:
    """The first batch of a training run."""
    model, tokenizer = checkpoint(family)
    records = read_data(task, str(path), model, tokenizer)
    dataset = make_dataset(
        records, model, tokenizer, name="training", max_source_length=48, max_target_length=16
    )
    next(iter(DataLoader(dataset, 2, pad_id=tokenizer.pad_id, shuffle=True)))


def corpus_cache(directory: Path) -> None:
    (directory / "text.txt").write_text(TEXT)
    read_cached(directory / "the ids")


def read_cached(path: Path) -> None:
    """Whatever the cache holds, the ids are those of the text."""
    model, tokenizer = checkpoint(tiny_runs.tiny_gpt2)
    corpus = read_data("lm", str(path.parent / "text.txt"), model, tokenizer)
    assert isinstance(corpus, Corpus)
    assert corpus.read(0, len(corpus)) == [*tokenizer.encode(TEXT), tokenizer.eos_id], "other ids than the text's"


def prompts(path: Path) -> None:
    assert read_prompts(GenerateOptions(model="", input=str(path)), decoder_only=True)


def command(main: Callable[[list[str]], object], *argv: str) -> None:
    """Run a command; its error message is raised."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            main(list(argv))
    except SystemExit as end:
        if end.code not in (1, 2):
            raise
        raise ValueError(printed.getvalue().splitlines()[-1]) from None
    finally:
        sys.stderr.write(printed.getvalue())


def options(path: Path) -> None:
    kind = TrainOptions if path.name == "train.json" else GenerateOptions
    command(partial(parse, kind, command="ftcore.train"), "--config", str(path))


def request(path: Path) -> None:
    """Send the file as a request of the explore page."""
    with Server("page", Session(*checkpoint(gpt2)), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            origin = f"http://127.0.0.1:{server.server_port}"
            connection.request("POST", f"/{path.stem}", path.read_bytes(), {"Origin": origin})
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            server.shutdown()
    if response.status in (400, 403, 413):
        raise ValueError(f"{path}: {json.loads(body)['error']}")
    assert response.status == 200, body


TRAIN = "--max-steps 2 --eval-every 1 --eval-answers 2 --batch-size 2 --max-source-length 40 --max-target-length 8"


def run(directory: Path) -> None:
    """A finished run, of which every file is read to resume it and to write its report."""
    (directory / "model").mkdir()
    model, train = tiny_runs.tiny_t5(directory / "model"), tiny_runs.questions(directory / "train.jsonl", 6)
    argv = f"--model {model} --train {train} --output {directory / 'run'} {TRAIN}".split()
    in_child_silently(lambda: ftcore.train.main(argv))


def resume(path: Path) -> None:
    command(ftcore.train.main, "--output", str(Path.cwd() / "run"), "--resume")


def search(directory: Path) -> None:
    (directory / "model").mkdir()
    model, train = tiny_runs.tiny_t5(directory / "model"), tiny_runs.questions(directory / "train.jsonl", 6)
    argv = f"--model {model} --train {train} --output {directory / 'search'} {TRAIN}".split()
    argv += "--trials 2 --search lr=0.001..0.1 batch_size=1,2".split()
    in_child_silently(lambda: ftcore.tune.main(argv))


def resume_search(path: Path) -> None:
    """Whatever the journal holds, its complete lines are kept."""
    before = path.read_bytes() if path.name == "journal.log" and path.is_file() else b""
    command(ftcore.tune.main, "--output", str(Path.cwd() / "search"), "--resume")
    kept = before[: before.rfind(b"\n") + 1]
    assert not kept or path.read_bytes().startswith(kept), "lines of the journal are lost"


def in_child_silently(work: Callable[[], object]) -> None:
    def silent() -> list[None]:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), no_picture():
            work()
        return []

    assert in_child(silent)[0] == 0


def no_picture() -> Any:
    return mock.patch.object(ftcore.tune, "save_picture", return_value=False)


CHECKPOINT = ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"]
GROUPS: list[tuple[Callable[[Path], object], Callable[[Path], object], list[str]]] = [
    (gpt2, answer, [*CHECKPOINT, "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"]),
    (t5, answer, CHECKPOINT),
    (partial(with_bin, zipped=True), answer, ["pytorch_model.bin"]),
    (partial(with_bin, zipped=False), answer, ["pytorch_model.bin"]),
    (with_shards, answer, ["model.safetensors.index.json", "model-00001-of-*.safetensors"]),
    (with_bin_shards, answer, ["pytorch_model.bin.index.json"]),
    (adapter, answer, ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]),
    (partial(adapter, pickled=True), answer, ["adapter/adapter_model.bin"]),
    (t5_pieces, tokenize, ["spiece.model", "tokenizer_config.json"]),
    (t5_pipeline, tokenize, ["tokenizer.json"]),
    (bpe_pipeline, tokenize, ["tokenizer.json"]),
    (data, partial(examples, task="qa", family=t5), ["squad.json", "qa.jsonl"]),
    (data, partial(examples, task="qa", family=gpt2), ["qa.csv"]),
    (data, partial(examples, task="emotion", family=gpt2), ["emotion.txt", "emotion.csv"]),
    (data, partial(examples, task="emotion", family=t5), ["emotion.jsonl"]),
    (data, partial(examples, task="text2text", family=gpt2), ["pairs.csv"]),
    (data, partial(examples, task="text2text", family=t5), ["pairs.jsonl"]),
    (data, partial(examples, task="lm", family=gpt2), ["lm.txt", "lm.jsonl", "lm.csv"]),
    (data, partial(examples, task="span-corruption", family=tiny_runs.tiny_t5), ["span.txt"]),
    (corpus_cache, read_cached, ["text.txt.*.ids.safetensors"]),
    (data, prompts, ["prompts.txt", "prompts.jsonl"]),
    (data, options, ["train.json", "generate.json"]),
    (data, request, ["record.json", "other.json", "outcome.json", "head-ablations.json"]),
    (run, resume, ["run/state/*.pt", "run/train_config.json", "run/metrics.jsonl", "run/predictions.jsonl"]),
]
if find_spec("optuna"):
    GROUPS.append((search, resume_search, ["search/journal.log", "search/tune_config.json"]))


def name_of(make: Any, file: str) -> str:
    kind = getattr(make, "func", make).__name__ + "".join(f" {key}" for key, value in getattr(make, "keywords", {}).items() if value)
    return f"{kind}: {file.rpartition('/')[2]}"


READERS = {name_of(make, file): Reader(make, file, read) for make, read, files in GROUPS for file in files}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Reader], Path]:
    """The directory of valid files of a reader."""

    @cache
    def made(make: Callable[[Path], object]) -> Path:
        directory = tmp_path_factory.mktemp("valid")
        make(directory)
        return directory

    return lambda reader: made(reader.make)


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused_in_one_line(name, valid, tmp_path):
    outcomes = run_cases(READERS[name], valid(READERS[name]), range(CASES), tmp_path)
    assert not faults(outcomes), described(name, outcomes)


@pytest.mark.study
def test_thousands_of_mutated_files(valid, tmp_path):
    print(f"\n| file | cases | read | refused | {' | '.join(FAULTS)} | slowest |")
    print(f"|---|{'---|' * (len(FAULTS) + 4)}")
    found = []
    for name, reader in READERS.items():
        outcomes = run_cases(reader, valid(reader), range(STUDY_CASES), tmp_path)
        count = Counter(kind_of(outcome) for outcome in outcomes)
        cells = [str(count[kind]) for kind in (*RESULTS, *FAULTS)]
        slowest = max(outcome.seconds for outcome in outcomes)
        print(f"| {name} | {len(outcomes)} | {' | '.join(cells)} | {slowest:.1f} s |", flush=True)
        found += described(name, outcomes)
    print("\n".join(found))
    assert not found


def faults(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.result not in RESULTS]


def described(name: str, outcomes: list[Outcome]) -> list[str]:
    """One line for each kind of fault, with the first case of it."""
    kinds: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in faults(outcomes):
        kinds.setdefault((outcome.result, outcome.detail.rpartition(" at ")[2]), []).append(outcome)
    return [
        f"{name}, seed {same[0].seed} ({len(same)} cases): {same[0].mutation} -> {result}: {same[0].detail}"
        for (result, _), same in kinds.items()
    ]
