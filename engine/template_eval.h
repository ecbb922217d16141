/* template_eval.h -- one rendering of a chat template. Internal to engine/. */
#ifndef BATON_ENGINE_TEMPLATE_EVAL_H
#define BATON_ENGINE_TEMPLATE_EVAL_H

#include "engine/template_value.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the template is given; every text is a C string. */
typedef struct eng_template_chat {
    const eng_message *messages;
    int count;
    bool add_generation_prompt;
    const char *bos, *eos;
} eng_template_chat;

/* Runs r->t; *out is empty at first, its text is from r->scratch. */
status eng_template_eval(eng_run *r, const eng_template_chat *chat, eng_builder *out);

#ifdef __cplusplus
}
#endif
#endif
