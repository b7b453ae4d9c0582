from __future__ import annotations

from collections.abc import Callable

from runner import Context, handler


@handler("shop.no_context")
async def no_context() -> None: ...


@handler("shop.positional")
async def positional(ctx: Context, sku: str) -> None: ...


@handler("shop.variadic")
async def variadic(ctx: Context, *skus: str) -> None: ...


@handler("shop.undefined_type")
async def undefined_type(ctx: Context, *, sku: Skuu) -> None: ...


@handler("shop.no_json")
async def no_json(ctx: Context, *, call: Callable[[], None]) -> None: ...


@handler("shop.kind")
class Kind:
    pass


@handler("shop buy")
async def buy(ctx: Context) -> None: ...
