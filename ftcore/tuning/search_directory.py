"""The files of a search: where they lie, and who may write them."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import IO

from ftcore.checkpoints.files import write_atomically
from ftcore.training.run_directory import RunDirectory
from ftcore.tuning.options import TuneOptions


class SearchDirectory:
    """A search's directory.

    tune_config.json  the options of the search
    trials/           the run of each trial: 001, 002 ... The best one has its weights
    journal.log       optuna's record of the trials, which --resume needs
    trials.csv        the table, best first, written after each trial
    trials.png        the picture, where matplotlib is installed
    """

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "tune_config.json"
        self.trials = path / "trials"
        self.journal = path / "journal.log"
        self.table = path / "trials.csv"
        self.picture = path / "trials.png"

    @classmethod
    def create(cls, path: str, *, overwrite: bool) -> "SearchDirectory":
        """A new search's directory. Hidden files in it do not matter, nor a search without any result.

        Raises:
            ValueError: it already holds a search, or is not empty and no search.
        """
        search = cls(Path(path))
        if search.config.exists():
            if search.table.exists() and not overwrite:
                raise ValueError(
                    f"{path} already holds a search: --resume goes on with it, --overwrite replaces it"
                )
        elif search.path.exists() and (not search.path.is_dir() or any(search.path.glob("[!.]*"))):
            raise ValueError(f"{path} exists and holds no search: choose another --output")
        search.path.mkdir(parents=True, exist_ok=True)
        return search

    @classmethod
    def existing(cls, path: str) -> "SearchDirectory":
        """The directory of a search to go on with.

        Raises:
            ValueError: there is no search.
        """
        search = cls(Path(path))
        if not search.config.exists():
            raise ValueError(f"{path} holds no search to resume (no {search.config.name})")
        return search

    def trial(self, number: int) -> RunDirectory:
        """`number` from 1."""
        return RunDirectory(self.trials / f"{number:03d}")

    def lock(self) -> IO[str]:
        """A file; while it is open nobody else works on this search, as far as the system has such locks.

        Raises:
            ValueError: somebody does.
        """
        file = (self.path / ".lock").open("w")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with the process, however that ends
        except ImportError:  # Windows
            pass
        except BlockingIOError:
            file.close()
            raise ValueError(f"{self.path}: another process is at work on this search") from None
        return file

    def save_options(self, options: TuneOptions) -> None:
        """For --resume: how a search treats its directory is left out."""
        values = {key: value for key, value in asdict(options).items() if key not in ("resume", "overwrite")}
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(self.config, lambda path: path.write_text(text, encoding="utf-8"))

    def remove_files(self) -> None:
        """Remove what a search writes, and nothing else that somebody may keep here."""
        if self.trials.exists():
            shutil.rmtree(self.trials)
        # The last one is what makes it a search.
        for file in (self.journal, self.table, self.picture, self.config):
            file.unlink(missing_ok=True)

    def keep_weights_of(self, best: int | None, trials: int) -> None:
        """Remove the checkpoints of the first `trials` trials but the best one's; the logs stay."""
        for number in range(1, trials + 1):
            if number != best:
                self.trial(number).remove_checkpoints()
