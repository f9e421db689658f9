"""How a contract says that it is broken."""


def require(holds: bool, message: str) -> None:
    """Raise ``AssertionError(message)`` unless ``holds``: an ``assert`` that no interpreter option takes away."""
    if not holds:
        raise AssertionError(message)
