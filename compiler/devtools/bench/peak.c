/* Peak of fp32 multiply-add on this machine: as many independent chains as hide the latency, on all threads at once. Prints GFLOP/s. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
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

typedef struct {
    double start, end;
    float result;
} job;

static void *work(void *argument) {
    job *mine = argument;
    mine->result = chains(1000);
    pthread_barrier_wait(&barrier);
    mine->start = seconds();
    mine->result += chains(ROUNDS);
    mine->end = seconds();
    return NULL;
}

/* FLOP/s of all threads together, from the first start to the last end. */
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
    return 2.0 * LANES * CHAINS * STEPS * ROUNDS * num_threads / (end - start);
}

int main(int argc, char **argv) {
    int num_threads = argc > 1 ? atoi(argv[1]) : 1;
    if (num_threads < 1 || num_threads > 1024) return 2;
    static pthread_t threads[1024];
    static job jobs[1024];
    double best = 0;
    for (int repeat = 0; repeat < 10; repeat++) {
        double flops = measure(num_threads, jobs, threads);
        if (flops > best) best = flops;
    }
    printf("%.1f\n", best * 1e-9);
    return jobs[0].result == 12345.0f; /* the result is used */
}
