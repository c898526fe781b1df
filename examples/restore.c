/* SPDX-License-Identifier: MIT */
/*
 * restore.c: a VMM in 20 lines that restores its guest's memory lazily.  What a
 * real one does with KVM is a comment here; the "guest" adds up all of its
 * memory.  What is between the marks is the README's example, word by word: keep
 * it short, and keep it compiling.
 *
 *     cc restore.c $(pkg-config --cflags --libs libinfill) && ./a.out MEMORY_FILE [TRACE]
 */
#include <infill.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	const char *path = argv[1], *trace = argc == 3 ? argv[2] : NULL;
	uint64_t sum = 0;

	if (argc != 2 && argc != 3) {
		fprintf(stderr, "restore: usage: restore MEMORY_FILE [TRACE]\n");
		return 2;
	}
	/* README.md begins here */
	struct infill_image *image = NULL;
	struct infill_memory *memory = NULL;
	struct infill_pool *pool = NULL;
	struct infill_session *session = NULL;
	struct infill_region ram = { .size = sizeof(ram) };
	struct infill_session_options options = { .size = sizeof(options), .trace = trace };

	if (infill_image_open(&image, path, NULL) || infill_memory_new(&memory) ||
	    infill_pool_new(&pool, NULL))
		goto failed;
	ram.length = infill_image_bytes(image);
	if (infill_memory_map(memory, &ram) ||
	    infill_session_start(&session, pool, memory, image, &options))
		goto failed;
	/* ram.hva is guest memory: KVM_SET_USER_MEMORY_REGION, and run the vCPUs at once */
	/* README.md ends here */
	for (const uint64_t *p = (void *)(uintptr_t)ram.hva, *end = p + ram.length / 8; p < end;)
		sum += *p++;
	printf("%llu bytes, sum %016llx\n", (unsigned long long)ram.length,
	       (unsigned long long)sum);

	/* Keep the session for as long as the guest runs, then free in reverse order. */
	infill_session_stop(session);
	infill_pool_free(pool);
	infill_memory_free(memory);
	infill_image_close(image);
	return 0;
failed:
	fprintf(stderr, "restore: %s\n", infill_error());
	return 1;
}
