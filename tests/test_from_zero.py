"""docs/from_zero_to_t5.md: its outputs, its numbers worked by hand, and the functions it names."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "from_zero_to_t5.md"
TEXT = PAGE.read_text(encoding="utf-8")
# A block of Python, and the output that is shown directly below it.
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", TEXT, re.M | re.S)


def test_each_block_prints_what_stands_below_it(monkeypatch):
    monkeypatch.chdir(ROOT)  # with the shipped weights; the adapter's base model is a relative path
    names: dict[str, object] = {}
    printed = []
    for code, _ in BLOCKS:  # later blocks use names of earlier ones
        with redirect_stdout(io.StringIO()) as output:
            exec(compile(code, PAGE.name, "exec"), names)
        printed.append(output.getvalue())
    assert "\n".join(printed) == "\n".join(output for _, output in BLOCKS)


def attention_of_chess() -> list[float]:
    query = torch.tensor([2.0, 1.0])
    key, value = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [3.0, 0.0], [4.0, 2.0]]])
    scores = key @ query / 2**0.5
    weights, total = scores.softmax(-1), scores.exp().sum()[None]
    return torch.cat([scores, scores.exp(), total, total, weights, weights, weights @ value]).tolist()


def step_of_three_logits() -> list[float]:
    logits, label = torch.tensor([2.0, 1.0, 0.0], requires_grad=True), torch.tensor(1)
    loss = F.cross_entropy(logits, label)
    loss.backward()
    before, after = logits.softmax(-1), (logits - logits.grad).softmax(-1)
    numbers = [before, before[1:2], loss[None], logits.grad, logits - logits.grad]
    numbers += [after, after[1:2], F.cross_entropy(logits - logits.grad, label)[None]]
    return torch.cat(numbers).tolist()


@pytest.mark.parametrize(
    ("first_words", "computed"), [("query · key", attention_of_chess), ("gradient ", step_of_three_logits)]
)
def test_numbers_worked_by_hand(first_words, computed):
    (by_hand,) = [
        block for block in re.findall(r"^```text\n(.*?)^```$", TEXT, re.M | re.S) if first_words in block
    ]
    numbers = re.findall(r"-?\d+\.\d\d", by_hand.replace("−log ", "").replace("−", "-"))
    assert numbers == [f"{number:.2f}" for number in computed()]


def test_named_functions_exist():
    """What "**Read** `a` and `b` in [file.py](path)" names is defined in that file."""
    pointers = re.findall(
        r"((?:`\w+`(?:,? and |, )?)+)(?: of `(\w+)`)?\s+(?:> )?in\s+(?:> )?\[\w+\.py\]\(\.\./(\S+)\)", TEXT
    )
    assert len(pointers) == TEXT.count("**Read**") + 1  # section 5 names functions of two files
    for names, owner, path in pointers:
        code = (ROOT / path).read_text(encoding="utf-8")
        for name in [owner] if owner else re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(def|class) {name}\b", code, re.M), f"{name} in {path}"
