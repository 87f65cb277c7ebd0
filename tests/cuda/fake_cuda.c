/* A CUDA driver for tests, without a GPU: memory is the host's, each allocation in front of a page that nobody may touch, and kernels are
 * x86 code of the same LLVM IR (compiler/backends/cuda/emulation.py). It runs one block after the other; the threads of one are contexts of
 * their own, switched where they wait for each other, in both orders (fake_cuda_reverse). Every call is written to a log, may be made to
 * fail by its name or its number, and what calls make is counted until they give it back. What belongs to one GPU is refused on another. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

typedef int result;
typedef unsigned long long address;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NO_BINARY = 209, NOT_FOUND = 500, ILLEGAL = 700 };
enum { PAGE = 4096, MAX_THREADS = 1024, WARP = 32, STACK = 128 << 10, SHARED = 227 << 10, LOG = 1 << 20 };

/* ---- What tests set and ask ---- */
static char call_log[LOG];
static size_t logged;
static char failing[64];
static int failing_code, failing_after, failing_number = -1, number_code, num_calls, version = 12080, devices = 1, major = 9, minor = 0, reversed;
static size_t memory_limit = 1 << 30, allocated;
typedef struct { int64_t memory, pinned, streams, modules, contexts; } counts;
static counts live;
static void* code_library;
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

void fake_cuda_reset(void) {
  logged = 0, call_log[0] = 0, failing[0] = 0, failing_number = -1, num_calls = 0, version = 12080, devices = 1, major = 9, minor = 0, reversed = 0, memory_limit = 1 << 30;
}
const char* fake_cuda_log(void) { return call_log; }
int64_t fake_cuda_live(void) { return live.memory; }
int64_t fake_cuda_all_live(void) { return live.memory + live.pinned + live.streams + live.modules + live.contexts; }
int64_t fake_cuda_allocated(void) { return (int64_t)allocated; } /* bytes */
int fake_cuda_num_calls(void) { return num_calls; } /* since the last reset */
void fake_cuda_fail_nth(int number, int code) { failing_number = number, number_code = code; }
void fake_cuda_fail(const char* name, int code, int after) { snprintf(failing, sizeof failing, "%s", name), failing_code = code, failing_after = after; }
void fake_cuda_machine(int v, int n, int ma, int mi, size_t bytes) { version = v, devices = n, major = ma, minor = mi, memory_limit = bytes; }
void fake_cuda_reverse(int on) { reversed = on; }
int fake_cuda_code(const char* path) { return (code_library = dlopen(path, RTLD_NOW | RTLD_LOCAL)) ? 0 : (fprintf(stderr, "%s\n", dlerror()), 1); }

static result called(const char* format, ...) {
  va_list list;
  char line[256];
  va_start(list, format);
  vsnprintf(line, sizeof line, format, list);
  va_end(list);
  pthread_mutex_lock(&one);
  if (logged + strlen(line) + 2 < LOG) logged += (size_t)snprintf(call_log + logged, LOG - logged, "%s\n", line);
  size_t length = strlen(failing);
  bool fails = length && strncmp(line, failing, length) == 0 && failing_after-- <= 0, fails_by_number = num_calls++ == failing_number;
  pthread_mutex_unlock(&one);
  return fails_by_number ? number_code : fails ? failing_code : OK;
}
#define CALLED(...) do { result r = called(__VA_ARGS__); if (r) return r; } while (0)

