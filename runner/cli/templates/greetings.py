"""Handlers that the flows call with `use: greetings.…`."""

from typing import TypedDict

from runner import Context, TerminalError, handler


class Greeting(TypedDict):
    text: str


@handler("greetings.compose", effect=False)
def compose(ctx: Context, *, name: str) -> Greeting:
    """Compose a greeting. `effect=False`: it changes nothing, so that it needs no undoing."""
    if name.strip() == "":
        raise TerminalError("no_name", "a greeting needs a name")
    return {"text": f"Hello, {name}!"}
