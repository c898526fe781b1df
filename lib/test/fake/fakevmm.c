// SPDX-License-Identifier: MIT
/*
 * fakevmm.c: the memory, the userfaultfd and the handshake of a fake VMM.
 * What touches the memory is in fakeload.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fakevmm.h"

#define GAP FAKE_HUGE
#define GPA_HOLE (1ull << 30)

uint64_t fake_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void fake_sleep_ms(unsigned ms)
{
	struct timespec left = { ms / 1000, (long)(ms % 1000) * 1000000 };

	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

/* ---- deadline ---- */

static char deadline_text[160];

static void deadline_passed(int number)
{
	(void)number;
	if (write(STDERR_FILENO, deadline_text, strlen(deadline_text)) < 0)
		_exit(98);
	_exit(97);
}

void fake_deadline(const char *what, unsigned seconds)
{
	struct sigaction action = { .sa_handler = deadline_passed };

	seconds *= FAKE_SLOWNESS;
	snprintf(deadline_text, sizeof(deadline_text), "\nBail out! %s hangs: no end after %u s\n",
		 what, seconds);
	sigaction(SIGALRM, &action, NULL);
	alarm(seconds);
}

/* ---- huge pages ---- */

static pid_t hugepages_owner;
static long hugepages_added;

static long hugepages_number(const char *name)
{
	char path[128];
	long value = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-2048kB/%s", name);
	file = fopen(path, "re");
	if (!file)
		return -1;
	if (fscanf(file, "%ld", &value) != 1)
		value = -1;
	fclose(file);
	return value;
}

static void hugepages_set(long value)
{
	FILE *file = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "we");

	if (!file)
		return;
	fprintf(file, "%ld\n", value);
	fclose(file);
}

/* For scripts/running/leftovers.py: what to take back if this process does not come to it. */
static void hugepages_note(long added)
{
	const char *dir = getenv("TMPDIR");
	char path[200];
	FILE *file;

	snprintf(path, sizeof(path), "%s/hugepages-added", dir ? dir : "");
	if (!dir)
		return;
	if (!added) {
		unlink(path);
		return;
	}
	file = fopen(path, "we");
	if (!file)
		return;
	fprintf(file, "%ld\n", added);
	fclose(file);
}

static void hugepages_restore(void)
{
	if (getpid() != hugepages_owner)
		return;
	hugepages_set(hugepages_number("nr_hugepages") - hugepages_added);
	hugepages_note(0);
}

/* Others may change the number too, so it is changed back by the same amount. */
bool fake_hugepages(uint64_t count)
{
	long free_pages = hugepages_number("free_hugepages"), before;

	if (free_pages < 0)
		return false;
	if ((uint64_t)free_pages >= count)
		return true;
	if (!hugepages_owner) {
		hugepages_owner = getpid();
		atexit(hugepages_restore);
	}
	before = hugepages_number("nr_hugepages");
	hugepages_note(hugepages_added + (long)count - free_pages);
	hugepages_set(before + (long)count - free_pages);
	hugepages_added += hugepages_number("nr_hugepages") - before;
	hugepages_note(hugepages_added);
	return hugepages_number("free_hugepages") >= (long)count;
}

/* ---- memory ---- */

