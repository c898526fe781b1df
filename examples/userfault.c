/* SPDX-License-Identifier: MIT */
/*
 * userfault.c: what a VMM adds to have its guest's memory, here one guest_memfd,
 * filled by KVM Userfault: before the vCPUs run, in their run loops, and at the
 * end.  The VMM has made the VM, the guest_memfd (GUEST_MEMFD_FLAG_MMAP), its
 * mapping and the vCPUs.  What is between the marks is the README's example, word
 * by word: keep it short.  lib/test/lab/example.c runs it; vmm/engine_pager.c is a
 * whole one.
 */
#include <errno.h>
#include <infill.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

struct pager {
	struct infill_image *image;
	struct infill_memory *memory;
	struct infill_pool *pool;
	struct infill_session *session;
};

int pager_start(struct pager *p, int vm_fd, const char *path, const struct infill_region *ram);
int run_vcpu(struct pager *p, int vcpu_fd, struct kvm_run *run, int (*handle)(struct kvm_run *));
void pager_stop(struct pager *p);

/* README.md begins here */
/* Before the vCPUs run.  RAM names the memslot, its mapping and its guest_memfd. */
int pager_start(struct pager *p, int vm_fd, const char *path, const struct infill_region *ram)
{
	int err = infill_image_open(&p->image, path, NULL);

	if (!err)
		err = infill_memory_new(&p->memory);
	if (!err)
		err = infill_memory_add(p->memory, ram);
	if (!err)
		err = infill_pool_new(&p->pool, NULL);
	if (!err)
		err = infill_session_start_vm(&p->session, p->pool, vm_fd, p->memory, p->image, NULL);
	return err;
}

/* On each vCPU's thread, until HANDLE, which is given all other exits, has it end. */
int run_vcpu(struct pager *p, int vcpu_fd, struct kvm_run *run, int (*handle)(struct kvm_run *))
{
	struct infill_vcpu *vcpu;
	int err = infill_vcpu_new(&vcpu, p->session, vcpu_fd);

	if (err)
		return err;
	while (!err)
		if (!ioctl(vcpu_fd, KVM_RUN, 0))
			err = handle(run);
		else if (errno == EFAULT) /* a page was missing: it is there now */
			err = infill_vcpu_exit(vcpu, run);
		else if (errno != EINTR)
			err = -errno;
	infill_vcpu_free(vcpu);
	return err;
}
/* README.md ends here */

/* When no vCPU runs any more. */
void pager_stop(struct pager *p)
{
	infill_session_stop(p->session);
	infill_pool_free(p->pool);
	infill_memory_free(p->memory);
	infill_image_close(p->image);
}

int main(void)
{
	fprintf(stderr, "userfault: these are functions for a VMM to copy; build/infill-vmm runs one\n");
	return 2;
}
