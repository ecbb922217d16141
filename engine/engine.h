/* engine.h -- one model, its KV pages, one step.
 *
 * Text in, tokens; tokens and pages in, logits; logits in, tokens; tokens in, text. The engine knows
 * no network, no request and no peer: callers own scheduling, and carry pages to other nodes with
 * eng_kv_pack()/eng_kv_unpack().
 *
 * Shapes: T tokens, D model width, H heads, K kv heads, h head width, F FFN width, V vocabulary,
 * P tokens a page, L layers.
 *
 * Threads: a gguf, a vocabulary and a model are read-only after open and may be shared. A pool, a
 * kv, a step and a sampler belong to the one engine thread; eng_kv_pack()/eng_kv_unpack() may run on
 * another thread as long as the pages they touch are pinned for it and no step writes those rows.
 *
 * Same bytes: the logits of a row depend on the tokens at and before it, never on what else is in
 * the batch, how the prompt was cut into chunks, how many threads run, or which pages hold it. */
#ifndef BATON_ENGINE_H
#define BATON_ENGINE_H

#include "base/base.h"
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- gguf: a model file, mapped ---------------------------------------------------------------- */

/* Weight types of GGUF v3 that are read and written: name, number in a file (ggml's ggml_type), weights and
 * bytes of a block, number of a file of such weights (llama.cpp's llama_ftype). See README, "To
 * add a weight type". */
#define ENG_TYPES(X)      \
    X(F32, 0, 1, 4, 0)    \
    X(F16, 1, 1, 2, 1)    \
    X(BF16, 30, 1, 2, 32) \
    X(Q8_0, 8, 32, 34, 7) \
    X(Q4_0, 2, 32, 18, 2) \
    X(Q4_1, 3, 32, 20, 3)
#define X(name, number, block, bytes, file) ENG_##name = number,
typedef enum eng_type { ENG_TYPES(X) } eng_type;
#undef X

typedef struct eng_tensor {
    const char *name;
    eng_type type;
    int dims;
    int64_t dim[4];              /* dim[0] varies fastest: a (V,D) matrix has dim = {D, V} */
    const void *data;            /* into the mapping, rows contiguous */
    size_t bytes;
} eng_tensor;

typedef struct eng_gguf eng_gguf;

/* Maps path and checks every offset, count, length and product against the file's size before it is
 * used. Errors name file, key or tensor, what stands there and what was expected. */
status eng_gguf_open(const char *path, eng_gguf **out, error *err);
/* The same checks over bytes in memory (borrowed until close): the fuzz entry. */
status eng_gguf_open_memory(const void *data, size_t bytes, const char *name, eng_gguf **out,
                            error *err);
void eng_gguf_close(eng_gguf *g);

const eng_tensor *eng_gguf_tensor(const eng_gguf *g, const char *name);       /* NULL: absent */
int64_t eng_gguf_tensor_count(const eng_gguf *g);
const eng_tensor *eng_gguf_tensor_at(const eng_gguf *g, int64_t index);
/* Scalars: ST_NOT_FOUND when absent, ST_BAD_INPUT when there with another type or out of range. Any
 * integer type of the file is accepted for _int, F32 and F64 for _real. */
status eng_gguf_int(const eng_gguf *g, const char *key, int64_t *out, error *err);
status eng_gguf_real(const eng_gguf *g, const char *key, double *out, error *err);
status eng_gguf_bool(const eng_gguf *g, const char *key, bool *out, error *err);
/* *text points into the mapping, not NUL-terminated. */
status eng_gguf_text(const eng_gguf *g, const char *key, const char **text, size_t *bytes,
                     error *err);
status eng_gguf_array_count(const eng_gguf *g, const char *key, int64_t *count, error *err);
status eng_gguf_array_text(const eng_gguf *g, const char *key, int64_t index, const char **text,
                           size_t *bytes, error *err);
/* Elements of an integer or real array. Walking a text array in rising index is O(1) a step. */
status eng_gguf_array_int(const eng_gguf *g, const char *key, int64_t index, int64_t *out,
                          error *err);
status eng_gguf_array_real(const eng_gguf *g, const char *key, int64_t index, double *out,
                           error *err);

