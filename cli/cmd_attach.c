/* SPDX-License-Identifier: MIT */
/*
 * cmd_attach.c: `infill attach`: an unmodified VMM whose memory file is filled
 * lazily.
 *
 *   infill attach --- pager (a supervisor and its worker, a session of its own)
 *                 \-- VMM, with libinfill-attach.so preloaded (shim.c)
 *
 * The pager outlives this process: when the write end of `stop` is closed,
 * however that comes about, it ends as soon as every VM is gone.  Nothing
 * that ends here takes memory from a VM.  The shim reports over a FIFO,
 * because wrappers may close inherited files.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "common.h"
#include "files.h"
#include "vmm.h"

#define SHIM "libinfill-attach.so"
#define SOCKET_MAX 107      /* of sockaddr_un */
#define PAGER_END_MS 30000  /* to write a trace on a slow disk */

struct attach {
	struct common common;
	char **vmm;             /* its arguments */
	char image[PATH_MAX];   /* absolute: the VMM may change its directory */
	char shim[PATH_MAX];
	char dir[64 + 16], socket[PATH_MAX], report[128];
	pid_t pager_pid, vmm_pid; /* 0: not there, or reaped */
	int vmm_status;
	bool pager_ended;       /* one of its processes */
	int pager_status;       /* of the last one that has */
	int ready[2], stop[2];
	int alive[2];           /* all of the pager's processes have its other end */
	int report_fd, signal_fd;
	sigset_t old_mask;
	char line[4096];        /* of the report, not whole yet */
	size_t line_length;
	bool mapped, refused;
	pid_t mapped_pid;       /* the process that mapped last */
	int mapped_fd;          /* pidfd of the first one; -1: none */
	pid_t refused_pid;      /* by the pager */
};

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static int pidfd_open_(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

/* ---- files ------------------------------------------------------------------ */

static void remove_files(const struct attach *a)
{
	char path[160];

	if (!*a->dir)
		return;
	unlink(a->report);
	snprintf(path, sizeof(path), "%s/%s", a->dir, SHIM);
	unlink(path);
	snprintf(path, sizeof(path), "%s/socket", a->dir);
	unlink(path);
	rmdir(a->dir);
}

/* A folder of our own; its path must fit in a socket's address and in LD_PRELOAD. */
static int make_dir(struct attach *a)
{
	const char *candidates[] = { getenv("XDG_RUNTIME_DIR"), getenv("TMPDIR"), "/tmp" };

	for (size_t i = 0; i < sizeof(candidates) / sizeof(candidates[0]); i++) {
		const char *parent = candidates[i];

		if (!parent || *parent != '/' || strlen(parent) > 60 || strpbrk(parent, " :"))
			continue;
		snprintf(a->dir, sizeof(a->dir), "%s/infill-XXXXXX", parent);
		if (mkdtemp(a->dir))
			return CLI_OK;
	}
	*a->dir = '\0';
	return cli_fail("/tmp: cannot make a folder in it: %s: set TMPDIR", strerror(errno));
}

static int make_report(struct attach *a)
{
	snprintf(a->report, sizeof(a->report), "%s/report", a->dir);
	if (mkfifo(a->report, 0600))
		return cli_fail("%s: %s", a->report, strerror(errno));
	/* Also for writing, so that it never comes to its end. */
	a->report_fd = open(a->report, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	return a->report_fd < 0 ? cli_fail("%s: %s", a->report, strerror(errno)) : CLI_OK;
}

/* The pager's socket as an absolute path, for the VMM. */
static int name_socket(struct attach *a)
{
	const char *given = a->common.server.socket;
	char cwd[PATH_MAX] = "";
	int length;

	if (!given)
		length = snprintf(a->socket, sizeof(a->socket), "%s/socket", a->dir);
	else if (*given == '/' || !getcwd(cwd, sizeof(cwd)))
		length = snprintf(a->socket, sizeof(a->socket), "%s", given);
	else
		length = snprintf(a->socket, sizeof(a->socket), "%s/%s", cwd, given);
	if (length > SOCKET_MAX)
		return cli_fail(
			"--socket %s: a socket's absolute path has at most %d bytes: take a "
			"shorter one",
			given, SOCKET_MAX);
	a->common.server.socket = a->socket;
	return CLI_OK;
}

/* LD_PRELOAD is cut at spaces and colons: reach such a path by a link. */
static int link_shim(struct attach *a)
{
	char path[160];

	if (!strpbrk(a->shim, " :"))
		return CLI_OK;
	snprintf(path, sizeof(path), "%s/%s", a->dir, SHIM);
	if (symlink(a->shim, path))
		return cli_fail("%s: %s", path, strerror(errno));
	snprintf(a->shim, sizeof(a->shim), "%s", path);
	return CLI_OK;
}

/* Beside this program, as it was built, or where it was installed. */
static int find_shim(struct attach *a)
{
	char self[PATH_MAX - sizeof(SHIM)];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	if (n > 0) {
		self[n] = '\0';
		slash = strrchr(self, '/');
		snprintf(a->shim, sizeof(a->shim), "%.*s/%s", (int)(slash - self), self, SHIM);
		if (!access(a->shim, R_OK))
			return CLI_OK;
		snprintf(a->shim, sizeof(a->shim), "%.*s/../lib/infill/%s", (int)(slash - self),
			 self, SHIM);
		if (!access(a->shim, R_OK))
			return CLI_OK;
	}
	snprintf(a->shim, sizeof(a->shim), "%s", INFILL_LIBEXECDIR "/" SHIM);
	if (!access(a->shim, R_OK))
		return CLI_OK;
	return cli_fail("%s: %s: it is installed with infill, or lies beside it", a->shim,
			strerror(errno));
}

static int find_image(struct attach *a)
{
	const char *given = a->common.server.image;

	if (!realpath(given, a->image))
		return cli_fail("%s: cannot open the image: %s", given, strerror(errno));
	return CLI_OK;
}

static int make_files(struct attach *a)
{
	int status = make_dir(a);

	if (status == CLI_OK)
		status = make_report(a);
	if (status == CLI_OK)
		status = name_socket(a);
	return status == CLI_OK ? link_shim(a) : status;
}

/* ---- signals ---------------------------------------------------------------- */

static int take_signals(struct attach *a)
{
	static const int numbers[] = { SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGQUIT };
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		sigaddset(&set, numbers[i]);
	/* An ignored SIGCHLD, which can be inherited, would lose the VMM's status. */
	signal(SIGCHLD, SIG_DFL);
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* see is_worker() */
	sigprocmask(SIG_BLOCK, &set, &a->old_mask);
	a->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return a->signal_fd < 0 ? cli_fail("signalfd: %s", strerror(errno)) : CLI_OK;
}

/*
 * A worker that outlived its supervisor: this process becomes its parent.  The
 * name of a process can be read until it is waited for.
 */
static bool is_worker(pid_t pid)
{
	char path[32], name[32] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	(void)!read(fd, name, sizeof(name) - 1);
	close(fd);
	return !strcmp(name, "infill-worker\n");
}

/* Wait for all that have ended, the VMM's orphans too. */
static void reap(struct attach *a)
{
	siginfo_t info = { 0 };

	while (!waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid) {
		bool pager = info.si_pid == a->pager_pid || is_worker(info.si_pid);
		int status = 0;

		waitpid(info.si_pid, &status, 0);
		if (info.si_pid == a->vmm_pid) {
			a->vmm_status = status;
			a->vmm_pid = 0;
		}
		if (info.si_pid == a->pager_pid)
			a->pager_pid = 0;
		a->pager_ended = a->pager_ended || pager;
		if (pager)
			a->pager_status = status;
		info.si_pid = 0;
	}
}

/* Read all signals; returns the last one that asks this process to end, or 0. */
static int read_signals(struct attach *a)
{
	struct signalfd_siginfo info;
	int asked = 0;

	while (read(a->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		int number = (int)info.ssi_signo;

		if (number == SIGCHLD)
			continue;
		asked = number;
		/* What was typed on the terminal has reached the VMM already. */
		if (a->vmm_pid && !((number == SIGINT || number == SIGQUIT) &&
				    info.ssi_code == SI_KERNEL))
			kill(a->vmm_pid, number);
	}
	reap(a);
	return asked;
}

/* ---- pager ------------------------------------------------------------------- */

/* In the child: no terminal, no signals from it, and nothing of the VMM's. */
static void leave_terminal(struct attach *a)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	setsid();
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	close_fd(&null);
	close_fd(&a->report_fd);
	close_fd(&a->signal_fd);
	close_fd(&a->ready[0]);
	close_fd(&a->stop[1]);
	close_fd(&a->alive[0]);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	sigprocmask(SIG_SETMASK, &a->old_mask, NULL);
}

/*
 * A VMM that the pager refuses is left alone by it, as it may be anybody.
 * This one would wait for its memory for ever, so it is told on the report.
 */
static void pager_log(int level, const char *line, void *arg)
{
	struct attach *a = arg;
	char text[32];
	int pid, fd, length;

	/* That it starts and ends is news to a service only. */
	if (level < LOG_NOTICE || a->common.verbose)
		common_log(level, line, &a->common.verbose);
	if (!strstr(line, "): refused: ") || sscanf(line, "VM %*u (pid %d)", &pid) != 1)
		return;
	length = snprintf(text, sizeof(text), "refused %d\n", pid);
	fd = open(a->report, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return;
	(void)!write(fd, text, (size_t)length);
	close(fd);
}

static void run_pager(struct attach *a)
{
	int error;

	leave_terminal(a);
	a->common.server.ready_fd = a->ready[1];
	a->common.server.stop_fd = a->stop[0];
	a->common.server.log = pager_log;
	a->common.server.log_arg = a;
	error = infill_server_run(&a->common.server);
	if (error)
		cli_fail("%s", infill_error());
	remove_files(a);
	_exit(error ? CLI_FAILED : CLI_OK);
}

/* Wait until the pager listens; it has said why if it does not. */
static int wait_ready(struct attach *a)
{
	struct pollfd fds[] = {
		{ .fd = a->ready[0], .events = POLLIN },
		{ .fd = a->signal_fd, .events = POLLIN },
	};
	char byte;

	for (;;) {
		int asked;

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return cli_fail("poll: %s", strerror(errno));
		if (fds[0].revents)
			return read(a->ready[0], &byte, 1) == 1 ? CLI_OK : CLI_FAILED;
		asked = fds[1].revents ? read_signals(a) : 0;
		if (asked)
			return 128 + asked;
	}
}

static int start_pager(struct attach *a)
{
	int status;

	if (pipe2(a->ready, O_CLOEXEC) || pipe2(a->stop, O_CLOEXEC) || pipe2(a->alive, O_CLOEXEC))
		return cli_fail("pipe: %s", strerror(errno));
	a->pager_pid = fork();
	if (a->pager_pid < 0) {
		a->pager_pid = 0;
		return cli_fail("fork: %s", strerror(errno));
	}
	if (!a->pager_pid)
		run_pager(a);
	close_fd(&a->ready[1]);
	close_fd(&a->stop[0]);
	close_fd(&a->alive[1]);
	status = wait_ready(a);
	close_fd(&a->ready[0]);
	return status;
}

/* Let the pager end with its VMs, and wait for that: it may have a trace to write. */
static void end_pager(struct attach *a)
{
	struct pollfd end = { .fd = a->alive[0] };

	close_fd(&a->stop[1]);
	if (a->alive[0] >= 0 && !poll(&end, 1, PAGER_END_MS))
		cli_fail("attach: pager %d has not ended: left to itself", (int)a->pager_pid);
	reap(a);
}

/* ---- VMM --------------------------------------------------------------------- */

static void set_environment(const struct attach *a)
{
	const char *before = getenv("LD_PRELOAD");
	char preload[2 * PATH_MAX];

	snprintf(preload, sizeof(preload), "%s%s%s", a->shim, before && *before ? ":" : "",
		 before && *before ? before : "");
	setenv("LD_PRELOAD", preload, 1);
	setenv("INFILL_ATTACH_IMAGE", a->image, 1);
	setenv("INFILL_ATTACH_SOCKET", a->socket, 1);
	setenv("INFILL_ATTACH_REPORT", a->report, 1);
	if (a->common.session.record)
		setenv("INFILL_ATTACH_ONE", "1", 1);
	else
		unsetenv("INFILL_ATTACH_ONE");
}

static void exec_vmm(const struct attach *a, int error_fd)
{
	int error;

	sigprocmask(SIG_SETMASK, &a->old_mask, NULL);
	set_environment(a);
	execvp(a->vmm[0], a->vmm);
	error = errno;
	(void)!write(error_fd, &error, sizeof(error));
	_exit(127);
}

static int start_vmm(struct attach *a)
{
	int failed[2], error = 0;

	if (pipe2(failed, O_CLOEXEC))
		return cli_fail("pipe: %s", strerror(errno));
	a->vmm_pid = fork();
	if (!a->vmm_pid)
		exec_vmm(a, failed[1]);
	if (a->vmm_pid < 0) {
		error = errno;
		a->vmm_pid = 0;
	}
	close(failed[1]);
	if (!error && read(failed[0], &error, sizeof(error)) != sizeof(error))
		error = 0;
	close(failed[0]);
	return error ? cli_fail("%s: cannot run it: %s", a->vmm[0], strerror(error)) : CLI_OK;
}

/* ---- the shim's report --------------------------------------------------------- */

/* The two lines come from different processes, in any order. */
static void end_refused(struct attach *a)
{
	if (!a->mapped || a->refused_pid != a->mapped_pid || a->refused)
		return;
	a->refused = true;
	syscall(SYS_pidfd_send_signal, a->mapped_fd, SIGKILL, NULL, 0);
	cli_fail("attach: the pager refused the VM, which was killed, as its memory would stay "
		 "empty");
}

static void take_line(struct attach *a, const char *line)
{
	unsigned long long bytes;
	int pid;

	if (!strncmp(line, "error ", 6)) {
		a->refused = true;
		cli_fail("attach: %s", line + 6);
	} else if (sscanf(line, "mapped %d %llu", &pid, &bytes) == 2) {
		a->mapped = true;
		a->mapped_pid = pid;
		if (a->mapped_fd < 0)
			a->mapped_fd = pidfd_open_(pid);
		if (a->common.verbose)
			cli_fail("attach: process %d has mapped %llu bytes of %s", pid, bytes,
				 a->image);
	} else if (sscanf(line, "refused %d", &pid) == 1) {
		a->refused_pid = pid;
	}
	end_refused(a);
}

static void read_report(struct attach *a)
{
	char *end;
	ssize_t n;

	while ((n = read(a->report_fd, a->line + a->line_length,
			 sizeof(a->line) - 1 - a->line_length)) > 0) {
		a->line_length += (size_t)n;
		a->line[a->line_length] = '\0';
		while ((end = strchr(a->line, '\n'))) {
			*end++ = '\0';
			take_line(a, a->line);
			a->line_length -= (size_t)(end - a->line);
			memmove(a->line, end, a->line_length + 1);
		}
		if (a->line_length == sizeof(a->line) - 1)
			a->line_length = 0; /* no line of the shim's */
	}
}

/* ---- run ----------------------------------------------------------------------- */

/* Is the process that mapped the image still there? */
static bool vm_lives(const struct attach *a)
{
	struct pollfd fd = { .fd = a->mapped_fd, .events = POLLIN };

	return a->mapped_fd >= 0 && !poll(&fd, 1, 0);
}

/*
 * One of the pager's processes has ended; if none is left and the last one did
 * not say that all is done, nobody fills the VM's memory any more.  That the
 * VM hangs is the least useful end.
 */
static void pager_ended(struct attach *a)
{
	struct pollfd alive = { .fd = a->alive[0] };

	a->pager_ended = false;
	if (!a->vmm_pid || !poll(&alive, 1, 0) || !a->pager_status)
		return;
	if (!a->mapped || !vm_lives(a)) {
		cli_fail("attach: the pager has died");
	} else if (a->common.server.on_error == INFILL_ON_ERROR_TELL) {
		cli_fail("attach: the pager has died: where memory is missing the VM waits for "
			 "ever");
	} else {
		syscall(SYS_pidfd_send_signal, a->mapped_fd, SIGKILL, NULL, 0);
		cli_fail("attach: the pager has died, and the VMM was killed, as its memory cannot "
			 "be "
			 "completed");
	}
}

/* Until the VMM has ended. */
static void wait_vmm(struct attach *a)
{
	struct pollfd fds[] = {
		{ .fd = a->signal_fd, .events = POLLIN },
		{ .fd = a->report_fd, .events = POLLIN },
	};

	while (a->vmm_pid) {
		poll(fds, 2, -1);
		if (fds[1].revents)
			read_report(a);
		read_signals(a);
		if (a->pager_ended)
			pager_ended(a);
	}
	read_report(a);
}

static int exit_status(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int conclude(struct attach *a)
{
	if (a->mapped && vm_lives(a)) {
		/* It went to the background; its pager stays until it ends, and cleans up. */
		if (a->common.verbose)
			cli_fail("attach: the VM runs on, served by process %d", (int)a->pager_pid);
		return exit_status(a->vmm_status);
	}
	end_pager(a);
	remove_files(a);
	if (a->mapped)
		return exit_status(a->vmm_status);
	if (a->refused)
		return CLI_FAILED;
	return cli_fail(
		"attach: the VMM ended (status %d) and never mapped %s: give it this file as "
		"the guest's memory",
		exit_status(a->vmm_status), a->common.server.image);
}

static int run(struct attach *a)
{
	int status = find_image(a);

	if (status == CLI_OK)
		status = vmm_check(a->vmm[0]);
	if (status == CLI_OK)
		status = find_shim(a);
	if (status == CLI_OK)
		status = files_check(&a->common);
	if (status == CLI_OK)
		status = take_signals(a);
	if (status == CLI_OK)
		status = make_files(a);
	if (status == CLI_OK)
		status = start_pager(a);
	if (status == CLI_OK)
		status = start_vmm(a);
	if (status == CLI_OK) {
		wait_vmm(a);
		return conclude(a);
	}
	end_pager(a);
	remove_files(a);
	return status;
}

static int parse(const struct cli_command *command, struct attach *a, int argc, char **argv)
{
	int key;

	while ((key = cli_next(command, argc, argv)) != CLI_END) {
		if (key == CLI_STOP || key == CLI_WRONG)
			return key;
		if (common_option(command, &a->common, key) != CLI_OK)
			return CLI_WRONG;
	}
	if (common_check(command, &a->common) != CLI_OK)
		return CLI_WRONG;
	if (optind >= argc) {
		cli_usage(command, "VMM: missing: end the command line with `-- VMM ARGUMENTS`");
		return CLI_WRONG;
	}
	a->vmm = argv + optind;
	return 0;
}

static int attach(const struct cli_command *command, int argc, char **argv)
{
	static struct attach a = {
		.ready = { -1, -1 }, .stop = { -1, -1 }, .alive = { -1, -1 },
		.report_fd = -1, .signal_fd = -1, .mapped_fd = -1,
	};
	int stopped;

	common_init(&a.common);
	stopped = parse(command, &a, argc, argv);
	return stopped ? cli_stopped(stopped) : run(&a);
}

const struct cli_command cmd_attach = {
	.name = "attach",
	.arguments = "--image F [OPTIONS] -- VMM ARGUMENTS...",
	.help = "run an unmodified VMM whose memory file F is filled lazily",
	.run = attach,
	.runs = true,
	.options = { common_options },
};
