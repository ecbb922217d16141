#!/usr/bin/env python3
"""make_gguf.py FOLDER: writes the seed corpus of tests/fuzz/gguf.c: small GGUF files, sound and lying."""
import struct, sys, os

BLOCK = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 30: (1, 2)}
text = lambda s: struct.pack('<Q', len(s.encode())) + s.encode()
key = lambda name, kind, value: text(name) + struct.pack('<I', kind) + value
array = lambda kind, values: struct.pack('<IQ', kind, len(values)) + b''.join(values)


def gguf(tensors, extra=(), version=3, cut=None, **change):
    """tensors: (name, type, dims). change: a field of the last tensor that is written otherwise."""
    keys = [key('general.architecture', 8, text('llama')), key('general.name', 8, text('seed')),
            key('llama.rope.freq_base', 6, struct.pack('<f', 10000)), key('flag', 7, b'\1'),
            key('tokenizer.ggml.tokens', 9, array(8, [text(t) for t in 'a b c <|end|> ab'.split() * 8])),
            key('tokenizer.ggml.token_type', 9, array(5, [struct.pack('<i', 1)] * 5)), *extra]
    head = struct.pack('<4sIQQ', b'GGUF', version, len(tensors), len(keys)) + b''.join(keys)
    table, data = b'', b''
    for i, (name, kind, dims) in enumerate(tensors):
        count = 1
        for d in dims: count *= d
        last = change if i == len(tensors) - 1 else {}
        block, size = BLOCK[kind]
        table += text(name) + struct.pack('<I', last.get('dims', len(dims)))
        table += b''.join(struct.pack('<Q', last.get('dim', d)) for d in dims)
        table += struct.pack('<IQ', last.get('kind', kind), last.get('offset', len(data)))
        data += bytes(j & 255 for j in range(count // block * size)) + bytes(-(count // block * size) % 32)
    out = head + table
    out += bytes(-len(out) % 32) + data
    return out[:cut]


def main():
    one = [('token_embd.weight', 0, [4, 2]), ('output_norm.weight', 0, [4])]
    seeds = {f'type_{k}': gguf([('norm', 0, [32]), ('w', k, [64, 3])]) for k in BLOCK}
    seeds |= {'v2': gguf(one, version=2), 'v1': gguf(one, version=1), 'empty': gguf([]),
              'dims_9': gguf(one, dims=9), 'dim_huge': gguf(one, dim=1 << 62), 'dim_0': gguf(one, dim=0),
              'offset_huge': gguf(one, offset=1 << 63), 'offset_odd': gguf(one, offset=3),
              'kind_99': gguf(one, kind=99), 'cut': gguf(one, cut=-9), 'twice': gguf(one + one[:1]),
              'array_huge': gguf(one, [key('a', 9, struct.pack('<IQ', 4, 1 << 61))]),
              'texts_huge': gguf(one, [key('a', 9, struct.pack('<IQ', 8, 1 << 60))]),
              'nested': gguf(one, [key('a', 9, struct.pack('<IQ', 9, 1))]),
              'alignment_3': gguf(one, [key('general.alignment', 4, struct.pack('<I', 3))]),
              'alignment_64': gguf(one[:1], [key('general.alignment', 4, struct.pack('<I', 64))])}
    os.makedirs(sys.argv[1], exist_ok=True)
    for name, data in seeds.items():
        with open(os.path.join(sys.argv[1], name + '.gguf'), 'wb') as f: f.write(data)


main()
