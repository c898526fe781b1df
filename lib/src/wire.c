/* SPDX-License-Identifier: MIT */
/*
 * wire.c: the binary messages of infill-protocol(7), both sides.  Their form
 * is ABI.  What is not known is refused: an old pager must not serve half of
 * what a new VMM asks for.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "err.h"
#include "memory.h"
#include "wire.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the messages are little-endian");
_Static_assert(sizeof(struct wire_hello) == 64 && sizeof(struct wire_region) == 64, "ABI");
_Static_assert(sizeof(struct wire_request) == 32 && sizeof(struct wire_answer) == 32, "ABI");
_Static_assert(sizeof(struct wire_notice) == 16, "ABI");

/* No process has an address there, so a region can be known by it. */
#define NO_HVA (1ull << 63)
#define FLAGS (WIRE_UFFD | WIRE_PROTECTED)

/* ---- where a hello ends ---------------------------------------------------------- */

int wire_scan(uint8_t head[WIRE_HEAD], size_t at, uint8_t byte)
{
	uint32_t bytes;

	if (at < WIRE_HEAD)
		head[at] = byte;
	if (at < 8 && byte != (uint8_t)WIRE_MAGIC[at])
		return err_set(-EPROTO, "hello: byte %zu: is not that of infill's magic", at);
	if (at < WIRE_HEAD - 1)
		return -EAGAIN;
	memcpy(&bytes, head + 12, sizeof(bytes));
	if (at == WIRE_HEAD - 1 && (bytes < sizeof(struct wire_hello) || bytes > WIRE_MAX))
		return err_set(-EPROTO, "hello: bytes: is %u: must be %zu to %u", bytes,
			       sizeof(struct wire_hello), WIRE_MAX);
	if (at >= bytes)
		return err_set(-EPROTO, "hello: byte %zu: bytes follow the message", at);
	return at == bytes - 1 ? 0 : -EAGAIN;
}

/* ---- what it says ------------------------------------------------------------------ */

static int check_counts(const struct wire_hello *h, size_t length)
{
	if (!h->regions || h->regions > INFILL_MEMORY_REGIONS_MAX)
		return err_set(-EPROTO, "hello: regions: is %u: must be 1 to %d", h->regions,
			       INFILL_MEMORY_REGIONS_MAX);
	if (h->files > WIRE_FILES_MAX)
		return err_set(-EPROTO, "hello: files: is %u: at most %u", h->files, WIRE_FILES_MAX);
	if (!h->channels || h->channels > WIRE_CHANNELS_MAX)
		return err_set(-EPROTO, "hello: channels: is %u: must be 1 to %u", h->channels,
			       WIRE_CHANNELS_MAX);
	if (h->bytes != length || length != sizeof(*h) + h->regions * sizeof(struct wire_region))
		return err_set(-EPROTO, "hello: bytes: is %u, of %zu, for %u regions of %zu", h->bytes,
			       length, h->regions, sizeof(struct wire_region));
	return 0;
}

static int check_hello(const struct wire_hello *h, size_t length)
{
	long host_page = sysconf(_SC_PAGESIZE);

	if (memcmp(h->magic, WIRE_MAGIC, sizeof(h->magic)))
		return err_set(-EPROTO, "hello: magic: is not infill's");
	if (h->version != WIRE_VERSION)
		return err_set(-EPROTO, "hello: version: is %u: this pager speaks %u", h->version,
			       WIRE_VERSION);
	if (h->flags & ~FLAGS)
		return err_set(-EPROTO, "hello: flags: %#x is not known", h->flags & ~FLAGS);
	for (unsigned i = 0; i < 3; i++)
		if (h->reserved[i])
			return err_set(-EPROTO, "hello: reserved[%u]: must be 0", i);
	if (h->bit_bytes != (uint64_t)host_page)
		return err_set(-EPROTO, "hello: bit_bytes: is %" PRIu64 ": a bit is a page of the "
			       "host, %ld bytes", h->bit_bytes, host_page);
	return check_counts(h, length);
}

static int bad(unsigned i, const char *what)
{
	return err_set(-EPROTO, "hello: region %u: %s", i, what);
}

