"""CLIP: its networks, its texts, and both stages of CLIP-ReID. python -m pytest tests/test_clip.py"""

import argparse
import copy
import json
import math
import shutil
import sys

import pytest
import torch
from conftest import ROOT
from torchvision.transforms.functional import to_pil_image

import model as networks
import prepare
import search
import test
import train
import utils
from reid import (
    augment,
    backbones,
    cli,
    clip_nets,
    clip_texts,
    data,
    exporting,
    features,
    heatmap,
    identities,
    index,
    losses,
    optim,
    results,
)
from reid.data import MEAN, STD
from reid.files import read_rows
from reid.problem import Problem

open_clip = pytest.importorskip('open_clip')

RESNET = {**clip_nets.TINY, 'vision_cfg': {'image_size': 224, 'layers': [1, 1, 1, 1], 'width': 8, 'head_width': 32}}
SEEN = torch.Generator().manual_seed(0)


@pytest.fixture
def small_resnet(monkeypatch):
    """clip/tiny becomes a ResNet."""
    monkeypatch.setattr(clip_nets, 'TINY', RESNET)


def whole(config, seed=0):
    """A CLIP of open_clip's own making, with random weights."""
    torch.manual_seed(seed)
    net = open_clip.CLIP(**copy.deepcopy(config)).eval()
    for name, p in net.named_parameters():
        if name.endswith('bn3.weight'):  # they begin with 0, which would hide half of the network
            torch.nn.init.ones_(p)
    return net


def options(**given):
    base = {'backbone': 'clip/tiny', 'head': 'clip', 'pool': 'avg', 'droprate': 0.0, 'nclasses': 5, 'overlap': 0}
    names = ('height', 'width', 'stride', 'linear_num', 'loss_feature', 'test_feature')
    return networks.complete(argparse.Namespace(**{**base, **dict.fromkeys(names), **given}))


