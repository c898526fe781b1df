/* SPDX-License-Identifier: MIT */
/*
 * common.c: the options that `infill serve` and `infill attach` share.  An
 * option here is a line in the table, a key, and a case in common_option().
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "common.h"

/* What the library takes at most. */
#define THREADS_MAX 64
#define RECORD_PAGES_MAX (64u << 20)

enum {
	KEY_IMAGE = CLI_FIRST_KEY + 100,
	KEY_SOCKET,
	KEY_RECORD,
	KEY_TRACE,
	KEY_FILL,
	KEY_RATE,
	KEY_TIMELINE,
	KEY_SETTLE,
	KEY_TIME,
	KEY_PAGES,
	KEY_THREADS,
	KEY_ON_ERROR,
	KEY_HANDSHAKE,
};

const struct cli_option common_options[] = {
	{ "image", KEY_IMAGE, "F", "the memory file; it is never written" },
	{ "socket", KEY_SOCKET, "S", "the pager's unix socket" },
	{ "record", KEY_RECORD, "T", "record to T which pages the guest touches first" },
	{ "trace", KEY_TRACE, "T", "fill the pages that T names first" },
	{ "fill", KEY_FILL, "none|trace|all",
	  "what to fill without a fault: nothing, the trace, or\n"
	  "all that is left after it too (default)" },
	{ "rate", KEY_RATE, "MIB", "at most MIB MiB per second for what is left; 0: no bound" },
	{ "timeline", KEY_TIMELINE, "L", "write a log of every install to L" },
	{ "record-settle", KEY_SETTLE, "MS",
	  "stop recording after MS ms with hardly a new page (1000)" },
	{ "record-time", KEY_TIME, "S", "... or S seconds after the first page (30)" },
	{ "record-pages", KEY_PAGES, "N", "... or after N pages (262144)" },
	{ "threads", KEY_THREADS, "N", "threads that move pages; default: one for two CPUs" },
	{ "on-error", KEY_ON_ERROR, "kill|tell",
	  "when a VM cannot be served any more: kill the VMM\n"
	  "(default), or tell it and let its vCPUs wait" },
	{ "handshake-timeout", KEY_HANDSHAKE, "MS",
	  "a client must have sent its regions by then (5000)" },
	{ "verbose", 'v', NULL, "say what happens" },
	{ 0 },
};

void common_init(struct common *common)
{
	memset(common, 0, sizeof(*common));
	common->session.size = sizeof(common->session);
	common->server.size = sizeof(common->server);
	common->server.session = &common->session;
	common->server.stop_fd = -1;
	common->server.ready_fd = -1;
	common->server.log = common_log;
	common->server.log_arg = &common->verbose;
}

/* The index of TEXT among WORDS, or -1. */
static int choose(const char *text, const char *const *words)
{
	for (int i = 0; words[i]; i++)
		if (!strcmp(text, words[i]))
			return i;
	return -1;
}

static int choice(const struct cli_command *command, const char *option, const char *const *words,
		  const char *listed, uint32_t *to)
{
	int index = choose(optarg, words);

	if (index < 0)
		return cli_usage(command, "--%s %s: not one of %s", option, optarg, listed);
	*to = (uint32_t)index;
	return CLI_OK;
}

int common_number(const struct cli_command *command, const char *option, const char *unit,
		  uint64_t least, uint64_t most, uint64_t *to)
{
	uint64_t number;

	if (!cli_number(optarg, 0, UINT64_MAX, &number))
		return cli_usage(command, "--%s %s: not a number of %s", option, optarg, unit);
	if (number < least || number > most)
		return cli_usage(command, "--%s %s: must be from %llu to %llu", option, optarg,
				 (unsigned long long)least, (unsigned long long)most);
	*to = number;
	return CLI_OK;
}

