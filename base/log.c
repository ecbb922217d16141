/* log.c -- one line an event to stderr, written with one write(2) so that lines of several threads and
 * processes do not mix. What cannot be written is dropped and counted: logging never stops serving. */
#include "base/base.h"
#include <string.h>
#include <time.h>
#include <unistd.h>

static char process_name[48] = "baton";
static log_level least = LOG_INFO;

METRIC(dropped, "baton_log_lines_dropped_total", NULL, METRIC_COUNTER,
       "lines of the log that could not be written: a full disk, a pipe that nobody reads");

static const char *const level_names[] = {"ERROR", "WARN", "INFO", "DEBUG"};

void log_setup(const char *process, log_level level) {
    snprintf(process_name, sizeof process_name, "%s", process);
    least = level;
    metric_show(&dropped);
}

bool log_level_parse(const char *text, log_level *out) {
    static const char *const words[] = {"error", "warn", "info", "debug"};
    for (int i = 0; i < 4; i++)
        if (strcmp(text, words[i]) == 0) {
            *out = (log_level)i;
            return true;
        }
    return false;
}

int64_t log_dropped(void) { return metric_get(&dropped); }

/* "2026-11-22T02:54:00", worked out once a second: it costs as much as the rest of a line. */
static const char *date_of(time_t second) {
    static _Thread_local time_t known = -1;
    static _Thread_local char text[32];
    struct tm utc;
    if (second != known) strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", gmtime_r(&second, &utc));
    known = second;
    return text;
}

void log_write(log_level level, const char *id, const char *event, const char *fmt, ...) {
    if (level > least) return;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);

    char line[1024];
    size_t used = (size_t)snprintf(line, sizeof line, "%s.%03ldZ %s %s %s%s%s%s ", date_of(now.tv_sec),
                                   now.tv_nsec / 1000000, level_names[level], process_name,
                                   id ? "req=" : "", id ? id : "", id ? " " : "", event);
    if (used > sizeof line - 1) used = sizeof line - 1;
    va_list args;
    va_start(args, fmt);
    int more = vsnprintf(line + used, sizeof line - used, fmt, args);
    va_end(args);
    if (more > 0) used += (size_t)more;
    if (used > sizeof line - 1) used = sizeof line - 1;
    for (size_t i = 0; i < used; i++)
        if ((unsigned char)line[i] < ' ') line[i] = ' '; /* a value can not start a line of its own */
    line[used++] = '\n';
    if (write(STDERR_FILENO, line, used) != (ssize_t)used) metric_add(&dropped, 1);
}
