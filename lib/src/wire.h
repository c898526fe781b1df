/* SPDX-License-Identifier: MIT */
/*
 * wire.h: what a VMM with KVM Userfault and its pager say to each other:
 * binary, little-endian, of fixed layout.  infill-protocol(7) documents it for
 * those who do not use the library: the structs here are that ABI.
 *
 *   main socket, VMM to pager   struct wire_hello and its regions, with the fds
 *   main socket, pager to VMM   struct wire_notice, each with its text
 *   a channel, VMM to pager     struct wire_request: a page is wanted, or pages are given up
 *   a channel, pager to VMM     struct wire_answer
 *
 * The fds of the hello, in their order: the bitmaps' memfd; the files of
 * guest memory (guest_memfds); the pager's ends of the channels; the
 * userfaultfd, with WIRE_UFFD.  A channel is a pair of SOCK_SEQPACKET sockets:
 * a thread of the VMM that misses a page asks over it.  The bytes come from a
 * VMM whose guest may be hostile: nothing here touches a file.  Internal.
 */
#ifndef INFILL_WIRE_H
#define INFILL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "infill.h"

#define WIRE_FIRST 0x89u /* the first byte: begins no JSON and no text */
#define WIRE_MAGIC "\x89INFILL\n"
#define WIRE_VERSION 1u
#define WIRE_MAX 65536u        /* bytes of a hello */
#define WIRE_HEAD 16u          /* of it, that say where it ends */
#define WIRE_FILES_MAX 32u
#define WIRE_CHANNELS_MAX 192u
/* One bitmap, the files, the channels, a userfaultfd: fits one SCM_RIGHTS. */
#define WIRE_FDS_MAX (1u + WIRE_FILES_MAX + WIRE_CHANNELS_MAX + 1u)
#define WIRE_NO_FILE UINT32_MAX
#define WIRE_NOTICE_MAX 1024u

/* wire_hello.flags */
#define WIRE_UFFD      (1u << 0) /* the last fd is a userfaultfd */
#define WIRE_PROTECTED (1u << 1) /* a protected VM: a page is not touched once its bit is clear */

struct wire_hello {
	uint8_t magic[8];
	uint32_t version;
	uint32_t bytes;     /* of the whole message */
	uint32_t flags;     /* WIRE_* */
	uint32_t regions, files, channels;
	uint64_t bit_bytes; /* what a bit stands for: the host's page size */
	uint64_t reserved[3];
};

struct wire_region {
	uint64_t gpa;
	uint64_t bytes;
	uint64_t offset;    /* in the image */
	uint64_t hva;       /* in the VMM; 0 for a guest_memfd */
	uint64_t bitmap_at; /* its first bit in the bitmaps' memfd: a byte, page aligned */
	uint64_t file_at;   /* where it begins in its file */
	uint32_t page_size;
	uint32_t backing;   /* enum infill_backing */
	uint32_t file;      /* number of its file; WIRE_NO_FILE: none, the userfaultfd fills it */
	uint32_t reserved;
};

enum wire_notice_type {
	WIRE_SERVED = 1, /* the hello is good; said again by each worker that takes the VM over */
	WIRE_RESIDENT,   /* every bit is clear: the pager is needed no more */
	WIRE_ERROR,      /* no more is filled: error and text */
};

struct wire_notice {
	uint32_t type;
	uint32_t bytes; /* with the text behind it */
	uint32_t error; /* an errno */
	uint32_t reserved;
};

struct wire_request {
	uint64_t sequence; /* not 0, one more each time */
	uint64_t gpa;
	uint64_t bytes;    /* 0: the page at gpa is wanted; else so much is given up from there on */
	uint64_t reserved;
};

struct wire_answer {
	uint64_t sequence; /* of the request; 0: a new worker: ask again, if you wait */
	uint32_t status;   /* 0; EHWPOISON: cannot be read, ever; or why no more is filled */
	uint32_t reserved;
	uint64_t gpa;      /* what is there now, the page asked for among it; what was given up */
	uint64_t bytes;
};

/* A hello that was parsed; REGION as in MEMORY, sorted by hva. */
struct wire_vm {
	struct infill_memory *memory;
	unsigned files, channels;
	bool uffd, protected;
	struct wire_region region[INFILL_MEMORY_REGIONS_MAX];
};

/*
 * Where a hello ends: byte number AT is BYTE; HEAD keeps the first ones.  0: it
 * was the last; -EAGAIN: it goes on; -EPROTO: it cannot become a hello.
 */
int wire_scan(uint8_t head[WIRE_HEAD], size_t at, uint8_t byte);

/*
 * Parse a whole hello.  VM->memory is the caller's; a guest_memfd's region has
 * an hva that no process can have.  0; -ERANGE: a region reaches past
 * IMAGE_BYTES; -EPROTO, or as infill_memory_add(); text by err_set().
 */
int wire_parse(const void *message, size_t length, uint64_t image_bytes, struct wire_vm *vm);

/* Bytes of the bitmap of a region of LENGTH bytes: whole pages of the host. */
uint64_t wire_bitmap_bytes(uint64_t length, uint64_t host_page);

/*
 * Write the hello that describes MEMORY, whose bitmaps follow one another, to
 * TO.  FLAGS are WIRE_*.  FILE gets the guest_memfds to send, each once
 * (WIRE_FILES_MAX at most), and *FILES how many.  Its length, or -ENOSPC.
 */
int wire_write(void *to, size_t size, const struct infill_memory *memory, unsigned channels,
	       uint32_t flags, int *file, unsigned *files);

/* Write a notice to SOCK if it takes it at once. */
void wire_tell(int sock, enum wire_notice_type type, int error, const char *text);

#endif
