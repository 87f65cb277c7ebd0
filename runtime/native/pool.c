/* The thread pool: one per process, fork-join, shared by all programs.
 *
 * A launch opens a job (state becomes odd), takes part in it, closes it (even) and waits until no worker is inside. A worker that
 * sees an open state first counts itself in, then looks at the state again: so either the closing caller sees the worker, or the worker
 * sees that the job is closed; a worker that was late never holds up a launch. All of this needs sequentially consistent order, which
 * is the default of C11 atomics. Idle workers spin for a while, then park on the state with a futex.
 *
 * A caller that finds the pool busy runs its tiles itself. There are no locks, so a child after fork() only has to reset the
 * numbers; it makes its own threads when it first needs them.
 */
#include "core.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, MAX_SHARES = 64, CHUNKS_PER_THREAD = 4, SPIN_NS = 150000, PAUSES_PER_LOOK_AT_CLOCK = 128 };

typedef struct {
  llmos_kernel kernel;
  void* const* buffers;
  const int64_t* dims;
  int64_t num_tiles, chunk, scratch_bytes;
  int32_t num_shares;
} llmos_job;

/* The tiles of a job, in runs of neighbours. A thread begins with the same share in every job, so that what it read for one (the
 * weights of a loop's turn) is in its cache for the next; then it helps with the others. */
typedef struct {
  _Alignas(64) _Atomic int64_t next; /* the first tile that nobody has taken */
  int64_t end;
} llmos_share;

static struct {
  _Alignas(64) _Atomic uint32_t state; /* odd: a job is open; the futex that workers park on */
  _Alignas(64) _Atomic int32_t inside; /* workers in a job, or looking whether it is open */
  _Atomic int32_t error;
  _Alignas(64) llmos_job job;
  llmos_share shares[MAX_SHARES];
  _Alignas(64) _Atomic int32_t parked;
  _Atomic bool stop;
  _Alignas(64) atomic_bool busy; /* held by the one caller that uses the pool, or changes it */
  _Atomic int32_t num_threads;   /* 0: not yet known */
  int32_t num_workers;           /* running; guarded by busy, as is the array */
  pthread_t workers[MAX_THREADS];
} pool;

static void pause_cpu(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield");
#endif
}

int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void futex(int operation, uint32_t value) { syscall(SYS_futex, &pool.state, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0); }

/* ---- Scratch: one growing block per thread, freed when the thread ends ---- */

static _Thread_local struct {
  void* data;
  int64_t size;
} scratch;
static pthread_key_t scratch_key;
static bool have_scratch_key;

static void* scratch_of(int64_t num_bytes) {
  if (num_bytes <= scratch.size) return scratch.data;
  if (num_bytes > INT64_MAX / 4) return NULL;
  int64_t size = (num_bytes + 4095) / 4096 * 4096;
  void* data = aligned_alloc(ALIGNMENT, (size_t)size);
  if (!data) return NULL;
  free(scratch.data);
  scratch.data = data;
  scratch.size = size;
  if (have_scratch_key) pthread_setspecific(scratch_key, data);
  return data;
}

/* ---- Work ---- */

static int32_t run_range(const llmos_job* job, int64_t begin, int64_t end) {
  void* space = job->scratch_bytes > 0 ? scratch_of(job->scratch_bytes) : NULL;
  if (job->scratch_bytes > 0 && !space) return LLMOS_OUT_OF_MEMORY;
  return job->kernel(job->buffers, job->dims, begin, end, space);
}

static void take_chunks_of(const llmos_job* job, llmos_share* share) {
  for (;;) {
    if (atomic_load_explicit(&share->next, memory_order_relaxed) >= share->end) return;
    int64_t begin = atomic_fetch_add(&share->next, job->chunk);
    if (begin >= share->end || atomic_load_explicit(&pool.error, memory_order_relaxed)) return;
    int64_t rest = share->end - begin;
    int32_t code = run_range(job, begin, begin + (rest < job->chunk ? rest : job->chunk));
    int32_t none = 0;
    if (code) atomic_compare_exchange_strong(&pool.error, &none, code);
  }
}

static void take_chunks(int32_t thread) {
  const llmos_job* job = &pool.job;
  for (int32_t i = 0; i < job->num_shares; ++i) take_chunks_of(job, pool.shares + (thread + i) % job->num_shares);
}

/* Returns the state of an open job other than `seen`, or 0 when the pool stops. */
static uint32_t wait_for_job(uint32_t seen) {
  int64_t parks_at = 0;
  for (uint32_t looks = 1;; ++looks) {
    uint32_t state = atomic_load(&pool.state);
    if (atomic_load_explicit(&pool.stop, memory_order_relaxed)) return 0;
    if (state & 1 && state != seen) return state;
    pause_cpu();
    if (looks % PAUSES_PER_LOOK_AT_CLOCK) continue;
    int64_t now = now_ns();
    if (!parks_at) parks_at = now + SPIN_NS;
    if (now < parks_at) {
      sched_yield(); /* to whoever waits for a core: perhaps the thread that will open the next job */
      continue;
    }
    atomic_fetch_add(&pool.parked, 1);
    if (!atomic_load(&pool.stop)) futex(FUTEX_WAIT, state);
    atomic_fetch_sub(&pool.parked, 1);
    parks_at = 0;
  }
}

