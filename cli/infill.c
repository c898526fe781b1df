/* SPDX-License-Identifier: MIT */
/*
 * infill.c: the command: one table of subcommands, each in its own cmd_*.c.
 */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "infill.h"

static const struct cli_command *const commands[] = {
	&cmd_serve, &cmd_attach, &cmd_stat, &cmd_doctor,
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static int print_help(void)
{
	printf("usage: infill COMMAND [ARGUMENTS]\n\n"
	       "Populates the memory of KVM guests on demand and ahead of time.\n\n");
	for (size_t i = 0; i < COMMANDS; i++)
		printf("  %-8s %s\n", commands[i]->name, commands[i]->help);
	return cli_print("\n`infill COMMAND --help` explains a command, `infill --version` "
			 "prints the version.");
}

static int print_version(void)
{
	char line[64];

	snprintf(line, sizeof(line), "infill %s", infill_version());
	return cli_print(line);
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : NULL;

	if (!name)
		return cli_usage(NULL, "command: missing");
	if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help"))
		return print_help();
	if (!strcmp(name, "--version"))
		return print_version();
	for (size_t i = 0; i < COMMANDS; i++)
		if (!strcmp(name, commands[i]->name))
			return commands[i]->run(commands[i], argc - 1, argv + 1);
	return cli_usage(NULL, "%s: no such %s", name, *name == '-' ? "option" : "command");
}
