"""The checks of the course's exercises: `exercises.check("n04.masker", my_masker)`.

One module a notebook (`n00` to `n10`), one public function an exercise. It takes the learner's answer (a function, or a
value) and returns where the answer is right; where it is not, it says why with `expect`, `close`, `assert` or `NotYet`.
The first line of its docstring is what a right answer is told.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import traceback


class NotYet(Exception):
    """An answer that is not right yet. Jupyter shows its message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"✗ Not yet: {self}"]


def check(name: str, *answer) -> None:
    """Print ✓ for a right answer.

    Args:
        name: module and exercise, e.g. "n04.masker". answer: what the exercise asks for.
    Raises:
        NotYet: the answer is missing or wrong; the message says what to look at.
        ValueError: there is no such exercise.
    """
    judge = find(name)
    try:
        judge(*answer)
    except NotYet as found:
        raise NotYet(str(found)) from None
    except NotImplementedError:
        raise NotYet("there is still `raise NotImplementedError` in it. Write your answer in its place.") from None
    except AssertionError as found:
        raise NotYet(str(found) or "the answer is not right.") from None
    except Exception as error:
        raise NotYet(f"{_where(error)}{type(error).__name__}: {error}") from None
    print(f"✓ {inspect.getdoc(judge).splitlines()[0]}")


def find(name: str):
    """The function that judges an exercise; ValueError where there is none."""
    module, _, function = name.partition(".")
    judges = everything()
    if name not in judges:
        known = ", ".join(sorted(n for n in judges if n.startswith(f"{module}."))) or ", ".join(sorted({n.partition(".")[0] for n in judges}))
        raise ValueError(f'There is no exercise "{name}"; known: {known}.')
    return judges[name]


def everything() -> dict[str, object]:
    """Every exercise: "n04.masker" -> the function that judges it."""
    found = {}
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f".{entry.name}", __name__)
        for name, thing in vars(module).items():
            if inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_"):
                found[f"{entry.name}.{name}"] = thing
    return found


# ---------------------------------------------------------------- what the checks are written with


def expect(condition, message: str) -> None:
    """NotYet with `message` unless `condition` holds (an `assert` that python -O keeps)."""
    if not condition:
        raise NotYet(message)


def close(got, want, what: str, tolerance: float = 1e-4) -> None:
    """NotYet unless a number, array or tensor equals another in shape and, within `tolerance`, in its values.

    Args:
        got: the learner's. want: the package's. what: how the message names it, e.g. "M_2".
    """
    import numpy as np
    import torch

    def array(value):
        return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

    expect(got is not None and got is not Ellipsis, f"{what} is missing: the answer is {got}. Does the function return something?")
    if isinstance(want, torch.Tensor):
        expect(isinstance(got, torch.Tensor), f"{what} should be a tensor, not {type(got).__name__}.")
    got, want = array(got), array(want)
    expect(got.shape == want.shape, f"{what} has the shape {got.shape}; it should be {want.shape}.")
    expect(got.dtype.kind in "biufc", f"{what} should hold numbers, not {got.dtype}.")
    got, want = got.astype(float), want.astype(float)
    expect(np.isfinite(got).all() or not np.isfinite(want).all(), f"{what} holds values that are not a number or infinite.")
    off = np.abs(got - want).max(initial=0)
    expect(off <= tolerance, f"{what} is off by up to {off:.3g}.")


def _where(error: Exception) -> str:
    """The learner's own line in which `error` arose, if it did: those lines lie outside the package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if ("ipykernel" in frame.filename or frame.filename.startswith("<ipython")) and frame.line:
            return f"line {frame.lineno} of your cell (`{frame.line.strip()}`) raises "
    return "your answer raises "
