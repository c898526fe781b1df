// SPDX-License-Identifier: MIT
/*
 * PID 1 of a lab machine: runs the cases of /lab/plan one after the other and reports on a
 * virtio-serial port, which the kernel's console cannot disturb.
 *
 * The plan has a line for each step, its words separated by tabs; initrd.py writes it:
 *	case NAME SECONDS	a case begins; what follows belongs to it
 *	set PATH VALUE		write a setting for this case; it must read back as written
 *	pool PATH COUNT		fill a pool of huge pages; the case is skipped where there is no such pool
 *	run PROGRAM [ARG...]	ends the case's description
 *	shell			no cases: a shell on the console
 * Lines reported; emulator.py reads them:
 *	start NAME
 *	 TEXT			a line that the case printed, behind one blank
 *	skip NAME REASON	it was not run
 *	fail NAME REASON	it could not be run
 *	end NAME HOW N USEC TAINT
 *				HOW is exit, signal, timeout or flood; TAINT are the kernel's new
 *				taint bits
 *	again			the machine powers off, as what is left deserves a fresh kernel
 *	done			no case is left, the machine powers off
 * Starts and ends are in the kernel's log too, so that what it says can be told apart by case.
 * Each case starts with no other process running and with the settings as they were at boot.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "lab"
#define MAX_WORDS 64
#define MAX_SETTINGS 32
#define MAX_OUTPUT (8 << 20)
/* Seconds for processes to vanish after they were killed; a kernel with KASAN takes some. */
#define KILL_SECONDS 30

struct setting {
	char *path;
	char *old;
};

struct test {
	char *name;
	unsigned int seconds;
	struct setting settings[MAX_SETTINGS];
	unsigned int nr_settings;
	/* Why it will not run; empty if it will. */
	char verdict[8];
	char reason[256];
};

/* What a case prints: the end of its pipe, the beginning of a line, bytes so far. */
struct output {
	int fd;
	size_t used, total;
	char buffer[BUFSIZ];
};

static FILE *port;
static int kmsg = -1;
/* What tainted the kernel before the first case; the host judges that. */
static unsigned long boot_taint;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Write a line to the kernel's log: level 6 is shown on the console and is no warning. */
__attribute__((format(printf, 1, 2)))
static void log_line(const char *format, ...)
{
	char text[256];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (length >= (int)sizeof(text))
		length = sizeof(text) - 1;
	if (kmsg >= 0 && write(kmsg, text, (size_t)length) < 0)
		return;
}

__attribute__((format(printf, 1, 2)))
static void report(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(port, format, args);
	va_end(args);
	fputc('\n', port);
	fflush(port);
}

/* Power off rather than return: a PID 1 that ends is a panic, and hides the reason. */
__attribute__((noreturn))
static void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	/* Without a way to power off, a reset ends QEMU too (-no-reboot). */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

/* End in order. */
__attribute__((noreturn))
static void end(const char *word)
{
	report("%s", word);
	log_line("<6>lab: power off\n");
	power_off();
}

__attribute__((noreturn))
static void die(const char *what)
{
	log_line("<3>lab: %s: %s\n", what, strerror(errno));
	power_off();
}

/* ---- files ------------------------------------------------------------------------------ */

/* Read the first line of a file without its end; NULL with errno set. */
static char *read_line(const char *path)
{
	static char line[256];
	FILE *file = fopen(path, "re");
	char *got;

	if (!file)
		return NULL;
	errno = ENODATA;
	got = fgets(line, sizeof(line), file);
	fclose(file);
	if (got)
		line[strcspn(line, "\n")] = '\0';
	return got;
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t wrote;

	if (fd < 0)
		return -1;
	wrote = write(fd, text, strlen(text));
	close(fd);
	return wrote < 0 ? -1 : 0;
}

/* Reduce "always [madvise] never" to what is chosen. */
static void choose(char *text)
{
	char *begin = strchr(text, '['), *end = strchr(text, ']');

	if (begin && end > begin) {
		*end = '\0';
		memmove(text, begin + 1, (size_t)(end - begin));
	}
}

/*
 * The kernel's taint bits, but for the one that says that somebody asked for something risky, as
 * whoever creates a protected VM does: that one is no sign of an error.
 */
static unsigned long taint(void)
{
	const unsigned long taint_user = 1ul << 6;
	char *line = read_line("/proc/sys/kernel/tainted");

	return (line ? strtoul(line, NULL, 10) : 0) & ~taint_user;
}

