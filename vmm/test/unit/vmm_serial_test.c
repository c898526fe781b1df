/* SPDX-License-Identifier: MIT */
/*
 * vmm_serial_test.c: the console when nobody reads what the guest sends: the guest waits,
 * pauses and ends do not, and no byte is lost.  What hangs is ended by the runner.
 * check-timeout: 60
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <linux/serial_reg.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include "error.h"
#include "scratch.h"
#include "serial.h"
#include "vm.h"

/* Without KVM: interrupts go nowhere. */
static struct vm vm = { .fd = -1 };

/* A console, and the other end of its output, which is full. */
struct console {
	struct serial *serial;
	int reader, writer;
	size_t full; /* bytes that fill it */
	pthread_t guest;
};

/* Fill what WRITER leads to. */
static size_t fill(int writer)
{
	size_t bytes = 0;
	ssize_t n;

	assert_int_equal(fcntl(writer, F_SETFL, O_NONBLOCK), 0);
	while ((n = write(writer, "................", 16)) > 0)
		bytes += (size_t)n;
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(fcntl(writer, F_SETFL, 0), 0);
	return bytes;
}

static struct console make(bool socket)
{
	struct console c = { 0 };
	int fds[2];

	assert_int_equal(socket ? socketpair(AF_UNIX, SOCK_STREAM, 0, fds) : pipe(fds), 0);
	c.reader = fds[0];
	c.writer = fds[1];
	c.full = fill(c.writer);
	assert_int_equal(serial_new(&c.serial, &vm, c.writer), 0);
	return c;
}

static void drop(struct console *c)
{
	serial_free(c->serial);
	close(c->reader);
	close(c->writer);
}

static _Atomic pid_t guest_thread;

/* What a vCPU's thread does: 100 numbers. */
static void *send_all(void *arg)
{
	struct serial *serial = arg;

	guest_thread = gettid();
	for (uint8_t i = 0; i < 100; i++)
		serial_write(serial, UART_TX, i);
	return NULL;
}

static void start_guest(struct console *c)
{
	guest_thread = 0;
	assert_int_equal(pthread_create(&c->guest, NULL, send_all, c->serial), 0);
}

/* Until the guest's thread sleeps, which it does nowhere but before a full output. */
static void until_it_waits(void)
{
	char path[64], state = 0;

	while (state != 'S') {
		FILE *stat;

		snprintf(path, sizeof(path), "/proc/self/task/%d/stat", guest_thread);
		stat = fopen(path, "r");
		if (!stat || fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
			state = 0;
		if (stat)
			fclose(stat);
	}
}

/* Read until all numbers have come, each once and in order, behind what filled the output. */
static void expect_all(struct console *c)
{
	uint8_t *bytes = malloc(c->full + 100);
	size_t used = 0;

	while (used < c->full + 100) {
		ssize_t n = read(c->reader, bytes + used, c->full + 100 - used);

		assert_true(n > 0);
		used += (size_t)n;
	}
	for (uint8_t i = 0; i < 100; i++)
		assert_int_equal(bytes[c->full + i], i);
	free(bytes);
}

/* It shall not be anything's end that nobody reads. */
static int no_input(void)
{
	static int fds[2];

	assert_int_equal(pipe(fds), 0);
	return fds[0];
}

static void the_guest_waits_for_a_reader(void **arg)
{
	for (int socket = 0; socket < 2; socket++) {
		struct console c = make(socket);

		(void)arg;
		start_guest(&c);
		expect_all(&c);
		assert_int_equal(pthread_join(c.guest, NULL), 0);
		drop(&c);
	}
}

static void a_pause_waits_for_nobody(void **arg)
{
	for (int socket = 0; socket < 2; socket++) {
		struct console c = make(socket);

		(void)arg;
		assert_int_equal(serial_start(c.serial, no_input()), 0);
		start_guest(&c);
		until_it_waits();
		serial_hold(c.serial, true);
		/* As a vCPU's thread that parks. */
		assert_int_equal(pthread_join(c.guest, NULL), 0);
		serial_hold(c.serial, false);
		/* The guest sends nothing more. */
		expect_all(&c);
		drop(&c);
	}
}

static void what_is_saved_is_sent_after_the_restore(void **arg)
{
	struct state *state = state_new();
	struct console c = make(false), restored = make(false);

	(void)arg;
	serial_hold(c.serial, true);
	send_all(c.serial);
	assert_int_equal(serial_save(c.serial, state), 0);
	drop(&c);
	assert_int_equal(serial_load(restored.serial, state), 0);
	assert_int_equal(serial_start(restored.serial, no_input()), 0);
	expect_all(&restored);
	drop(&restored);
	state_free(state);
}

/* Others have the same open file: the shell its terminal. */
static void the_fd_stays_as_it_was(void **arg)
{
	struct console c = make(false);

	(void)arg;
	assert_int_equal(fcntl(c.writer, F_GETFL) & O_NONBLOCK, 0);
	drop(&c);
}

static void without_a_reader_the_guest_goes_on(void **arg)
{
	struct console c = make(false);

	(void)arg;
	signal(SIGPIPE, SIG_IGN);
	start_guest(&c);
	until_it_waits();
	close(c.reader);
	assert_int_equal(pthread_join(c.guest, NULL), 0);
	c.reader = -1;
	drop(&c);
}

static void an_error_waits_for_no_reader(void **arg)
{
	const int before = dup(STDERR_FILENO);
	int fds[2];

	(void)arg;
	assert_int_equal(pipe(fds), 0);
	fill(fds[1]);
	assert_int_equal(dup2(fds[1], STDERR_FILENO), STDERR_FILENO);
	assert_int_equal(vmm_error(-EIO, "this: %m"), -EIO);
	assert_int_equal(dup2(before, STDERR_FILENO), STDERR_FILENO);
	assert_string_equal(vmm_error_text(), "this: Input/output error");
	close(fds[0]);
	close(fds[1]);
	close(before);
}

static void records_that_cannot_be_are_refused(void **arg)
{
	static const uint8_t many[16 * 4096 + 1];
	uint8_t record[32] = { [8] = 17 }; /* bytes that were received */
	struct state *state = state_new();
	struct serial *serial;

	(void)arg;
	assert_int_equal(serial_new(&serial, NULL, -1), 0);
	assert_int_equal(serial_load(serial, state), -EBADMSG);
	assert_int_equal(state_add(state, STATE_SERIAL, 0, record, sizeof(record)), 0);
	assert_int_equal(serial_load(serial, state), -EBADMSG);
	state_free(state);
	state = state_new();
	record[8] = 16;
	assert_int_equal(state_add(state, STATE_SERIAL, 0, record, sizeof(record)), 0);
	assert_int_equal(state_add(state, STATE_SERIAL_UNSENT, 0, many, sizeof(many)), 0);
	assert_int_equal(serial_load(serial, state), -EBADMSG);
	serial_free(serial);
	state_free(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_guest_waits_for_a_reader),
		cmocka_unit_test(a_pause_waits_for_nobody),
		cmocka_unit_test(what_is_saved_is_sent_after_the_restore),
		cmocka_unit_test(the_fd_stays_as_it_was),
		cmocka_unit_test(without_a_reader_the_guest_goes_on),
		cmocka_unit_test(an_error_waits_for_no_reader),
		cmocka_unit_test(records_that_cannot_be_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
