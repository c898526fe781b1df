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
#include <time.h>
#include <unistd.h>

#ifndef KVM_CREATE_GUEST_MEMFD
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct guest_memfd_args)
#endif
struct guest_memfd_args {
	uint64_t size, flags, reserved[6];
};
#define FLAG_MMAP_AND_SHARED 3u

#define MULTIPLIER 2654435761u
#define ROUNDS_SECONDS 10

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
	return page >= HOLE_FROM && page < ZERO_TO ? 0 : page * MULTIPLIER + 1;
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

static bool make_vm(struct rig *rig, enum kind kind, bool protected)
{
	*rig = (struct rig){ .kind = kind, .fd = -1 };
	if (guest_new(&rig->guest, protected) || !map_memory(rig)) {
		wrong("no VM, or no memory for it: %m");
		return false;
	}
	describe_memory(rig);
	if (infill_image_open(&rig->image, image_path, NULL) || infill_pool_new(&rig->pool, NULL) ||
	    infill_memory_new(&rig->regions) || infill_memory_add(rig->regions, &rig->region)) {
		wrong("%s", infill_error());
		return false;
	}
	return true;
}

bool set_up_vm(struct rig *rig, enum kind kind)
{
	return make_vm(rig, kind, false);
}

static bool start(struct rig *rig, const char *pager, const struct infill_session_options *options,
		  unsigned vcpus)
{
	int ret = pager ? infill_session_connect_vm(&rig->session, pager, rig->guest.vm, rig->regions,
						    vcpus, options) :
			  infill_session_start_vm(&rig->session, rig->pool, rig->guest.vm, rig->regions,
						  rig->image, options);

	if (ret)
		wrong("%s", infill_error());
	for (unsigned i = 0; i < vcpus && !ret; i++)
		if (guest_vcpu_new(&rig->vcpu[i], &rig->guest, i) ||
		    infill_vcpu_new(&rig->filler[i], rig->session, rig->vcpu[i].fd)) {
			wrong("vCPU %u: %s", i, infill_error());
			return false;
		}
	return !ret;
}

bool set_up(struct rig *rig, enum kind kind, const struct infill_session_options *options,
	    unsigned vcpus)
{
	return make_vm(rig, kind, false) && start(rig, NULL, options, vcpus);
}

bool set_up_connected(struct rig *rig, enum kind kind, const char *pager,
		      const struct infill_session_options *options, unsigned vcpus)
{
	return make_vm(rig, kind, false) && start(rig, pager, options, vcpus);
}

bool set_up_protected(struct rig *rig, enum kind kind, const char *pager,
		      const struct infill_session_options *options, unsigned vcpus)
{
	return make_vm(rig, kind, true) && start(rig, pager, options, vcpus);
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

/* *FAILED: what is returned is KVM's. */
static int run_on(struct rig *rig, unsigned id, uint32_t *sum, bool *failed)
{
	struct guest_vcpu *v = &rig->vcpu[id];

	for (*failed = false;;) {
		int ret = ioctl(v->fd, KVM_RUN, 0), err = errno;

		if (!ret && guest_done(v, sum))
			return 0;
		if (ret && err == EINTR)
			continue;
		if (!ret || err != EFAULT) {
			*failed = true;
			return ret ? -err : -EPROTO;
		}
		ret = infill_vcpu_exit(rig->filler[id], v->run);
		if (ret)
			return ret;
	}
}

int run(struct rig *rig, unsigned id, uint32_t *sum)
{
	bool failed;
	int ret = run_on(rig, id, sum, &failed);

	if (!failed)
		return ret;
	wrong("vCPU %u: KVM_RUN: %d, exit %u", id, ret, rig->vcpu[id].run->exit_reason);
	return -EPROTO;
}

int try_run(struct rig *rig, unsigned id, uint32_t *sum)
{
	bool failed;

	return run_on(rig, id, sum, &failed);
}

int run_in_order(struct rig *rig, uint32_t *sum)
{
	int ret = guest_visit(&rig->vcpu[0], PAGES, 0, 1, 0);

	return ret ? ret : run(rig, 0, sum);
}

bool another_round(unsigned round, unsigned most)
{
	static struct timespec start;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (round == 0)
		start = now;
	if (bad || round >= most)
		return false;
	if (round < 3 || now.tv_sec - start.tv_sec < ROUNDS_SECONDS)
		return true;
	printf("# %u rounds of %u, as this machine is slow\n", round, most);
	return false;
}

void run_into_poison(struct rig *rig, uint32_t page)
{
	uint32_t sum;
	int ret = run_in_order(rig, &sum);

	CHECK(ret == -EHWPOISON, "%d: %s", ret, infill_error());
	if (bad) /* it is through, and has nothing to do */
		return;
	ret = run(rig, 0, &sum); /* again */
	CHECK(ret == -EHWPOISON, "%d: %s", ret, infill_error());
	CHECK(kvm_api_memory_fault(rig->vcpu[0].run)->gpa == GUEST_MEMORY_GPA + page * GUEST_PAGE,
	      "another page");
}

void *visit(void *arg)
{
	struct visitor *t = arg;

	t->ret = guest_visit(&t->rig->vcpu[t->id], PAGES, t->start, t->step, t->id);
	if (!t->ret)
		t->ret = run(t->rig, t->id, &t->sum);
	return NULL;
}

static void *verify(void *arg)
{
	struct visitor *t = arg;
	const struct guest_check check = {
		.pages = PAGES, .start = t->start, .step = t->step, .slot = t->id,
		.factor = t->factor, .visits = t->visits, .multiplier = MULTIPLIER,
		.zero_from = HOLE_FROM, .zero_to = ZERO_TO,
	};

	t->ret = guest_verify(&t->rig->vcpu[t->id], &check);
	if (!t->ret)
		t->ret = run(t->rig, t->id, &t->sum);
	return NULL;
}

/* Each of VCPUS as PATTERN, but begins elsewhere and goes another way, so that they meet on pages. */
static void send_all(unsigned vcpus, void *(*way)(void *), const struct visitor *pattern,
		     uint32_t sum)
{
	struct visitor visitor[VCPUS];
	pthread_t thread[VCPUS];

	for (unsigned i = 0; i < vcpus; i++) {
		visitor[i] = *pattern;
		visitor[i].id = i;
		visitor[i].start = i * 37 % PAGES;
		visitor[i].step += 2 * i;
		pthread_create(&thread[i], NULL, way, &visitor[i]);
	}
	for (unsigned i = 0; i < vcpus; i++) {
		pthread_join(thread[i], NULL);
		CHECK(!visitor[i].ret, "vCPU %u: %d: %s", i, visitor[i].ret, infill_error());
		CHECK(visitor[i].ret || visitor[i].sum == sum, "vCPU %u: %u, not %u", i,
		      visitor[i].sum, sum);
	}
}

void visit_all(struct rig *rig, unsigned vcpus, uint32_t step)
{
	send_all(vcpus, visit, &(struct visitor){ .rig = rig, .step = step }, sum_of_all());
}

void verify_all(struct rig *rig, unsigned vcpus, uint32_t factor, uint32_t visits)
{
	const struct visitor pattern = { .rig = rig, .step = 1, .factor = factor, .visits = visits };

	send_all(vcpus, verify, &pattern, 0);
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
