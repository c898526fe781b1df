/* SPDX-License-Identifier: MIT */
/*
 * vcpu.c: one thread for each vCPU, and how it is paused; vcpu.h has the rules.
 * An exit that is the same on all architectures gets a case in handle_exit().
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arch.h"
#include "error.h"
#include "vcpu.h"

/* Used by nothing else in this process. */
#define KICK SIGUSR1

/* Of the vCPU that this thread runs, for the signal's handler. */
static _Thread_local struct kvm_run *volatile own_run;

static void kick_handler(int number)
{
	(void)number;
	if (own_run)
		own_run->immediate_exit = 1;
}

int vcpu_create(struct vm *vm, unsigned index)
{
	struct vcpu *vcpu = &vm->vcpu[index];
	int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	void *run;

	vcpu->vm = vm;
	vcpu->index = index;
	vcpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)index);
	if (size < 0 || vcpu->fd < 0)
		return vmm_error(-errno, "vCPU %u: %m", index);
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (run == MAP_FAILED)
		return vmm_error(-errno, "vCPU %u: mapping its state: %m", index);
	vcpu->run = run;
	vcpu->run_size = (size_t)size;
	return arch_vcpu_init(vcpu);
}

void vcpu_destroy(struct vcpu *vcpu)
{
	if (vcpu->run)
		munmap(vcpu->run, vcpu->run_size);
	if (vcpu->stat_fd >= 0)
		close(vcpu->stat_fd);
	if (vcpu->fd >= 0)
		close(vcpu->fd);
	vcpu->run = NULL;
	vcpu->fd = vcpu->stat_fd = -1;
}

/* ---- exits -------------------------------------------------------------------- */

static enum next handle_exit(struct vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_INTR:
		return NEXT_RUN;
	case KVM_EXIT_FAIL_ENTRY:
		vmm_error(-EIO, "vCPU %u: cannot be entered: hardware says %#llx", vcpu->index,
			  (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		return NEXT_FAIL;
	case KVM_EXIT_INTERNAL_ERROR:
		vmm_error(-EIO, "vCPU %u: KVM gave up: internal error %u", vcpu->index,
			  run->internal.suberror);
		return NEXT_FAIL;
	default:
		return arch_exit(vcpu);
	}
}

/* Park while the VM is paused.  True when it goes on. */
static bool park(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	bool go_on;

	pthread_mutex_lock(&vm->lock);
	vm->parked++;
	pthread_cond_broadcast(&vm->changed);
	while (vm->pause && vm->end == NEXT_RUN)
		pthread_cond_wait(&vm->changed, &vm->lock);
	vm->parked--;
	/* Under the lock: who pauses next sets vm->pause under it before the signal. */
	vcpu->run->immediate_exit = 0;
	go_on = vm->end == NEXT_RUN;
	pthread_mutex_unlock(&vm->lock);
	return go_on;
}

static void count_exit(struct vcpu *vcpu)
{
	unsigned reason = vcpu->run->exit_reason;
	_Atomic uint64_t *count = &vcpu->exits[reason < VM_EXITS ? reason : KVM_EXIT_UNKNOWN];

	/* This thread alone writes. */
	atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

static enum next step(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	int failed = ioctl(vcpu->fd, KVM_RUN, 0);
	bool memory;

	if (failed && errno == EAGAIN)
		return NEXT_RUN; /* it waits for another vCPU to start it */
	count_exit(vcpu);
	if (!failed)
		return handle_exit(vcpu);
	if (errno == EINTR)
		return park(vcpu) ? NEXT_RUN : NEXT_STOP;
	memory = (errno == EFAULT || errno == EHWPOISON) &&
		 vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT;
	/* The way of every missing page: no lock is taken on it that vCPUs share. */
	if (memory && vm->memory_fault)
		return vm->memory_fault(vcpu, vm->memory_fault_arg);
	/* What else fails when the VM has ended is of no interest: its memory may be gone. */
	if (vm_state(vm) != NEXT_RUN)
		return NEXT_STOP;
	if (memory)
		vmm_error(-EFAULT, "vCPU %u: guest memory cannot be accessed", vcpu->index);
	else
		vmm_error(-errno, "vCPU %u: KVM_RUN: %m%s", vcpu->index,
			  errno == ENOMEM && vm->is_protected ?
				  ": the guest's memory is locked: raise RLIMIT_MEMLOCK (ulimit -l)" :
				  "");
	return NEXT_FAIL;
}

/* ---- threads ------------------------------------------------------------------- */

static void *run_thread(void *arg)
{
	struct vcpu *vcpu = arg;
	struct vm *vm = vcpu->vm;
	enum next next = NEXT_RUN;

	own_run = vcpu->run;
	/* A signal from before that line was lost. */
	pthread_mutex_lock(&vm->lock);
	if (vm->pause || vm->end != NEXT_RUN)
		vcpu->run->immediate_exit = 1;
	pthread_mutex_unlock(&vm->lock);
	while (next == NEXT_RUN)
		next = step(vcpu);
	vm_end(vm, next);
	/* For good: whoever waits for all to park must not wait for this one. */
	pthread_mutex_lock(&vm->lock);
	vm->parked++;
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
	return NULL;
}

static int start(struct vcpu *vcpu)
{
	int err = pthread_create(&vcpu->thread, NULL, run_thread, vcpu);

	vcpu->started = !err;
	return err ? vmm_error(-err, "vCPU %u: its thread: %m", vcpu->index) : 0;
}

int vcpus_start(struct vm *vm)
{
	struct sigaction action = { .sa_handler = kick_handler };
	int err = 0;

	sigaction(KICK, &action, NULL);
	for (unsigned i = 0; i < vm->vcpus && !err; i++)
		err = start(&vm->vcpu[i]);
	return err;
}

static void kick_all(const struct vm *vm)
{
	for (unsigned i = 0; i < vm->vcpus; i++)
		if (vm->vcpu[i].started)
			pthread_kill(vm->vcpu[i].thread, KICK);
}

void vcpus_pause(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->pause = true;
	pthread_mutex_unlock(&vm->lock);
	kick_all(vm);
	pthread_mutex_lock(&vm->lock);
	/* One that waits for a page may not park before vcpus_stop(). */
	while (vm->parked < vm->vcpus && vm->end == NEXT_RUN)
		pthread_cond_wait(&vm->changed, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

void vcpus_resume(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->pause = false;
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
}

void vcpus_stop(struct vm *vm)
{
	/* They see vm->end when they park. */
	vcpus_resume(vm);
	kick_all(vm);
	if (vm->let_go)
		vm->let_go(vm->let_go_arg);
	for (unsigned i = 0; i < vm->vcpus; i++)
		if (vm->vcpu[i].started)
			pthread_join(vm->vcpu[i].thread, NULL);
}
