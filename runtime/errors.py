"""Exceptions a user may meet. Each message is one readable line that says what to do next."""


class LlmosError(Exception):
    """Base of every error that llmos raises on purpose."""


class UserError(LlmosError):
    """The input or the request is wrong; the command line exits with code 2."""


class ArtifactError(UserError):
    """An artifact can't be used: truncated, changed, of a later format, not trusted, or for another machine."""


class InputError(UserError):
    """An input of a call has the wrong name, dtype, rank or size."""


class UnsupportedError(UserError):
    """The model holds something that the compiler can't do yet."""


class PassError(LlmosError):
    """A pass failed or left invalid IR behind: an error of the compiler, not of its user."""


class BudgetError(LlmosError):
    """The numbers of compiled code are further from the reference than the budget allows."""


class ExecutionError(LlmosError):
    """A call failed while it ran (out of memory, an index out of range)."""
