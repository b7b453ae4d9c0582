from runner import Context, handler


@handler
async def buy(ctx: Context) -> None: ...
