"""The networks against their description and other people's names: python -m pytest tests/test_model.py"""

import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

import model as networks
from reid import backbones
from reid.problem import Problem

SMALL = (64, 32)


def opts(**given):
    base = {'backbone': 'resnet50', 'pool': 'avg', 'head': 'classblock', 'droprate': 0.5, 'nclasses': 11}
    base |= dict.fromkeys(('height', 'width', 'stride', 'linear_num', 'loss_feature', 'test_feature'))
    return networks.complete(Namespace(**base | given))


def shaken(net):
    """BatchNorm statistics as after some training: an untrained network in eval mode maps all pictures to one point."""
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize(
    ('given', 'dim', 'maps'),
    [
        ({'backbone': 'resnet18'}, 512, (512, 2, 1)),
        ({}, 512, (2048, 2, 1)),
        ({'stride': 1, 'linear_num': 128}, 128, (2048, 4, 2)),
        ({'linear_num': 0}, 2048, (2048, 2, 1)),
        ({'backbone': 'densenet121'}, 512, (1024, 2, 1)),
        ({'backbone': 'densenet121', 'stride': 1}, 512, (1024, 3, 1)),
        ({'backbone': 'resnet18', 'stride': 1}, 512, (512, 4, 2)),
    ],
)
def test_shapes_of_the_plain_net(given, dim, maps):
    net, x = networks.build(opts(**given)), torch.randn(3, 3, *SMALL)
    logits, feature = net(x)
    assert [z.shape for z in logits] == [(3, 11)]
    assert feature.shape == (3, dim)
    net.eval()
    assert net.embed(x).shape == (3, dim)
    assert net.maps(x).shape == (3, *maps)


def test_shapes_of_pcb():
    net, x = networks.build(opts(head='pcb', backbone='resnet18')), torch.randn(2, 3, 96, 48)
    logits, feature = net(x)
    assert [z.shape for z in logits] == [(2, 11)] * 6
    assert feature.shape == (2, 6 * 256)
    assert net.eval().embed(x).shape == (2, 512 * 6)


def test_defaults_follow_the_head():
    plain, pcb = opts(), opts(head='pcb')
    assert (plain.height, plain.width, plain.stride, plain.linear_num) == (256, 128, 2, 512)
    assert (pcb.height, pcb.width, pcb.stride, pcb.linear_num) == (384, 192, 1, 256)
    assert opts(head='pcb', height=96).height == 96


@pytest.mark.parametrize(
    ('given', 'width', 'dim'),
    [
        ({}, 512, 512),
        ({'loss_feature': 'before'}, 2048, 512),
        ({'test_feature': 'before', 'linear_num': 64}, 64, 2048),
        ({'head': 'bnneck'}, 2048, 2048),
        ({'head': 'linear'}, 2048, 2048),
    ],
)
def test_features_before_and_after_the_head(given, width, dim):
    torch.manual_seed(0)
    net, x = networks.build(opts(**given)), torch.randn(4, 3, *SMALL)
    logits, feature = net(x)
    assert (logits[0].shape, feature.shape, net.width, net.dim) == ((4, 11), (4, width), width, dim)
    shaken(net)
    pooled = net.maps(x).mean((2, 3))
    after = net.classifier.add_block(pooled)
    before = given.get('loss_feature', 'before' if given.get('head') == 'bnneck' else 'after') == 'before'
    torch.testing.assert_close(net(x)[1], pooled if before else after)
    torch.testing.assert_close(net(x)[0][0], net.classifier.classifier(after))
    torch.testing.assert_close(net.embed(x), pooled if given.get('test_feature') == 'before' else after)


def test_bnneck_begins_as_described():
    torch.manual_seed(0)
    neck = networks.BNNeck(2048, 751)
    assert neck.classifier.bias is None
    assert neck.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert not neck.add_block.bias.requires_grad
    assert (neck.add_block.weight == 1).all()
    assert not neck.add_block.bias.any()


