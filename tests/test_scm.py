"""The structural causal model against closed forms, brute-force oracles and DoWhy."""
from fractions import Fraction
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalclipseg.scm import (SCM, Discrete, Graph, Variable, adjustment_weights, average_effect, backdoor_adjustment, bernoulli,
                               linear_effect, normal, our_graph, paper_graph)


def subsets(names):
    return chain(*(combinations(sorted(names), size) for size in range(len(names) + 1)))


@st.composite
def dags(draw, smallest=2, largest=6):
    """{child: [parents]} of a random DAG; the letters' order says nothing about the arrows' direction."""
    names = draw(st.permutations("ABCDEF"[: draw(st.integers(smallest, largest))]))
    return {child: [p for p in names[:i] if draw(st.booleans())] for i, child in enumerate(names)}


def linear_gaussian(parents, seed):
    """V := Σ weight · parent + U with random weights, away from 0; also the weights, {(parent, child): weight}."""
    rng = np.random.default_rng(seed)
    weights = {(p, child): rng.uniform(0.4, 1.5) * rng.choice([-1, 1]) for child in parents for p in parents[child]}

    def variable(child):
        w = [weights[p, child] for p in parents[child]]
        return Variable(
            tuple(parents[child]),
            lambda *values: sum(a * v for a, v in zip(w, values)) + values[-1],
            normal(0, rng.uniform(0.5, 2)),
            noise_of=lambda value, *values: value - sum(a * v for a, v in zip(w, values)),
        )

    return SCM({child: variable(child) for child in parents}), weights


def total_effects(model):
    """(k, k) matrix: column j is how every variable answers to a unit of noise j; exact, by solving for the basis."""
    names = list(model.variables)
    values = model.solve(dict(zip(names, np.eye(len(names)))))
    return names, np.stack([values[name] for name in names])


# ---------------------------------------------------------------------------------------------- the graph


def test_both_graphs_are_the_ones_of_the_paper_and_of_the_phantoms():
    paper, ours = paper_graph(), our_graph()
    assert paper.to_text() == "C -> I, T, Y\nI -> Y\nT -> Y"
    assert ours.to_text() == "W -> A, L, T\nA -> I\nL -> I, T, Y"
    assert ours.parents("I") == {"A", "L"} and ours.children("W") == {"A", "L", "T"} and ours.parents(("I", "Y")) == {"A", "L"}
    assert ours.ancestors("I") == {"W", "A", "L"} and ours.descendants("W") == {"A", "L", "I", "T", "Y"}
    assert ours.descendants("A") == {"I"} and ours.ancestors("W") == set() == ours.descendants("Y")
    for graph in (paper, ours):
        assert all(graph.order.index(p) < graph.order.index(child) for child in graph.order for p in graph.parents(child))
    assert ours.to_dot().count("->") == 7 and '"A" -> "I";' in ours.to_dot() and '"W";' in ours.to_dot()
    assert Graph({"X": (), "Y": "Z"}).to_text() == "Z -> Y\nX"


@pytest.mark.parametrize(("parents", "cycle"), [
    ({"A": "B", "B": "C", "C": "A", "D": "A", "A0": "D"}, "A -> C -> B -> A"),
    ({"A": "A"}, "A -> A"),
    ({"A": (), "B": ("A", "C"), "C": ("A", "B")}, "B -> C -> B"),
])
def test_a_cycle_is_refused_by_name(parents, cycle):
    with pytest.raises(ValueError, match="has a cycle: (.*)[.]") as error:
        Graph(parents)
    named = str(error.value).removeprefix("The graph has a cycle: ").removesuffix(".").split(" -> ")
    assert named[0] == named[-1] and set(named) == set(cycle.split(" -> ")) and len(named) == len(cycle.split(" -> "))
    assert all(cause in parents[effect] for cause, effect in zip(named, named[1:])), "every arrow named exists"


def test_a_misspelt_name_is_refused_with_the_list_of_names():
    graph = our_graph()
    for ask in (lambda: graph.parents("Q"), lambda: graph.descendants(("A", "Q")), lambda: graph.d_separated("A", "Y", "Q"),
                lambda: list(graph.paths("A", "Q")), lambda: graph.is_backdoor_set("A", "Y", ["Q"]), lambda: graph.backdoor_sets("Q", "Y"),
                lambda: graph.backdoor_sets("A", "Y", observed=["Q"])):  # fmt: skip
        with pytest.raises(ValueError, match="no variable 'Q'; the variables are .*W"):
            ask()
    for x, y, held in (("A", "A", ()), ("A", "Y", "A"), (("A", "L"), "Y", "L"), ((), "Y", ())):
        with pytest.raises(ValueError, match="must not overlap"):
            graph.d_separated(x, y, held)


