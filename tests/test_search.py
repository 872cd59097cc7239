"""A picture in, a vector out; the same or not: python -m pytest tests/test_search.py"""

import csv
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

import search
from reid import cli, data, thresholds
from reid.rerank import rerank


@pytest.fixture(scope='module')
def place(tmp_path_factory, card):
    """A toy data set; a run of one epoch, tested, with a threshold and an exported file."""
    cwd = tmp_path_factory.mktemp('place')
    assert card('prepare.py', '--dataset', 'toy', '--ids', 12, '--images', 6, cwd=cwd).returncode == 0
    words = '--name a --data_dir data/toy --train_all --holdout 3 --total_epoch 1 --backbone resnet18 --height 64 '
    words += '--width 32 --linear_num 32 --weights none --batchsize 8 --num_workers 0 --seed 3 --gpu_ids -1'
    for line in (f'train.py {words}', 'test.py --name a', 'threshold.py --name a --far 0.1'):
        done = card(*line.split(), cwd=cwd)
        assert done.returncode == 0, done.stderr
    return cwd


def run(place, monkeypatch, *words):
    """-> the exit code."""
    monkeypatch.chdir(place)
    try:
        cli.start(search.main, search.options, [*map(str, words)])
    except SystemExit as end:
        return end.code
    return 0


def vectors(text):
    """What was printed -> {name: vector}."""
    found = (line.split(': [') for line in text.splitlines() if line.endswith(']'))
    return {name: np.array([float(x) for x in values[:-1].split(', ')]) for name, values in found}


def test_a_vector_is_that_of_test_py(place, monkeypatch, capsys):
    result = loadmat(place / 'model/a/pytorch_result.mat')
    names = [f'data/toy/pytorch/{path.item()}' for path in result['query_path'].ravel()]
    assert run(place, monkeypatch, 'embed', *names[:40], '--name', 'a', '--batchsize', 7) == 0
    found = vectors(capsys.readouterr().out)
    assert list(found) == names[:40]
    np.testing.assert_allclose(np.stack(list(found.values())), result['query_f'][:40], atol=2e-6)


def test_every_form_holds_the_same(place, monkeypatch, capsys, tmp_path):
    folder = place / 'data/toy/pytorch/query'
    names = sorted(str(path) for path in folder.glob('*/*.jpg'))
    for out in ('f.npz', 'f.csv', 'f.jsonl'):
        assert run(place, monkeypatch, 'embed', folder, '--name', 'a', '--out', tmp_path / out) == 0
        assert f'{len(names)} pictures -> 32 numbers each' in capsys.readouterr().out
    arrays = np.load(tmp_path / 'f.npz')
    assert arrays['names'].tolist() == names
    about = json.loads(str(arrays['about']))
    assert (about['run'], about['flip']) == ('a', True)
    with (tmp_path / 'f.csv').open(newline='') as file:
        head, *rows = csv.reader(file)
    assert head == ['name', *map(str, range(32))]
    assert [row[0] for row in rows] == names
    lines = [json.loads(line) for line in (tmp_path / 'f.jsonl').read_text().splitlines()]
    assert [line['name'] for line in lines] == names
    for f in ([row[1:] for row in rows], [line['feature'] for line in lines]):
        assert np.array_equal(np.array(f, np.float32), arrays['features'])  # to the last bit
    np.testing.assert_allclose(np.linalg.norm(arrays['features'], axis=1), 1, atol=1e-6)


def test_an_exported_file_says_the_same(place, monkeypatch, capsys):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    import export

    monkeypatch.chdir(place)
    cli.start(export.main, export.options, ['--name', 'a', '--compare', '10'])
    one, other = sorted((place / 'data/toy/pytorch/query').glob('*/*.jpg'))[:2]
    said = []
    for which in (['--name', 'a'], ['--model', 'model/a/a.onnx']):
        capsys.readouterr()
        assert run(place, monkeypatch, 'embed', one, other, *which) == 0
        assert run(place, monkeypatch, 'same', one, other, *which) == 0
        said.append(capsys.readouterr().out)
    (a, b), (c, d) = (vectors(text).values() for text in said)
    np.testing.assert_allclose([a, b], [c, d], atol=1e-5)
    assert said[0].splitlines()[-2:] == said[1].splitlines()[-2:]


