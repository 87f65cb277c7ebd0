/* What the thread pool costs by itself, for threads.py: prints the median time of a launch without work, in ns, and the processor time
 * that the whole process uses in half a second after its last launch, in us: how long its threads look for more work. */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { NUM_LAUNCHES = 20000 };

static int32_t nothing(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  (void)buffers, (void)dims, (void)begin, (void)end, (void)scratch;
  return LLMOS_OK;
}

static int ascending(const void* a, const void* b) {
  int64_t x = *(const int64_t*)a, y = *(const int64_t*)b;
  return (x > y) - (x < y);
}

static int64_t used_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int main(int argc, char** argv) {
  static int64_t times[NUM_LAUNCHES];
  if (argc != 2 || llmos_set_num_threads(atoi(argv[1])) != LLMOS_OK) return 2;
  for (int i = 0; i < NUM_LAUNCHES; ++i) {
    int64_t begin = now_ns();
    pool_launch(nothing, NULL, NULL, 8, 0);
    times[i] = now_ns() - begin;
  }
  int64_t before = used_ns();
  usleep(500000);
  int64_t idle = used_ns() - before;
  qsort(times, NUM_LAUNCHES, sizeof *times, ascending);
  printf("%lld %lld\n", (long long)times[NUM_LAUNCHES / 2], (long long)idle / 1000);
  return 0;
}
