/* SPDX-License-Identifier: MIT */
/*
 * host.c: what this machine and this process can do, and how a userfaultfd is
 * come by.  The shim links it, so it must not need any other library.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "err.h"
#include "host_kvm.h"
#include "infill.h"

/* The oldest headers that are supported (Linux 5.15) lack these. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

#define LEAST offsetof(struct infill_host, kvm_vm_error) /* bytes that the first version had */
#define DEVICE "/dev/userfaultfd"
#define SYSCTL "/proc/sys/vm/unprivileged_userfaultfd"
#define HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/"

/* UFFD_FEATURE_* without the prefix, by bit: newer than the headers, so by hand. */
static const char *const feature_names[] = {
	"PAGEFAULT_FLAG_WP", "EVENT_FORK", "EVENT_REMAP", "EVENT_REMOVE", "MISSING_HUGETLBFS",
	"MISSING_SHMEM", "EVENT_UNMAP", "SIGBUS", "THREAD_ID", "MINOR_HUGETLBFS", "MINOR_SHMEM",
	"EXACT_ADDRESS", "WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED", "POISON", "WP_ASYNC", "MOVE",
};

/* ---- userfaultfd ---------------------------------------------------------- */

static int open_by_syscall(int flags)
{
	int fd = (int)syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);

	return fd < 0 ? -errno : fd;
}

/* *AT_OPEN: the failure was in opening the device, not in what it gave. */
static int open_by_device(int *at_open)
{
	int device = open(DEVICE, O_RDWR | O_CLOEXEC), fd, error;

	*at_open = device < 0 ? -errno : 0;
	if (device < 0)
		return *at_open;
	fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	error = errno;
	close(device);
	return fd < 0 ? -error : fd;
}

/* The best way permitted, never user-mode-only: KVM's accesses would raise SIGBUS. */
static int open_best(void)
{
	int fd = open_by_syscall(0), at_open;

	if (fd != -EPERM)
		return fd;
	fd = open_by_device(&at_open);
	return fd < 0 ? -EPERM : fd;
}

static int uffd_api(int fd, uint64_t features, uint64_t *offered)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	if (ioctl(fd, UFFDIO_API, &api))
		return -errno;
	*offered = api.features;
	return 0;
}

/* What the kernel offers, asked on an fd of its own: UFFDIO_API works once on each. */
static uint64_t offered_features(void)
{
	uint64_t offered = 0;
	int fd = open_best();

	if (fd < 0)
		return 0;
	if (uffd_api(fd, 0, &offered))
		offered = 0;
	close(fd);
	return offered;
}

static int lacks(uint64_t missing)
{
	unsigned bit = (unsigned)__builtin_ctzll(missing);

	if (bit < sizeof(feature_names) / sizeof(feature_names[0]))
		return err_set(-EOPNOTSUPP, "userfaultfd: this kernel lacks UFFD_FEATURE_%s",
			       feature_names[bit]);
	return err_set(-EOPNOTSUPP, "userfaultfd: this kernel lacks feature bit %u", bit);
}

int infill_host_userfaultfd(uint64_t features)
{
	int fd = open_best(), error;
	uint64_t offered;

	if (fd == -EPERM)
		return err_set(fd, "userfaultfd: not permitted to this process: "
			       "`infill doctor` says how to permit it");
	if (fd == -ENOSYS)
		return err_set(fd, "userfaultfd: this kernel was built without CONFIG_USERFAULTFD");
	if (fd < 0)
		return err_set(fd, "userfaultfd: %m");
	error = uffd_api(fd, features, &offered);
	if (!error)
		return fd;
	close(fd);
	offered = offered_features();
	if (error == -EINVAL && (features & ~offered))
		return lacks(features & ~offered);
	return err_set(error, "userfaultfd: UFFDIO_API: %m");
}

/* ---- probe ---------------------------------------------------------------- */

/* The number that the file PATH holds, or FALLBACK. */
static long long read_number(const char *path, long long fallback)
{
	FILE *file = fopen(path, "re");
	long long value;

	if (!file)
		return fallback;
	if (fscanf(file, "%lld", &value) != 1)
		value = fallback;
	fclose(file);
	return value;
}

static void probe_userfaultfd(struct infill_host *host)
{
	int by_syscall = open_by_syscall(0);
	int by_device = open_by_device(&host->device_error);
	int user_only = -1;

	if (by_syscall >= 0) {
		host->userfaultfd = INFILL_USERFAULTFD_SYSCALL;
	} else if (by_syscall == -EPERM && by_device >= 0) {
		host->userfaultfd = INFILL_USERFAULTFD_DEVICE;
	} else {
		user_only = open_by_syscall(UFFD_USER_MODE_ONLY);
		host->userfaultfd_error = by_syscall;
		host->userfaultfd = user_only >= 0 ? INFILL_USERFAULTFD_USER_ONLY :
						     INFILL_USERFAULTFD_NO;
	}
	if (by_syscall >= 0)
		uffd_api(by_syscall, 0, &host->features);
	else if (by_device >= 0)
		uffd_api(by_device, 0, &host->features);
	else if (user_only >= 0)
		uffd_api(user_only, 0, &host->features);
	if (by_syscall >= 0)
		close(by_syscall);
	if (by_device >= 0)
		close(by_device);
	if (user_only >= 0)
		close(user_only);
	host->sysctl = (int32_t)read_number(SYSCTL, -1);
}

/* By the bare system call: io_uring_queue_init() would tie the shim to liburing. */
static int32_t probe_io_uring(void)
{
	struct io_uring_params params = { 0 };
	int fd = (int)syscall(__NR_io_uring_setup, 2, &params);

	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

static uint32_t probe_cpus(void)
{
	size_t size = CPU_ALLOC_SIZE(65536);
	cpu_set_t *set = CPU_ALLOC(65536);
	uint32_t count = 1;

	if (set && !sched_getaffinity(0, size, set))
		count = (uint32_t)CPU_COUNT_S(size, set);
	CPU_FREE(set);
	return count;
}

static uint64_t probe_memlock(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit) || limit.rlim_cur == RLIM_INFINITY)
		return UINT64_MAX;
	return limit.rlim_cur;
}

int infill_host_probe(struct infill_host *host)
{
	struct infill_host found = { .size = sizeof(found) };
	struct utsname name;
	size_t size = host->size;

	if (size < LEAST || size > 65536)
		return err_set(-EINVAL,
			       "infill_host: size is %zu: set it to sizeof(struct infill_host)",
			       size);
	probe_userfaultfd(&found);
	host_probe_kvm(&found);
	found.io_uring_error = probe_io_uring();
	found.hugepages_2m = (uint64_t)read_number(HUGEPAGES "nr_hugepages", 0);
	found.hugepages_2m_free = (uint64_t)read_number(HUGEPAGES "free_hugepages", 0);
	found.cpus = probe_cpus();
	found.memlock_bytes = probe_memlock();
	if (!uname(&name))
		snprintf(found.kernel, sizeof(found.kernel), "%.63s", name.release);
	memset(host, 0, size);
	memcpy(host, &found, size < sizeof(found) ? size : sizeof(found));
	host->size = size;
	return 0;
}