def test_the_verdict_is_that_of_the_threshold(place, monkeypatch, capsys):
    bounds = thresholds.load(place / 'model/a')['bounds']
    paths = sorted((place / 'data/toy/pytorch/query').glob('*/*.jpg'))
    assert run(place, monkeypatch, 'same', paths[0], paths[0], '--name', 'a') == 0
    said = capsys.readouterr().out
    assert 'score 1.0000, distance 0.000' in said
    assert f'same (the same from {bounds["same"]:.4f}, not the same below {bounds["not_same"]:.4f})' in said
    assert run(place, monkeypatch, 'embed', *paths, '--name', 'a') == 0
    f = np.stack(list(vectors(capsys.readouterr().out).values())).astype(np.float64)
    verdicts = {}
    for other, score in zip(paths[1:], f[1:] @ f[0], strict=True):
        expected = 'same' if score > bounds['same'] else 'not the same' if score < bounds['not_same'] else 'unsure'
        verdicts.setdefault(expected, (other, score))
    for expected, (other, score) in verdicts.items():
        run(place, monkeypatch, 'same', paths[0], other, '--name', 'a')
        first, verdict = capsys.readouterr().out.splitlines()
        assert float(first.split()[1].rstrip(',')) == pytest.approx(score, abs=1e-4)
        assert verdict.split(' (')[0] == expected
    assert len(verdicts) > 1


def test_without_a_threshold_there_is_a_score_and_a_sentence(place, monkeypatch, capsys):
    path = next((place / 'data/toy/pytorch/query').glob('*/*.jpg'))
    (place / 'model/a/threshold.json').rename(place / 'kept')
    try:
        assert run(place, monkeypatch, 'same', path, path, '--name', 'a') == 2
    finally:
        (place / 'kept').rename(place / 'model/a/threshold.json')
    said = capsys.readouterr()
    assert 'score 1.0000' in said.out
    assert 'no threshold has been chosen yet. python threshold.py --name a chooses one' in said.err


# ---------------------------------------------------------------------------------------------------------------------
# an index


def filled(place, monkeypatch, where, *words):
    """An index of the gallery."""
    assert run(place, monkeypatch, 'index', 'create', where, '--name', 'a', *words) == 0
    assert run(place, monkeypatch, 'index', 'add', where, 'data/toy/pytorch/gallery', '--batchsize', 5) == 0


def entries(place, monkeypatch, capsys, *words):
    capsys.readouterr()
    assert run(place, monkeypatch, *words, '--json') == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_index_answers_as_the_matrix_of_scores_does(place, monkeypatch, capsys, tmp_path):
    filled(place, monkeypatch, tmp_path / 'people')
    result = loadmat(place / 'model/a/pytorch_result.mat')
    gallery = [path.item() for path in result['gallery_path'].ravel()]
    assert f'{len(gallery)} added, {len(gallery)} in all' in capsys.readouterr().out
    listed = entries(place, monkeypatch, capsys, 'index', 'list', tmp_path / 'people')
    root = (place / 'data/toy/pytorch').resolve()
    assert [entry['path'] for entry in listed] == [str(root / path) for path in gallery]
    assert [entry['name'] for entry in listed] == [path.split('/')[1] for path in gallery]
    assert [entry['camera'] for entry in listed] == result['gallery_cam'].ravel().tolist()
    query = ['query', 'data/toy/pytorch/query', '--index', tmp_path / 'people', '--top', 5]
    scores = result['query_f'].astype(np.float64) @ result['gallery_f'].T.astype(np.float64)
    found = entries(place, monkeypatch, capsys, *query)
    assert [one['picture'] for one in found] == [f'data/toy/pytorch/{p.item()}' for p in result['query_path'].ravel()]
    for one, row in zip(found, scores, strict=True):
        expected = np.sort(row)[::-1][:5]
        np.testing.assert_allclose([hit['score'] for hit in one['hits']], expected, atol=1e-5)
        place_of = {entry['path']: i for i, entry in enumerate(listed)}
        np.testing.assert_allclose([row[place_of[hit['path']]] for hit in one['hits']], expected, atol=1e-5)
    cameras = result['gallery_cam'].ravel()
    for one, row in zip(entries(place, monkeypatch, capsys, *query, '--camera', 2), scores, strict=True):
        assert {hit['camera'] for hit in one['hits']} == {2}
        np.testing.assert_allclose([h['score'] for h in one['hits']], np.sort(row[cameras == 2])[::-1][:5], atol=1e-5)


