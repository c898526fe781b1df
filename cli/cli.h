/* SPDX-License-Identifier: MIT */
/*
 * cli.h: what all subcommands share: the command's shape, its options as a
 * table, messages, strict numbers.  Add an option by a line in a table; the
 * parser and `--help` both read it.
 */
#ifndef CLI_H
#define CLI_H

#include <stdbool.h>
#include <stdint.h>

enum {
	CLI_OK = 0,
	CLI_FAILED = 1,
	CLI_USAGE = 2,
};

/* A line of a table of options; a table ends with a line without a name. */
struct cli_option {
	const char *name;     /* without the dashes */
	int key;              /* what cli_next() gives; a letter is also the short option */
	const char *argument; /* what it is called in the usage, NULL: none */
	const char *help;     /* lines after the first are indented */
};

#define CLI_TABLES 3

struct cli_command {
	const char *name;
	const char *arguments;   /* in the usage line, after the name */
	const char *help;        /* one line */
	int (*run)(const struct cli_command *command, int argc, char **argv);
	const struct cli_option *options[CLI_TABLES]; /* NULL: no more */
	bool runs;               /* words from the first one that is no option are a command */
};

extern const struct cli_command cmd_serve, cmd_attach, cmd_stat, cmd_doctor;

/* Keys of options are letters or these. */
enum {
	CLI_END = -1,    /* no more options; the rest begins at argv[optind] */
	CLI_STOP = -2,   /* --help was printed */
	CLI_WRONG = -3,  /* wrong usage, and it was said */
	CLI_FIRST_KEY = 256,
};

/*
 * The next option of COMMAND's tables: its key, with optarg set, or one of
 * CLI_END, CLI_STOP, CLI_WRONG.
 */
int cli_next(const struct cli_command *command, int argc, char **argv);

/* cli_next()'s CLI_STOP and CLI_WRONG as an exit status. */
int cli_stopped(int key);

/* Print `infill: what: why` to stderr; CLI_FAILED. */
int cli_fail(const char *format, ...) __attribute__((format(printf, 1, 2), cold));

/* The same for a wrong command line, with a line that says where help is; CLI_USAGE. */
int cli_usage(const struct cli_command *command, const char *format, ...)
	__attribute__((format(printf, 2, 3), cold));

/* Write all of TEXT and a newline if it has none to stdout; CLI_FAILED if that fails. */
int cli_print(const char *text);

/* A decimal number from LEAST to MOST and nothing else. */
bool cli_number(const char *text, uint64_t least, uint64_t most, uint64_t *number);

#endif