def test_gem_lies_between_average_and_maximum():
    torch.manual_seed(0)
    maps = torch.rand(2, 5, 6, 3)
    pooled = networks.GeM((1, 1))(maps)
    torch.testing.assert_close(pooled, (maps**3).mean((2, 3), keepdim=True) ** (1 / 3))
    average = networks.GeM((1, 1), 1.0)(maps)
    torch.testing.assert_close(average, maps.mean((2, 3), keepdim=True))
    torch.testing.assert_close(networks.GeM((1, 1), 200.0)(maps), maps.amax((2, 3), keepdim=True), rtol=0.02, atol=0)
    stripes = networks.GeM((3, 1))(maps)
    torch.testing.assert_close(stripes[:, :, 1:2], networks.GeM((1, 1))(maps[:, :, 2:4]))
    net = networks.build(opts(backbone='resnet18', pool='gem'))
    net(torch.randn(2, 3, *SMALL))[1].sum().backward()
    assert net.avgpool.p.grad.abs() > 0
    assert any(p is net.avgpool.p for head in net.heads() for p in head.parameters())


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'head': 'bnneck', 'linear_num': 512}, '--linear_num 512'),
        ({'head': 'pcb', 'test_feature': 'before'}, '--head pcb'),
    ],
)
def test_what_does_not_go_together_is_a_sentence(given, words):
    with pytest.raises(Problem, match=words):
        opts(**given)


def test_the_head_begins_as_described():
    torch.manual_seed(0)
    block = networks.ClassBlock(2048, 751)
    assert [type(layer) for layer in block.add_block] == [nn.Linear, nn.BatchNorm1d, nn.Dropout]
    assert block.add_block[0].weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)  # kaiming, fan out
    assert block.add_block[1].weight.mean().item() == pytest.approx(1, abs=0.01)
    assert block.add_block[1].weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert block.classifier[0].weight.std().item() == pytest.approx(1e-4, rel=0.02)
    for layer in (block.add_block[0], block.add_block[1], block.classifier[0]):
        assert not layer.bias.any()


def test_heads_are_everything_but_the_backbone():
    for net in (networks.build(opts(backbone='resnet18')), networks.build(opts(head='pcb', backbone='resnet18'))):
        heads = {id(p) for head in net.heads() for p in head.parameters()}
        names = {name.split('.')[0] for name, p in net.named_parameters() if id(p) not in heads}
        assert names == {'model'}


# ---------------------------------------------------------------------------------------------------------------------
# checkpoints with the names that the field's PyTorch baseline gives them, made here from torchvision's networks


def baseline_checkpoint(backbone, head):
    """(state_dict by the well-known names, function x -> raw test feature), without this project's model.py."""
    net = shaken(getattr(models, backbone)(weights=None))
    channels = {'resnet50': 2048, 'densenet121': 1024}[backbone]
    state = {f'model.{name}': value for name, value in net.state_dict().items()}
    heads = {}
    for name in [f'classifier{i}' for i in range(6)] if head == 'pcb' else ['classifier']:
        width = 256 if head == 'pcb' else 512
        block = nn.Sequential(nn.Linear(channels, width), nn.BatchNorm1d(width))
        heads[name] = shaken(block)
        state |= {f'{name}.add_block.{key}': value for key, value in block.state_dict().items()}
        last = nn.Linear(width, 11)
        state |= {f'{name}.classifier.0.{key}': value for key, value in last.state_dict().items()}

    def embed(x):
        if backbone == 'densenet121':
            return heads['classifier'](F.adaptive_avg_pool2d(net.features(x), 1).flatten(1))
        if head == 'pcb':
            net.layer4[0].conv2.stride = net.layer4[0].downsample[0].stride = (1, 1)
        for part in ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4'):
            x = getattr(net, part)(x)
        if head == 'pcb':
            return F.adaptive_avg_pool2d(x, (6, 1)).view(len(x), 2048 * 6)
        return heads['classifier'](F.adaptive_avg_pool2d(x, 1).flatten(1))

    return state, embed


