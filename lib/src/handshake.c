/* SPDX-License-Identifier: MIT */
/*
 * handshake.c: Firecracker's userfaultfd handshake, both sides.
 *
 * The form of the messages is ABI: VMMs of all versions speak it.  Fields may
 * be added to what is sent, and only optional ones to what is understood.
 *
 * Two steps keep hostile bytes small: handshake_scan() finds the end of a
 * message and bounds its length and depth without understanding it, then
 * jansson parses exactly those bytes.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connect.h"
#include "err.h"
#include "handshake.h"
#include "loop.h"
#include "memory.h"

#define HUGE_PAGE (2ull << 20)
#define CLIENT_MS 5000 /* a pager answers by then */

static const char *const backing_name[] = {
	[INFILL_BACKING_ANON] = "anon",
	[INFILL_BACKING_SHMEM] = "shmem",
	[INFILL_BACKING_HUGETLB] = "hugetlb",
};

/* ---- where a message ends ------------------------------------------------ */

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static int scan_string(struct handshake_scan *s, char c)
{
	if (s->escape)
		s->escape = false;
	else if (c == '\\')
		s->escape = true;
	else if (c == '"')
		s->string = false;
	return 0;
}

/* The first byte says which kind of message it is. */
static bool is_binary(struct handshake_scan *s, char c)
{
	if (!s->length && (unsigned char)c == WIRE_FIRST)
		s->first = c;
	return (unsigned char)s->first == WIRE_FIRST;
}

static int scan_binary(struct handshake_scan *s, char c)
{
	int rc = wire_scan(s->head, s->length, (uint8_t)c);

	s->whole = !rc;
	return rc == -EAGAIN ? 0 : rc;
}

static int scan_byte(struct handshake_scan *s, char c)
{
	if (is_binary(s, c))
		return scan_binary(s, c);
	if ((unsigned char)c < ' ' && !is_space(c))
		return err_set(-EPROTO, "handshake: byte %zu is a control character", s->length);
	if (s->string)
		return scan_string(s, c);
	if (is_space(c))
		return 0;
	if (s->whole)
		return err_set(-EPROTO, "handshake: byte %zu: bytes follow the message", s->length);
	if (!s->depth && c != '[' && c != '{')
		return err_set(-EPROTO, "handshake: is not JSON: it must be an array of regions");
	if (c == '"') {
		s->string = true;
	} else if (c == '[' || c == '{') {
		if (!s->first)
			s->first = c;
		if (++s->depth > HANDSHAKE_DEPTH)
			return err_set(-EPROTO, "handshake: is nested deeper than %d", HANDSHAKE_DEPTH);
	} else if (c == ']' || c == '}') {
		s->whole = --s->depth == 0;
	}
	return 0;
}

int handshake_scan(struct handshake_scan *scan, const char *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++, scan->length++) {
		int rc;

		if (scan->length >= HANDSHAKE_MAX)
			return err_set(-EPROTO, "handshake: is longer than %d bytes", HANDSHAKE_MAX);
		rc = scan_byte(scan, bytes[i]);
		if (rc)
			return rc;
	}
	if (scan->whole)
		return 0;
	if (scan->length >= HANDSHAKE_MAX)
		return err_set(-EPROTO, "handshake: is longer than %d bytes", HANDSHAKE_MAX);
	return -EAGAIN;
}

/* ---- what a message says --------------------------------------------------- */

/* Read the number NAME of region INDEX.  1: there; 0: not there; -EPROTO. */
static int number(const json_t *region, size_t index, const char *name, uint64_t *value)
{
	const json_t *field = json_object_get(region, name);

	if (!field)
		return 0;
	if (!json_is_integer(field))
		return err_set(-EPROTO, "handshake: region %zu: %s: is not an integer", index, name);
	if (json_integer_value(field) < 0)
		return err_set(-EPROTO, "handshake: region %zu: %s: is negative", index, name);
	*value = (uint64_t)json_integer_value(field);
	return 1;
}

static int need_number(const json_t *region, size_t index, const char *name, uint64_t *value)
{
	int rc = number(region, index, name, value);

	if (rc)
		return rc < 0 ? rc : 0;
	return err_set(-EPROTO, "handshake: region %zu: %s: is missing", index, name);
}

