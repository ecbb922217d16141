/* seal.c -- frames sealed with AES-256-GCM (NIST SP 800-38D), by OpenSSL's EVP.
 *
 * A key is one ticket's: the receiver makes it with its promise, it travels over mTLS through the coordinator to the
 * sender, and both overwrite it where promise or send ends. Whoever has it may write to the ticket's pages, as
 * whoever has the ticket may where nothing is sealed.
 *
 *   nonce      salt (8 bytes, of the send), number (4 bytes, of the frame, little endian)
 *   associated bytes 0..59 of the header: ticket, epoch, box, type, sizes and number cannot be changed
 *   plaintext  the payload; END and ABORT have none, only a tag
 *
 * No nonce comes twice under a key, for with two frames of one nonce GCM gives away both and the means to forge more.
 * Within a send numbers only rise [kvt_seal], and no frame is sealed a second time: what has been staged is sent as
 * it is. Under one key there are several sends: one for each pair of ranks with heads in common, two of them with the
 * very same heads where ranks share one, and more if a coordinator should tell a ticket to two nodes. None knows of
 * the others, so heads or ranks do not tell them apart reliably; each draws its salt at random instead
 * [kvt_sealing_begin]. Of KVT_SENDERS_MAX sends two agree with a probability of 2^-55. A send that wrapped its
 * numbers would end the process (assert); it would be one of 2^32 frames.
 *
 * The receiver takes a salt's numbers only rising (receive.c), so that a recorded frame is of no use even while its
 * ticket lives; gaps are allowed, because END finds what is missing.
 *
 * One cipher context a node, keyed anew for each frame: 0.35 us for 256 KiB that take 45. No memory is allocated. */
#include "kvtransfer/internal.h"
#include <assert.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>

enum { NONCE_BYTES = 12, BOUND_BYTES = 60 };
static_assert(KVT_SALT_BYTES + sizeof(uint32_t) == NONCE_BYTES, "GCM takes such a nonce as it is");

/* Node's thread. */
struct kvt_cipher {
    EVP_CIPHER *gcm;
    EVP_CIPHER_CTX *at;
};

bool kvt_key_make(unsigned char key[KVT_KEY_BYTES]) { return RAND_bytes(key, KVT_KEY_BYTES) == 1; }

void kvt_key_wipe(void *key, size_t bytes) {
    if (key) OPENSSL_cleanse(key, bytes);
}

kvt_cipher *kvt_cipher_create(void) {
    kvt_cipher *c = mem_zalloc(1, sizeof *c);
    if (!c) return NULL;
    c->gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    c->at = EVP_CIPHER_CTX_new();
    if (c->gcm && c->at && EVP_CipherInit_ex(c->at, c->gcm, NULL, NULL, NULL, 1) == 1) return c;
    kvt_cipher_destroy(c);
    return NULL;
}

void kvt_cipher_destroy(kvt_cipher *c) {
    if (!c) return;
    EVP_CIPHER_CTX_free(c->at);
    EVP_CIPHER_free(c->gcm);
    mem_free(c);
}

bool kvt_sealing_begin(kvt_sealing *s, const unsigned char *key) {
    memcpy(s->key, key, KVT_KEY_BYTES);
    s->number = 0;
    return RAND_bytes(s->salt, KVT_SALT_BYTES) == 1;
}

/* Keys the context and takes in what is only to be bound. These calls fail for misuse alone. */
static void begin(kvt_cipher *c, const unsigned char *key, const unsigned char *salt, uint32_t number,
                  const unsigned char *header, bool seals) {
    unsigned char nonce[NONCE_BYTES];
    int n;
    memcpy(nonce, salt, KVT_SALT_BYTES);
    for (int i = 0; i < 4; i++) nonce[KVT_SALT_BYTES + i] = (unsigned char)(number >> (8 * i));
    int ok = EVP_CipherInit_ex(c->at, NULL, NULL, key, nonce, seals) == 1 &&
             EVP_CipherUpdate(c->at, NULL, &n, header, BOUND_BYTES) == 1;
    assert(ok);
}

static void run(kvt_cipher *c, void *payload, uint32_t bytes) {
    int n = 0;
    int ok = !bytes || EVP_CipherUpdate(c->at, payload, &n, payload, (int)bytes) == 1;
    assert(ok && n == (int)bytes);
}

void kvt_seal(kvt_cipher *c, kvt_sealing *s, kvt_frame *f, unsigned char *at) {
    unsigned char *seal = at + KVT_FRAME_BYTES, *payload = seal + KVT_SEAL_BYTES;
    int n;
    assert(s->number < UINT32_MAX);
    f->sealed = true;
    f->number = s->number++;
    kvt_frame_encode(f, at);
    begin(c, s->key, s->salt, f->number, at, true);
    run(c, payload, f->payload_bytes);
    memcpy(seal, s->salt, KVT_SALT_BYTES);
    int ok = EVP_CipherFinal_ex(c->at, payload, &n) == 1 &&
             EVP_CIPHER_CTX_ctrl(c->at, EVP_CTRL_AEAD_GET_TAG, KVT_TAG_BYTES, seal + KVT_SALT_BYTES) == 1;
    assert(ok && n == 0);
}

bool kvt_unseal(kvt_cipher *c, const unsigned char key[KVT_KEY_BYTES], const kvt_frame *f,
                const unsigned char header[KVT_FRAME_BYTES], const unsigned char seal[KVT_SEAL_BYTES], void *payload) {
    unsigned char tag[KVT_TAG_BYTES], none[1];
    int n;
    memcpy(tag, seal + KVT_SALT_BYTES, sizeof tag);
    begin(c, key, seal, f->number, header, false);
    run(c, payload, f->payload_bytes);
    return EVP_CIPHER_CTX_ctrl(c->at, EVP_CTRL_AEAD_SET_TAG, sizeof tag, tag) == 1 && EVP_CipherFinal_ex(c->at, none, &n) == 1;
}