def test_below_the_threshold_it_is_nobody(place, monkeypatch, capsys, tmp_path):
    filled(place, monkeypatch, tmp_path / 'people')
    query = ['query', 'data/toy/pytorch/query', '--index', tmp_path / 'people']
    bound = thresholds.load(place / 'model/a')['bounds']['same']
    for words, least in (([], bound), (['--threshold', 0.9999], 0.9999), (['--threshold', -1], -1)):
        for one in entries(place, monkeypatch, capsys, *query, *words):
            best = one['hits'][0]
            assert one['threshold'] == least
            assert one['who'] == (best['name'] if best['score'] >= least else None)
    run(place, monkeypatch, *query, '--threshold', 1)
    assert ': unknown\n' in capsys.readouterr().out


def test_reranking_changes_the_order_alone(place, monkeypatch, capsys, tmp_path):
    filled(place, monkeypatch, tmp_path / 'people')
    result = loadmat(place / 'model/a/pytorch_result.mat')
    query = ['query', 'data/toy/pytorch/query', '--index', tmp_path / 'people', '--top', 400]
    plain, again = (entries(place, monkeypatch, capsys, *query, *words) for words in ([], ['--rerank']))
    gallery = [path.item() for path in result['gallery_path'].ravel()]
    for i, (one, other) in enumerate(zip(plain, again, strict=True)):
        ((_, score),) = rerank(result['query_f'][i : i + 1], result['gallery_f'])
        order = [gallery.index('/'.join(Path(hit['path']).parts[-3:])) for hit in other['hits']]
        steps = np.diff(score[0].numpy()[order])
        assert (steps < 1e-5).all()  # no worse one before a better one
        assert sorted(hit['id'] for hit in one['hits']) == sorted(hit['id'] for hit in other['hits'])
        assert {hit['id']: hit['score'] for hit in one['hits']} == {hit['id']: hit['score'] for hit in other['hits']}
    assert [one['hits'] for one in plain] != [one['hits'] for one in again]


def test_entries_come_and_go(place, monkeypatch, capsys, tmp_path):
    where, folder = tmp_path / 'people', place / 'data/toy/pytorch/query'
    pictures = sorted(folder.glob('*/*.jpg'))[:6]
    assert run(place, monkeypatch, 'index', 'create', where, '--name', 'a') == 0
    add = ['index', 'add', where]
    assert run(place, monkeypatch, *add, *pictures[:2], '--as', "Zoë'; drop table entries", '--camera', 7) == 0
    assert run(place, monkeypatch, *add, *pictures[2:], '--time', '2020-05-17T10:30') == 0
    show = ['index', 'list', where]
    found = entries(place, monkeypatch, capsys, *show, '--as', "Zoë'; drop table entries")
    assert [(entry['path'], entry['camera']) for entry in found] == [(str(p.resolve()), 7) for p in pictures[:2]]
    assert len(entries(place, monkeypatch, capsys, *show, '--until', '2020-05-17T10:31')) == 4
    assert len(entries(place, monkeypatch, capsys, *show, '--since', '2020-05-17T10:31')) == 2
    # the same picture again takes the place of what was there
    assert run(place, monkeypatch, *add, pictures[0], '--as', 'Bo') == 0
    found = entries(place, monkeypatch, capsys, *show)
    assert [entry['name'] for entry in found if entry['path'] == str(pictures[0].resolve())] == ['Bo']
    assert len(found) == 6
    remove = ['index', 'remove', where]
    assert run(place, monkeypatch, *remove, '--path', os.path.relpath(pictures[3], place)) == 0
    assert run(place, monkeypatch, *remove, '--as', 'Bo') == 0
    assert run(place, monkeypatch, *remove, '--ids', found[1]['id'], 12345) == 0
    assert '0 removed' not in capsys.readouterr().out
    assert run(place, monkeypatch, *remove, '--as', 'nobody') == 0
    assert '0 removed, 3 left' in capsys.readouterr().out
    assert run(place, monkeypatch, 'index', 'stats', where) == 0
    said = capsys.readouterr().out
    assert 'entries: 3\n' in said
    assert 'engine: exact\n' in said
    assert run(place, monkeypatch, *show) == 0
    assert "Zoë'; drop table entries  camera 7" in capsys.readouterr().out


