"""Notebook 03: backdoor sets, the rule of open paths, do() by hand, and boxes of mystery X-rays.

A box holds X-rays of one of two worlds. A is the side of the scanner's sensor, Y the lung that was outlined (0 left,
1 right); every patient has a lesion in one lung and a mimic, an opacity that is no lesion, in the other.

    "ward"    W -> A, W -> L -> Y      A and L are coupled by the ward; the outline is the lesion's
    "device"  A -> Y <- L              A and L are not coupled; but the annotator often outlines what lies on the sensor's side

P(A, Y) is the same in both, to the last digit, so no number of such rows tells them apart. P(Y | do(A)) does.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from ..phantoms import World
from ..scm import SCM, Graph, Variable, backdoor_adjustment, bernoulli, our_graph, paper_graph

QUESTIONS = {  #: name -> (graph, cause, effect)
    "paper, I on Y": (paper_graph(), "I", "Y"),
    "ours, A on Y": (our_graph(), "A", "Y"),
    "ours, L on I": (our_graph(), "L", "I"),
}
KINDS = ("ward", "device")
FLIP = 0.1  #: how often sensor and lesion do not follow the ward
COUPLING = (1 - 2 * FLIP) ** 2  #: correlation of A and L in "ward"; in "device", how often the annotator is led
SIZE = 160  #: pixels a side of a box's pictures


class Box:
    """A pile of X-rays and the hospital they come from; the rules are inside. Every call brings new patients.

    `see(n)` looks into the archive. `do(n, A=1)` has n patients taken with the sensor on the side that you say.
    """

    def __init__(self, number: int):
        self.number = number
        self._rng = np.random.default_rng((2024, number))
        self._kind = KINDS[int(self._rng.integers(2))]

    def see(self, n: int, *, wards: bool = False) -> dict[str, np.ndarray]:
        """A and Y of n patients of the archive, {"A": (n,), "Y": (n,)}; with the list of wards also W."""
        return self._asked(_world(self._kind), n, ("W", "A", "Y") if wards else ("A", "Y"))

    def do(self, n: int, *, A: int) -> dict[str, np.ndarray]:
        """The same of n new patients, all taken with the sensor on side A."""
        return self._asked(_world(self._kind).do(A=A), n)

    def pictures(self, n: int, *, A: int | None = None) -> list[dict]:
        """n new patients as pictures, {"image": (H, W) uint8, "outline": (H, W) bool, "A", "Y"}; A: as in `do`, None: as in `see`."""
        world = World(coupling=COUPLING if self._kind == "ward" else 0.0, size=SIZE)
        rows = []
        for p in world.stream(n, seed=int(self._rng.integers(2**31)), do={} if A is None else {"A": A}):
            a, side = p.variables["A"], p.variables["L"]
            led = self._kind == "device" and self._rng.random() < COUPLING
            y = a if led else side
            rows.append({"image": p.image, "outline": p.mask if y == side else p.mimic, "A": a, "Y": y})
        return rows

    def _asked(self, model: SCM, n: int, names: tuple[str, ...] = ("A", "Y")) -> dict[str, np.ndarray]:
        values = model.sample(n, self._rng)
        return {name: values[name] for name in names}


def _world(kind: str) -> SCM:
    def flip(x, u):
        return x ^ u

    if kind == "ward":
        return SCM({"W": Variable((), lambda u: u, bernoulli(0.5)), "A": Variable("W", flip, bernoulli(FLIP)),
                    "L": Variable("W", flip, bernoulli(FLIP)), "Y": Variable("L", lambda side: side)})  # fmt: skip
    return SCM({"W": Variable((), lambda u: u, bernoulli(0.5)), "A": Variable((), lambda u: u, bernoulli(0.5)),
                "L": Variable((), lambda u: u, bernoulli(0.5)),
                "Y": Variable(("A", "L"), lambda a, side, led: np.where(led, a, side), bernoulli(COUPLING))})  # fmt: skip


def sets(answer) -> None:
    """Each of these sets closes every backdoor path, and none is larger than it must be.

    answer() -> {question: set of names}.
    """
    said = answer()
    assert isinstance(said, dict), f"Return a dictionary with the keys {', '.join(map(repr, QUESTIONS))}."
    for question, (graph, x, y) in QUESTIONS.items():
        assert question in said, f"The question {question!r} has no answer yet."
        given = said[question]
        assert isinstance(given, (set, frozenset)), f"{question}: write a set, such as set() or {{'T'}}, not {given!r}."
        known = set(graph.order)
        assert given <= known, f"{question}: {min(map(str, given - known))!r} is no variable of this graph; it has {', '.join(sorted(known))}."
        assert not given & {x, y}, f"{question}: hold neither {x} nor {y}; they are what the question is about."
        why = graph.why_no_backdoor_set(x, y, given)
        assert not why, f"{question}: holding {given or 'nothing'} does not do it. {why}"
        best = graph.backdoor_sets(x, y)
        assert len(given) == min(map(len, best)), f"{question}: {given} works, but a smaller set does, too."


def is_open(answer) -> None:
    """Your rule agrees with the package on every path of six graphs.

    answer(graph, path, given) -> bool, as `Graph.is_open`.
    """
    rng = np.random.default_rng(0)
    for graph in (paper_graph(), our_graph(), *(_random_graph(rng) for _ in range(4))):
        names = sorted(graph.order)
        for x, y in combinations(names, 2):
            rest = [name for name in names if name not in (x, y)]
            for path in graph.paths(x, y):
                for size in range(3):
                    for given in combinations(rest, size):
                        right, said = graph.is_open(path, given), answer(graph, path, set(given))
                        assert isinstance(said, (bool, np.bool_)), f"Return True or False, not {said!r}."
                        held = ", ".join(given) or "nothing"
                        assert said == right, (
                            f"{graph.path_text(path)}, holding {held}: you say {_open(said)}, it is {_open(right)}. "
                            f"The graph: {graph.to_text().replace(chr(10), '; ')}."
                        )


def _open(value: bool) -> str:
    return "open" if value else "closed"


def _random_graph(rng) -> Graph:
    names = "PQRST"
    return Graph({child: [names[j] for j in range(i) if rng.random() < 0.5] for i, child in enumerate(names)})


def do(answer) -> None:
    """You compute P(Y = 1 | do(A)) from data that were only seen.

    answer(data, a) -> probability, from columns W, A, Y of 0 and 1.
    """
    for seed in range(4):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.2, 0.8, 6)
        w = (rng.random(900) < p[0]).astype(int)
        a = (rng.random(900) < np.where(w, p[1], 1 - p[1])).astype(int)
        y = (rng.random(900) < p[2:].reshape(2, 2)[a, w]).astype(int)
        data = {"W": w, "A": a, "Y": y}
        for value in (0, 1):
            right = backdoor_adjustment(data, {"A": value}, "Y", "W")[1]
            said, seen = answer(data, value), y[a == value].mean()
            assert np.ndim(said) == 0 and said is not None, "Return one number, the probability of Y = 1."
            assert abs(said - seen) > 1e-9 or abs(right - seen) < 1e-9, (
                f"You return {said:.3f}: the share of Y = 1 among the pictures with A = {value}. That is seeing, P(Y | A). "
                "Take the share within each ward, and weigh the wards as they are in the whole data."
            )
            assert abs(said - right) < 1e-9, f"For A = {value} you return {said:.4f}; Σ_w P(Y=1 | A, w) P(w) is {right:.4f}."


def which_world(answer) -> None:
    """You told the worlds apart by doing.

    answer(box) -> "ward" or "device"; twenty boxes, at most one mistake.
    """
    boxes = [Box(number) for number in range(100, 120)]
    said = [answer(box) for box in boxes]
    assert set(said) <= set(KINDS), f'Answer "ward" or "device", not {next(s for s in said if s not in KINDS)!r}.'
    right = sum(s == box._kind for s, box in zip(said, boxes))
    if right < len(boxes) - 1:
        hint = (
            "Nearly all are wrong: are the two names exchanged?" if right < 3
            else "A coin gets about 10. Seeing is the same in both worlds: use box.do, a few hundred patients a box, and a threshold between what the two worlds give." if right < 17
            else "Ask more patients of each box."
        )  # fmt: skip
        raise AssertionError(f"{right} of {len(boxes)} boxes named rightly. {hint}")
