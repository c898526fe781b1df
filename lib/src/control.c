/* SPDX-License-Identifier: MIT */
/*
 * control.c: requests that are not VMs, both sides.
 *
 *   {"infill":"stat"}   one JSON object and a newline
 *   {"infill":"hdr"}    {"infill":"hdr","bytes":N}, a newline, N bytes of text
 *   {"infill":"mark","mark":M,"vm":ID}
 *                       {"infill":"mark","vm":ID} and a newline
 *   {"infill":"cache"}  {"infill":"cache"} and a newline, with a memfd; the
 *                       connection stays open for the handshake
 *
 * The connection is closed after all but the last, so a client that gets less
 * (the worker died while it wrote) knows it, and asks again.  Fields of the
 * object are ABI: some may be added, none change.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connect.h"
#include "control.h"
#include "err.h"
#include "handshake.h"

#define ANSWER_MS 5000
#define RETRY_MS 20
#define ANSWER_MAX (64u << 20) /* what a client believes */

/* ---- what is said ------------------------------------------------------------------ */

static json_t *number(uint64_t value)
{
	return json_integer((json_int_t)value);
}

static json_t *describe_times(const struct infill_counters *c)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o}", "start_ns", number(c->start_ns), "restored_ns",
			 number(c->restored_ns), "trace_done_ns", number(c->trace_done_ns),
			 "first_work_ns", number(c->first_work_ns), "resident_ns",
			 number(c->resident_ns));
}

/* Demand faults are what latencies are measured of. */
static json_t *describe_latency(const struct infill_counters *c)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "p50_ns", number(c->latency_p50_ns),
			 "p90_ns", number(c->latency_p90_ns), "p99_ns", number(c->latency_p99_ns),
			 "p999_ns", number(c->latency_p999_ns), "max_ns", number(c->latency_max_ns),
			 "count", number(c->latency_count));
}

static void add_counters(json_t *vm, const struct infill_counters *c)
{
	const struct {
		const char *name;
		uint64_t value;
	} field[] = {
		{ "pages", c->pages }, { "missing", c->missing },
		{ "faults", c->faults }, { "installs", c->installs },
		{ "demand_pages", c->demand_pages }, { "trace_pages", c->trace_pages },
		{ "rest_pages", c->rest_pages }, { "bytes", c->bytes },
		{ "zero_pages", c->zero_pages }, { "duplicates", c->duplicates },
		{ "retries", c->retries }, { "poisoned", c->poisoned }, { "removed", c->removed },
		{ "read_bytes", c->read_bytes }, { "slow_reads", c->slow_reads },
		{ "resumes", c->resumes }, { "stall_ns", c->stall_ns },
	};

	for (size_t i = 0; i < sizeof(field) / sizeof(*field); i++)
		json_object_set_new(vm, field[i].name, number(field[i].value));
	json_object_set_new(vm, "latency", describe_latency(c));
	json_object_set_new(vm, "times", describe_times(c));
}

json_t *control_describe(const struct guest *g, bool ended)
{
	struct infill_counters c = { .size = sizeof(c) };
	const char *error = g->vm.failed;
	json_t *vm = json_object();

	if (g->session)
		infill_session_counters(g->session, &c);
	json_object_set_new(vm, "id", number(g->vm.id));
	json_object_set_new(vm, "pid", json_integer(g->vm.pid));
	json_object_set_new(vm, "memory_bytes", number(g->bytes));
	json_object_set_new(vm, "page_size", number(g->page_size));
	json_object_set_new(vm, "shared", json_boolean(g->vm.shared));
	json_object_set_new(vm, "state", json_string(ended ? "ended" : error ? "error" : "running"));
	json_object_set_new(vm, "error", error ? json_string(error) : json_null());
	add_counters(vm, &c);
	return vm;
}

