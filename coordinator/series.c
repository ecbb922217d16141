/* series.c -- metrics with labels that are learned while it runs: of a link between two nodes, of a tenant.
 *
 * A family is a few metrics that are counted together, a row of it the same metrics with the labels of one link or tenant.
 * The registry (base/metrics.c) never lets a metric go, so a row stays for good, and there are at most rows_max. What
 * comes later is counted in one more row, the rest, as is what there is no memory for.
 *
 * Whoever of a process counts, counts here: hence the lock, which is taken once for a request or a transfer. */
#include "coordinator/service.h"
#include <pthread.h>
#include <string.h>
#include <xxhash.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* What a value may be is not ours to say: quotes and backslashes are escaped, what is not plain ASCII is a question mark,
 * and so much is enough to tell two names apart. */
void coord_series_label(char labels[COORD_LABELS_BYTES], const char *name, const char *value) {
    enum { VALUE_MAX = 63 };
    size_t used = strlen(labels), room = COORD_LABELS_BYTES - 1, longest = strlen(name) + 5 + 2 * VALUE_MAX;
    if (used + longest > room) return;
    used += (size_t)snprintf(labels + used, room - used, "%s%s=\"", used ? "," : "", name);
    for (int i = 0; i < VALUE_MAX && value[i]; i++) {
        bool plain = value[i] >= ' ' && value[i] <= '~';
        if (value[i] == '"' || value[i] == '\\') labels[used++] = '\\';
        labels[used++] = plain ? value[i] : '?';
    }
    labels[used++] = '"';
    labels[used] = 0;
}

static void fill(const coord_series *s, coord_row *row, const char *labels) {
    for (int i = 0; i < s->count; i++) {
        const char *own = s->metrics[i].labels;
        row->metrics[i] = s->metrics[i];
        row->metrics[i].labels = row->labels[i];
        snprintf(row->labels[i], sizeof row->labels[i], "%s%s%s", labels, own ? "," : "", own ? own : "");
        metric_show(&row->metrics[i]);
    }
    snprintf(row->key, sizeof row->key, "%s", labels);
}

static metric *rest(coord_series *s) {
    if (!s->rest.metrics[0].name) fill(s, &s->rest, s->rest_labels);
    return s->rest.metrics;
}

/* NULL: it is one of the rest. */
static coord_row *find_or_make(coord_series *s, const char *labels) {
    uint64_t i = XXH3_64bits(labels, strlen(labels)) % COORD_SLOTS;
    for (; s->slots[i]; i = (i + 1) % COORD_SLOTS)
        if (strcmp(s->slots[i]->key, labels) == 0) return s->slots[i];
    coord_row *row = s->rows < s->rows_max ? mem_zalloc(1, sizeof *row) : NULL;
    if (!row) return NULL;
    fill(s, row, labels);
    s->rows++;
    return s->slots[i] = row;
}

metric *coord_series_row(coord_series *s, const char *labels) {
    pthread_mutex_lock(&lock);
    coord_row *row = labels && strcmp(labels, s->rest_labels) != 0 ? find_or_make(s, labels) : NULL;
    metric *found = row ? row->metrics : rest(s);
    pthread_mutex_unlock(&lock);
    return found;
}
