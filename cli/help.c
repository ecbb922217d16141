/* help.c -- what baton says about itself, all of it from the rows of the command and option tables.
 */
#include "cli/cli.h"
#include <ctype.h>
#include <string.h>

void cli_help_all(FILE *out) {
    fputs("baton serves a language model from prefill and decode processes.\n\nusage: baton "
          "COMMAND [--flags]\n\n",
          out);
    for (int i = 0; i < cli_commands_count; i++) {
        char call[60];
        snprintf(call, sizeof call, "%s %s", cli_commands[i]->name, cli_commands[i]->words);
        fprintf(out, "  %-22s %s\n", call, cli_commands[i]->about);
    }
    fputs("  version                print the version\n\n"
          "baton COMMAND --help lists a command's flags. Each flag is also a BATON_ variable and a "
          "key of a\n"
          "YAML file (--config FILE); flags win over variables, variables over the file.\n"
          "exit codes: 0 ok, 1 failed, 2 usage, 3 not reachable, 4 refused\n",
          out);
}

void cli_help_command(FILE *out, const cli_command *c) {
    fprintf(out, "usage: baton %s%s%s [--flags]\n\n%s\n\n", c->name, *c->words ? " " : "", c->words,
            c->about);
    config_help(out, c->rows, c->rows_count);
}

static void markdown_row(FILE *out, const config_row *r) {
    char variable[80];
    size_t i = 0;
    for (; r->name[i] && i < sizeof variable - 1; i++)
        variable[i] = r->name[i] == '-' ? '_' : (char)toupper((unsigned char)r->name[i]);
    variable[i] = 0;
    fprintf(out, "| `--%s%s%s` | `BATON_%s` | %s%s%s | %s |\n", r->name, r->value_name ? " " : "",
            r->value_name ? r->value_name : "", variable, r->fallback ? "`" : "",
            r->fallback ? r->fallback : "", r->fallback ? "`" : "", r->help);
}

void cli_help_markdown(FILE *out) {
    for (int i = 0; i < cli_commands_count; i++) {
        const cli_command *c = cli_commands[i];
        fprintf(out, "### baton %s%s%s\n\n%s\n\n", c->name, *c->words ? " " : "", c->words,
                c->about);
        fputs("| flag | variable | default | |\n|---|---|---|---|\n", out);
        for (int k = 0; k < c->rows_count; k++) markdown_row(out, &c->rows[k]);
        fputc('\n', out);
    }
}
