"""python -m ftcore.bench: a table or JSON on standard output, progress on standard error, one-line errors."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ftcore.bench import BenchOptions, is_distinct, main
from ftcore.benchmark.backends import installed_backends
from ftcore.benchmark.cases import ROWS, SHAPES, Case, growth_cases
from ftcore.benchmark.worker import Measurement
from ftcore.checkpoints.checkpoint import model_from_config
from ftcore.output import FAILED_RUN
from tests.helpers.small_clone import use_small_data

GPT2 = {"model_type": "gpt2", "vocab_size": 1600, "n_positions": 96, "n_embd": 16, "n_layer": 1, "n_head": 2}
T5 = {"model_type": "t5", "vocab_size": 1600, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1}
QUICK = ["--quick", "--runs", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    use_small_data(tmp_path, monkeypatch)


@pytest.fixture
def tiny(monkeypatch):
    """Tiny shapes under published names, and ftcore alone, since the others take seconds to start."""
    monkeypatch.setitem(SHAPES, "gpt2", GPT2)
    monkeypatch.setitem(SHAPES, "t5-small", T5 | {"num_heads": 2, "decoder_start_token_id": 0})
    monkeypatch.setattr("ftcore.bench.installed_backends", lambda **_: ["ftcore"])


def test_json_has_all_backends(monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.setitem(SHAPES, "gpt2", GPT2)
    monkeypatch.setattr("ftcore.bench.installed_backends", lambda **_: ["ftcore", "transformers"])
    assert main(["--model", "gpt2", "--rows", "train-tutorial", "--json", *QUICK]) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert values["machine"]["threads"] == 1 and values["machine"]["bandwidth"] > 0
    [row] = values["rows"]
    assert (row["model"], row["row"], row["unit"]) == ("gpt2", "train-tutorial", "examples/s")
    assert list(row["results"]) == ["ftcore", "transformers"]
    for backend in row["results"].values():
        assert len(backend["seconds"]) == 2 and backend["peak_bytes"] > 10**7 and backend["missing"] is None
    assert row["results"]["transformers"]["ratio"]["median"] > 0
    assert row["results"]["transformers"]["agreement"].startswith("loss within ")
    assert row["roofline_share"] > 0
    assert "gpt2 train-tutorial (1 of 1)" in captured.err


def test_without_other_libraries_the_table_has_ftcore_alone(tiny, tmp_path, capsys):
    model_from_config(GPT2).save_pretrained(tmp_path / "mine")
    assert main(["--model", "t5-small", str(tmp_path / "mine"), "--rows", "load", *QUICK]) == 0
    captured = capsys.readouterr()
    table = [line for line in captured.out.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in table[2:]] == ["t5-small", str(tmp_path / "mine")]
    assert "transformers" not in captured.out


def test_fast_and_compile_add_rows(tiny, monkeypatch, capsys):
    """Loading, for which all are alike, has one row."""
    monkeypatch.setattr("ftcore.bench.installed_backends", installed_backends)
    monkeypatch.setattr("ftcore.benchmark.backends.find_spec", lambda name: None)
    measured = Measurement([1.0])
    monkeypatch.setattr("ftcore.bench.measure", lambda jobs, rounds: {job.backend: measured for job in jobs})
    arguments = ["--model", "gpt2", "--rows", "load", "prefill", "--json", *QUICK]
    expected = {"load": ["ftcore"], "prefill": ["ftcore"], "prefill --fast": ["ftcore-fast"]}
    assert main([*arguments, "--fast"]) == 0
    assert results(capsys) == expected
    assert main([*arguments, "--compile"]) == 0
    assert results(capsys) == expected | {"prefill --compile": ["ftcore-compiled"]}


def results(capsys) -> dict[str, list[str]]:
    """The backends of each row of the JSON."""
    return {row["row"]: list(row["results"]) for row in json.loads(capsys.readouterr().out)["rows"]}


def test_compiled_steps_are_for_a_cpu():
    """On a GPU a decoding step is a CUDA graph, with and without --compile."""
    generate, train = Case("", "generate"), Case("", "train")
    assert [is_distinct("ftcore-compiled", generate, device) for device in ("cpu", "cuda:1")] == [True, False]
    assert is_distinct("ftcore-compiled", train, "cuda")
    assert is_distinct("ftcore-fast", generate, "cuda")


def test_an_engine_runs_in_its_python_and_its_failed_conversion_is_a_cell(tiny, monkeypatch, capsys):
    calls = []

    def measure(jobs, rounds):
        calls.append([(job.backend, job.python, job.case.kind) for job in jobs])
        return {
            job.backend: Measurement(missing="has no memory")
            if job.backend == "llama.cpp"
            else Measurement([1.0])
            for job in jobs
        }

    monkeypatch.setattr("ftcore.bench.measure", measure)
    engines = [f"openvino={sys.executable}", "--engine", f"llama.cpp={sys.executable}"]
    assert main(["--model", "gpt2", "--rows", "greedy", "--engine", *engines, *QUICK]) == 0
    assert calls == [
        [(name, sys.executable, "convert") for name in ("openvino", "llama.cpp")],
        [("ftcore", "", "generate"), ("openvino", sys.executable, "generate")],
    ]
    assert capsys.readouterr().out.endswith("\nllama.cpp, gpt2 greedy: has no memory.\n")


def test_ready_runs_in_new_processes_whose_caches_start_empty(tiny, monkeypatch, capsys):
    calls = []

    def measure(jobs, rounds):
        calls.append((jobs[0].case.name, jobs[0].cache))
        return {"ftcore": Measurement([1.0])}

    monkeypatch.setattr("ftcore.bench.measure_in_new_processes", measure)
    assert main(["--model", "gpt2", "--rows", "ready-first", "ready", *QUICK]) == 0
    cache = calls[0][1]
    assert cache and not Path(cache).exists()
    assert calls == [("ready-first", cache), ("ready", cache)]


def test_growth_draws_a_picture(tiny, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    few = [case for case in growth_cases(is_first=True) if case.name in ("rows-2", "model")]
    monkeypatch.setattr("ftcore.bench.growth_cases", lambda is_first: few)
    picture = tmp_path / "growth.png"
    assert main(["--growth", str(picture), "--model", "gpt2", *QUICK]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "rows-2" in capsys.readouterr().out


def test_a_run_without_ftcores_results_has_failed(tiny, monkeypatch, capsys):
    failed = {"ftcore": Measurement(missing="MemoryError: too large")}
    monkeypatch.setattr("ftcore.bench.measure", lambda orders, rounds: failed)
    assert main(["--model", "gpt2", "--rows", "load", *QUICK]) == FAILED_RUN
    assert "ftcore, gpt2 load: MemoryError: too large." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "gredy"], "--rows: unknown row 'gredy', did you mean 'greedy'?; rows: load, ready"),
        (["--runs", "0"], "--runs is 0, expected at least 1"),
        (["--threads", "0"], "--threads is 0, expected from 1"),
        (["--threads", str(10**13)], "--threads is 10000000000000, expected from 1 to below 1025"),
        (["--train", "a"], "--train and --tokenizer are for one --model"),
        (["--growth", "a.png", "--rows", "load"], "--growth measures its own cases: leave out --rows"),
        (["--growth", "a.svg"], "--growth is 'a.svg', expected a name that ends with .png"),
        (["--growth", "nowhere/a.png"], "--growth nowhere/a.png: its directory does not exist"),
        (
            ["--engine", "openvno=a"],
            "unknown engine 'openvno', did you mean 'openvino'?; engines: openvino, ",
        ),
        (
            ["--engine", "openvino"],
            "--engine openvino=: no such file, expected a Python with optimum-intel[openvino]",
        ),
        (["--engine", "openvino=no/python"], "--engine openvino=no/python: no such file"),
        (["--dtype", "int8"], "--dtype int8 needs --fast"),
        (["--dtype", "int8", "--fast", "--rows", "train"], "--dtype int8 is for generation"),
        (["--dtype", "fp8"], "invalid choice: 'fp8'"),
        (["--device", "nowhere"], "--device is 'nowhere', which torch does not find here"),
        (["--quik"], "did you mean '--quick'"),
    ],
)
def test_a_wrong_command_line_is_a_one_line_error(arguments, message, capsys):
    assert message in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "gpt3"],
            "--model gpt3: no such shape or directory, did you mean 'gpt2'?; shapes: gpt2, ",
        ),
        (["--model", "./missing"], "missing"),
        (["--model", "gpt2", "--train", "missing.txt", "--rows", "train"], "missing.txt"),
        (["--model", "gpt2", "--tokenizer", "./missing", "--rows", "train"], "missing"),
    ],
)
def test_a_wrong_model_or_file_is_a_one_line_error(tiny, arguments, message, capsys):
    assert message in refused([*arguments, *QUICK], capsys)


def refused(arguments: list[str], capsys) -> str:
    """Run a command with wrong input; return its error line."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert not captured.out
    [line] = [line for line in captured.err.splitlines() if line.startswith("ftcore.bench: ")]
    return line


