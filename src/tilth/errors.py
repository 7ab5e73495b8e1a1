"""The one error a user can cause: it says what is wrong, where, and what to do."""

from difflib import get_close_matches


class TilthError(Exception):
    """A user's mistake. The command line prints it without a traceback and exits 2.

    what: one sentence saying what is wrong.
    where: file and line, stage, key or row; empty when there is only one place it can be.
    hint: what to do about it.
    """

    status = 2  # what the command line exits with

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__("\n".join(filter(None, [f"{where}: {what}" if where else what, hint])))

    def __reduce__(self) -> tuple[object, ...]:
        """So that it passes from one process to another, whatever arguments a subclass takes."""
        return _remade, (type(self), self.args, self.__dict__)


def _remade(kind: type[TilthError], args: tuple[str, ...], content: dict[str, object]) -> TilthError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(content)
    return error


def nearest(word: str, known: "list[str] | tuple[str, ...]") -> str:
    """The hint for an unknown word: the closest known one, or the whole list."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return "Known: " + ", ".join(sorted(known)) if known else "Nothing of this kind is known."
