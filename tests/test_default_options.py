"""Under default options, training and generation run the modules of ftcore.models, not replacements."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import ftcore.generate
import ftcore.train
from ftcore.models.t5 import T5LayerNorm
from tests.helpers import tiny_runs

# The last one calls the loss, which calls the model.
MODULES = ("ftcore.models.", "ftcore.lora.", "torch.nn.", "ftcore.training.distributed.BatchLoss")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[type[nn.Module]]]:
    """The classes of all modules that are called in a test."""
    classes: set[type[nn.Module]] = set()
    call = nn.Module._call_impl

    def recorded(module: nn.Module, *inputs: Any, **named: Any) -> Any:
        classes.add(type(module))
        return call(module, *inputs, **named)

    monkeypatch.setattr(nn.Module, "__call__", recorded)
    yield classes


@pytest.mark.parametrize("options", [[], ["--lora-rank", "2"]], ids=["whole", "lora"])
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_default_options_run_the_model_files(
    family: str, options: list[str], called: set[type[nn.Module]], tmp_path: Path
) -> None:
    model = (tiny_runs.tiny_t5 if family == "t5" else tiny_runs.tiny_gpt2)(tmp_path)
    data = tiny_runs.questions(tmp_path / "train.jsonl", 12)
    run = ["--model", str(model), "--train", str(data), "--output", str(tmp_path / "run"), "--max-steps", "2"]
    assert ftcore.train.main([*run, *options]) == 0
    assert ftcore.generate.main(["--model", str(tmp_path / "run" / "best"), "--prompt", "0?"]) == 0
    names = {f"{kind.__module__}.{kind.__name__}" for kind in called}
    assert {name for name in names if not name.startswith(MODULES)} == set()
    assert nn.Dropout in called and (family == "gpt2" or T5LayerNorm in called)
