"""A small structural causal model (SCM): seeing, doing, imagining (Pearl, Causality, 2nd edition 2009).

One equation a variable. Its exogenous noise U_i stands for all that the model does not name; the noise of
different variables is independent, so a hidden common cause is a variable, too:

    V_i := f_i(parents of V_i, U_i)                                             (section 7.1)

               question         with any noise                        exactly, with discrete noise
    seeing     P(y | x)         model.sample(n, rng), pick X = x      model.worlds({"X": 1})
    doing      P(y | do(x))     model.do(X=1).sample(n, rng)          model.worlds(do={"X": 1})
    imagining  P(y_x | x', y')  model.counterfactual(seen, {"X": 1})  model.worlds(seen, {"X": 1})

`Graph` tells what follows from the arrows alone; the functions at the end estimate P(y | do(x)) from data that
were only seen. Values are arrays of n units, (n,) or (n, ...); `rng` is a numpy Generator or a seed. What cannot
be answered raises ValueError and says why, as do unknown names, overlapping sets and wrong shapes.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations, product

import numpy as np


class Graph:
    """A directed acyclic graph, {child: its parents}, of a dozen variables at most (it lists paths one by one, as the
    definitions do). A parent that is no key is a root; x, y and given are one name or several. Ancestors and descendants
    are those along one or more arrows."""

    def __init__(self, parents: Mapping[str, Iterable[str]]):
        parents = {name: _names(names) for name, names in parents.items()}
        self._parents = dict.fromkeys(chain(*parents.values()), ()) | parents
        self.order: tuple[str, ...] = ()  # topological: causes before effects
        while rest := [name for name in self._parents if name not in self.order]:
            free = [name for name in rest if set(self._parents[name]) <= set(self.order)]
            if not free:  # each of the rest has a parent among the rest, so walking upwards must come back
                walk = rest[:1]
                while walk[-1] not in walk[:-1]:
                    walk.append(next(parent for parent in self._parents[walk[-1]] if parent in rest))
                raise ValueError("The graph has a cycle: " + " -> ".join(walk[walk.index(walk[-1]) :][::-1]) + ".")
            self.order += tuple(free)

    def known(self, names: str | Iterable[str]) -> tuple[str, ...]:
        """One name or several as a tuple; ValueError where a variable is not in the graph."""
        names = _names(names)
        if unknown := [name for name in names if name not in self._parents]:
            raise ValueError(f"There is no variable {unknown[0]!r}; the variables are {', '.join(self._parents)}.")
        return names

    def parents(self, x) -> set[str]:
        """Direct causes of x."""
        return set().union(*(self._parents[name] for name in self.known(x)))

    def children(self, x) -> set[str]:
        """Direct effects of x."""
        x = set(self.known(x))
        return {name for name in self._parents if x & set(self._parents[name])}

    def ancestors(self, x) -> set[str]:
        """All causes of x, direct or not; x is none of them."""
        above = self.parents(x)
        return above | self.ancestors(above) if above else above

    def descendants(self, x) -> set[str]:
        """All effects of x, direct or not; x is none of them."""
        below = self.children(x)
        return below | self.descendants(below) if below else below

    def paths(self, x: str, y: str, avoid: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        """Every path from x to y, along or against its arrows, that visits no variable twice and none to avoid."""
        if self.known(x) == self.known(y):
            yield (x,)
        else:
            for name in sorted((self.parents(x) | self.children(x)) - {*avoid}):
                yield from ((x, *rest) for rest in self.paths(name, y, (*avoid, x)))

    def is_open(self, path: tuple[str, ...], given=()) -> bool:
        """Whether a path carries association while `given` is held (Definition 1.2.3).

        Holding m closes a chain a -> m -> b and a fork a <- m -> b. A collider a -> m <- b is closed until m,
        or something that m causes, is held: then the two causes of one effect explain each other away.
        """
        given = set(self.known(given))
        for before, middle, after in zip(path, path[1:], path[2:]):
            if {before, after} <= self.parents(middle):
                if not ({middle} | self.descendants(middle)) & given:
                    return False
            elif middle in given:
                return False
        return True

    def d_separated(self, x, y, given=()) -> bool:
        """Whether `given` closes every path between x and y, which makes them independent given it (Theorem 1.2.4)."""
        x, y, given = self._disjoint(x, y, given)
        return not any(self.is_open(path, given) for a, b in product(x, y) for path in self.paths(a, b))

    def why_no_backdoor_set(self, x, y, given=()) -> str:
        """What keeps `given` from being a backdoor set for the effect of x on y (Definition 3.3.1); "" if nothing does.

        It may hold no descendant of x and must close every backdoor path, one with an arrow into x. For several x: every
        path left without the arrows out of all of them (section 3.4, rules 2 and 3 of the do-calculus).
        """
        x, y, given = self._disjoint(x, y, given)
        if below := self.descendants(x) & set(given):
            return f"{min(below)} is a descendant of {', '.join(x)}: holding it hides part of the effect or opens a collider."
        backdoor = Graph({name: [p for p in parents if p not in x] for name, parents in self._parents.items()})
        for path in chain(*(backdoor.paths(a, b) for a, b in product(x, y))):
            if backdoor.is_open(path, given):
                return self.path_text(path) + " is open."
        return ""

    def is_backdoor_set(self, x, y, given=()) -> bool:
        return not self.why_no_backdoor_set(x, y, given)

    def backdoor_sets(self, x, y, observed: Iterable[str] | None = None) -> list[set[str]]:
        """The minimal backdoor sets (no proper subset is one) among the observed variables, small ones first."""
        found: list[set[str]] = []
        allowed = set(self.known(self.order if observed is None else observed))
        candidates = sorted(allowed - {*_names(x), *_names(y)} - self.descendants(x))
        for given in chain(*(combinations(candidates, size) for size in range(len(candidates) + 1))):
            if not any(smaller < set(given) for smaller in found) and self.is_backdoor_set(x, y, given):
                found.append(set(given))
        return found

    def _disjoint(self, *sets) -> list[tuple[str, ...]]:
        sets = [self.known(names) for names in sets]
        if not sets[0] or not sets[1] or len(set(chain(*sets))) < sum(map(len, sets)):
            raise ValueError("x = {}, y = {} and given = {} must not overlap, and x and y must not be empty.".format(*sets))
        return sets

    def path_text(self, path: tuple[str, ...]) -> str:
        """("A", "W", "L") -> "A <- W -> L"."""
        return path[0] + "".join((" -> " if a in self.parents(b) else " <- ") + b for a, b in zip(path, path[1:]))

    def to_text(self) -> str:
        """A line for each cause, "C -> I, T, Y", and for each variable without arrows."""
        effects = {name: [child for child in self.order if name in self._parents[child]] for name in self.order}
        return "\n".join(" -> ".join(filter(None, [name, ", ".join(below)]))
                         for name, below in effects.items() if below or not self._parents[name])

    def to_dot(self) -> str:
        arrows = [f'"{parent}" -> "{name}";' for name in self.order for parent in self._parents[name]]
        return "\n".join(["digraph {", *(f'"{name}";' for name in self.order), *arrows, "}"])


def paper_graph() -> Graph:
    """The paper's Fig. 2: conditions C confound image I and sentence T with mask Y. It names no arrow between I and T."""
    return Graph({"I": "C", "T": "C", "Y": ("C", "I", "T")})