static int parse_page_size(const json_t *json, size_t index, struct infill_region *region)
{
	uint64_t old = 4096;
	int rc;

	/* Both are checked even though one wins: a wrong type is a broken client. */
	rc = number(json, index, "page_size_kib", &old);
	if (rc < 0)
		return rc;
	region->page_size = old;
	rc = number(json, index, "page_size", &region->page_size);
	if (rc < 0)
		return rc;
	if (region->page_size != 4096 && region->page_size != HUGE_PAGE)
		return err_set(-EPROTO, "handshake: region %zu: page_size: is %" PRIu64
			       ": must be 4096 or 2097152 bytes", index, region->page_size);
	return 0;
}

static int parse_backing(const json_t *json, size_t index, struct infill_region *region)
{
	const json_t *field = json_object_get(json, "backing");

	if (!field) {
		region->backing = region->page_size == HUGE_PAGE ? INFILL_BACKING_HUGETLB
								 : INFILL_BACKING_ANON;
		return 0;
	}
	for (unsigned i = 0; json_is_string(field) && i < 3; i++) {
		if (strcmp(json_string_value(field), backing_name[i]))
			continue;
		region->backing = i;
		return 0;
	}
	return err_set(-EPROTO, "handshake: region %zu: backing: must be anon, shmem or hugetlb",
		       index);
}

/* Without a gpa all are 0, which infill_memory_add() knows as not known. */
static int parse_gpa(const json_t *json, size_t index, bool given, struct infill_region *region)
{
	int rc = number(json, index, "gpa_start", &region->gpa);

	if (rc >= 0 && (rc == 1) != given)
		return err_set(-EPROTO, "handshake: region %zu: gpa_start: is given for some regions "
			       "and not for all", index);
	return rc < 0 ? rc : 0;
}

static int parse_region(const json_t *json, size_t index, struct infill_region *region)
{
	int rc;

	if (!json_is_object(json))
		return err_set(-EPROTO, "handshake: region %zu: is not an object", index);
	if (json_is_true(json_object_get(json, "is_guest_memfd")))
		return err_set(-EPROTO, "handshake: region %zu: is_guest_memfd: guest_memfd-backed "
			       "regions cannot be served", index);
	rc = need_number(json, index, "base_host_virt_addr", &region->hva);
	if (!rc)
		rc = need_number(json, index, "size", &region->length);
	if (!rc)
		rc = need_number(json, index, "offset", &region->offset);
	if (!rc)
		rc = parse_page_size(json, index, region);
	if (!rc)
		rc = parse_backing(json, index, region);
	return rc;
}

static int check_region(const struct infill_region *r, size_t index, uint64_t image_bytes)
{
	if (!r->length || r->length % r->page_size)
		return err_set(-EPROTO, "handshake: region %zu: size: is %" PRIu64
			       ": must be a multiple of %" PRIu64 " and not 0",
			       index, r->length, r->page_size);
	if (r->hva % r->page_size)
		return err_set(-EPROTO, "handshake: region %zu: base_host_virt_addr: %#" PRIx64
			       " is not aligned to %" PRIu64, index, r->hva, r->page_size);
	if (r->offset % 4096)
		return err_set(-EPROTO, "handshake: region %zu: offset: %" PRIu64
			       " is not a multiple of 4096", index, r->offset);
	if (r->offset > image_bytes || r->length > image_bytes - r->offset)
		return err_set(-ERANGE, "handshake: region %zu: offset %" PRIu64 " and size %" PRIu64
			       " reach past the image's end at %" PRIu64,
			       index, r->offset, r->length, image_bytes);
	return 0;
}

static int parse_regions(const json_t *array, uint64_t image_bytes, struct infill_memory *memory)
{
	bool gpa_given = json_object_get(json_array_get(array, 0), "gpa_start");
	size_t count = json_array_size(array);

	if (!count)
		return err_set(-EPROTO, "handshake: names no region");
	if (count > INFILL_MEMORY_REGIONS_MAX)
		return err_set(-ENOSPC, "handshake: names %zu regions: %d is the most", count,
			       INFILL_MEMORY_REGIONS_MAX);
	for (size_t i = 0; i < count; i++) {
		struct infill_region region = { .size = sizeof(region) };
		const json_t *json = json_array_get(array, i);
		int rc = parse_region(json, i, &region);

		if (!rc)
			rc = parse_gpa(json, i, gpa_given, &region);
		if (!rc)
			rc = check_region(&region, i, image_bytes);
		if (!rc)
			rc = infill_memory_add(memory, &region);
		if (rc)
			return rc;
	}
	return 0;
}

