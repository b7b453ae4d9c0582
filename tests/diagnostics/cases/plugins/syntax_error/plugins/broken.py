from runner import Context, handler


@handler("shop.buy")
async def buy(ctx: Context) -> None:
    retrun None