def file_of(state, tmp_path, name='file.pth'):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def as_open_clip_takes_them(x):
    """Pictures normalised as for ImageNet, -1 ... 1."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return 2 * (x * std + mean) - 1


# ---------------------------------------------------------------------------------------------------------------------
# networks


@pytest.mark.parametrize('config', [clip_nets.TINY, RESNET], ids=['vit', 'resnet'])
def test_the_projection_is_what_open_clip_gives(config, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_nets, 'TINY', config)
    theirs, x = whole(config), torch.randn(2, 3, 224, 224, generator=SEEN)
    net = networks.build(options(height=224, width=224)).eval()
    said = networks.load_weights(net, file_of(theirs.state_dict(), tmp_path), warm_start=True)
    assert 'tensors' in said
    with torch.no_grad():
        expected = theirs.encode_image(as_open_clip_takes_them(x))
        *_, feature, projection = clip_nets.features(net.model, x)
        torch.testing.assert_close(projection, expected, atol=1e-4, rtol=1e-4)
        assert net.embed(x).shape == (2, feature.shape[1] + projection.shape[1]) == (2, net.dim)
        torch.testing.assert_close(net.embed(x)[:, feature.shape[1] :], expected, atol=1e-4, rtol=1e-4)


def test_positions_are_resized_to_the_grid_of_the_pictures(tmp_path):
    theirs = whole(clip_nets.TINY)
    rows = torch.arange(14.0)[:, None, None].expand(14, 14, 64)  # a position is the number of its row
    theirs.visual.positional_embedding.data = torch.cat([torch.full((1, 64), 7.0), rows.reshape(196, 64)])
    net = networks.build(options(height=256, width=128))
    networks.load_weights(net, file_of(theirs.state_dict(), tmp_path), warm_start=True)
    first, *grid = net.model.positional_embedding.detach()
    grid = torch.stack(grid).unflatten(0, (16, 8))
    assert (first == 7).all()
    torch.testing.assert_close(grid, grid[:, :1, :1].expand(16, 8, 64), atol=1e-5, rtol=0)  # the same along a row
    assert (grid[:, 0, 0].diff() > 0).all()
    torch.testing.assert_close(grid.mean(), torch.tensor(6.5), atol=0.05, rtol=0)


@pytest.mark.parametrize('size', [(256, 128), (128, 64)])
def test_other_sizes_than_its_own_are_seen_too(size, small_resnet):
    for net in (backbones.trunk('clip/tiny', 1, 256, 128), backbones.trunk('clip/tiny', 2, 128, 64)):
        assert backbones.maps('clip/tiny', net.eval(), torch.zeros(2, 3, *size)).shape == (2, 256 + 64, 1, 1)


def test_a_last_stride_of_1_has_finer_maps(small_resnet):
    coarse, fine = (backbones.trunk('clip/tiny', stride, 256, 128) for stride in (2, 1))
    assert (coarse.grid, fine.grid) == ((8, 4), (16, 8))
    seen = []
    fine.layer4.register_forward_hook(lambda net, x, y: seen.append(tuple(y.shape[2:])))
    clip_nets.features(fine.eval(), torch.zeros(1, 3, 256, 128))
    assert seen == [(16, 8)]


def test_patches_that_overlap():
    net = backbones.trunk('clip/tiny', 2, 256, 128, overlap=4)
    assert net.grid == (21, 10)  # as in the paper: (256 - 16) / 12 + 1, (128 - 16) / 12 + 1
    assert len(net.positional_embedding) == 211
    assert backbones.maps('clip/tiny', net, torch.zeros(1, 3, 256, 128)).shape == (1, 128, 1, 1)


def test_openai_and_others_have_activations_of_their_own():
    kinds = {}
    for name in ('clip/ViT-B-32', 'clip/ViT-B-32-gelu', 'clip/ViT-B-32-quickgelu', 'clip/ViT-B-16-plus-240'):
        with torch.device('meta'):
            net = backbones.trunk(name, 2, 240, 240) if '240' in name else backbones.trunk(name, 2, 224, 224)
        kinds[name] = type(net.transformer.resblocks[0].mlp.gelu).__name__
    assert list(kinds.values()) == ['QuickGELU', 'GELU', 'QuickGELU', 'GELU']


def test_what_cannot_be_is_a_sentence(small_resnet):
    with pytest.raises(Problem, match='Is one of these meant: .*clip/ViT-B-16'):
        backbones.check('clip/ViT-B16')
    with pytest.raises(Problem, match='vision transformer'):
        backbones.trunk('clip/tiny', 2, 256, 128, overlap=4)
    with pytest.raises(Problem, match='vision transformer'):
        backbones.trunk('resnet18', 2, 256, 128, overlap=4)


def test_what_cannot_be_of_a_vision_transformer_is_a_sentence():
    with pytest.raises(Problem, match='multiples of 16'):
        backbones.trunk('clip/tiny', 2, 250, 128)
    with pytest.raises(Problem, match='--overlap 16'):
        backbones.trunk('clip/tiny', 2, 256, 128, overlap=16)
    with pytest.raises(Problem, match='say --stride 2'):
        backbones.trunk('clip/tiny', 1, 256, 128)
    for given in ({'head': 'pcb', 'stride': 2}, {'head': 'bnneck', 'pool': 'gem'}):
        with pytest.raises(Problem, match='nothing to pool'):
            options(**given)
    with pytest.raises(Problem, match='--head clip is for the networks of CLIP'):
        options(backbone='resnet18')
    with pytest.raises(Problem, match='--loss_feature after'):
        options(loss_feature='after')


def test_without_the_package_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'open_clip', None)
    with pytest.raises(Problem, match='pip install open_clip_torch'):
        backbones.check('clip/ViT-B-16')


# ---------------------------------------------------------------------------------------------------------------------
# weights


def published(net, nclasses=5):
    """What CLIP-ReID saves of a CLIP, by its names, with values that can be told apart."""
    state, g = {}, torch.Generator().manual_seed(1)
    for name, value in net.visual.state_dict().items():
        state[f'image_encoder.{name}'] = value
    text = ('transformer.', 'ln_final.', 'positional_embedding', 'text_projection')
    for name, value in net.state_dict().items():
        if name.startswith(text):
            state[f'text_encoder.{name}'] = value
    for name, width in (('', 64), ('_proj', 64)):
        state[f'classifier{name}.weight'] = torch.randn(nclasses, width, generator=g)
        for kind in ('weight', 'bias', 'running_mean', 'running_var'):
            state[f'bottleneck{name}.{kind}'] = torch.rand(width, generator=g)
        state[f'bottleneck{name}.num_batches_tracked'] = torch.tensor(3)
    state['prompt_learner.cls_ctx'] = torch.randn(nclasses, 4, 64, generator=g)
    state['prompt_learner.token_prefix'] = torch.randn(1, 5, 64, generator=g)
    state['prompt_learner.token_suffix'] = torch.randn(1, 68, 64, generator=g)
    return state


def test_a_file_of_clip_reid_is_read_by_its_names(tmp_path):
    state = published(whole(clip_nets.TINY))
    state['image_encoder.positional_embedding'] = torch.randn(1 + 16 * 8, 64)  # of its own 256 x 128
    net = networks.build(options())
    said = networks.load_weights(net, file_of(state, tmp_path))  # all of it: no tensor may be missing
    count = len(net.state_dict())
    assert f'{count} of {count} tensors' in said
    own = net.state_dict()
    for ours, theirs in {
        'model.positional_embedding': 'image_encoder.positional_embedding',
        'model.transformer.resblocks.1.ln_1.weight': 'image_encoder.transformer.resblocks.1.ln_1.weight',
        'classifier.classifier.weight': 'classifier.weight',
        'projected.classifier.weight': 'classifier_proj.weight',
        'classifier.add_block.running_mean': 'bottleneck.running_mean',
        'projected.add_block.running_var': 'bottleneck_proj.running_var',
    }.items():
        assert torch.equal(own[ours], state[theirs]), ours


def test_half_precision_and_wrappers_do_not_matter(tmp_path):
    state = {f'module.{name}': value.half() for name, value in whole(clip_nets.TINY).state_dict().items()}
    net = networks.build(options())
    networks.load_weights(net, file_of({'epoch': 3, 'state_dict': state}, tmp_path), warm_start=True)
    assert net.model.proj.dtype == torch.float32
    assert torch.equal(net.model.proj, state['module.visual.proj'].float())


def test_weights_of_another_width_are_a_sentence(tmp_path):
    wide = copy.deepcopy(clip_nets.TINY)
    wide['vision_cfg']['width'] = 128
    path = file_of(whole(wide).state_dict(), tmp_path)
    with pytest.raises(Problem, match=r'does not fit this network: .* file \(128.*network \(64'):
        networks.load_weights(networks.build(options()), path, warm_start=True)


def test_a_file_of_something_else_is_a_sentence(tmp_path):
    path = file_of({'a': torch.zeros(3)}, tmp_path)
    with pytest.raises(Problem, match='0 of .* tensors match'):
        networks.load_weights(networks.build(options()), path, warm_start=True)


@pytest.fixture
def an_archive(tmp_path, monkeypatch):
    """A TorchScript archive with the tensors of a CLIP, as OpenAI's files are, in the place where they are kept."""

    class Holder(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.visual, self.transformer = net.visual, net.transformer

        def forward(self, x):
            return x

    monkeypatch.setenv('HOME', str(tmp_path))
    path = tmp_path / '.cache/clip/ViT-B-32.pt'
    path.parent.mkdir(parents=True)
    net = whole(clip_nets.TINY)
    torch.jit.trace(Holder(net), torch.zeros(1)).save(str(path))
    return path, net


def known_by(monkeypatch, path):
    digest = clip_nets.hashlib.sha256(path.read_bytes()).hexdigest()
    url = f'https://example.org/models/{digest}/{path.name}'
    monkeypatch.setattr(clip_nets, 'openai', lambda: ['ViT-B-32'])
    monkeypatch.setattr(clip_nets, 'source', lambda name: url)
    return url


def test_a_file_of_openai_is_read_and_another_program_is_not(an_archive, monkeypatch):
    path, theirs = an_archive
    with pytest.raises(Problem, match='no file of weights that can be read safely'):
        networks.read_state(path)  # nobody knows it
    known_by(monkeypatch, path)
    net = networks.build(options())
    networks.load_weights(net, path, warm_start=True)
    assert torch.equal(net.model.proj, theirs.visual.proj)
    net = networks.build(options())
    assert networks.initialise(net, 'openai', 'clip/tiny') == "OpenAI's weights of clip/tiny"
    assert torch.equal(net.model.conv1.weight, theirs.visual.conv1.weight)


def test_weights_that_cannot_be_downloaded_say_which_file_and_where_to_put_it(an_archive, monkeypatch):
    path, _ = an_archive
    url = known_by(monkeypatch, path)
    path.unlink()

    def offline(*_, **__):
        raise OSError('no route')

    monkeypatch.setattr(clip_nets, 'download_url_to_file', offline)
    net = networks.build(options())
    with pytest.raises(Problem) as told:
        networks.initialise(net, 'openai', 'clip/tiny')
    assert url in str(told.value)
    assert f'put it at {path}' in str(told.value)
    path.write_bytes(b'half of it')
    with pytest.raises(Problem, match='is not the file that OpenAI has published'):
        networks.initialise(net, 'openai', 'clip/tiny')


def test_weights_by_a_name_that_there_are_none_of(tmp_path):
    net = networks.build(options())
    with pytest.raises(Problem, match='--weights openai'):
        networks.initialise(net, 'imagenet', 'clip/tiny')
    with pytest.raises(Problem, match='OpenAI has no weights for clip/tiny'):
        networks.initialise(net, 'openai', 'clip/tiny')
    with pytest.raises(Problem, match='--weights openai are those of clip'):
        backbones.openai('resnet18', None)


# ---------------------------------------------------------------------------------------------------------------------
# cameras


def with_cameras(**given):
    """A network of cameras 1, 2 and 5, and the same without them."""
    torch.manual_seed(0)
    net = networks.build(options(height=64, width=32, camera_embedding=3.0, cameras=[1, 2, 5], **given)).eval()
    plain = networks.build(options(height=64, width=32, **given)).eval()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if name != 'cameras.vectors'})
    return net, plain


