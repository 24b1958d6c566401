import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip.core.factors.geometry import Geometry
from modelzip.core.factors.ranks import Option, by_budget, by_energy, options


def random(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_options_of_a_matrix_are_multiples_that_save():
    shape = Geometry(outputs=32, inputs=48, taps=1, positions_in=2, positions_out=2)
    found = options(random(32, 48), shape, round_to=8)
    assert [o.ranks for o in found] == [(), (8,), (16,)]  # rank 24 has 1920 weights, not 1536
    assert [o.weights for o in found] == [1536, 640, 1280]
    assert [o.macs for o in found] == [3072, 1280, 2560]
    values = torch.linalg.svdvals(random(32, 48)).square()
    assert math.isclose(found[1].kept, float(values[:8].sum() / values.sum()))


def test_a_side_of_a_convolution_may_stay_full():
    shape = Geometry(outputs=32, inputs=3, taps=9, positions_in=4, positions_out=4)
    found = options(random(32, 3, 3, 3), shape, round_to=8)
    assert [o.ranks for o in found] == [(), (3, 8)]  # with rank 16, 944 weights for 864


def test_energy_is_met_by_the_least_work():
    found = [Option((), 1.0, 9, 9), Option((2, 1), 0.8, 6, 6), Option((1, 2), 0.9, 5, 5)]
    assert by_energy(found, 0.85).ranks == (1, 2)
    assert by_energy(found, 0.95).ranks == ()


rows = st.lists(
    st.lists(st.tuples(st.floats(0.05, 0.95), st.integers(1, 90)), min_size=0, max_size=4),
    min_size=1,
    max_size=3,
)


@given(rows, st.integers(20, 100))
@settings(max_examples=40, deadline=None)
def test_a_budget_is_kept_with_the_largest_product_of_energies(drawn, share):
    layers = {
        str(i): [Option((), 1.0, 100, 100), *(Option((1,), k, c, c) for k, c in row)]
        for i, row in enumerate(drawn)
    }
    budget = share * len(layers) + 0.5  # no sum of costs is near enough to be rounded over it
    all_ways = list(itertools.product(*layers.values()))
    fits = [way for way in all_ways if sum(o.macs for o in way) <= budget]
    chosen = by_budget(layers, kind="macs", budget=budget).values()
    if not fits:
        assert sum(o.macs for o in chosen) == min(sum(o.macs for o in way) for way in all_ways)
        return
    assert sum(o.macs for o in chosen) <= budget
    best = max(math.prod(o.kept for o in way) for way in fits)
    assert math.prod(o.kept for o in chosen) >= best * (1 - 1e-9)


def test_many_options_are_thinned_but_the_ends_stay():
    row = [Option((r,) if r < 200 else (), r / 200, r, r) for r in range(1, 201)]
    assert by_budget({"a": row}, kind="params", budget=1.1)["a"].ranks == (1,)
    assert by_budget({"a": row}, kind="params", budget=201)["a"].ranks == ()
