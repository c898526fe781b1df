/* SPDX-License-Identifier: MIT */
/*
 * main.c: the command line: run, snapshot, stat, restore.  An option is a line in its
 * command's table and a case in option().
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "control.h"
#include "memory.h"
#include "monitor.h"
#include "restore.h"

#define OK 0
#define FAILED 1
#define USAGE 2

static const char usage_text[] =
	"usage: infill-vmm run --kernel K [--initrd I] [--append S] [--memory 256M] [--cpus N]\n"
	"                      [--backing B | --protected] [--protectable]\n"
	"                      [--control SOCKET]\n"
	"       infill-vmm snapshot --control SOCKET --memory FILE --state FILE\n"
	"       infill-vmm stat --control SOCKET\n"
	"       infill-vmm restore --memory FILE --state FILE --engine eager|mmap|uffd|userfault\n"
	"                      [--trace FILE | --record FILE] [--prefault]\n"
	"                      [--fill all|trace|none]\n"
	"                      [--backing B | --protected] [--control SOCKET]\n"
	"       infill-vmm restore --pager SOCKET --state FILE --engine userfault [--prefault]\n"
	"                      [--backing B | --protected] [--control SOCKET]\n"
	"       B: memfd|hugetlb|guest-memfd|anonymous\n"
	"\n"
	"Runs a Linux guest on KVM, its console on standard input and output; saves it to\n"
	"two files and ends it; says what it has done; goes on with it from its files.\n";

enum { KEY_HELP = 'h', KEY_KERNEL = 256, KEY_INITRD, KEY_APPEND, KEY_MEMORY, KEY_CPUS, KEY_BACKING,
       KEY_CONTROL, KEY_STATE, KEY_ENGINE, KEY_TRACE, KEY_RECORD, KEY_PREFAULT, KEY_PAGER,
       KEY_FILL, KEY_PROTECTED, KEY_PROTECTABLE };

/* What the options of all commands say. */
struct arguments {
	const char *kernel, *initrd, *append, *memory, *cpus, *control, *state, *trace, *record,
		*pager;
	const struct engine_ops *engine;
	enum memory_backing backing;
	enum engine_fill fill;
	bool prefault, backing_given, is_protected, protectable;
};

static int wrong(const char *what, const char *why)
{
	fprintf(stderr, "infill-vmm: %s: %s\nTry `infill-vmm --help`.\n", what, why);
	return USAGE;
}

static int option(struct arguments *a, int key)
{
	switch (key) {
	case KEY_KERNEL: a->kernel = optarg; break;
	case KEY_INITRD: a->initrd = optarg; break;
	case KEY_APPEND: a->append = optarg; break;
	case KEY_MEMORY: a->memory = optarg; break;
	case KEY_CPUS: a->cpus = optarg; break;
	case KEY_CONTROL: a->control = optarg; break;
	case KEY_STATE: a->state = optarg; break;
	case KEY_TRACE: a->trace = optarg; break;
	case KEY_RECORD: a->record = optarg; break;
	case KEY_PAGER: a->pager = optarg; break;
	case KEY_PREFAULT: a->prefault = true; break;
	case KEY_PROTECTED: a->is_protected = true; break;
	case KEY_PROTECTABLE: a->protectable = true; break;
	case KEY_FILL:
		if (!engine_fill_of(optarg, &a->fill))
			return wrong(optarg, "not what to fill: all, trace, none");
		break;
	case KEY_BACKING:
		if (!memory_backing_of(optarg, &a->backing))
			return wrong(optarg, "no such backing: memfd, hugetlb, guest-memfd, anonymous");
		a->backing_given = true;
		break;
	case KEY_ENGINE:
		a->engine = engine_find(optarg);
		if (!a->engine)
			return wrong(optarg, "no such engine: eager, mmap, uffd, userfault");
		break;
	}
	return OK;
}