@pytest.mark.parametrize(
    ('backbone', 'head'), [('resnet50', 'classblock'), ('densenet121', 'classblock'), ('resnet50', 'pcb')]
)
@pytest.mark.parametrize('wrapped', [False, True])
@torch.no_grad()
def test_checkpoints_of_the_baseline_give_the_same_features(backbone, head, wrapped, tmp_path):
    state, embed = baseline_checkpoint(backbone, head)
    path = tmp_path / 'net_last.pth'
    averaged = {'n_averaged': torch.tensor(5), **{f'module.{name}': value for name, value in state.items()}}
    torch.save(averaged if wrapped else state, path)
    net = networks.build(opts(backbone=backbone, head=head)).eval()
    assert set(net.state_dict()) == set(state)
    networks.load_weights(net, path)
    x = torch.randn(2, 3, *((192, 96) if head == 'pcb' else (128, 64)))
    found, expected = net.embed(x), embed(x)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_densenet_files_have_older_names(tmp_path):
    net = models.densenet121(weights=None)
    old = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', name): t for name, t in net.state_dict().items()}
    assert 'features.denseblock1.denselayer1.norm.1.weight' in old
    torch.save(old, tmp_path / 'densenet121-a639ec97.pth')
    ours = networks.build(opts(backbone='densenet121'))
    networks.initialise(ours, str(tmp_path / 'densenet121-a639ec97.pth'), 'densenet121')
    name = 'features.denseblock4.denselayer16.conv2.weight'
    assert torch.equal(ours.model.state_dict()[name], net.state_dict()[name])