static char *answer_stat(const struct vmset *set)
{
	const struct server *server = set->server;
	json_t *root = json_object(), *vms = json_array();
	char *text;

	for (const struct guest *g = set->first; g; g = g->next)
		json_array_append_new(vms, control_describe(g, false));
	json_array_extend(vms, set->ended);
	json_object_set_new(root, "version", json_string(infill_version()));
	json_object_set_new(root, "image", json_string(server->options.image));
	json_object_set_new(root, "socket", server->options.socket ?
			    json_string(server->options.socket) : json_null());
	json_object_set_new(root, "worker_pid", json_integer(getpid()));
	json_object_set_new(root, "supervisor_pid", json_integer(server->supervisor));
	json_object_set_new(root, "restarts", number(server->restarts));
	json_object_set_new(root, "cache_bytes", set->cache ? number(infill_cache_bytes(set->cache)) :
			    json_null());
	json_object_set_new(root, "vms", vms);
	text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	return text;
}

/* All of the file FD as text. */
static char *read_back(int fd, size_t *length)
{
	off_t size = lseek(fd, 0, SEEK_END);
	char *text = size >= 0 ? malloc((size_t)size + 1) : NULL;

	if (text && pread(fd, text, (size_t)size, 0) == size) {
		*length = (size_t)size;
		text[size] = 0;
		return text;
	}
	free(text);
	return NULL;
}

/* A histogram for each VM, in the order of arrival, with a comment line before it. */
static char *answer_hdr(const struct vmset *set)
{
	int fd = memfd_create("infill-hdr", MFD_CLOEXEC);
	char *body, *text = NULL;
	size_t length;

	if (fd < 0)
		return NULL;
	for (const struct guest *g = set->first; g; g = g->next) {
		if (!g->session)
			continue;
		dprintf(fd, "#[VM = %" PRIu64 ", Pid = %d]\n", g->vm.id, (int)g->vm.pid);
		infill_session_write_latency(g->session, fd);
	}
	body = read_back(fd, &length);
	if (body && asprintf(&text, "{\"infill\":\"hdr\",\"bytes\":%zu}\n%s", length, body) < 0)
		text = NULL;
	free(body);
	close(fd);
	return text;
}

/* ---- writing ------------------------------------------------------------------------ */

static void answer_end(struct control *control, struct answer *a)
{
	struct answer **at = &control->first;

	while (*at != a)
		at = &(*at)->next;
	*at = a->next;
	control->answered(control->arg, a->id, false);
	close(a->sock);
	free(a->text);
	free(a);
}

static void answer_write(struct control *control, struct answer *a)
{
	ssize_t n = send(a->sock, a->text + a->done, a->length - a->done, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		a->done += (size_t)n;
	if (n < 0 || a->done == a->length)
		answer_end(control, a);
}

/* Who takes its answer slowest gives way when there are too many. */
static void answer_bound(struct control *control)
{
	struct answer *a = control->first;
	unsigned count = 1;

	for (; a && a->next; a = a->next)
		count++;
	if (count >= control->set->server->options.max_clients && a)
		answer_end(control, a);
}

/* Write TEXT, which is freed, and a newline, then close SOCK. */
static void answer_begin(struct control *control, uint64_t id, int sock, char *text)
{
	struct answer *a = calloc(1, sizeof(*a));
	int length = a && text ? asprintf(&a->text, "%s%s", text,
					  *text && text[strlen(text) - 1] == '\n' ? "" : "\n") : -1;

	free(text);
	if (length < 0) {
		free(a);
		vm_tell(sock, false, "no memory for the answer: retry");
		close(sock);
		control->answered(control->arg, id, false);
		return;
	}
	answer_bound(control);
	a->id = id;
	a->sock = sock;
	a->length = (size_t)length;
	a->deadline = loop_now() + ANSWER_MS * LOOP_MS;
	a->next = control->first;
	control->first = a;
	control->answering(control->arg, id);
	answer_write(control, a);
}

static void answer_refuse(struct control *control, uint64_t id, int sock, const char *why)
{
	vm_tell(sock, false, why);
	close(sock);
	control->answered(control->arg, id, false);
}

/* The VM whose number is ID; 0: the one that is served.  NULL: text by err_set(). */
static struct guest *find_guest(const struct vmset *set, uint64_t id)
{
	struct guest *found = NULL;
	unsigned served = 0;

	for (struct guest *g = set->first; g; g = g->next) {
		if (!g->session || g->vm.failed || g->finished || (id && g->vm.id != id))
			continue;
		served++;
		found = g;
	}
	if (served == 1)
		return found;
	if (id)
		err_set(-EPROTO, "VM %" PRIu64 ": is not served here", id);
	else if (!served)
		err_set(-EPROTO, "vm: no VM is served");
	else
		err_set(-EPROTO, "vm: is missing, and %u VMs are served: name one of them", served);
	return NULL;
}

static char *answer_mark(const struct vmset *set, const char *json, size_t length)
{
	enum infill_mark mark;
	struct guest *g;
	char *text;
	uint64_t id;

	if (handshake_mark(json, length, &mark, &id))
		return NULL;
	g = find_guest(set, id);
	if (!g || infill_session_mark(g->session, mark))
		return NULL;
	if (asprintf(&text, "{\"infill\":\"mark\",\"vm\":%" PRIu64 "}", g->vm.id) < 0)
		return err_set(-ENOMEM, "no memory for the answer: retry"), NULL;
	return text;
}

static void mark_take(struct control *control, uint64_t id, int sock, const char *json,
		      size_t length)
{
	char *text = answer_mark(control->set, json, length);

	if (text)
		answer_begin(control, id, sock, text);
	else
		answer_refuse(control, id, sock, err_text());
}

/* Small enough to be taken at once by any socket that is read at all. */
static void answer_cache(struct control *control, uint64_t id, int sock)
{
	static char text[] = "{\"infill\":\"cache\"}\n";
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} c = { 0 };
	struct iovec part = { text, sizeof(text) - 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &c,
				  .msg_controllen = sizeof(c.space) };
	ssize_t n;
	int fd;

	if (!control->set->cache) {
		answer_refuse(control, id, sock, control->set->broken ? control->set->broken :
			      "this pager offers no cache: start it with INFILL_SERVER_SHARED");
		return;
	}
	fd = infill_cache_fd(control->set->cache);
	c.align.cmsg_level = SOL_SOCKET;
	c.align.cmsg_type = SCM_RIGHTS;
	c.align.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&c.align), &fd, sizeof(int));
	n = sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	close(sock);
	control->answered(control->arg, id, n == (ssize_t)part.iov_len);
}