def test_a_link_is_named_by_where_it_lies(place, monkeypatch, capsys, tmp_path):
    """As prepare.py --link soft makes a tree; and a name that does not tell its camera is skipped, others go on."""
    source, tree = place / 'data/toy/pytorch/gallery', tmp_path / 'tree'
    pictures = sorted(source.glob('*/*.jpg'))[:40:13]
    (tree / 'gallery').mkdir(parents=True)
    (tree / 'dataset.yaml').write_text((source.parent / 'dataset.yaml').read_text())
    for picture in pictures:
        (tree / 'gallery' / picture.parent.name).mkdir(exist_ok=True)
        try:
            (tree / 'gallery' / picture.parent.name / picture.name).symlink_to(picture.resolve())
        except OSError:
            pytest.skip('this user may not make links')
    odd = tree / 'gallery' / pictures[0].parent.name / 'odd.jpg'
    odd.write_bytes(pictures[0].read_bytes())
    assert run(place, monkeypatch, 'index', 'create', tmp_path / 'people', '--name', 'a') == 0
    assert run(place, monkeypatch, 'index', 'add', tmp_path / 'people', tree / 'gallery') == 1
    assert "'odd.jpg'" in capsys.readouterr().err
    found = entries(place, monkeypatch, capsys, 'index', 'list', tmp_path / 'people')
    rule = search.cameras(source.parent)
    expected = [(p.parent.name, rule(p.name), str(p.resolve())) for p in pictures]
    assert sorted((one['name'], one['camera'], one['path']) for one in found) == sorted(expected)


def test_what_cannot_be_read_is_not_added(place, monkeypatch, capsys, tmp_path):
    good = next((place / 'data/toy/pytorch/query').glob('*/*.jpg'))
    (tmp_path / 'bad.jpg').write_text('no picture')
    where = tmp_path / 'people'
    assert run(place, monkeypatch, 'index', 'create', where, '--name', 'a') == 0
    assert run(place, monkeypatch, 'index', 'add', where, tmp_path / 'bad.jpg', good) == 1
    said = capsys.readouterr()
    assert '1 added, 1 in all' in said.out
    assert 'bad.jpg is not a picture' in said.err


def test_vectors_of_another_network_are_not_mixed(place, monkeypatch, capsys, tmp_path):
    filled(place, monkeypatch, tmp_path / 'people')
    picture = next((place / 'data/toy/pytorch/query').glob('*/*.jpg'))
    query = ['query', picture, '--index', tmp_path / 'people']
    assert run(place, monkeypatch, *query, '--no_flip') == 2
    assert 'were made with flip True, and these (a) with False' in capsys.readouterr().err
    assert run(place, monkeypatch, 'index', 'create', tmp_path / 'half', '--name', 'a', '--no_flip') == 0
    assert run(place, monkeypatch, 'index', 'add', tmp_path / 'half', picture) == 0  # as the index has it
    assert run(place, monkeypatch, 'query', picture, '--index', tmp_path / 'half') == 0


def test_mistakes_about_an_index_are_sentences(place, monkeypatch, capsys, tmp_path):
    filled(place, monkeypatch, tmp_path / 'people')
    for words, sentence in (
        (['index', 'remove', tmp_path / 'people'], 'which? --ids, --as, --camera'),
        (['index', 'list', tmp_path / 'gone'], 'is no index'),
        (['index', 'create', tmp_path / 'people', '--name', 'a'], 'people'),
        (['index', 'create', place / 'data', '--name', 'a'], 'data'),
        (['query', 'x.jpg', '--index', tmp_path / 'people', '--since', 'yesterday'], 'invalid moment value'),
        (['query', 'x.jpg', '--index', tmp_path / 'people', '--threshold', '2'], '-1 to 1 is expected'),
        (['index', 'list', tmp_path / 'people', '--camera', 10**20], 'is expected'),
        (['index', 'list', tmp_path / 'people', '--ids', 10**20], 'is expected'),
        (['index'], 'WORK'),
        ([], 'JOB'),
    ):
        assert run(place, monkeypatch, *words) == 2
        assert sentence in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# pictures of any kind


def test_what_cannot_be_read_is_named_and_skipped(place, monkeypatch, capsys, tmp_path):
    good = next((place / 'data/toy/pytorch/query').glob('*/*.jpg'))
    (tmp_path / 'half.jpg').write_bytes(good.read_bytes()[:300])
    (tmp_path / 'text.png').write_text('no picture')
    (tmp_path / 'ein Bild 🚶 ü.jpg').write_bytes(good.read_bytes())
    words = ['embed', tmp_path, good, tmp_path / 'gone.jpg', '--name', 'a']
    assert run(place, monkeypatch, *words) == 1
    said = capsys.readouterr()
    found = vectors(said.out)
    assert list(found) == [str(tmp_path / 'ein Bild 🚶 ü.jpg'), str(good)]
    np.testing.assert_array_equal(*found.values())
    assert [name in said.err for name in ('half.jpg is not', 'text.png is not', 'gone.jpg: there is no')] == [True] * 3
    assert '3 of 5 files could not be read' in said.err
    assert run(place, monkeypatch, *words, '--out', tmp_path / 'f.npz') == 1
    assert np.load(tmp_path / 'f.npz')['names'].tolist() == list(found)


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['embed', 'empty', '--name', 'a'], 'empty: pictures are expected at any depth, found nothing'),
        (['embed', 'x.jpg', '--name', 'a', '--out', 'f.txt'], 'a name that ends with .npz, .csv, .jsonl is expected'),
        (['embed', 'x.jpg', '--name', 'nobody'], 'Runs that are there: a'),
        (['same', 'x.jpg', 'y.jpg', '--name', 'a'], 'x.jpg: there is no such file'),
        (['same', 'x.jpg', 'y.jpg', '--model', 'gone.onnx'], 'gone.onnx'),
        (['embed', 'x.jpg', '--model', 'gone.onnx', '--no_flip'], '--no_flip is an option of a run'),
        (['embed', 'x.jpg', '--name', 'a', '--runtime', 'onnx'], '--runtime is an option of a file'),
    ],
)
def test_mistakes_are_sentences(words, sentence, place, monkeypatch, capsys):
    (place / 'empty').mkdir(exist_ok=True)
    assert run(place, monkeypatch, *words) == 2
    assert sentence in capsys.readouterr().err