const char *eng_gguf_name(const eng_gguf *g);        /* general.name, else the file's name */
const char *eng_gguf_file(const eng_gguf *g);        /* as open was told, for errors */
/* 32 hex digits: XXH3-128 over header, metadata, tensor table, file size and the first and last
 * 4 KiB of every tensor. Equal files have equal digests; it is not a defence against forgery. */
const char *eng_gguf_digest(const eng_gguf *g);

/* For who writes another file: the bytes of all keys in the file's order, those of one (NULL: absent),
 * what tensors' offsets are multiples of. */
const void *eng_gguf_keys(const eng_gguf *g, uint64_t *count, size_t *bytes);
const void *eng_gguf_key(const eng_gguf *g, const char *key, size_t *bytes);
uint64_t eng_gguf_alignment(const eng_gguf *g);
const char *eng_gguf_type_name(eng_type type);                       /* "Q4_1" */
/* Of a row of n weights; 0: n is no multiple of the type's block. */
size_t eng_gguf_type_bytes(eng_type type, int64_t n);

/* ---- quantise: the same model in another weight type --------------------------------------------- */

/* The type that tensor t gets in a file of `type`: a vector F32, a matrix `type`, but
 * token_embd.weight and output.weight Q8_0 where type is Q4_0 or Q4_1, and F16 where the rows are no
 * multiple of the type's block. */
eng_type eng_quantize_type(const eng_tensor *t, eng_type type);
/* n weights (a multiple of the type's block) rounded as ggml's reference does, bit for bit. */
void eng_quantize_row(eng_type type, const float *row, int64_t n, void *out);

typedef struct eng_quantize_options {
    eng_type type;
    bool force;                  /* an existing file of that name is replaced */
    bool (*progress)(double share, void *ctx);       /* 0..1 after every row, false: stop; may be NULL */
    void *progress_ctx;
} eng_quantize_options;

/* Writes g to path with its matrices as options->type. The file appears whole or not at all: it is
 * written under another name beside path, synced, renamed. ST_REFUSED: path exists and force is not
 * set, or is g's own file, or no regular file. ST_BAD_INPUT: a weight, or what it is rounded to, is
 * not finite. ST_CANCELED: progress said so. */
status eng_quantize_file(const eng_gguf *g, const eng_quantize_options *options, const char *path,
                         error *err);

/* ---- vocabulary: text to tokens and back -------------------------------------------------------- */

typedef struct eng_vocab eng_vocab;

/* Byte-level BPE (tokenizer.ggml.model = "gpt2") with the pre-tokenizer tokenizer.ggml.pre names:
 * smollm, gpt-2, llama-bpe, qwen2. Others are refused by name. Copies what it needs from g. */
status eng_vocab_open(const eng_gguf *g, eng_vocab **out, error *err);
void eng_vocab_close(eng_vocab *v);

int32_t eng_vocab_count(const eng_vocab *v);                         /* V */
int32_t eng_vocab_bos(const eng_vocab *v);                           /* -1: none */
int32_t eng_vocab_eos(const eng_vocab *v);
bool eng_vocab_adds_bos(const eng_vocab *v);                         /* tokenizer.ggml.add_bos_token */
/* End of sequence or of turn: eos, eot (<|im_end|>, <|eot_id|>, <|endoftext|> where they are control
 * tokens). Generation stops there unless the request ignores it. */
bool eng_vocab_is_stop(const eng_vocab *v, int32_t token);
bool eng_vocab_is_control(const eng_vocab *v, int32_t token);
/* The token's bytes (a control token's are its spelling). Points into v. */
const char *eng_vocab_bytes(const eng_vocab *v, int32_t token, size_t *bytes);

/* text must be valid UTF-8 (ST_BAD_INPUT says at which byte it is not). With special, spellings of
 * control and user-defined tokens in the text become those tokens; without, they are plain text. A
 * byte the vocabulary has no token for adds none. No BOS is added. *tokens is from arena. */
status eng_vocab_tokenize(const eng_vocab *v, const char *text, size_t bytes, bool special,
                          arena *a, int32_t **tokens, int32_t *count, error *err);

/* Incremental detokenizing that never splits a UTF-8 character: bytes of an unfinished character are
 * held back until it is complete or can no longer be (then U+FFFD). Plain value, starts zeroed. */
typedef struct eng_detok {
    unsigned char held[4];
    int held_count;
} eng_detok;

