/* SPDX-License-Identifier: MIT */
/*
 * cmd_stat.c: `infill stat`: what a running pager has done, as a table, a
 * progress bar, JSON or latencies.  The JSON is the interface (infill-stat in
 * infill(1)); table and bar are for people and may change.
 */
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli.h"
#include "infill.h"

#define TIMEOUT_MS 5000
#define REFRESH_MS 500
#define BAR_MAX 60

enum {
	KEY_JSON = CLI_FIRST_KEY,
	KEY_WATCH,
	KEY_HDR,
	KEY_MARK,
	KEY_VM,
};

static const struct cli_option stat_options[] = {
	{ "json", KEY_JSON, NULL, "print everything as one JSON object" },
	{ "watch", KEY_WATCH, NULL, "show a progress bar for each VM until all have ended" },
	{ "hdr", KEY_HDR, NULL, "print fault-to-wake latencies as HdrHistogram's percentiles" },
	{ "mark", KEY_MARK, "MARK", "tell the pager that the VM was restored, or did its first_work,\n"
				    "just now, for the times in --json" },
	{ "vm", KEY_VM, "ID", "the VM that --mark is about, if there is more than one" },
	{ 0 },
};

/* ---- the pager's answer ------------------------------------------------------ */

static uint64_t number(const json_t *vm, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(vm, name));
}

static uint64_t nested(const json_t *vm, const char *object, const char *name)
{
	return number(json_object_get(vm, object), name);
}

static const char *string(const json_t *vm, const char *name)
{
	const char *text = json_string_value(json_object_get(vm, name));

	return text ? text : "";
}

/* The answer as an object to be freed, or NULL with infill_error() set or *BAD. */
static json_t *ask(const char *socket, const char **bad)
{
	json_t *answer;
	char *text;

	*bad = NULL;
	if (infill_server_stat(socket, false, TIMEOUT_MS, &text))
		return NULL;
	answer = json_loads(text, 0, NULL);
	free(text);
	if (json_is_array(json_object_get(answer, "vms")))
		return answer;
	json_decref(answer);
	*bad = "the answer is not a pager's";
	return NULL;
}

/* ---- units --------------------------------------------------------------------- */

struct shown {
	char text[24];
};

static struct shown show_bytes(uint64_t bytes)
{
	struct shown s;

	if (bytes < 10ull << 20)
		snprintf(s.text, sizeof(s.text), "%" PRIu64 " KiB", bytes >> 10);
	else if (bytes < 100ull << 30)
		snprintf(s.text, sizeof(s.text), "%" PRIu64 " MiB", bytes >> 20);
	else
		snprintf(s.text, sizeof(s.text), "%" PRIu64 " GiB", bytes >> 30);
	return s;
}

static struct shown show_time(uint64_t ns)
{
	struct shown s;

	if (!ns)
		snprintf(s.text, sizeof(s.text), "-");
	else if (ns < 10000000)
		snprintf(s.text, sizeof(s.text), "%.1f µs", (double)ns / 1e3);
	else if (ns < 10000000000)
		snprintf(s.text, sizeof(s.text), "%.0f ms", (double)ns / 1e6);
	else
		snprintf(s.text, sizeof(s.text), "%.1f s", (double)ns / 1e9);
	return s;
}

/* From the session's start; `-` if it has not come about. */
static struct shown show_since(const json_t *vm, const char *name)
{
	uint64_t start = nested(vm, "times", "start_ns"), then = nested(vm, "times", name);

	return show_time(then > start ? then - start : 0);
}

/* ---- table --------------------------------------------------------------------- */

/* Columns of a terminal that TEXT takes: µ has two bytes. */
static int width(const char *text)
{
	int columns = 0;

	for (; *text; text++)
		columns += (*text & 0xc0) != 0x80;
	return columns;
}

static void print_row(const char *label, const struct shown *cells, size_t count)
{
	printf("%-22s", label);
	for (size_t i = 0; i < count; i++)
		printf(" %*s%s", 14 - width(cells[i].text), "", cells[i].text);
	putchar('\n');
}

enum unit { COUNT, BYTES, TIME, SINCE, LATENCY, TEXT };

