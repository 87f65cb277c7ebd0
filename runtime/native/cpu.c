/* What this machine can run, in LLVM's feature names, and how many cores this process may use. */
#include "core.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
  const char* name;
  uint8_t word; /* of the feature words below */
  uint8_t bit;
  uint8_t state; /* what the system must save for it */
} llmos_feature;

enum { NO_STATE, AVX_STATE, AVX512_STATE, AMX_STATE };

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { L1C, L1D, L7B, L7C, L7D, L71A, L71D, X1C, X1D, LDA, NUM_WORDS };
static const llmos_feature FEATURES[] = {
    {"cmov", L1D, 15, NO_STATE}, {"cx8", L1D, 8, NO_STATE}, {"fxsr", L1D, 24, NO_STATE}, {"mmx", L1D, 23, NO_STATE},
    {"sse", L1D, 25, NO_STATE}, {"sse2", L1D, 26, NO_STATE}, {"sse3", L1C, 0, NO_STATE}, {"pclmul", L1C, 1, NO_STATE},
    {"ssse3", L1C, 9, NO_STATE}, {"cx16", L1C, 13, NO_STATE}, {"sse4.1", L1C, 19, NO_STATE}, {"sse4.2", L1C, 20, NO_STATE},
    {"movbe", L1C, 22, NO_STATE}, {"popcnt", L1C, 23, NO_STATE}, {"aes", L1C, 25, NO_STATE}, {"xsave", L1C, 26, NO_STATE},
    {"crc32", L1C, 20, NO_STATE}, {"sahf", X1C, 0, NO_STATE}, {"lzcnt", X1C, 5, NO_STATE}, {"prfchw", X1C, 8, NO_STATE},
    {"64bit", X1D, 29, NO_STATE}, {"fsgsbase", L7B, 0, NO_STATE}, {"bmi", L7B, 3, NO_STATE}, {"bmi2", L7B, 8, NO_STATE},
    {"adx", L7B, 19, NO_STATE}, {"clflushopt", L7B, 23, NO_STATE}, {"clwb", L7B, 24, NO_STATE}, {"sha", L7B, 29, NO_STATE},
    {"gfni", L7C, 8, NO_STATE}, {"xsavec", LDA, 1, NO_STATE}, {"xsaveopt", LDA, 0, NO_STATE}, {"avx", L1C, 28, AVX_STATE},
    {"f16c", L1C, 29, AVX_STATE}, {"fma", L1C, 12, AVX_STATE}, {"avx2", L7B, 5, AVX_STATE}, {"vaes", L7C, 9, AVX_STATE},
    {"vpclmulqdq", L7C, 10, AVX_STATE}, {"avxvnni", L71A, 4, AVX_STATE}, {"avxifma", L71A, 23, AVX_STATE},
    {"avxvnniint8", L71D, 4, AVX_STATE}, {"avxneconvert", L71D, 5, AVX_STATE}, {"avxvnniint16", L71D, 10, AVX_STATE},
    {"avx512f", L7B, 16, AVX512_STATE}, {"avx512dq", L7B, 17, AVX512_STATE}, {"avx512ifma", L7B, 21, AVX512_STATE},
    {"avx512cd", L7B, 28, AVX512_STATE}, {"avx512bw", L7B, 30, AVX512_STATE}, {"avx512vl", L7B, 31, AVX512_STATE},
    {"avx512vbmi", L7C, 1, AVX512_STATE}, {"avx512vbmi2", L7C, 6, AVX512_STATE}, {"avx512vnni", L7C, 11, AVX512_STATE},
    {"avx512bitalg", L7C, 12, AVX512_STATE}, {"avx512vpopcntdq", L7C, 14, AVX512_STATE}, {"avx512vp2intersect", L7D, 8, AVX512_STATE},
    {"avx512fp16", L7D, 23, AVX512_STATE}, {"avx512bf16", L71A, 5, AVX512_STATE},
    {"amx-bf16", L7D, 22, AMX_STATE}, {"amx-tile", L7D, 24, AMX_STATE}, {"amx-int8", L7D, 25, AMX_STATE},
};
static const char ARCH[] = "x86_64";

/* Linux lends a process the tile registers when it asks (Documentation/arch/x86/xstate.rst); every thread of it has them from then on. */
static bool may_use_tiles(uint64_t saved) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  if ((saved & 0x60000) != 0x60000) return false;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static uint64_t saved_states(uint32_t leaf1_ecx) {
  if (!(leaf1_ecx >> 27 & 1)) return 0; /* no OSXSAVE */
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

/* Fills the words and returns a bit per state. */
static uint32_t read_words(uint32_t words[NUM_WORDS]) {
  uint32_t a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d)) words[L1C] = c, words[L1D] = d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) words[L7B] = b, words[L7C] = c, words[L7D] = d;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) words[L71A] = a, words[L71D] = d;
  if (__get_cpuid(0x80000001u, &a, &b, &c, &d)) words[X1C] = c, words[X1D] = d;
  if (__get_cpuid_count(0xD, 1, &a, &b, &c, &d)) words[LDA] = a;
  uint64_t saved = saved_states(words[L1C]);
  return 1u << NO_STATE | ((saved & 0x06) == 0x06) << AVX_STATE | ((saved & 0xE6) == 0xE6) << AVX512_STATE |
         (words[L7D] >> 24 & 1 && may_use_tiles(saved)) << AMX_STATE;
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