/* ---- The machine ---- */
result cuInit(unsigned flags) { CALLED("cuInit %u", flags); return devices ? OK : NO_DEVICE; }
result cuDriverGetVersion(int* v) { *v = version; return called("cuDriverGetVersion"); }
result cuGetErrorString(result code, const char** text) {
  *text = code == OUT_OF_MEMORY ? "out of memory" : code == ILLEGAL ? "an illegal memory access was encountered" : code == NO_DEVICE ? "no CUDA-capable device is detected" : "an error";
  return OK;
}
result cuDeviceGetCount(int* count) { *count = devices; return called("cuDeviceGetCount"); }
result cuDeviceGet(int* device, int index) { *device = index; return called("cuDeviceGet %d", index); }
result cuDeviceGetName(char* name, int size, int device) { snprintf(name, (size_t)size, "Fake GPU"); return called("cuDeviceGetName %d", device); }
result cuDeviceGetAttribute(int* value, int which, int device) {
  CALLED("cuDeviceGetAttribute %d %d", which, device);
  *value = which == 75 ? major : which == 76 ? minor : which == 97 ? SHARED : which == 115 ? 1 : 0;
  return OK;
}
result cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = memory_limit; return called("cuDeviceTotalMem %d", device); }
result cuDeviceGetDefaultMemPool(void** pool, int device) { *pool = (void*)1; return called("cuDeviceGetDefaultMemPool %d", device); }
result cuMemPoolSetAttribute(void* pool, int which, void* value) { (void)pool, (void)value; return called("cuMemPoolSetAttribute %d", which); }

/* ---- Contexts: the primary one of each GPU is its number and 1; a thread has a stack of them ---- */
enum { DEPTH = 8 };
static _Thread_local int stack[DEPTH], depth;
static int here(void) { return depth ? stack[depth - 1] : 0; } /* 0: no GPU is current */

result cuDevicePrimaryCtxRetain(void** context, int device) {
  CALLED("cuDevicePrimaryCtxRetain %d", device);
  *context = (void*)(intptr_t)(device + 1), ++live.contexts;
  return OK;
}
result cuDevicePrimaryCtxRelease_v2(int device) { --live.contexts; return called("cuDevicePrimaryCtxRelease %d", device); }
result cuCtxPushCurrent_v2(void* context) {
  CALLED("cuCtxPushCurrent %d", (int)(intptr_t)context);
  if (!context || depth == DEPTH) return INVALID;
  stack[depth++] = (int)(intptr_t)context;
  return OK;
}
result cuCtxPopCurrent_v2(void** context) {
  if (!depth) return INVALID;
  *context = (void*)(intptr_t)stack[--depth];
  return called("cuCtxPopCurrent");
}
int fake_cuda_current(void) { return here() - 1; } /* of this thread, -1 for none */

result cuMemGetInfo_v2(size_t* unused, size_t* all) {
  CALLED("cuMemGetInfo");
  *unused = memory_limit - allocated, *all = memory_limit;
  return here() ? OK : INVALID;
}

typedef struct { int context; } stream; /* the default one is NULL, of every GPU */
static bool is_here(const stream* used) { return here() && (!used || used->context == here()); }

/* ---- Memory ---- */
typedef struct block { struct block* next; uint8_t *data, *map; size_t size, mapped; int context; } block;
static block* blocks;