/* Appends what token adds to out (at most eng_detok_max(v) bytes) and returns how many bytes.
 * Control tokens add nothing unless special. A token outside the vocabulary adds U+FFFD. */
size_t eng_detok_push(eng_detok *d, const eng_vocab *v, int32_t token, bool special, char *out);
size_t eng_detok_end(eng_detok *d, char *out);       /* what is still held, as U+FFFD; <= 16 bytes */
size_t eng_detok_max(const eng_vocab *v);

/* ---- chat template ------------------------------------------------------------------------------ */

typedef struct eng_message {
    const char *role;            /* "system", "user", "assistant" */
    const char *content;
} eng_message;

/* The file's tokenizer.chat_template, compiled once: a bounded subset of Jinja (what the templates of
 * llama, qwen and smollm use for text chats). No recursion limit is left to the template: steps,
 * depth and output are bounded. */
typedef struct eng_template eng_template;

status eng_template_open(const char *source, size_t bytes, eng_template **out, error *err);
/* bos/eos: spellings of those tokens ("" when none). *text is from arena. raise_exception() in the
 * template and anything outside the subset is ST_BAD_INPUT with line and column. */
status eng_template_render(const eng_template *t, const eng_message *messages, int count,
                           bool add_generation_prompt, const char *bos, const char *eos, arena *a,
                           char **text, error *err);
void eng_template_close(eng_template *t);

/* ---- model ------------------------------------------------------------------------------------- */

typedef struct eng_shape {
    int L, D, H, K, h, F, V;
    int context;                 /* positions the model was trained for */
} eng_shape;

typedef struct coll coll;        /* collective/collective.h */

typedef struct eng_options {
    const char *isa;             /* NULL or "auto", "amx", "avx512", "avx2", "neon", "base", "scalar" */
    const char *device;          /* NULL or "cpu"; "cuda", "cuda:1" or a list "cuda:0,2": rank r takes its entry r,
                                    from the front again past its end */
    int threads;                 /* of the step's team; 0: what the cgroup and affinity allow */
    int tokens_max;              /* most rows a step may have; sizes the scratch. 0: 512 */
    int logits_max;              /* most rows a step may ask logits of. 0: 64 */
    const char *cache_dir;       /* keeps prepared weights for all processes (cache.c); NULL: nowhere */
    void (*progress)(double share, void *ctx);       /* 0..1 while weights are prepared or brought to a device;
                                                        may be NULL */
    void *progress_ctx;
    coll *group;                 /* the ranks that share the model, this being one; borrowed until close; NULL: it
                                    is alone */
} eng_options;

typedef struct eng_model eng_model;

/* llama architecture. The loader is the schema: every tensor it names must be there with the type
 * and shape it expects. Borrows g until close. ST_UNSUPPORTED: another architecture, expected named. */
status eng_model_open(const eng_gguf *g, const eng_options *options, eng_model **out, error *err);
void eng_model_close(eng_model *m);
const eng_shape *eng_model_shape(const eng_model *m);
/* Kv heads [*first, *first + *count) that rank r of a group of so many has; ranks may share one. ST_BAD_INPUT,
 * ST_UNSUPPORTED: the model cannot be split so. */
status eng_model_heads(const eng_model *m, int ranks, int r, int *first, int *count, error *err);
/* What decides bytes besides file and seed: back end, instruction set, arithmetic version, e.g.
 * "cpu-2". Nodes that differ here must not share a request. */
const char *eng_model_numerics(const eng_model *m);
/* Where weights, pages and scratch are: "the host", or "device 0 (NAME)". */
const char *eng_model_place(const eng_model *m);
size_t eng_model_scratch_bytes(const eng_model *m);
/* Repacked weights, on a device all of them: mapped from the cache and shared, or *private if there is no cache. */
size_t eng_model_panel_bytes(const eng_model *m, bool *is_private);
/* Layers computed so far, all steps together. Any thread: a slow step counts on, one that hangs does not. */
uint64_t eng_model_layers_done(const eng_model *m);

/* Where the time of this rank's steps went. */
typedef enum eng_spent {
    ENG_SPENT_ATTENTION,         /* with its norm and products */
    ENG_SPENT_FFN,               /* likewise */
    ENG_SPENT_ENDS,              /* embedding and logits */
    ENG_SPENT_GROUP,             /* waiting for the other ranks and exchanging with them */
    ENG_SPENT_DEVICE,            /* all of it, where ops are queued: the host can not tell them apart */
    ENG_SPENTS
} eng_spent;
/* (ENG_SPENTS) microseconds, all steps together. */
const int64_t *eng_model_spent_us(const eng_model *m);

