import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip.numerics.factors import (
    balanced,
    factorize,
    root,
    svd_energy,
    svd_factors,
    tucker_energy,
    tucker_factors,
    weighed,
)

sizes = st.integers(1, 6)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def product(factors):
    """The kernel that factors of a convolution are together, by its definition."""
    if len(factors) == 2:
        first, last = factors
        if first.dim() == 4:
            return torch.einsum("po,oixy->pixy", last, first)
        if last.dim() == 4:
            return torch.einsum("ojxy,ji->oixy", last, first)
        return last @ first
    first, core, last = factors
    return torch.einsum("po,ojxy,ji->pixy", last, core, first)


@given(sizes, sizes, st.integers(0, 99), st.data())
@settings(max_examples=30, deadline=None)
def test_svd_factors_are_nearest_and_their_energy_is_right(outputs, inputs, seed, data):
    weight = random(outputs, inputs, seed=seed)
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    first, last = svd_factors(weight, rank)
    assert first.shape == (rank, inputs)
    assert last.shape == (outputs, rank)
    values = np.linalg.svd(weight.numpy(), compute_uv=False) ** 2
    lost = float((last @ first - weight).square().sum())
    assert lost == pytest.approx(values[rank:].sum(), rel=1e-6, abs=1e-9)
    assert svd_energy(weight).tolist() == pytest.approx((values.cumsum() / values.sum()).tolist())


@given(sizes, sizes, st.integers(0, 99), st.data())
@settings(max_examples=30, deadline=None)
def test_tucker_keeps_the_energy_it_says_and_no_less_than_its_start(outputs, inputs, seed, data):
    weight = random(outputs, inputs, 3, 2, seed=seed)
    rank_in = data.draw(st.integers(1, inputs))
    rank_out = data.draw(st.integers(1, outputs))
    first, core, last, kept = tucker_factors(weight, rank_in, rank_out)
    lost = float((product([first, core, last]) - weight).square().sum() / weight.square().sum())
    assert kept == pytest.approx(1 - lost)
    table = tucker_energy(weight)
    assert kept >= float(table[rank_out - 1, rank_in - 1]) - 1e-9
    assert float(table[-1, -1]) == pytest.approx(1.0)
    assert bool((table.diff(dim=0) >= -1e-12).all())
    assert bool((table.diff(dim=1) >= -1e-12).all())


def test_a_kernel_of_low_rank_is_recovered_exactly():
    core = random(2, 3, 3, 3)
    weight = product([random(3, 8, seed=1), core, random(6, 2, seed=2)])
    *factors, kept = tucker_factors(weight, 3, 2)
    assert kept == pytest.approx(1.0)
    assert torch.allclose(product(factors), weight)


def test_weighed_factors_lose_least_of_the_outputs():
    """The optimum of reduced-rank regression, found here from the outputs alone."""
    inputs = random(500, 6) @ torch.diag(torch.tensor([9.0, 4, 2, 1, 0.3, 0.1]).double())
    weight = random(5, 6, seed=1)
    moment = inputs.T @ inputs / len(inputs)
    outputs = (inputs @ weight.T).numpy()
    values = np.linalg.svd(outputs, compute_uv=False) ** 2
    for rank in (1, 2, 4):
        factors, kept = factorize(weight, (rank,), lower=root(moment))
        lost = np.square(outputs - (inputs @ product(factors).T).numpy()).sum()
        assert lost == pytest.approx(values[rank:].sum(), rel=0.05)
        assert kept == pytest.approx(1 - values[rank:].sum() / values.sum(), abs=1e-3)
        blind = product(factorize(weight, (rank,))[0])
        assert lost < np.square(outputs - (inputs @ blind.T).numpy()).sum()


@pytest.mark.parametrize("ranks", [(2, 3), (4, 3), (2, 6), (4, 6)])
def test_a_side_of_full_rank_has_no_factor(ranks):
    weight = random(6, 4, 3, 3)
    inputs = random(100, 4, seed=1)
    for lower in (None, root(inputs.T @ inputs / 100)):
        factors, kept = factorize(weight, ranks, lower=lower)
        assert len(factors) == 1 + (ranks[0] < 4) + (ranks[1] < 6)
        error = weighed((product(factors) if len(factors) > 1 else factors[0]) - weight, lower)
        lost = float(error.square().sum() / weighed(weight, lower).square().sum())
        assert kept == pytest.approx(1 - lost)


def test_a_root_times_its_transpose_is_the_moment_and_a_dead_input_stays_defined():
    moment = torch.diag(torch.tensor([4.0, 0.0])).double()
    lower = root(moment)
    assert torch.allclose(lower @ lower.T, moment, atol=0.01)
    assert bool((lower.diagonal() > 0).all())
    assert root(torch.zeros(2, 2).double()).tolist() == [[1, 0], [0, 1]]


def test_a_weight_of_zeros_is_kept_whole_by_any_rank():
    zeros = torch.zeros(4, 3, 3, 3, dtype=torch.float64)
    factors, _ = factorize(zeros, (1, 1))
    assert bool((product(factors) == 0).all())
    assert bool((tucker_energy(zeros) == 1).all())
    assert bool((svd_energy(zeros.flatten(1)) == 1).all())


def test_balanced_factors_have_the_same_product_and_equal_norms():
    first, core, last = random(2, 5), random(3, 2, 3, 3) * 100, random(4, 3) / 7
    scaled = balanced([first, core, last])
    assert torch.allclose(product(scaled), product([first, core, last]))
    assert torch.allclose(scaled[1].flatten(1).norm(dim=1), scaled[2].norm(dim=0))
    assert sum(float(f.square().sum()) for f in scaled) < sum(
        float(f.square().sum()) for f in (first, core, last)
    )
