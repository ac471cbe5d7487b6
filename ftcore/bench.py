"""What ftcore costs beside transformers and CTranslate2 on this machine: `python -m ftcore.bench`."""

from ftcore.benchmark.options import BenchOptions
from ftcore.cli import FAILED_RUN, cli_errors, parse

if __name__ == "__main__":
    parse(BenchOptions, command="ftcore.bench")  # --help and typing errors, before the import of torch

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import ftcore
from ftcore.benchmark.machine import measure_machine
from ftcore.benchmark.model import measure_model
from ftcore.benchmark.picture import require_plots, save_growth
from ftcore.benchmark.report import Row, report
from ftcore.training.inputs import find_device


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(BenchOptions, argv, command="ftcore.bench")
    with cli_errors("ftcore.bench"):
        device = str(find_device(options.device))
        if options.growth:
            require_plots(Path(options.growth))
        tell("measuring what the machine can do")
        threads = options.threads or torch.get_num_threads()
        machine = measure_machine(device, options.dtype, threads, quick=options.quick)
        rows: list[Row] = []
        for name in options.models:
            with TemporaryDirectory(prefix="ftcore-bench-") as place:
                rows += measure_model(name, options, machine, Path(place), tell)
        if options.growth:
            save_growth(rows, Path(options.growth))

    if options.json:
        results = [row.to_dict() for row in rows]
        print(json.dumps({"ftcore": ftcore.__version__, "machine": machine.to_dict(), "rows": results}))
    else:
        print("\n".join(report(rows, machine)))
    return 0 if all(row.ours.seconds for row in rows) else FAILED_RUN


def tell(line: str) -> None:
    """Progress, beside the results on standard output."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