@pytest.mark.parametrize(("parents", "closed_by", "open_by"), [
    ({"M": "X", "Y": "M"}, ["M"], [""]),                                      # chain
    ({"X": "M", "Y": "M"}, ["M"], [""]),                                      # fork
    ({"M": ("X", "Y"), "D": "M"}, [""], ["M", "D", "MD"]),                    # collider, and what it causes
    ({"X": "U", "M": ("U", "V"), "Y": "V"}, ["", "U", "V", "MU", "MV"], ["M"]),  # M-bias
    ({"Y": "X"}, [], [""]),
])
def test_d_separation_on_the_textbook_graphs(parents, closed_by, open_by):
    graph = Graph(parents)
    assert all(graph.d_separated("X", "Y", list(held)) for held in closed_by)
    assert not any(graph.d_separated("X", "Y", list(held)) for held in open_by)


def moral_oracle(parents, x, y, held):
    """Lauritzen: x and y are separated in the moral graph of the ancestors of all three once `held` is cut out."""
    kept = {*x, *y, *held}
    while more := {p for name in kept for p in parents[name]} - kept:
        kept |= more
    edges = {frozenset((p, child)) for child in kept for p in parents[child]}
    edges |= {frozenset(pair) for child in kept for pair in combinations(parents[child], 2)}
    reached = set(x)
    while more := {name for edge in edges if edge & reached for name in edge} - reached - set(held):
        reached |= more
    return not reached & set(y)


@given(dags(), st.data())
@settings(max_examples=100, deadline=None)
def test_d_separation_equals_the_moralised_ancestral_graph(parents, data):
    names, graph = sorted(parents), Graph(parents)
    roles = data.draw(st.lists(st.sampled_from("xyzo"), min_size=len(names), max_size=len(names)).filter(lambda r: "x" in r and "y" in r))
    x, y, held = ([n for n, r in zip(names, roles) if r == role] for role in "xyz")
    assert graph.d_separated(x, y, held) == moral_oracle(parents, x, y, held) == graph.d_separated(y, x, held)


