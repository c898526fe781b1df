/* SPDX-License-Identifier: MIT */
/*
 * vmm_snapshot_test.c: the two files of a snapshot, when writing them fails or the VMM
 * is killed at any step: a state file is never beside a memory file of another time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "scratch.h"
#include "snapshot.h"

#define A1 ('A' << 8 | 1)
#define MEMORY_BYTES (2 * 4096)

static uint8_t memory[MEMORY_BYTES];

static struct vm vm = {
	.memory_bytes = MEMORY_BYTES, .vcpus = 1, .regions = 1,
	.region = { { .bytes = MEMORY_BYTES, .hva = memory } },
};

/* ---- the steps that change names, or have them on the disk ------------------------- */

/* What was done, in order; the process ends before step `last`. */
static char steps[32];
static size_t last = SIZE_MAX;

static void step(char letter)
{
	size_t done = strlen(steps);

	if (done == last)
		_exit(0);
	assert_true(done < sizeof(steps) - 1);
	steps[done] = letter;
}

/* In the place of the C library's, for the whole program. */
int rename(const char *from, const char *to)
{
	step('r');
	return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char *path)
{
	step('u');
	return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int fsync(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	step(S_ISDIR(st.st_mode) ? 'F' : 'f');
	return (int)syscall(SYS_fsync, fd);
}

/* ---- snapshots --------------------------------------------------------------------- */

/* The snapshot NUMBER: it is the first byte of memory, and of the state's one record. */
static int save(uint8_t number, size_t record_bytes)
{
	struct state *state = state_new();
	uint8_t *record = calloc(1, record_bytes);
	int err;

	memory[0] = record[0] = number;
	assert_int_equal(state_add(state, A1, 0, record, record_bytes), 0);
	err = snapshot_save(&vm, state, scratch("memory"), scratch("state"));
	state_free(state);
	free(record);
	return err;
}

/* The number of the memory file. */
static uint8_t memory_number(void)
{
	uint8_t number = 0;
	int fd = open(scratch("memory"), O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(read(fd, &number, 1), 1);
	close(fd);
	return number;
}

/* That of the state file; 0: there is none. */
static uint8_t state_number(void)
{
	struct state *state;
	size_t bytes;
	uint8_t number;
	int err = state_read(&state, scratch("state"));

	if (err == -ENOENT)
		return 0;
	assert_int_equal(err, 0);
	number = *(const uint8_t *)state_get(state, A1, 0, &bytes);
	state_free(state);
	return number;
}

static void remove_both(void)
{
	unlink(scratch("memory"));
	unlink(scratch("state"));
	memset(steps, 0, sizeof(steps));
}

/* A process that saves number 2 and is killed before step N.  False: it had fewer. */
static bool killed_at(size_t n)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		last = n;
		memset(steps, 0, sizeof(steps));
		_exit(save(2, 1) ? 2 : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_not_equal(WEXITSTATUS(status), 2);
	return WEXITSTATUS(status) == 0;
}

static void whoever_is_killed_leaves_no_mix(void **arg)
{
	size_t n = 0;
	bool killed;

	(void)arg;
	do {
		remove_both();
		assert_int_equal(save(1, 1), 0);
		killed = killed_at(n++);
		if (state_number())
			assert_int_equal(state_number(), memory_number());
	} while (killed);
	assert_int_equal(state_number(), 2);
	assert_true(n > 4);
}

static void each_name_is_on_the_disk_before_the_next(void **arg)
{
	(void)arg;
	remove_both();
	assert_int_equal(save(1, 1), 0);
	/* Each file: what a killed process may have left, its bytes.  Then the names. */
	assert_string_equal(steps, "ufuf" "uF" "rF" "rF");
}

static void what_cannot_be_written_changes_nothing(void **arg)
{
	const struct rlimit limit = { MEMORY_BYTES, RLIM_INFINITY };
	const struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };

	(void)arg;
	remove_both();
	assert_int_equal(save(1, 1), 0);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	/* Memory fits, the state does not. */
	assert_int_equal(save(2, MEMORY_BYTES), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
	assert_int_equal(memory_number(), 1);
	assert_int_equal(state_number(), 1);
	assert_int_equal(snapshot_save(&vm, NULL, scratch("x"), scratch("x")), -EINVAL);
}

static void a_folder_is_refused_before_anything_changes(void **arg)
{
	struct state *state = state_new();

	(void)arg;
	remove_both();
	assert_int_equal(save(1, 1), 0);
	assert_int_equal(mkdir(scratch("folder"), 0700), 0);
	assert_int_equal(snapshot_save(&vm, state, scratch("folder"), scratch("state")), -EISDIR);
	assert_int_equal(snapshot_save(&vm, state, scratch("memory"), scratch("folder")), -EISDIR);
	assert_int_equal(memory_number(), 1);
	assert_int_equal(state_number(), 1);
	state_free(state);
}

/* How many names the folder has. */
static unsigned names(void)
{
	unsigned count = 0;
	DIR *folder = opendir(scratch("."));

	assert_non_null(folder);
	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

static void what_a_killed_process_left_is_replaced(void **arg)
{
	char name[32];
	unsigned before;

	(void)arg;
	remove_both();
	before = names();
	snprintf(name, sizeof(name), "memory.new.%d", (int)getpid());
	scratch_file(name, "old", 3);
	snprintf(name, sizeof(name), "state.new.%d", (int)getpid());
	assert_int_equal(symlink("elsewhere", scratch(name)), 0);
	assert_int_equal(save(3, 1), 0);
	assert_int_equal(memory_number(), 3);
	assert_int_equal(state_number(), 3);
	assert_int_equal(access(scratch("elsewhere"), F_OK), -1);
	assert_int_equal(names(), before + 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whoever_is_killed_leaves_no_mix),
		cmocka_unit_test(each_name_is_on_the_disk_before_the_next),
		cmocka_unit_test(what_cannot_be_written_changes_nothing),
		cmocka_unit_test(a_folder_is_refused_before_anything_changes),
		cmocka_unit_test(what_a_killed_process_left_is_replaced),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