enum { HWCAP, HWCAP2, NUM_WORDS = 2 };
static const llmos_feature FEATURES[] = {
    {"fp-armv8", HWCAP, 0, NO_STATE}, {"neon", HWCAP, 1, NO_STATE}, {"aes", HWCAP, 3, NO_STATE}, {"sha2", HWCAP, 6, NO_STATE},
    {"crc", HWCAP, 7, NO_STATE}, {"lse", HWCAP, 8, NO_STATE}, {"fullfp16", HWCAP, 10, NO_STATE}, {"rdm", HWCAP, 12, NO_STATE},
    {"dotprod", HWCAP, 20, NO_STATE}, {"fp16fml", HWCAP, 23, NO_STATE}, {"sve", HWCAP, 22, NO_STATE}, {"sve2", HWCAP2, 1, NO_STATE},
    {"i8mm", HWCAP2, 13, NO_STATE}, {"bf16", HWCAP2, 14, NO_STATE},
};
static const char ARCH[] = "aarch64";

static uint32_t read_words(uint32_t words[NUM_WORDS]) {
  words[HWCAP] = (uint32_t)getauxval(AT_HWCAP);
  words[HWCAP2] = (uint32_t)getauxval(AT_HWCAP2);
  return 1u << NO_STATE;
}
#else
#error "llmos runs on x86-64 and AArch64"
#endif

enum { NUM_FEATURES = sizeof FEATURES / sizeof *FEATURES };
static char feature_names[NUM_FEATURES * 20];
static uint64_t feature_bits;

__attribute__((constructor)) static void detect(void) {
  uint32_t words[NUM_WORDS] = {0};
  uint32_t states = read_words(words);
  for (int i = 0; i < NUM_FEATURES; ++i) {
    if (!(words[FEATURES[i].word] >> FEATURES[i].bit & 1) || !(states >> FEATURES[i].state & 1)) continue;
    feature_bits |= 1ull << i;
    if (*feature_names) strcat(feature_names, " ");
    strcat(feature_names, FEATURES[i].name);
  }
}

const char* llmos_host_arch(void) { return ARCH; }
const char* llmos_host_features(void) { return feature_names; }

bool host_has(const char* name) {
  for (int i = 0; i < NUM_FEATURES; ++i) {
    if (strcmp(FEATURES[i].name, name) == 0) return feature_bits >> i & 1;
  }
  return false;
}

bool host_has_arch(const char* arch) { return strcmp(arch, ARCH) == 0; }

/* ---- Cores ---- */

static bool read_text(const char* path, char* text, int size) {
  FILE* file = fopen(path, "re");
  if (!file) return false;
  bool ok = fgets(text, size, file) != NULL;
  fclose(file);
  return ok;
}

/* A core with several hardware threads counts once: by the first of its threads that this process may use. */
static bool first_of_core(int cpu, const cpu_set_t* allowed) {
  char path[96], text[256];
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
  if (!read_text(path, text, sizeof text)) return true;
  for (char* at = text; *at >= '0' && *at <= '9';) {
    long begin = strtol(at, &at, 10), end = *at == '-' ? strtol(at + 1, &at, 10) : begin;
    for (long sibling = begin; sibling <= end && sibling < cpu; ++sibling) {
      if (CPU_ISSET((size_t)sibling, allowed)) return false;
    }
    if (*at == ',') ++at;
  }
  return true;
}

/* CPUs' worth of time that the control group allows (version 2), rounded up; a large number where there is no limit. */
static int32_t quota(void) {
  char text[64];
  long limit, period;
  if (!read_text("/sys/fs/cgroup/cpu.max", text, sizeof text)) return INT32_MAX;
  if (sscanf(text, "%ld %ld", &limit, &period) != 2 || limit <= 0 || period <= 0) return INT32_MAX;
  return (int32_t)((limit + period - 1) / period);
}

int32_t host_num_cores(void) {
  cpu_set_t allowed;
  int32_t cores = 0;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) cores += CPU_ISSET(cpu, &allowed) && first_of_core(cpu, &allowed);
  int32_t limit = quota();
  cores = cores < limit ? cores : limit;
  return cores > 0 ? cores : 1;
}
