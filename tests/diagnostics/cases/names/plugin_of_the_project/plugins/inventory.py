from runner import Context, handler


@handler("inventory.reserve")
async def reserve(ctx: Context, *, sku: str, quantity: int = 1) -> str:
    """Reserve stock."""
    return f"{quantity} x {sku}"
