from runner import Context, handler


@handler("shop.buy")
def buy(ctx: Context, sku: str) -> None: ...
