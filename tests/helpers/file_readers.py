"""Every kind of file that ftcore reads: small valid ones, and functions that read them as a user would.

A `make` function writes valid files into a directory. A `read` function is given the path of one of them; the
directory is also the working directory.
"""

import base64
import gzip
import http.client
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import matplotlib.figure  # noqa: F401  # once, instead of in each forked process
import sentencepiece
import tokenizers
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers.models import BPE, Unigram

import ftcore.train
import ftcore.tune
from ftcore.checkpoints.checkpoint import load_model, save_model
from ftcore.cli import parse
from ftcore.data import CORPUS_TASKS, Corpus, DataLoader, Task, load_task, load_tokenizer, read_records
from ftcore.decoding import generate_texts
from ftcore.decoding.prompts import read_prompts
from ftcore.explorer.server import Server, Session
from ftcore.generate import GenerateOptions
from ftcore.lora.adapter import save_adapter
from ftcore.lora.lora import add_lora
from ftcore.training.inputs import load_checkpoint, make_dataset, read_data
from ftcore.training.options import TrainOptions
from tests.helpers.case_runner import Reader, in_child
from tests.helpers.mutator import torch_saved
from tests.helpers.tiny_runs import byte_letters, questions, tiny_gpt2, tiny_t5

Make = Callable[[Path], object]

# Name of a file, then its lines; a blank line between two files.
CHECKPOINT_FILES = """
gpt2/tokenizer_config.json
{"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true}

gpt2/special_tokens_map.json
{"eos_token": "<|endoftext|>", "pad_token": {"content": "<|pad|>", "lstrip": true, "normalized": false}}

gpt2/added_tokens.json
{"<|pad|>": 259, "<|other|>": 260}

gpt2/merges.txt
#version: 0.2
e d
Ġ ed

gpt2/generation_config.json
{"num_beams": 2, "length_penalty": 1.0, "no_repeat_ngram_size": 2, "repetition_penalty": 1.1,
"bad_words_ids": [[5], [6, 7]], "eos_token_id": [256], "pad_token_id": 256, "early_stopping": true,
"suppress_tokens": [9], "exponential_decay_length_penalty": [2, 1.1], "num_return_sequences": 1}

t5/tokenizer_config.json
{"tokenizer_class": "ByT5Tokenizer", "extra_ids": 1, "eos_token": "</s>", "pad_token": {"content": "<pad>"},
"added_tokens_decoder": {"0": {"content": "<pad>"}, "1": {"content": "</s>"}, "2": {"content": "<unk>"},
"259": {"content": "<extra_id_0>", "special": true, "lstrip": true}},
"additional_special_tokens": ["<extra_id_0>"], "clean_up_tokenization_spaces": false}

t5/generation_config.json
{"do_sample": true, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_length": 1, "max_length": 20,
"decoder_start_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": 1, "transformers_version": "5"}
"""
DATA_FILES = """
squad.json
{"data": [{"title": "", "paragraphs": [{"context": "Ada sews.", "qas": [
{"id": "1", "question": "Who sews?", "answers": [{"text": "Ada", "answer_start": 0}]},
{"id": "2", "question": "What?", "answers": [{"text": "sews", "answer_start": 4}, {"text": "it"}]}]}]}]}

qa.jsonl
{"context": "Ada sews.", "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}}
{"context": "Bea reads.", "question": "Who?", "answer": "Bea", "is_impossible": false}

qa.csv
context,question,answers
"Ada, she sews.",Who?,Ada
Bea reads.,Who?,"['Bea']"

emotion.txt
i feel fine; really;joy
i feel low;sadness

emotion.csv
text,label
i feel fine,0
i feel low,1

emotion.jsonl
{"text": "i feel fine", "label": 0}
{"text": "i feel low", "label": 1}

pairs.csv
source,target
"a ""quoted"" text
in lines",short
b,c

pairs.jsonl
{"source": "a long text", "target": "short"}
{"source": "b", "target": "c"}

pairs.json
[{"source": "a long text", "target": "short"},
 {"source": "b", "target": "c"}]

records.json
{"version": "1", "data": [{"source": "b", "target": "c"}, {"source": "d", "target": "e"}]}

pairs.tsv
source	target
a "quoted" text	short
b	c

lm.txt
Ada sews.<|endoftext|>Bea reads a book about the sea;
Cy does not.

lm.jsonl
{"text": "Ada sews and sews."}
{"text": "Bea reads a book about the sea.", "id": 1}

lm.csv
id,text
1,Ada sews and sews.
2,Bea reads a book about the sea.

span.txt
Ada sews.
Bea reads a book about the sea; Cy does not.

prompts.txt
Ada
Bea and

prompts.jsonl
{"prompt": "Ada"}
{"context": "Ada sews.", "question": "Who?"}
{"source": "Bea"}

chat.jsonl
{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}
{"messages": [{"role": "system", "content": "Nod."}, {"role": "assistant", "content": "Yes"}]}

squad2.jsonl
{"context": "Ada sews.", "question": "Who reads?", "answers": {"text": [], "answer_start": []}}
{"context": "Ada sews.", "question": "Who sews?", "answers": ["Ada"], "is_impossible": false}

labels.json
{"0": "sadness", "true": "joy"}

task.json
{"task": "text2text", "template": "sum up: {document} ({{{id}}})", "target_template": "{label}.",
"columns": {"document": "Text", "label": "Class"}, "labels": {"0": "sad", "true": "glad"}}

train.json
{"task": "emotion", "batch_size": 4, "lr": 0.1, "set": ["n_positions=64"], "dropout": 0, "freeze": null}

train.yaml
# The run of the last week
task: emotion
"lr": 1e-3
train: a/b.csv  # relative
set: [n_positions=64, 'n_layer=1']
freeze:
- encoder
valid: >
  some
  file
fast: false

generate.json
{"num_beams": 2, "json": true, "length_penalty": 1}

record.json
{"text": "Ada", "search": {"max_new_tokens": 2, "num_beams": 2, "temperature": 1.0, "top_k": 5, "seed": 0}}

other.json
{"text": "Ada", "max_new_tokens": 2}

outcome.json
{"text": "Ada", "ids": [65, 100, 97, 68, 69], "other": "Bea", "max_new_tokens": 2, "interventions": [
{"z": "z.0", "head": 1}, {"name": "attn.0", "position": 0, "other_position": 0}]}

head-ablations.json
{"text": "Ada", "ids": [65, 100, 97, 68, 69], "max_new_tokens": 2}
"""


