/* SPDX-License-Identifier: MIT */
/* guest.c: the code and the registers of a guest of a few instructions. */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm_api.h"

#define CODE_BYTES 0x10000u
#define DONE_GPA 0x20000u /* no memory: a store there ends the visit */

static int failed(const char *what)
{
	fprintf(stderr, "guest: %s: %m\n", what);
	return -errno;
}

/*
 * For each of COUNT pages: address = base + index * 4096; sum += word 0;
 * word[slot]++; index = (index + step) & mask.  Then a store to DONE_GPA.
 */
extern const char guest_code_begin[], guest_code_end[];

#ifdef __x86_64__

/* ebx base, esi index, edi step, ebp mask, ecx count, edx slot's offset, eax sum */
__asm__(".pushsection .rodata\n"
	".globl guest_code_begin, guest_code_end\n"
	"guest_code_begin:\n"
	".code32\n"
	"1:	movl %esi, %esp\n"
	"	shll $12, %esp\n"
	"	addl %ebx, %esp\n"
	"	addl (%esp), %eax\n"
	"	incl (%esp,%edx)\n"
	"	addl %edi, %esi\n"
	"	andl %ebp, %esi\n"
	"	decl %ecx\n"
	"	jnz 1b\n"
	"	movl %eax, 0x20000\n"
	"2:	jmp 2b\n"
	".code64\n"
	"guest_code_end:\n"
	".popsection\n");

static struct kvm_segment flat(uint8_t type)
{
	return (struct kvm_segment){ .limit = UINT32_MAX, .type = type, .present = 1, .db = 1,
				     .s = 1, .g = 1 };
}

static int set_registers(struct guest_vcpu *v, uint32_t pages, uint32_t start, uint32_t step,
			 uint32_t slot)
{
	const struct kvm_regs regs = {
		.rip = GUEST_CODE_GPA, .rflags = 2, .rbx = GUEST_MEMORY_GPA, .rsi = start,
		.rdi = step, .rbp = pages - 1, .rcx = pages, .rdx = 16 + 4 * slot,
	};
	struct kvm_sregs sregs;

	if (ioctl(v->fd, KVM_GET_SREGS, &sregs))
		return failed("KVM_GET_SREGS");
	sregs.cs = flat(11);
	sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = flat(3);
	sregs.cr0 |= 1; /* protected mode, no paging */
	if (ioctl(v->fd, KVM_SET_SREGS, &sregs) || ioctl(v->fd, KVM_SET_REGS, &regs))
		return failed("registers");
	return 0;
}

static int set_check(struct guest_vcpu *v, const struct guest_check *c)
{
	(void)v;
	(void)c;
	return -ENOSYS;
}

static int init_vcpu(struct guest_vcpu *v, const struct guest *guest)
{
	(void)v;
	(void)guest;
	return 0;
}

#elif defined(__aarch64__)

/* x0 base, w1 index, w2 step, w3 mask, w4 count, x5 slot's offset, w6 sum */
__asm__(".pushsection .rodata\n"
	".globl guest_code_begin, guest_code_end\n"
	".balign 4\n"
	"guest_code_begin:\n"
	"1:	add x7, x0, x1, lsl #12\n"
	"	ldr w8, [x7]\n"
	"	add w6, w6, w8\n"
	"	ldr w8, [x7, x5]\n"
	"	add w8, w8, #1\n"
	"	str w8, [x7, x5]\n"
	"	add w1, w1, w2\n"
	"	and w1, w1, w3\n"
	"	subs w4, w4, #1\n"
	"	b.ne 1b\n"
	"2:	mov x7, #0x20000\n"
	"	str w6, [x7]\n"
	"3:	b 3b\n"
	/*
	 * The same with each word compared: w9 factor, w10 multiplier, w11 and w12
	 * where zeros begin and end, w13 visits; w8 is what the word must be, w15
	 * what it is more than the one before, w16 its number.
	 */
	".globl guest_code_verify\n"
	"guest_code_verify:\n"
	"	add x7, x0, x1, lsl #12\n"
	"	mov w15, #1\n"
	"	madd w8, w1, w10, w15\n"
	"	cmp w1, w11\n"
	"	b.lo 4f\n"
	"	cmp w1, w12\n"
	"	b.hs 4f\n"
	"	mov w8, #0\n"
	"	mov w15, #0\n"
	"4:	mov w16, #0\n"
	"5:	sub w17, w16, #4\n"
	"	cmp w17, #4\n"
	"	b.lo 6f\n"
	"	ldr w17, [x7, x16, lsl #2]\n"
	"	cmp w17, w8\n"
	"	cinc w6, w6, ne\n"
	"6:	add w8, w8, w15\n"
	"	add w16, w16, #1\n"
	"	cmp w16, #1024\n"
	"	b.ne 5b\n"
	"	sub w8, w8, w15, lsl #10\n"
	"	lsr w17, w5, #2\n"
	"	madd w8, w17, w15, w8\n"
	"	add w8, w8, w13\n"
	"	ldr w17, [x7, x5]\n"
	"	cmp w17, w8\n"
	"	cinc w6, w6, ne\n"
	"	add w17, w17, #1\n"
	"	str w17, [x7, x5]\n"
	"	madd w1, w1, w9, w2\n"
	"	and w1, w1, w3\n"
	"	subs w4, w4, #1\n"
	"	b.ne guest_code_verify\n"
	"	b 2b\n"
	"guest_code_end:\n"
	".popsection\n");

