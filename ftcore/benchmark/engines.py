"""Inference engines in environments of their own: OpenVINO, ONNX Runtime and llama.cpp, on a CPU.

Runs with the packages of such an environment, and ftcore's modules that need no others. In int8, each stores
8-bit weights and quantizes activations as it does by default.
"""

import importlib
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ftcore.benchmark.backends import Backend, call_generate
from ftcore.benchmark.cases import Job
from ftcore.checkpoints.checkpoint import load_model
from ftcore.checkpoints.files import read_json


class EngineBackend(Backend):
    """An engine with a model format of its own."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if job.device != "cpu":
            raise NotImplementedError("is measured on a CPU only")
        self.converted = Path(job.checkpoint) / job.backend
        self.config = read_json(Path(job.checkpoint) / "config.json")
        self.is_t5 = self.config["model_type"] == "t5"

    def convert(self) -> None:
        """Write the checkpoint in the engine's format."""
        raise NotImplementedError


class OptimumBackend(EngineBackend):
    """An engine behind transformers' `generate`, by one of Hugging Face's packages optimum-*."""

    def model_class(self, package: str, prefix: str) -> Any:
        """The package's class for the family, such as OVModelForCausalLM."""
        family = "Seq2SeqLM" if self.is_t5 else "CausalLM"
        return getattr(importlib.import_module(package), f"{prefix}ModelFor{family}")

    def generate(self, model: Any, prompts: Tensor) -> list[list[int]]:
        return call_generate(model.generate, prompts, self.job.case)


class OpenVINOBackend(OptimumBackend):
    """OpenVINO. By default, as here in int8, it computes in bfloat16 on processors that have it."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.model = self.model_class("optimum.intel", "OV")

    def convert(self) -> None:
        model = self.model.from_pretrained(
            self.job.checkpoint, export=True, compile=False, load_in_8bit=self.job.dtype == "int8"
        )
        model.save_pretrained(self.converted)

    def load(self) -> Any:
        settings = {"INFERENCE_NUM_THREADS": str(self.job.threads)}
        if self.job.dtype != "int8":
            settings["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[self.job.dtype]
        return self.model.from_pretrained(self.converted, ov_config=settings, compile=False)

    def prepare(self, model: Any) -> Any:
        model.compile()
        return model


class ONNXRuntimeBackend(OptimumBackend):
    """ONNX Runtime."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if job.dtype == "bf16":
            raise NotImplementedError("has no bfloat16 on a CPU")
        self.model = self.model_class("optimum.onnxruntime", "ORT")

    def convert(self) -> None:
        self.model.from_pretrained(self.job.checkpoint, export=True).save_pretrained(self.converted)
        if self.job.dtype == "int8":
            library = importlib.import_module("onnxruntime.quantization")
            for file in self.converted.glob("*.onnx"):
                library.quantize_dynamic(file, file, weight_type=library.QuantType.QInt8, per_channel=True)

    def load(self) -> Any:
        options = importlib.import_module("onnxruntime").SessionOptions()
        options.intra_op_num_threads = self.job.threads
        return self.model.from_pretrained(self.converted, session_options=options)


class LlamaCppBackend(EngineBackend):
    """llama.cpp, by its C functions, since llama-cpp-python's class has one row. Greedy search only."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if self.is_t5:
            raise NotImplementedError("is measured with GPT-2 only")
        if job.case.beams > 1:
            raise NotImplementedError("has no beam search")
        self.library: Any = importlib.import_module("llama_cpp")

    def convert(self) -> None:
        """Write a GGUF file without a tokenizer. llama.cpp has position embeddings and norms in float32."""
        gguf: Any = importlib.import_module("gguf")
        types = gguf.GGMLQuantizationType
        matrix_type = {"fp32": types.F32, "bf16": types.BF16, "int8": types.Q8_0}[self.job.dtype]
        model: Any = load_model(self.job.checkpoint)
        config = model.config
        writer = gguf.GGUFWriter(self.converted, "gpt2")
        writer.add_block_count(config.n_layer)
        writer.add_context_length(config.n_positions)
        writer.add_embedding_length(config.n_embd)
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(config.vocab_size)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
        for name, weight in model.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
                weight = weight.T  # GPT-2's matrices are (in, out)
            kind = matrix_type if weight.dim() == 2 and "wpe" not in name else types.F32
            data = gguf.quants.quantize(weight.contiguous().numpy(), kind)
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def load(self) -> Any:
        settings = self.library.llama_model_default_params()
        return self.library.llama_model_load_from_file(str(self.converted).encode(), settings)

    def prepare(self, model: Any) -> Any:
        case, settings = self.job.case, self.library.llama_context_default_params()
        settings.n_seq_max = case.rows
        settings.n_ctx = case.rows * (case.source + case.target)
        settings.n_batch = settings.n_ubatch = case.rows * case.source
        settings.n_threads = settings.n_threads_batch = self.job.threads
        return self.library.llama_init_from_model(model, settings)

    def generate(self, model: Any, prompts: Tensor) -> list[list[int]]:
        self.library.llama_memory_clear(self.library.llama_get_memory(model), True)
        batch = self.library.llama_batch_init(prompts.numel(), 0, 1)
        new, length = prompts.tolist(), 0
        outputs: list[list[int]] = [[] for _ in prompts]
        for _ in range(self.job.case.target):
            ids = self.next_ids(model, batch, new, length)
            length += len(new[0])
            new = [[number] for number in ids]
            outputs = [output + row for output, row in zip(outputs, new, strict=True)]
        self.library.llama_batch_free(batch)
        return outputs

    def next_ids(self, model: Any, batch: Any, rows: list[list[int]], length: int) -> list[int]:
        """Feed the new ids of each row, at the positions from `length`; returns the most likely next ids."""
        tokens = [(row, i, number) for row, ids in enumerate(rows) for i, number in enumerate(ids)]
        batch.n_tokens = len(tokens)
        for slot, (row, i, number) in enumerate(tokens):
            batch.token[slot], batch.pos[slot] = number, length + i
            batch.n_seq_id[slot], batch.seq_id[slot][0] = 1, row
            batch.logits[slot] = i == len(rows[row]) - 1
        if self.library.llama_decode(model, batch):
            raise RuntimeError("llama_decode failed")
        ids, eos_id = [], self.config["eos_token_id"]
        for end in accumulate(map(len, rows)):
            pointer = self.library.llama_get_logits_ith(model, end - 1)
            logits = np.ctypeslib.as_array(pointer, (self.job.vocab_size,))
            logits[eos_id : eos_id + 1] = -np.inf  # the others have min_new_tokens
            ids.append(int(logits.argmax()))
        return ids


ENGINES: dict[str, Any] = {
    "openvino": OpenVINOBackend,
    "onnxruntime": ONNXRuntimeBackend,
    "llama.cpp": LlamaCppBackend,
}