static int parse_control(const json_t *object)
{
	static const struct {
		const char *name;
		enum handshake_kind kind;
	} known[] = {
		{ "stat", HANDSHAKE_STAT }, { "hdr", HANDSHAKE_HDR }, { "cache", HANDSHAKE_CACHE },
		{ "mark", HANDSHAKE_MARK },
	};
	const char *asked = json_string_value(json_object_get(object, "infill"));

	for (size_t i = 0; asked && i < sizeof(known) / sizeof(*known); i++)
		if (!strcmp(asked, known[i].name))
			return (int)known[i].kind;
	return err_set(-EPROTO, "handshake: is an object: must be an array of regions, or "
		       "{\"infill\": \"stat\"}, \"hdr\", \"mark\" or \"cache\"");
}

static int parse_vm(const json_t *array, uint64_t image_bytes, struct infill_memory **memory)
{
	struct infill_memory *new;
	int rc = infill_memory_new(&new);

	if (rc)
		return rc;
	rc = parse_regions(array, image_bytes, new);
	if (rc) {
		infill_memory_free(new);
		return rc;
	}
	*memory = new;
	return HANDSHAKE_VM;
}

int handshake_parse(const char *json, size_t length, uint64_t image_bytes,
		    struct infill_memory **memory)
{
	struct handshake_scan scan = { 0 };
	json_error_t error;
	json_t *root;
	int rc = handshake_scan(&scan, json, length);

	*memory = NULL;
	if (rc == -EAGAIN)
		return err_set(rc, "handshake: is not whole");
	if (rc)
		return rc;
	root = json_loadb(json, length, JSON_REJECT_DUPLICATES, &error);
	if (!root)
		return err_set(-EPROTO, "handshake: is not JSON: %s at byte %d", error.text,
			       error.position);
	if (json_is_array(root))
		rc = parse_vm(root, image_bytes, memory);
	else
		rc = parse_control(root);
	json_decref(root);
	return rc;
}

static const char *const mark_name[] = {
	[INFILL_MARK_RESTORED] = "restored",
	[INFILL_MARK_FIRST_WORK] = "first_work",
};

#define MARKS (sizeof(mark_name) / sizeof(*mark_name))

const char *handshake_mark_name(enum infill_mark mark)
{
	return (size_t)mark < MARKS ? mark_name[mark] : NULL;
}

static int parse_mark(const json_t *object, enum infill_mark *mark, uint64_t *vm)
{
	const char *name = json_string_value(json_object_get(object, "mark"));
	const json_t *id = json_object_get(object, "vm");
	size_t i = 1;

	while (name && i < MARKS && strcmp(name, mark_name[i]))
		i++;
	if (!name || i == MARKS)
		return err_set(-EPROTO, "mark: must be restored or first_work");
	if (id && (!json_is_integer(id) || json_integer_value(id) <= 0))
		return err_set(-EPROTO, "vm: must be a number that `infill stat` shows");
	*mark = (enum infill_mark)i;
	*vm = (uint64_t)json_integer_value(id);
	return 0;
}

int handshake_mark(const char *json, size_t length, enum infill_mark *mark, uint64_t *vm)
{
	json_t *root = json_loadb(json, length, JSON_REJECT_DUPLICATES, NULL);
	int rc = parse_mark(root, mark, vm);

	json_decref(root);
	return rc;
}

/* ---- the client's side ------------------------------------------------------ */

static bool gpa_known(const struct infill_memory *memory)
{
	for (unsigned i = 0; i < memory->count; i++)
		if (memory->region[i].gpa)
			return true;
	return false;
}

/* The fields of Firecracker 1.14 in its order, then ours, which others ignore. */
static int write_region(char *to, size_t size, const struct infill_region *r, bool gpa)
{
	uint64_t page = r->page_size ? r->page_size : 4096;
	char gpa_start[40] = "";

	if (gpa)
		snprintf(gpa_start, sizeof(gpa_start), ",\"gpa_start\":%" PRIu64, r->gpa);
	return snprintf(to, size,
			"{\"base_host_virt_addr\":%" PRIu64 ",\"size\":%" PRIu64
			",\"offset\":%" PRIu64 ",\"page_size\":%" PRIu64
			",\"page_size_kib\":%" PRIu64 "%s,\"backing\":\"%s\"}",
			r->hva, r->length, r->offset, page, page, gpa_start,
			backing_name[r->backing % 3]);
}

int handshake_write(char *buffer, size_t size, const struct infill_memory *memory)
{
	bool gpa = gpa_known(memory);
	size_t used = 0;

	if (!memory->count)
		return err_set(-EINVAL, "handshake: the memory has no region");
	for (unsigned i = 0; i < memory->count; i++) {
		int n = -1;

		if (used < size)
			buffer[used++] = i ? ',' : '[';
		if (used < size)
			n = write_region(buffer + used, size - used, &memory->region[i], gpa);
		if (n < 0 || (size_t)n >= size - used)
			return err_set(-ENOSPC, "handshake: the regions do not fit in a message");
		used += (size_t)n;
	}
	buffer[used++] = ']'; /* in the place of snprintf()'s NUL */
	return (int)used;
}