def test_a_tokenizer_with_more_ids_than_the_model(tiny, monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "gpt2", GPT2 | {"vocab_size": 100})
    line = refused(["--model", "gpt2", "--rows", "train", *QUICK], capsys)
    assert "1500 ids, but the embedding only 100 rows" in line


def test_a_model_with_one_position_is_refused(tiny, monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "gpt2", GPT2 | {"n_positions": 1})
    assert "n_positions is 1, expected at least 2" in refused(["--model", "gpt2", "--rows", "greedy"], capsys)


def test_json_of_losses_that_are_not_finite(tiny, monkeypatch, capsys):
    results = {name: Measurement([1.0], [float("nan")], 1) for name in ("ftcore", "transformers")}
    monkeypatch.setattr("ftcore.bench.measure", lambda jobs, rounds: dict(results))
    assert main(["--model", "gpt2", "--rows", "train", "--json", *QUICK]) == 0
    [row] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["rows"]
    assert row["results"]["transformers"]["agreement"] == "loss NOT FINITE"


def test_help_needs_neither_torch_nor_transformers():
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
        "sys.argv = ['bench', '--help']; runpy.run_module('ftcore.bench', run_name='__main__')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "--growth FILE" in shown.stdout
    assert "train-tutorial" in shown.stdout


