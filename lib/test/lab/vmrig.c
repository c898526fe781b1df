/* SPDX-License-Identifier: MIT */
/* vmrig.c: a VM for tests of the userfault engine, and the check of its memory. */
#include "vmrig.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef KVM_CREATE_GUEST_MEMFD
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct guest_memfd_args)
#endif
struct guest_memfd_args {
	uint64_t size, flags, reserved[6];
};
#define FLAG_MMAP_AND_SHARED 3u

const char *const kind_name[] = { "anonymous", "memfd", "guest_memfd", "huge pages" };

bool bad;

void wrong(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("# ");
	vprintf(format, args);
	puts("");
	va_end(args);
	bad = true;
}

/* ---- the image ---------------------------------------------------------------- */

const char image_path[] = "/tmp/engine.image", trace_path[] = "/tmp/engine.trace";

uint32_t word_of(uint32_t page)
{
	return page >= HOLE_FROM && page < ZERO_TO ? 0 : page * 2654435761u + 1;
}

uint32_t sum_of_all(void)
{
	uint32_t sum = 0;

	for (uint32_t page = 0; page < PAGES; page++)
		sum += word_of(page);
	return sum;
}

int make_image(void)
{
	uint32_t page[GUEST_PAGE / 4];
	int fd = open(image_path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)BYTES))
		return -1;
	for (uint32_t n = 0; n < PAGES; n++) {
		for (uint32_t i = 0; i < GUEST_PAGE / 4; i++)
			page[i] = word_of(n) ? word_of(n) + i : 0;
		if ((n < HOLE_FROM || n >= HOLE_TO) &&
		    pwrite(fd, page, sizeof(page), (off_t)n * GUEST_PAGE) != sizeof(page))
			return -1;
	}
	return fd;
}

void break_image(uint32_t page)
{
	int fd = open(image_path, O_RDWR | O_CLOEXEC), status;
	char *map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	pid_t child = fork();

	if (!child) {
		/* Raises SIGBUS in who asks for it. */
		madvise(map + (size_t)page * GUEST_PAGE, GUEST_PAGE, MADV_HWPOISON);
		_exit(1);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) &&
		      WTERMSIG(status) == SIGBUS, "MADV_HWPOISON: status 0x%x", status);
	munmap(map, BYTES);
	close(fd);
}

void mend_image(void)
{
	unlink(image_path);
	close(make_image());
}

/* ---- one VM --------------------------------------------------------------------- */

static bool map_memory(struct rig *rig)
{
	struct guest_memfd_args args = { .size = BYTES, .flags = FLAG_MMAP_AND_SHARED };
	int flags = MAP_SHARED;

	if (rig->kind == HUGETLB)
		/* So that the pool may be too small for it. */
		flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE;
	else if (rig->kind == GUEST_MEMFD)
		rig->fd = ioctl(rig->guest.vm, KVM_CREATE_GUEST_MEMFD, &args);
	else if (rig->kind == MEMFD)
		rig->fd = memfd_create("guest", MFD_CLOEXEC);
	else
		flags = MAP_PRIVATE | MAP_ANONYMOUS;
	if ((rig->kind == MEMFD || rig->kind == GUEST_MEMFD) && rig->fd < 0)
		return false;
	if (rig->kind == MEMFD && ftruncate(rig->fd, (off_t)BYTES))
		return false;
	rig->memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, flags, rig->fd, 0);
	return rig->memory != MAP_FAILED;
}

static void describe_memory(struct rig *rig)
{
	static const uint32_t backing[] = { INFILL_BACKING_ANON, INFILL_BACKING_SHMEM,
					    INFILL_BACKING_GUEST_MEMFD, INFILL_BACKING_HUGETLB };

	rig->region = (struct infill_region){
		.size = sizeof(rig->region),
		.gpa = GUEST_MEMORY_GPA,
		.hva = (uintptr_t)rig->memory,
		.length = BYTES,
		.page_size = rig->kind == HUGETLB ? HUGE_BYTES : GUEST_PAGE,
		.backing = backing[rig->kind],
		.slot = 1,
		.slot_flags = rig->kind == GUEST_MEMFD ? KVM_MEM_GUEST_MEMFD : 0,
		.guest_memfd = rig->kind == GUEST_MEMFD ? rig->fd : 0,
	};
}

