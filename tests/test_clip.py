"""CLIP: its networks, its texts, and both stages of CLIP-ReID. python -m pytest tests/test_clip.py"""

import argparse
import copy
import sys

import pytest
import torch

import model as networks
from reid import backbones, clip_nets
from reid.data import MEAN, STD
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
