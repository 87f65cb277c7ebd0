/* A CUDA driver for tests, without a GPU: memory is the host's, each allocation in front of a page that nobody may touch, and kernels are
 * x86 code of the same LLVM IR (compiler/backends/cuda/emulation.py). It runs one block after the other; the threads of one are contexts of
 * their own, switched where they wait for each other, in both orders (fake_cuda_reverse). Every call is written to a log. */
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
static int failing_code, failing_after, version = 12080, devices = 1, major = 9, minor = 0, reversed;
static size_t memory_limit = 1 << 30, allocated;
static int64_t live;
static void* code_library;
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

void fake_cuda_reset(void) {
  logged = 0, call_log[0] = 0, failing[0] = 0, version = 12080, devices = 1, major = 9, minor = 0, reversed = 0, memory_limit = 1 << 30;
}
const char* fake_cuda_log(void) { return call_log; }
int64_t fake_cuda_live(void) { return live; }
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
  bool fails = length && strncmp(line, failing, length) == 0 && failing_after-- <= 0;
  pthread_mutex_unlock(&one);
  return fails ? failing_code : OK;
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
result cuDeviceGetName(char* name, int size, int device) { (void)device; snprintf(name, (size_t)size, "Fake GPU"); return OK; }
result cuDeviceGetAttribute(int* value, int which, int device) {
  (void)device;
  *value = which == 75 ? major : which == 76 ? minor : which == 97 ? SHARED : which == 115 ? 1 : 0;
  return OK;
}
result cuDeviceTotalMem_v2(size_t* bytes, int device) { (void)device; *bytes = memory_limit; return OK; }
result cuDeviceGetDefaultMemPool(void** pool, int device) { (void)device; *pool = (void*)1; return OK; }
result cuMemPoolSetAttribute(void* pool, int which, void* value) { (void)pool, (void)value; return called("cuMemPoolSetAttribute %d", which); }
result cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)(intptr_t)(device + 1); return called("cuDevicePrimaryCtxRetain %d", device); }
result cuDevicePrimaryCtxRelease_v2(int device) { return called("cuDevicePrimaryCtxRelease %d", device); }
result cuCtxSetCurrent(void* context) { return context ? OK : INVALID; }

/* ---- Memory ---- */
typedef struct block { struct block* next; uint8_t *data, *map; size_t size, mapped; } block;
static block* blocks;

result cuMemAllocAsync(address* memory, size_t size, void* stream) {
  (void)stream;
  CALLED("cuMemAllocAsync %zu", size);
  if (!size) return INVALID;
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
    made->next = blocks, blocks = made;
    allocated += size, ++live;
    *memory = (address)(uintptr_t)made->data;
  }
  pthread_mutex_unlock(&one);
  return code;
}
result cuMemFreeAsync(address memory, void* stream) {
  (void)stream;
  CALLED("cuMemFreeAsync");
  pthread_mutex_lock(&one);
  for (block** at = &blocks; *at; at = &(*at)->next) {
    block* found = *at;
    if ((address)(uintptr_t)found->data != memory) continue;
    *at = found->next;
    munmap(found->map, found->mapped);
    allocated -= found->size, --live;
    free(found);
    pthread_mutex_unlock(&one);
    return OK;
  }
  pthread_mutex_unlock(&one);
  return INVALID;
}
result cuMemAllocHost_v2(void** memory, size_t size) { *memory = malloc(size); return called("cuMemAllocHost %zu", size); }
result cuMemFreeHost(void* memory) { free(memory); return called("cuMemFreeHost"); }
result cuMemcpyAsync(address target, address source, size_t size, void* stream) {
  (void)stream;
  CALLED("cuMemcpyAsync %zu", size);
  memmove((void*)(uintptr_t)target, (void*)(uintptr_t)source, size);
  return OK;
}
result cuMemsetD8Async(address target, unsigned char value, size_t size, void* stream) {
  (void)stream;
  CALLED("cuMemsetD8Async %zu", size);
  memset((void*)(uintptr_t)target, value, size);
  return OK;
}
result cuStreamCreate(void** stream, unsigned flags) { *stream = malloc(1); return called("cuStreamCreate %u", flags); }
result cuStreamDestroy_v2(void* stream) { free(stream); return called("cuStreamDestroy"); }
result cuStreamSynchronize(void* stream) { (void)stream; return called("cuStreamSynchronize"); }

