"""A plugin that needs what is not installed."""

from runner import Context, handler
import no_such_library


@handler("shop.buy")
async def buy(ctx: Context) -> None: ...
