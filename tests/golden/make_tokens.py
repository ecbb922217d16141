#!/usr/bin/env python3
"""make_tokens.py MODEL.gguf [CASES [SEED]] > tokens_extra.json

What Hugging Face tokenizers makes of odd texts: token ids with the vocabulary of MODEL (which must name the pre-tokenizer smollm),
and the words that the published patterns of gpt-2, llama-bpe and qwen2 cut. Texts hold only characters that Unicode 14 knows,
because two Unicode versions disagree about the others. Needs the packages gguf and tokenizers. The file in the repository was
made with the default 100 cases and seed 1; `test_golden_tokens FILE` checks any other."""
import json
import random
import sys
import unicodedata
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
PATTERNS = {
    'gpt-2': r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    'llama-bpe': QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
    'qwen2': QWEN2,
}
WORDS = ("the The THE prefill decode it's I'll they've don't we'd I'm you're IT'S DON'T 'ſ café naïve 日本語 中文字符 한국어 Привет "
         "שלום مرحبا ไทย हिन्दी ελληνικά 3.14 1234567 0x1F ① Ⅷ ½ ١٢٣ e\u0301 a\u0308\u0323 \u200d 👩\u200d👩\u200d👧 🇫🇷 👍🏽 😀 "
         "for(int i=0;i<n;i++){ } // */ #include <stdio.h> def f(x): return x**2 a_b_c CamelCase http://x.y/?q=1&r=%20 "
         "!!! ... --- === $$$ “quoted” — … \ufeff \u00ad \u180e \ufffd").split(' ')
BLANKS = [' ', '  ', '   ', '\t', '\n', '\n\n', '\r\n', '\r', '\v', '\f', '\x85', '\xa0', '\u2003', '\u2028', '\u3000', '\u1680',
          ' \n', '\n ', '\n\t\t', '        ', '\x1c', '\x1f', '\u200b']


def load(path):
    reader = GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    tokens, types = field('tokenizer.ggml.tokens'), field('tokenizer.ggml.token_type')
    assert field('tokenizer.ggml.pre') == 'smollm'
    merges = [tuple(m.split(' ', 1)) for m in field('tokenizer.ggml.merges')]
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    specials = [s for s, t in zip(tokens, types) if t == 3]
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return tokenizer, specials


def known_character(rng):
    while True:
        top = rng.choice([0x80, 0x250, 0x800, 0x3000, 0x10000, 0x20000, 0x110000])
        c = chr(rng.randrange(top))
        if unicodedata.category(c) not in ('Cn', 'Cs', 'Co'):
            return c


def piece(rng, specials):
    kind = rng.randrange(9)
    if kind < 3:
        return rng.choice(WORDS)
    if kind < 5:
        return rng.choice(BLANKS)
    if kind == 5:
        return ''.join(known_character(rng) for _ in range(rng.randrange(1, 6)))
    if kind == 6:
        return ''.join(chr(rng.randrange(128)) for _ in range(rng.randrange(1, 8)))
    if kind == 7:
        return ''.join(rng.choice("'sStTrReEvVmMlLdD 1\n a.") for _ in range(rng.randrange(1, 10)))
    special = rng.choice(specials)
    return special if rng.randrange(3) else special[:rng.randrange(len(special))]


def main():
    count, seed = (int(a) for a in (sys.argv[2:] + ['100', '1'][len(sys.argv) - 2:]))
    rng = random.Random(seed)
    tokenizer, specials = load(sys.argv[1])
    out = {'note': f'made by make_tokens.py, {count} cases, seed {seed}', 'tokens': [], 'splits': {}}
    texts = [''.join(piece(rng, specials) for _ in range(rng.randrange(0, 14))) for _ in range(count)]
    for text in texts:
        out['tokens'].append({'text': text, 'tokens': tokenizer.encode(text, add_special_tokens=False).ids})
    for name, pattern in PATTERNS.items():
        split = pre_tokenizers.Split(Regex(pattern), behavior='isolated')
        out['splits'][name] = [{'text': t, 'words': [w for w, _ in split.pre_tokenize_str(t)]} for t in texts if t]
    print('{"note": %s,\n"tokens": [' % json.dumps(out['note']))
    print(',\n'.join(json.dumps(c) for c in out['tokens']))
    print('],\n"splits": {')
    print(',\n'.join('%s: [\n%s]' % (json.dumps(n), ',\n'.join(json.dumps(c) for c in cs)) for n, cs in out['splits'].items()))
    print('}}')


main()