static int set_timeouts(int sock, unsigned ms)
{
	struct timeval t = { .tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000 };

	if (setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t)) ||
	    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)))
		return -errno;
	return 0;
}

/* Connect with blocking reads and writes that end after CLIENT_MS. */
static int connect_blocking(const char *path)
{
	int sock = pager_connect(path, loop_now() + CLIENT_MS * LOOP_MS);
	int off = 0, rc;

	if (sock < 0)
		return sock;
	rc = ioctl(sock, FIONBIO, &off) ? -errno : set_timeouts(sock, CLIENT_MS);
	if (!rc)
		return sock;
	close(sock);
	return err_set(rc, "%s: cannot set up the socket: %m", path);
}

/* Send all of DATA, FD (if not negative) with its first byte. */
static int send_all(int sock, const char *data, size_t length, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };

	while (length) {
		struct iovec part = { .iov_base = (void *)data, .iov_len = length };
		struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
		ssize_t n;

		if (fd >= 0) {
			message.msg_control = &control;
			message.msg_controllen = sizeof(control.space);
			control.align.cmsg_level = SOL_SOCKET;
			control.align.cmsg_type = SCM_RIGHTS;
			control.align.cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(&control.align), &fd, sizeof(int));
		}
		n = sendmsg(sock, &message, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		fd = -1;
		data += n;
		length -= (size_t)n;
	}
	return 0;
}

/* What the pager said before it closed, as the reason of RC. */
static int refusal(int sock, int rc)
{
	char line[512];
	ssize_t n = recv(sock, line, sizeof(line) - 1, MSG_DONTWAIT);
	json_t *root = n > 0 ? json_loadb(line, (size_t)n, 0, NULL) : NULL;
	const char *what = json_string_value(json_object_get(root, "what"));

	if (what)
		err_set(rc, "pager: %s", what);
	else
		err_set(rc, "pager: the handshake cannot be sent: %m");
	json_decref(root);
	return rc;
}

int infill_handshake_send_on(int socket, int uffd, const struct infill_memory *memory)
{
	char message[HANDSHAKE_MAX];
	int length, rc;

	length = handshake_write(message, sizeof(message), memory);
	if (length < 0)
		return length;
	rc = send_all(socket, message, (size_t)length, uffd);
	return rc ? refusal(socket, rc) : 0;
}

int infill_handshake_send(const char *path, int uffd, const struct infill_memory *memory)
{
	int rc, sock = connect_blocking(path);

	if (sock < 0)
		return sock;
	rc = infill_handshake_send_on(sock, uffd, memory);
	if (!rc)
		return sock;
	close(sock);
	return rc;
}

/* Receive one answer and the fd that comes with it (-1: none).  Its length or -errno. */
static int receive_answer(int sock, char *line, size_t size, int *fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec part = { .iov_base = line, .iov_len = size };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control.space) };
	struct cmsghdr *c;
	ssize_t n;

	*fd = -1;
	do
		n = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	c = CMSG_FIRSTHDR(&message);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(c), sizeof(int));
	return (int)n;
}

static int ask_cache(int sock, const char *path, int *cache_fd)
{
	static const char ask[] = "{\"infill\":\"cache\"}\n";
	char line[1024];
	json_t *root;
	int n = send_all(sock, ask, sizeof(ask) - 1, -1);

	if (!n || n == -EPIPE) /* closed already: why may be there to be read */
		n = receive_answer(sock, line, sizeof(line), cache_fd);
	if (n < 0)
		return err_set(n, "%s: the pager did not answer: %m", path);
	if (*cache_fd >= 0)
		return 0;
	root = json_loadb(line, (size_t)n, 0, NULL);
	err_set(-EOPNOTSUPP, "%s: the pager gives no cache: %s", path,
		json_is_string(json_object_get(root, "what")) ?
		json_string_value(json_object_get(root, "what")) : "it closed the connection");
	json_decref(root);
	return -EOPNOTSUPP;
}

int infill_handshake_cache(const char *path, int *cache_fd)
{
	int rc, sock = connect_blocking(path);

	*cache_fd = -1;
	if (sock < 0)
		return sock;
	rc = ask_cache(sock, path, cache_fd);
	if (!rc)
		return sock;
	close(sock);
	return rc;
}
