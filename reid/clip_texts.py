"""The texts of CLIP: sentences to features, and the learnt text of each person of CLIP-ReID, arXiv 2211.13977.

    tower = Tower('clip/ViT-B-16')         the text encoder, frozen
    f = tower.encode(['a man in red'])     sentences -> (1, 512), in the space of clip_nets.features(net, x)[-1]
    texts = Texts(tower, 751)              "A photo of a [X]1 [X]2 [X]3 [X]4 person.", four tokens X for each of 751
    f = texts(labels)                      (B,) -> (B, 512)

A run keeps them in text.pth: the encoder, for searching by words, and what was learnt in the first stage.
"""

from functools import cache
from pathlib import Path

import torch
from torch import nn

from reid import clip_nets, processes
from reid.clip_nets import config, library
from reid.files import replacing
from reid.problem import Problem

FILE = 'text.pth'
SENTENCE, LEARNT = 'A photo of a X X X X person.', 4  # what is learnt stands where the X do
HEADS = ('clip', 'clip_text')  # of model.py, for which a run keeps its text encoder
PLAIN = {'context_length', 'vocab_size', 'width', 'heads', 'layers'}  # what open_clip says of an encoder like OpenAI's
LEAST = {'image_size': 16, 'patch_size': 16, 'width': 8, 'head_width': 8, 'layers': 1}  # an image encoder, thrown away


# ---------------------------------------------------------------------------------------------------------------------
# 1. sentences


def has_texts(name):
    about = config(name)
    return set(about['text_cfg']) <= PLAIN and not about.get('custom_text')


class Tower(nn.Module):
    """The text encoder of a CLIP, with random weights. Its names are those of OpenAI's and open_clip's files."""

    def __init__(self, name):
        super().__init__()
        about = config(name)
        if not has_texts(name):
            raise Problem(
                f'the texts of {name} are of a kind of their own, which is not built here: pictures alone, or another '
                f'network, such as clip/ViT-B-16'
            )
        whole = library(name).CLIP(about['embed_dim'], LEAST, about['text_cfg'], about.get('quick_gelu', False))
        self.transformer, self.token_embedding, self.ln_final = whole.transformer, whole.token_embedding, whole.ln_final
        self.positional_embedding, self.text_projection = whole.positional_embedding, whole.text_projection
        self.register_buffer('mask', whole.attn_mask, persistent=False)
        self.context, self.width = about['text_cfg']['context_length'], about['text_cfg']['width']
        self.requires_grad_(False)

    def forward(self, embedded, end):
        """Embedded tokens (B, L, W), and where each sentence ends (B,) -> (B, E). Nobody looks ahead in a text, so what
        would come after the end is left out."""
        length = embedded.shape[1]
        x = embedded + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, attn_mask=self.mask[:length, :length]))
        return x[torch.arange(len(x), device=x.device), end] @ self.text_projection

    @torch.no_grad()
    def encode(self, sentences):
        """Each by itself, as it is one or two of them."""
        return torch.cat([self.alone(numbers(sentence, self.context)) for sentence in sentences])

    def alone(self, tokens):
        tokens = torch.tensor(tokens, device=self.token_embedding.weight.device)[None]  # (1, L)
        return self(self.token_embedding(tokens), tokens.new_tensor([tokens.shape[1] - 1]))


@cache
def tokenizer():
    return library('clip/').SimpleTokenizer()


def numbers(sentence, context):
    """A sentence as the numbers of its tokens, those of begin and end among them."""
    known = tokenizer()
    found = [known.sot_token_id, *known.encode(sentence), known.eot_token_id]
    if len(found) == 2:
        raise Problem('the text is empty: a description is expected, such as "a woman with a red bag"')
    if len(found) > context:
        raise Problem(f'the text has {len(found) - 2} tokens, and {context - 2} fit at most: say it in fewer words')
    return found


# ---------------------------------------------------------------------------------------------------------------------
# 2. people


class Texts(nn.Module):
    """One text for each of `count` identities. Its tokens alone are learnt, and alone in state_dict()."""

    def __init__(self, tower, count):
        super().__init__()
        self.tower = [tower]  # in a list, so that it is no part of this module
        embedding = tower.token_embedding.weight
        sentence = numbers(SENTENCE, tower.context)
        at = sentence.index(tokenizer().encode('X')[0])
        words = embedding[torch.tensor(sentence, device=embedding.device)]  # (L, W)
        self.register_buffer('before', words[:at], persistent=False)
        self.register_buffer('after', words[at + LEARNT :], persistent=False)
        self.tokens = nn.Parameter(torch.empty(count, LEARNT, tower.width, device=embedding.device).normal_(std=0.02))
        self.learnt = False
        self.shown = None  # where the features of all of them are to be seen, renewed before each epoch

    def forward(self, labels):
        before, after = (part.expand(len(labels), -1, -1) for part in (self.before, self.after))
        embedded = torch.cat([before, self.tokens[labels], after], 1)  # (B, L, W)
        return self.tower[0](embedded, labels.new_full((len(labels),), embedded.shape[1] - 1))

    @torch.no_grad()
    def all(self):
        """(count, E)"""
        everyone = torch.arange(len(self.tokens), device=self.tokens.device)
        return torch.cat([self(some) for some in everyone.split(256)])

    def set_epoch(self, epoch):
        if self.shown is not None:
            self.shown.copy_(self.all())