/* 0, or the exit status that the command ends with at once, + 1. */
static int parse(int argc, char **argv, const struct option *known, struct arguments *a)
{
	int key, status = OK;

	opterr = 0;
	while (status == OK && (key = getopt_long(argc, argv, ":h", known, NULL)) != -1) {
		if (key == KEY_HELP)
			return fputs(usage_text, stdout) < 0 || fflush(stdout) ? FAILED + 1 : OK + 1;
		if (key == ':')
			status = wrong(argv[optind - 1], "needs an argument");
		else if (key == '?')
			status = wrong(argv[optind - 1], "no such option of this command");
		else
			status = option(a, key);
	}
	if (status == OK && optind < argc)
		status = wrong(argv[optind], "not an option");
	return status == OK ? 0 : status + 1;
}

/* A size as in 256M; false if it is none. */
static bool size_of(const char *text, uint64_t *bytes)
{
	static const char units[] = "KMG";
	const char *unit;
	char *end;
	unsigned shift = 0;

	errno = 0;
	*bytes = strtoull(text, &end, 10);
	if (*end && (unit = strchr(units, *end)) && !end[1]) {
		shift = 10 * (unsigned)(unit - units + 1);
		end++;
	}
	if (errno || *end || *text < '1' || *text > '9' || *bytes > (uint64_t)INT64_MAX >> shift)
		return false;
	*bytes <<= shift;
	return true;
}

static bool count_of(const char *text, unsigned most, unsigned *count)
{
	char *end;
	unsigned long number = strtoul(text, &end, 10);

	*count = (unsigned)number;
	return *text >= '1' && *text <= '9' && !*end && number <= most;
}

/* KVM donates no page of hugetlbfs or guest_memfd; of a memfd it would, which nobody needs here. */
static int choose_backing(struct arguments *a)
{
	if (!a->is_protected)
		return OK;
	if (a->backing_given && a->backing != MEMORY_ANONYMOUS)
		return wrong("--protected", "takes --backing anonymous, which is its default");
	a->backing = MEMORY_ANONYMOUS;
	return OK;
}

/* ---- commands -------------------------------------------------------------------- */

static int run_vm(const struct vm_options *options, const struct boot *boot, const char *control)
{
	struct vm vm;
	int status = FAILED;

	if (!vm_create(&vm, options) && !arch_boot(&vm, boot))
		status = monitor_run(&vm, control);
	vm_stop(&vm);
	vm_destroy(&vm);
	return status;
}

static int run(int argc, char **argv)
{
	static const struct option known[] = {
		{ "kernel", required_argument, NULL, KEY_KERNEL },
		{ "initrd", required_argument, NULL, KEY_INITRD },
		{ "append", required_argument, NULL, KEY_APPEND },
		{ "memory", required_argument, NULL, KEY_MEMORY },
		{ "cpus", required_argument, NULL, KEY_CPUS },
		{ "backing", required_argument, NULL, KEY_BACKING },
		{ "protected", no_argument, NULL, KEY_PROTECTED },
		{ "protectable", no_argument, NULL, KEY_PROTECTABLE },
		{ "control", required_argument, NULL, KEY_CONTROL },
		{ "help", no_argument, NULL, KEY_HELP },
		{ 0 },
	};
	struct arguments a = { .append = "", .memory = "256M", .cpus = "1" };
	struct vm_options options;
	struct boot boot;
	int ended = parse(argc, argv, known, &a);

	if (ended)
		return ended - 1;
	ended = choose_backing(&a);
	if (ended)
		return ended;
	options = (struct vm_options){ .backing = a.backing, .is_protected = a.is_protected,
				       .protectable = a.protectable };
	if (!a.kernel)
		return wrong("--kernel", "missing");
	if (!size_of(a.memory, &options.memory_bytes))
		return wrong(a.memory, "not a size, as 256M is");
	if (!count_of(a.cpus, VCPUS_MAX, &options.vcpus))
		return wrong(a.cpus, "not a number of vCPUs: 1 to 16");
	boot = (struct boot){ .kernel = a.kernel, .initrd = a.initrd, .command_line = a.append };
	return run_vm(&options, &boot, a.control);
}

/* Of the commands that ask a running VM; `stat` knows those from the third on. */
static const struct option client_options[] = {
	{ "memory", required_argument, NULL, KEY_MEMORY },
	{ "state", required_argument, NULL, KEY_STATE },
	{ "control", required_argument, NULL, KEY_CONTROL },
	{ "help", no_argument, NULL, KEY_HELP },
	{ 0 },
};

