/* cli/: wrong usage is answered in one line on stderr with the exit code of the contract, and nothing on
 * stdout. Runs the executable. */
#include "base/base.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

typedef struct answer {
    int code;
    char out[8192], err[8192];
} answer;

static void drain(int fd, char text[8192]) {
    size_t used = 0;
    for (ssize_t n; (n = read(fd, text + used, 8191 - used)) > 0;) used += (size_t)n;
    text[used] = 0;
    close(fd);
}

/* words is a shell's list of arguments; no expansion is wanted in it. */
static void run(const char *words, answer *a) {
    int out[2], err[2], how;
    char line[1000];
    assert_int_equal(pipe(out), 0);
    assert_int_equal(pipe(err), 0);
    snprintf(line, sizeof line, "exec '%s' %s", BATON, words);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(out[1], STDOUT_FILENO);
        dup2(err[1], STDERR_FILENO);
        close(out[0]);
        close(err[0]);
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    close(err[1]);
    drain(out[0], a->out);
    drain(err[0], a->err);
    assert_int_equal(waitpid(pid, &how, 0), pid);
    a->code = WIFEXITED(how) ? WEXITSTATUS(how) : 1000 + WTERMSIG(how);
}

static void refusals(void **state) {
    (void)state;
    static const struct { const char *words; int code; const char *part; } rows[] = {
        {"no-such-command", 2, "no-such-command"},
        {"toop", 2, "toop"},
        {"generate --no-such-flag", 2, "--no-such-flag"},
        {"generate", 2, "--prompt"},
        {"generate --prompt a --tokens 1", 2, "expected one of"},
        {"generate --tokens 1 --chat", 2, "--chat"},
        {"generate --tokens 1,x", 2, "x"},
        {"generate --prompt a --tenant 'a b'", 2, "--tenant"},
        {"generate --prompt a --tenant ''", 2, "--tenant"},
        {"chat --tenant 'a b'", 2, "--tenant"},
        {"coordinator --tenant-pages 0", 2, "tenant-pages"},
        {"generate --tokens 1,", 2, "token ids"},
        {"generate --tokens 99999999999", 2, "99999999999"},
        {"generate --prompt a --temperature hot", 2, "hot"},
        {"generate --prompt a --seed -1", 2, "--seed"},
        {"generate --prompt a --server nonsense", 2, "--server"},
        {"generate --prompt a --server 127.0.0.1:1", 3, "127.0.0.1:1"},
        {"generate --prompt a --server 127.0.0.1:1,127.0.0.1:2", 3, "127.0.0.1:2"},
        {"generate --prompt a --server 127.0.0.1:1,", 2, "--server: server address ''"},
        {"chat --server 127.0.0.1:1,nonsense", 2, "'nonsense'"},
        {"generate --prompt-file /no/such/file", 1, "/no/such/file"},
        {"nodes --server 127.0.0.1:1", 3, "127.0.0.1:1"},
        {"nodes more words", 2, "more"},
        {"drain", 2, "NODE"},
        {"role decode-1", 2, "ROLE"},
        {"role decode-1 cook", 2, "cook"},
        {"up", 2, "--model"},
        {"up --model /no/such/file", 1, "/no/such/file"},
        {"up --model x --decode 0", 2, "--decode"},
        {"up --model x --tp 17", 2, "--tp"},
        {"decode --model x --tp 2 --rank 1", 2, "--group"},
        {"decode --model x --tp 2 --rank 2 --group a:1", 2, "--rank"},
        {"prefill --model /no/such --tp 2 --rank 1 --group nowhere", 1, "HOST:PORT"},
        {"up --model x --log-level loud", 2, "loud"},
        {"coordinator --model x", 2, "--nodes"},
        {"coordinator --model x --registry zk:h", 2, "zk"},
        {"coordinator --model x --registry https://h:1", 2, "--etcd-ca"},
        {"coordinator --model x --registry etcd://h:1 --nodes a:1", 2, "one of them"},
        {"decode --model x --registry etcd://h", 2, "HOST:PORT"},
        {"prefill --model x --registry etcd://h:1 --listen 0.0.0.0:1", 2, "0.0.0.0"},
        {"coordinator --model x --nodes a:1 --prefill-policy maybe", 2, "maybe"},
        {"coordinator --model x --nodes a:1 --route fastest", 2, "fastest"},
        {"coordinator --model x --nodes a:1 --queue-tokens 0", 2, "--queue-tokens"},
        {"coordinator --model /no/such/file --nodes a:1", 1, "/no/such/file"},
        {"decode --model x --kv-dtype f8", 2, "f8"},
        {"decode --model /no/such/file", 1, "/no/such/file"},
        {"prefill", 2, "--model"},
        {"tokenize --text a", 2, "--model"},
        {"tokenize --model x", 2, "--text"},
        {"tokenize --model /no/such/file --text a", 1, "/no/such/file"},
        {"tokenize --model /dev/null --text a", 1, "/dev/null"},
        {"perplexity --model x", 2, "--file"},
        {"perplexity --model x --file y --context 2", 2, "--context"},
        {"logits --model x", 2, "--tokens"},
        {"bench", 2, "engine"},
        {"bench loads --model x", 2, "loads"},
        {"bench load --model /no/such/file", 1, "/no/such/file"},
        {"bench load --model x --server 127.0.0.1:1", 2, "not both"},
        {"bench load --server x", 2, "--server"},
        {"bench load --prompt-lengths 7", 2, "--prompt-lengths '7'"},
        {"bench load --answer-lengths uniform:9-3", 2, "uniform:9-3"},
        {"bench load --rate -1", 2, "--rate -1"},
        {"bench load --seed x", 2, "--seed"},
        {"bench load --dry-run", 2, "--model"},
        {"bench load --trace /no/such/file", 1, "/no/such/file"},
        {"bench load --trace /dev/null --burst 2", 2, "--burst"},
        {"bench load --trace /dev/null", 2, "no requests"},
        {"bench load --server 127.0.0.1:1 --requests 1", 3, "127.0.0.1:1"},
        {"bench transfer engine", 2, "unexpected word"},
        {"bench engine", 2, "--model"},
        {"bench engine --model x --only prefill:3", 2, "prefill:3"},
        {"bench engine --model x --kv-dtype f8", 2, "f8"},
        {"bench engine --model /no/such/file", 1, "/no/such/file"},
        {"logits --model x --tokens 1", 2, "--out"},
        {"up --model x --listen 0.0.0.0:1", 2, "--insecure"},
        {"coordinator --model x --nodes a:1 --listen 192.0.2.1:1", 2, "--tls-ca"},
        {"coordinator --model x --nodes a:1 --tls-ca /no/such/ca", 1, "/no/such/ca"},
        {"decode --model x --listen [::]:1", 2, "[::]:1"},
        {"decode --model x --kv-listen 0.0.0.0:0", 2, "--kv-listen 0.0.0.0:0"},
        {"prefill --model x --tp 2 --rank 1 --group 192.0.2.1:9", 2, "--group 192.0.2.1:9"},
        {"up --model x --tls-ca x --tls-cert y", 2, "--tls-key"},
        {"up --model x --tokens-file /no/such/tokens", 1, "/no/such/tokens"},
        {"generate --prompt a --tls-ca /no/such/ca", 1, "/no/such/ca"},
        {"nodes --token-file /no/such/token", 1, "/no/such/token"},
        {"up --model x --http 0.0.0.0:0", 2, "--http 0.0.0.0:0"},
        {"decode --model x --etcd-ca x", 2, "--registry"},
        {"decode --model x --registry etcd://h:1 --etcd-cert x --etcd-key x", 2, "--etcd-ca"},
        {"decode --model x --registry etcd://h:1 --etcd-ca /no/such/ca", 1, "/no/such/ca"},
        {"certs", 2, "ROLE"},
        {"certs node", 2, "NAME"},
        {"certs cook x", 2, "cook"},
        {"certs ca x", 2, "ca: expected no name"},
        {"certs client a/b", 2, "a/b"},
        {"certs node x --dir /no/such/dir", 1, "/no/such/dir"},
        {"quantize x", 2, "IN OUT"},
        {"quantize x y", 2, "--type"},
        {"quantize x y --type q6_k", 2, "q6_k"},
        {"quantize /no/such/file y --type q4_0", 1, "/no/such/file"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        answer a;
        run(rows[i].words, &a);
        size_t bytes = strlen(a.err);
        bool one_line = bytes > 1 && strchr(a.err, '\n') == a.err + bytes - 1;
        if (a.code != rows[i].code || !strstr(a.err, rows[i].part) || a.out[0] || !one_line)
            fail_msg("baton %s: exit code %d, expected %d with '%s' in one line; stdout '%s', stderr '%s'",
                     rows[i].words, a.code, rows[i].code, rows[i].part, a.out, a.err);
    }
}

/* Help comes from the tables, names every flag with its variable, and nothing that is not built. */
static void help(void **state) {
    (void)state;
    static const struct { const char *words, *has, *lacks; } rows[] = {
        {"--help", "top  ", "etcd"}, {"help", "exit codes", "--grpc"},
        {"up --help", "BATON_DRAFT", "--grpc"}, {"help up", "--prefill N", "--grpc"},
        {"generate --help", "--top-p", "--draft"}, {"help --markdown", "| `--listen HOST:PORT`", "--grpc"},
        {"version", "baton ", "help"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        answer a;
        run(rows[i].words, &a);
        if (a.code != 0 || !strstr(a.out, rows[i].has) || strstr(a.out, rows[i].lacks) || a.err[0])
            fail_msg("baton %s: exit code %d, '%s' expected, '%s' not; stdout '%s', stderr '%s'", rows[i].words,
                     a.code, rows[i].has, rows[i].lacks, a.out, a.err);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(refusals), cmocka_unit_test(help)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