# ---------------------------------------------------------------------------------------------------------------------
# 3. of a run


def prepare(opts, names, model, device, where, read):
    """The texts that a training learns or compares with; None for networks without. `where`: the run that is gone on
    with, or whose first stage they are from. read(path) -> the tensors of a file of weights."""
    if opts.head not in HEADS:
        return None
    first = opts.head == 'clip_text'
    saved = load(where, opts.backbone) if where else None
    if saved and saved['tokens'] is not None:
        same_people(where, saved['names'], names)
    if 'text_ce' in words(opts.loss) and (not saved or saved['tokens'] is None):
        raise Problem(
            f'--loss text_ce compares with texts that a first stage has learnt, and {where or "there"} has none: '
            f'--from RUN names one that was trained to its end'
        )
    tower = of_saved(saved, opts.backbone) if saved else of_weights(opts, read, first)
    if tower is None:
        return None
    texts = Texts(tower.to(device), len(names))
    if saved and saved['tokens'] is not None:
        texts.tokens.data.copy_(saved['tokens'])
        texts.learnt = True
    texts.shown = model.texts if first else None
    return texts


def words(losses):
    return [word.split(':')[0] for word in losses]


def same_people(where, theirs, ours):
    if theirs != ours:
        one = sorted(set(theirs) ^ set(ours))
        raise Problem(
            f'{where} has learnt the texts of other identities ({len(theirs)}) than are here ({len(ours)})'
            + (f', {one[0]} for one' if one else '')
            + ': both stages take the same --data_dir, --train_all and --holdout'
        )


def of_saved(saved, backbone):
    tower = Tower(backbone)
    tower.load_state_dict(saved['tower'])
    return tower


def of_weights(opts, read, needed):
    """The text encoder that belongs to --weights. None where there is none and none is needed."""
    if not needed and not has_texts(opts.backbone):
        return None
    if opts.weights == 'none':
        return Tower(opts.backbone)
    if opts.weights == 'openai':
        return filled(Tower(opts.backbone), clip_nets.weights(opts.backbone), opts.weights)
    state = read(opts.weights)
    if 'token_embedding.weight' in state:
        return filled(Tower(opts.backbone), state, opts.weights)
    beside = Path(opts.weights).parent  # the weights of a run
    if (beside / FILE).is_file():
        return of_saved(load(beside, opts.backbone), opts.backbone)
    if needed:
        raise Problem(
            f'{opts.weights} holds no text encoder (token_embedding.weight is expected): a file of a whole CLIP'
        )
    return None


def filled(tower, state, path):
    own = tower.state_dict()
    wrong = [name for name, value in own.items() if name not in state or state[name].shape != value.shape]
    if wrong:
        found = tuple(state[wrong[0]].shape) if wrong[0] in state else 'nothing'
        raise Problem(
            f'{path} does not fit the text encoder: {len(wrong)} of {len(own)} tensors do not match, such as '
            f'{wrong[0]}: file {found}, network {tuple(own[wrong[0]].shape)}'
        )
    tower.load_state_dict({name: state[name].float() for name in own})
    return tower


def keep(folder, texts, backbone, names):
    """What `load` reads, if there is anything. Of a first stage that has not come to its end there are no tokens."""
    if texts is None or not processes.first():
        return
    content = {'backbone': backbone, 'tower': texts.tower[0].state_dict()}
    content |= {'tokens': texts.tokens.detach().cpu() if texts.learnt else None, 'names': names}
    with replacing(folder / FILE) as temporary:
        torch.save(content, temporary)


def load(folder, backbone):
    path = folder / FILE
    if not path.is_file():
        raise Problem(
            f'{folder} keeps no texts ({FILE}): a run with --head clip_text or clip, and weights of a whole CLIP'
        )
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
        found = content['backbone'], content['tokens'], content['names'], content['tower']
    except Exception:  # half a file, or another one
        raise Problem(f'{path} is damaged, or something else: train its run again') from None
    if found[0] != backbone:
        raise Problem(f'{path} holds the texts of {found[0]}, and not of {backbone}: say --backbone {found[0]}')
    return content