def write_files(directory: Path, files: str, folder: str = "") -> None:
    for file in files.strip().split("\n\n"):
        name, content = file.split("\n", 1)
        if name.startswith(folder):
            (directory / name.removeprefix(folder)).write_text(content + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------- checkpoints and tokenizers


def gpt2(directory: Path) -> None:
    tiny_gpt2(directory, vocab_size=264)
    vocabulary = json.loads((directory / "vocab.json").read_text()) | {"ed": 257, "Ġed": 258}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    write_files(directory, CHECKPOINT_FILES, "gpt2/")


def t5(directory: Path) -> None:
    tiny_t5(directory)
    write_files(directory, CHECKPOINT_FILES, "t5/")


def gpt2_bin(directory: Path, zipped: bool = True) -> None:
    gpt2(directory)
    weights = {name: weight.clone() for name, weight in load_model(directory).state_dict().items()}
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(torch_saved(weights, zipped))


def gpt2_bin_with_index(directory: Path) -> None:
    gpt2_bin(directory)
    shard = "pytorch_model-00001-of-00001.bin"
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_model(directory).state_dict(), shard)}
    (directory / "pytorch_model.bin").rename(directory / shard)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def t5_shards(directory: Path) -> None:
    t5(directory)
    save_model(load_model(directory), directory, max_shard_size=20_000)


def adapter(directory: Path) -> None:
    (directory / "base").mkdir()
    gpt2(directory / "base")
    model = load_model(directory / "base")
    add_lora(model, rank=2, alpha=4, dropout=0.1)
    save_adapter(model, directory / "adapter", base_model="base")
    tensors = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    prefixed = {f"base_model.model.{name}": value for name, value in tensors.items()}
    (directory / "adapter.bin").write_bytes(torch_saved(prefixed))


