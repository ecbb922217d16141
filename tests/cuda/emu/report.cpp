/* report.cpp -- how an error looks: kind and message, then where the kernel stood.
 *
 *   ==EMU== ERROR: out-of-bounds: write past the end of an allocation of 64 bytes at rmsnorm rows.cu:41
 *   ==EMU==   in kernel rmsnorm, launch 3, block (2,0,0), thread (17,0,0)
 *
 * ASan and UBSan print their own; the second line is added to theirs. */
#include "emu.h"
#include "fibre.h"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

extern "C" {
void __sanitizer_print_stack_trace(void) __attribute__((weak));
void __sanitizer_set_death_callback(void (*)(void)) __attribute__((weak));
extern char __executable_start[];
}

int emu_env(const char *name, int otherwise) {
    const char *s = getenv(name);
    return s ? atoi(s) : otherwise;
}

bool emu_env_is(const char *name, const char *value) {
    const char *s = getenv(name);
    return s && !strcmp(s, value);
}

/* binutils reads the executable's own debug lines; an executable at a fixed address (e_type 2) has absolute ones. */
static std::string addr2line(const void *pc, const char *flags) {
    bool fixed = *(uint16_t *)(__executable_start + 16) == 2;
    unsigned long at = (unsigned long)pc - (fixed ? 0 : (unsigned long)__executable_start);
    char command[256], line[512];
    snprintf(command, sizeof command, "addr2line %s -e /proc/%d/exe 0x%lx 2>/dev/null", flags, (int)getpid(), at);
    FILE *f = popen(command, "r");
    std::string out;
    while (f && fgets(line, sizeof line, f) && out.size() < 300) {
        line[strcspn(line, "\n")] = 0;
        out += (out.empty() ? "" : " ") + std::string(line);
    }
    if (f)
        pclose(f);
    return out;
}

const char *emu_symbolize(const void *pc, char *buf, size_t bytes) {
    if (!pc && emu_ptx_site(buf, bytes))
        return buf;
    std::string s = pc ? addr2line(pc, "-Cfsi") : "";
    if (s.empty())
        snprintf(buf, bytes, "%p", pc);
    else
        snprintf(buf, bytes, "%s", s.c_str());
    return buf;
}

std::string emu_kernel_symbol(const void *kernel) {
    std::string s = addr2line(kernel, "-f");
    return s.substr(0, s.find(' '));
}

void emu_where(char *buf, size_t bytes) {
    const EmuFibre *f = emu_me;
    if (!f) {
        if (emu_op_name)
            snprintf(buf, bytes, "work queued on a stream: %s", emu_op_name);
        else
            snprintf(buf, bytes, "host code");
        return;
    }
    const EmuGrid *g = emu_block.grid;
    std::string name = g->name ? std::string(g->name) + " (PTX)" : addr2line(g->kernel, "-Cfs");
    snprintf(buf, bytes, "kernel %s, launch %u, block (%u,%u,%u), thread (%u,%u,%u)", name.c_str(), emu_block.launch,
             blockIdx.x, blockIdx.y, blockIdx.z, f->tid.x, f->tid.y, f->tid.z);
}

void emu_fail(const char *kind, const char *fmt, ...) {
    static bool failing;
    if (failing)
        _exit(86);
    failing = true;
    char where[512];
    fflush(stdout);
    fprintf(stderr, "\n==EMU== ERROR: %s: ", kind);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    emu_where(where, sizeof where);
    fprintf(stderr, "\n==EMU==   in %s\n", where);
    if (__sanitizer_print_stack_trace && !emu_me)
        __sanitizer_print_stack_trace();
    fflush(stderr);
    _exit(86);
}

/* ASan or UBSan ends the process. */
static void say_where() {
    char where[512];
    emu_where(where, sizeof where);
    fprintf(stderr, "==EMU==   in %s\n", where);
}

__attribute__((constructor)) static void on_death() {
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(say_where);
}

extern "C" void emu_trap(const char *file, int line) { emu_fail("trap", "%s:%d: __trap()", file, line); }
