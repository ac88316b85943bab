"""The one error that travels: a code for programs, a line for people."""

from __future__ import annotations


class AgentError(Exception):
    """A failure the host shall see as `{"error": {"code", "message"}}`; the message is one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = " ".join(message.split())


def line_of(error: Exception) -> str:
    """Any library's error as a line that fits into a table; of ours, its own."""
    text = " ".join(str(error).split())
    return text if isinstance(error, AgentError) else f"{type(error).__name__}: {text}"[:500]
