"""What the doors share: options from the command line, and errors that are one line. No torch in here."""

from ftcore.command.errors import clear_errors, warn
from ftcore.command.options import parse

__all__ = ["clear_errors", "parse", "warn"]
