"""What a lowering says when it doesn't take a case."""


class NotLowered(Exception):
    """This form of the op isn't ours: torch-mlir may take it."""