static int backing_open(const struct fakevmm_options *options, uint64_t bytes)
{
	int fd;

	if (options->cache_fd > 0)
		return fcntl(options->cache_fd, F_DUPFD_CLOEXEC, 3);
	if (options->backing != INFILL_BACKING_SHMEM)
		return -1;
	fd = memfd_create("fake-guest", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		fake_die("memfd of the guest memory");
	return fd;
}

/* Where LENGTH bytes fit, aligned for huge pages, with nothing mapped just before or after. */
static char *address_reserve(uint64_t length)
{
	char *base = mmap(NULL, length + 2 * GAP + FAKE_HUGE, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (base == MAP_FAILED)
		fake_die("address space for guest memory");
	return (char *)(((uintptr_t)base + GAP + FAKE_HUGE - 1) & ~(uintptr_t)(FAKE_HUGE - 1));
}

static void region_map(struct fakevmm *vmm, struct fakevmm_region *region)
{
	int flags = MAP_FIXED | MAP_NORESERVE;
	char *at = address_reserve(region->length);

	if (vmm->private_file)
		flags |= MAP_PRIVATE;
	else if (vmm->backing == INFILL_BACKING_SHMEM)
		flags |= MAP_SHARED;
	else
		flags |= MAP_PRIVATE | MAP_ANONYMOUS;
	if (vmm->backing == INFILL_BACKING_HUGETLB)
		flags |= MAP_HUGETLB;
	region->hva = mmap(at, region->length, PROT_READ | PROT_WRITE, flags, vmm->backing_fd,
			   vmm->backing_fd < 0 ? 0 : (off_t)region->offset);
	if (region->hva == MAP_FAILED)
		fake_die("guest memory");
}

/* Cut the image into equal regions of whole pages; the last one takes the remainder. */
static void regions_map(struct fakevmm *vmm)
{
	uint64_t share = vmm->pages / vmm->regions * vmm->page_size;
	uint64_t offset = 0;

	for (unsigned i = 0; i < vmm->regions; i++) {
		struct fakevmm_region *region = &vmm->region[i];

		region->offset = offset;
		region->gpa = offset + i * GPA_HOLE;
		region->length = i + 1 < vmm->regions ? share :
							vmm->pages * vmm->page_size - offset;
		region_map(vmm, region);
		offset += region->length;
	}
}

struct fakevmm *fakevmm_new(const struct fakevmm_options *options)
{
	struct fakevmm *vmm = calloc(1, sizeof(*vmm));

	if (!vmm)
		fake_die("struct fakevmm");
	vmm->image = *options->image;
	vmm->page_size = options->page_size ? options->page_size : FAKE_PAGE;
	vmm->pages = vmm->image.bytes / vmm->page_size;
	vmm->backing = options->backing;
	vmm->private_file = options->cache_fd > 0;
	vmm->regions = options->regions ? options->regions : 1;
	vmm->shared = options->shared ? options->shared : &vmm->own;
	vmm->uffd = -1;
	vmm->state = calloc(vmm->pages, sizeof(*vmm->state));
	if (!vmm->state)
		fake_die("page states of the fake VMM");
	vmm->backing_fd = backing_open(options, vmm->image.bytes);
	regions_map(vmm);
	return vmm;
}

void fakevmm_free(struct fakevmm *vmm)
{
	if (!vmm)
		return;
	for (unsigned i = 0; i < vmm->regions; i++)
		munmap(vmm->region[i].hva, vmm->region[i].length);
	if (vmm->uffd >= 0)
		close(vmm->uffd);
	if (vmm->backing_fd >= 0)
		close(vmm->backing_fd);
	free(vmm->state);
	free(vmm);
}

struct infill_memory *fakevmm_memory(const struct fakevmm *vmm)
{
	struct infill_memory *memory;

	if (infill_memory_new(&memory))
		fake_die("infill_memory_new");
	for (unsigned i = 0; i < vmm->regions; i++) {
		struct infill_region region = {
			.size = sizeof(region),
			.gpa = vmm->region[i].gpa,
			.hva = (uintptr_t)vmm->region[i].hva,
			.length = vmm->region[i].length,
			.offset = vmm->region[i].offset,
			.page_size = vmm->page_size,
			.backing = vmm->backing,
		};

		if (infill_memory_add(memory, &region))
			fake_die(infill_error());
	}
	return memory;
}

uint64_t fakevmm_offset(const struct fakevmm *vmm, uint64_t page)
{
	return page * vmm->page_size;
}

char *fakevmm_page(const struct fakevmm *vmm, uint64_t page)
{
	uint64_t offset = fakevmm_offset(vmm, page);

	for (unsigned i = 0; i < vmm->regions; i++) {
		const struct fakevmm_region *region = &vmm->region[i];

		if (offset - region->offset < region->length)
			return region->hva + (offset - region->offset);
	}
	errno = ERANGE;
	fake_die("page outside of guest memory");
}

/* ---- userfaultfd ---- */

static int uffd_open(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int device;

	if (fd >= 0 || errno != EPERM)
		return fd;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return -1;
	fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	close(device);
	return fd;
}

static int uffd_register(const struct fakevmm *vmm, const struct fakevmm_region *region)
{
	struct uffdio_register reg = {
		.range = { (uintptr_t)region->hva, region->length },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (vmm->private_file)
		reg.mode |= UFFDIO_REGISTER_MODE_MINOR;
	return ioctl(vmm->uffd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

int fakevmm_register(struct fakevmm *vmm)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	int err;

	if (vmm->private_file)
		api.features |= UFFD_FEATURE_MINOR_SHMEM;
	vmm->uffd = uffd_open();
	if (vmm->uffd < 0 || ioctl(vmm->uffd, UFFDIO_API, &api))
		return -errno;
	for (unsigned i = 0; i < vmm->regions; i++) {
		err = uffd_register(vmm, &vmm->region[i]);
		if (err)
			return err;
	}
	return 0;
}

/* ---- handshake ---- */

static size_t handshake_json(const struct fakevmm *vmm, char *text, size_t size)
{
	size_t length = 0;

	for (unsigned i = 0; i < vmm->regions; i++) {
		const struct fakevmm_region *region = &vmm->region[i];

		length += (size_t)snprintf(text + length, size - length,
					   "%c{\"base_host_virt_addr\":%llu,\"size\":%llu,"
					   "\"offset\":%llu,\"page_size\":%llu,"
					   "\"page_size_kib\":%llu}",
					   i ? ',' : '[', (unsigned long long)(uintptr_t)region->hva,
					   (unsigned long long)region->length,
					   (unsigned long long)region->offset,
					   (unsigned long long)vmm->page_size,
					   (unsigned long long)vmm->page_size);
	}
	length += (size_t)snprintf(text + length, size - length, "]");
	return length;
}

int fakevmm_handshake_on(struct fakevmm *vmm, int sock)
{
	char text[4096];
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { text, handshake_json(vmm, text, sizeof(text)) };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &vmm->uffd, sizeof(int));
	if (sendmsg(sock, &message, MSG_NOSIGNAL) != (ssize_t)iov.iov_len)
		return errno ? -errno : -EIO;
	atomic_store(&vmm->shared->connected, 1);
	return sock;
}

int fakevmm_handshake(struct fakevmm *vmm, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof(address)))
		return -errno;
	return fakevmm_handshake_on(vmm, sock);
}

/* ---- what the kernel has ---- */

uint64_t fakevmm_present(const struct fakevmm *vmm)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t count = 0;

	if (fd < 0)
		fake_die("/proc/self/pagemap");
	for (uint64_t page = 0; page < vmm->pages; page++) {
		uint64_t entry = 0;
		off_t at = (off_t)((uintptr_t)fakevmm_page(vmm, page) / FAKE_PAGE * 8);

		if (pread(fd, &entry, sizeof(entry), at) != sizeof(entry))
			fake_die("/proc/self/pagemap");
		count += entry >> 63;
	}
	close(fd);
	return count;
}