extern const char guest_code_verify[];

static int set(struct guest_vcpu *v, unsigned number, uint64_t value)
{
	struct kvm_one_reg reg = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
		      (offsetof(struct kvm_regs, regs) / sizeof(uint32_t) + 2 * number),
		.addr = (uintptr_t)&value,
	};

	return ioctl(v->fd, KVM_SET_ONE_REG, &reg);
}

#define PC 32

static int set_registers(struct guest_vcpu *v, uint32_t pages, uint32_t start, uint32_t step,
			 uint32_t slot)
{
	const uint64_t value[] = { GUEST_MEMORY_GPA, start, step, pages - 1, pages, 16 + 4 * slot, 0 };

	for (unsigned i = 0; i < sizeof(value) / sizeof(value[0]); i++)
		if (set(v, i, value[i]))
			return failed("registers");
	return set(v, PC, GUEST_CODE_GPA) ? failed("registers") : 0;
}

static int set_check(struct guest_vcpu *v, const struct guest_check *c)
{
	const uint64_t value[] = { c->factor, c->multiplier, c->zero_from, c->zero_to, c->visits };
	int ret = set_registers(v, c->pages, c->start, c->step, c->slot);

	for (unsigned i = 0; i < sizeof(value) / sizeof(value[0]) && !ret; i++)
		ret = set(v, 9 + i, value[i]) ? failed("registers") : 0;
	if (ret)
		return ret;
	ret = set(v, PC, GUEST_CODE_GPA + (uint64_t)(guest_code_verify - guest_code_begin));
	return ret ? failed("registers") : 0;
}

static int init_vcpu(struct guest_vcpu *v, const struct guest *guest)
{
	struct kvm_vcpu_init init;

	if (ioctl(guest->vm, KVM_ARM_PREFERRED_TARGET, &init) || ioctl(v->fd, KVM_ARM_VCPU_INIT, &init))
		return failed("KVM_ARM_VCPU_INIT");
	return 0;
}

#endif

static int add_code(struct guest *g)
{
	struct kvm_userspace_memory_region region = {
		.slot = GUEST_CODE_SLOT, .guest_phys_addr = GUEST_CODE_GPA, .memory_size = CODE_BYTES,
	};

	g->code = mmap(NULL, CODE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g->code == MAP_FAILED)
		return failed("mmap");
	memcpy(g->code, guest_code_begin, (size_t)(guest_code_end - guest_code_begin));
	__builtin___clear_cache((char *)g->code, (char *)g->code + CODE_BYTES);
	region.userspace_addr = (uintptr_t)g->code;
	return ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &region) ? failed("memslot") : 0;
}

int guest_new(struct guest *g, bool protected)
{
	*g = (struct guest){ .kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), .vm = -1, .code = MAP_FAILED };
	if (g->kvm < 0)
		return failed("/dev/kvm");
	g->vm = ioctl(g->kvm, KVM_CREATE_VM, protected ? KVM_VM_TYPE_ARM_PROTECTED : 0ul);
	if (g->vm < 0)
		return failed("KVM_CREATE_VM");
	return add_code(g);
}

void guest_free(struct guest *g)
{
	if (g->vm >= 0)
		close(g->vm);
	if (g->kvm >= 0)
		close(g->kvm);
	if (g->code != MAP_FAILED)
		munmap(g->code, CODE_BYTES);
}

int guest_vcpu_new(struct guest_vcpu *v, const struct guest *g, unsigned id)
{
	*v = (struct guest_vcpu){ .fd = ioctl(g->vm, KVM_CREATE_VCPU, id) };
	v->run_size = ioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (v->fd < 0 || v->run_size < 0)
		return failed("KVM_CREATE_VCPU");
	v->run = mmap(NULL, (size_t)v->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED)
		return failed("kvm_run");
	return init_vcpu(v, g);
}

void guest_vcpu_free(struct guest_vcpu *v)
{
	if (v->run && v->run != MAP_FAILED)
		munmap(v->run, (size_t)v->run_size);
	if (v->fd >= 0)
		close(v->fd);
}

/* The store that ended the last visit is completed by the next KVM_RUN. */
static void complete_store(struct guest_vcpu *v)
{
	if (v->run->exit_reason != KVM_EXIT_MMIO)
		return;
	v->run->immediate_exit = 1;
	ioctl(v->fd, KVM_RUN, 0);
	v->run->immediate_exit = 0;
}

int guest_visit(struct guest_vcpu *v, uint32_t pages, uint32_t start, uint32_t step, uint32_t slot)
{
	complete_store(v);
	return set_registers(v, pages, start, step, slot);
}

int guest_verify(struct guest_vcpu *v, const struct guest_check *check)
{
	complete_store(v);
	return set_check(v, check);
}

bool guest_done(struct guest_vcpu *v, uint32_t *sum)
{
	const struct kvm_run *run = v->run;

	if (run->exit_reason != KVM_EXIT_MMIO || run->mmio.phys_addr != DONE_GPA || !run->mmio.is_write)
		return false;
	memcpy(sum, run->mmio.data, sizeof(*sum));
	return true;
}
