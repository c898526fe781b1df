/* SPDX-License-Identifier: MIT */
/*
 * common.h: the options that `infill serve` and `infill attach` share, as
 * library options.
 */
#ifndef CLI_COMMON_H
#define CLI_COMMON_H

#include "cli.h"
#include "infill.h"

struct common {
	struct infill_server_options server;
	struct infill_session_options session;
	bool fill_given;
	bool verbose;
};

/* For a command's list of tables. */
extern const struct cli_option common_options[];

/* Everything at its default; joins the two structs. */
void common_init(struct common *common);

/* Take an option that cli_next() gave: CLI_OK, or CLI_USAGE when it was wrong, and was said. */
int common_option(const struct cli_command *command, struct common *common, int key);

/* After the last option: what is missing or excludes each other. */
int common_check(const struct cli_command *command, const struct common *common);

/* Parse a number of KEY's unit into *TO; CLI_OK, or CLI_USAGE after a message. */
int common_number(const struct cli_command *command, const char *option, const char *unit,
		  uint64_t least, uint64_t most, uint64_t *to);

/*
 * For infill_server_options.log: a line on stderr, with a <LEVEL> before it
 * when the journal reads it.  ARG points to a bool: print information too.
 */
void common_log(int level, const char *line, void *arg);

#endif
