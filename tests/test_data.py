"""Folders, numbers, pictures: python -m pytest tests/test_data.py"""

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from reid import data
from reid.problem import Problem


def picture(path, colour=(120, 30, 60), size=(32, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path)


@pytest.fixture
def market(tmp_path):
    for name in ('0002/0002_c1s1_000451_03.jpg', '0002/0002_c2s1_000451_01.jpg', '0000/0000_c6s1_1_1.jpg'):
        picture(tmp_path / 'pytorch' / 'gallery' / name)
    picture(tmp_path / 'pytorch' / 'gallery' / '-1' / '-1_c3s1_000451_03.jpg')
    picture(tmp_path / 'pytorch' / 'query' / '0002' / '0002_c1s1_000451_00.jpg')
    return tmp_path


def test_the_raw_folder_and_its_tree_are_both_taken(market):
    for given in (market, market / 'pytorch', str(market)):
        assert data.tree(given, ['query', 'gallery']) == market / 'pytorch'


def test_a_wrong_folder_says_what_is_there(market, tmp_path):
    with pytest.raises(Problem, match='no such folder'):
        data.tree(tmp_path / 'nowhere', ['query'])
    with pytest.raises(Problem, match=r'train, val are expected, found gallery, query'):
        data.tree(market, ['train', 'val'])


def test_people_come_in_the_order_of_imagefolder(market):
    root = market / 'pytorch'
    people = data.people(root, 'gallery')
    assert people.paths == [path for path, _ in ImageFolder(str(root / 'gallery')).imgs]
    assert people.ids == ['-1', '0000', '0002', '0002']
    assert people.cams.tolist() == [3, 6, 1, 2]
    assert data.relative(people.paths[0], root) == 'gallery/-1/-1_c3s1_000451_03.jpg'


def test_an_empty_part_is_a_sentence(market):
    (market / 'pytorch' / 'val').mkdir()
    with pytest.raises(Problem, match='no pictures'):
        data.people(market / 'pytorch', 'val')


def folders(*names):
    return data.People([], list(names), np.array([]))


def test_folder_names_become_numbers():
    query, gallery = data.numbers(folders('0002', '12345'), folders('-1', '0000', '0002'))
    assert query.tolist() == [2, 12345]
    assert gallery.tolist() == [-1, 0, 2]


def test_names_that_are_no_numbers_get_the_same_number_everywhere():
    query, gallery = data.numbers(folders('bob', '7'), folders('-1', 'alice', 'bob'))
    assert query.tolist() == [3, 1]
    assert gallery.tolist() == [-1, 2, 3]


def test_what_python_takes_for_a_number_and_nobody_else_does_is_a_name():
    assert data.numbers(folders('1_12', '11_2', '-1'))[0].tolist() == [2, 1, -1]
    assert data.numbers(folders('٣', '3', ' 4'))[0].tolist() == [3, 2, 1]
    assert data.numbers(folders('9' * 30, '7'))[0].tolist() == [2, 1]  # more than int64 holds


@pytest.mark.parametrize('names', [('7', '007'), ('-1', '7', '007'), ('-1', '-01')])
def test_two_names_of_one_number_are_refused(names):
    with pytest.raises(Problem, match='same number'):
        data.numbers(folders(*names))


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / 'x.jpg').write_bytes(b'\xff\xd8 no picture')
    for name in ('x.jpg', 'gone.jpg'):
        with pytest.raises(Problem, match=name):
            data.read(tmp_path / name)


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'CMYK'])
def test_every_kind_of_picture_is_read_as_rgb(mode, tmp_path):
    Image.new(mode, (32, 64)).save(tmp_path / 'x.tiff')
    assert data.read(tmp_path / 'x.tiff').mode == 'RGB'


def test_the_test_transform_is_what_imagenet_expects():
    x = data.test_transform(8, 4)(Image.new('RGB', (64, 128), (255, 0, 51)))
    assert x.shape == (3, 8, 4)
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert x[:, 3, 2].tolist() == pytest.approx(expected, abs=1e-5)


def test_pictures_that_cannot_be_read_are_named_and_left_out_if_asked_for(tmp_path, capsys):
    for i in range(5):
        picture(tmp_path / f'{i}.png', colour=(50 * i, 0, 0))
    paths = sorted(str(path) for path in tmp_path.glob('*.png'))
    (tmp_path / '1.png').write_bytes(b'no picture')
    (tmp_path / '3.png').write_bytes((tmp_path / '3.png').read_bytes()[:60])
    people = data.People(paths, list('abcde'), np.arange(5))
    assert data.readable(people, 'stop') is people
    assert not capsys.readouterr().out
    left = data.readable(people, 'skip')
    assert (left.paths, left.ids, left.cams.tolist()) == (paths[::2], ['a', 'c', 'e'], [0, 2, 4])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert all(line.startswith(f'skipped: {paths[i]} is not a picture') for i, line in zip((1, 3), said, strict=True))
