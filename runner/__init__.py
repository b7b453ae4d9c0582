"""flowrun: event-driven workflows from YAML. What a plugin imports."""

from runner.errors import RetryableError, TerminalError
from runner.handler import Context, handler

__all__ = ["Context", "RetryableError", "TerminalError", "handler"]
__version__ = "0.1.0"