/*
 * True when the kernel reported something: most reports come once in a boot, and lockdep gives up
 * with its first, so what runs after one would pass where it should not.
 */
static bool is_worn(void)
{
	static const char enabled[] = "debug_locks:";
	FILE *file = fopen("/proc/lockdep_stats", "re");
	char line[128];
	bool off = false;

	while (file && fgets(line, sizeof(line), file)) {
		char *at = strstr(line, enabled);

		if (at)
			off = strtoul(at + strlen(enabled), NULL, 10) == 0;
	}
	if (file)
		fclose(file);
	return off || (taint() & ~boot_taint);
}

/* ---- start ------------------------------------------------------------------------------ */

static void mount_all(void)
{
	/* What a kernel lacks is left out: a case that needs it says so. */
	static const char *const points[][2] = {
		{ "/proc", "proc" }, { "/sys", "sysfs" }, { "/dev", "devtmpfs" }, { "/tmp", "tmpfs" },
		{ "/dev/shm", "tmpfs" }, { "/sys/kernel/debug", "debugfs" },
		{ "/sys/kernel/tracing", "tracefs" }, { "/sys/fs/cgroup", "cgroup2" },
	};

	for (unsigned int i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		mkdir(points[i][0], 0755);
		mount(points[i][1], points[i][0], points[i][1], 0, NULL);
	}
}

/* Find the port by its name: its number depends on the machine. */
static void open_port(void)
{
	char path[300], *name;
	struct dirent *entry;
	DIR *directory = opendir("/sys/class/virtio-ports");

	while (directory && !port && (entry = readdir(directory))) {
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
		name = entry->d_name[0] == '.' ? NULL : read_line(path);
		if (!name || strcmp(name, PORT_NAME))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		port = fopen(path, "we");
	}
	if (directory)
		closedir(directory);
	if (!port)
		die("the virtio-serial port for results");
}

/* Take the console anew, as devtmpfs has one by now; a shell needs it as its terminal. */
static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	for (int i = 0; fd >= 0 && i < 3; i++)
		dup2(fd, i);
	if (fd > 2)
		close(fd);
}

/* ---- one case --------------------------------------------------------------------------- */

__attribute__((format(printf, 3, 4)))
static void refuse(struct test *test, const char *verdict, const char *format, ...)
{
	va_list args;

	if (test->verdict[0])
		return;
	snprintf(test->verdict, sizeof(test->verdict), "%s", verdict);
	va_start(args, format);
	vsnprintf(test->reason, sizeof(test->reason), format, args);
	va_end(args);
}

/* Write a setting and remember what it was; -1 when that was not possible. */
static int change(struct test *test, const char *path, const char *value)
{
	struct setting *setting = &test->settings[test->nr_settings];
	char *old;

	if (test->nr_settings == MAX_SETTINGS) {
		errno = E2BIG;
		return -1;
	}
	old = read_line(path);
	if (!old)
		return -1;
	choose(old);
	setting->old = strdup(old);
	setting->path = strdup(path);
	if (!setting->old || !setting->path)
		die("memory");
	test->nr_settings++;
	return write_text(path, value);
}

static void set(struct test *test, const char *path, const char *value)
{
	char *got;

	if (test->verdict[0])
		return;
	if (change(test, path, value)) {
		refuse(test, "fail", "%s: %s", path, strerror(errno));
		return;
	}
	got = read_line(path);
	if (got)
		choose(got);
	if (!got || strcmp(got, value))
		refuse(test, "fail", "%s: is %s after %s was written", path, got ? got : "unreadable",
		       value);
}

static void fill_pool(struct test *test, const char *path, const char *count)
{
	char *got;

	if (test->verdict[0])
		return;
	if (access(path, F_OK)) {
		refuse(test, "skip", "this kernel has no such huge pages: %s", path);
		return;
	}
	if (change(test, path, count)) {
		refuse(test, "fail", "%s: %s", path, strerror(errno));
		return;
	}
	got = read_line(path);
	if (!got || strtoul(got, NULL, 10) < strtoul(count, NULL, 10))
		refuse(test, "fail", "%s: %s pages instead of %s: the machine has too little memory",
		       path, got ? got : "no", count);
}

static void restore_settings(struct test *test)
{
	while (test->nr_settings) {
		struct setting *setting = &test->settings[--test->nr_settings];

		if (write_text(setting->path, setting->old))
			log_line("<4>lab: %s: cannot be set back to %s\n", setting->path, setting->old);
		free(setting->path);
		free(setting->old);
	}
}

