/* SPDX-License-Identifier: MIT */
/*
 * stat.c: the VMM's own counts, KVM's statistics of the VM and of each vCPU, and the
 * pager's counters.  KVM describes its statistics itself, so that a new one of KVM's
 * is printed as it is.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "stat.h"

/* An exit without a name here is printed as its number. */
static const char *const exit_names[VM_EXITS] = {
	[KVM_EXIT_UNKNOWN] = "unknown",
	[KVM_EXIT_IO] = "io",
	[KVM_EXIT_HLT] = "hlt",
	[KVM_EXIT_MMIO] = "mmio",
	[KVM_EXIT_SHUTDOWN] = "shutdown",
	[KVM_EXIT_INTR] = "intr",
	[KVM_EXIT_SYSTEM_EVENT] = "system_event",
	[KVM_EXIT_MEMORY_FAULT] = "memory_fault",
};

static void write_exits(FILE *out, const struct vcpu *vcpu)
{
	const char *comma = "";

	fprintf(out, "\"exits\": {");
	for (unsigned i = 0; i < VM_EXITS; i++) {
		uint64_t count = atomic_load_explicit(&vcpu->exits[i], memory_order_relaxed);

		if (!count)
			continue;
		if (exit_names[i])
			fprintf(out, "%s\"%s\": ", comma, exit_names[i]);
		else
			fprintf(out, "%s\"%u\": ", comma, i);
		fprintf(out, "%llu", (unsigned long long)count);
		comma = ", ";
	}
	fprintf(out, "}");
}

/* ---- KVM's statistics -------------------------------------------------------------- */

/* All that precedes the values, in memory of its own; NULL if it cannot be had. */
static char *read_descriptors(int fd, struct kvm_stats_header *header, size_t *size)
{
	size_t bytes;
	char *text;

	if (pread(fd, header, sizeof(*header), 0) != sizeof(*header))
		return NULL;
	*size = sizeof(struct kvm_stats_desc) + header->name_size;
	bytes = *size * header->num_desc;
	text = malloc(bytes);
	if (!text || pread(fd, text, bytes, header->desc_offset) == (ssize_t)bytes)
		return text;
	free(text);
	return NULL;
}

/* The statistics of FD but histograms, as members of an object. */
static void write_values(FILE *out, int fd)
{
	struct kvm_stats_header header;
	size_t size;
	char *text = read_descriptors(fd, &header, &size);
	const char *comma = "";

	for (unsigned i = 0; text && i < header.num_desc; i++) {
		const struct kvm_stats_desc *desc = (void *)(text + i * size);
		uint64_t value;

		if (desc->size != 1 || pread(fd, &value, sizeof(value), header.data_offset +
					     desc->offset) != sizeof(value))
			continue;
		fprintf(out, "%s\"%.*s\": %llu", comma, (int)header.name_size, desc->name,
			(unsigned long long)value);
		comma = ", ";
	}
	free(text);
}

static void write_kvm(FILE *out, int fd)
{
	fprintf(out, "\"kvm\": {");
	if (fd >= 0)
		write_values(out, fd);
	fprintf(out, "}");
}

void stat_open(struct vm *vm)
{
	vm->stat_fd = ioctl(vm->fd, KVM_GET_STATS_FD, NULL);
	for (unsigned i = 0; i < vm->vcpus; i++)
		vm->vcpu[i].stat_fd = ioctl(vm->vcpu[i].fd, KVM_GET_STATS_FD, NULL);
}

/* ---- all of it ----------------------------------------------------------------------- */

uint64_t stat_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void write_vcpus(FILE *out, const struct vm *vm)
{
	fprintf(out, "\"vcpus\": [");
	for (unsigned i = 0; i < vm->vcpus; i++) {
		fprintf(out, "%s{", i ? ", " : "");
		write_exits(out, &vm->vcpu[i]);
		fprintf(out, ", ");
		write_kvm(out, vm->vcpu[i].stat_fd);
		fprintf(out, "}");
	}
	fprintf(out, "]");
}

char *stat_text(struct vm *vm)
{
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);

	if (!out)
		return NULL;
	fprintf(out, "{\"now_ns\": %llu, \"run_ns\": %llu, ", (unsigned long long)stat_now(),
		(unsigned long long)vm->run_ns);
	write_vcpus(out, vm);
	fprintf(out, ", ");
	write_kvm(out, vm->stat_fd);
	fprintf(out, ", \"pager\": ");
	if (vm->pager_stat)
		vm->pager_stat(out, vm->pager_stat_arg);
	else
		fprintf(out, "null");
	fprintf(out, "}\n");
	if (!fclose(out))
		return text;
	free(text);
	return NULL;
}