/* ---- pool: who owns a page ---------------------------------------------------------------------- */

/* Pages are numbered 0 .. total-1. Pure bookkeeping, no page memory: see engine/pool.c for the rules
 * and the picture of a page's states. */
typedef enum eng_page_state {
    ENG_PAGE_FREE,
    ENG_PAGE_PROMISED,           /* D: reserved for a transfer that has not begun */
    ENG_PAGE_LANDING,            /* D: frames are arriving */
    ENG_PAGE_RUNNING,            /* in a block table of a sequence */
    ENG_PAGE_SENDING,            /* P: pinned until the receiver has it */
    ENG_PAGE_CACHED,             /* no pin, in the prefix index, evictable */
    ENG_PAGE_HELD,               /* P: of a prompt that was read ahead, pinned until a decode node has room for it */
    ENG_PAGE_STATES
} eng_page_state;

typedef struct eng_pool eng_pool;

eng_pool *eng_pool_create(int32_t pages, int32_t page_tokens);       /* NULL: no memory */
void eng_pool_destroy(eng_pool *p);                                  /* asserts that no pin is left */

/* Takes count pages with one pin each: free ones first, then the least recently used cached leaves.
 * All or nothing: ST_AGAIN when fewer are to be had. state: PROMISED or RUNNING. */
status eng_pool_take(eng_pool *p, int32_t count, eng_page_state state, int32_t *pages);
void eng_pool_share(eng_pool *p, int32_t page);                      /* one more pin */
/* One pin less. The last one makes the page cached if the index knows it, else free. */
void eng_pool_give(eng_pool *p, int32_t page);
/* Moves a pinned page to another pinned state (PROMISED -> LANDING -> RUNNING; RUNNING, SENDING and HELD among them). */
void eng_pool_mark(eng_pool *p, int32_t page, eng_page_state state);
int32_t eng_pool_pins(const eng_pool *p, int32_t page);
int32_t eng_pool_total(const eng_pool *p);
int32_t eng_pool_available(const eng_pool *p);                       /* what take can give: free + cached, less
                                                                        cached pages above a pinned one */
void eng_pool_counts(const eng_pool *p, int32_t counts[ENG_PAGE_STATES]);  /* sums to total */

/* Prefix index over full pages: a chain keyed by (salt, all tokens before, the page's tokens); tokens
 * and salt are compared on every hit, so a hash collision never matches.
 *
 * Finds the longest cached prefix of tokens[0..count): writes its full pages, pinned, to pages and
 * returns how many pages. If the page after them agrees in its first *tail_tokens (1..P-1) tokens,
 * *tail is that page, pinned too, to be copied from (eng_kv_copy) and given back: copy on write.
 * Otherwise *tail is -1. Matches at most count tokens. */
int32_t eng_pool_match(eng_pool *p, uint64_t salt, const int32_t *tokens, int32_t count,
                       int32_t *pages, int32_t *tail, int32_t *tail_tokens);
/* Like match without pins and without touching the LRU order: how many tokens would hit. */
int32_t eng_pool_peek(const eng_pool *p, uint64_t salt, const int32_t *tokens, int32_t count);
/* Makes the full pages of tokens[0..count) findable; the caller still holds its pins. A page whose
 * content is already in the index under another number stays private. Never fails: what does not
 * fit the index is not indexed. */
void eng_pool_publish(eng_pool *p, uint64_t salt, const int32_t *tokens, int32_t count,
                      const int32_t *pages);
/* What went in or out of the index since the last call, at most max pages, each once: page pages[i] holds the prefix
 * numbered numbers[i] now (base's prefix_number over its full pages, from the salt on), 0: nothing. */
int32_t eng_pool_changes(eng_pool *p, int32_t max, int32_t *pages, uint64_t *numbers);
/* Forgets every cached page (they become free). Pinned pages leave the index. */
void eng_pool_clear_cache(eng_pool *p);

/* ---- kv: the memory of the pages ---------------------------------------------------------------- */