def adapter_bin(directory: Path) -> None:
    adapter(directory)
    (directory / "adapter" / "adapter_model.safetensors").unlink()
    (directory / "adapter.bin").rename(directory / "adapter" / "adapter_model.bin")


def answer(path: Path) -> None:
    """Generate three tokens with the checkpoint that holds the file."""
    model, tokenizer = load_checkpoint(str(path.parent))
    generate_texts(model, tokenizer, ["Ada sews"], max_new_tokens=3)


def spiece(directory: Path) -> None:
    """With a Unicode table: A to a, fullwidth A to a, ½ to 1⁄2."""
    rules, output = directory / "rules.tsv", io.BytesIO()
    rules.write_text("41\t61\nFF21\t61\nBD\t31 2044 32\n")
    options = {"normalization_rule_tsv": str(rules), "hard_vocab_limit": False, "minloglevel": 2}
    options |= {"unk_id": 2, "bos_id": -1, "eos_id": 1, "pad_id": 0, "user_defined_symbols": ["<sep>"]}
    lines = iter(["Ada sews.", "the cat sat on the mat", "a bat and a rat"] * 5)
    train = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=lines, model_writer=output, vocab_size=50, **options)
    rules.unlink()
    (directory / "spiece.model").write_bytes(output.getvalue())
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 3}')


def unigram(directory: Path) -> None:
    spiece(directory)
    model = sentencepiece_model_pb2.ModelProto.FromString((directory / "spiece.model").read_bytes())
    pipeline = tokenizers.Tokenizer(Unigram([(piece.piece, piece.score) for piece in model.pieces], 2, False))
    pipeline.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
    table = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    normalizer = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}}
    (directory / "tokenizer.json").write_text(json.dumps(json.loads(pipeline.to_str()) | normalizer))


def bpe(directory: Path) -> None:
    merges = {"ab": ("a", "b"), "abc": ("ab", "c"), "Ġa": ("Ġ", "a")}
    vocabulary = {token: number for number, token in enumerate([*byte_letters(), *merges])}
    pipeline = tokenizers.Tokenizer(BPE(vocabulary, list(merges.values())))
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = tokenizers.decoders.ByteLevel()
    pipeline.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    pipeline.add_special_tokens(["<|endoftext|>"])
    pipeline.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')


def tokenize(path: Path) -> None:
    tokenizer = load_tokenizer(path.parent)
    tokenizer.decode(tokenizer.encode("The Ａbc sat on ½ <extra_id_0> 日本</s>"))
    tokenizer.decode(range(tokenizer.vocab_size), skip_special_tokens=False)


# --------------------------------------------------------------------------------- data, options and requests


def data(directory: Path) -> None:
    write_files(directory, DATA_FILES)


def compressed(directory: Path) -> None:
    data(directory)
    for name in ("pairs.jsonl", "lm.txt"):
        (directory / f"{name}.gz").write_bytes(gzip.compress((directory / name).read_bytes(), mtime=0))


def tables(directory: Path) -> None:
    import datasets
    import pyarrow.feather

    datasets.disable_progress_bars()
    feelings = {"text": ["i feel fine", "i feel low"] * 5, "label": [0, 1] * 5}
    columns = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    data_set = datasets.Dataset.from_dict(feelings, features=columns)
    data_set.to_parquet(directory / "feelings.parquet")
    data_set.save_to_disk(directory / "saved")

    pyarrow.feather.write_feather(data_set.data.table, directory / "feelings.feather", compression="lz4")


@cache
def checkpoint(make: Make) -> tuple[Any, Any]:
    with TemporaryDirectory() as directory:
        make(Path(directory))
        return load_checkpoint(directory)


def examples(path: Path, *, task: str, make: Make) -> None:
    """Prepare the first batch of a training run."""
    model, tokenizer = checkpoint(make)
    records = read_data(task, str(path), model, tokenizer)
    lengths = {"max_source_length": 48, "max_target_length": 16}
    dataset = make_dataset(records, model, tokenizer, name="training", **lengths)
    next(iter(DataLoader(dataset, 2, pad_id=tokenizer.pad_id, shuffle=True)))


