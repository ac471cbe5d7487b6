"""Engines: ids equal to ftcore's; OpenVINO and ONNX Runtime also as stand-ins that call transformers.

The real ones run where the environment variable FTCORE_ENGINES names the Python of each, such as
"openvino=a/bin/python llama.cpp=b/bin/python".
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import transformers

from ftcore.benchmark import worker
from ftcore.benchmark.cases import ENGINES, SHAPES, Case, Job
from ftcore.benchmark.inputs import write_model
from ftcore.benchmark.worker import measure, run_round, start
from ftcore.checkpoints.files import read_json

PYTHONS = dict(text.split("=") for text in os.environ.get("FTCORE_ENGINES", "").split())
TINY = {
    "gpt2": {"model_type": "gpt2", "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "t5": {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}
CONVERT = Case("convert", "convert")


@pytest.fixture(params=TINY)
def job(request, tmp_path, monkeypatch) -> Job:
    monkeypatch.setitem(SHAPES, "tiny", TINY[request.param] | {"vocab_size": 160})
    write_model("tiny", tmp_path / "model")
    case = Case("", "generate", rows=2, source=9, target=6)
    return Job("ftcore", case, str(tmp_path / "model"), vocab_size=160, dtype="fp32", device="cpu", threads=1)


def run(job: Job) -> Any:
    start(job)
    return run_round(job.device)[1]


@pytest.fixture
def stand_ins(monkeypatch) -> list[tuple[str, Any]]:
    """Modules named like the engines', whose models are transformers'. Returns what they were called with."""
    calls: list[tuple[str, Any]] = []

    def stand_in(kind: type) -> type:
        class Model(kind):  # type: ignore[misc, valid-type]
            @classmethod
            def from_pretrained(cls, directory, **settings):
                calls.append((Path(directory).name, settings))
                return super().from_pretrained(directory)

            def compile(self) -> None:
                calls.append(("compile", None))

        return Model

    families = {
        "CausalLM": transformers.GPT2LMHeadModel,
        "Seq2SeqLM": transformers.T5ForConditionalGeneration,
    }
    for name, prefix in (("optimum.intel", "OV"), ("optimum.onnxruntime", "ORT")):
        module: Any = ModuleType(name)
        for family, kind in families.items():
            setattr(module, f"{prefix}ModelFor{family}", stand_in(kind))
        monkeypatch.setitem(sys.modules, name, module)
    onnxruntime: Any = ModuleType("onnxruntime")
    onnxruntime.SessionOptions = SimpleNamespace
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime)
    monkeypatch.setattr(worker, "version", lambda backend: "1.0")
    return calls


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_engines_behind_optimum_get_the_inputs_of_the_others(job, stand_ins, name, beams):
    job = replace(job, case=replace(job.case, beams=beams))
    engine = replace(job, backend=name)
    run(replace(engine, case=CONVERT))
    assert run(engine) == run(job)
    with pytest.raises(NotImplementedError, match="does not train"):
        start(replace(engine, case=Case("train", "train")))


@pytest.mark.parametrize(
    ("dtype", "is_int8", "precision"), [("fp32", False, "f32"), ("bf16", False, "bf16"), ("int8", True, None)]
)
def test_openvino_is_given_the_precision_and_the_threads(job, stand_ins, dtype, is_int8, precision):
    engine = replace(job, backend="openvino", dtype=dtype, threads=3)
    run(replace(engine, case=CONVERT))
    run(engine)
    hint = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    assert stand_ins == [
        ("model", {"export": True, "compile": False, "load_in_8bit": is_int8}),
        ("openvino", {"ov_config": {"INFERENCE_NUM_THREADS": "3"} | hint, "compile": False}),
        ("compile", None),
    ]


def test_onnx_runtime_is_given_the_threads_and_has_no_bfloat16(job, stand_ins):
    engine = replace(job, backend="onnxruntime", threads=3)
    run(replace(engine, case=CONVERT))
    run(engine)
    assert stand_ins[-1] == ("onnxruntime", {"session_options": SimpleNamespace(intra_op_num_threads=3)})
    with pytest.raises(NotImplementedError, match="no bfloat16"):
        start(replace(engine, dtype="bf16"))


@pytest.mark.parametrize("name", ENGINES)
def test_engines_are_for_a_cpu(job, name):
    with pytest.raises(NotImplementedError, match="on a CPU only"):
        start(replace(job, backend=name, device="cuda"))


@pytest.mark.parametrize("name", ENGINES)
def test_the_ids_of_a_real_engine_equal_ftcores(job, name):
    if name not in PYTHONS:
        pytest.skip(f"FTCORE_ENGINES names no Python with {name}")
    engine = replace(job, backend=name, python=PYTHONS[name])
    is_t5 = read_json(Path(job.checkpoint) / "config.json")["model_type"] == "t5"
    limitation = "is measured with GPT-2 only" if is_t5 and name == "llama.cpp" else None
    assert measure([replace(engine, case=CONVERT)], 0)[name].missing == limitation
    results = measure([job, engine], 1)
    assert results[name].missing == limitation
    if limitation is None:
        assert results[name].output == results["ftcore"].output