static const struct {
	const char *label, *name;
	enum unit unit;
} rows[] = {
	{ "VM", "id", COUNT },
	{ "process", "pid", COUNT },
	{ "state", "state", TEXT },
	{ "memory", "memory_bytes", BYTES },
	{ "installed", "bytes", BYTES },
	{ "faults", "faults", COUNT },
	{ "installs", "installs", COUNT },
	{ "zero pages", "zero_pages", COUNT },
	{ "duplicates", "duplicates", COUNT },
	{ "retries", "retries", COUNT },
	{ "poisoned", "poisoned", COUNT },
	{ "removed", "removed", COUNT },
	{ "stall in total", "stall_ns", TIME },
	{ "fault to wake, p50", "p50_ns", LATENCY },
	{ "fault to wake, p90", "p90_ns", LATENCY },
	{ "fault to wake, p99", "p99_ns", LATENCY },
	{ "fault to wake, max", "max_ns", LATENCY },
	{ "restored after", "restored_ns", SINCE },
	{ "trace filled after", "trace_done_ns", SINCE },
	{ "first work after", "first_work_ns", SINCE },
	{ "resident after", "resident_ns", SINCE },
};

static struct shown cell(const json_t *vm, enum unit unit, const char *name)
{
	struct shown s;

	switch (unit) {
	case BYTES:
		return show_bytes(number(vm, name));
	case TIME:
		return show_time(number(vm, name));
	case LATENCY:
		return show_time(nested(vm, "latency", name));
	case SINCE:
		return show_since(vm, name);
	case TEXT:
		snprintf(s.text, sizeof(s.text), "%s", string(vm, name));
		return s;
	case COUNT:
		break;
	}
	snprintf(s.text, sizeof(s.text), "%" PRIu64, number(vm, name));
	return s;
}

/* As many VMs side by side as a line of 80 columns holds. */
#define SIDE_BY_SIDE 4

static void print_group(const json_t *vms, size_t from)
{
	size_t count = json_array_size(vms) - from;
	struct shown cells[SIDE_BY_SIDE];

	count = count < SIDE_BY_SIDE ? count : SIDE_BY_SIDE;
	for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
		for (size_t i = 0; i < count; i++)
			cells[i] = cell(json_array_get(vms, from + i), rows[r].unit, rows[r].name);
		print_row(rows[r].label, cells, count);
	}
	for (size_t i = 0; i < count; i++) {
		const json_t *vm = json_array_get(vms, from + i);

		if (*string(vm, "error"))
			printf("VM %" PRIu64 ": %s\n", number(vm, "id"), string(vm, "error"));
	}
}

static int print_table(const char *socket)
{
	const char *bad;
	json_t *answer = ask(socket, &bad);
	const json_t *vms = json_object_get(answer, "vms");

	if (!answer)
		return bad ? cli_fail("%s: %s", socket, bad) : cli_fail("%s", infill_error());
	printf("%s served by %" PRIu64 ", worker %" PRIu64 ", restarts %" PRIu64 "\n",
	       *string(answer, "image") ? string(answer, "image") : "image",
	       number(answer, "supervisor_pid"), number(answer, "worker_pid"),
	       number(answer, "restarts"));
	for (size_t i = 0; i < json_array_size(vms); i += SIDE_BY_SIDE) {
		putchar('\n');
		print_group(vms, i);
	}
	if (!json_array_size(vms))
		printf("\nno VM yet\n");
	json_decref(answer);
	return fflush(stdout) ? cli_fail("standard output: cannot write") : CLI_OK;
}

/* ---- watch ---------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void interrupt(int signal_number)
{
	interrupted = signal_number;
}

static int bar_width(void)
{
	struct winsize size;
	int columns = 80;

	if (!ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col)
		columns = size.ws_col;
	columns -= 42;
	return columns < 10 ? 10 : columns > BAR_MAX ? BAR_MAX : columns;
}

/*
 * How much of the memory needs no fill any more, 0 to 1.  That is more than
 * what was installed: pages that the VMM gave up, and zeros of the rest.
 */
static double part_done(const json_t *vm)
{
	uint64_t pages = number(vm, "pages"), missing = number(vm, "missing");
	uint64_t memory = number(vm, "memory_bytes"), bytes = number(vm, "bytes");
	double part;

	if (json_object_get(vm, "missing"))
		return pages && missing < pages ? (double)(pages - missing) / (double)pages : 0;
	/* A pager of before.  What a balloon took and a guest wants again is counted twice. */
	part = memory ? (double)bytes / (double)memory : 0;
	return part > 1 ? 1 : part;
}

/* One line, which ends with clearing what an earlier one left there. */
static void print_bar(const json_t *vm)
{
	double part = part_done(vm);
	int columns = bar_width(), full = (int)(part * columns);

	printf("VM %-4" PRIu64 " [", number(vm, "id"));
	for (int i = 0; i < columns; i++)
		putchar(i < full ? '#' : '.');
	/* 100 % is said of nothing less. */
	printf("] %3d%% %10s %s\033[K\n", (int)(part * 100), show_bytes(number(vm, "bytes")).text,
	       string(vm, "state"));
}