def saved(path: Path) -> None:
    examples(path.parent, task="emotion", make=t5)


def corpus_cache(directory: Path) -> None:
    data(directory)
    read_cached(directory / "its ids")


def read_cached(path: Path) -> None:
    """Read a tokenized text. Whatever its cache holds, the ids are those of the text."""
    model, tokenizer = checkpoint(tiny_gpt2)
    text = path.parent / "span.txt"
    corpus = read_data("lm", str(text), model, tokenizer)
    assert isinstance(corpus, Corpus)
    expected = [*tokenizer.encode(text.read_text()), tokenizer.eos_id]
    assert corpus.read(0, len(corpus)) == expected, "not the ids of the text"


def prompts(path: Path) -> None:
    read_prompts(None, str(path), decoder_only=True)


def task(path: Path) -> None:
    """Build a prompt of the task, and records of one row."""
    saved = load_task(path.parent) or Task("text2text")
    saved.prompt(dict.fromkeys(saved.prompt_fields, "Ada"), decoder_only=True)
    (path.parent / "rows.jsonl").write_text('{"Text": "Ada sews.", "Class": 0, "id": 1}')
    if saved.name not in CORPUS_TASKS:
        read_records(saved, path.parent / "rows.jsonl", decoder_only=True)


def labels(path: Path) -> None:
    command(partial(parse, TrainOptions, command="ftcore"), "--labels", str(path))


def options(path: Path, *, kind: type, given: tuple[str, ...] = ()) -> None:
    command(partial(parse, kind, command="ftcore"), *given, "--config", str(path))


def command(main: Callable[[list[str]], object], *argv: str) -> None:
    """Run a command; its error message is raised."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            main(list(argv))
    except SystemExit as end:
        if end.code in (1, 2):
            raise ValueError(printed.getvalue().splitlines()[-1]) from None
    finally:
        sys.stderr.write(printed.getvalue())


def request(path: Path) -> None:
    """Send the file to the explore page's server."""
    with Server("page", Session(*checkpoint(tiny_gpt2)), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            address = urlsplit(server.address)
            connection = http.client.HTTPConnection(address.netloc)
            headers = {"Origin": f"http://{address.netloc}"}
            connection.request("POST", address.path + path.stem, path.read_bytes(), headers)
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            server.shutdown()
    if response.status in (400, 403, 413):
        raise ValueError(f"{path}: {json.loads(body)['error']}")
    assert response.status == 200, body


# ------------------------------------------------------------------------------------------ runs and searches

QUICK = "--max-steps 2 --eval-every 1 --eval-answers 2 --max-source-length 40 --max-target-length 8"


def run(directory: Path) -> None:
    train_with(ftcore.train.main, directory, "--batch-size 2")


def search(directory: Path) -> None:
    train_with(ftcore.tune.main, directory, "--trials 2 --search lr=0.001..0.1 batch_size=1,2")


def train_with(main: Callable[[list[str]], object], directory: Path, more: str) -> None:
    (directory / "model").mkdir()
    model, train = tiny_t5(directory / "model"), questions(directory / "train.jsonl", 6)
    argv = f"--model {model} --train {train} --output {directory / 'run'} {QUICK} {more}".split()

    torch.optim.AdamW([torch.zeros(1)])  # imports torch's compiler, once

    def silently() -> list[None]:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), no_pictures():
            main(argv)
        return []

    assert in_child(silently)[0] == 0  # a process that has trained should not fork


def resume(path: Path) -> None:
    """Resume a finished run: its report is written again."""
    with no_pictures():
        command(ftcore.train.main, "--output", str(Path.cwd() / "run"), "--resume")


def resume_search(path: Path) -> None:
    """Resume a finished search. Whatever the journal holds, its complete lines are kept."""
    before = path.read_bytes() if path.name == "journal.log" and path.is_file() else b""
    with no_pictures():
        command(ftcore.tune.main, "--output", str(Path.cwd() / "run"), "--resume")
    kept = before[: before.rfind(b"\n") + 1]
    assert not kept or path.read_bytes().startswith(kept), "lines of the journal are lost"


