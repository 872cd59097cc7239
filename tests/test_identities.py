"""Who is trained on and who is kept out: python -m pytest tests/test_identities.py"""

import pytest
from PIL import Image

from reid import identities
from reid.problem import Problem


@pytest.fixture
def trees(tmp_path):
    """Two prepared trees of four identities, seen twice by each of two cameras; the first picture is in val."""
    for tree in 'ab':
        for person in ('0002', '0005', '0007', '0011'):
            for cam in (1, 2):
                for shot in (1, 2):
                    name = f'{person}_c{cam}s1_{shot:06d}_00.jpg'
                    first = (cam, shot) == (1, 1)
                    for part in ('train_all', 'val' if first else 'train'):
                        path = tmp_path / tree / part / person / name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        Image.new('RGB', (2, 4)).save(path)
    return [tmp_path / 'a', tmp_path / 'b']


def test_one_tree(trees):
    train, val = identities.split(trees[:1], 'train', 1)
    assert set(train.ids) == set(val.ids) == {'0002', '0005', '0007'}
    assert (len(train.paths), len(val.paths)) == (9, 3)
    query, gallery = identities.held_out(trees[:1], 'train', 1)
    assert set(query.ids) == set(gallery.ids) == {'0011'}
    assert len(query.paths) + len(gallery.paths) == 4
    everyone, _ = identities.split(trees[:1], 'train_all')
    assert len(everyone.paths) == 16


def test_who_has_one_picture_is_in_val_alone_and_not_trained_on(trees):
    path = trees[0] / 'val/0003/0003_c1s1_000001_00.jpg'
    path.parent.mkdir()
    Image.new('RGB', (2, 4)).save(path)
    train, val = identities.split(trees[:1], 'train', 1)
    assert set(train.ids) == set(val.ids) == {'0002', '0005', '0007'}


def test_two_trees_share_no_identity_and_no_camera(trees):
    train, val = identities.split(trees, 'train_all', 1)
    assert sorted(set(train.ids)) == ['1-0002', '1-0005', '1-0007', '2-0002', '2-0005', '2-0007']
    assert len(val.paths) == 6
    for i, root in enumerate(trees):
        cams = {int(cam) for cam, path in zip(train.cams, train.paths, strict=True) if path.startswith(str(root))}
        assert cams == {1 + 1000 * i, 2 + 1000 * i}
    query, gallery = identities.held_out(trees, 'train_all', 1)
    assert set(gallery.ids) == {'1-0011', '2-0011'}
    assert not set(query.paths + gallery.paths) & set(train.paths)


@pytest.mark.parametrize('holdout', [3, 4, 100])
def test_too_many_are_a_sentence(trees, holdout):
    with pytest.raises(Problem, match=f'--holdout {holdout}: of 4 identities, 0 to 2 can be kept out'):
        identities.split(trees, 'train', holdout)
