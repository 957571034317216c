"""The text encoder: a tiny BERT of our own (transformers' `BertModel`) and its WordPiece tokenizer, whose vocabulary is the captions' words.

Any other word falls apart into letters, which the captions' made-up words teach the model to pass over.
"""
import argparse
import json
import random
import string
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from renderer import ATTRIBUTES, BACKGROUNDS, COLOURS, MOTIONS, OPENINGS, SHAPES, STYLE, Renderer, captions

TEXT_LENGTH = 32
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vocabulary():
    phrases = [p for table in (SHAPES, MOTIONS, BACKGROUNDS) for options in table.values() for p in options] + OPENINGS + STYLE + ["a", "an"]
    words = sorted({word for phrase in phrases for word in phrase.split()} | set(COLOURS))
    letters = list(string.ascii_lowercase + string.digits)
    pieces = letters + ["##" + c for c in letters] + list(".,!?'\"-:;()&") + [w for w in words if len(w) > 1]
    return {piece: index for index, piece in enumerate(SPECIAL + pieces)}


def make_tokenizer():
    vocab = vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")])
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


class TextEncoder(torch.nn.Module):
    """Captions -> (B, TEXT_LENGTH, hidden) states, zero past each caption's end, as Wan feeds its transformer."""

    def __init__(self, hidden=128, layers=2, heads=4, inner=384):
        super().__init__()
        self.tokenizer = make_tokenizer()
        self.tokenizer.enable_truncation(TEXT_LENGTH)
        self.tokenizer.enable_padding(length=TEXT_LENGTH)
        config = BertConfig(vocab_size=self.tokenizer.get_vocab_size(), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                            intermediate_size=inner, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.bert.set_attn_implementation("eager")  # faster than the fused kernel for so few tokens on a CPU

    def tokens(self, texts):
        rows = self.tokenizer.encode_batch(texts)
        device = self.bert.device
        return torch.tensor([r.ids for r in rows], device=device), torch.tensor([r.attention_mask for r in rows], device=device)

    def forward(self, texts):
        ids, mask = self.tokens(texts)
        return self.bert(ids, attention_mask=mask).last_hidden_state * mask[..., None]


def pretrain(encoder, steps=500, batch=128, seed=3):
    """Teaches the encoder to tell the attributes of a caption, so that the video transformer starts from states that mean something."""
    device, rng, generator = encoder.bert.device, random.Random(seed), torch.Generator().manual_seed(seed)
    renderer = Renderer(device)
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(encoder.bert.config.hidden_size, len(values)) for name, values in ATTRIBUTES.items()}).to(device)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], weight_decay=0.01)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        scene = renderer.sample(batch, generator)
        states = encoder(captions(scene, rng)).sum(1) / 10
        logits = {name: head(states) for name, head in heads.items()}
        loss = sum(F.cross_entropy(logits[name], scene[name]) for name in ATTRIBUTES)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % 100 == 0:
            right = {name: (logits[name].argmax(-1) == scene[name]).float().mean().item() for name in ATTRIBUTES}
            print(f"text {step + 1} loss {loss.item():.3f} {right}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pretrains the text encoder (about a minute on one core).")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    encoder = TextEncoder()
    print(json.dumps({"parameters": sum(p.numel() for p in encoder.parameters()), "vocabulary": encoder.tokenizer.get_vocab_size()}))
    pretrain(encoder, args.steps)
    args.run.mkdir(parents=True, exist_ok=True)
    torch.save(encoder.state_dict(), args.run / "text.pt")