bool set_up(struct rig *rig, enum kind kind, const struct infill_session_options *options,
	    unsigned vcpus)
{
	*rig = (struct rig){ .kind = kind, .fd = -1 };
	if (guest_new(&rig->guest) || !map_memory(rig)) {
		wrong("no VM, or no memory for it: %m");
		return false;
	}
	describe_memory(rig);
	if (infill_image_open(&rig->image, image_path, NULL) || infill_pool_new(&rig->pool, NULL) ||
	    infill_memory_new(&rig->regions) || infill_memory_add(rig->regions, &rig->region) ||
	    infill_session_start_vm(&rig->session, rig->pool, rig->guest.vm, rig->regions,
				    rig->image, options)) {
		wrong("%s", infill_error());
		return false;
	}
	for (unsigned i = 0; i < vcpus; i++)
		if (guest_vcpu_new(&rig->vcpu[i], &rig->guest, i) ||
		    infill_vcpu_new(&rig->filler[i], rig->session, rig->vcpu[i].fd)) {
			wrong("vCPU %u: %s", i, infill_error());
			return false;
		}
	return true;
}

void tear_down(struct rig *rig)
{
	for (unsigned i = 0; i < VCPUS; i++)
		infill_vcpu_free(rig->filler[i]);
	infill_session_stop(rig->session);
	infill_memory_free(rig->regions);
	infill_pool_free(rig->pool);
	infill_image_close(rig->image);
	for (unsigned i = 0; i < VCPUS; i++)
		if (rig->vcpu[i].run)
			guest_vcpu_free(&rig->vcpu[i]);
	guest_free(&rig->guest);
	if (rig->memory && rig->memory != MAP_FAILED)
		munmap(rig->memory, BYTES);
	if (rig->fd >= 0)
		close(rig->fd);
}

struct infill_counters counters_of(struct rig *rig)
{
	struct infill_counters c = { .size = sizeof(c) };

	if (infill_session_counters(rig->session, &c))
		wrong("%s", infill_error());
	return c;
}

bool can_prefault(const struct rig *rig)
{
	return ioctl(rig->guest.vm, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY) > 0;
}

/* ---- vCPUs ----------------------------------------------------------------------- */

int run(struct rig *rig, unsigned id, uint32_t *sum)
{
	struct guest_vcpu *v = &rig->vcpu[id];

	for (;;) {
		int ret = ioctl(v->fd, KVM_RUN, 0), err = errno;

		if (!ret && guest_done(v, sum))
			return 0;
		if (ret && err == EINTR)
			continue;
		if (!ret || err != EFAULT) {
			wrong("vCPU %u: KVM_RUN: %d, errno %d, exit %u", id, ret, err,
			      v->run->exit_reason);
			return -EPROTO;
		}
		ret = infill_vcpu_exit(rig->filler[id], v->run);
		if (ret)
			return ret;
	}
}

int run_in_order(struct rig *rig, uint32_t *sum)
{
	int ret = guest_visit(&rig->vcpu[0], PAGES, 0, 1, 0);

	return ret ? ret : run(rig, 0, sum);
}

void *visit(void *arg)
{
	struct visitor *t = arg;

	t->ret = guest_visit(&t->rig->vcpu[t->id], PAGES, t->start, t->step, t->id);
	if (!t->ret)
		t->ret = run(t->rig, t->id, &t->sum);
	return NULL;
}

void visit_all(struct rig *rig, unsigned vcpus, uint32_t step)
{
	struct visitor visitor[VCPUS];
	pthread_t thread[VCPUS];

	for (unsigned i = 0; i < vcpus; i++) {
		/* Each begins elsewhere and goes another way, so that they meet on pages. */
		visitor[i] = (struct visitor){ .rig = rig, .id = i, .start = i * 37 % PAGES,
					       .step = step + 2 * i };
		pthread_create(&thread[i], NULL, visit, &visitor[i]);
	}
	for (unsigned i = 0; i < vcpus; i++) {
		pthread_join(thread[i], NULL);
		CHECK(!visitor[i].ret, "vCPU %u: %d: %s", i, visitor[i].ret, infill_error());
		CHECK(visitor[i].ret || visitor[i].sum == sum_of_all(), "vCPU %u: %u, not %u", i,
		      visitor[i].sum, sum_of_all());
	}
}

void check_page(struct rig *rig, uint32_t page, bool zero, unsigned vcpus, uint32_t visits)
{
	const uint32_t *at = rig->memory + (size_t)page * WORDS;

	for (uint32_t i = 0; i < WORDS && !bad; i++) {
		uint32_t was = !zero && word_of(page) ? word_of(page) + i : 0;

		if (i >= SLOT_WORD && i < SLOT_WORD + vcpus)
			was += visits;
		CHECK(at[i] == was, "page %u word %u: %u, not %u", page, i, at[i], was);
	}
}

void check_memory(struct rig *rig, unsigned vcpus, uint32_t visits)
{
	for (uint32_t page = 0; page < PAGES && !bad; page++)
		check_page(rig, page, false, vcpus, visits);
}