/*
 * Kill all that the case left and collect it: kill(-1) spares PID 1 only.  A process that does
 * not go away would disturb what follows, so the machine ends there.
 */
static void kill_rest(const char *name)
{
	double deadline = now() + KILL_SECONDS;
	pid_t pid;

	kill(-1, SIGKILL);
	for (;;) {
		pid = waitpid(-1, NULL, WNOHANG);
		if (pid < 0)
			return;
		if (pid == 0) {
			if (now() > deadline)
				break;
			usleep(2000);
		}
	}
	report("fail %s a process of it cannot be killed", name);
	log_line("<3>lab: a process of %s cannot be killed\n", name);
	power_off();
}

/* Report whole lines, each behind a blank; the rest stays in @buffer.  Returns its length. */
static size_t report_lines(char *buffer, size_t length, bool last)
{
	char *line = buffer, *end;

	while ((end = memchr(line, '\n', length - (size_t)(line - buffer)))) {
		fputc(' ', port);
		fwrite(line, 1, (size_t)(end + 1 - line), port);
		line = end + 1;
	}
	length -= (size_t)(line - buffer);
	memmove(buffer, line, length);
	if (length && (last || length == BUFSIZ)) {
		fputc(' ', port);
		fwrite(buffer, 1, length, port);
		fputc('\n', port);
		length = 0;
	}
	fflush(port);
	return length;
}

/* Read what is there, up to the most that a case may print; false at the end of the output. */
static bool pass_on(struct output *output)
{
	ssize_t got;

	while (output->total < MAX_OUTPUT) {
		got = read(output->fd, output->buffer + output->used,
			   sizeof(output->buffer) - output->used);
		if (got <= 0)
			return got < 0;
		output->total += (size_t)got;
		output->used = report_lines(output->buffer, output->used + (size_t)got, false);
	}
	return true;
}

/* Pass on what the case prints until it ends; else say why it has to be ended. */
static const char *follow(pid_t pid, struct output *output, unsigned int seconds, int *status)
{
	struct pollfd events[2] = {
		{ .fd = pidfd_open(pid, 0), .events = POLLIN },
		{ .fd = output->fd, .events = POLLIN },
	};
	double deadline = now() + seconds;
	const char *why = NULL;
	bool ended;

	do {
		poll(events, 2, 200);
		/* A grandchild may hold the pipe open: the end of the child counts. */
		ended = waitpid(pid, status, WNOHANG) == pid;
		if (!pass_on(output))
			events[1].fd = -1;
		if (!ended && now() > deadline)
			why = "timeout";
		else if (output->total >= MAX_OUTPUT)
			why = "flood";
	} while (!ended && !why);
	report_lines(output->buffer, output->used, true);
	close(events[0].fd);
	return why;
}

__attribute__((noreturn))
static void run_child(char **words, unsigned int seconds, int output)
{
	char limit[16];
	int input = open("/dev/null", O_RDONLY);

	snprintf(limit, sizeof(limit), "%u", seconds);
	setenv("LAB_SECONDS", limit, 1);
	setsid();
	dup2(input, 0);
	dup2(output, 1);
	dup2(output, 2);
	if (chdir("/tmp") == 0)
		execv(words[0], words);
	printf("lab: %s: %s\n", words[0], strerror(errno));
	fflush(stdout);
	_exit(127);
}

/* Start the program, which may take so many seconds; its output is read from output->fd. */
static pid_t start(char **words, unsigned int seconds, struct output *output)
{
	int pipes[2];
	pid_t pid;

	if (pipe2(pipes, O_CLOEXEC))
		die("pipe");
	/* Only this end: a program does not expect EAGAIN from its stdout. */
	fcntl(pipes[0], F_SETFL, O_NONBLOCK);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0)
		run_child(words, seconds, pipes[1]);
	close(pipes[1]);
	output->fd = pipes[0];
	output->used = output->total = 0;
	return pid;
}

/* Report the lines of a file of /proc as comments of the case, behind @what. */
static void tell_file(const char *directory, const char *name, const char *what)
{
	char path[320], line[512];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "r");
	if (!file)
		return;
	while (fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = '\0';
		report(" # %s%s", what, line);
	}
	fclose(file);
}

/*
 * What each thread of a case does that does not end: its state and times (stat), the system call it
 * is in, or "running", and where it is in the kernel.  Without it, nobody who reads that a case took
 * too long could tell a wait from a loop.  judge.py knows the beginning of it.
 */
