from runner import Context, handler


@handler("shop.buy")
async def purchase(ctx: Context) -> None: ...


@handler("log")
async def log(ctx: Context) -> None: ...
