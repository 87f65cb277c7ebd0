/* Peaks of this machine, on all threads at once: fp32 multiply-adds, products of bfloat16 summed in fp32 and products of bytes summed in
 * int32, each as as many independent chains as hide the latency; and reads from memory that no cache of a core holds. Prints fp32 and bf16
 * GFLOP/s, int8 GOP/s (0: no such instruction is known here) and GB/s. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#if defined(__aarch64__)
#define REGISTER "w"
#else
#define REGISTER "v"
#endif
#define LANES (VECTOR_BYTES / 4)
#define CHAINS 12 /* two FMA units of four or five cycles need 10, and 16 registers must hold chains and operands */
#define STEPS 2000
#define READ_BYTES (64L << 20) /* of a thread */
#define ROUNDS 5000L /* some 15 ms */

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));

enum kind { FLOATS, PAIRS, BYTES, READS, NUM_KINDS };

static pthread_barrier_t barrier;
static int tiles; /* whether products of bytes and of bfloat16 are those of tiles */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static float chains(long rounds) {
    vector sum[CHAINS], a, b;
    for (int lane = 0; lane < LANES; lane++) a[lane] = 0.999f, b[lane] = 0.001f;
    for (int i = 0; i < CHAINS; i++) sum[i] = b * (float)i;
    for (long round = 0; round < rounds; round++)
        for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * a + b;
            __asm__ volatile("" : "+" REGISTER(a)); /* the compiler may not run ahead of the loop */
        }
    float total = 0;
    for (int i = 0; i < CHAINS; i++) total += sum[i][i % LANES];
    return total;
}

/* One step of a chain: each int32 of `sum` and four products of bytes. */
#if defined(__AVX512VNNI__)
typedef __m512i bytes;
#define BYTES_FILL(x) _mm512_set1_epi8(x)
#define BYTES_STEP(sum, a, b) _mm512_dpbusd_epi32(sum, a, b)
#elif defined(__AVXVNNI__)
typedef __m256i bytes;
#define BYTES_FILL(x) _mm256_set1_epi8(x)
#define BYTES_STEP(sum, a, b) _mm256_dpbusd_avx_epi32(sum, a, b)
#elif defined(__AVX2__)
typedef __m256i bytes;
#define BYTES_FILL(x) _mm256_set1_epi8(x)
#define BYTES_STEP(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)))
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int8x16_t bytes;
#define BYTES_FILL(x) vdupq_n_s8(x)
#define BYTES_STEP(sum, a, b) vreinterpretq_s8_s32(vdotq_s32(vreinterpretq_s32_s8(sum), a, b))
#endif

#ifdef BYTES_STEP
static float byte_chains(long rounds) {
    bytes sum[CHAINS], a = BYTES_FILL(1), b = BYTES_FILL(2);
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sum[i] = BYTES_FILL(0);
    for (long round = 0; round < rounds; round++)
        for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) {
                sum[i] = BYTES_STEP(sum[i], a, b);
                __asm__ volatile("" : "+" REGISTER(sum[i])); /* no sum may be made at once of several steps */
            }
        }
    bytes total = sum[0];
#pragma GCC unroll 12
    for (int i = 1; i < CHAINS; i++) total ^= sum[i];
    int first;
    memcpy(&first, &total, sizeof first);
    return (float)first;
}
#define BYTE_OPS (2.0 * (double)sizeof(bytes) * CHAINS * STEPS)
#else
static float byte_chains(long rounds) {
    return (float)rounds;
}
#define BYTE_OPS 0.0
#endif

/* One step of a chain: each float of `sum` and two products of bfloat16. */
#if defined(__AVX512BF16__)
static float pair_chains(long rounds) {
    __m512 sum[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0); /* 1 and 0 */
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_setzero_ps();
    for (long round = 0; round < rounds; round++)
        for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) {
                sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
                __asm__ volatile("" : "+" REGISTER(sum[i]));
            }
        }
    float total = 0;
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) total += sum[i][0];
    return total;
}
#define PAIR_OPS (2.0 * 32 * CHAINS * STEPS)
#else
static float pair_chains(long rounds) {
    return (float)rounds;
}
#define PAIR_OPS 0.0
#endif

/* AMX: four tiles of sums from two tiles of rows and two of columns, as the kernels have them; 16 x 16 sums of 64 bytes of products each. */
#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__linux__)
#define TILE_SUMS 4
#define TILE_STEPS 200
#define TILE_BYTES 1024
#define TILE_OPS(kind) (2.0 * 16 * 16 * ((kind) == BYTES ? 64 : 32) * TILE_SUMS * TILE_STEPS)

