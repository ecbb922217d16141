/* tiny_model.c -- writes the tiny random model of tests/unit/tiny_gguf.h to a file: the model of the
 * stories where a real one would be too slow, under sanitizers. 6 heads of 16 in 3 kv groups and 4 blocks of the FFN:
 * for two ranks unevenly, for three evenly.
 *     tiny_model OUT.gguf */
#include "tests/unit/tiny_gguf.h"

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    tiny_gguf t = tiny_gguf_build(&(tiny_options){.L = 4, .D = 96, .H = 6, .K = 3, .F = 128, .V = 288, .vocab = true, .context = 8192});
    FILE *f = fopen(argv[1], "wb");
    bool whole = f && fwrite(t.data, 1, t.bytes, f) == t.bytes;
    if (f && fclose(f) != 0) whole = false;
    tiny_gguf_free(&t);
    return whole ? 0 : 1;
}
