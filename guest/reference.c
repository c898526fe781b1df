// SPDX-License-Identifier: MIT
/*
 * Foretells on the host what the guest will answer: the same store, the same requests.
 *
 * Prints for request 1 to N (the only argument, default 1) the lines that init.c prints, without
 * times. Nothing to change here: the content is store.c's.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "store.h"

int main(int argc, char **argv)
{
	struct store *store = store_create();
	unsigned int requests = argc > 1 ? (unsigned int)atoi(argv[1]) : 1;

	if (!store) {
		fprintf(stderr, "reference: store: no memory\n");
		return 1;
	}
	for (unsigned int i = 1; i <= requests; i++) {
		struct store_bad bad;
		uint64_t work, all;

		if (store_work(store, &work, &bad) || store_check(store, &all, &bad)) {
			fprintf(stderr, "reference: page %u offset %u: wrong\n", bad.page, bad.offset);
			return 1;
		}
		printf("work %u ok %016" PRIx64 "\nall ok %016" PRIx64 "\n", i, work, all);
	}
	return 0;
}
