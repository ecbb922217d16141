/* ops.c -- which back ends this build has and which of them this machine can run. Naming one pins it, so that
 * different machines of a cluster compute the same bytes. */
#include "engine/ops.h"
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

extern const eng_ops eng_cpu_scalar, eng_cpu_base;

static bool always(void) { return true; }

#if defined(__x86_64__)
extern const eng_ops eng_cpu_avx512, eng_cpu_avx2;

/* AVX2 and what every CPU that has it has beside it; F16C by its own bit, since clang's builtin does not
 * know the name. */
static bool has_avx2(void) {
    unsigned a, b, c = 0, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
           (c & bit_F16C);
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

/* One line a back end, the fastest first. */
static const struct {
    const eng_ops *ops;
    bool (*supported)(void);
} table[] = {
#if defined(__x86_64__)
    {&eng_cpu_avx512, has_avx512},
    {&eng_cpu_avx2, has_avx2},
#endif
    {&eng_cpu_base, always},
    {&eng_cpu_scalar, always},
};
enum { TABLE_COUNT = sizeof table / sizeof table[0] };

const eng_ops *eng_ops_find(const char *name) {
    bool any = !name || strcmp(name, "auto") == 0;
    for (int i = 0; i < TABLE_COUNT; i++)
        if ((any || strcmp(name, table[i].ops->name) == 0) && table[i].supported()) return table[i].ops;
    return NULL;
}

const char *eng_ops_names(char out[80]) {
    size_t used = 0;
    for (int i = 0; i < TABLE_COUNT; i++)
        if (table[i].supported())
            used += (size_t)snprintf(out + used, 80 - used, "%s%s", used ? ", " : "", table[i].ops->name);
    return out;
}

const eng_ops *eng_ops_at(int index) {
    for (int i = 0; i < TABLE_COUNT; i++)
        if (table[i].supported() && index-- == 0) return table[i].ops;
    return NULL;
}
