from typing import Any

class FaultTable:
    def __init__(self, faults: list[Any], seed: int) -> None: ...