/* Draw over the LINES lines of before; the number of lines drawn.  *LIVE: VMs that run. */
static int draw(const json_t *vms, int lines, size_t *live)
{
	if (lines)
		printf("\033[%dA", lines);
	*live = 0;
	for (size_t i = 0; i < json_array_size(vms); i++) {
		const json_t *vm = json_array_get(vms, i);

		print_bar(vm);
		*live += !strcmp(string(vm, "state"), "running");
	}
	if (!json_array_size(vms))
		printf("no VM yet\033[K\n");
	printf("\033[J");
	fflush(stdout);
	return json_array_size(vms) ? (int)json_array_size(vms) : 1;
}

/* Until all VMs have ended, the pager has gone, or ^C. */
static int watch_vms(const char *socket)
{
	bool seen = false;
	int lines = 0;

	while (!interrupted) {
		const char *bad;
		json_t *answer = ask(socket, &bad), *vms = json_object_get(answer, "vms");
		size_t live;

		if (!answer && bad)
			return cli_fail("%s: %s", socket, bad);
		if (!answer) /* a pager that ends after its last VM is no failure */
			return seen ? CLI_OK : cli_fail("%s", infill_error());
		lines = draw(vms, lines, &live);
		seen = seen || json_array_size(vms);
		json_decref(answer);
		if (seen && !live)
			return CLI_OK;
		poll(NULL, 0, REFRESH_MS);
	}
	return 128 + interrupted;
}

static int watch(const char *socket)
{
	struct sigaction action = { .sa_handler = interrupt };
	int status;

	if (!isatty(STDOUT_FILENO))
		return cli_fail("--watch: standard output is not a terminal: use --json");
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	printf("\033[?25l");
	status = watch_vms(socket);
	printf("\033[?25h");
	fflush(stdout);
	return status;
}

/* ---- the command ------------------------------------------------------------------ */

static int print_raw(const char *socket, bool hdr)
{
	char *text;
	int status;

	if (infill_server_stat(socket, hdr, TIMEOUT_MS, &text))
		return cli_fail("%s", infill_error());
	status = hdr && !*text ? CLI_OK : cli_print(text);
	free(text);
	return status;
}

struct request {
	int mode; /* KEY_*; 0: the table */
	enum infill_mark mark;
	uint64_t vm; /* 0: not named */
};

static int send_mark(const char *socket, const struct request *r)
{
	if (infill_server_mark(socket, r->vm, r->mark, TIMEOUT_MS))
		return cli_fail("%s", infill_error());
	return CLI_OK;
}

static int take_mark(const struct cli_command *command, struct request *r)
{
	if (!strcmp(optarg, "restored"))
		r->mark = INFILL_MARK_RESTORED;
	else if (!strcmp(optarg, "first_work"))
		r->mark = INFILL_MARK_FIRST_WORK;
	else
		return cli_usage(command, "--mark %s: must be restored or first_work", optarg);
	return CLI_OK;
}

static int take_option(const struct cli_command *command, int key, struct request *r)
{
	if (key == KEY_VM)
		return cli_number(optarg, 1, INT64_MAX, &r->vm) ?
			       CLI_OK :
			       cli_usage(command, "--vm %s: must be a number that stat shows", optarg);
	if (r->mode && r->mode != key)
		return cli_usage(command, "--json, --watch, --hdr, --mark: exclude each other");
	r->mode = key;
	return key == KEY_MARK ? take_mark(command, r) : CLI_OK;
}

static int stat_(const struct cli_command *command, int argc, char **argv)
{
	struct request r = { 0 };
	int key;

	while ((key = cli_next(command, argc, argv)) != CLI_END) {
		if (key == CLI_STOP || key == CLI_WRONG)
			return cli_stopped(key);
		if (take_option(command, key, &r))
			return CLI_USAGE;
	}
	if (r.vm && r.mode != KEY_MARK)
		return cli_usage(command, "--vm: is for --mark");
	if (optind + 1 != argc)
		return optind < argc ? cli_usage(command, "%s: not expected: name one socket",
						 argv[optind + 1])
				     : cli_usage(command, "S: missing: name the pager's socket");
	switch (r.mode) {
	case KEY_WATCH:
		return watch(argv[optind]);
	case KEY_MARK:
		return send_mark(argv[optind], &r);
	case 0:
		return print_table(argv[optind]);
	}
	return print_raw(argv[optind], r.mode == KEY_HDR);
}

const struct cli_command cmd_stat = {
	.name = "stat",
	.arguments = "S [OPTIONS]",
	.help = "print what the pager at socket S has done",
	.run = stat_,
	.options = { stat_options },
};
