"""Exceptions shown to users. Each message is one readable line that says what to do next."""


class LlmosError(Exception):
    """Base class of the errors that llmos raises."""


class UserError(LlmosError):
    """The input or the request is wrong; the command line exits with code 2."""


class ArtifactError(UserError):
    """An artifact can't be used: truncated, modified, of a later format, not trusted, or for another machine."""


class InputError(UserError):
    """An input of a call has the wrong name, dtype, rank or size."""


class UnsupportedError(UserError):
    """The model uses something that the compiler doesn't support."""


class PassError(LlmosError):
    """A pass failed or produced invalid IR: a compiler bug."""


class ToleranceError(LlmosError):
    """The outputs of compiled code deviate from the reference by more than the budget allows."""


class ExecutionError(LlmosError):
    """A call failed at run time (out of memory, an index out of range)."""