void control_take(struct control *control, uint64_t id, int sock, const char *json, size_t length)
{
	struct infill_memory *memory;

	switch (handshake_parse(json, length, 0, &memory)) {
	case HANDSHAKE_STAT:
		answer_begin(control, id, sock, answer_stat(control->set));
		break;
	case HANDSHAKE_HDR:
		answer_begin(control, id, sock, answer_hdr(control->set));
		break;
	case HANDSHAKE_MARK:
		mark_take(control, id, sock, json, length);
		break;
	case HANDSHAKE_CACHE:
		answer_cache(control, id, sock);
		break;
	default:
		infill_memory_free(memory);
		answer_refuse(control, id, sock, err_text());
	}
}

static void on_writable(void *arg, int fd, short revents)
{
	struct control *control = arg;
	struct answer *a = control->first;

	(void)revents;
	while (a && a->sock != fd)
		a = a->next;
	if (a)
		answer_write(control, a);
}

void control_poll(struct control *control, struct loop *loop)
{
	uint64_t now = loop_now();

	for (struct answer *a = control->first, *next; a; a = next) {
		next = a->next;
		if (now >= a->deadline) {
			answer_end(control, a);
			continue;
		}
		loop_until(loop, a->deadline);
		loop_add(loop, a->sock, POLLOUT, on_writable, control);
	}
}

void control_free(struct control *control)
{
	while (control->first)
		answer_end(control, control->first);
}

/* ---- the client's side --------------------------------------------------------------- */

static int wait_for(int sock, short events, uint64_t deadline)
{
	struct pollfd p = { .fd = sock, .events = events };
	uint64_t now = loop_now();
	int ms = deadline == LOOP_NEVER ? -1 : now >= deadline ? 0 : (int)((deadline - now) / LOOP_MS);
	int n = poll(&p, 1, ms);

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	return n || now < deadline ? 0 : -ETIMEDOUT;
}