/* What depends on whether it is filled through a file or by the userfaultfd. */
static int check_backing(const struct wire_hello *h, const struct wire_region *r, unsigned i)
{
	if (r->backing > INFILL_BACKING_GUEST_MEMFD)
		return bad(i, "backing: is not known");
	if (h->flags & WIRE_PROTECTED && r->backing >= INFILL_BACKING_HUGETLB)
		return bad(i, "backing: a protected VM has anonymous memory and shmem only");
	if (r->backing == INFILL_BACKING_GUEST_MEMFD) {
		if (r->file >= h->files)
			return bad(i, "file: there is none of that number");
		if (r->file_at % h->bit_bytes || r->file_at > INT64_MAX - r->bytes)
			return bad(i, "file_at: is no multiple of the host's page size, or too large");
		return r->hva ? bad(i, "hva: must be 0 for a guest_memfd") : 0;
	}
	if (r->file != WIRE_NO_FILE || r->file_at)
		return bad(i, "file: only a guest_memfd has one: the userfaultfd fills other memory");
	if (!(h->flags & WIRE_UFFD))
		return bad(i, "backing: needs a userfaultfd, and none is announced");
	return r->hva && r->hva < NO_HVA ? 0 : bad(i, "hva: is no address of a process");
}

static int check_region(const struct wire_hello *h, const struct wire_region *r, unsigned i,
			uint64_t image_bytes)
{
	if (r->reserved)
		return bad(i, "reserved: must be 0");
	if ((r->page_size != 4096 && r->page_size != 2 << 20) || r->page_size % h->bit_bytes)
		return bad(i, "page_size: must be 4096 or 2097152, and a multiple of the host's");
	if (!r->bytes || r->bytes % r->page_size)
		return bad(i, "bytes: must be a multiple of page_size and not 0");
	if (r->offset > image_bytes || r->bytes > image_bytes - r->offset)
		return err_set(-ERANGE, "hello: region %u: offset %" PRIu64 " and bytes %" PRIu64
			       " reach past the image's end at %" PRIu64, i, r->offset, r->bytes,
			       image_bytes);
	if (r->gpa % r->page_size || r->offset % 4096)
		return bad(i, "gpa, offset: must be multiples of page_size and of 4096");
	if (r->gpa >= NO_HVA || r->bytes >= NO_HVA - r->gpa)
		return bad(i, "gpa: is too large");
	if (r->bitmap_at % h->bit_bytes ||
	    r->bitmap_at > INT64_MAX - wire_bitmap_bytes(r->bytes, h->bit_bytes))
		return bad(i, "bitmap_at: is no multiple of the host's page size, or too large");
	return check_backing(h, r, i);
}

/* infill_memory_add() takes gpas that are all 0 for not known; here they are. */
static int check_gpa(const struct infill_memory *memory, const struct wire_region *r, unsigned i)
{
	for (unsigned k = 0; k < memory->count; k++)
		if (memory->region[k].gpa < r->gpa + r->bytes &&
		    r->gpa < memory->region[k].gpa + memory->region[k].length)
			return bad(i, "overlaps another in gpa");
	return 0;
}

static int add_region(const struct wire_hello *h, const struct wire_region *r, unsigned i,
		      uint64_t image_bytes, struct infill_memory *memory)
{
	struct infill_region region = {
		.size = sizeof(region), .gpa = r->gpa, .length = r->bytes, .offset = r->offset,
		.hva = r->backing == INFILL_BACKING_GUEST_MEMFD ? NO_HVA | r->gpa : r->hva,
		.page_size = r->page_size, .backing = r->backing,
	};
	int rc = check_region(h, r, i, image_bytes);

	if (!rc)
		rc = check_gpa(memory, r, i);
	return rc ? rc : infill_memory_add(memory, &region);
}

/* The regions in the order of MEMORY. */
static void sort_regions(struct wire_vm *vm, const struct wire_region *from, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		for (unsigned k = 0; k < count; k++)
			if (from[k].gpa == vm->memory->region[i].gpa)
				vm->region[i] = from[k];
}