/* Element types a page or a frame may hold; the numbers go over the wire. Q8_0: 32 dims of a row share
 * a scale, so it needs heads that are a multiple of 32 wide. */
typedef enum eng_kv_type { ENG_KV_F32 = 0, ENG_KV_F16 = 1, ENG_KV_BF16 = 2, ENG_KV_Q8_0 = 3 } eng_kv_type;

const char *eng_kv_type_name(eng_kv_type type);                      /* "f32", "f16", "bf16", "q8_0" */
bool eng_kv_type_find(const char *name, eng_kv_type *out);           /* false: no such name */
bool eng_kv_type_fits(eng_kv_type type, int h);                      /* rows of h elements */
/* K or V of one token, layer and head. */
size_t eng_kv_row_bytes(eng_kv_type type, int h);

typedef struct eng_kv eng_kv;

status eng_kv_create(const eng_model *m, int32_t pages, int32_t page_tokens, eng_kv_type type,
                     eng_kv **out, error *err);
void eng_kv_destroy(eng_kv *kv);
size_t eng_kv_page_bytes(const eng_kv *kv);          /* 2 * L * K * P * row */
eng_kv_type eng_kv_element(const eng_kv *kv);
/* Copies the first tokens rows of every layer from page src to page dst. */
void eng_kv_copy(eng_kv *kv, int32_t dst, int32_t src, int32_t tokens);

/* A box of KV: what a frame of kvtransfer carries. Canonical order on the wire:
 * [layer][K then V][kv head][token][dim], elements little-endian of type `type`; of Q8_0 a row is, as in
 * a GGUF file, for each 32 dims a half (the scale) and 32 int8. Any type goes into pages of any other:
 * what is written is rounded to the pages' type. */
typedef struct eng_kv_box {
    int32_t layer_first, layers;
    int32_t head_first, heads;   /* kv heads */
    int32_t token_first, tokens; /* positions in the sequence */
    eng_kv_type type;
} eng_kv_box;

size_t eng_kv_box_bytes(const eng_kv *kv, const eng_kv_box *box);
void eng_kv_pack(const eng_kv *kv, const int32_t *blocks, const eng_kv_box *box, void *out);
void eng_kv_unpack(eng_kv *kv, const int32_t *blocks, const eng_kv_box *box, const void *in);
/* What eng_kv_pack() gives, without copying what lies on the pages as on the wire: as many runs of memory, into the
 * pages or into scratch (eng_kv_box_bytes() of room), as are returned; 0: not in runs_max, or nothing lies so. */
int eng_kv_runs(const eng_kv *kv, const int32_t *blocks, const eng_kv_box *box, void *scratch, struct iovec *runs, int runs_max);

/* ---- step -------------------------------------------------------------------------------------- */

/* Rows of one sequence at consecutive positions: a prefill chunk, a decode token, a draft to verify
 * differ only in count. The pages of positions [0, position + count) must be in blocks, those of
 * [0, position) must hold their KV; the step writes KV of the rows themselves. No two entries of one
 * step may write the same page. */
typedef struct eng_rows {
    const int32_t *tokens;       /* (count) */
    int32_t count;
    int32_t position;            /* of tokens[0] */
    const int32_t *blocks;       /* page of positions [i*P, (i+1)*P) */
    int32_t logits;              /* logits wanted of the last so many rows: 0 .. count */
} eng_rows;

/* One forward pass over all rows. *logits: (sum of rows[i].logits, V) in order, valid until the next
 * step. Allocates nothing. Asserts its limits (tokens_max, logits_max): they are the caller's. With a group the
 * caller is rank 0, and a lost rank ends the step with the group's status (collective.h). A device may still be at
 * a step without logits when the call returns: what follows waits for it, and tells of its errors. */
status eng_step(eng_model *m, eng_kv *kv, const eng_rows *rows, int count, const float **logits,
                error *err);

/* What a follower does besides steps: hears eng_tell(), answers eng_ask(). Both between two steps. */
typedef struct eng_ear {
    void *ctx;
    void (*told)(void *ctx, const void *note, size_t bytes);     /* 16-aligned */
    void (*asked)(void *ctx, void *answer, size_t bytes);        /* answer is zeroed */
} eng_ear;

/* The other ranks of a group: do what rank 0 does, to this rank's share and pages (lead.c), until it dismisses
 * them or the group fails. Their pages are as many and as large as rank 0's. */
