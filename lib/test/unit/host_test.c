/* SPDX-License-Identifier: MIT */
/*
 * host_test.c: what infill_host_probe() and infill_host_userfaultfd() say
 * about this machine, compared with what the system calls say themselves.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host_kvm.h"
#include "infill.h"

#define FIRST_SIZE offsetof(struct infill_host, kvm_vm_error)

static struct infill_host probe(void)
{
	struct infill_host host = { .size = sizeof(host) };

	assert_int_equal(infill_host_probe(&host), 0);
	return host;
}

static void skip_without_userfaultfd(void)
{
	struct infill_host host = probe();

	if (host.userfaultfd == INFILL_USERFAULTFD_SYSCALL ||
	    host.userfaultfd == INFILL_USERFAULTFD_DEVICE)
		return;
	print_message("userfaultfd: %s\n", strerror(-host.userfaultfd_error));
	skip();
}

static unsigned count_fds(void)
{
	unsigned count = 0;

	for (int fd = 0; fd < 1024; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

static void probe_refuses_a_wrong_size(void **state)
{
	static const size_t sizes[] = { 0, 8, FIRST_SIZE - 1, 65537, SIZE_MAX };
	struct infill_host host;

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		host.size = sizes[i];
		assert_int_equal(infill_host_probe(&host), -EINVAL);
		assert_non_null(strstr(infill_error(), "infill_host: size is "));
	}
}

/* A program built against the first header: what it has no room for is left alone. */
static void probe_fills_in_what_there_is_room_for(void **state)
{
	union {
		struct infill_host host;
		unsigned char bytes[sizeof(struct infill_host)];
	} first;

	(void)state;
	memset(&first, 0xaa, sizeof(first));
	first.host.size = FIRST_SIZE;
	assert_int_equal(infill_host_probe(&first.host), 0);
	assert_int_equal(first.host.size, FIRST_SIZE);
	assert_true(first.host.cpus > 0);
	for (size_t i = FIRST_SIZE; i < sizeof(first); i++)
		assert_int_equal(first.bytes[i], 0xaa);
}

/* A program built against a later header: what this library does not know is zero. */
static void probe_clears_what_is_new(void **state)
{
	union {
		struct infill_host host;
		unsigned char bytes[sizeof(struct infill_host) + 16];
	} later;

	(void)state;
	memset(&later, 0xaa, sizeof(later));
	later.host.size = sizeof(later);
	assert_int_equal(infill_host_probe(&later.host), 0);
	assert_int_equal(later.host.size, sizeof(later));
	for (size_t i = sizeof(struct infill_host); i < sizeof(later); i++)
		assert_int_equal(later.bytes[i], 0);
}

static void probe_has_no_side_effects(void **state)
{
	struct infill_host first, second;
	unsigned fds;

	(void)state;
	fds = count_fds();
	first = probe();
	second = probe();
	assert_int_equal(count_fds(), fds);
	/* Others may take huge pages meanwhile. */
	second.hugepages_2m_free = first.hugepages_2m_free;
	assert_memory_equal(&first, &second, sizeof(first));
}

static void probe_agrees_with_the_system(void **state)
{
	struct infill_host host = probe();
	struct rlimit limit;

	(void)state;
	assert_in_range(host.cpus, 1, sysconf(_SC_NPROCESSORS_ONLN));
	assert_true(host.kernel[0] >= '2' && host.kernel[0] <= '9');
	assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &limit), 0);
	assert_int_equal(host.memlock_bytes, limit.rlim_cur);
	assert_int_equal(host.device_error ? -1 : 0, access("/dev/userfaultfd", R_OK | W_OK));
	assert_true(host.kvm_error || host.kvm_api == 12);
	assert_true(host.hugepages_2m_free <= host.hugepages_2m);
}

