#!/usr/bin/env python3
"""quantize.py > quantize.h: 64 weights and the bytes that gguf-py rounds them to, a weight type and kind of weights each."""
import numpy as np
from gguf import quantize, GGMLQuantizationType as Q

rng = np.random.default_rng(11)
ordinary = rng.normal(size=64) * 0.05
ordinary[:32] += 0.1                                     # no zero between min and max
ties = np.concatenate([np.arange(-16, 16) / 2, rng.integers(-254, 255, 32) / 2])
ties[32] = 127                                           # Q8_0: d is 1, halves are ties
large = rng.normal(size=64) * 5000
large[3], large[40] = 60000, -60000
small = rng.normal(size=64) * 1e-7                       # scales that are subnormal in F16, or 0
small[32:] *= 1e-4
flat = np.concatenate([np.zeros(32), np.full(32, -0.75)])
print('/* Made by quantize.py with gguf-py: 64 weights (float bits) and what each type rounds them to. */')
print('static const struct { int type, bytes; unsigned weights[64]; unsigned char rounded[128]; } quantized[] = {')
for q in (Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1):
    for weights in (ordinary, ties, large, small, flat):
        x = weights.astype('<f4')
        raw = quantize(x, q).view(np.uint8)
        print(f'    {{{q.value}, {raw.size}, {{{",".join(hex(b) + "u" for b in x.view("<u4"))}}},\n     {{{",".join(map(str, raw))}}}}},')
print('};')