/* ---- Modules ---- */
result cuModuleLoadDataEx(void** module, const void* image, unsigned count, int* options, void** values) {
  (void)options;
  bool is_cubin = memcmp(image, "\177ELF", 4) == 0;
  CALLED("cuModuleLoadDataEx %s", is_cubin ? "cubin" : "ptx");
  if (is_cubin) return NO_BINARY;
  if (!strstr(image, ".visible .entry")) return count ? (snprintf(values[0], 64, "ptxas fatal: no entry\n"), 218) : 218;
  *module = code_library;
  return code_library ? OK : NOT_FOUND;
}
result cuModuleUnload(void* module) { (void)module; return called("cuModuleUnload"); }
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
static float bf16(uint32_t word, int half) { uint32_t bits = (half ? word & 0xFFFF0000u : word << 16); float f; memcpy(&f, &bits, 4); return f; }
static float word_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }

/* m16n8k16, bfloat16: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type". in: 4 words of A, 2 of B; sums: of C and D. */
void __llmos_gpu_mma_bf16(const uint32_t* in, float* sums) {
  int lane = current % WARP, first = current - lane, group = lane / 4, pair = lane % 4;
  memcpy(exchanged[current], in, 24);
  warp_barrier();
  for (int i = 0; i < 4; ++i) {
    int row = group + 8 * (i / 2), column = 2 * pair + i % 2;
    float sum = sums[i];
    for (int k = 0; k < 16; ++k) {
      int a_lane = row % 8 * 4 + k % 8 / 2, a_word = row / 8 + 2 * (k / 8), b_lane = column * 4 + k % 8 / 2, b_word = 4 + k / 8;
      sum += bf16(exchanged[first + a_lane][a_word], k % 2) * bf16(exchanged[first + b_lane][b_word], k % 2);
    }
    sums[i] = sum;
  }
  warp_barrier();
}
/* m16n8k8, tf32. */
void __llmos_gpu_mma_tf32(const uint32_t* in, float* sums) {
  int lane = current % WARP, first = current - lane, group = lane / 4, pair = lane % 4;
  memcpy(exchanged[current], in, 24);
  warp_barrier();
  for (int i = 0; i < 4; ++i) {
    int row = group + 8 * (i / 2), column = 2 * pair + i % 2;
    float sum = sums[i];
    for (int k = 0; k < 8; ++k) {
      uint32_t a = exchanged[first + row % 8 * 4 + k % 4][row / 8 + 2 * (k / 4)], b = exchanged[first + column * 4 + k % 4][4 + k / 4];
      sum += word_float(a & 0xFFFFE000u) * word_float(b & 0xFFFFE000u);
    }
    sums[i] = sum;
  }
  warp_barrier();
}

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
result cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz, unsigned shared, void* stream,
                      void** given, void** extra) {
  (void)stream, (void)extra;
  Dl_info info = {0};
  dladdr(function, &info);
  CALLED("cuLaunchKernel %s %u %u %u", info.dli_sname ? info.dli_sname + strlen("__llmos_emulated_") : "?", x, tx, shared);
  if (!x || y != 1 || z != 1 || !tx || tx > MAX_THREADS || tx % WARP || ty != 1 || tz != 1 || shared > SHARED) return INVALID;
  pthread_mutex_lock(&one);
  kernel = (void (*)(void**))function, arguments = given, num_threads = (int)tx;
  for (unsigned i = 0; i < x; ++i) run_block((int)(reversed ? x - 1 - i : i));
  pthread_mutex_unlock(&one);
  return OK;
}
