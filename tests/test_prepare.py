# python -m pytest tests/test_prepare.py
"""prepare.py on tiny data sets: each naming rule, each kind of link, a second run, a stopped run, and each mistake."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

import prepare
from reid import cli, datasets, tree

CARD = Path(prepare.__file__)
MARKET = {
    'bounding_box_train': [
        *('0002_c1s1_000451_03.jpg', '0002_c1s1_000551_01.jpg', '0002_c3s1_000001_02.JPG'),
        *('10007_c15s1_000001_01.jpg', '10007_c2s3_000001_01.jpg', '0011_c1s1_000001_00.jpg'),
    ],
    'query': ['0001_c1s1_001051_00.jpg', '0003_c2s1_001051_00.jpg'],
    'bounding_box_test': [
        '-1_c1s1_000401_03.jpg',
        '0000_c2s1_1_1.jpg',
        '0001_c2s1_000301_00.jpg.jpg',
        '0003_c1s1_1_1.png',
    ],
    'gt_bbox': ['0001_c1s1_001051_00.jpg', '0001_c1s1_001076_00.jpg'],
}
DUKE = {
    'bounding_box_train': ['0001_c2_f0046182.jpg', '0001_c5_f0051341.jpg', '7140_c8_f0000001.jpg'],
    'query': ['0005_c2_f0046985.jpg'],
    'bounding_box_test': ['0005_c1_f0000001.jpg', '0006_c7_f0000001.jpg'],
}
MSMT = {
    'train': ['0000/0000_000_01_0303morning_0015_0.jpg', '0000/0000_001_15_0303noon_0021_1.jpg']
    + ['0001/0001_000_14_0303morning_0015_0.jpg', '0001/0001_001_02_0303morning_0020_1.jpg'],
    'test': ['0000/0000_000_15_0303morning_0015_0.jpg', '0000/0000_003_01_0303morning_0015_0.jpg']
    + ['0002/0002_000_03_0303morning_0015_0.jpg'],
}
MSMT_LISTS = {
    'list_train.txt': [MSMT['train'][0], MSMT['train'][2]],
    'list_val.txt': [MSMT['train'][1], MSMT['train'][3]],
    'list_query.txt': MSMT['test'][:1],
    'list_gallery.txt': MSMT['test'][1:],
}


def draw(root, files):
    """{folder: names} as pictures of 8x16 whose colour tells them apart."""
    for folder, names in files.items():
        for name in names:
            file = root / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 16), tuple(os.urandom(3))).save(file)
            os.utime(file, (1e9, 1e9 + len(name)))  # as old as data sets are
    return root


def draw_msmt(root, train='train', test='test'):
    draw(root, {train: MSMT['train'], test: MSMT['test']})
    for name, paths in MSMT_LISTS.items():
        (root / name).write_text(''.join(f'{path} 0\n' for path in paths))
    return root


@pytest.fixture
def soft_links(tmp_path):
    """Windows gives the right to make them to developers only."""
    try:
        (tmp_path / 'link').symlink_to('nowhere')
        (tmp_path / 'link').unlink()
    except OSError:
        pytest.skip('no right to make soft links here')


@pytest.fixture
def market(tmp_path):
    root = draw(tmp_path / 'Market', MARKET)
    for folder in MARKET:
        (root / folder / 'Thumbs.db').write_bytes(b'\0')
    (root / 'query' / '._0001_c1s1_001051_00.jpg').write_bytes(b'macOS')
    return root


def run(*args):
    prepare.main(prepare.options().parse_args([str(arg) for arg in args]))


def fails(capsys, *args):
    """The sentence that ends the run, which ends with exit code 2."""
    with pytest.raises(SystemExit) as end:
        cli.start(prepare.main, prepare.options, [str(arg) for arg in args])
    said = capsys.readouterr().err.strip()
    assert end.value.code == 2
    assert 'Traceback' not in said
    assert said.count('\n') == 0, said
    return said


def names(root):
    """{part: {id: sorted names}} of a tree."""
    return {
        part.name: {person.name: sorted(os.listdir(person)) for person in part.iterdir()}
        for part in root.iterdir()
        if part.is_dir()
    }


def state(root):
    """Everything below root with what tells a file from its replacement."""
    return {
        str(path.relative_to(root)): (path.lstat().st_ino, path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted(root.rglob('*'))
    }


def pictures(root, *folders):
    """The bytes of the raw files."""
    return {path: path.read_bytes() for folder in folders for path in (root / folder).rglob('*') if path.is_file()}


# ----------------------------------------------------------------------------------------------------- the data sets


def test_market(market, capsys):
    run('--data_dir', market)
    assert names(market / 'pytorch') == {
        'train_all': {
            '0002': ['0002_c1s1_000451_03.jpg', '0002_c1s1_000551_01.jpg', '0002_c3s1_000001_02.JPG'],
            '10007': ['10007_c15s1_000001_01.jpg', '10007_c2s3_000001_01.jpg'],
            '0011': ['0011_c1s1_000001_00.jpg'],
        },
        'val': {'0002': ['0002_c1s1_000451_03.jpg'], '10007': ['10007_c15s1_000001_01.jpg']},
        'train': {
            '0002': ['0002_c1s1_000551_01.jpg', '0002_c3s1_000001_02.JPG'],
            '10007': ['10007_c2s3_000001_01.jpg'],
            '0011': ['0011_c1s1_000001_00.jpg'],
        },
        'query': {'0001': ['0001_c1s1_001051_00.jpg'], '0003': ['0003_c2s1_001051_00.jpg']},
        'gallery': {
            '-1': ['-1_c1s1_000401_03.jpg'],
            '0000': ['0000_c2s1_1_1.jpg'],
            '0001': ['0001_c2s1_000301_00.jpg.jpg'],
            '0003': ['0003_c1s1_1_1.png'],
        },
        'multi-query': {'0001': ['0001_c1s1_001051_00.jpg', '0001_c1s1_001076_00.jpg']},
    }
    raw = market / 'bounding_box_train' / '0002_c3s1_000001_02.JPG'
    assert (market / 'pytorch/train/0002/0002_c3s1_000001_02.JPG').read_bytes() == raw.read_bytes()
    about = yaml.safe_load((market / 'pytorch/dataset.yaml').read_text())
    assert (about['dataset'], about['raw'], about['version']) == ('market', 'Market', 1)
    assert about['pictures'] == {'train_all': 6, 'train': 4, 'val': 2, 'query': 2, 'gallery': 4, 'multi-query': 2}
    camera = datasets.cameras(market / 'pytorch')
    assert camera('10007_c15s1_000001_01.jpg') == 15
    said = capsys.readouterr().out
    assert 'Thumbs.db (4)' in said
    assert 'Left out 5 files' in said
    assert '1 identities with a single picture' in said
    assert re.search(r'train_all +3 +6 +751 / 12,936\n', said)
    assert re.search(r'WARNING: gallery has 4 pictures .*19,732', said)
    assert 'python train.py --data_dir' in said


def test_no_warning_where_the_counts_are_official(market, capsys, monkeypatch):
    counts = {'train_all': (3, 6), 'query': (None, 2), 'gallery': (None, 4), 'multi-query': (None, 2)}
    entry = datasets.DATASETS['market']
    other = {**counts, 'query': (None, 3)}
    monkeypatch.setitem(datasets.DATASETS, 'market', datasets.Dataset('M', entry.rule, entry.folders, (other, counts)))
    run('--data_dir', market)
    assert 'WARNING' not in capsys.readouterr().out  # the version that fits is the one compared with


@pytest.mark.parametrize('folders', [('train', 'test'), ('mask_train_v2', 'mask_test_v2')])
def test_msmt17(tmp_path, folders):
    root = draw_msmt(tmp_path / 'MSMT17', *folders)
    run('--data_dir', root)
    got = names(root / 'pytorch')
    both = {'0000': ['0000_000_01_0303morning_0015_0.jpg', '0000_001_15_0303noon_0021_1.jpg']} | {
        '0001': ['0001_000_14_0303morning_0015_0.jpg', '0001_001_02_0303morning_0020_1.jpg']
    }
    assert got['train_all'] == both  # list_train and list_val together, each picture with its own person
    assert got['val'] == {person: files[:1] for person, files in both.items()}
    assert got['train'] == {person: files[1:] for person, files in both.items()}
    assert got['query'] == {'0000': ['0000_000_15_0303morning_0015_0.jpg']}
    assert got['gallery']['0000'] == ['0000_003_01_0303morning_0015_0.jpg']
    camera = datasets.cameras(root / 'pytorch')
    assert [camera(name) for name in both['0000']] == [1, 15]


@pytest.mark.parametrize(
    ('name', 'files', 'camera_of'),
    [
        ('duke', DUKE, {'7140_c8_f0000001.jpg': 8}),
        (
            'cuhk03-np',
            {
                'bounding_box_train': ['0003_c1_11.png', '0003_c2_12.png'],
                'query': ['0001_c1_3.png'],
                'bounding_box_test': ['0001_c2_4.png'],
            },
            {'0003_c2_12.png': 2},
        ),
        (
            'veri',
            {
                'image_train': ['0001_c001_00016450_0.jpg', '0001_c020_00016460_0.jpg'],
                'image_query': ['0002_c002_00030600_0.jpg'],
                'image_test': ['0002_c003_00030600_1.jpg'],
            },
            {'0001_c020_00016460_0.jpg': 20},
        ),
    ],
)
def test_other_data_sets_are_recognised(tmp_path, capsys, name, files, camera_of):
    root = draw(tmp_path / 'raw', files)
    run('--data_dir', root)
    assert yaml.safe_load((root / 'pytorch/dataset.yaml').read_text())['dataset'] == name
    got = names(root / 'pytorch')
    raw = list(files.values())
    for part, listed in zip(('train_all', 'query', 'gallery'), raw, strict=True):
        assert sorted(file for found in got[part].values() for file in found) == sorted(listed)
        assert all(file.startswith(person + '_') for person, found in got[part].items() for file in found)
    assert 'multi-query' not in got
    assert {file: datasets.cameras(root / 'pytorch')(file) for file in camera_of} == camera_of


def test_duke_and_occluded_duke_differ_by_their_queries(tmp_path, monkeypatch):
    root = draw(tmp_path / 'raw', DUKE)
    assert datasets.recognise(root) == 'duke'
    entry = datasets.DATASETS['duke']
    small = datasets.Dataset('small', entry.rule, entry.folders, ({'query': (None, 1)},))
    monkeypatch.setitem(datasets.DATASETS, 'occluded-duke', small)
    assert datasets.recognise(root) == 'occluded-duke'


def test_toy_is_market_with_a_mark(market, monkeypatch):
    assert datasets.recognise(market) == 'market'
    (market / 'toy.yaml').write_text('ids: 4\n')
    assert datasets.recognise(market) == 'toy'
    entry = datasets.DATASETS['market']
    counted = datasets.Dataset('M', entry.rule, entry.folders, ({'query': (None, 2)},))
    monkeypatch.setitem(datasets.DATASETS, 'market', counted)
    assert datasets.recognise(market) == 'toy'  # whatever the counts say


@pytest.mark.parametrize(
    ('where', 'more'), [((), ''), (('--data_dir', 'town'), f' --data_dir {cli.quote(Path("town/pytorch"))}')]
)
def test_toy_data_are_for_their_recipe(where, more, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run('--dataset', 'toy', '--ids', 4, '--images', 4, *where)
    said = capsys.readouterr().out
    assert said.endswith(f' Next: python train.py --config configs/toy.yaml --name toy{more}\n')


def test_viper_is_split_in_halves(tmp_path, capsys):
    ids = [f'{i:03}' for i in range(6)]
    root = draw(tmp_path / 'VIPeR', {'cam_a': [f'{i}_0.bmp' for i in ids], 'cam_b': [f'{i}_45.bmp' for i in ids]})
    run('--data_dir', root)
    got = names(root / 'pytorch')
    assert len(got['train_all']) == 3
    assert set(got['query']) == set(got['gallery']) == set(ids) - set(got['train_all'])
    for person in got['query']:
        assert got['query'][person] == [f'{person}_c1_cam_a_{person}_0.bmp']
        assert got['gallery'][person] == [f'{person}_c2_cam_b_{person}_45.bmp']
        assert datasets.cameras(root / 'pytorch')(got['gallery'][person][0]) == 2
    assert re.search(r'all +6 +12 +632 / 1,264', capsys.readouterr().out)
    run('--data_dir', root, '--out', tmp_path / 'same')
    assert names(tmp_path / 'same') == got
    halves = set()
    for seed in range(1, 5):
        run('--data_dir', root, '--out', tmp_path / f'{seed}', '--split_seed', seed)
        halves.add(frozenset(names(tmp_path / f'{seed}')['train_all']))
    assert len(halves) > 1


# ----------------------------------------------------------------------------------------------------- own pictures


def test_a_folder_a_person_without_cameras(tmp_path):
    people = {name: ['1.jpg', '2.jpg', 'far/1.jpg'] for name in ('Ann Lee', 'bob_c3', 'Çelik', 'dora')}
    root = draw(tmp_path / 'own', people)
    run('--data_dir', root, '--rule', r'^(?P<id>[^/]+)/')
    got = names(root / 'pytorch')
    assert len(got['train_all']) == 2
    assert set(got['train_all']) | set(got['query']) == set(people)
    assert set(got['query']) == set(got['gallery'])
    for person, files in got['gallery'].items():
        assert len(got['query'][person]) == 1
        assert len(files) == 2  # 1.jpg and far/1.jpg are two files
    camera = datasets.cameras(root / 'pytorch')
    assert {camera(file) for part in got.values() for found in part.values() for file in found} == {-1}
    assert yaml.safe_load((root / 'pytorch/dataset.yaml').read_text())['dataset'] == 'own'
    first = state(root)
    run('--data_dir', root, '--rule', r'^(?P<id>[^/]+)/')
    assert state(root) == first  # the tree inside is no fifth person


def test_names_in_a_folder_never_collide(tmp_path):
    people = {name: ['a/1.jpg', 'a_1.jpg', 'b/1.jpg'] for name in ('p', 'q')}
    root = draw(tmp_path / 'own', people)
    run('--data_dir', root, '--rule', r'^(?P<id>[^/]+)/')
    got = names(root / 'pytorch')
    assert [len(files) for files in got['train_all'].values()] == [3]
    assert sum(len(files) for part in ('query', 'gallery') for files in got[part].values()) == 3


def test_own_split_with_cameras_that_are_words(tmp_path, capsys):
    files = {'train': ['a_b_north_1.jpg', 'a_b_south_1.jpg', 'cc_west_1.jpg'], 'query': ['d_north_1.jpg']}
    root = draw(tmp_path / 'own', files | {'gallery': ['d_south_1.jpg', 'd_west_2.jpg']})
    run('--data_dir', root, '--rule', r'^(?P<id>.+)_(?P<cam>[a-z]+)_\d+\.jpg$')
    assert 'north is 1, south is 2, west is 3' in capsys.readouterr().out
    got, camera = names(root / 'pytorch'), datasets.cameras(root / 'pytorch')
    assert set(got['train_all']) == {'a_b', 'cc'}
    assert [camera(name) for name in got['train_all']['a_b']] == [1, 2]
    assert [camera(name) for name in got['query']['d'] + got['gallery']['d']] == [1, 2, 3]


def test_own_names_stay_where_they_tell_the_camera(tmp_path):
    root = draw(tmp_path / 'own', {'x': ['7_c12_0.png', '7_c3_0.png', '8_c3_1.png', '8_0.png']})
    run('--data_dir', root, '--rule', r'(?P<id>\d+)(?:_c(?P<cam>\d+))?_\d')
    got, camera = names(root / 'pytorch'), datasets.cameras(root / 'pytorch')
    found = {name: camera(name) for part in ('train_all', 'query', 'gallery') for x in got[part].values() for name in x}
    assert found == {'7_c12_0.png': 12, '7_c3_0.png': 3, '8_c3_1.png': 3, '8_0.png': -1}


def test_camera_in_the_folder(tmp_path):
    root = draw(tmp_path / 'own', {f'{p}_c9/cam{c}': ['x.jpg'] for p in 'abcd' for c in (1, 22)})
    run('--data_dir', root, '--rule', r'(?P<id>[^/]+)/cam(?P<cam>\d+)/')
    got, camera = names(root / 'pytorch'), datasets.cameras(root / 'pytorch')
    for files in got['train_all'].values():
        assert sorted(map(camera, files)) == [1, 22]


# ------------------------------------------------------------------------------------- links, second and stopped runs


@pytest.mark.parametrize('link', ['hard', 'soft', 'copy'])
def test_links_and_a_second_run(market, link, capsys, request):
    if link == 'soft':
        request.getfixturevalue('soft_links')
    before = pictures(market, *MARKET)
    run('--data_dir', market, '--link', link)
    first = state(market / 'pytorch')
    raw, target = market / 'query/0001_c1s1_001051_00.jpg', market / 'pytorch/query/0001/0001_c1s1_001051_00.jpg'
    assert target.is_symlink() == (link == 'soft')
    assert (os.lstat(target).st_ino == raw.stat().st_ino) == (link == 'hard')
    assert target.read_bytes() == raw.read_bytes()
    run('--data_dir', market, '--link', link)
    assert 'there already' in capsys.readouterr().out
    assert state(market / 'pytorch') == first
    assert pictures(market, *MARKET) == before
    assert sorted(os.listdir(market)) == sorted([*MARKET, 'pytorch'])


def test_soft_links_move_with_the_data(market, tmp_path, soft_links):
    run('--data_dir', market, '--link', 'soft')
    market.rename(tmp_path / 'moved')
    assert (tmp_path / 'moved/pytorch/query/0001/0001_c1s1_001051_00.jpg').is_file()


def test_copies_where_there_are_no_hard_links(market, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise OSError(18, 'Invalid cross-device link')

    monkeypatch.setattr(os, 'link', refuse)
    run('--data_dir', market)
    assert capsys.readouterr().out.count('copying instead') == 1
    first = state(market / 'pytorch')
    assert (market / 'pytorch/query/0003/0003_c2s1_001051_00.jpg').stat().st_nlink == 1
    run('--data_dir', market)
    assert state(market / 'pytorch') == first


@pytest.mark.parametrize('link', ['hard', 'copy'])
def test_a_stopped_run_is_finished_by_the_next(market, link, monkeypatch, tmp_path):
    place, calls = tree.place, []

    def stop(*args):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(args)
        return place(*args)

    monkeypatch.setattr(tree, 'place', stop)
    with pytest.raises(KeyboardInterrupt):
        run('--data_dir', market, '--link', link)
    monkeypatch.setattr(tree, 'place', place)
    part = market / 'pytorch.part'
    assert not (market / 'pytorch').exists()
    kept = {name: what for name, what in state(part).items() if name.endswith(('.jpg', '.JPG', '.png'))}
    assert len(kept) == 7
    (part / 'gallery' / '9999').mkdir(exist_ok=True)
    (part / 'gallery' / '9999' / '9999_c1s1_1_1.jpg.part').write_bytes(b'half')  # cut off in the middle of a copy
    broken = part / sorted(kept)[0]
    broken.unlink()
    broken.write_bytes(b'short')
    run('--data_dir', market, '--link', link)
    assert not part.exists()
    run('--data_dir', market, '--link', link, '--out', tmp_path / 'fresh')
    assert names(market / 'pytorch') == names(tmp_path / 'fresh')
    now = state(market / 'pytorch')
    assert all(now[name] == kept[name] for name in sorted(kept)[1:])
    assert (market / 'pytorch' / sorted(kept)[0]).read_bytes() == (tmp_path / 'fresh' / sorted(kept)[0]).read_bytes()


def change(file):
    """Another picture in its place, and not in the raw file that is the same file."""
    file.unlink()
    file.write_bytes(b'other')


def test_our_tree_is_rebuilt_when_the_raw_folder_changed(market):
    run('--data_dir', market)
    (market / 'query/0003_c2s1_001051_00.jpg').unlink()
    draw(market, {'query': ['0009_c4s1_000001_00.jpg']})
    run('--data_dir', market)
    assert set(names(market / 'pytorch')['query']) == {'0001', '0009'}
    assert not (market / 'pytorch.old').exists()
    whole = names(market / 'pytorch')
    (market / 'pytorch/cache').mkdir()  # of train.py --cache disk: no foreign thing, and gone with the tree
    picture = market / 'pytorch/query/0009/0009_c4s1_000001_00.jpg'
    for spoil in (Path.unlink, lambda file: shutil.copyfile(file, file.with_name('extra.jpg')), change):  # or the tree
        spoil(picture)
        run('--data_dir', market)
        assert names(market / 'pytorch') == whole
        assert picture.read_bytes() == (market / 'query/0009_c4s1_000001_00.jpg').read_bytes()


# ------------------------------------------------------------------------------------------------------------ mistakes


def untouched(root):
    return not [name for name in os.listdir(root) if name.startswith('pytorch')]


def test_wrong_path(tmp_path, capsys):
    (tmp_path / 'Market').mkdir()
    said = fails(capsys, '--data_dir', tmp_path / 'Markt')
    assert 'Markt' in said
    assert 'holds: Market.' in said


def test_nothing_given_and_nothing_there(tmp_path, market):
    place = tmp_path / 'code'
    place.mkdir()
    env = {**os.environ, 'PYTHONPATH': str(CARD.parent)}
    market.rename(tmp_path / 'elsewhere')
    done = subprocess.run([sys.executable, str(CARD)], cwd=place, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith('prepare.py: no data set')
    assert all(word in done.stderr for word in ('../Market-1501-v15.09.15', 'http', '--dataset toy', '--data_dir'))
    assert os.listdir(place) == []  # toy data are never drawn unasked
    (tmp_path / 'elsewhere').rename(tmp_path / 'Market-1501-v15.09.15')
    done = subprocess.run([sys.executable, str(CARD)], cwd=place, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'Market-1501-v15.09.15/pytorch/train_all/0002').is_dir()


def test_help_needs_no_torch():
    code = 'import sys, prepare; prepare.options().format_help(); sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=CARD.parent).returncode == 0


def test_empty_folder(tmp_path, capsys):
    (tmp_path / 'raw').mkdir()
    assert 'holds nothing' in fails(capsys, '--data_dir', tmp_path / 'raw')
    for folder in ('bounding_box_train', 'query', 'bounding_box_test'):
        (tmp_path / 'raw' / folder).mkdir()
    assert 'no pictures in' in fails(capsys, '--data_dir', tmp_path / 'raw', '--dataset', 'market')
    assert 'no pictures in' in fails(capsys, '--data_dir', tmp_path / 'raw' / 'query', '--rule', '(?P<id>.)')
    assert untouched(tmp_path / 'raw')


def test_names_that_fit_no_rule(market, capsys):
    draw(market, {'bounding_box_test': ['holiday.jpg', *(f'x{i}.jpg' for i in range(7))]})
    said = fails(capsys, '--data_dir', market)
    assert 'bounding_box_test/holiday.jpg' in said
    assert '8 of 22 pictures' in said
    assert 'Market-1501' in said
    assert '--rule' in said
    assert untouched(market)


def test_broken_pictures(market, capsys):
    half = market / 'query/0001_c1s1_001051_00.jpg'
    Image.frombytes('RGB', (64, 128), os.urandom(64 * 128 * 3)).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    with Image.open(half) as picture:
        assert picture.size == (64, 128)  # it opens: only decoding tells
    (market / 'bounding_box_train/0011_c1s1_000001_00.jpg').write_bytes(b'<html>')
    said = fails(capsys, '--data_dir', market)
    assert '2 of 14 pictures cannot be decoded' in said
    assert '0001_c1s1_001051_00.jpg' in said
    assert '0011_c1s1_000001_00.jpg' in said
    assert untouched(market)
    run('--data_dir', market, '--no_check')
    assert (market / 'pytorch').is_dir()


@pytest.mark.parametrize(
    ('rule', 'word'),
    [('(?P<id>', 'no regular expression'), (r'\d+', 'no group named id'), (r'(?P<id>.+)', "'0002/")],
)
def test_bad_rules(tmp_path, capsys, rule, word):
    root = draw(tmp_path / 'own', {'0002': ['1.jpg'], '0003': ['1.jpg']})
    said = fails(capsys, '--data_dir', root, '--rule', rule)
    assert word in said
    assert 'id' in said
    assert untouched(root)


@pytest.mark.parametrize('bad', ['..', 'a:b', 'a.', '.a', 'a ', 'nul\x00', 'a\\b'])
def test_identities_have_to_be_folder_names(bad):
    prepare.safe({'0002', '-1', 'Ann Lee', 'Ç', 'a.b', 'x'})
    with pytest.raises(prepare.Problem, match='identity'):
        prepare.safe({'0002', bad})


def test_identities_that_differ_in_case_alone(tmp_path, capsys):
    root = draw(tmp_path / 'own', {'x': ['Ann_1.jpg', 'ann_2.jpg', 'bob_1.jpg']})
    assert "'Ann' and 'ann'" in fails(capsys, '--data_dir', root, '--rule', '(?P<id>[A-Za-z]+)_')
    assert untouched(root)


def test_identities_that_are_the_same_number(tmp_path, capsys):
    files = {'train': ['7/1.jpg', '8/1.jpg'], 'query': ['9/1.jpg'], 'gallery': ['009/2.jpg', '7/2.jpg']}
    root = draw(tmp_path / 'own', files)
    said = fails(capsys, '--data_dir', root, '--rule', '^(?P<id>[^/]+)/')
    assert "identities '009' and '9' are the same number: rename one of them" in said
    assert untouched(root)
    (root / 'gallery/009').rename(root / 'gallery/9')
    (root / 'gallery/7').rename(root / 'gallery/007')  # nobody compares it with the 7 of training
    run('--data_dir', root, '--rule', '^(?P<id>[^/]+)/')


def test_half_a_split_and_one_identity(tmp_path, capsys):
    root = draw(tmp_path / 'own', {'train': ['1_c1.jpg'], 'test': ['2_c1.jpg']})
    rule = r'(?P<id>\d)_c(?P<cam>\d)'
    assert 'no folder query' in fails(capsys, '--data_dir', root, '--rule', rule)
    assert 'one identity only (1)' in fails(capsys, '--data_dir', root / 'train', '--rule', rule)


def test_the_tree_of_others_stays(market, capsys):
    draw(market, {'pytorch/train/0002': ['0002_c1s1_000451_03.jpg']})
    before = state(market)
    said = fails(capsys, '--data_dir', market)
    assert str(market / 'pytorch') in said
    assert '--out' in said
    assert state(market) == before
    run('--data_dir', market, '--out', market.parent / 'tree')
    assert len(names(market.parent / 'tree')['query']) == 2
    for out in (market, market.parent, market / 'query'):
        assert '--out' in fails(capsys, '--data_dir', market, '--out', out)
    said = fails(capsys, '--data_dir', market, '--out', market / 'query/Thumbs.db/tree')
    assert 'cannot be written' in said
    assert '--out' in said
    (market.parent / 'tree' / 'notes').mkdir()
    assert 'notes' in fails(capsys, '--data_dir', market, '--out', market.parent / 'tree')


def test_did_you_mean(market, tmp_path, capsys):
    assert f'did you mean --data_dir "{market}"' in fails(capsys, '--data_dir', tmp_path)
    assert f'did you mean --data_dir "{market}"' in fails(capsys, '--data_dir', market / 'query')
    said = fails(capsys, '--data_dir', market, '--dataset', 'msmt17')
    assert all(word in said for word in ('list_train.txt', 'mask_train_v2', 'holds: bounding_box_test'))
    run('--data_dir', market)
    assert 'prepared already' in fails(capsys, '--data_dir', market / 'pytorch')
    assert 'prepared already' in fails(capsys, '--data_dir', market / 'pytorch', '--rule', '(?P<id>.)')
    for folder in MARKET:
        shutil.rmtree(market / folder)
    assert 'prepared already' in fails(capsys, '--data_dir', market)


def test_own_pictures_need_their_rule_again(tmp_path, capsys):
    files = {'train_all': ['a_1.jpg'], 'query': ['b_1.jpg'], 'gallery': ['b_2.jpg']}  # called as in a prepared tree
    root = draw(tmp_path / 'own', files)
    run('--data_dir', root, '--rule', '(?P<id>[a-z])_')
    said = fails(capsys, '--data_dir', root)
    assert 'was prepared with --rule: give it again to take in new pictures' in said
    assert f'train.py --data_dir "{root}/pytorch"' in said
    assert 'was prepared with --rule' in fails(capsys, '--data_dir', root, '--dataset', 'duke')


def test_the_two_of_cuhk03(tmp_path, capsys):
    files = {
        'bounding_box_train': ['0003_c1_11.png'],
        'query': ['0001_c1_3.png'],
        'bounding_box_test': ['0001_c2_4.png'],
    }
    for version in ('detected', 'labeled'):
        draw(tmp_path / version, files)
    said = fails(capsys, '--data_dir', tmp_path)
    assert str(tmp_path / 'detected') in said
    assert str(tmp_path / 'labeled') in said


def test_lists_that_name_what_is_not_there(tmp_path, capsys):
    root = draw_msmt(tmp_path / 'MSMT17')
    (root / 'test' / MSMT['test'][0]).unlink()
    said = fails(capsys, '--data_dir', root)
    assert MSMT['test'][0] in said
    assert untouched(root)


def test_options_that_do_not_go_together(market, capsys):
    assert '--ids' in fails(capsys, '--data_dir', market, '--ids', 5)
    assert '--rule' in fails(capsys, '--data_dir', market, '--dataset', 'duke', '--rule', '(?P<id>.)')
