"""Quick scores stay within their bound, exact ones are exact: python -m pytest tests/test_product.py"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from reid import product
from reid.problem import Problem


def vectors(n, dim, kind, seed=0):
    rng = np.random.default_rng(seed)
    f = {'any': rng.standard_normal, 'positive': rng.random, 'constant': np.ones}[kind]((n, dim))
    return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize('kind', ['any', 'positive', 'constant'])
@pytest.mark.parametrize('dim', [3, 512, 12288])
@pytest.mark.parametrize('name', product.PRODUCTS)
def test_quick_scores_are_within_their_bound(name, dim, kind):
    query, gallery = vectors(20, dim, kind), vectors(5000, dim, kind, 1)
    found = product.PRODUCTS[name](gallery, 20)(query).astype(np.float64)
    assert found.shape == (20, 5000)
    factor = product.grid(product.longest(query, 'query'))
    assert factor == 2.0**26
    exact = product.whole(query, factor) @ product.whole(gallery, factor).T / factor**2
    assert np.abs(found - exact).max() <= product.error(dim)


def test_halves_and_what_they_lose():
    f = vectors(3000, 64, 'any')
    halves = torch.empty(f.shape, dtype=torch.bfloat16)
    for middle in (None, torch.from_numpy(f.mean(0) + 0.1)):
        longest, lost = product.halve(f, halves, middle)
        rows = torch.from_numpy(f) - (0 if middle is None else middle)
        assert (halves == rows.bfloat16()).all()
        assert longest == pytest.approx(rows.norm(dim=1).max().item(), rel=1e-5)
        assert lost == pytest.approx((rows - rows.bfloat16().float()).norm(dim=1).max().item(), rel=1e-5)


def test_exact_scores_are_exact_whatever_the_order():
    rng = np.random.default_rng(0)
    query, gallery = vectors(1, 2048, 'any')[0], vectors(50, 2048, 'any', 1)
    q, g = product.whole(query, 2.0**26), product.whole(gallery, 2.0**26)
    expected = [sum(Fraction(int(a)) * int(b) for a, b in zip(q, row, strict=True)) for row in g]
    assert (g @ q).tolist() == expected
    for _ in range(5):
        order = rng.permutation(2048)
        assert (g[:, order] @ q[order]).tolist() == expected


@pytest.mark.parametrize('length', [0.3, 0.5, 1, 1.0000001, 1.3, 1.4, 7, 40])
def test_the_grid_fits_a_double(length):
    steps = length * product.grid(length)
    assert steps > 2**25.3
    assert steps**2 < 2**53
    assert math.log2(product.grid(length)).is_integer()


def test_quick_tries_each_library_on_the_work_itself(monkeypatch):
    monkeypatch.setattr(product, 'LARGE', 1)
    monkeypatch.setattr(product, 'speeds', {name: [] for name in product.PRODUCTS})
    query, gallery = vectors(8, 16, 'any'), vectors(100, 16, 'any', 1)
    multiply = product.quick(gallery)
    for _ in range(2 * len(product.PRODUCTS) + 3):
        np.testing.assert_allclose(multiply(query), query @ gallery.T, atol=1e-6)
    assert {len(seen) for seen in product.speeds.values()} == {2}


def test_similarities_come_in_blocks_that_fit(monkeypatch):
    monkeypatch.setattr(product, 'SCORES', 700)
    query, gallery = vectors(40, 16, 'any'), vectors(100, 16, 'any', 1)
    blocks = [(start, block.numpy().copy()) for start, block in product.similarities(query, gallery)]
    assert {len(block) for _, block in blocks} == {7, 5}
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), query @ gallery.T, atol=1e-6)


@pytest.mark.parametrize(('value', 'words'), [(np.inf, 'feature 17 holds nan or inf'), (0, 'feature 17 is all zeros')])
def test_broken_features_are_a_sentence(value, words, monkeypatch):
    monkeypatch.setattr(product, 'STEP', 5)
    f = vectors(20, 4, 'any')
    f[17] = value
    with pytest.raises(Problem, match=words):
        product.longest(f, 'gallery')