/* A number of UNIT of 32 bits, stored as SCALE of them. */
static int scaled(const struct cli_command *command, const char *option, const char *unit,
		  uint64_t least, uint64_t scale, uint64_t *to)
{
	int status = common_number(command, option, unit, least, UINT32_MAX, to);

	if (status == CLI_OK)
		*to *= scale;
	return status;
}

static int narrow(const struct cli_command *command, const char *option, const char *unit,
		  uint64_t most, uint32_t *to)
{
	uint64_t number = 0;
	int status = common_number(command, option, unit, 1, most, &number);

	if (status == CLI_OK)
		*to = (uint32_t)number;
	return status;
}

/* An empty path would mean "none" to the library. */
static int path(const struct cli_command *command, const char *option, const char **to)
{
	if (!*optarg)
		return cli_usage(command, "--%s: is empty: give a path", option);
	*to = optarg;
	return CLI_OK;
}

int common_option(const struct cli_command *command, struct common *c, int key)
{
	static const char *const fills[] = { "all", "trace", "none", NULL };
	static const char *const errors[] = { "kill", "tell", NULL };

	switch (key) {
	case KEY_IMAGE:
		return path(command, "image", &c->server.image);
	case KEY_SOCKET:
		return path(command, "socket", &c->server.socket);
	case KEY_RECORD:
		return path(command, "record", &c->session.record);
	case KEY_TRACE:
		return path(command, "trace", &c->session.trace);
	case KEY_TIMELINE:
		return path(command, "timeline", &c->server.timeline);
	case KEY_FILL:
		c->fill_given = true;
		return choice(command, "fill", fills, "none, trace, all", &c->session.fill);
	case KEY_ON_ERROR:
		return choice(command, "on-error", errors, "kill, tell", &c->server.on_error);
	case KEY_RATE:
		return scaled(command, "rate", "MiB per second", 0, 1u << 20, &c->session.rate);
	case KEY_SETTLE:
		return scaled(command, "record-settle", "milliseconds", 1, 1000000,
			      &c->session.record_settle_ns);
	case KEY_TIME:
		return scaled(command, "record-time", "seconds", 1, 1000000000,
			      &c->session.record_time_ns);
	case KEY_PAGES:
		return common_number(command, "record-pages", "pages", 1, RECORD_PAGES_MAX,
				     &c->session.record_pages);
	case KEY_THREADS:
		return narrow(command, "threads", "threads", THREADS_MAX, &c->server.threads);
	case KEY_HANDSHAKE:
		return narrow(command, "handshake-timeout", "milliseconds", 3600000,
			      &c->server.handshake_ms);
	case 'v':
		c->verbose = true;
	}
	return CLI_OK;
}

int common_check(const struct cli_command *command, const struct common *c)
{
	if (!c->server.image)
		return cli_usage(command, "--image: missing: name the memory file");
	if (c->session.record && c->session.trace)
		return cli_usage(command, "--record: excludes --trace: record first, replay later");
	if (c->fill_given && c->session.fill == INFILL_FILL_TRACE && !c->session.trace &&
	    !c->session.record)
		return cli_usage(command, "--fill trace: needs --trace, or --record to make one");
	if (!c->session.record && (c->session.record_settle_ns || c->session.record_time_ns ||
				   c->session.record_pages))
		return cli_usage(command, "--record-%s: needs --record",
				 c->session.record_settle_ns ? "settle" :
				 c->session.record_time_ns   ? "time" :
							       "pages");
	return CLI_OK;
}

/* Is stderr the stream that systemd connected to the journal? */
static bool to_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
	       !fstat(STDERR_FILENO, &st) && st.st_dev == device && st.st_ino == inode;
}

void common_log(int level, const char *line, void *arg)
{
	const bool *verbose = arg;

	if (level >= LOG_INFO && !*verbose)
		return;
	if (to_journal())
		dprintf(STDERR_FILENO, "<%d>%s\n", level, line);
	else
		dprintf(STDERR_FILENO, "infill: %s\n", line);
}
