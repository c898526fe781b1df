/* SPDX-License-Identifier: MIT */
/*
 * vm.c: a VM's life from KVM_CREATE_VM to the last close().  What is particular
 * to an architecture is behind arch.h; what vCPU threads do is in vcpu.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "arch.h"
#include "error.h"
#include "memory.h"
#include "stat.h"
#include "vcpu.h"
#include "vm.h"

static void reset(struct vm *vm)
{
	memset(vm, 0, sizeof(*vm));
	vm->kvm = vm->fd = vm->stat_fd = vm->end_fd = -1;
	for (unsigned i = 0; i < REGIONS_MAX; i++)
		vm->region[i].fd = -1;
	for (unsigned i = 0; i < VCPUS_MAX; i++)
		vm->vcpu[i].fd = vm->vcpu[i].stat_fd = -1;
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->changed, NULL);
}

static int open_kvm(struct vm *vm)
{
	long type;

	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		return vmm_error(-errno, "/dev/kvm: %m");
	if (ioctl(vm->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return vmm_error(-EPROTO, "/dev/kvm: not the API that is known: %d",
				 KVM_API_VERSION);
	type = arch_vm_type(vm->kvm, vm);
	if (type < 0)
		return (int)type;
	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, type);
	if (vm->fd < 0 && vm->is_protected)
		return vmm_error(-errno, "/dev/kvm: creating a protected VM, which takes a host with kvm-arm.mode=protected: %m");
	return vm->fd < 0 ? vmm_error(-errno, "/dev/kvm: creating a VM: %m") : 0;
}

/* Before anything is allocated: what a person asked for may be too much, or uneven. */
static int check(const struct vm *vm)
{
	const uint64_t granule = memory_granule(vm->backing);

	for (unsigned i = 0; i < vm->regions; i++)
		if (vm->region[i].bytes % granule || !vm->region[i].bytes)
			return vmm_error(-EINVAL, "memory: %llu bytes: give a multiple of %llu",
					 (unsigned long long)vm->memory_bytes,
					 (unsigned long long)granule);
	return 0;
}

static int create_memory(struct vm *vm, const struct vm_options *options)
{
	int err = 0;

	for (unsigned i = 0; i < vm->regions && !err; i++) {
		struct region *region = &vm->region[i];

		region->slot = i;
		err = options->map ? options->map(vm, region, options->map_arg) :
				     memory_map(vm, region);
		if (!err)
			err = memory_set_slot(vm, region);
	}
	return err;
}

static int create_vcpus(struct vm *vm, unsigned count)
{
	int err = 0;

	for (unsigned i = 0; i < count && !err; i++) {
		err = vcpu_create(vm, i);
		vm->vcpus = i + 1;
	}
	return err;
}

int vm_create(struct vm *vm, const struct vm_options *options)
{
	int err;

	reset(vm);
	vm->memory_bytes = options->memory_bytes;
	vm->backing = options->backing;
	vm->is_protected = options->is_protected;
	vm->protectable = options->protectable;
	vm->saved = options->saved;
	vm->end_fd = eventfd(0, EFD_CLOEXEC);
	if (vm->end_fd < 0)
		return vmm_error(-errno, "eventfd: %m");
	err = arch_layout(vm);
	if (!err)
		err = check(vm);
	if (!err)
		err = open_kvm(vm);
	if (!err)
		err = arch_vm_init(vm);
	if (!err)
		err = serial_new(&vm->serial, vm, STDOUT_FILENO);
	if (!err)
		err = create_memory(vm, options);
	if (!err)
		err = create_vcpus(vm, options->vcpus);
	return err ? err : arch_vm_ready(vm);
}

int vm_start(struct vm *vm)
{
	int err;

	stat_open(vm);
	vm->run_ns = stat_now();
	err = vcpus_start(vm);
	return err ? err : serial_start(vm->serial, STDIN_FILENO);
}

void vm_pause(struct vm *vm)
{
	serial_hold(vm->serial, true);
	vcpus_pause(vm);
}

void vm_resume(struct vm *vm)
{
	vcpus_resume(vm);
	serial_hold(vm->serial, false);
}

void vm_end(struct vm *vm, enum next end)
{
	const uint64_t one = 1;

	pthread_mutex_lock(&vm->lock);
	if (vm->end == NEXT_RUN)
		vm->end = end;
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
	/* Only fails at 2^64 - 1 ends. */
	(void)!write(vm->end_fd, &one, sizeof(one));
}

enum next vm_state(struct vm *vm)
{
	enum next end;

	pthread_mutex_lock(&vm->lock);
	end = vm->end;
	pthread_mutex_unlock(&vm->lock);
	return end;
}

void vm_stop(struct vm *vm)
{
	vm_end(vm, NEXT_STOP);
	if (vm->serial)
		serial_hold(vm->serial, true);
	vcpus_stop(vm);
	serial_free(vm->serial);
	vm->serial = NULL;
}

void vm_destroy(struct vm *vm)
{
	for (unsigned i = 0; i < vm->vcpus; i++)
		vcpu_destroy(&vm->vcpu[i]);
	if (vm->stat_fd >= 0)
		close(vm->stat_fd);
	arch_vm_free(vm);
	if (vm->fd >= 0)
		close(vm->fd);
	for (unsigned i = 0; i < REGIONS_MAX; i++)
		memory_unmap(&vm->region[i]);
	if (vm->kvm >= 0)
		close(vm->kvm);
	if (vm->end_fd >= 0)
		close(vm->end_fd);
}

void *vm_memory(struct vm *vm, uint64_t gpa, uint64_t length)
{
	for (unsigned i = 0; i < vm->regions; i++) {
		const struct region *region = &vm->region[i];

		if (gpa >= region->gpa && length <= region->bytes &&
		    gpa - region->gpa <= region->bytes - length)
			return region->hva + (gpa - region->gpa);
	}
	return NULL;
}