def gradient(width=20, height=40):
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 0 * x + 80], 2).astype(np.uint8)


@pytest.mark.parametrize('kind', ['png', 'webp', 'bmp', 'tiff', 'gif', 'jpg'])
def test_pictures_of_any_kind_are_the_same_picture(kind, tmp_path):
    Image.fromarray(gradient()).save(tmp_path / f'x.{kind}', **({'lossless': True} if kind == 'webp' else {}))
    found = np.array(data.read(tmp_path / f'x.{kind}'))
    much = {'gif': 60, 'jpg': 40}.get(kind, 0)
    assert np.abs(found.astype(int) - gradient()).max() <= much
    assert np.array_equal(found, data.read((tmp_path / f'x.{kind}').read_bytes()))


def test_pictures_are_upright_and_transparency_is_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(np.rot90(gradient())).save(tmp_path / 'turned.png', exif=exif)
    assert np.array_equal(data.read(tmp_path / 'turned.png'), gradient())
    alpha = np.dstack([gradient(), np.where(np.arange(20) < 10, 255, 0) * np.ones((40, 1))]).astype(np.uint8)
    Image.fromarray(alpha).save(tmp_path / 'clear.png')
    found = np.array(data.read(tmp_path / 'clear.png'))
    assert np.array_equal(found[:, :10], gradient()[:, :10])
    assert (found[:, 10:] == 255).all()
    pale = Image.fromarray(gradient()).quantize(8)
    pale.info['transparency'] = 0
    pale.save(tmp_path / 'pale.png', transparency=0)
    assert (np.array(data.read(tmp_path / 'pale.png'))[np.array(pale) == 0] == 255).all()


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'CMYK', 'I;16', 'P', 'YCbCr', 'HSV', 'RGBX'])
def test_grey_and_printed_pictures_too(mode, tmp_path):
    if mode == 'I;16':
        picture = Image.fromarray(gradient()[:, :, 0].astype(np.uint16) * 257)
    elif mode == 'HSV':
        picture = Image.fromarray(gradient()).convert(mode)
        assert data.rgb(picture).mode == 'RGB'
        return
    else:
        picture = Image.fromarray(gradient()).convert(mode)
    path = tmp_path / ('x.tiff' if mode in ('CMYK', 'YCbCr', 'RGBX') else 'x.png')
    picture.save(path)
    found = data.read(path)
    assert (found.mode, found.size) == ('RGB', (20, 40))
    if mode == 'I;16':
        assert np.abs(np.array(found)[:, :, 0].astype(int) - gradient()[:, :, 0]).max() <= 1


def test_a_file_that_claims_to_be_huge_takes_no_memory(tmp_path):
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    head = struct.pack('>IIBBBBB', 12_000, 12_000, 8, 2, 0, 0, 0)
    (tmp_path / 'bomb.png').write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')
    )
    with pytest.raises(search.Problem, match='12000 x 12000 pixels: at most 100,000,000 are read here'):
        data.read(tmp_path / 'bomb.png')


@pytest.mark.parametrize('size', [(1, 1), (3000, 1), (1, 3000)])
def test_the_smallest_and_the_longest_pictures_are_sized(size, tmp_path):
    Image.new('RGB', size, (10, 20, 30)).save(tmp_path / 'x.png')
    found = data.sized(data.read(tmp_path / 'x.png'), (64, 32))
    assert found.shape == (64, 32, 3)
    assert (found == (10, 20, 30)).all()