def our_graph() -> Graph:
    """Ward W, acquisition A, lesion L, image I, sentence T; Y is the reading of L. W joins A and Y; A does not cause Y."""
    return Graph({"A": "W", "L": "W", "I": ("A", "L"), "T": ("L", "W"), "Y": "L"})


class Discrete:
    """Noise of finitely many values, {value: probability}, which `SCM.worlds` can list."""

    def __init__(self, probabilities: Mapping):
        self.values = np.array([value for value, p in probabilities.items() if p])
        self.probabilities = np.array([p for p in probabilities.values() if p], dtype=float)
        if (self.probabilities < 0).any() or abs(self.probabilities.sum() - 1) > 1e-9:
            raise ValueError(f"Probabilities must not be negative and must sum to 1, unlike {probabilities}.")

    def __call__(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.choice(self.values, n, p=self.probabilities)


def bernoulli(p: float) -> Discrete:
    return Discrete({0: 1 - p, 1: p})


def normal(mean: float = 0.0, std: float = 1.0) -> Callable:
    return lambda rng, n: rng.normal(mean, std, n)


@dataclass(frozen=True)
class Variable:
    """One equation. Y := 2 X + U is Variable(("X",), lambda x, u: 2 * x + u, normal(), noise_of=lambda y, x: y - 2 * x)."""

    parents: str | tuple[str, ...]
    f: Callable  # f(*parents, u), or f(*parents) without noise; arrays (n, ...) in and out
    noise: Callable | None = None  # draws U: (rng, n) -> (n, ...)
    noise_of: Callable | None = None  # the inverse of f, if it has one: noise_of(value, *parents) -> u


@dataclass(frozen=True)
class Worlds:
    """One world for each value of the noise: the values of every variable, (k, ...), and the worlds' probabilities, (k,)."""

    values: dict[str, np.ndarray]
    weights: np.ndarray

    def probability(self, **event) -> float:
        return float(self.weights @ np.all([_same(self.values[name], [value]) for name, value in event.items()], axis=0))

    def mean(self, name: str) -> float:
        return float(self.weights @ self.values[name])


class SCM:
    """A structural causal model, {name: Variable} (Definition 7.1.1). Nothing changes it: `do` returns another one."""

    def __init__(self, variables: Mapping[str, Variable]):
        self.variables = dict(variables)
        self.graph = Graph({name: variable.parents for name, variable in self.variables.items()})
        if undefined := [name for name in self.graph.order if name not in self.variables]:
            raise ValueError(f"{undefined[0]} is a parent of {', '.join(sorted(self.graph.children(undefined[0])))} but has no equation.")

    def to_text(self) -> str:
        """The equations, causes first, a line each: "Y := f(X, U_Y)"."""
        return "\n".join(map(self._equation, self.graph.order))

    def _equation(self, name: str) -> str:
        return f"{name} := f({', '.join([*_names(self.variables[name].parents), *[f'U_{name}'] * bool(self.variables[name].noise)])})"

    def _evaluate(self, name: str, values: Mapping, noise: Mapping, n: int) -> np.ndarray:
        variable = self.variables[name]
        try:
            u = [_rows(noise[name], n)] if variable.noise else []
            return _rows(variable.f(*(values[parent] for parent in _names(variable.parents)), *u), n)
        except Exception as error:
            error.add_note(f"This happened in {self._equation(name)}.")
            raise

    def sample_noise(self, n: int, rng) -> dict[str, np.ndarray]:
        """n draws of every U_i, {name: (n, ...)}, to be kept for `solve` and `counterfactual`."""
        # Each variable has a stream of its own, needed or not: a model and its `do` meet the same units for the same seed.
        streams = np.random.default_rng(rng).spawn(len(self.variables))
        return {name: variable.noise(stream, n) for (name, variable), stream in zip(self.variables.items(), streams) if variable.noise}

    def solve(self, noise: Mapping, n: int | None = None) -> dict[str, np.ndarray]:
        """V(u): every variable, {name: (n, ...)}. `noise` may hold more than is used; n is its length, if it has one."""
        n = max((len(noise[name]) for name in self.graph.known(noise)), default=1) if n is None else n
        if missing := [name for name in self.variables if self.variables[name].noise and name not in noise]:
            raise ValueError(f"The noise of {', '.join(missing)} is missing.")
        values: dict[str, np.ndarray] = {}
        for name in self.graph.order:
            values[name] = self._evaluate(name, values, noise, n)
        return values

    def sample(self, n: int, rng) -> dict[str, np.ndarray]:
        """n units from P(V): {name: (n, ...)}."""
        return self.solve(self.sample_noise(n, rng), n)

    def do(self, interventions: Mapping | None = None, /, **more) -> SCM:
        """The model with another equation for X and all others kept (Definition 7.1.2): do(X=1) sets one value, do(X=array)
        one for each unit, (n, ...), and do(X=Variable(...)) a new mechanism."""
        new = {**(interventions or {}), **more}
        for name in self.graph.known(new):
            if callable(new[name]):
                raise ValueError(f"do({name}=...) got a function; say what it listens to: Variable(parents, function).")
        return SCM(self.variables | {name: v if isinstance(v, Variable) else Variable((), lambda v=v: v) for name, v in new.items()})

    def abduct(self, observation: Mapping, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """The noise that made an observation, {name: (n, ...)}, by the declared `noise_of`, for `names` or for all.
        ValueError: no `noise_of`, a wrong one, a parent not observed, or values that cannot have happened."""
        names = self.graph.known(self.graph.order if names is None else names)
        seen, n = self._observed(observation, needed={*names} | self.graph.parents(names))
        found: dict[str, np.ndarray] = {}
        for name in names:
            variable, parents = self.variables[name], _names(self.variables[name].parents)
            if variable.noise and not variable.noise_of:
                raise ValueError(f"{self._equation(name)} declares no inverse (`noise_of`), so its noise is not known. "
                                 "Keep the noise of sampling, or ask `worlds` for a distribution if all noise is discrete.")
            if variable.noise:
                # An inverse is believed only if it gives back fresh noise at each unit's parents: u² has a root, but no inverse.
                times = 1 + 32 // max(n, 1)
                again = {parent: np.repeat(seen[parent], times, axis=0) for parent in parents}
                trial = {name: variable.noise(np.random.default_rng(0), n * times)}
                value = self._evaluate(name, again, trial, n * times)
                if not _same(variable.noise_of(value, *again.values()), trial[name]).all():
                    raise ValueError(f"The noise_of of {name} is not the inverse of its mechanism.")
                found[name] = _rows(variable.noise_of(seen[name], *(seen[parent] for parent in parents)), n)
            if not _same(self._evaluate(name, seen, found, n), seen[name]).all():
                raise ValueError(f"No noise leads from the parents observed to the {name} observed.")
        return found

    def counterfactual(self, observation: Mapping | None, do: Mapping, *, noise: Mapping | None = None) -> dict[str, np.ndarray]:
        """The same units, had do happened: abduction, action, prediction (Theorem 7.1.7). {name: (n, ...)}.

        Args:
            observation: every variable, {name: (n, ...) or one value}; `abduct` finds the noise behind it, or says why not.
            noise: instead (observation = None), what `sample_noise` drew for these units.
            do: as in `do`; a new mechanism must have no noise, or the old one (`model.variables[name].noise`).
        """
        acted = self._do_on_old_noise(do)
        if (observation is None) == (noise is None):
            raise ValueError("Give either the observation or the noise behind it.")
        if noise is not None:
            return acted.solve(noise)
        seen, n = self._observed(observation, needed=self.variables)
        affected = {*do} | acted.graph.descendants(do)  # only these need their noise; the rest stays as observed
        abducted = self.abduct(seen, [name for name in affected if name not in do or acted.variables[name].noise])
        return acted.do({name: value for name, value in seen.items() if name not in affected}).solve(abducted, n)

    def worlds(self, evidence: Mapping | None = None, do: Mapping | None = None, *, limit: int = 1_000_000) -> Worlds:
        """Exact probabilities by listing all values u of the noise: P(u | evidence), and V(u) under do (Theorem 7.1.7).

        Args:
            evidence: about one unit, {name: value}, any part of the variables. do: as in `counterfactual`.
        Raises:
            ValueError: some noise is not `Discrete`, the evidence is impossible, or there are more worlds than `limit`.
        """
        acted = self._do_on_old_noise(do or {})
        seen, n = self._observed(evidence or {})
        noises = {name: variable.noise for name, variable in self.variables.items() if variable.noise}
        if endless := [name for name, noise in noises.items() if not isinstance(noise, Discrete)]:
            raise ValueError(f"The noise of {', '.join(endless)} is not `Discrete`, so its values cannot be listed.")
        shape = [len(noise.values) for noise in noises.values()]
        size = int(np.prod(shape, dtype=float))
        if n > 1 or size > limit:
            raise ValueError(f"`worlds` takes evidence about 1 unit, not {n}, and lists at most {limit:,} worlds, not {size:,}.")
        index = dict(zip(noises, np.indices(shape).reshape(len(shape), size)))  # which value of each noise in each world
        u = {name: noise.values[index[name]] for name, noise in noises.items()}
        world = self.solve(u, size)
        prior = np.prod([np.ones(size), *(noise.probabilities[index[name]] for name, noise in noises.items())], axis=0)
        weights = prior * np.prod([np.ones(size), *(_same(world[name], value) for name, value in seen.items())], axis=0)
        if not weights.any():
            raise ValueError("The evidence is impossible in this model: no noise leads to it.")
        return Worlds(acted.solve(u, size), weights / weights.sum())

    def _do_on_old_noise(self, do: Mapping) -> SCM:
        acted = self.do(do)
        for name in do:
            if acted.variables[name].noise not in (None, self.variables[name].noise):
                raise ValueError(f"The new mechanism of {name} brings noise that the observed world did not have: use the old, or none.")
        return acted

    def _observed(self, observation: Mapping, needed=()) -> tuple[dict[str, np.ndarray], int]:
        n = max((len(np.atleast_1d(observation[name])) for name in self.graph.known(observation)), default=1)
        if missing := sorted(set(needed) - {*observation}):
            raise ValueError(f"{', '.join(missing)} not observed: if all noise is discrete, ask `worlds`, else keep the noise.")
        return {name: _rows(value, n) for name, value in observation.items()}, n


def adjustment_weights(data: Mapping, do: Mapping, given=()) -> np.ndarray:
    """(n,) weights that let the units with X = x stand for all: w_i = P(c_i) / n(x, c_i) where x_i = x, else 0.
    data is {name: (n,)}; do {"X": x}, or several; given the discrete variables C; n(x, c) counts units."""
    treated = np.all([_column(data, name) == value for name, value in do.items()], axis=0)
    strata = list(zip(*(_column(data, name).tolist() for name in _names(given)))) or [()] * len(treated)
    size, shown = Counter(strata), Counter(c for c, x in zip(strata, treated) if x)
    if empty := [c for c in size if c not in shown]:
        where = ", ".join(f"{name} = {value}" for name, value in [*do.items(), *zip(_names(given), empty[0])])
        raise ValueError(f"No unit has {where}: the data do not tell what {', '.join(do)} does there (positivity).")
    return np.array([size[c] / len(strata) / shown[c] if x else 0.0 for c, x in zip(strata, treated)])


def backdoor_adjustment(data: Mapping, do: Mapping, y: str, given=(), *, graph: Graph | None = None) -> dict:
    """P(y | do(x)) = Σ_c P(y | x, c) P(c), with the frequencies in the data (Theorem 3.3.2): {value of y: probability}.
    Arguments as in `adjustment_weights`. ValueError: some c has no unit with x, or C is no backdoor set in a `graph` given."""
    _refuse_bad_set(graph, do, y, given)
    values, index = np.unique(_column(data, y), return_inverse=True)
    return dict(zip(values.tolist(), np.bincount(index, adjustment_weights(data, do, given)).tolist()))


def average_effect(data: Mapping, x: str, y: str, given=(), *, values=(1, 0), graph: Graph | None = None) -> float:
    """E[Y | do(x = values[0])] - E[Y | do(x = values[1])] for numeric y; otherwise as `backdoor_adjustment`."""
    _refuse_bad_set(graph, x, y, given)
    first, second = (adjustment_weights(data, {x: value}, given) @ _column(data, y) for value in values)
    return float(first - second)


def linear_effect(data: Mapping, x: str, y: str, given=(), *, graph: Graph | None = None) -> float:
    """dE[Y | do(x)]/dx where all is linear: the slope of x in the regression of y on x and C (section 5.3)."""
    _refuse_bad_set(graph, x, y, given)
    design = np.column_stack([_column(data, name) for name in (x, *_names(given))] + [np.ones(len(data[x]))])
    slopes, _, rank, _ = np.linalg.lstsq(design, _column(data, y), rcond=None)
    if rank < design.shape[1]:
        raise ValueError(f"{', '.join([x, *_names(given)])} and a constant are linearly dependent in the data.")
    return float(slopes[0])


def _refuse_bad_set(graph: Graph | None, x, y, given) -> None:
    if graph and (why := graph.why_no_backdoor_set(x, y, given)):
        raise ValueError(f"{{{', '.join(_names(given))}}} is no backdoor set: {why}")


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _column(data: Mapping, name: str) -> np.ndarray:
    shape = np.shape(next(iter(data.values()), ()))
    if np.shape(data.get(name, ())) != shape or len(shape) != 1 or 0 in shape:
        raise ValueError(f"Not a column (n,) in the data, n > 0: {name}. Shapes: { {k: np.shape(v) for k, v in data.items()} }.")
    return np.asarray(data[name])


def _rows(value, n: int) -> np.ndarray:
    """A value for each of n units, (n, ...); a scalar or a single row holds for all."""
    value = np.atleast_1d(value)
    if len(value) not in (1, n):
        raise ValueError(f"There are {len(value)} values for {n} units.")
    return value if len(value) == n else np.repeat(value, n, axis=0)


def _same(a, b) -> np.ndarray:
    """(n,) bool, which rows agree; numbers up to rounding."""
    a, b = np.asarray(a), np.asarray(b)
    equal = np.isclose(a, b) if a.dtype.kind in "biufc" and b.dtype.kind in "biufc" else np.asarray(a == b)
    return equal.reshape(len(equal), -1).all(axis=1)
