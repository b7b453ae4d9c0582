from typing import Literal

from runner import Context, handler


@handler("shop.buy")
async def buy(ctx: Context, *, sku: str, quantity: int = 1, colour: Literal["red", "blue"] = "red") -> None: ...


@handler("shop.close")
async def close(ctx: Context) -> None: ...
