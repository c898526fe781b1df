// SPDX-License-Identifier: MIT
/*
 * server.c: infill_server_run() with every option on the command line, for the
 * tests in Python.  Test support; may change freely.
 *
 *   server SOCKET IMAGE [NAME=VALUE...]
 *
 * max_vms, max_clients, handshake_ms, threads, on_error, flags, fill and rate
 * are numbers; timeline, trace and record are paths.  Stops on SIGTERM, at
 * once on a second.  Writes "ready" to stdout and its log to stderr.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "infill.h"

static void log_line(int level, const char *line, void *arg)
{
	(void)arg;
	fprintf(stderr, "%d %s\n", level, line);
}

static void set(struct infill_server_options *o, struct infill_session_options *s, char *text)
{
	char *value = strchr(text, '=');
	const struct {
		const char *name;
		uint32_t *number;
		const char **path;
	} field[] = {
		{ "max_vms", &o->max_vms, NULL }, { "max_clients", &o->max_clients, NULL },
		{ "handshake_ms", &o->handshake_ms, NULL }, { "threads", &o->threads, NULL },
		{ "on_error", &o->on_error, NULL }, { "flags", &o->flags, NULL },
		{ "fill", &s->fill, NULL }, { "timeline", NULL, &o->timeline },
		{ "trace", NULL, &s->trace }, { "record", NULL, &s->record },
	};

	if (!value)
		exit(2);
	*value++ = 0;
	if (!strcmp(text, "rate"))
		s->rate = strtoull(value, NULL, 0);
	for (size_t i = 0; i < sizeof(field) / sizeof(*field); i++) {
		if (strcmp(field[i].name, text))
			continue;
		if (field[i].number)
			*field[i].number = (uint32_t)strtoul(value, NULL, 0);
		else
			*field[i].path = value;
	}
}

int main(int argc, char **argv)
{
	struct infill_session_options session = { .size = sizeof(session) };
	struct infill_server_options options = { .size = sizeof(options), .session = &session,
						 .log = log_line, .ready_fd = STDOUT_FILENO };
	sigset_t signals;
	int rc;

	if (argc < 3)
		return 2;
	options.socket = argv[1];
	options.image = argv[2];
	for (int i = 3; i < argc; i++)
		set(&options, &session, argv[i]);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	options.stop_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	rc = infill_server_run(&options);
	if (rc)
		fprintf(stderr, "server: %s\n", infill_error());
	return rc ? 1 : 0;
}
