/* tiny_model.c -- writes the tiny random model of tests/unit/tiny_gguf.h to a file: the model of the
 * stories where a real one would be too slow, under sanitizers. 4 heads of 32 in 2 kv groups and 3 blocks
 * of the FFN: two ranks have a group each, of three ranks two have the same one.
 *     tiny_model OUT.gguf */
#include "tests/unit/tiny_gguf.h"

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    tiny_gguf t = tiny_gguf_build(&(tiny_options){.L = 4, .D = 128, .H = 4, .K = 2, .F = 96, .V = 288, .vocab = true, .context = 8192,
                                                  .chat = "{% for m in messages %}{{ m['content'] }}{% endfor %}"});
    FILE *f = fopen(argv[1], "wb");
    bool whole = f && fwrite(t.data, 1, t.bytes, f) == t.bytes;
    if (f && fclose(f) != 0) whole = false;
    tiny_gguf_free(&t);
    return whole ? 0 : 1;
}
