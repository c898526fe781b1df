// SPDX-License-Identifier: MIT
/* walker.c: the guest's code, its registers, and the ioctls of KVM. */
#include "walker.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef KVM_VM_TYPE_ARM_PROTECTED
#define KVM_VM_TYPE_ARM_PROTECTED (1ul << 31)
#endif
#ifndef KVM_PRE_FAULT_FLAG_WRITE
#define KVM_PRE_FAULT_FLAG_WRITE (1ull << 16)
#endif

#define CODE_GPA 0x10000ul
#define STOP_GPA 0x20000ul /* no memory: a store there is an exit */

void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	verr(1, format, arguments);
}

/*
 * x0 memory, x1 pages, x2 bytes of a page, x3 whether to write, x4 where a store stops;
 * x5 sum, x6 address, x7 pages left.
 */
__asm__(".pushsection .rodata\n"
	".globl walk_begin, walk_end\n"
	".balign 4\n"
	"walk_begin:\n"
	"1:	str x5, [x4]\n"
	"	mov x5, #0\n"
	"	mov x6, x0\n"
	"	mov x7, x1\n"
	"2:	cbz x3, 3f\n"
	"	str x7, [x6]\n"
	"3:	ldr x8, [x6, #8]\n"
	"	add x5, x5, x8\n"
	"	add x6, x6, x2\n"
	"	subs x7, x7, #1\n"
	"	b.ne 2b\n"
	"	b 1b\n"
	"walk_end:\n"
	".popsection\n");
extern const char walk_begin[], walk_end[];

static int create_vm(int kvm, bool is_protected)
{
	return ioctl(kvm, KVM_CREATE_VM, is_protected ? KVM_VM_TYPE_ARM_PROTECTED : 0);
}

bool walker_possible(bool is_protected)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = kvm < 0 ? -1 : create_vm(kvm, is_protected);

	if (vm >= 0)
		close(vm);
	if (kvm >= 0)
		close(kvm);
	return vm >= 0;
}

static void add_slot(struct walker *w, uint32_t slot, uint64_t gpa, void *memory, size_t bytes,
		     const uint64_t *bitmap)
{
	struct kvm_api_region region = {
		.slot = slot,
		.flags = bitmap ? KVM_MEM_USERFAULT : 0,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)memory,
		.userfault_bitmap = (uintptr_t)bitmap,
	};

	if (ioctl(w->vm, KVM_API_SET_REGION, &region))
		die("KVM_SET_USER_MEMORY_REGION2 at 0x%lx", (unsigned long)gpa);
}

static void add_code(struct walker *w)
{
	w->code = mmap(NULL, WALKER_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);
	if (w->code == MAP_FAILED)
		die("memory for the guest's code");
	memcpy(w->code, walk_begin, (size_t)(walk_end - walk_begin));
	__builtin___clear_cache(w->code, (char *)w->code + WALKER_PAGE);
	add_slot(w, 0, CODE_GPA, w->code, WALKER_PAGE, NULL);
}

static void add_vcpu(struct walker *w)
{
	struct kvm_vcpu_init init;
	int bytes = ioctl(w->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	w->vcpu = ioctl(w->vm, KVM_CREATE_VCPU, 0);
	if (bytes < 0 || w->vcpu < 0)
		die("KVM_CREATE_VCPU");
	w->run_bytes = (size_t)bytes;
	w->run = mmap(NULL, w->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, w->vcpu, 0);
	if (w->run == MAP_FAILED)
		die("kvm_run");
	if (ioctl(w->vm, KVM_ARM_PREFERRED_TARGET, &init) ||
	    ioctl(w->vcpu, KVM_ARM_VCPU_INIT, &init))
		die("KVM_ARM_VCPU_INIT");
	w->stats = ioctl(w->vcpu, KVM_GET_STATS_FD, NULL);
	if (w->stats < 0)
		die("KVM_GET_STATS_FD");
}

void walker_new(struct walker *w, bool is_protected, void *memory, size_t bytes,
		const uint64_t *bitmap)
{
	w->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (w->kvm < 0)
		die("/dev/kvm");
	w->vm = create_vm(w->kvm, is_protected);
	if (w->vm < 0)
		die("KVM_CREATE_VM");
	add_code(w);
	add_slot(w, 1, WALKER_GPA, memory, bytes, bitmap);
	add_vcpu(w);
}

void walker_free(struct walker *w)
{
	munmap(w->run, w->run_bytes);
	close(w->stats);
	close(w->vcpu);
	close(w->vm);
	close(w->kvm);
	munmap(w->code, WALKER_PAGE);
}

static void set_register(struct walker *w, size_t offset, uint64_t value)
{
	struct kvm_one_reg reg = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
		      offset / sizeof(uint32_t),
		.addr = (uintptr_t)&value,
	};

	if (ioctl(w->vcpu, KVM_SET_ONE_REG, &reg))
		die("KVM_SET_ONE_REG");
}

