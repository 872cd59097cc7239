# python -m pytest tests/test_datasets.py
"""Names, the queries of a split, and the cameras of a tree, by hand-made cases."""

import pytest

from reid.datasets import DATASETS, cameras, is_picture, read_name, split_queries, walk
from reid.problem import Problem

NAMES = [  # data set, path in the folder of its part, identity, camera
    ('market', '0002_c1s1_000451_03.jpg', '0002', '1'),
    ('market', '-1_c6s3_094992_04.jpg.jpg', '-1', '6'),  # the real one has such names
    ('market', '12345_c15s1_000451_03.jpg', '12345', '15'),
    ('toy', '0000_c3s1_000001_00.jpg', '0000', '3'),
    ('duke', '0001_c2_f0046182.jpg', '0001', '2'),
    ('occluded-duke', '7141_c8_f0046182.jpg', '7141', '8'),
    ('cuhk03-np', '0003_c1_11.png', '0003', '1'),
    ('msmt17', '0000/0000_000_01_0303morning_0015_0.jpg', '0000', '01'),
    ('msmt17', '3059/3059_044_15_0303noon_0015_2_ex.jpg', '3059', '15'),
    ('veri', '0001_c020_00016450_0.jpg', '0001', '020'),
    ('viper', 'cam_a/000_45.bmp', '000', 'a'),
]


@pytest.mark.parametrize(('name', 'path', 'person', 'cam'), NAMES)
def test_each_naming_rule(name, path, person, cam):
    assert read_name(DATASETS[name].rule, path) == (person, cam)


@pytest.mark.parametrize('name', DATASETS)
def test_rules_refuse_the_names_of_others(name):
    same = {'toy': 'market', 'occluded-duke': 'duke'}
    for other, path, *_ in NAMES:
        if same.get(other, other) != same.get(name, name):
            assert read_name(DATASETS[name].rule, path) is None, (name, path)


def test_msmt_identity_is_the_folder():
    assert read_name(DATASETS['msmt17'].rule, '0000_000_01_0303morning_0015_0.jpg') is None


def test_what_a_picture_is():
    assert all(map(is_picture, ['a.jpg', 'a/B.JPG', 'c.Webp', 'd.jpg.jpg']))
    assert not any(map(is_picture, ['Thumbs.db', '._a.jpg', 'a/._b.jpg', 'jpg', 'list.txt', 'a.jpg.part']))


def test_walk_is_sorted_and_leaves_out_what_file_managers_leave(tmp_path):
    for name in ('b/2.jpg', 'b/1.jpg', 'a.jpg', '@eaDir/a.jpg/x.jpg', '__MACOSX/a.jpg', '.git/a.jpg', 'pytorch/a.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(walk(tmp_path, skip={str(tmp_path / 'pytorch')})) == ['a.jpg', 'b/1.jpg', 'b/2.jpg']


@pytest.mark.parametrize(
    ('people', 'queries'),
    [
        ([('1', 1), ('1', 2)], [0]),  # as VIPeR: the first camera asks, the other answers
        ([('1', 1), ('1', 1), ('1', 2)], [0]),  # camera 2 has nothing to spare
        ([('1', 1), ('1', 1), ('1', 2), ('1', 2)], [0, 2]),
        ([('1', 1), ('1', 2), ('1', 2)], [0]),  # asked from camera 2, nothing of camera 1 would be left to find
        ([('1', 1), ('1', 2), ('1', 2), ('1', 3)], [0, 1]),
        ([('1', 2), ('1', 1), ('1', 3)], [1]),  # cameras in order, not pictures
        ([('1', 1)], []),  # a single picture
        ([('1', 1), ('1', 1), ('1', 1)], []),  # a single camera
        ([('1', -1), ('1', -1), ('1', -1)], [0]),  # unknown cameras are never the same
        ([('1', -1)], []),
        ([('1', -1), ('1', 4)], [0]),
        ([('1', 1), ('2', 1), ('1', 2), ('2', 1)], [0]),  # the camera of another person does not help
        ([], []),
    ],
)
def test_split_queries(people, queries):
    got, gallery = split_queries([(f'{i}.jpg', person, cam) for i, (person, cam) in enumerate(people)])
    assert got == queries
    assert gallery == [i for i in range(len(people)) if i not in queries]


def test_every_query_can_be_found():
    """Plain loops over many small worlds: a query has a good picture, and no camera asks twice."""
    import random

    rng = random.Random(3)
    for _ in range(300):
        items = [(str(i), rng.choice('ab'), rng.choice([-1, 1, 2, 3])) for i in range(rng.randint(0, 9))]
        queries, gallery = split_queries(items)
        assert sorted(queries + gallery) == list(range(len(items)))
        for q in queries:
            good = [
                g for g in gallery if items[g][1] == items[q][1] and (items[g][2] != items[q][2] or items[q][2] < 0)
            ]
            assert good, (items, queries)
        asked = [items[q][1:] for q in queries if items[q][2] >= 0]
        assert len(asked) == len(set(asked))
        for person in {item[1] for item in items}:
            shots = [item[2] for item in items if item[1] == person]
            could = len(shots) > 1 and (len(set(shots)) > 1 or shots[0] == -1)
            assert could == any(items[q][1] == person for q in queries)


def test_cameras_of_a_tree_of_other_scripts(tmp_path):
    camera = cameras(tmp_path)
    assert camera('0002_c1s1_000451_03.jpg') == 1
    assert camera('-1_c6s3_094992_04.jpg.jpg') == 6
    assert camera('0001_c2_f0046182.jpg') == 2
    assert camera('0000_000_15_0303morning_0015_0.jpg') == 15
    assert camera('0001_c020_00016450_0.jpg') == 20
    assert camera('0003_c2_11.png') == 2
    with pytest.raises(Problem, match='holiday.jpg'):
        camera('holiday.jpg')


def test_cameras_as_the_tree_says(tmp_path):
    about = tmp_path / 'dataset.yaml'
    about.write_text("rule: 'K(?P<cam>[0-9]+)?'\n")
    assert (cameras(tmp_path)('K07.jpg'), cameras(tmp_path)('K.jpg')) == (7, -1)
    with pytest.raises(Problem, match='0002_c1s1'):
        cameras(tmp_path)('0002_c1s1_000451_03.jpg')  # the tree's own rule, no other
    about.write_text('rule: null\n')
    assert cameras(tmp_path)('0002_c1s1_000451_03.jpg') == -1
    for broken in ('rule: "("\n', 'dataset: market\n', '- 1\n', 'a: [\n'):
        about.write_text(broken)
        with pytest.raises(Problem, match=r'dataset\.yaml'):
            cameras(tmp_path)