int wire_parse(const void *message, size_t length, uint64_t image_bytes, struct wire_vm *vm)
{
	struct wire_region region[INFILL_MEMORY_REGIONS_MAX];
	struct wire_hello h;
	int rc;

	memset(vm, 0, sizeof(*vm));
	if (length < sizeof(h))
		return err_set(-EPROTO, "hello: has %zu bytes: %zu are the least", length, sizeof(h));
	memcpy(&h, message, sizeof(h));
	rc = check_hello(&h, length);
	if (!rc)
		rc = infill_memory_new(&vm->memory);
	if (rc)
		return rc;
	memcpy(region, (const char *)message + sizeof(h), h.regions * sizeof(*region));
	for (unsigned i = 0; i < h.regions && !rc; i++)
		rc = add_region(&h, &region[i], i, image_bytes, vm->memory);
	if (rc) {
		infill_memory_free(vm->memory);
		vm->memory = NULL;
		return rc;
	}
	vm->files = h.files;
	vm->channels = h.channels;
	vm->uffd = h.flags & WIRE_UFFD;
	vm->protected = h.flags & WIRE_PROTECTED;
	sort_regions(vm, region, h.regions);
	return 0;
}

uint64_t wire_bitmap_bytes(uint64_t length, uint64_t host_page)
{
	uint64_t bits = (length + host_page - 1) / host_page, per_page = 8 * host_page;

	return (bits + per_page - 1) / per_page * host_page;
}

/* ---- the VMM's side ------------------------------------------------------------------ */

/* The number of FD among the files; -ENOSPC. */
static int number_of(int fd, int *file, unsigned *files)
{
	for (unsigned i = 0; i < *files; i++)
		if (file[i] == fd)
			return (int)i;
	if (*files == WIRE_FILES_MAX)
		return err_set(-ENOSPC, "hello: more than %u guest_memfds", WIRE_FILES_MAX);
	file[*files] = fd;
	return (int)(*files)++;
}

static int write_region(struct wire_region *to, const struct infill_region *r, int *file,
			unsigned *files)
{
	int number;

	*to = (struct wire_region){
		.gpa = r->gpa, .bytes = r->length, .offset = r->offset, .hva = r->hva,
		.page_size = (uint32_t)r->page_size, .backing = r->backing, .file = WIRE_NO_FILE,
	};
	if (r->backing != INFILL_BACKING_GUEST_MEMFD)
		return 0;
	number = number_of(r->guest_memfd, file, files);
	if (number < 0)
		return number;
	to->hva = 0;
	to->file = (uint32_t)number;
	to->file_at = r->guest_memfd_offset;
	return 0;
}

int wire_write(void *to, size_t size, const struct infill_memory *memory, unsigned channels,
	       uint32_t flags, int *file, unsigned *files)
{
	uint64_t host_page = (uint64_t)sysconf(_SC_PAGESIZE), at = 0;
	struct wire_hello h = {
		.magic = WIRE_MAGIC, .version = WIRE_VERSION, .flags = flags,
		.regions = memory->count, .channels = channels, .bit_bytes = host_page,
	};
	struct wire_region *region = (struct wire_region *)((char *)to + sizeof(h));

	h.bytes = (uint32_t)(sizeof(h) + memory->count * sizeof(*region));
	if (h.bytes > size)
		return err_set(-ENOSPC, "hello: %u regions do not fit", memory->count);
	*files = 0;
	for (unsigned i = 0; i < memory->count; i++) {
		int rc = write_region(&region[i], &memory->region[i], file, files);

		if (rc)
			return rc;
		region[i].bitmap_at = at;
		at += wire_bitmap_bytes(memory->region[i].length, host_page);
	}
	h.files = *files;
	memcpy(to, &h, sizeof(h));
	return (int)h.bytes;
}

/* ---- notices ------------------------------------------------------------------------- */

void wire_tell(int sock, enum wire_notice_type type, int error, const char *text)
{
	size_t length = strnlen(text, WIRE_NOTICE_MAX - sizeof(struct wire_notice));
	struct wire_notice notice = {
		.type = type, .bytes = (uint32_t)(sizeof(notice) + length),
		.error = (uint32_t)(error < 0 ? -error : error),
	};
	struct iovec part[] = { { &notice, sizeof(notice) }, { (void *)(uintptr_t)text, length } };
	struct msghdr message = { .msg_iov = part, .msg_iovlen = 2 };

	if (sock >= 0)
		(void)!sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}
