// SPDX-License-Identifier: MIT
/* el2trace.c: the files of tracefs, and the lines of a trace. */
#include "el2trace.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define REMOTE "/sys/kernel/tracing/remotes/hypervisor/"
#define BUFFER_KIB "4096" /* for each CPU */
#define QUIET_SECONDS 1   /* after which there is nothing more to be read */

static void put(const char *name, const char *value)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), REMOTE "%s", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, value, strlen(value)) != (ssize_t)strlen(value))
		err(1, "%s: cannot write %s", path, value);
	close(fd);
}

bool el2trace_possible(void)
{
	return !access(REMOTE "events/hypervisor/hyp_enter/enable", W_OK);
}

void el2trace_begin(void)
{
	put("tracing_on", "0");
	put("trace", "0");
	put("buffer_size_kb", BUFFER_KIB);
	put("events/hypervisor/hyp_exit/enable", "0");
	put("events/hypervisor/hyp_enter/enable", "1");
	put("tracing_on", "1");
}

/* `[000]   12.345678: hyp_enter reason=hvc vcpu=0`: the reasons are in arch/arm64/kvm/hyp_trace.c. */
static void count_line(struct el2trace *count, const char *line)
{
	char reason[16];
	const char *at = strstr(line, "hyp_enter reason=");

	if (!at || sscanf(at, "hyp_enter reason=%15s", reason) != 1)
		errx(1, "EL2's trace: not an entry: %s", line);
	if (!strcmp(reason, "guest_exit"))
		count->guest++;
	else if (!strcmp(reason, "hvc") || !strcmp(reason, "smc") || !strcmp(reason, "psci"))
		count->hypercalls++;
	else
		count->host++;
}

static void stop_waiting(int number)
{
	(void)number;
}

/*
 * A read that consumes the trace sees all of it, and says what was lost, which a line then is
 * that count_line() does not take; but it waits for more in the end, until a signal comes.
 */
void el2trace_end(struct el2trace *count)
{
	const struct sigaction action = { .sa_handler = stop_waiting };
	char line[256];
	FILE *trace;

	put("tracing_on", "0");
	trace = fopen(REMOTE "trace_pipe", "re");
	if (!trace || sigaction(SIGALRM, &action, NULL))
		err(1, REMOTE "trace_pipe");
	*count = (struct el2trace){ 0 };
	for (alarm(QUIET_SECONDS); fgets(line, sizeof(line), trace); alarm(QUIET_SECONDS))
		count_line(count, line);
	if (ferror(trace) && errno != EINTR)
		err(1, REMOTE "trace_pipe");
	alarm(0);
	fclose(trace);
	/* Unloads the buffer. */
	put("trace", "0");
}