def test_blocks_are_trained_in_order_and_rows_after_the_budget_are_listed(tiny, monkeypatch, capsys):
    """Each look at the clock takes a second: before the model, and before each row."""
    seconds = iter(range(100))
    monkeypatch.setattr("ftcore.bench.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    rows = ["--model", "gpt2", "t5-small", "--rows", "train-blocks", "load", "greedy"]
    assert main([*rows, "--budget", "3", *QUICK]) == 0
    output = capsys.readouterr().out
    assert [line.split()[3] for line in output.splitlines() if line.startswith("| gpt2")] == [
        "train-blocks",
        "load",
    ]
    assert (
        "Left out, after --budget 3: gpt2 greedy, t5-small train-blocks, t5-small load, t5-small gr" in output
    )
    assert "tokens/s" in output


def test_a_budget_that_ends_before_the_first_row(tiny, monkeypatch, capsys):
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr("ftcore.bench.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    assert "--budget 5 ended before the first row" in refused(["--budget", "5", *QUICK], capsys)


def test_losses_of_blocks_equal_those_of_transformers(tiny, monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.setattr("ftcore.bench.installed_backends", lambda **_: ["ftcore", "transformers"])
    arguments = ["--model", "gpt2", "t5-small", "--rows", "train-blocks", "--json", *QUICK]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    for row in rows:
        agreement = row["results"]["transformers"]["agreement"]
        assert agreement.startswith("loss within") and row["unit"] == "tokens/s", row


def test_the_rows_of_a_gpu():
    plan = BenchOptions(device="cuda").plan
    assert plan[0] == ("gpt2", ["train-blocks", "greedy"])
    assert all(name in SHAPES and set(rows) <= set(ROWS) for name, rows in plan)
    assert BenchOptions(device="cuda", rows=["greedy"]).plan[0] == ("gpt2", ["greedy"])
    greedy, train = Case("", "generate"), Case("", "train")
    ways = ["ftcore", "ftcore-fast", "ftcore-compiled", "transformers", "transformers-static"]
    for case, device, expected in (
        (greedy, "cuda", ["ftcore", "ftcore-fast", "transformers", "transformers-static"]),
        (train, "cuda", ["ftcore", "ftcore-compiled", "transformers"]),
        (greedy, "cpu", ["ftcore", "ftcore-fast", "ftcore-compiled", "transformers"]),
        (train, "cpu", ["ftcore", "ftcore-fast", "ftcore-compiled", "transformers"]),
    ):
        assert [way for way in ways if is_distinct(way, case, device)] == expected
