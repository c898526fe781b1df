/* SPDX-License-Identifier: MIT */
/*
 * cli.c: options, usage and messages of all subcommands.  The form of the
 * messages is documented in infill(1): `infill: what: why`.
 */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

#define KEY_HELP 'h'
#define OPTIONS_MAX 64
#define COLUMN 28 /* where help texts begin */

static const struct cli_option help_option[] = {
	{ "help", KEY_HELP, NULL, "print this help" },
	{ 0 },
};

/* ---- messages ------------------------------------------------------------- */

/* One write, so that lines of several processes do not mix. */
static void __attribute__((format(printf, 2, 0))) say(const char *hint, const char *format,
						      va_list args)
{
	char line[1024];

	vsnprintf(line, sizeof(line), format, args);
	fprintf(stderr, "infill: %s\n%s", line, hint);
	fflush(stderr);
}

int cli_fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say("", format, args);
	va_end(args);
	return CLI_FAILED;
}

int cli_usage(const struct cli_command *command, const char *format, ...)
{
	char hint[96];
	va_list args;

	snprintf(hint, sizeof(hint), "Try `infill %s%s--help`.\n", command ? command->name : "",
		 command ? " " : "");
	va_start(args, format);
	say(hint, format, args);
	va_end(args);
	return CLI_USAGE;
}

int cli_print(const char *text)
{
	size_t length = strlen(text);

	fputs(text, stdout);
	if (!length || text[length - 1] != '\n')
		putchar('\n');
	if (fflush(stdout) || ferror(stdout))
		return cli_fail("standard output: %s", strerror(errno));
	return CLI_OK;
}

/* ---- usage ---------------------------------------------------------------- */

static void print_option(const struct cli_option *option)
{
	int width = printf("  %s%c%s--%s%s%s", isalpha(option->key) ? "-" : "",
			   isalpha(option->key) ? option->key : ' ',
			   isalpha(option->key) ? ", " : "   ", option->name,
			   option->argument ? " " : "", option->argument ? option->argument : "");

	if (width > COLUMN - 2) {
		putchar('\n');
		width = 0;
	}
	for (const char *line = option->help; line;) {
		int length = (int)strcspn(line, "\n");

		printf("%*s%.*s\n", COLUMN - width, "", length, line);
		line = line[length] ? line + length + 1 : NULL;
		width = 0;
	}
}

static void print_usage(const struct cli_command *command)
{
	printf("usage: infill %s%s%s\n\n%s\n\n", command->name, *command->arguments ? " " : "",
	       command->arguments, command->help);
	for (int t = 0; t < CLI_TABLES && command->options[t]; t++)
		for (const struct cli_option *o = command->options[t]; o->name; o++)
			print_option(o);
	print_option(help_option);
}

/* ---- options -------------------------------------------------------------- */

/* Turn the tables into getopt's; both ends fit, as a unit test of the help shows. */
static void collect(const struct cli_command *command, struct option *longs, char *shorts)
{
	const struct cli_option *tables[CLI_TABLES + 1] = { help_option };
	int count = 0;

	memcpy(tables + 1, command->options, sizeof(command->options));
	if (command->runs)
		*shorts++ = '+'; /* stop at the first word that is no option */
	*shorts++ = ':'; /* tell a missing argument from an unknown option */
	for (int t = 0; t <= CLI_TABLES && tables[t]; t++)
		for (const struct cli_option *o = tables[t]; o->name && count < OPTIONS_MAX; o++) {
			longs[count++] = (struct option){
				.name = o->name,
				.has_arg = o->argument ? required_argument : no_argument,
				.val = o->key,
			};
			if (o->key < 128)
				*shorts++ = (char)o->key;
		}
	longs[count] = (struct option){ 0 };
	*shorts = '\0';
}

static int unknown(const struct cli_command *command, const char *word)
{
	if (word[0] == '-' && word[1] != '-')
		cli_usage(command, "-%c: no such option of infill %s", optopt, command->name);
	else
		cli_usage(command, "%s: no such option of infill %s", word, command->name);
	return CLI_WRONG;
}

int cli_next(const struct cli_command *command, int argc, char **argv)
{
	struct option longs[OPTIONS_MAX + 1];
	char shorts[2 * OPTIONS_MAX];
	int key;

	collect(command, longs, shorts);
	opterr = 0;
	key = getopt_long(argc, argv, shorts, longs, NULL);
	if (key == KEY_HELP) {
		print_usage(command);
		return fflush(stdout) ? CLI_WRONG : CLI_STOP;
	}
	if (key == ':') {
		cli_usage(command, "%s: needs an argument", argv[optind - 1]);
		return CLI_WRONG;
	}
	if (key == '?' && optopt >= CLI_FIRST_KEY) {
		cli_usage(command, "%s: takes no argument", argv[optind - 1]);
		return CLI_WRONG;
	}
	if (key == '?')
		return unknown(command, argv[optind - 1]);
	return key;
}

int cli_stopped(int key)
{
	return key == CLI_STOP ? CLI_OK : CLI_USAGE;
}

bool cli_number(const char *text, uint64_t least, uint64_t most, uint64_t *number)
{
	char *end;

	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	*number = strtoull(text, &end, 10);
	return !errno && !*end && *number >= least && *number <= most;
}
