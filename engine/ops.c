/* ops.c -- which back ends this build has and which of them this machine can run. Naming one pins it, so that
 * different machines of a cluster compute the same bytes.
 *
 * The device decides first: cpu (with an instruction set), or cuda where this build has it (BATON_CUDA, a CMake
 * option). That a machine has a GPU is seen by the back end's open(), which can say what is missing. */
#include "engine/ops.h"
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

extern const eng_ops eng_cpu_scalar, eng_cpu_base;
#ifdef BATON_CUDA
extern const eng_ops eng_cuda;
static const eng_ops *const cuda = &eng_cuda;
#else
static const eng_ops *const cuda = NULL;
#endif

static bool always(void) { return true; }

#if defined(__x86_64__)
extern const eng_ops eng_cpu_amx, eng_cpu_avx512, eng_cpu_avx2;

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

/* Tiles of int8. Their state is large: Linux gives it to a process that asks (kernel.org, xstate.rst). */
static bool has_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25 };
    unsigned a, b, c, d = 0;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_TILE) && (d & AMX_INT8) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#elif defined(__aarch64__)
extern const eng_ops eng_cpu_neon;

/* Dot products of four bytes (optional from Armv8.2 on). */
static bool has_neon(void) { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
#endif

/* One line a back end, the fastest first. */
static const struct {
    const eng_ops *ops;
    bool (*supported)(void);
} table[] = {
#if defined(__x86_64__)
    {&eng_cpu_amx, has_amx},
    {&eng_cpu_avx512, has_avx512},
    {&eng_cpu_avx2, has_avx2},
#elif defined(__aarch64__)
    {&eng_cpu_neon, has_neon},
#endif
    {&eng_cpu_base, always},
    {&eng_cpu_scalar, always},
};
enum { TABLE_COUNT = sizeof table / sizeof table[0] };

status eng_ops_choose(const eng_options *o, const eng_ops **out, error *err) {
    const char *device = o->device ? o->device : "cpu";
    *out = NULL;
    if (strcmp(device, "cuda") == 0 || strncmp(device, "cuda:", 5) == 0) {
        if (!cuda) return error_set(err, ST_UNSUPPORTED, "device '%.40s': this baton was built without CUDA", device);
        *out = cuda;
        return ST_OK;
    }
    if (strcmp(device, "cpu") != 0)
        return error_set(err, ST_BAD_INPUT, "device '%.40s', expected cpu, cuda or cuda:0,1 (by index)", device);
    if (!(*out = eng_ops_find(o->isa)))
        return error_set(err, ST_UNSUPPORTED, "isa '%.40s' is not one of this machine, expected auto or one of %s",
                         o->isa, eng_ops_names((char[80]){0}));
    return ST_OK;
}

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
