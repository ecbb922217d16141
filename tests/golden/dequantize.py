#!/usr/bin/env python3
"""dequantize.py > dequantize.h: two blocks of bytes a weight type and what gguf-py makes of them (float bits)."""
import numpy as np
from gguf import dequantize, GGMLQuantizationType as Q

rng = np.random.default_rng(7)
print('/* Made by dequantize.py with gguf-py: 64 weights of each type, as bytes and as float bits. */')
print('static const struct { int type; unsigned char bytes[256]; unsigned bits[64]; } dequantized[] = {')
for q, half, size in ((Q.F32, 0, 4), (Q.F16, 0, 2), (Q.BF16, 0, 2), (Q.Q8_0, 1, 34), (Q.Q4_0, 1, 18), (Q.Q4_1, 2, 20)):
    if q == Q.F32: raw = rng.normal(size=64).astype('<f4').view(np.uint8)
    elif q == Q.F16: raw = (rng.normal(size=64) * 10.0 ** rng.integers(-7, 4, 64)).astype('<f2').view(np.uint8)
    elif q == Q.BF16: raw = (rng.normal(size=64).astype('<f4').view('<u4') >> 16).astype('<u2').view(np.uint8)
    else:
        raw = rng.integers(0, 256, 2 * size, dtype=np.uint8)
        for b in range(2): raw[b * size:b * size + 2 * half] = rng.normal(size=half).astype('<f2').view(np.uint8)
    bits = dequantize(raw, q).astype('<f4').view('<u4')
    print(f'    {{{q.value}, {{{",".join(map(str, raw))}}},\n     {{{",".join(hex(b) + "u" for b in bits)}}}}},')
print('};')
