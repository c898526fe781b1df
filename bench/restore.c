/* SPDX-License-Identifier: MIT */
/*
 * restore.c: the benchmark of restoring guest memory: command line, order of
 * the groups, output.  What is measured and how is in README.md.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"
#include "restored.h"

static const struct {
	const char *name;
	void (*run)(const struct bench *b);
} groups[] = {
	/* The pager is forked: before anything large is allocated here. */
	{ "pager", pager_run },
	{ "start", start_run },
	{ "bulk", bulk_run },
	{ "demand", demand_run },
	{ "underfill", underfill_run },
	{ "cold", cold_run },
};

#define GROUPS (sizeof(groups) / sizeof(*groups))

struct arguments {
	const char *json, *only;
	FILE *json_file;
	size_t mib;
	bool runs_given;
	struct bench bench;
};

static void usage(FILE *to)
{
	fprintf(to, "usage: restore [--runs N] [--quick] [--json FILE] [--pattern TRACE] [--size MIB]\n"
		    "               [--dir DIR] [--only GROUP[,GROUP...]]\n"
		    "\n"
		    "Measures how guest memory is restored: infill against the limit of the machine,\n"
		    "example userfaultfd handlers and a mapped file.  bench/README.md explains.\n"
		    "\n"
		    "  --runs N         repetitions, 1 to %d (5)\n"
		    "  --quick          3 repetitions, 128 MiB, 1 and 4 threads\n"
		    "  --json FILE      write all figures to FILE\n"
		    "  --pattern TRACE  touch what the infill trace TRACE names, too\n"
		    "  --size MIB       size of the image, even (512)\n"
		    "  --dir DIR        where images are made (build/bench)\n"
		    "  --only GROUPS    of pager start bulk demand underfill cold\n",
		FIGURE_RUNS);
}

static void misused(const char *what, const char *why)
{
	fprintf(stderr, "restore: %s: %s\n", what, why);
	usage(stderr);
	exit(2);
}

static unsigned long number(const char *option, const char *text, unsigned long most)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*end || !*text || *text == '-' || value < 1 || value > most)
		misused(option, "not a number that makes sense here");
	return value;
}

static bool is_chosen(const char *only, const char *name)
{
	size_t length = strlen(name);

	if (!only)
		return true;
	for (const char *p = only; p; p = strchr(p, ','), p = p ? p + 1 : p)
		if (!strncmp(p, name, length) && (p[length] == ',' || !p[length]))
			return true;
	return false;
}

/* Every part of the list must be a group. */
static void check_groups(const char *only)
{
	size_t named = 1, known = 0;

	for (const char *p = only; p && *p; p++)
		named += *p == ',';
	for (size_t i = 0; i < GROUPS; i++)
		known += is_chosen(only, groups[i].name);
	if (only && known != named)
		misused("--only", "names what is no group, or one twice");
}

static void parse(struct arguments *a, int argc, char **argv)
{
	static const struct option options[] = {
		{ "runs", required_argument, NULL, 'r' },    { "quick", no_argument, NULL, 'q' },
		{ "json", required_argument, NULL, 'j' },    { "pattern", required_argument, NULL, 'p' },
		{ "size", required_argument, NULL, 's' },    { "dir", required_argument, NULL, 'd' },
		{ "only", required_argument, NULL, 'o' },    { "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		switch (c) {
		case 'r':
			a->bench.runs = (unsigned)number("--runs", optarg, FIGURE_RUNS);
			break;
		case 'q':
			a->bench.quick = true;
			break;
		case 'j':
			a->json = optarg;
			break;
		case 'p':
			a->bench.recorded = optarg;
			break;
		case 's':
			a->mib = number("--size", optarg, 1u << 20);
			if (a->mib % 2)
				misused("--size", "not even");
			break;
		case 'd':
			a->bench.dir = optarg;
			break;
		case 'o':
			a->only = optarg;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			usage(stderr);
			exit(2);
		}
	}
	if (optind < argc)
		misused(argv[optind], "not an option");
	check_groups(a->only);
}

static void set_defaults(struct arguments *a)
{
	static const unsigned all[4] = { 1, 2, 4, 8 }, quick[4] = { 1, 4 };

	memcpy(a->bench.threads, a->bench.quick ? quick : all, sizeof(all));
	if (!a->bench.runs)
		a->bench.runs = a->bench.quick ? 3 : 5;
	if (!a->mib)
		a->mib = a->bench.quick ? 128 : 512;
	if (!a->bench.dir)
		a->bench.dir = "build/bench";
}

/* Before anything is measured: a run takes minutes. */
static void open_files(struct arguments *a)
{
	struct pattern p;

	if (a->json && !(a->json_file = fopen(a->json, "w")))
		fail(a->json, "cannot be written: %s", strerror(errno));
	if (!a->bench.recorded)
		return;
	pattern_recorded(&p, a->bench.recorded, a->mib << 20, CONTENT_PAGE);
	pattern_free(&p);
}

/* A virtual machine's memory may not be there yet: have the host provide it now. */
static void warm_memory(size_t bytes)
{
	machine_free(machine_alloc(bytes, "warm-up"), bytes);
}

static void run_groups(struct arguments *a)
{
	struct bench *b = &a->bench;
	bool buffers = false;

	content_make(&b->content, b->dir, a->mib << 20, false);
	for (size_t i = 0; i < GROUPS; i++) {
		if (!is_chosen(a->only, groups[i].name))
			continue;
		if (i >= 2 && !buffers) {
			content_make(&b->content, b->dir, a->mib << 20, true);
			warm_memory(3 * b->content.bytes);
			b->huge_missing = machine_hugepages(b->content.bytes / CONTENT_HUGE);
			buffers = true;
		}
		groups[i].run(b);
	}
	content_free(&b->content);
}

static void write_json(const struct arguments *a, json_t *machine)
{
	json_t *root = json_pack("{s:i,s:I,s:i,s:o,s:o,s:o,s:o}", "version", 1, "image_bytes",
				 (json_int_t)a->mib << 20, "runs", (int)a->bench.runs, "machine",
				 machine, "machine_after", machine_json(), "ratios", ratio_json(),
				 "figures", figure_json());

	if (json_dumpf(root, a->json_file, JSON_INDENT(2)) || fputc('\n', a->json_file) == EOF ||
	    fclose(a->json_file))
		fail(a->json, "cannot be written: %s", strerror(errno));
	json_decref(root);
}

int main(int argc, char **argv)
{
	struct arguments a = { 0 };
	json_t *machine;

	parse(&a, argc, argv);
	set_defaults(&a);
	open_files(&a);
	machine = machine_json();
	machine_print();
	printf("%-12s %zu MiB, %u runs\n", "image", a.mib, a.bench.runs);
	run_groups(&a);
	figure_print();
	if (a.json)
		write_json(&a, machine);
	else
		json_decref(machine);
	return 0;
}
