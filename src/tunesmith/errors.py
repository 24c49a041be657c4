"""What a user sees when something is wrong: one message that says what, where, why, and how to mend it."""

from __future__ import annotations

from functools import partial

DONE, BUG, REFUSED, DIVERGED, MEMORY, STORAGE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 75


class Refusal(Exception):
    """A condition the user can mend. The command line prints it without a traceback and leaves with `code`.

    what   the fault itself, with the offending value
    where  `file:line:column`, or a recipe key such as `method.rank`
    why    the reason, when it is not plain from `what`
    fix    what to do, as something that can be typed
    """

    code = REFUSED

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = ""):
        self.what, self.where, self.why, self.fix = what, where, why, fix
        super().__init__(what)

    def __reduce__(self):
        """Goes whole from one process to another."""
        return partial(type(self), where=self.where, why=self.why, fix=self.fix), (self.what,)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return "\n".join([head, *(f"  why: {self.why}" for _ in range(bool(self.why))), *(f"  fix: {self.fix}" for _ in range(bool(self.fix)))])


def not_installed(what: str, extra: str, *, where: str = "", why: str = "") -> Refusal:
    """For what a plain installation leaves out."""
    return Refusal(what, where=where, why=why, fix=f'pip install "tunesmith[{extra}]"')


class Diverged(Refusal):
    """The loss or a gradient is no longer a number. Raised before the update, so the weights are still good."""

    code = DIVERGED


class OutOfMemory(Refusal):
    code = MEMORY


class Storage(Refusal):
    """A checkpoint or an artifact could not be written, or is damaged."""

    code = STORAGE


class Interrupted(Refusal):
    """Stopped by a signal after saving. The same command continues."""

    code = INTERRUPTED