static void userfaultfd_is_cloexec_and_nonblocking(void **state)
{
	int fd;

	(void)state;
	skip_without_userfaultfd();
	fd = infill_host_userfaultfd(UFFD_FEATURE_EVENT_REMOVE);
	assert_true(fd >= 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
	close(fd);
}

/* UFFDIO_API has been done: registering works, and a second UFFDIO_API does not. */
static void userfaultfd_is_ready_to_register(void **state)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd;

	(void)state;
	skip_without_userfaultfd();
	fd = infill_host_userfaultfd(0);
	assert_true(fd >= 0);
	reg.range.start = (uintptr_t)page;
	reg.range.len = 4096;
	assert_int_equal(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	assert_int_equal(ioctl(fd, UFFDIO_API, &api), -1);
	close(fd);
	munmap(page, 4096);
}

static void a_missing_feature_is_named(void **state)
{
	unsigned fds;

	(void)state;
	skip_without_userfaultfd();
	fds = count_fds();
	assert_int_equal(infill_host_userfaultfd(1ULL << 60), -EOPNOTSUPP);
	assert_string_equal(infill_error(), "userfaultfd: this kernel lacks feature bit 60");
	assert_int_equal(count_fds(), fds);
}

/*
 * As a user without rights the call gives what the probe says, and never an
 * fd that knows faults from user mode only.
 */
static void without_rights_the_probe_tells_the_truth(void **state)
{
	int status;
	pid_t child;

	(void)state;
	if (geteuid()) {
		print_message("not root: no other user to become\n");
		skip();
	}
	child = fork();
	if (!child) {
		struct infill_host host = { .size = sizeof(host) };
		int fd;

		if (setgid(65534) || setuid(65534))
			_exit(2);
		infill_host_probe(&host);
		fd = infill_host_userfaultfd(0);
		if (fd >= 0)
			_exit(host.userfaultfd == INFILL_USERFAULTFD_SYSCALL ||
					      host.userfaultfd == INFILL_USERFAULTFD_DEVICE ?
				      0 : 3);
		if (host.userfaultfd != INFILL_USERFAULTFD_NO &&
		    host.userfaultfd != INFILL_USERFAULTFD_USER_ONLY)
			_exit(4);
		_exit(fd == host.userfaultfd_error && strstr(infill_error(), "infill doctor") ? 0
											      : 5);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}

static void kvm_mode_is_the_kernels(void **state)
{
	static const struct {
		const char *line;
		enum infill_kvm_mode logged, asked;
	} rows[] = {
		{ "6,400,9000,-;kvm [1]: VHE mode initialized successfully\n",
		  INFILL_KVM_MODE_VHE, 0 },
		{ "6,400,9000,-;kvm [1]: VHE+NV2 mode initialized successfully\n",
		  INFILL_KVM_MODE_NESTED, 0 },
		{ "6,400,9000,-;kvm [1]: Hyp nVHE mode initialized successfully\n",
		  INFILL_KVM_MODE_NVHE, 0 },
		{ "6,400,9000,-;kvm [1]: Protected hVHE mode initialized successfully\n",
		  INFILL_KVM_MODE_PROTECTED, 0 },
		{ "6,400,9000,-;kvm [1]: Protected nVHE mode initialized successfully\n",
		  INFILL_KVM_MODE_PROTECTED, 0 },
		{ "14,9,9,-;kvm [1]: VHE mode initialized successfully\n", 0, 0 }, /* by a user */
		{ "6,9,9,-;kvm [1]: GICv3: no GICV resource entry\n", 0, 0 },
		{ "6,9,9,-;Kernel command line: kvm-arm.mode=nvhe\n", 0, INFILL_KVM_MODE_NVHE },
		{ "", 0, 0 },
		{ "kvm-arm.mode=protected", 0, INFILL_KVM_MODE_PROTECTED },
		{ "a kvm-arm.mode=nvhe kvm-arm.mode=nested b\n", 0, INFILL_KVM_MODE_NESTED },
		{ "kvm-arm.mode=nvhe kvm-arm.mode=none\n", 0, 0 },
		{ "kvm-arm.mode=", 0, 0 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		assert_int_equal(host_kvm_mode_logged(rows[i].line), rows[i].logged);
		assert_int_equal(host_kvm_mode_asked(rows[i].line), rows[i].asked);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(probe_refuses_a_wrong_size),
		cmocka_unit_test(probe_fills_in_what_there_is_room_for),
		cmocka_unit_test(probe_clears_what_is_new),
		cmocka_unit_test(probe_has_no_side_effects),
		cmocka_unit_test(probe_agrees_with_the_system),
		cmocka_unit_test(userfaultfd_is_cloexec_and_nonblocking),
		cmocka_unit_test(userfaultfd_is_ready_to_register),
		cmocka_unit_test(a_missing_feature_is_named),
		cmocka_unit_test(kvm_mode_is_the_kernels),
		cmocka_unit_test(without_rights_the_probe_tells_the_truth),
	};

	return cmocka_run_group_tests_name("host", tests, NULL, NULL);
}