@given(dags(largest=5), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_d_separated_variables_are_uncorrelated_in_a_linear_model(parents, seed):
    model, _ = linear_gaussian(parents, seed)
    names, response = total_effects(model)
    covariance = response @ response.T
    for x, y in combinations(names, 2):
        for held in subsets(set(names) - {x, y}):
            i = [names.index(name) for name in (x, y, *held)]
            precision = np.linalg.inv(covariance[np.ix_(i, i)])
            partial = abs(precision[0, 1]) / np.sqrt(precision[0, 0] * precision[1, 1])
            if model.graph.d_separated(x, y, held):  # the other way round, weights may cancel
                assert partial < 1e-8


# ---------------------------------------------------------------------------------------------- backdoor sets


def test_backdoor_sets_of_the_papers_graph():
    graph = paper_graph()
    assert graph.backdoor_sets("I", "Y") == graph.backdoor_sets("T", "Y") == graph.backdoor_sets(("I", "T"), "Y") == [{"C"}]
    assert graph.is_backdoor_set("I", "Y", ("C", "T")), "valid, if larger than needed"
    assert not graph.is_backdoor_set("I", "Y") and not graph.is_backdoor_set("I", "Y", "T")
    assert graph.backdoor_sets("I", "Y", observed=("I", "T", "Y")) == [], "C is not observed: no adjustment is possible"
    assert graph.backdoor_sets("C", "Y") == [set()]


def test_backdoor_sets_of_our_graph():
    graph = our_graph()
    assert graph.backdoor_sets("A", "I") == graph.backdoor_sets("A", "Y") == [{"L"}, {"W"}]
    assert graph.backdoor_sets("I", "Y") == graph.backdoor_sets("T", "Y") == graph.backdoor_sets(("I", "T"), "Y") == [{"L"}]
    assert graph.backdoor_sets("L", "Y") == [set()] and graph.backdoor_sets("L", "I") == [{"A"}, {"W"}]
    assert graph.d_separated("A", "Y", "W") and not graph.d_separated("A", "Y") and not graph.d_separated("A", "L", ("W", "I"))


def test_bad_adjustment_sets_are_refused_and_told_why():
    graph = Graph({"M": "X", "Y": ("M", "C"), "X": "C", "S": ("X", "Y"), "D": "M"})
    assert graph.backdoor_sets("X", "Y") == [{"C"}]
    assert "M is a descendant of X" in graph.why_no_backdoor_set("X", "Y", ("C", "M")), "a mediator"
    assert "D is a descendant of X" in graph.why_no_backdoor_set("X", "Y", ("C", "D")), "what the mediator causes"
    assert "S is a descendant of X" in graph.why_no_backdoor_set("X", "Y", ("C", "S")), "a collider downstream"
    assert graph.why_no_backdoor_set("X", "Y") == "X <- C -> Y is open." and graph.why_no_backdoor_set("X", "Y", "C") == ""
    m_bias = Graph({"X": "U", "M": ("U", "V"), "Y": ("V", "X")})
    assert m_bias.backdoor_sets("X", "Y") == [set()], "M is no descendant of X, and yet holding it is wrong"
    assert m_bias.why_no_backdoor_set("X", "Y", "M") == "X <- U -> M <- V -> Y is open."
    assert m_bias.is_backdoor_set("X", "Y", ("M", "V"))
    assert Graph({"X": "Y"}).backdoor_sets("X", "Y") == [], "an arrow from Y to X cannot be closed"


@given(dags(smallest=3, largest=5), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_every_backdoor_set_gives_the_effect_and_the_minimal_ones_are_all_listed(parents, seed):
    """In a linear model the regression of y on x and a backdoor set, from the exact covariance, has the slopes of do(x)."""
    model, _ = linear_gaussian(parents, seed)
    names, response = total_effects(model)
    covariance = response @ response.T
    rng = np.random.default_rng(seed)
    y, *others = rng.permutation(names).tolist()
    for x in (others[:1], others[:2]):
        valid = [set(held) for held in subsets(set(names) - {*x, y}) if model.graph.is_backdoor_set(x, y, held)]
        assert sorted(map(sorted, model.graph.backdoor_sets(x, y))) == sorted(sorted(s) for s in valid if not any(t < s for t in valid))
        acted = model.do({name: np.eye(len(x))[i] for i, name in enumerate(x)})  # two units, one for each x raised by 1
        effects = acted.solve({name: np.zeros(len(x)) for name in names})[y]
        for held in valid:
            i, j = [names.index(name) for name in (*x, *held)], names.index(y)
            slopes = np.linalg.solve(covariance[np.ix_(i, i)], covariance[i, j])
            np.testing.assert_allclose(slopes[: len(x)], effects, atol=1e-8)


# ---------------------------------------------------------------------------------------------- linear and Gaussian

A, B, G = 0.8, 1.5, -2.0  # X := A C + U_X, Y := B X + G C + U_Y
SC, SX, SY = 1.3, 0.7, 0.5


def confounded_line():
    return SCM({
        "C": Variable((), lambda u: u, normal(0, SC), noise_of=lambda c: c),
        "X": Variable("C", lambda c, u: A * c + u, normal(0, SX), noise_of=lambda x, c: x - A * c),
        "Y": Variable(("X", "C"), lambda x, c, u: B * x + G * c + u, normal(0, SY), noise_of=lambda y, x, c: y - B * x - G * c),
    })  # fmt: skip


def test_seeing_and_doing_equal_the_closed_form_of_a_linear_gaussian_model():
    model, n = confounded_line(), 100_000
    seen = model.sample(n, 0)
    var_x = A**2 * SC**2 + SX**2
    slope = B + G * A * SC**2 / var_x  # E[Y | x] = slope · x: confounded, here even of the other sign
    assert slope < 0 < B
    assert linear_effect(seen, "X", "Y") == pytest.approx(slope, abs=0.01)
    assert linear_effect(seen, "X", "Y", "C", graph=model.graph) == pytest.approx(B, abs=0.01)
    for x in (-1.0, 2.0):  # Y | do(x) ~ N(B x, G² SC² + SY²)
        done = model.do(X=x).sample(n, 1)
        std = np.sqrt(G**2 * SC**2 + SY**2)
        assert (done["X"] == x).all()
        assert done["Y"].mean() == pytest.approx(B * x, abs=5 * std / np.sqrt(n)) and done["Y"].std() == pytest.approx(std, rel=0.01)
        assert np.mean(done["Y"] < B * x + std) == pytest.approx(0.841345, abs=0.005)
        np.testing.assert_array_equal(done["C"], model.sample(n, 1)["C"])  # causes do not hear of it


@given(dags(largest=5), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_sampling_and_doing_equal_the_inverse_of_one_minus_the_weights(parents, seed):
    """V = (I - W)⁻¹ U, and under do(x) the same with the row of x emptied."""
    model, weights = linear_gaussian(parents, seed)
    names, response = total_effects(model)
    w = np.array([[weights.get((p, child), 0.0) for p in names] for child in names])
    np.testing.assert_allclose(response, np.linalg.inv(np.eye(len(names)) - w), atol=1e-9)
    for k, x in enumerate(names):
        cut = w.copy()
        cut[k] = 0
        u = np.random.default_rng(seed).normal(size=(len(names), 3))
        acted = model.do({x: 1.7}).solve(dict(zip(names, u)))
        u[k] = 1.7
        np.testing.assert_allclose(np.stack([acted[name] for name in names]), np.linalg.solve(np.eye(len(names)) - cut, u), atol=1e-9)


def test_counterfactuals_equal_the_closed_form_of_a_linear_gaussian_model():
    model = confounded_line()
    seen = model.sample(1000, 2)
    would = model.counterfactual(seen, {"X": 3.0})  # y + B (x' - x), the noise being the same
    np.testing.assert_allclose(would["Y"], seen["Y"] + B * (3.0 - seen["X"]))
    np.testing.assert_array_equal(would["C"], seen["C"])
    one = model.counterfactual({"C": 0.5, "X": 1.0, "Y": -0.25}, {"X": 2.0})
    assert one["Y"].tolist() == pytest.approx([-0.25 + B]) and one["X"].tolist() == [2.0] and one["C"].tolist() == [0.5]
    np.testing.assert_allclose(model.counterfactual(seen, {"C": 0.0})["Y"], seen["Y"] - (A * B + G) * seen["C"])
    # a new mechanism on the old noise: everyone's X one higher; and a policy without noise
    shifted = model.do(X=Variable("C", lambda c, u: A * c + u + 1, model.variables["X"].noise))
    np.testing.assert_allclose(model.counterfactual(seen, {"X": shifted.variables["X"]})["Y"], seen["Y"] + B)
    policy = model.counterfactual(seen, {"X": Variable("C", lambda c: -c)})
    np.testing.assert_allclose(policy["Y"], seen["Y"] + B * (-seen["C"] - seen["X"]))


@given(dags(), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_counterfactuals_are_consistent_and_share_their_noise(parents, seed):
    model, _ = linear_gaussian(parents, seed)
    noise = model.sample_noise(5, seed)
    seen = model.solve(noise)
    x = sorted(parents)[0]
    same = model.counterfactual(seen, {x: seen[x]})  # X = what it was: nothing else changes (consistency, section 7.3)
    for name in seen:
        np.testing.assert_allclose(same[name], seen[name], rtol=1e-9, atol=1e-9)
    found = model.abduct(seen)
    abducted, kept, twin = model.counterfactual(seen, {x: 2.0}), model.counterfactual(None, {x: 2.0}, noise=noise), model.do({x: 2.0}).sample(5, seed)
    for name in seen:
        np.testing.assert_allclose(found[name], noise[name], atol=1e-9)
        np.testing.assert_allclose(abducted[name], kept[name], atol=1e-9)
        np.testing.assert_array_equal(kept[name], twin[name])
        if name not in {x} | model.graph.descendants(x):
            np.testing.assert_array_equal(abducted[name], seen[name])
    assert all(np.array_equal(model.counterfactual(seen, {})[name], seen[name]) for name in seen)


# ---------------------------------------------------------------------------------------------- binary

# Kidney stones (Charig et al. 1986): recovered / treated by stone and treatment. Open surgery (1) is better for
# small and for large stones, and worse on the whole, because it got the large ones: Simpson's paradox.
STONES = {("small", 1): (81, 87), ("small", 0): (234, 270), ("large", 1): (192, 263), ("large", 0): (55, 80)}


def stone_table():
    rows = [(c, x, y) for (c, x), (good, all_) in STONES.items() for y, count in ((1, good), (0, all_ - good)) for _ in range(count)]
    return {name: np.array(column) for name, column in zip("CXY", zip(*rows))}


def stone_done(x):
    return sum(Fraction(*STONES[c, x]) * Fraction(STONES[c, 0][1] + STONES[c, 1][1], 700) for c in ("small", "large"))


def stone_model():
    """The same frequencies as a model. U_Y is the response to either treatment for either stone, as a tuple's number."""
    p = {key: good / all_ for key, (good, all_) in STONES.items()}
    chosen = {c: STONES[c, 1][1] / (STONES[c, 0][1] + STONES[c, 1][1]) for c in ("small", "large")}
    keys = list(STONES)
    answers = np.array(list(product((0, 1), repeat=4)))
    joint = {i: float(np.prod([p[k] if a else 1 - p[k] for k, a in zip(keys, row)])) for i, row in enumerate(answers)}
    number = {key: i for i, key in enumerate(keys)}
    return SCM({
        "C": Variable((), lambda u: u, Discrete({"small": 357 / 700, "large": 343 / 700}), noise_of=lambda c: c),
        "X": Variable("C", lambda c, u: np.where(c == "small", u // 2, u % 2), Discrete({
            2 * a + b: (chosen["small"] if a else 1 - chosen["small"]) * (chosen["large"] if b else 1 - chosen["large"]) for a in (0, 1) for b in (0, 1)})),
        "Y": Variable(("C", "X"), lambda c, x, u: answers[u, [number[key] for key in zip(c.tolist(), x.tolist())]], Discrete(joint)),
    })  # fmt: skip


def test_seeing_differs_from_doing_and_adjustment_recovers_doing():
    data, graph = stone_table(), Graph({"X": "C", "Y": ("C", "X")})
    seen = {x: backdoor_adjustment(data, {"X": x}, "Y")[1] for x in (0, 1)}
    assert seen == {0: pytest.approx(289 / 350), 1: pytest.approx(273 / 350)} and seen[1] < seen[0]
    done = {x: backdoor_adjustment(data, {"X": x}, "Y", "C", graph=graph) for x in (0, 1)}
    for x in (0, 1):
        assert done[x] == {0: pytest.approx(float(1 - stone_done(x))), 1: pytest.approx(float(stone_done(x)))}
    assert done[1][1] > done[0][1]
    assert average_effect(data, "X", "Y", "C", graph=graph) == pytest.approx(float(stone_done(1) - stone_done(0)))
    assert average_effect(data, "X", "Y", "C", values=(0, 1)) == pytest.approx(float(stone_done(0) - stone_done(1)))
    weights = adjustment_weights(data, {"X": 1}, "C")
    assert weights.sum() == pytest.approx(1) and (weights[data["X"] == 0] == 0).all()
    assert weights[data["C"] == "small"].sum() == pytest.approx(357 / 700), "reweighted, the treated have everybody's stones"


def test_worlds_and_samples_of_a_binary_model_equal_the_closed_form():
    model = stone_model()
    for x, (good, n) in {0: (289, 350), 1: (273, 350)}.items():
        assert model.worlds({"X": x}).probability(Y=1) == pytest.approx(good / n), "seeing"
        assert model.worlds(do={"X": x}).probability(Y=1) == pytest.approx(float(stone_done(x))), "doing"
        assert model.worlds(do={"X": x}).mean("Y") == pytest.approx(float(stone_done(x)))
        assert model.worlds({"C": "large"}, {"X": x}).probability(Y=1) == pytest.approx(float(Fraction(*STONES["large", x])))
        drawn = model.do(X=x).sample(40_000, 3)
        assert drawn["Y"].mean() == pytest.approx(float(stone_done(x)), abs=0.01)
    seen = model.sample(40_000, 4)
    assert average_effect(seen, "X", "Y") < 0 < average_effect(seen, "X", "Y", "C")
    assert average_effect(seen, "X", "Y", "C") == pytest.approx(float(stone_done(1) - stone_done(0)), abs=0.02)
    assert model.worlds().weights.sum() == pytest.approx(1) and model.worlds().probability(C="small") == pytest.approx(357 / 700)


def test_the_counterfactual_distribution_equals_the_closed_form():
    """Y_1 and Y_0 are independent given C here, so P(Y_1 = 1 | X = 0, Y = 0) = Σ_c P(Y = 1 | c, 1) P(c | X = 0, Y = 0)."""
    lost = {c: STONES[c, 0][1] - STONES[c, 0][0] for c in ("small", "large")}
    expected = sum(Fraction(*STONES[c, 1]) * Fraction(lost[c], sum(lost.values())) for c in lost)
    worlds = stone_model().worlds({"X": 0, "Y": 0}, {"X": 1})
    assert worlds.probability(Y=1) == pytest.approx(float(expected)) and worlds.probability(X=1) == pytest.approx(1)
    assert stone_model().worlds({"X": 0, "Y": 0}, {"X": 0}).probability(Y=0) == pytest.approx(1), "consistency"


@given(st.lists(st.integers(1, 20), min_size=4, max_size=4), st.integers(0, 1), st.integers(0, 1), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_the_probabilities_of_necessity_and_sufficiency_of_response_types(counts, x, y, tenth):
    """Never, helped, hurt, always: whom X = 1 - x would have served equally well, from their prior (section 9.2)."""
    types = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])  # (type, x) -> y
    model = SCM({"X": Variable((), lambda u: u, bernoulli(tenth / 10)),
                 "Y": Variable("X", lambda x, u: types[u, x], Discrete({i: k / sum(counts) for i, k in enumerate(counts)}))})
    fits = [k for k, answer in zip(counts, types) if answer[x] == y]
    good = [k for k, answer in zip(counts, types) if answer[x] == y and answer[1 - x] == 1]
    assert model.worlds({"X": x, "Y": y}, {"X": 1 - x}).probability(Y=1) == pytest.approx(sum(good) / sum(fits))
    with pytest.raises(ValueError, match="ask `worlds` for a distribution"):
        model.counterfactual({"X": x, "Y": y}, {"X": 1 - x})


def test_a_binary_counterfactual_is_exact_where_the_noise_can_be_read_back():
    flip = SCM({"X": Variable((), lambda u: u, bernoulli(0.5), noise_of=lambda x: x),
                "Y": Variable("X", lambda x, u: x ^ u, bernoulli(0.1), noise_of=lambda y, x: y ^ x)})
    seen = flip.sample(500, 5)
    would = flip.counterfactual(seen, {"X": 1 - seen["X"]})
    assert (would["Y"] == 1 - seen["Y"]).all() and 0.05 < np.mean(seen["Y"] != seen["X"]) < 0.15
    for x, y in product((0, 1), repeat=2):
        assert flip.worlds({"X": x, "Y": y}, {"X": 1 - x}).probability(Y=1 - y) == pytest.approx(1)


def test_in_our_graph_the_scanner_tells_of_the_lesion_but_changing_it_changes_no_lesion():
    coupled = lambda w, u: np.where(u < 0.8, w, 1 - w)  # noqa: E731
    level = Discrete({0.1: 0.8, 0.9: 0.2})
    model = SCM({
        "W": Variable((), lambda u: u, bernoulli(0.5)), "A": Variable("W", coupled, level), "L": Variable("W", coupled, level),
        "I": Variable(("A", "L"), lambda a, l, u: 2 * a + l + u, bernoulli(0.3)),
        "T": Variable(("L", "W"), lambda l, w, u: l | (w & u), bernoulli(0.2)), "Y": Variable("L", lambda l: l),
    })  # fmt: skip
    assert model.graph.backdoor_sets("A", "Y") == our_graph().backdoor_sets("A", "Y")
    assert sorted(model.graph.to_text().splitlines()) == sorted(our_graph().to_text().splitlines())
    seeing = [model.worlds({"A": a}).probability(Y=1) for a in (0, 1)]
    doing = [model.worlds(do={"A": a}).probability(Y=1) for a in (0, 1)]
    assert seeing == pytest.approx([0.32, 0.68]) and doing == pytest.approx([0.5, 0.5])
    data = model.sample(20_000, 6)
    for held in ("W", "L"):
        assert average_effect(data, "A", "Y", held, graph=model.graph) == pytest.approx(0, abs=0.02)
        assert average_effect(data, "A", "I", held, graph=model.graph) == pytest.approx(2, abs=0.03)
    noise = model.sample_noise(200, 7)
    before, after = model.solve(noise), model.counterfactual(None, {"A": 1 - model.solve(noise)["A"]}, noise=noise)
    assert all((before[name] == after[name]).all() for name in "WLTY") and (before["I"] != after["I"]).all()
    with pytest.raises(ValueError, match=r"\{T\} is no backdoor set: A <- W -> L -> Y is open"):
        average_effect(data, "A", "Y", "T", graph=model.graph)
    with pytest.raises(ValueError, match=r"\{W, I\} is no backdoor set: I is a descendant of A"):
        backdoor_adjustment(data, {"A": 1}, "Y", ("W", "I"), graph=model.graph)
    with pytest.raises(ValueError, match=r"\{\} is no backdoor set"):
        linear_effect(data, "A", "Y", graph=model.graph)


# ---------------------------------------------------------------------------------------------- mechanics


def test_the_same_seed_gives_the_same_units_and_do_changes_nothing_upstream():
    model = confounded_line()
    first, second, other = model.sample(50, 8), model.sample(50, np.random.default_rng(8)), model.sample(50, 9)
    assert all((first[name] == second[name]).all() and (first[name] != other[name]).all() for name in first)
    noisy = model.do(X=Variable((), lambda u: u.sum(1), lambda rng, n: rng.normal(size=(n, 7)))).sample(50, 8)
    np.testing.assert_allclose(noisy["Y"] - B * noisy["X"], first["Y"] - B * first["X"])  # new noise comes from its own stream
    rng = np.random.default_rng(8)
    assert (model.sample(50, rng)["Y"] != model.sample(50, rng)["Y"]).all(), "a generator moves on"
    assert model.to_text() == "C := f(U_C)\nX := f(C, U_X)\nY := f(X, C, U_Y)" and model.do(X=1).to_text().splitlines()[1] != "X := f(C, U_X)"
    assert model.graph.parents("X") == {"C"} and model.do(X=1).graph.parents("X") == set(), "do returns another model"


def test_values_may_be_pictures_texts_or_one_for_each_unit():
    model = SCM({
        "A": Variable((), lambda u: u, Discrete({"dark": 0.5, "light": 0.5})),
        "I": Variable("A", lambda a, u: u * np.where(a == "light", 2.0, 0.5)[:, None, None], lambda rng, n: rng.uniform(size=(n, 4, 3)),
                      noise_of=lambda i, a: i / np.where(a == "light", 2.0, 0.5)[:, None, None]),
        "Z": Variable((), lambda: 7),
    })  # fmt: skip
    seen = model.sample(6, 0)
    assert seen["I"].shape == (6, 4, 3) and seen["Z"].tolist() == [7] * 6
    light = model.counterfactual(seen, {"A": "light"})
    np.testing.assert_allclose(light["I"], seen["I"] * np.where(seen["A"] == "light", 1, 4)[:, None, None])
    each = np.array(["dark", "light"] * 3)
    assert (model.do(A=each).sample(6, 0)["A"] == each).all()
    picture = np.ones((1, 4, 3))
    assert (model.do(I=picture).sample(6, 0)["I"] == 1).all()
    assert model.do(A="dark", I=0.0, Z=1).sample(3, 0)["A"].tolist() == ["dark"] * 3
    with pytest.raises(ValueError, match="6 values for 4 units"):
        model.do(A=each).sample(4, 0)


def test_a_false_inverse_is_noticed_and_so_is_an_impossible_observation():
    def model(f, noise_of, noise=normal()):
        return SCM({"X": Variable((), lambda u: u, bernoulli(0.5), noise_of=lambda x: x), "Y": Variable("X", f, noise, noise_of)})

    root = model(lambda x, u: x + u**2, lambda y, x: np.sqrt(np.maximum(y - x, 0)))
    with pytest.raises(ValueError, match="noise_of of Y is not the inverse"):
        root.counterfactual({"X": 0, "Y": 4.0}, {"X": 1})
    silent = model(lambda x, u: x * u, lambda y, x: np.where(x == 0, 0.0, y / np.where(x == 0, 1, x)))  # no inverse at x = 0
    assert silent.counterfactual({"X": 1, "Y": 2.0}, {"X": 0})["Y"].tolist() == [0.0]
    with pytest.raises(ValueError, match="noise_of of Y is not the inverse"):
        silent.counterfactual({"X": [1] * 40 + [0], "Y": [2.0] * 40 + [0.0]}, {"X": 1})
    even = model(lambda x, u: x + 2 * u, lambda y, x: (y - x) // 2, bernoulli(0.5))
    with pytest.raises(ValueError, match="No noise leads .* to the Y observed"):
        even.counterfactual({"X": 0, "Y": 1}, {"X": 1})
    certain = SCM({"X": Variable((), lambda u: u, bernoulli(0.5)), "Y": Variable("X", lambda x: 3 * x)})
    assert certain.counterfactual({"X": 1, "Y": 3}, {"X": 0})["Y"].tolist() == [0]
    with pytest.raises(ValueError, match="No noise leads"):
        certain.counterfactual({"X": 1, "Y": 2}, {"X": 0})


def test_what_cannot_be_answered_is_refused_in_clear_words():
    line, coin = confounded_line(), SCM({"X": Variable((), lambda u: u, bernoulli(0.5)), "Y": Variable("X", lambda x, u: x | u, bernoulli(0.5))})
    blind = SCM({**line.variables, "Y": Variable(("X", "C"), lambda x, c, u: x + c + u, normal())})
    for message, ask in {
        "Y := f\\(X, C, U_Y\\) declares no inverse": lambda: blind.counterfactual(blind.sample(3, 0), {"X": 1}),
        "C, Y not observed": lambda: line.counterfactual({"X": 1.0}, {"X": 2.0}),
        "C not observed": lambda: line.abduct({"X": 1.0}, ["X"]),
        "either the observation or the noise": lambda: line.counterfactual(None, {"X": 1.0}),
        "noise of Y is missing": lambda: line.counterfactual(None, {"X": 1.0}, noise={"C": np.zeros(2)}),
        "noise of C, X, Y is missing": lambda: line.solve({}),
        "brings noise that the observed world did not have": lambda: line.counterfactual(line.sample(3, 0), {"X": Variable((), lambda u: u, normal())}),
        "noise of C, X, Y is not `Discrete`": lambda: line.worlds(),
        "evidence is impossible": lambda: coin.worlds({"X": 1, "Y": 0}),
        "not 2, and lists": lambda: coin.worlds({"X": [0, 1]}),
        "at most 3 worlds, not 4": lambda: coin.worlds(limit=3),
        "no variable 'Q'": lambda: line.do(Q=1),
        "there is no variable 'Q'": lambda: line.counterfactual({"Q": 1}, {"X": 1}),
        "got a function; say what it listens to": lambda: line.do(X=lambda c: c),
        "cycle": lambda: line.do(C=Variable("Y", lambda y: y)),
        "2 values for 3 units": lambda: line.counterfactual({"C": [0, 0, 0], "X": [1, 2], "Y": 0}, {"X": 1}),
        "Q is a parent of Y but has no equation": lambda: SCM({"Y": Variable("Q", lambda q: q)}),
        "sum to 1": lambda: Discrete({0: 0.5, 1: 0.4}),
        "not be negative": lambda: bernoulli(1.5),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match="(?i)" + message):
            ask()
    wrong = SCM({"X": Variable((), lambda u: u, normal()), "Y": Variable("X", lambda x: x, normal())})
    with pytest.raises(TypeError) as error:
        wrong.sample(2, 0)
    assert error.value.__notes__ == ["This happened in Y := f(X, U_Y)."]


def test_adjustment_refuses_empty_strata_and_columns_that_do_not_fit():
    data = {"W": np.array(["day", "day", "night"]), "X": np.array([0, 1, 0]), "Y": np.array([0.0, 1.0, 2.0])}
    for message, ask in {
        r"No unit has X = 1, W = night: .* \(positivity\)": lambda: average_effect(data, "X", "Y", "W"),
        "No unit has X = 5": lambda: backdoor_adjustment(data, {"X": 5}, "Y"),
        "Not a column .*: Q": lambda: average_effect(data, "X", "Y", "Q"),
        "Not a column .*: Z": lambda: average_effect({**data, "Z": np.zeros(2)}, "X", "Y", "Z"),
        "Not a column .*: X": lambda: average_effect({"X": np.zeros(0), "Y": np.zeros(0)}, "X", "Y"),
        "X, Z and a constant are linearly dependent": lambda: linear_effect({**data, "Z": 2 - data["X"]}, "X", "Y", "Z"),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ask()


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_adjustment_equals_the_sum_over_strata(seed):
    rng = np.random.default_rng(seed)
    data = {name: rng.integers(0, k, 400) for name, k in {"C": 2, "D": 3, "X": 2, "Z": 2, "Y": 3}.items()}
    result = backdoor_adjustment(data, {"X": 1, "Z": 0}, "Y", ("C", "D"))
    for y in range(3):
        expected = 0.0
        for c, d in product(range(2), range(3)):
            stratum = (data["C"] == c) & (data["D"] == d)
            shown = stratum & (data["X"] == 1) & (data["Z"] == 0)
            expected += (data["Y"][shown] == y).mean() * stratum.mean()
        assert result[y] == pytest.approx(expected)
    assert sum(result.values()) == pytest.approx(1)


# ---------------------------------------------------------------------------------------------- DoWhy

# These three pass with dowhy 0.14, numpy 2.4.6, scipy 1.15.3 and pytest 9.2.0 on Python 3.11.
NO_DOWHY = "DoWhy is not installed (dowhy 0.14 wants scipy <= 1.15.3 on Python < 3.13; try it in an environment of its own)"


@pytest.mark.filterwarnings("ignore")
def test_dowhy_identifies_the_same_backdoor_sets():
    pytest.importorskip("dowhy", reason=NO_DOWHY)
    import networkx
    from dowhy.causal_identifier.auto_identifier import BackdoorAdjustment, identify_backdoor

    m_bias = Graph({"X": "U", "M": ("U", "V"), "Y": ("V", "X")})
    for graph, pairs in ((paper_graph(), ["IY", "TY", "CY"]), (our_graph(), ["AI", "LI", "LY", "LT", "WY", "TY", "AY", "IY"]), (m_bias, ["XY"])):
        theirs = networkx.DiGraph([(p, child) for child in graph.order for p in graph.parents(child)])
        for x, y in pairs:
            found = identify_backdoor(theirs, [x], [y], list(graph.order), BackdoorAdjustment.BACKDOOR_EXHAUSTIVE)
            found = {frozenset(entry.get_adjustment_variables()) for entry in found}
            ours = {frozenset(held) for held in subsets(set(graph.order) - {x, y}) if graph.is_backdoor_set(x, y, held)}
            assert ours == found, (graph.to_text(), x, y)


@pytest.mark.filterwarnings("ignore")
def test_dowhy_estimates_the_same_effects():
    pytest.importorskip("dowhy", reason=NO_DOWHY)
    import pandas
    from dowhy import CausalModel

    def estimate(data, graph, method, **options):
        model = CausalModel(data=pandas.DataFrame(data), treatment="X", outcome="Y", graph=graph.to_dot().replace("\n", " "))
        estimand = model.identify_effect(proceed_when_unidentifiable=True)
        assert set(estimand.get_backdoor_variables()) == {"C"}
        return model.estimate_effect(estimand, method_name=method, **options).value

    line = confounded_line()
    data = line.sample(2000, 0)
    assert linear_effect(data, "X", "Y", "C") == pytest.approx(estimate(data, line.graph, "backdoor.linear_regression"), rel=1e-6)
    stones = {**stone_table(), "C": (stone_table()["C"] == "large").astype(int)}
    stones["propensity_score"] = np.array([stones["X"][stones["C"] == c].mean() for c in stones["C"]])
    theirs = estimate(stones, Graph({"X": "C", "Y": ("C", "X")}), "backdoor.propensity_score_weighting")
    assert average_effect(stones, "X", "Y", "C") == pytest.approx(theirs, rel=1e-6), "with the propensities of the table, weighting is adjustment"


@pytest.mark.filterwarnings("ignore")
def test_dowhy_imagines_the_same_counterfactuals():
    pytest.importorskip("dowhy", reason=NO_DOWHY)
    import networkx
    import pandas
    from dowhy import gcm

    gcm.config.disable_progress_bars()
    data = pandas.DataFrame(confounded_line().sample(500, 1))
    theirs = gcm.InvertibleStructuralCausalModel(networkx.DiGraph([("C", "X"), ("C", "Y"), ("X", "Y")]))
    theirs.set_causal_mechanism("C", gcm.EmpiricalDistribution())
    for name in "XY":
        theirs.set_causal_mechanism(name, gcm.AdditiveNoiseModel(gcm.ml.create_linear_regressor()))
    gcm.fit(theirs, data)

    def fitted(name, parents):  # the same lines as a model of ours
        predict = lambda *values: theirs.causal_mechanism(name).prediction_model.predict(np.column_stack(values)).ravel()  # noqa: E731
        return Variable(parents, lambda *v: predict(*v[:-1]) + v[-1], normal(), noise_of=lambda value, *v: value - predict(*v))

    ordered = {name: tuple(sorted(parents)) for name, parents in {"X": "C", "Y": ("C", "X")}.items()}  # DoWhy's order of parents
    ours = SCM({"C": Variable((), lambda u: u, normal(), noise_of=lambda c: c), **{name: fitted(name, p) for name, p in ordered.items()}})
    expected = gcm.counterfactual_samples(theirs, {"X": lambda x: 2.0}, observed_data=data)
    would = ours.counterfactual({name: data[name].to_numpy() for name in "CXY"}, {"X": 2.0})
    for name in "CXY":
        np.testing.assert_allclose(would[name], expected[name].to_numpy(), atol=1e-8)
