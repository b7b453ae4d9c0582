def price(table: dict[str, int]) -> int:
    return table["apple"]


PRICE = price({})
