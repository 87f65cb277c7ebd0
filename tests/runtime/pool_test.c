/* The thread pool by itself: every tile once, errors, callers at the same time, changes of the number of threads. */
#include "core.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_TILES = 5000 };
#define REQUIRE(condition) \
  if (!(condition)) printf("line %d: %s\n", __LINE__, #condition), exit(1)

static int32_t count_tiles(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  int* counts = buffers[0];
  if ((uintptr_t)scratch % 64 || (dims[0] > 0) != (scratch != NULL)) return LLMOS_INTERNAL;
  if (scratch) memset(scratch, (int)begin, (size_t)dims[0]);
  for (int64_t tile = begin; tile < end; ++tile) ++counts[tile];
  for (int64_t i = 0; i < dims[0]; ++i) {
    if (((uint8_t*)scratch)[i] != (uint8_t)begin) return LLMOS_BAD_ARGUMENTS; /* somebody else wrote here */
  }
  return LLMOS_OK;
}

static int32_t fail_at(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  (void)buffers, (void)scratch;
  return begin <= dims[0] && dims[0] < end ? 7 : LLMOS_OK;
}

static void* one_caller(void* argument) {
  int* counts = calloc(MAX_TILES, sizeof *counts);
  void* buffers[] = {counts};
  for (int i = 0; i < 300; ++i) {
    int64_t num_tiles = (i * 37 + (intptr_t)argument * 101) % MAX_TILES, dims[] = {i % 3 * 100};
    memset(counts, 0, MAX_TILES * sizeof *counts);
    REQUIRE(pool_launch(count_tiles, buffers, dims, num_tiles, dims[0]) == LLMOS_OK);
    for (int64_t tile = 0; tile < MAX_TILES; ++tile) REQUIRE(counts[tile] == (tile < num_tiles));
    int64_t wrong[] = {num_tiles - 1};
    REQUIRE(pool_launch(fail_at, buffers, wrong, num_tiles, 0) == (num_tiles ? 7 : LLMOS_OK));
  }
  free(counts);
  return NULL;
}

static void all_callers(int num_callers) {
  pthread_t threads[16];
  for (intptr_t i = 0; i < num_callers; ++i) pthread_create(&threads[i], NULL, one_caller, (void*)i);
  for (int i = 0; i < num_callers; ++i) pthread_join(threads[i], NULL);
}

int main(void) {
  const char* cases[] = {"2*a + b", "(a + 1)*(b - 2) - 3", "a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a", "a b", "c", "2*", "(a", ""};
  const llmos_symbol symbols[] = {{"a", 0, 1000}, {"b", 0, 1000}};
  const int64_t values[] = {1000, 7}, expected[] = {2007, 5002};
  for (int i = 0; i < 8; ++i) {
    int64_t value;
    bool ok = evaluate(cases[i], symbols, 2, values, &value);
    REQUIRE(ok == (i < 2) && (!ok || value == expected[i]));
  }
  one_caller(NULL);
  all_callers(8);
  for (int32_t threads = 1; threads <= 4; ++threads) {
    REQUIRE(llmos_set_num_threads(threads) == LLMOS_OK && llmos_num_threads() == threads);
    all_callers(2);
  }
  REQUIRE(llmos_set_num_threads(0) == LLMOS_BAD_ARGUMENTS);
  REQUIRE(llmos_set_num_threads(2) == LLMOS_OK);
  return 0;
}