uint32_t set_float_mode(uint32_t mode) {
#if defined(__x86_64__)
  uint32_t before = __builtin_ia32_stmxcsr();
  if (before != mode) __builtin_ia32_ldmxcsr(mode);
  return before;
#else
  return mode;
#endif
}

static void* worker(void* argument) {
  char name[16];
  snprintf(name, sizeof name, "llmos-%d", (int)(intptr_t)argument);
  pthread_setname_np(pthread_self(), name);
  set_float_mode(0x1F80); /* not what the thread that started this one had set */
  uint32_t seen = 0;
  while ((seen = wait_for_job(seen))) {
    atomic_fetch_add(&pool.inside, 1);
    if (atomic_load(&pool.state) == seen) take_chunks((int32_t)(intptr_t)argument);
    atomic_fetch_sub(&pool.inside, 1);
  }
  return NULL;
}

/* ---- Threads ---- */

static void after_fork_in_child(void) {
  atomic_store(&pool.state, 0);
  atomic_store(&pool.inside, 0);
  atomic_store(&pool.parked, 0);
  atomic_store(&pool.stop, false);
  atomic_store(&pool.busy, false);
  pool.num_workers = 0;
}

__attribute__((constructor)) static void register_handlers(void) {
  pthread_atfork(NULL, NULL, after_fork_in_child);
  have_scratch_key = pthread_key_create(&scratch_key, free) == 0;
}

int32_t llmos_num_threads(void) {
  int32_t known = atomic_load(&pool.num_threads);
  if (known) return known;
  const char* text = getenv("LLMOS_NUM_THREADS");
  long asked = text ? strtol(text, NULL, 10) : 0;
  int32_t count = asked >= 1 && asked <= MAX_THREADS ? (int32_t)asked : host_num_cores();
  count = count < MAX_THREADS ? count : MAX_THREADS;
  atomic_compare_exchange_strong(&pool.num_threads, &known, count);
  return atomic_load(&pool.num_threads);
}

/* As many as asked, or as many as the system gives. Signals stay with the threads of the program around us. */
static void start_workers(int32_t wanted) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (pool.num_workers < wanted) {
    intptr_t number = pool.num_workers + 1;
    if (pthread_create(&pool.workers[pool.num_workers], NULL, worker, (void*)number) != 0) break;
    ++pool.num_workers;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void stop_workers(void) {
  atomic_store(&pool.stop, true);
  atomic_fetch_add(&pool.state, 2);
  futex(FUTEX_WAKE, INT_MAX);
  for (int32_t i = 0; i < pool.num_workers; ++i) pthread_join(pool.workers[i], NULL);
  pool.num_workers = 0;
  atomic_store(&pool.stop, false);
}

int32_t llmos_set_num_threads(int32_t num_threads) {
  if (num_threads < 1 || num_threads > MAX_THREADS) return fail(LLMOS_BAD_ARGUMENTS, "the number of threads must be 1 to %d", MAX_THREADS);
  while (atomic_exchange(&pool.busy, true)) sched_yield();
  stop_workers();
  atomic_store(&pool.num_threads, num_threads);
  atomic_store(&pool.busy, false);
  return LLMOS_OK;
}

/* ---- Launch ---- */

static void wait_until_left(void) {
  for (int64_t looks = 0; atomic_load(&pool.inside); ++looks) {
    if (looks < 256) {
      pause_cpu();
    } else {
      sched_yield(); /* the worker's thread has lost its core */
    }
  }
}

/* Nobody is in a job now: the next one is opened by the state. */
static void share_out(int32_t num_threads) {
  int64_t tiles = pool.job.num_tiles;
  int32_t count = num_threads < MAX_SHARES ? num_threads : MAX_SHARES;
  pool.job.num_shares = tiles < count ? (int32_t)tiles : count;
  for (int32_t i = 0; i < pool.job.num_shares; ++i) {
    atomic_store_explicit(&pool.shares[i].next, tiles * i / pool.job.num_shares, memory_order_relaxed);
    pool.shares[i].end = tiles * (i + 1) / pool.job.num_shares;
  }
}

static int32_t run_job(int32_t num_threads) {
  pool.job.chunk = pool.job.num_tiles / ((int64_t)CHUNKS_PER_THREAD * num_threads);
  if (pool.job.chunk < 1) pool.job.chunk = 1;
  share_out(num_threads);
  atomic_store_explicit(&pool.error, 0, memory_order_relaxed);
  atomic_fetch_add(&pool.state, 1);
  int32_t parked = atomic_load(&pool.parked);
  if (parked > 0) futex(FUTEX_WAKE, (uint32_t)(parked < pool.job.num_tiles - 1 ? parked : pool.job.num_tiles - 1));
  take_chunks(0);
  atomic_fetch_add(&pool.state, 1);
  wait_until_left();
  return atomic_load(&pool.error);
}

int32_t pool_launch(llmos_kernel kernel, void* const* buffers, const int64_t* dims, int64_t num_tiles, int64_t scratch_bytes) {
  llmos_job job = {kernel, buffers, dims, num_tiles, 0, scratch_bytes, 0};
  if (num_tiles <= 0) return LLMOS_OK;
  int32_t num_threads = num_tiles == 1 ? 1 : llmos_num_threads();
  if (num_threads == 1 || atomic_exchange(&pool.busy, true)) return run_range(&job, 0, num_tiles);
  if (pool.num_workers < num_threads - 1) start_workers(num_threads - 1);
  pool.job = job;
  int32_t code = run_job(num_threads);
  atomic_store(&pool.busy, false);
  return code;
}
