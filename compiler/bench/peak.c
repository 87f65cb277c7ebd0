/* Peak of fp32 multiply-add on this machine: as many independent chains as hide the latency, on all threads at once; and of reads from
 * memory that no cache of a core holds. Prints GFLOP/s and GB/s. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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

static pthread_barrier_t barrier;

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

static float read_all(const vector *data) {
    vector sum[4] = {0};
    for (long i = 0; i < READ_BYTES / VECTOR_BYTES; i += 4)
        for (int j = 0; j < 4; j++) sum[j] += data[i + j];
    return sum[0][0] + sum[1][0] + sum[2][0] + sum[3][0];
}

typedef struct {
    double start, end;
    vector *data; /* to read; NULL to multiply */
    float result;
} job;

static void *work(void *argument) {
    job *mine = argument;
    mine->result = mine->data ? read_all(mine->data) : chains(1000);
    pthread_barrier_wait(&barrier);
    mine->start = seconds();
    mine->result += mine->data ? read_all(mine->data) : chains(ROUNDS);
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
    double best[2] = {1e300, 1e300};
    for (int repeat = 0; repeat < 20; repeat++) {
        if (repeat == 10)
            for (int i = 0; i < num_threads; i++) {
                if (!(jobs[i].data = aligned_alloc(VECTOR_BYTES, READ_BYTES))) return 4;
                memset(jobs[i].data, 1, READ_BYTES);
            }
        double taken = measure(num_threads, jobs, threads);
        if (taken < best[repeat / 10]) best[repeat / 10] = taken;
    }
    double flops = 2.0 * LANES * CHAINS * STEPS * ROUNDS * num_threads / best[0];
    double bytes = (double)READ_BYTES * num_threads / best[1];
    printf("%.1f %.2f\n", flops * 1e-9, bytes * 1e-9);
    return jobs[0].result == 12345.0f; /* the result is used */
}