static int snapshot(int argc, char **argv)
{
	struct arguments a = { 0 };
	int ended = parse(argc, argv, client_options, &a);

	if (ended)
		return ended - 1;
	if (!a.control || !a.memory || !a.state)
		return wrong("snapshot", "needs --control, --memory and --state");
	return control_snapshot(a.control, a.memory, a.state) ? FAILED : OK;
}

static int stat_command(int argc, char **argv)
{
	struct arguments a = { 0 };
	int ended = parse(argc, argv, client_options + 2, &a);

	if (ended)
		return ended - 1;
	if (!a.control)
		return wrong("--control", "missing");
	return control_stat(a.control) ? FAILED : OK;
}

/* What an engine cannot do is no failure of it. */
static int check_restore(const struct arguments *a)
{
	if ((!a->memory && !a->pager) || !a->state || !a->engine)
		return wrong("restore", "needs --memory or --pager, --state and --engine");
	if (a->pager && !a->engine->pager)
		return wrong("--pager", "not with this engine: use userfault");
	if (a->pager && (a->memory || a->trace || a->record || a->fill != FILL_ALL))
		return wrong(a->memory ? "--memory" : a->trace ? "--trace" :
			     a->record ? "--record" : "--fill", "is the pager's, with --pager");
	if (a->is_protected && !a->engine->protected_vm)
		return wrong("--protected", "not with this engine");
	if (!a->engine->backing[a->backing])
		return wrong("--backing", "not with this engine");
	if ((a->trace || a->record) && !a->engine->trace)
		return wrong(a->trace ? "--trace" : "--record", "not with this engine");
	if (a->trace && a->record)
		return wrong("--record", "excludes --trace: record first, replay later");
	if (a->fill != FILL_ALL && !a->engine->trace)
		return wrong("--fill", "not with this engine");
	if (a->fill == FILL_TRACE && !a->trace)
		return wrong("--fill", "trace needs --trace");
	if (a->fill == FILL_NONE && a->trace)
		return wrong("--fill", "none excludes --trace");
	if (a->prefault && !a->engine->prefault)
		return wrong("--prefault", "not with this engine");
	return OK;
}

static int restore_command(int argc, char **argv)
{
	static const struct option known[] = {
		{ "memory", required_argument, NULL, KEY_MEMORY },
		{ "state", required_argument, NULL, KEY_STATE },
		{ "engine", required_argument, NULL, KEY_ENGINE },
		{ "trace", required_argument, NULL, KEY_TRACE },
		{ "record", required_argument, NULL, KEY_RECORD },
		{ "prefault", no_argument, NULL, KEY_PREFAULT },
		{ "fill", required_argument, NULL, KEY_FILL },
		{ "pager", required_argument, NULL, KEY_PAGER },
		{ "backing", required_argument, NULL, KEY_BACKING },
		{ "protected", no_argument, NULL, KEY_PROTECTED },
		{ "control", required_argument, NULL, KEY_CONTROL },
		{ "help", no_argument, NULL, KEY_HELP },
		{ 0 },
	};
	struct arguments a = { 0 };
	struct restore_options options;
	int ended = parse(argc, argv, known, &a), status;

	if (ended)
		return ended - 1;
	status = choose_backing(&a);
	if (status == OK)
		status = check_restore(&a);
	if (status)
		return status;
	options = (struct restore_options){
		.engine = a.engine, .state = a.state, .control = a.control, .backing = a.backing,
		.is_protected = a.is_protected,
		.engine_options = { .memory = a.memory, .trace = a.trace, .record = a.record,
				    .pager = a.pager, .prefault = a.prefault, .fill = a.fill },
	};
	return restore(&options);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(int argc, char **argv);
	} commands[] = { { "run", run }, { "snapshot", snapshot }, { "stat", stat_command },
			 { "restore", restore_command } };
	const char *name = argc > 1 ? argv[1] : "";

	for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(name, commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	if (!strcmp(name, "--help") || !strcmp(name, "-h"))
		return fputs(usage_text, stdout) < 0 || fflush(stdout) ? FAILED : OK;
	return wrong(*name ? name : "no command", "run, snapshot, stat and restore are known");
}