/* Whether the system lets this process use tiles. */
static int allows_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static float tile_chains(enum kind kind, long rounds) {
    struct {
        unsigned char palette, start_row, reserved[14];
        unsigned short row_bytes[16];
        unsigned char rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) config.row_bytes[tile] = 64, config.rows[tile] = 16;
    unsigned char ones[TILE_BYTES];
    int sums[TILE_BYTES / sizeof(int)];
    memset(ones, kind == BYTES, sizeof ones); /* of bfloat16 zeros, which stay finite */
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, ones, 64);
    _tile_loadd(5, ones, 64);
    _tile_loadd(6, ones, 64);
    _tile_loadd(7, ones, 64);
    for (long step = 0; step < rounds * TILE_STEPS; step++)
        if (kind == BYTES) {
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(1, 4, 7);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        } else {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    _tile_stored(0, sums, 64);
    _tile_release();
    return (float)sums[0];
}
#else
#define TILE_OPS(kind) 0.0
static int allows_tiles(void) {
    return 0;
}
static float tile_chains(enum kind kind, long rounds) {
    return (float)(rounds + (long)kind);
}
#endif

static float read_all(const vector *data) {
    vector sum[4] = {0};
    for (long i = 0; i < READ_BYTES / VECTOR_BYTES; i += 4)
        for (int j = 0; j < 4; j++) sum[j] += data[i + j];
    return sum[0][0] + sum[1][0] + sum[2][0] + sum[3][0];
}

typedef struct {
    double start, end;
    enum kind kind;
    vector *data; /* what READS reads */
    float result;
} job;

static float run(const job *mine, long rounds) {
    switch (mine->kind) {
    case FLOATS: return chains(rounds);
    case PAIRS: return tiles ? tile_chains(PAIRS, rounds) : pair_chains(rounds);
    case BYTES: return tiles ? tile_chains(BYTES, rounds) : byte_chains(rounds);
    default: return read_all(mine->data);
    }
}

static void *work(void *argument) {
    job *mine = argument;
    mine->result = run(mine, 1000);
    pthread_barrier_wait(&barrier);
    mine->start = seconds();
    mine->result += run(mine, ROUNDS);
    mine->end = seconds();
    return NULL;
}

/* Seconds from the first start to the last end. */
static double measure(int num_threads, job *jobs, pthread_t *threads) {
    pthread_barrier_init(&barrier, NULL, (unsigned)num_threads);
    for (int i = 0; i < num_threads; i++)
        if (pthread_create(&threads[i], NULL, work, &jobs[i])) exit(3);
    double start = 1e300, end = 0;
    for (int i = 0; i < num_threads; i++) {
        pthread_join(threads[i], NULL);
        if (jobs[i].start < start) start = jobs[i].start;
        if (jobs[i].end > end) end = jobs[i].end;
    }
    pthread_barrier_destroy(&barrier);
    return end - start;
}

int main(int argc, char **argv) {
    int num_threads = argc > 1 ? atoi(argv[1]) : 1;
    if (num_threads < 1 || num_threads > 1024) return 2;
    static pthread_t threads[1024];
    static job jobs[1024];
    double best[NUM_KINDS] = {1e300, 1e300, 1e300, 1e300};
    tiles = allows_tiles();
    for (int i = 0; i < num_threads; i++) {
        if (!(jobs[i].data = aligned_alloc(VECTOR_BYTES, READ_BYTES))) return 4;
        memset(jobs[i].data, 1, READ_BYTES);
    }
    for (int kind = 0; kind < NUM_KINDS; kind++)
        for (int repeat = 0; repeat < 10; repeat++) {
            for (int i = 0; i < num_threads; i++) jobs[i].kind = (enum kind)kind;
            double taken = measure(num_threads, jobs, threads);
            if (taken < best[kind]) best[kind] = taken;
        }
    double flops = 2.0 * LANES * CHAINS * STEPS * ROUNDS * num_threads / best[FLOATS];
    double pair_ops = (tiles ? TILE_OPS(PAIRS) : PAIR_OPS) * ROUNDS * num_threads / best[PAIRS];
    double byte_ops = (tiles ? TILE_OPS(BYTES) : BYTE_OPS) * ROUNDS * num_threads / best[BYTES];
    double read = (double)READ_BYTES * num_threads / best[READS];
    printf("%.1f %.1f %.1f %.2f\n", flops * 1e-9, pair_ops * 1e-9, byte_ops * 1e-9, read * 1e-9);
    return jobs[0].result == 12345.0f; /* the result is used */
}