status eng_follow(eng_model *m, eng_kv *kv, const eng_ear *ear, error *err);
/* Rank 0; without a group they do nothing. What they tell is in order with the steps.
 * eng_tell: the same note to every other rank. eng_ask: answers (ranks, bytes); rank 0's own stay as they are; of no bytes
 * it only waits until all have heard what they were told.
 * While it has nothing to do rank 0 asks more often than the group's time-out, or the others take it for lost; a
 * rank that hangs is found so. eng_dismiss: the others return. */
status eng_tell(eng_model *m, const void *note, size_t bytes, error *err);
status eng_ask(eng_model *m, void *answers, size_t bytes, error *err);
status eng_dismiss(eng_model *m, error *err);

/* ---- sampling ---------------------------------------------------------------------------------- */

typedef struct eng_bias {
    int32_t token;
    float bias;                  /* added to the logit */
} eng_bias;

typedef struct eng_sampling {
    float temperature;           /* 0: greedy */
    int32_t top_k;               /* 0: off */
    float top_p;                 /* 1: off */
    float min_p;                 /* 0: off */
    float repetition;            /* 1: off; divides positive, multiplies negative logits of tokens in
                                    prompt or answer (CTRL, Keskar et al. 2019) */
    float presence, frequency;   /* 0: off; over the answer's tokens (OpenAI's definition) */
    uint64_t seed;
    int32_t logprobs;            /* how many top alternatives to report, 0 .. ENG_LOGPROBS_MAX; -1: none,
                                    not even the token's own */
    const eng_bias *bias;        /* borrowed */
    int32_t bias_count;
} eng_sampling;

#define ENG_LOGPROBS_MAX 20

extern const eng_sampling eng_sampling_default;      /* temperature 0, everything off, logprobs -1 */

/* Refuses NaN, negative and out-of-range values by field name. V: the vocabulary. */
status eng_sampling_check(const eng_sampling *s, int32_t V, error *err);

typedef struct eng_sampled {
    int32_t token;
    float logprob;               /* natural log, of the distribution after penalties and bias, before
                                    temperature and cuts */
    int32_t top_count;
    int32_t top_token[ENG_LOGPROBS_MAX];
    float top_logprob[ENG_LOGPROBS_MAX];
} eng_sampled;

typedef struct eng_sampler eng_sampler;              /* scratch for one vocabulary */

eng_sampler *eng_sampler_create(int32_t V);          /* NULL: no memory */
void eng_sampler_destroy(eng_sampler *s);

/* Draws the token at position count of the sequence history[0..count), of which the first
 * prompt_count are the prompt. A pure function of its arguments: the randomness is Philox4x32-10
 * (Salmon et al. 2011) of (seed, count). Ties go to the smaller token id. Allocates nothing.
 * ST_DEVICE: a logit is NaN, or all are -inf. */
status eng_sample(eng_sampler *s, const eng_sampling *p, const float *logits, const int32_t *history,
                  int32_t prompt_count, int32_t count, eng_sampled *out);
/* What these logits say of a token that is given, as one of a prompt: its logprob and `tops` alternatives, of the model's
 * own distribution, without penalties and bias. Else as eng_sample(). */
status eng_sample_given(eng_sampler *s, const float *logits, int32_t token, int32_t tops, eng_sampled *out);

/* A token that a step draws itself, where its logits are. */
typedef struct eng_draw {
    int32_t row;                 /* of the logits that the step is asked for */
    int32_t count;               /* as in eng_sample() */
    const eng_sampling *sampling;
    bool shown;                  /* its logits are wanted all the same */
    int32_t token;               /* out: as from eng_sample(); -1: that would say ST_DEVICE */
    struct eng_draw *next;       /* the model's own */
} eng_draw;

/* true: the next eng_step() fills d->token; where it draws from all of its logits and none is to be shown, they are not
 * brought to the host, and *logits is nobody's. d and its sampling are borrowed until then. false: not here, draw from the logits. It is done on a
 * device by a rank that is alone, for who asks for nothing but temperature, top-k, top-p and min-p: always or never the
 * same for one model and one eng_sampling. */
bool eng_step_draws(eng_model *m, eng_draw *d);

#ifdef __cplusplus
}
#endif
#endif