def shifted(plain, vector):
    """A network whose class token is another."""
    net = copy.deepcopy(plain)
    net.model.class_embedding.data += 3 * vector.detach()
    return net


def test_without_the_option_there_are_no_cameras_in_a_network():
    torch.manual_seed(0)
    net = networks.build(options(height=64, width=32, camera_embedding=0.0, cameras=[]))
    torch.manual_seed(0)
    before = networks.build(options(height=64, width=32))  # as a run that is older than the option
    assert [*net.state_dict()] == [*before.state_dict()]
    assert not [name for name in net.state_dict() if 'camera' in name]
    x = torch.randn(2, 3, 64, 32, generator=SEEN)
    assert torch.equal(net.eval().embed(x), before.eval().embed(x))
    net, plain = with_cameras()
    net.cameras.vectors.data.zero_()
    assert torch.equal(net.embed(x), plain.embed(x))  # nor has the network changed otherwise


def test_the_vector_of_a_camera_is_added_to_the_class_token_and_unknown_ones_have_the_mean():
    net, plain = with_cameras()
    x, vectors = torch.randn(1, 3, 64, 32, generator=SEEN).expand(5, -1, -1, -1), net.cameras.vectors
    assert vectors.std().item() == pytest.approx(0.02, rel=0.3)
    cams = torch.tensor([1, 2, 5, -1, 3])
    tokens = [*vectors, vectors.mean(0), vectors.mean(0)]
    expected = torch.cat([shifted(plain, token).embed(x[:1]) for token in tokens])
    found = net.embed(x, cams)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3
    torch.testing.assert_close(net.embed(x), expected[3:4].expand(5, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(x, cams)[1][:, 64:], found)  # what the losses compare


@pytest.mark.parametrize('workers', [0, 1])
def test_each_picture_is_described_with_its_own_camera(workers, tmp_path):
    net, plain = with_cameras()
    rng, paths, cams = torch.Generator().manual_seed(0), [], torch.tensor([5, -1, 2, 2, 7]).numpy()
    for i in range(5):
        paths.append(str(tmp_path / f'{i}.png'))
        to_pil_image(torch.randint(0, 256, (3, 64, 32), generator=rng, dtype=torch.uint8)).save(paths[-1])
    how = {'size': (64, 32), 'device': torch.device('cpu'), 'batchsize': 2, 'workers': workers}
    found = features.extract(net, paths, **how, cams=cams)
    mean = net.cameras.vectors.mean(0)
    tokens = [net.cameras.vectors[2], mean, net.cameras.vectors[1], net.cameras.vectors[1], mean]
    for i, token in enumerate(tokens):
        alone = features.extract(shifted(plain, token), paths[i : i + 1], **how)
        torch.testing.assert_close(torch.tensor(found[i]), torch.tensor(alone[0]), atol=1e-5, rtol=1e-4)
    unknown = features.extract(net, paths, **how)
    torch.testing.assert_close(torch.tensor(unknown[1]), torch.tensor(found[1]), atol=1e-5, rtol=1e-4)
    assert abs(unknown[0] - found[0]).max() > 1e-4
    assert (features.extract(plain, paths, **how, cams=cams) == features.extract(plain, paths, **how)).all()


def test_what_is_exported_takes_the_camera_as_unknown(tmp_path):
    pytest.importorskip('onnxruntime')
    from reid import runtime

    net, plain = with_cameras()
    pictures = torch.randint(0, 256, (2, 64, 32, 3), generator=SEEN, dtype=torch.uint8)
    expected = exporting.Describer(shifted(plain, net.cameras.vectors.mean(0))).eval()(pictures)
    about = {'run': 'a', 'which_epoch': 'last', 'weights': {'sha256': 'a'}, 'size': (64, 32), 'dim': net.dim}
    about |= {'test_feature': 'before', 'bounds': None, 'versions': {}}
    exporting.write('onnx', net, (64, 32), tmp_path / 'a.onnx', about)
    found = torch.from_numpy(runtime.opened(tmp_path / 'a.onnx')(pictures.numpy()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_cameras_learn_from_their_own_pictures():
    net, _ = with_cameras()
    logits, feature = net(torch.randn(3, 3, 64, 32, generator=SEEN), torch.tensor([5, 1, 1]))
    (feature.square().sum() + sum(z.sum() for z in logits)).backward()
    moved = net.cameras.vectors.grad.any(1).tolist()
    assert moved == [True, False, True]
    assert net.cameras in net.heads()  # and at the rate of what is new


def test_of_several_trees_each_has_cameras_of_its_own(tmp_path):
    cams, trees = torch.tensor([1, 6, -1]).numpy(), [str(tmp_path / name) for name in ('a', 'b')]
    one, other = (tmp_path / name for name in ('b/pytorch', 'c/pytorch'))
    assert identities.as_in_training(cams, one, trees).tolist() == [1001, 1006, -1]
    assert identities.as_in_training(cams, tmp_path / 'a', trees).tolist() == [1, 6, -1]
    assert identities.as_in_training(cams, other, trees).tolist() == [-1, -1, -1]
    assert identities.as_in_training(cams, other, trees[:1]).tolist() == [1, 6, -1]  # it has moved


def test_cameras_of_clip_reid_are_read_if_they_are_as_many(tmp_path):
    state = published(whole(clip_nets.TINY)) | {'cv_embed': torch.randn(3, 64)}
    path = file_of(state, tmp_path)
    net = networks.build(options(camera_embedding=3.0, cameras=[1, 2, 5]))
    assert 'left out' not in networks.load_weights(net, path, warm_start=True)
    assert torch.equal(net.cameras.vectors, state['cv_embed'])
    net = networks.build(options(camera_embedding=3.0, cameras=[1, 2]))
    assert 'of 3 cameras is left out: here are 2' in networks.load_weights(net, path, warm_start=True)
    said = networks.load_weights(networks.build(options()), path, warm_start=True)
    assert 'of 3 cameras is left out: --camera_embedding would take it' in said


def test_cameras_where_there_can_be_none_are_a_sentence(small_resnet):
    with pytest.raises(Problem, match='vision transformers'):
        networks.build(options(camera_embedding=3.0, cameras=[1, 2]))
    for head in ('bnneck', 'clip_text'):
        with pytest.raises(Problem, match='--camera_embedding is for --head clip'):
            options(head=head, camera_embedding=3.0)
    with pytest.raises(Problem, match='found none, as in a.jpg'):
        identities.cameras(data.People(['x/a.jpg'], ['x'], torch.tensor([-1]).numpy()))


# ---------------------------------------------------------------------------------------------------------------------
# texts


def texts_of(count=5, seed=0):
    torch.manual_seed(seed)
    return clip_texts.Texts(clip_texts.Tower('clip/tiny'), count)


def test_a_sentence_is_what_open_clip_says_of_it():
    theirs = whole(clip_nets.TINY)
    tower = clip_texts.filled(clip_texts.Tower('clip/tiny'), theirs.state_dict(), 'a file')
    sentences = ['a woman with a red bag', 'A man!']
    with torch.no_grad():
        expected = theirs.encode_text(open_clip.tokenize(sentences))
    torch.testing.assert_close(tower.encode(sentences), expected, atol=1e-5, rtol=1e-5)


def test_learnt_tokens_stand_where_the_x_are():
    theirs, texts = whole(clip_nets.TINY), texts_of(2)
    texts = clip_texts.Texts(clip_texts.filled(texts.tower[0], theirs.state_dict(), 'a file'), 2)
    words = open_clip.tokenize(['A photo of a red tall old thin person.', 'A photo of a X X X X person.'])
    with torch.no_grad():
        texts.tokens[:] = theirs.token_embedding(words)[:, 5:9]
        torch.testing.assert_close(texts.all(), theirs.encode_text(words), atol=1e-5, rtol=1e-5)
        assert torch.equal(texts(torch.tensor([1, 0, 1])), texts.all()[[1, 0, 1]])


def test_a_text_that_does_not_fit_or_says_nothing_is_a_sentence():
    tower = clip_texts.Tower('clip/tiny')
    assert len(clip_texts.numbers(' '.join(['bag'] * 75), tower.context)) == 77
    with pytest.raises(Problem, match='the text has 76 tokens, and 75 fit at most'):
        tower.encode([' '.join(['bag'] * 76)])
    with pytest.raises(Problem, match='the text is empty'):
        tower.encode(['  '])


def test_texts_of_another_kind_are_a_sentence():
    with pytest.raises(Problem, match='of a kind of their own'):
        clip_texts.Tower('clip/ViT-B-16-SigLIP')


def test_a_text_encoder_of_another_width_is_a_sentence():
    wide = copy.deepcopy(clip_nets.TINY)
    wide['text_cfg'] |= {'width': 128}
    with pytest.raises(Problem, match=r'does not fit the text encoder: .* file \(77, 128\), network \(77, 64\)'):
        clip_texts.filled(clip_texts.Tower('clip/tiny'), whole(wide).state_dict(), 'a file')


# ---------------------------------------------------------------------------------------------------------------------
# losses


def log_share(row, chosen):
    """log of exp(chosen) among exp(row)."""
    return chosen - math.log(sum(map(math.exp, row)))


def test_supervised_contrast_both_ways_by_plain_loops():
    texts, y = texts_of(), torch.tensor([3, 1, 3, 0, 1, 3])
    f = torch.randn(6, 64, generator=SEEN)
    texts.tokens.data *= 20
    t = texts(y).detach()
    s = [[float(a @ b) for b in t] for a in f]  # of picture a and the text of picture b
    expected = 0.0
    for i, own in enumerate(y):
        same = [j for j, other in enumerate(y) if other == own]
        expected -= sum(log_share(s[i], s[i][j]) for j in same) / len(same) / len(y)
        column = [row[i] for row in s]
        expected -= sum(log_share(column, column[j]) for j in same) / len(same) / len(y)
    total = losses.Sum(losses.parse(['text_supcon:0.5']), 5, [64], texts)
    value, told = total(f, y)
    assert told['text_supcon'].item() == pytest.approx(expected, rel=1e-4)
    assert value.item() == pytest.approx(expected / 2, rel=1e-4)
    assert list(total.state_dict()) == ['losses.text_supcon.compute.texts.tokens']


def test_cross_entropy_over_texts_by_plain_loops():
    texts, y = texts_of(), torch.tensor([3, 1, 0])
    f = torch.randn(3, 192, generator=SEEN)
    expected, known = 0.0, texts.all()
    for own, piece in zip(y, f[:, 128:], strict=True):  # the projection is the last piece
        s = [float(piece @ t) for t in known]
        shares = [log_share(s, one) for one in s]
        expected -= (0.7 * shares[own] + 0.3 * sum(shares) / 5) / 3
    total = losses.Sum(losses.parse(['text_ce:1:smooth=0.3']), 5, [64, 64, 64], texts)
    assert total(f, y)[0].item() == pytest.approx(expected, rel=1e-4)
    assert not total.state_dict()


def test_pieces_are_compared_one_by_one():
    f, y = torch.randn(8, 12, generator=SEEN), torch.arange(8) // 2
    total = losses.Sum(losses.parse(['triplet', 'center:0.1']), 4, [3, 4, 5])
    one, two, three = f[:, :3], f[:, 3:7], f[:, 7:]
    value, told = total(f, y)
    assert told['triplet'] == sum(losses.triplet(piece, y) for piece in (one, two, three))
    assert [tuple(centers.shape) for centers, _ in total.centers()] == [(4, 3), (4, 4), (4, 5)]


def stage(head, words, **given):
    """A network, its losses and their optimiser, with texts of its own."""
    opts = options(head=head, **given)
    model, texts = networks.build(opts), texts_of()
    also = losses.Sum(losses.parse(words), 5, model.pieces, texts)
    opts = argparse.Namespace(**vars(opts), optimizer='adam', lr=0.01, backbone_lr=1, layer_decay=1, weight_decay=0)
    (optimizer,) = optim.optimizers(model, also, opts)
    return model, texts, also, optimizer


def step(model, also, optimizer, ce):
    model.train()
    x, y = torch.randn(6, 3, 64, 32, generator=SEEN), torch.tensor([0, 0, 1, 1, 2, 2])
    logits, feature = model(x)
    loss = also(feature, y)[0] + ce * sum(torch.nn.functional.cross_entropy(z, y) for z in logits)
    loss.backward()
    optimizer.step()


def copies(*modules):
    return [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_the_first_stage_reaches_nothing_but_tokens():
    model, texts, also, optimizer = stage('clip_text', ['text_supcon'], height=64, width=32)
    before, tower, learnt = copies(model, texts.tower[0], texts)
    step(model, also, optimizer, 0)
    assert not changed(model, before)
    assert not changed(texts.tower[0], tower)
    assert changed(texts, learnt) == {'tokens'}
    assert [p.grad for p in (*model.parameters(), *texts.tower[0].parameters())].count(None) > 50
    assert all(p.grad is None for p in (*model.parameters(), *texts.tower[0].parameters()))
    moved = texts.tokens.detach() != learnt['tokens']
    assert moved[:3].any(2).all()  # of those whose pictures were seen
    assert not moved[3:].any()


def test_the_second_stage_reaches_nothing_but_the_image_encoder_and_its_heads():
    model, texts, also, optimizer = stage('clip', ['triplet', 'text_ce'], height=64, width=32)
    before, tower, learnt, known = copies(model, texts.tower[0], texts) + [also.losses['text_ce'].compute.known.clone()]
    step(model, also, optimizer, 0.25)
    fixed = {'classifier.add_block.bias', 'projected.add_block.bias'}
    assert {name for name, _ in model.named_parameters()} - changed(model, before) == fixed
    assert not changed(texts.tower[0], tower)
    assert not changed(texts, learnt)
    assert torch.equal(also.losses['text_ce'].compute.known, known)
    assert texts.tokens.grad is None
    ours = {id(p) for p in model.parameters()}
    assert all(id(p) in ours for group in optimizer.param_groups for p in group['params'])


def test_texts_alone_move_the_image_encoder():
    """Cross entropy over texts has a gradient for each layer, the projection's among them."""
    model, _, also, _ = stage('clip', ['text_ce'], height=64, width=32)
    _, feature = model(torch.randn(4, 3, 64, 32, generator=SEEN))
    also(feature, torch.tensor([0, 1, 2, 3]))[0].backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.model.named_parameters())
    assert all(p.grad is None for head in model.heads() for p in head.parameters())


def test_texts_learn_to_retrieve_their_people():
    """Of features as a trained encoder gives them: each person around a place of their own."""
    torch.manual_seed(0)
    texts, y = texts_of(20), torch.arange(20).repeat_interleave(6)
    f = 0.5 * torch.randn(20, 64)[y] + 0.2 * torch.randn(120, 64)
    model = networks.build(options(head='clip_text', nclasses=20, height=64, width=32))
    texts.shown = model.texts
    also = losses.Sum(losses.parse(['text_supcon']), 20, [64], texts)
    optimizer = torch.optim.Adam(also.parameters(), lr=0.01)
    seen = []
    for epoch in range(30):
        texts.set_epoch(epoch)
        (scores,), feature = model(f)
        seen.append((also(feature, y)[0].item(), (scores.argmax(1) == y).float().mean().item()))
        for some in torch.randperm(120).split(40):
            optimizer.zero_grad()
            also(f[some], y[some])[0].backward()
            optimizer.step()
    assert seen[-1][0] < 0.7 * seen[0][0]
    assert seen[0][1] < 0.2
    assert seen[-1][1] > 0.9  # chance: 0.05


# ---------------------------------------------------------------------------------------------------------------------
# both stages, as they are run


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with toy data, sixteen people to train on, and in model/ the runs zero, one and two."""
    folder = tmp_path_factory.mktemp('clip')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.start(prepare.main, prepare.options, '--dataset toy --data_dir toy --ids 32 --images 5'.split())
        fit('zero --head clip --weights none --total_epoch 0')
        first = f'--config {ROOT}/configs/clip_reid_stage1.yaml {FIRST} --total_epoch 12'
        fit(f'one {first} --weights model/zero/net_last.pth')
        fit(f'two --config {ROOT}/configs/clip_reid_stage2.yaml --from one {SECOND} --total_epoch 2')
    return folder


SIZE = '--backbone clip/tiny --height 64 --width 32 --seed 1 --gpu_ids -1 --num_workers 0 --data_dir toy'
FIRST, SECOND = '--batchsize 16 --lr 1e-2', '--pk 4 2 --lr 1e-3'


def fit(words):
    cli.start(train.main, train.options, f'--name {words} {SIZE}'.split())


def refused(words, capsys):
    with pytest.raises(SystemExit):
        fit(words)
    told = capsys.readouterr().err
    assert 'Traceback' not in told
    return told


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def test_the_first_stage_lowers_its_loss_and_keeps_its_texts(here):
    log = read_rows(here / 'model/one/log.csv')
    assert float(log[-1]['train_loss']) < 0.8 * float(log[0]['train_loss'])
    kept = clip_texts.load(here / 'model/one', 'clip/tiny')
    assert kept['tokens'].shape == (16, 4, 64)
    assert kept['names'] == sorted(path.name for path in (here / 'toy/pytorch/train_all').iterdir())
    zero, one = (networks.read_state(here / f'model/{name}/net_last.pth') for name in ('zero', 'one'))
    assert all(torch.equal(zero[name], value) for name, value in one.items())  # the image encoder has not moved
    assert torch.equal(
        clip_texts.load(here / 'model/zero', 'clip/tiny')['tower']['text_projection'], kept['tower']['text_projection']
    )


def test_the_second_stage_keeps_the_texts_and_can_be_described(here):
    first, second = (clip_texts.load(here / f'model/{name}', 'clip/tiny') for name in ('one', 'two'))
    assert torch.equal(first['tokens'], second['tokens'])
    net, opts = utils.load_run('two')
    assert (opts.head, vars(opts)['from'], opts.weights) == ('clip', 'one', 'model/one/net_last.pth')
    assert net.embed(torch.zeros(1, 3, 64, 32)).shape == (1, 128)


@pytest.mark.parametrize('name', ['one', 'two'])
def test_a_stage_that_was_stopped_ends_with_the_same(name, here, tmp_path, monkeypatch):
    shutil.copytree(here / 'toy', tmp_path / 'toy')
    monkeypatch.chdir(tmp_path)
    if name == 'one':
        whole, words = 3, f'--config {ROOT}/configs/clip_reid_stage1.yaml --weights none {FIRST}'
    else:
        shutil.copytree(here / 'model/one', tmp_path / 'model/one')
        whole, words = 2, f'--config {ROOT}/configs/clip_reid_stage2.yaml --from one {SECOND}'
    fit(f'whole {words} --total_epoch {whole}')
    fit(f'half {words} --total_epoch {whole} --max_minutes 0')
    assert len(read_rows(tmp_path / 'model/half/log.csv')) == 1
    if name == 'one':
        assert clip_texts.load(tmp_path / 'model/half', 'clip/tiny')['tokens'] is None
    cli.start(train.main, train.options, '--name half --resume --max_minutes 60 --gpu_ids -1'.split())
    one, other = (networks.read_state(f'model/{run}/net_last.pth') for run in ('whole', 'half'))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    one, other = (clip_texts.load(tmp_path / 'model' / run, 'clip/tiny')['tokens'] for run in ('whole', 'half'))
    assert torch.equal(one, other)


def test_a_run_with_cameras_is_trained_tested_and_gone_on_with(here, tmp_path, monkeypatch):
    for folder in ('toy', 'model/one'):
        shutil.copytree(here / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    words = f'--config {ROOT}/configs/clip_reid_stage2.yaml --from one {SECOND} --camera_embedding 3 --total_epoch 2'
    fit(f'whole {words} --grow 0.5 --cache off')
    fit(f'half {words} --grow 0.5 --max_minutes 0')
    half = networks.read_state('model/half/net_last.pth')['cameras.vectors']
    cli.start(train.main, train.options, '--name half --resume --max_minutes 60 --gpu_ids -1'.split())
    one, other = (networks.read_state(f'model/{run}/net_last.pth') for run in ('whole', 'half'))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert not torch.equal(half, other['cameras.vectors'])  # it has learnt
    net, opts = utils.load_run('whole')
    people = data.people(tmp_path / 'toy/pytorch', 'query')
    assert opts.cameras == net.cameras.known.tolist() == sorted(set(people.cams))
    cli.start(test.main, test.options, '--name whole --gpu_ids -1 --num_workers 0'.split())
    (query,), _ = results.load(results.find(tmp_path / 'model/whole'), 'query')
    how = {'size': (64, 32), 'device': torch.device('cpu'), 'batchsize': 8}
    assert abs(features.extract(net, people.paths, **how, cams=people.cams) - query.f).max() < 1e-5
    assert abs(features.extract(net, people.paths, **how) - query.f).max() > 1e-4


def test_what_does_not_go_together_is_a_sentence(here, capsys):
    first, second = (f'--config {ROOT}/configs/clip_reid_stage{i}.yaml' for i in (1, 2))
    for words, sentence in {
        f'a {second} {SECOND} --from one --holdout 4': 'learnt the texts of other identities (16) than are here (12)',
        f'a {second} {SECOND} --weights none': '--from RUN names one that was trained to its end',
        f'a {second} {SECOND} --from zero': 'model/zero has none: --from RUN names one that was trained to its end',
        f'a {second} {SECOND} --from one --weights none': 'one of them',
        f'a {second} {SECOND} --from nobody': 'there is no model/nobody/opts.yaml',
        f'a {first} {FIRST} --weights none --loss triplet': '--ce 0 --loss text_supcon',
        f'a {first} {FIRST} --weights none --ce 1': '--ce 0 --loss text_supcon',
        f'a {first} {FIRST} --weights none --erasing_p 0.5': '--erasing_p does nothing with --head clip_text',
        f'a {first} {FIRST} --weights none --head clip': '--loss text_supcon is for --head clip_text',
        f'a {first} {FIRST} --weights imagenet': '--weights openai',
        f'a {first} {FIRST} --weights model/two/resume.pth': 'holds no weights by name',
        f'a {second} {SECOND} --from one --camera_embedding 3 --average ema': '--camera_embedding goes without --adv',
        'a --head bnneck --stride 2 --weights none --loss text_ce': '--loss text_ce is for --head clip',
    }.items():
        assert sentence in refused(words, capsys), words
    shutil.copytree(here / 'model/one', here / 'model/cut')
    (here / 'model/cut/text.pth').write_bytes(b'half')
    assert 'is damaged' in refused(f'a {second} {SECOND} --from cut', capsys)
    (here / 'model/cut/text.pth').unlink()
    assert 'keeps no texts' in refused(f'a {second} {SECOND} --from cut', capsys)
    assert 'holds no text encoder' in refused(f'a {first} {FIRST} --weights model/cut/net_last.pth', capsys)


# ---------------------------------------------------------------------------------------------------------------------
# search, export, and the pictures of demo.py


def searched(words):
    cli.start(search.main, search.options, words)


@pytest.fixture
def people(here, tmp_path, capsys):
    """An index of what the run `two` says of some pictures."""
    where = str(tmp_path / 'people')
    searched(['index', 'create', where, '--name', 'two', '--gpu_ids', '-1'])
    searched(['index', 'add', where, 'toy/pytorch/gallery', '--gpu_ids', '-1'])
    capsys.readouterr()
    return where


def test_a_text_finds_the_pictures_whose_projection_is_nearest(people, here, capsys):
    texts = ['a man in red', 'a woman with a bag']
    searched(['query', '--text', *texts, '--index', people, '--top', '3', '--json', '--gpu_ids', '-1'])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{')]
    assert [one['text'] for one in found] == texts
    tower = clip_texts.of_saved(clip_texts.load(here / 'model/two', 'clip/tiny'), 'clip/tiny')
    with index.open(people) as kept:
        entries = kept.find()
        projections = torch.from_numpy(kept.vectors([entry.id for entry in entries]))[:, 64:]
    for one in found:
        cosines = torch.nn.functional.cosine_similarity(tower.encode([one['text']]), projections)
        best = cosines.argsort(descending=True)[:3]
        assert [hit['path'] for hit in one['hits']] == [entries[i].path for i in best]
        assert [hit['score'] for hit in one['hits']] == pytest.approx(cosines[best].tolist(), abs=1e-5)
    searched(['query', '--text', 'a man', '--index', people, '--camera', '1', '--top', '2', '--gpu_ids', '-1'])
    lines = capsys.readouterr().out.splitlines()
    at = lines.index('a man:')
    assert len(lines) == at + 3
    assert all('camera 1' in line for line in lines[at + 1 :])


def test_what_words_cannot_be_compared_with_is_a_sentence(people, here, capsys, tmp_path):
    fit('plain --head bnneck --stride 2 --weights none --total_epoch 0 --overwrite')
    other = str(tmp_path / 'other')
    searched(['index', 'create', other, '--name', 'plain', '--gpu_ids', '-1'])
    capsys.readouterr()
    for words, sentence in {
        f'--index {other} --text man': 'have nothing in common with texts',
        f'--index {people}': 'pictures are expected, or --text',
        f'--index {people} a.jpg --text man': 'one of the two',
        f'--index {people} --text man --rerank': '--rerank is for pictures',
        f'--index {people} --text man --model a.onnx': '--text needs a text encoder',
        f'--index {people} --text {"bag." * 39}': 'fit at most: say it in fewer words',
    }.items():
        with pytest.raises(SystemExit):
            searched(['query', *words.split(), '--gpu_ids', '-1'])
        assert sentence in capsys.readouterr().err, words


def test_an_export_says_the_same(here, tmp_path):
    pytest.importorskip('onnxruntime')
    from reid import runtime

    net, opts = utils.load_run('two')
    pictures = torch.randint(0, 256, (3, 64, 32, 3), generator=SEEN, dtype=torch.uint8)
    with torch.no_grad():
        x = augment.normalise(pictures.permute(0, 3, 1, 2))
        expected = features.describe(net, x)
    about = {'run': 'two', 'which_epoch': 'last', 'weights': {'sha256': 'a'}, 'size': (64, 32), 'dim': net.dim}
    about |= {'test_feature': 'before', 'bounds': None, 'versions': {}}
    for form, suffix in (('onnx', 'onnx'), ('torchscript', 'pt')):
        path = tmp_path / f'two.{suffix}'
        exporting.write(form, net, (64, 32), path, about)
        found = torch.from_numpy(runtime.opened(path)(pictures.numpy()))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_heat_map_of_a_single_place_is_a_sentence(here):
    net, _ = utils.load_run('two')
    with pytest.raises(Problem, match='leave --heatmap out'):
        heatmap.heat(net, torch.zeros(2, 3, 64, 32))
