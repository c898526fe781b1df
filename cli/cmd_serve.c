/* SPDX-License-Identifier: MIT */
/*
 * cmd_serve.c: `infill serve`, the pager daemon: signals, options and the
 * service manager.  All else is infill_server_run().
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common.h"
#include "files.h"
#include "systemd.h"

enum {
	KEY_MAX_VMS = CLI_FIRST_KEY,
	KEY_MAX_CLIENTS,
	KEY_FD_STORE,
	KEY_SHARED,
};

static const struct cli_option serve_options[] = {
	{ "max-vms", KEY_MAX_VMS, "N", "at most N VMs at once (256)" },
	{ "max-clients", KEY_MAX_CLIENTS, "N",
	  "at most N clients that have sent no regions yet (32)" },
	{ "shared", KEY_SHARED, NULL, "offer clones of one image a memory that they share" },
	{ "fd-store", KEY_FD_STORE, NULL, "let systemd keep the files, not a supervisor" },
	{ 0 },
};

static int ready_pipe[2];

/*
 * infill_server_run() keeps this thread and no other may exist, so what it
 * writes when the socket listens raises a signal.
 */
static void tell_ready(int number)
{
	int keep = errno;
	char byte;

	(void)number;
	if (read(ready_pipe[0], &byte, 1) == 1)
		sd_notify(0, "READY=1");
	errno = keep;
}

static int prepare_ready(struct infill_server_options *server)
{
	struct sigaction action = { .sa_handler = tell_ready, .sa_flags = SA_RESTART };

	if (sd_notify(0, "STATUS=starting") <= 0)
		return CLI_OK; /* no service manager waits for it */
	if (pipe2(ready_pipe, O_CLOEXEC | O_NONBLOCK))
		return cli_fail("pipe: %s", strerror(errno));
	sigaction(SIGIO, &action, NULL);
	if (fcntl(ready_pipe[0], F_SETOWN, getpid()) ||
	    fcntl(ready_pipe[0], F_SETFL, O_ASYNC | O_NONBLOCK))
		return cli_fail("pipe: %s", strerror(errno));
	server->ready_fd = ready_pipe[1];
	return CLI_OK;
}

/* SIGTERM and SIGINT as something that can be read: one asks to end, two insist. */
static int prepare_stop(struct infill_server_options *server)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	server->stop_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return server->stop_fd < 0 ? cli_fail("signalfd: %s", strerror(errno)) : CLI_OK;
}

static int serve_option(const struct cli_command *command, struct common *common, int key)
{
	struct infill_server_options *server = &common->server;
	uint64_t number = 0;
	int status;

	switch (key) {
	case KEY_MAX_VMS:
		status = common_number(command, "max-vms", "VMs", 1, 65536, &number);
		server->max_vms = (uint32_t)number;
		return status;
	case KEY_MAX_CLIENTS:
		status = common_number(command, "max-clients", "clients", 1, 4096, &number);
		server->max_clients = (uint32_t)number;
		return status;
	case KEY_SHARED:
		server->flags |= INFILL_SERVER_SHARED;
		return CLI_OK;
	case KEY_FD_STORE:
		server->flags |= INFILL_SERVER_FD_STORE;
		return CLI_OK;
	default:
		return common_option(command, common, key);
	}
}

static int parse(const struct cli_command *command, struct common *common, int argc, char **argv)
{
	int key, status;

	while ((key = cli_next(command, argc, argv)) != CLI_END) {
		if (key == CLI_STOP || key == CLI_WRONG)
			return key;
		status = serve_option(command, common, key);
		if (status != CLI_OK)
			return CLI_WRONG;
	}
	return 0;
}

static int serve(const struct cli_command *command, int argc, char **argv)
{
	struct common common;
	int stopped, status;

	common_init(&common);
	stopped = parse(command, &common, argc, argv);
	if (stopped)
		return cli_stopped(stopped);
	if (optind < argc)
		return cli_usage(command, "%s: not expected: infill serve takes options only",
				 argv[optind]);
	if (!common.server.socket && !(common.server.flags & INFILL_SERVER_FD_STORE))
		return cli_usage(command, "--socket: missing: say where VMMs find the pager");
	status = common_check(command, &common);
	if (status == CLI_OK)
		status = files_check(&common);
	if (status == CLI_OK)
		status = prepare_stop(&common.server);
	if (status == CLI_OK)
		status = prepare_ready(&common.server);
	if (status != CLI_OK)
		return status;
	return infill_server_run(&common.server) ? cli_fail("%s", infill_error()) : CLI_OK;
}

const struct cli_command cmd_serve = {
	.name = "serve",
	.arguments = "--socket S --image F [OPTIONS]",
	.help = "serve the memory of VMs to VMMs that speak Firecracker's protocol",
	.run = serve,
	.options = { common_options, serve_options },
};
