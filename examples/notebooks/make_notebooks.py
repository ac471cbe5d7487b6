"""Make the notebooks from the scripts next to this file, and run them.

    python examples/notebooks/make_notebooks.py              all of them
    python examples/notebooks/make_notebooks.py look_inside  one

A script is in the percent format, which editors also run cell by cell: `# %%` begins a cell of code, and
`# %% [markdown]` a cell of text, whose lines are comments. Needs nbclient, nbformat and ipykernel.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
NAMES = ("look_inside", "test_your_layer", "fine_tune")
SECONDS = 600  # for one cell, on a busy machine
LARGEST_OUTPUT = 100_000  # characters; the page of `show` is left out of the files


def read_cells(script: str) -> Iterator[tuple[str, str]]:
    """Kind, "markdown" or "code", and source of each cell of a script in the percent format."""
    cells = r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)"
    for kind, source in re.findall(cells, script, re.DOTALL | re.MULTILINE):
        if kind:
            yield "markdown", re.sub(r"^# ?", "", source, flags=re.MULTILINE).strip()
        else:
            yield "code", source.strip()


def make_notebook(script: str) -> Any:
    """A notebook (nbformat.NotebookNode) with the cells of a script, without outputs."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    make = {"markdown": new_markdown_cell, "code": new_code_cell}
    cells = [
        make[kind](source, id=f"cell-{number}") for number, (kind, source) in enumerate(read_cells(script))
    ]
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": python})


def run(notebook: Any) -> Any:
    """Run all cells in this folder, as Jupyter does; the outputs are added to the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an exception.
    """
    from nbclient import NotebookClient

    client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(FOLDER)}})
    return client.execute()


def without_what_varies(notebook: Any) -> Any:
    """Remove times, progress bars, and outputs too large for a file in a repository."""
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if "\r" not in output.get("text", "") and len(str(output)) < LARGEST_OUTPUT
            ]
    return notebook


def main(arguments: list[str] | None = None) -> None:
    import nbformat

    parser = argparse.ArgumentParser(description="Make the notebooks from the scripts, and run them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    for name in parser.parse_args(arguments).names or NAMES:
        notebook = run(make_notebook((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(without_what_varies(notebook), path)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