def test_a_bare_backbone_warms_up_a_run(tmp_path):
    net = models.resnet18(weights=None)
    torch.save(net.state_dict(), tmp_path / 'resnet18.pth')
    ours = networks.build(opts(backbone='resnet18'))
    text = networks.load_weights(ours, tmp_path / 'resnet18.pth', warm_start=True)
    assert 'not in it: classifier.add_block.0.weight' in text
    assert torch.equal(ours.model.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    with pytest.raises(Problem, match='does not fit'):  # good enough to begin with, not to test
        networks.load_weights(ours, tmp_path / 'resnet18.pth')


@pytest.mark.parametrize('warm_start', [True, False])
def test_a_file_of_a_deeper_network_is_refused(warm_start, tmp_path):
    """Of the names and shapes of a ResNet-34, a ResNet-18's are a part."""
    deep = models.resnet34(weights=None) if warm_start else networks.build(opts(backbone='resnet34'))
    torch.save(deep.state_dict(), tmp_path / 'deep.pth')
    ours = networks.build(opts(backbone='resnet18'))
    before = ours.model.layer1[0].conv1.weight.clone()
    words = r'holds 32 weights, such as layer1\.2\.conv1\.weight, that --backbone resnet18 has no place for'
    with pytest.raises(Problem, match=words):
        networks.load_weights(ours, tmp_path / 'deep.pth', warm_start)
    assert torch.equal(ours.model.layer1[0].conv1.weight, before)


def test_files_with_classifiers_on_the_way_are_read(tmp_path):
    torch.save(models.googlenet(weights=None, init_weights=False).state_dict(), tmp_path / 'googlenet.pth')
    networks.load_weights(networks.build(opts(backbone='googlenet')), tmp_path / 'googlenet.pth', warm_start=True)


@pytest.mark.parametrize('number', [np.float64(0.5), np.int64(3), np.float32(0.5)])
def test_numbers_beside_the_tensors_are_read_and_objects_are_not(number, tmp_path):
    torch.save({'state_dict': {'conv1.weight': torch.ones(2)}, 'rank1': number}, tmp_path / 'numbers.pth')
    assert networks.read_tensors(tmp_path / 'numbers.pth')['rank1'] == number
    torch.save({'conv1.weight': torch.ones(2), 'more': np.array([{1}])}, tmp_path / 'objects.pth')
    with pytest.raises(Problem, match='safely'):
        networks.read_tensors(tmp_path / 'objects.pth')


def test_files_of_other_libraries_warm_up_a_run(tmp_path):
    """torchreid's, of another number of people and wrapped by DataParallel; a ResNet-50 for one with attention, which
    no file has; a file without what its library keeps beside the tensors; safetensors."""
    given = {'head': 'bnneck', 'backbone': 'osnet_x0_25'}
    theirs = backbones.trunk('osnet_x0_25').state_dict()
    theirs |= {'classifier.weight': torch.randn(751, 512), 'classifier.bias': torch.randn(751)}
    checkpoint = {'state_dict': {f'module.{n}': v for n, v in theirs.items()}, 'epoch': 3, 'rank1': np.float32(0.5)}
    torch.save(checkpoint, tmp_path / 'osnet.pth.tar')
    ours = networks.build(opts(**given))
    text = networks.load_weights(ours, tmp_path / 'osnet.pth.tar', warm_start=True)
    assert 'not in it: classifier.add_block.weight' in text
    name = 'conv4.1.conv2d.3.conv2.weight'
    assert torch.equal(ours.model.state_dict()[name], theirs[name])

    net = models.resnet50(weights=None)
    torch.save(net.state_dict(), tmp_path / 'resnet50.pth')
    networks.load_weights(networks.build(opts(backbone='resnet50_usam')), tmp_path / 'resnet50.pth', warm_start=True)

    net = networks.build(opts(backbone='mnasnet0_5'))
    torch.save(dict(net.state_dict()), tmp_path / 'mnasnet.pth')
    networks.load_weights(networks.build(opts(backbone='mnasnet0_5')), tmp_path / 'mnasnet.pth')

    safetensors = pytest.importorskip('safetensors.torch')
    net = models.resnet18(weights=None)
    safetensors.save_file(net.state_dict(), tmp_path / 'model.safetensors')
    ours = networks.build(opts(backbone='resnet18'))
    networks.initialise(ours, str(tmp_path / 'model.safetensors'), 'resnet18')
    assert torch.equal(ours.model.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    (tmp_path / 'broken.safetensors').write_bytes(b'no')
    with pytest.raises(Problem, match='damaged'):
        networks.initialise(ours, str(tmp_path / 'broken.safetensors'), 'resnet18')


def test_a_transformer_for_another_size_begins_from_a_run(tmp_path):
    given = {'backbone': 'vit_b_16', 'width': 64}
    old, new = networks.build(opts(**given, height=64)), networks.build(opts(**given, height=128))
    torch.save(old.state_dict(), tmp_path / 'old.pth')
    networks.load_weights(new, tmp_path / 'old.pth', warm_start=True)
    assert new.model.encoder.pos_embedding.shape[1] == 1 + 8 * 4
    assert torch.equal(new.model.encoder.layers[11].mlp[0].weight, old.model.encoder.layers[11].mlp[0].weight)


def test_a_run_with_another_number_of_identities_warms_up_a_run(tmp_path):
    old, new = networks.build(opts(backbone='resnet18', nclasses=5)), networks.build(opts(backbone='resnet18'))
    torch.save(old.state_dict(), tmp_path / 'old.pth')
    text = networks.load_weights(new, tmp_path / 'old.pth', warm_start=True)
    assert 'not in it' not in text
    assert text.endswith(
        'tensors, of another shape: classifier.classifier.0.weight: file (5, 512), network (11, 512); '
        'classifier.classifier.0.bias: file (5,), network (11,)'
    )
    assert torch.equal(new.classifier.add_block[0].weight, old.classifier.add_block[0].weight)


@pytest.mark.parametrize(
    'content', [b'', b'no weights at all', b'\x80\x02', {'a': 1}, {'conv9.weight': torch.zeros(3)}, [1, 2]]
)
def test_files_that_match_nothing_are_refused(content, tmp_path):
    path = tmp_path / 'x.pth'
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(Problem, match=r'x\.pth'):
        networks.initialise(networks.build(opts(backbone='resnet18')), str(path), 'resnet18')


def test_nothing_but_tensors_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / 'sprung'), 'w'))

    torch.save({'conv1.weight': Trap()}, tmp_path / 'trap.pth')
    with pytest.raises(Problem, match='safely'):
        networks.read_state(tmp_path / 'trap.pth')
    assert not (tmp_path / 'sprung').exists()


def test_blocked_download_is_a_sentence(monkeypatch):
    def blocked(*args, **kw):
        raise OSError('blocked')

    net = networks.build(opts(backbone='resnet18'))
    monkeypatch.setattr(backbones, 'load_state_dict_from_url', blocked)
    with pytest.raises(Problem, match='--weights PATH'):
        networks.initialise(net, 'imagenet', 'resnet18')
