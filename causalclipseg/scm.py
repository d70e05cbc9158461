"""A small structural causal model (SCM): seeing, doing, imagining.

One equation a variable. Its exogenous noise U_i stands for all that the model does not name; different
variables have independent noise (a hidden common cause is a variable, too):

    V_i := f_i(parents of V_i, U_i)                           Pearl, Causality, 2nd ed. 2009, section 7.1

    seeing     P(y | x)         model.sample(n, rng), pick X = x         or exactly,     model.worlds({"X": 1})
    doing      P(y | do(x))     model.do(X=1).sample(n, rng)             where noise     model.worlds(do={"X": 1})
    imagining  P(y_x | x', y')  model.counterfactual(seen, {"X": 1})     is discrete:    model.worlds(seen, {"X": 1})

`Graph` tells what follows from the arrows alone; the functions at the end estimate P(y | do(x)) from data that
were only seen. Values are arrays of n units, (n,) or (n, ...). Sections are those of Pearl's book; a name that
does not exist, or input of a wrong shape, raises ValueError everywhere.
"""
from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from itertools import chain, combinations, product
from typing import Callable, Iterable, Mapping

import numpy as np


class AbductionError(ValueError):
    """An observation does not tell its noise, or cannot have happened."""


class PositivityError(ValueError):
    """P(x | c) = 0 in the data: nothing tells what x does in the stratum c."""


class Graph:
    """A directed acyclic graph, {child: its parents}. x, y and given take one name or several.

    It lists paths one by one, as the definitions do: meant for a dozen variables.
    """

    def __init__(self, parents: Mapping[str, Iterable[str]]):
        self._parents = {name: () for name in chain(*parents.values())} | {child: tuple(names) for child, names in parents.items()}
        self.order = ()  # topological: causes before effects
        while rest := [name for name in self._parents if name not in self.order]:
            free = [name for name in rest if set(self._parents[name]) <= set(self.order)]
            if not free:  # each of the rest has a parent among them, so walking up comes back
                walk = rest[:1]
                while walk[-1] not in walk[:-1]:
                    walk.append(next(p for p in self._parents[walk[-1]] if p in rest))
                raise ValueError("The graph has a cycle: " + " -> ".join(walk[: walk.index(walk[-1]) - 1 if walk[-1] != walk[0] else None : -1]))
            self.order += tuple(free)

    @classmethod
    def parse(cls, text: str) -> Graph:
        """Read "C -> I, T, Y; I, T -> Y"; a name may stand alone."""
        parents: dict[str, list[str]] = {}
        for part in filter(str.strip, text.replace("\n", ";").split(";")):
            causes, *effects = [[name.strip() for name in side.split(",")] for side in part.split("->")]
            if len(effects) > 1 or not all(name.isidentifier() for name in chain(causes, *effects)):
                raise ValueError(f"Cannot read {part.strip()!r}; write 'C -> X, Y; X -> Y'.")
            for name in chain(causes, *effects):
                parents.setdefault(name, []).extend(causes if [name] and effects and name in effects[0] else [])
        return cls(parents)