@contextmanager
def no_pictures() -> Iterator[None]:
    """The figure of report.html is laid out but not drawn, which takes a second; there are no others."""
    skipped = ("matplotlib.figure.Figure.savefig", "ftcore.training.curves.save_curves")
    with (
        mock.patch(skipped[0]),
        mock.patch(skipped[1]),
        mock.patch("ftcore.tune.save_picture", lambda *_: False),
    ):
        yield


# -------------------------------------------------------------------------------------------------- the table

CHECKPOINT = ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"]
PROMPT = ("--model", "m", "--prompt", "x")
GROUPS: list[tuple[Make, Callable[[Path], object], list[str]]] = [
    (gpt2, answer, [*CHECKPOINT, "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"]),
    (t5, answer, CHECKPOINT),
    (t5_shards, answer, ["model.safetensors.index.json", "model-00001-of-*.safetensors"]),
    (gpt2_bin, answer, ["pytorch_model.bin"]),
    (partial(gpt2_bin, zipped=False), answer, ["pytorch_model.bin"]),
    (gpt2_bin_with_index, answer, ["pytorch_model.bin.index.json"]),
    (adapter, answer, ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]),
    (adapter_bin, answer, ["adapter/adapter_model.bin"]),
    (spiece, tokenize, ["spiece.model", "tokenizer_config.json"]),
    (unigram, tokenize, ["tokenizer.json"]),
    (bpe, tokenize, ["tokenizer.json"]),
    (data, partial(examples, task="qa", make=t5), ["squad.json", "qa.jsonl"]),
    (data, partial(examples, task="qa", make=gpt2), ["qa.csv"]),
    (data, partial(examples, task="emotion", make=gpt2), ["emotion.txt", "emotion.csv"]),
    (data, partial(examples, task="emotion", make=t5), ["emotion.jsonl"]),
    (data, partial(examples, task="text2text", make=gpt2), ["pairs.csv"]),
    (data, partial(examples, task="text2text", make=t5), ["pairs.jsonl"]),
    (data, partial(examples, task="lm", make=gpt2), ["lm.txt", "lm.jsonl", "lm.csv"]),
    (data, partial(examples, task="span-corruption", make=tiny_t5), ["span.txt"]),
    (data, partial(examples, task="text2text", make=t5), ["pairs.json", "records.json", "pairs.tsv"]),
    (compressed, partial(examples, task="text2text", make=t5), ["pairs.jsonl.gz"]),
    (compressed, partial(examples, task="lm", make=gpt2), ["lm.txt.gz"]),
    (corpus_cache, read_cached, ["span.txt.*.ids.safetensors"]),
    (data, partial(examples, task="chat", make=gpt2), ["chat.jsonl"]),
    (data, partial(examples, task="qa", make=t5), ["squad2.jsonl"]),
    (data, task, ["task.json"]),
    (data, labels, ["labels.json"]),
    (data, prompts, ["prompts.txt", "prompts.jsonl"]),
    (data, partial(options, kind=TrainOptions), ["train.json", "train.yaml"]),
    (data, partial(options, kind=GenerateOptions, given=PROMPT), ["generate.json"]),
    (data, request, ["record.json", "other.json", "outcome.json", "head-ablations.json"]),
    (run, resume, ["run/state/*.pt", "run/train_config.json", "run/metrics.jsonl", "run/predictions.jsonl"]),
]
if find_spec("datasets"):
    feelings = partial(examples, task="emotion", make=t5)
    GROUPS.append((tables, feelings, ["feelings.parquet", "feelings.feather"]))
    GROUPS.append((tables, saved, ["saved/state.json", "saved/*.arrow"]))
if find_spec("optuna"):
    GROUPS.append((search, resume_search, ["run/journal.log", "run/tune_config.json"]))


def name_of(make: Any, file: str) -> str:
    kind = "legacy gpt2_bin" if isinstance(make, partial) else make.__name__
    return f"{kind}: {file.rpartition('/')[2]}"


READERS = {name_of(make, file): Reader(make, file, read) for make, read, files in GROUPS for file in files}