/* Read until the pager closes.  Bytes, or -errno. */
static ssize_t read_all(int sock, char **text, uint64_t deadline)
{
	size_t length = 0, size = 0;

	for (;;) {
		ssize_t n;
		int rc;

		if (size - length < 4096) {
			char *more = size < ANSWER_MAX ? realloc(*text, size + 65536) : NULL;

			if (!more)
				return -ENOMEM;
			*text = more;
			size += 65536;
		}
		n = recv(sock, *text + length, size - length - 1, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno == ECONNRESET)) {
			(*text)[length] = 0;
			return (ssize_t)length;
		}
		if (n > 0) {
			length += (size_t)n;
			continue;
		}
		rc = errno == EAGAIN ? wait_for(sock, POLLIN, deadline) : errno == EINTR ? 0 : -errno;
		if (rc)
			return rc;
	}
}

static int refused(const char *path, const json_t *line)
{
	return err_set(-EPROTO, "%s: the pager refused: %s", path,
		       json_string_value(json_object_get(line, "what")));
}

/* Is *TEXT a whole answer?  Takes the first line of a histogram off.  0, -EAGAIN: ask again. */
static int check_answer(const char *path, bool hdr, char **text, size_t length)
{
	char *line_end = memchr(*text, '\n', length);
	size_t line = line_end ? (size_t)(line_end - *text) + 1 : 0;
	json_t *root = line ? json_loadb(*text, line, 0, NULL) : NULL;
	int rc = -EAGAIN;

	if (line && !root)
		rc = err_set(-EPROTO, "%s: what listens there is no infill", path);
	else if (json_string_value(json_object_get(root, "what")))
		rc = refused(path, root);
	else if (root && !hdr)
		rc = 0;
	else if (root && length - line >=
		 (uint64_t)json_integer_value(json_object_get(root, "bytes"))) {
		memmove(*text, *text + line, length - line + 1);
		rc = 0;
	}
	json_decref(root);
	return rc;
}

static int ask_once(const char *path, const char *ask, bool hdr, uint64_t deadline, char **text)
{
	int sock = pager_connect(path, deadline);
	ssize_t n;

	if (sock < 0)
		return sock;
	n = send(sock, ask, strlen(ask), MSG_NOSIGNAL);
	/* EPIPE: it was closed already, and why may be there to be read. */
	if (n < 0 && errno != EPIPE)
		n = err_set(-errno, "%s: cannot ask the pager: %m", path);
	else
		n = read_all(sock, text, deadline);
	close(sock);
	if (n == -ETIMEDOUT)
		return err_set(-ETIMEDOUT, "%s: the pager did not answer in time", path);
	if (n < 0)
		return err_set((int)n, "%s: cannot read the pager's answer: %m", path);
	return check_answer(path, hdr, text, (size_t)n);
}

/* Until there is a whole answer: a worker that dies meanwhile is replaced. */
static int ask(const char *path, const char *request, bool hdr, int timeout_ms, char **text)
{
	uint64_t deadline = timeout_ms < 0 ? LOOP_NEVER : loop_now() + (uint64_t)timeout_ms * LOOP_MS;
	int rc;

	for (;;) {
		*text = NULL;
		rc = ask_once(path, request, hdr, deadline, text);
		if (!rc)
			return 0;
		free(*text);
		*text = NULL;
		if (rc != -EAGAIN)
			return rc;
		if (loop_now() >= deadline)
			return err_set(-ETIMEDOUT, "%s: the pager did not answer in time", path);
		usleep(RETRY_MS * 1000);
	}
}

int infill_server_stat(const char *path, bool hdr, int timeout_ms, char **text)
{
	return ask(path, hdr ? "{\"infill\":\"hdr\"}\n" : "{\"infill\":\"stat\"}\n", hdr, timeout_ms,
		   text);
}

int infill_server_mark(const char *path, uint64_t vm, enum infill_mark mark, int timeout_ms)
{
	const char *name = handshake_mark_name(mark);
	char request[100], id[40] = "";
	char *text;
	int rc;

	if (!name)
		return err_set(-EINVAL, "mark %d: use INFILL_MARK_*", (int)mark);
	if (vm)
		snprintf(id, sizeof(id), ",\"vm\":%" PRIu64, vm);
	snprintf(request, sizeof(request), "{\"infill\":\"mark\",\"mark\":\"%s\"%s}\n", name, id);
	rc = ask(path, request, false, timeout_ms, &text);
	if (!rc)
		free(text);
	return rc;
}