/* ---- a VMM in a process of its own ---- */

struct fakevmm_shared *fakevmm_shared_new(unsigned count)
{
	void *at = mmap(NULL, count * sizeof(struct fakevmm_shared), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		fake_die("memory shared between processes");
	return at;
}

static void child_fail(struct fakevmm_shared *shared, const char *what, int err)
{
	if (atomic_load(&shared->failed))
		_exit(1);
	snprintf(shared->error, sizeof(shared->error), "%s: %s", what, strerror(-err));
	atomic_store(&shared->failed, 1);
	_exit(1);
}

static void child_load(struct fakevmm *vmm, const struct fakevmm_load *load, unsigned run_ms)
{
	uint64_t end = fake_now_ns() + run_ms * 1000000ull;

	fakevmm_start(vmm, load);
	while (!load->passes && !atomic_load(&vmm->shared->finish) &&
	       !atomic_load(&vmm->shared->failed) && !(run_ms && fake_now_ns() > end))
		fake_sleep_ms(1);
	fakevmm_stop(vmm);
	if (fakevmm_finish(vmm) || fakevmm_verify(vmm))
		_exit(1);
	atomic_store(&vmm->shared->verified, 1);
}

/* Map memory and hand it to the pager; ends the process if that fails. */
static struct fakevmm *child_connect(struct fakevmm_options *options, const char *socket)
{
	struct fakevmm *vmm;
	int sock = -1, err;

	if (options->clone) {
		sock = infill_handshake_cache(socket, &options->cache_fd);
		if (sock < 0)
			child_fail(options->shared, "handshake for a cache", sock);
	}
	vmm = fakevmm_new(options);
	err = fakevmm_register(vmm);
	if (err)
		child_fail(vmm->shared, "userfaultfd", err);
	sock = sock < 0 ? fakevmm_handshake(vmm, socket) : fakevmm_handshake_on(vmm, sock);
	if (sock < 0)
		child_fail(vmm->shared, "handshake", sock);
	return vmm;
}

pid_t fakevmm_fork(const struct fakevmm_options *options, const struct fakevmm_load *load,
		   const char *socket, unsigned run_ms)
{
	pid_t parent = getpid();
	struct fakevmm_options own = *options;
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	alarm(0);
	child_load(child_connect(&own, socket), load, run_ms);
	_exit(0);
}

int fake_wait(pid_t pid, unsigned timeout_ms)
{
	uint64_t end = fake_now_ns() + timeout_ms * 1000000ull * FAKE_SLOWNESS;
	int status;

	for (;;) {
		pid_t got = waitpid(pid, &status, WNOHANG);

		if (got == pid)
			return status;
		if (got < 0)
			return -errno;
		if (fake_now_ns() > end)
			return -ETIMEDOUT;
		fake_sleep_ms(1);
	}
}