void walker_start(struct walker *w, uint64_t pages, bool write)
{
	const uint64_t values[] = { WALKER_GPA, pages, WALKER_PAGE, write, STOP_GPA, 0 };
	uint64_t sum, gpa;

	for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
		set_register(w, offsetof(struct kvm_regs, regs.regs) + i * sizeof(uint64_t),
			     values[i]);
	set_register(w, offsetof(struct kvm_regs, regs.pc), CODE_GPA);
	if (!walker_run(w, &sum, &gpa))
		errx(1, "the guest misses its code");
}

static bool is_missing(const struct kvm_run *run)
{
	return errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
	       kvm_api_memory_fault(run)->flags & KVM_MEMORY_EXIT_FLAG_USERFAULT;
}

bool walker_run(struct walker *w, uint64_t *sum, uint64_t *gpa)
{
	const struct kvm_run *run = w->run;

	if (ioctl(w->vcpu, KVM_RUN, 0)) {
		if (!is_missing(run))
			die("KVM_RUN, exit %u", run->exit_reason);
		*gpa = kvm_api_memory_fault(run)->gpa;
		return false;
	}
	if (run->exit_reason != KVM_EXIT_MMIO || run->mmio.phys_addr != STOP_GPA)
		errx(1, "the guest did not walk: exit %u", run->exit_reason);
	memcpy(sum, run->mmio.data, sizeof(*sum));
	return true;
}

void walker_prefault(struct walker *w, uint64_t gpa, uint64_t bytes)
{
	struct kvm_api_pre_fault range = {
		.gpa = gpa, .size = bytes, .flags = KVM_PRE_FAULT_FLAG_WRITE,
	};

	while (range.size)
		if (ioctl(w->vcpu, KVM_API_PRE_FAULT, &range))
			die("KVM_PRE_FAULT_MEMORY at 0x%lx", (unsigned long)range.gpa);
}

static uint64_t read_stat(int fd, const char *name)
{
	struct kvm_stats_header header;
	struct {
		struct kvm_stats_desc desc;
		char name[64];
	} one;
	uint64_t value;

	if (pread(fd, &header, sizeof(header), 0) != sizeof(header) ||
	    header.name_size > sizeof(one.name))
		die("KVM's statistics");
	for (uint32_t i = 0; i < header.num_desc; i++) {
		size_t bytes = sizeof(one.desc) + header.name_size;

		if (pread(fd, &one, bytes, header.desc_offset + i * bytes) != (ssize_t)bytes)
			die("KVM's statistics");
		if (strncmp(one.desc.name, name, header.name_size))
			continue;
		if (pread(fd, &value, sizeof(value), header.data_offset + one.desc.offset) !=
		    sizeof(value))
			die("KVM's %s", name);
		return value;
	}
	errx(1, "KVM's statistics have no %s", name);
}

uint64_t walker_faults(struct walker *w)
{
	/* A store that stops the guest is a fault, too. */
	return read_stat(w->stats, "pf_taken") - read_stat(w->stats, "mmio_exit_user");
}
