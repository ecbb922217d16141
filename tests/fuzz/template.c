/* template.c -- fuzz entry: the bytes are a chat template's source, the chat is fixed. Whatever
 * they are, it opens and renders or is refused as bad input with a reason, and nothing stays
 * allocated. */
#include <stdlib.h>
#include <string.h>
#include "engine/engine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const eng_message CHAT[] = {{"system", "Be brief."},
                                   {"user", " Hi \n"},
                                   {"assistant", "<think>\n</think>a \xC3\xA9 \xF0\x9F\x98\x80"},
                                   {"user", ""}};

static void render(const eng_template *t, error *err) {
    arena *a = arena_create(4096);
    char *text = NULL;
    status s = eng_template_render(t, CHAT, 4, true, "<bos>", "<eos>", a, &text, err);
    if (s == ST_OK ? !text : s != ST_BAD_INPUT || !err->text[0]) abort();
    arena_destroy(a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    int64_t live = mem_live();
    eng_template *t;
    error err = {0};
    status s = eng_template_open((const char *)data, bytes, &t, &err);
    if (s == ST_OK) {
        render(t, &err);
        eng_template_close(t);
    } else if (s != ST_BAD_INPUT || !err.text[0]) {
        abort();
    }
    if (mem_live() != live) abort();
    return 0;
}