static void tell_threads(void)
{
	char path[300];
	struct dirent *process, *thread;
	DIR *processes, *threads;

	processes = opendir("/proc");
	if (!processes)
		return;
	while ((process = readdir(processes))) {
		pid_t pid = (pid_t)strtol(process->d_name, NULL, 10);

		/* Kernel threads are not in a process group of their own; the case is in a session. */
		if (pid <= 1 || getsid(pid) <= 1)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
		threads = opendir(path);
		while (threads && (thread = readdir(threads))) {
			if (thread->d_name[0] == '.')
				continue;
			snprintf(path, sizeof(path), "/proc/%d/task/%.20s", (int)pid, thread->d_name);
			tell_file(path, "stat", "thread ");
			tell_file(path, "syscall", "  system call ");
			tell_file(path, "stack", "  ");
		}
		if (threads)
			closedir(threads);
	}
	closedir(processes);
}

static void run(struct test *test, char **words)
{
	unsigned long taint_before = taint();
	static struct output output;
	double started = now();
	int status = 0, number;
	const char *how;
	pid_t pid;

	pid = start(words, test->seconds, &output);
	how = follow(pid, &output, test->seconds, &status);
	close(output.fd);
	number = (int)test->seconds;
	if (how && !strcmp(how, "timeout"))
		tell_threads();
	if (!how && WIFSIGNALED(status)) {
		how = "signal";
		number = WTERMSIG(status);
	} else if (!how) {
		how = "exit";
		number = WEXITSTATUS(status);
	}
	kill_rest(test->name);
	report("end %s %s %d %.0f %lu", test->name, how, number, (now() - started) * 1e6,
	       taint() & ~taint_before);
}

/* ---- the plan --------------------------------------------------------------------------- */

__attribute__((noreturn))
static void shell(void)
{
	static char *const words[] = { "/bin/busybox", "sh", "-c",
		"busybox --install -s /bin; "
		"echo 'Tests are in /selftests and /programs; exit or Ctrl-A X ends the machine.'; "
		"cd /selftests; exec setsid cttyhack sh", NULL };
	static char *const environment[] = { "PATH=/bin", "HOME=/", "TERM=linux", NULL };
	pid_t pid;

	pid = fork();
	if (pid == 0) {
		execve(words[0], words, environment);
		_exit(127);
	}
	while (waitpid(-1, NULL, 0) != pid)
		tell_threads();
	power_off();
}

static void begin(struct test *test, const char *name, const char *seconds)
{
	memset(test, 0, sizeof(*test));
	test->name = strdup(name);
	if (!test->name)
		die("memory");
	test->seconds = (unsigned int)strtoul(seconds, NULL, 10);
	log_line("<6>lab: start %s\n", name);
	report("start %s", name);
}

static void finish(struct test *test, char **words)
{
	if (test->verdict[0])
		report("%s %s %s", test->verdict, test->name, test->reason);
	else
		run(test, words);
	restore_settings(test);
	log_line("<6>lab: end %s\n", test->name);
	free(test->name);
	if (is_worn())
		end("again");
}

/* Split a line at its tabs; the number of words. */
static int split(char *line, char **words)
{
	int count = 0;
	char *word;

	line[strcspn(line, "\n")] = '\0';
	while (count < MAX_WORDS - 1 && (word = strsep(&line, "\t")))
		words[count++] = word;
	words[count] = NULL;
	return count;
}

static void step(struct test *test, char **words, int count)
{
	if (count == 3 && !strcmp(words[0], "case"))
		begin(test, words[1], words[2]);
	else if (count == 3 && !strcmp(words[0], "set"))
		set(test, words[1], words[2]);
	else if (count == 3 && !strcmp(words[0], "pool"))
		fill_pool(test, words[1], words[2]);
	else if (count >= 2 && !strcmp(words[0], "run"))
		finish(test, words + 1);
	else if (count == 1 && !strcmp(words[0], "shell"))
		shell();
	else
		die("/lab/plan: a line that is not understood");
}

int main(void)
{
	char line[4096], *words[MAX_WORDS];
	struct test test = { 0 };
	FILE *plan;

	mount_all();
	kmsg = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	open_console();
	open_port();
	boot_taint = taint();
	plan = fopen("/lab/plan", "re");
	if (!plan)
		die("/lab/plan");
	errno = EINVAL;
	while (fgets(line, sizeof(line), plan))
		step(&test, words, split(line, words));
	end("done");
}
