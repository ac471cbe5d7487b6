"""What a side's process is told to do."""

import json
from dataclasses import asdict, dataclass

from ftcore.benchmark.cases import Case


@dataclass(frozen=True)
class Order:
    """A case for one side, with everything that the sides have in common."""

    side: str
    case: Case
    directory: str  # the model's
    inputs: str  # file of ids or batches
    dtype: str
    device: str
    threads: int
    compile: bool = False  # ftcore's steps of decoding, and what both train
    task: str = ""  # of training
    train: str = ""  # its file
    dropout: float = 0.0  # its rates

    @property
    def padded(self) -> bool:
        return self.side in self.case.padded

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Order":
        values = json.loads(text)
        case = values.pop("case")
        return cls(case=Case(**case | {"padded": tuple(case["padded"])}), **values)