result cuMemAllocAsync(address* memory, size_t size, stream* used) {
  CALLED("cuMemAllocAsync %zu", size);
  if (!size || !is_here(used)) return INVALID;
  pthread_mutex_lock(&one);
  result code = allocated + size > memory_limit ? OUT_OF_MEMORY : OK;
  if (!code) {
    block* made = malloc(sizeof *made);
    made->size = size;
    made->mapped = (size + 15 + PAGE) / PAGE * PAGE + PAGE;
    made->map = mmap(NULL, made->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(made->map + made->mapped - PAGE, PAGE, PROT_NONE);
    made->data = made->map + made->mapped - PAGE - (size + 15) / 16 * 16; /* what lies behind the last 16 bytes faults */
    memset(made->data, 0xFF, size);
    made->next = blocks, made->context = here(), blocks = made;
    allocated += size, ++live.memory;
    *memory = (address)(uintptr_t)made->data;
  }
  pthread_mutex_unlock(&one);
  return code;
}
/* Copies to and from pinned memory are made as late as a stream may make them: what overwrites such memory too early is seen. */
enum { PINS = 256, PENDING = 4096 };
static struct { uint8_t* data; size_t size; } pins[PINS];
static struct { address target, source; size_t size; } pending[PENDING];
static int num_pending;
static pthread_mutex_t copies = PTHREAD_MUTEX_INITIALIZER;

static bool is_pinned(address memory) {
  for (int i = 0; i < PINS; ++i) {
    if (pins[i].data && memory >= (address)(uintptr_t)pins[i].data && memory < (address)(uintptr_t)(pins[i].data + pins[i].size)) return true;
  }
  return false;
}
static void make_copies(void) {
  pthread_mutex_lock(&copies);
  for (int i = 0; i < num_pending; ++i) memmove((void*)(uintptr_t)pending[i].target, (void*)(uintptr_t)pending[i].source, pending[i].size);
  num_pending = 0;
  pthread_mutex_unlock(&copies);
}

result cuMemFreeAsync(address memory, stream* used) {
  make_copies();
  result code = called("cuMemFreeAsync");
  pthread_mutex_lock(&one);
  for (block** at = &blocks; *at; at = &(*at)->next) {
    block* found = *at;
    if ((address)(uintptr_t)found->data != memory) continue;
    if (found->context != here() || !is_here(used)) break;
    *at = found->next;
    munmap(found->map, found->mapped);
    allocated -= found->size, --live.memory;
    free(found);
    pthread_mutex_unlock(&one);
    return code;
  }
  pthread_mutex_unlock(&one);
  return INVALID;
}
/* Whether memory is the host's, or of the GPU that is current. */
static bool is_reachable(address memory) {
  bool found = true;
  pthread_mutex_lock(&one);
  for (block* each = blocks; each; each = each->next) {
    if (memory >= (address)(uintptr_t)each->map && memory < (address)(uintptr_t)each->map + each->mapped) found = each->context == here();
  }
  pthread_mutex_unlock(&one);
  return found;
}
result cuMemAllocHost_v2(void** memory, size_t size) {
  CALLED("cuMemAllocHost %zu", size);
  if (!here()) return INVALID;
  pthread_mutex_lock(&copies);
  int i = 0;
  while (i < PINS && pins[i].data) ++i;
  if (i < PINS) *memory = pins[i].data = malloc(size), pins[i].size = size, ++live.pinned;
  pthread_mutex_unlock(&copies);
  return i < PINS ? OK : OUT_OF_MEMORY;
}
result cuMemFreeHost(void* memory) {
  make_copies();
  pthread_mutex_lock(&copies);
  for (int i = 0; i < PINS; ++i) pins[i].data = pins[i].data == memory ? NULL : pins[i].data;
  pthread_mutex_unlock(&copies);
  free(memory), --live.pinned;
  return called("cuMemFreeHost");
}
result cuMemcpyAsync(address target, address source, size_t size, stream* used) {
  CALLED("cuMemcpyAsync %zu", size);
  if (!is_here(used) || !is_reachable(target) || !is_reachable(source)) return INVALID;
  pthread_mutex_lock(&copies);
  bool waits = (is_pinned(target) || is_pinned(source)) && num_pending < PENDING;
  if (waits) pending[num_pending].target = target, pending[num_pending].source = source, pending[num_pending++].size = size;
  pthread_mutex_unlock(&copies);
  if (waits) return OK;
  make_copies();
  memmove((void*)(uintptr_t)target, (void*)(uintptr_t)source, size);
  return OK;
}
result cuMemsetD8Async(address target, unsigned char value, size_t size, stream* used) {
  CALLED("cuMemsetD8Async %zu", size);
  if (!is_here(used) || !is_reachable(target)) return INVALID;
  make_copies();
  memset((void*)(uintptr_t)target, value, size);
  return OK;
}
result cuStreamCreate(stream** made, unsigned flags) {
  CALLED("cuStreamCreate %u", flags);
  if (!here()) return INVALID;
  *made = malloc(sizeof **made), (*made)->context = here(), ++live.streams;
  return OK;
}
result cuStreamDestroy_v2(stream* used) { make_copies(), free(used), --live.streams; return called("cuStreamDestroy"); }
result cuStreamSynchronize(stream* used) {
  CALLED("cuStreamSynchronize");
  make_copies();
  return is_here(used) ? OK : INVALID;
}

/* ---- Modules ---- */
result cuModuleLoadDataEx(void** module, const void* image, unsigned count, int* options, void** values) {
  (void)options;
  bool is_cubin = memcmp(image, "\177ELF", 4) == 0;
  CALLED("cuModuleLoadDataEx %s", is_cubin ? "cubin" : "ptx");
  if (is_cubin) return NO_BINARY;
  if (!strstr(image, ".visible .entry")) return count ? (snprintf(values[0], 64, "ptxas fatal: no entry\n"), 218) : 218;
  if (!code_library || !here()) return code_library ? INVALID : NOT_FOUND;
  *module = code_library, ++live.modules;
  return OK;
}
result cuModuleUnload(void* module) { (void)module, --live.modules; return called("cuModuleUnload"); }
result cuModuleGetFunction(void** function, void* module, const char* name) {
  char symbol[256];
  CALLED("cuModuleGetFunction %s", name);
  snprintf(symbol, sizeof symbol, "__llmos_emulated_%s", name);
  *function = dlsym(module, symbol);
  return *function ? OK : NOT_FOUND;
}
result cuFuncSetAttribute(void* function, int which, int value) { (void)function; return called("cuFuncSetAttribute %d %d", which, value); }

/* ---- Threads of a block ---- */
typedef struct { ucontext_t start; jmp_buf at; char* stack; bool started, done; } fiber;
static fiber fibers[MAX_THREADS];
static jmp_buf scheduler;
static int current, num_threads, num_done, block_number, waiting, generation, idle;
static int warp_waiting[WARP], warp_generation[WARP];
static uint32_t exchanged[MAX_THREADS][8];
static void (*kernel)(void**);
static void** arguments;
uint8_t __llmos_shared[SHARED] __attribute__((aligned(128)));

static void yield(void) {
  if (++idle > 4 * num_threads + 4) fprintf(stderr, "the threads of a block wait for ever\n"), abort();
  if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
}
static void begin(void) {
  kernel(arguments);
  fibers[current].done = true, ++num_done, idle = 0;
  _longjmp(scheduler, 1);
}
static void resume(int thread) {
  fiber* self = fibers + thread;
  current = thread;
  if (_setjmp(scheduler)) return;
  if (self->started) _longjmp(self->at, 1);
  self->started = true;
  setcontext(&self->start);
}
int32_t __llmos_gpu_thread(void) { return current; }
int32_t __llmos_gpu_block(void) { return block_number; }
void __llmos_gpu_barrier(int32_t number) {
  (void)number;
  int mine = generation;
  if (++waiting == num_threads) { waiting = 0, ++generation, idle = 0; return; }
  while (mine == generation) yield();
}
static void warp_barrier(void) {
  int warp = current / WARP, mine = warp_generation[warp];
  if (++warp_waiting[warp] == WARP) { warp_waiting[warp] = 0, ++warp_generation[warp], idle = 0; return; }
  while (mine == warp_generation[warp]) yield();
}
void __llmos_gpu_warp_barrier(int32_t mask) {
  if (mask != -1) fprintf(stderr, "a barrier of some lanes\n"), abort();
  warp_barrier();
}
int32_t __llmos_gpu_shuffle_xor(int32_t mask, int32_t word, int32_t distance, int32_t clamp) {
  if (mask != -1 || clamp != 31) fprintf(stderr, "a shuffle of some lanes\n"), abort();
  exchanged[current][0] = (uint32_t)word;
  warp_barrier();
  int32_t got = (int32_t)exchanged[current ^ distance][0];
  warp_barrier();
  return got;
}
/* ldmatrix.sync.aligned.m8n8.x4.b16: a word of each of four matrices, whose rows the lanes name. */
void __llmos_gpu_fragment(const uint8_t* row, uint32_t* words) {
  int lane = current % WARP, first = current - lane;
  if ((uintptr_t)row % 16) fprintf(stderr, "a row of a fragment is not aligned\n"), abort();
  memcpy(exchanged[current], &row, sizeof row);
  warp_barrier();
  for (int i = 0; i < 4; ++i) {
    const uint8_t* named;
    memcpy(&named, exchanged[first + 8 * i + lane / 4], sizeof named);
    memcpy(words + i, named + 4 * (lane % 4), 4);
  }
  warp_barrier();
}
/* Element k of a lane's part of a row: `per_word` of them lie in a word. */
static float bf16_of(uint32_t word, int k) { uint32_t bits = k % 2 ? word & 0xFFFF0000u : word << 16; float f; memcpy(&f, &bits, 4); return f; }
static float tf32_of(uint32_t word, int k) { (void)k; uint32_t bits = word & 0xFFFFE000u; float f; memcpy(&f, &bits, 4); return f; }

/* PTX ISA, "Matrix Fragments for mma.m16n8k8 and mma.m16n8k16". in: 4 words of A, 2 of B; sums: of C and D. depth: k of the instruction. */
static void multiply(const uint32_t* in, float* sums, int depth, int per_word, float (*element)(uint32_t, int)) {
  int lane = current % WARP, first = current - lane, group = lane / 4, pair = lane % 4;
  memcpy(exchanged[current], in, 24);
  warp_barrier();
  for (int i = 0; i < 4; ++i) {
    int row = group + 8 * (i / 2), column = 2 * pair + i % 2;
    float sum = sums[i];
    for (int k = 0; k < depth; ++k) {
      int place = k % (depth / 2) / per_word, half = k / (depth / 2);
      float a = element(exchanged[first + row % 8 * 4 + place][row / 8 + 2 * half], k);
      sum += a * element(exchanged[first + column * 4 + place][4 + half], k);
    }
    sums[i] = sum;
  }
  warp_barrier();
}
/* m16n8k32: as of floats, four bytes a word, and exact. */
void __llmos_gpu_mma_u8s8(const uint32_t* in, int32_t* sums) {
  int lane = current % WARP, first = current - lane, group = lane / 4, pair = lane % 4;
  memcpy(exchanged[current], in, 24);
  warp_barrier();
  for (int i = 0; i < 4; ++i) {
    int row = group + 8 * (i / 2), column = 2 * pair + i % 2;
    for (int k = 0; k < 32; ++k) {
      int place = k % 16 / 4, half = k / 16, shift = 8 * (k % 4);
      uint8_t a = (uint8_t)(exchanged[first + row % 8 * 4 + place][row / 8 + 2 * half] >> shift);
      int8_t b = (int8_t)(exchanged[first + column * 4 + place][4 + half] >> shift);
      sums[i] += a * b;
    }
  }
  warp_barrier();
}
void __llmos_gpu_mma_bf16(const uint32_t* in, float* sums) { multiply(in, sums, 16, 2, bf16_of); }
void __llmos_gpu_mma_tf32(const uint32_t* in, float* sums) { multiply(in, sums, 8, 1, tf32_of); }

static void run_block(int number) {
  block_number = number, num_done = waiting = generation = idle = 0;
  memset(warp_waiting, 0, sizeof warp_waiting);
  memset(__llmos_shared, 0xFF, sizeof __llmos_shared);
  for (int i = 0; i < num_threads; ++i) {
    fiber* self = fibers + i;
    if (!self->stack) self->stack = malloc(STACK);
    getcontext(&self->start);
    self->start.uc_stack.ss_sp = self->stack, self->start.uc_stack.ss_size = STACK, self->start.uc_link = NULL;
    makecontext(&self->start, begin, 0);
    self->started = self->done = false;
  }
  while (num_done < num_threads) {
    for (int i = 0; i < num_threads; ++i) {
      int thread = reversed ? num_threads - 1 - i : i;
      if (!fibers[thread].done) resume(thread);
    }
  }
}
result cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz, unsigned shared, stream* used,
                      void** given, void** extra) {
  (void)extra;
  Dl_info info = {0};
  dladdr(function, &info);
  CALLED("cuLaunchKernel %s %u %u %u", info.dli_sname ? info.dli_sname + strlen("__llmos_emulated_") : "?", x, tx, shared);
  if (!x || y != 1 || z != 1 || !tx || tx > MAX_THREADS || tx % WARP || ty != 1 || tz != 1 || shared > SHARED || !is_here(used)) return INVALID;
  make_copies();
  pthread_mutex_lock(&one);
  kernel = (void (*)(void**))function, arguments = given, num_threads = (int)tx;
  for (unsigned i = 0; i < x; ++i) run_block((int)(reversed ? x - 1 - i : i));
  pthread_mutex_unlock(&one);
  return OK;
}
