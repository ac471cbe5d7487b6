"""What the doors share: options from the command line, and errors that are one line. No torch in here."""

from ftcore.command.errors import FAILED_RUN, INTERRUPTED, clear_errors, warn
from ftcore.command.options import arguments, did_you_mean, parse

__all__ = ["FAILED_RUN", "INTERRUPTED", "arguments", "clear_errors", "did_you_mean", "parse", "warn"]
