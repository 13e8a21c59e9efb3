"""The project's exceptions: one small hierarchy, imported by every package and importing none.

What may be retried is decided by type: only `InfrastructureError` is. A bad episode or a failed analyzer call is
recorded as data and is no exception at the pipeline's level.
"""


class OpidError(Exception):
    """Any error that OPID raises on purpose. Its text says what is wrong and what to do."""


class ConfigError(OpidError):
    """Bad input from the user: a config value, a path, a missing extra. Raised before any work is done."""


class DataError(OpidError):
    """Data that cannot be used as it is: a game file, a table, a checkpoint. The text names the file and the field."""


class EnvironmentFault(OpidError):
    """An environment broke in an episode: the episode is recorded as `broken`, its group is sampled once more."""


class InfrastructureError(OpidError):
    """A fault outside the program (storage, engine, network, time-out): the same call may succeed later."""


class OutOfMemory(InfrastructureError):
    """The accelerator's or machine's memory is too small for this micro-batch; the next try uses a smaller one."""


class AttemptUnusable(OpidError):
    """What an interrupted attempt at an iteration left cannot be used: the iteration starts anew as its next one."""


class LeaseHeld(OpidError):
    """Another driver works on the campaign. The text says who, since when, and what to do."""


class LeaseLost(OpidError):
    """Another driver took the campaign over while this one was silent: stop, and leave it the work."""


class AnalyzerReplyError(OpidError):
    """An analyzer reply without a usable skill (section 3 of the algorithm page): recorded, never scored as a skill."""


class GateError(OpidError):
    """A table broke an expectation of severity `fail`: nothing is committed."""


class FailureBudgetExceeded(GateError):
    """Too many analyses failed, and nothing else is wrong: `gates.on_exhausted` says what happens in the end."""


class NumericsError(OpidError):
    """A number that must not be: a non-finite loss or gradient, or engine and learner apart on the same tokens."""


def is_interrupt(error: BaseException) -> bool:
    """Whether `error` is Ctrl-C, or was raised while Ctrl-C was handled."""
    return comes_from(error, KeyboardInterrupt)


def comes_from(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether `error` is of this kind, or was raised while one was handled: a library that cleans up may replace it."""
    open_ends: list[BaseException | None] = [error]
    seen: set[int] = set()  # causes may form a circle
    while open_ends:
        cause = open_ends.pop()
        if isinstance(cause, kind):
            return True
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            open_ends += [cause.__cause__, cause.__context__]
    return False
