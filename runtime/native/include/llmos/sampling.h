/* Sampling: from rows of a language model's logits to tokens.
 *
 * A row's result is a function of its logits, its settings and its position alone, bit for bit: sums have a fixed order, exponentials
 * and logarithms are this library's own, and the random number is Philox4x32-10 of (seed, position). Neither other rows nor the number of
 * threads nor the processor matter.
 *
 * In this order: bias, repetition, frequency and presence penalty, mask of allowed tokens; then, where the temperature is not 0, logits
 * are divided by it, and top-k, top-p, min-p and typical-p each keep tokens of the distribution that the one before left. Equal logits rank
 * by their ids, the lower first. The token is the first, by id, at which the cumulative probability of what is left exceeds the random number.
 */
#ifndef LLMOS_SAMPLING_H_
#define LLMOS_SAMPLING_H_

#include <llmos/llmos.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What stays the same through a request. */
typedef struct {
  double temperature; /* 0: the token with the largest logit */
  double top_p;       /* the fewest likeliest tokens of this total probability; 1: all */
  double min_p;       /* tokens at least this likely, relative to the likeliest; 0: all */
  double typical_p;   /* tokens whose information is closest to the entropy, of this total probability (Meister et al. 2022); 1: all */
  double repetition_penalty; /* divides positive logits of tokens seen, and multiplies negative ones (Keskar et al. 2019); 1: none */
  double presence_penalty;   /* subtracted from the logits of generated tokens */
  double frequency_penalty;  /* subtracted once for each time a token was generated */
  uint64_t seed;
  const int32_t* bias_ids; /* added to the logits of these tokens */
  const float* biases;
  int32_t num_biases;
  int32_t top_k;        /* the likeliest tokens, of which there are this many at most; 0: all */
  int32_t num_logprobs; /* -1: none; 0: of the token; n: also the n likeliest */
  int32_t reserved;
} llmos_sampling;

/* What is a row's own. */
typedef struct {
  uint64_t position;        /* of the token that is sampled; with the seed, all that the random number depends on */
  const int32_t* prompt;    /* ids, read where there is a repetition penalty */
  const int32_t* generated; /* ids, read where there is a penalty */
  const uint32_t* allowed;  /* bit i % 32 of word i / 32: whether token i may be sampled; NULL: all may */
  int64_t num_prompt, num_generated;
} llmos_sampling_row;

enum {
  LLMOS_ROW_SAMPLED = 0,
  LLMOS_ROW_NOT_FINITE = 1, /* NaN or infinity among the logits; negative infinity is a token that can't be sampled */
  LLMOS_ROW_NO_TOKEN = 2,   /* none is allowed that has a logit above negative infinity */
  LLMOS_ROW_BAD_TOKEN = 3   /* an id of its bias, its prompt or its generated tokens is outside of the vocabulary */
};

typedef struct {
  double logprob; /* of the token, in the softmax of the logits as they were given; 0 where num_logprobs is -1 */
  int32_t token;
  int32_t status; /* LLMOS_ROW_... */
  int32_t num_top; /* how many of `tops` are written */
  int32_t reserved;
} llmos_sampled;

typedef struct {
  double logprob;
  int32_t token;
  int32_t reserved;
} llmos_token_logprob;

/* Samples one token for each row of logits [num_rows, vocab_size], on the calling thread and the pool. tops: [num_rows, max_top], the likeliest
 * first, or NULL with max_top 0; a row gets at most max_top. A row that fails says so in its status and leaves the others as they are. Returns
 * LLMOS_BAD_ARGUMENTS or LLMOS_OUT_OF_MEMORY where no row was sampled. */
LLMOS_API int32_t llmos_sample(const float* logits, int64_t num_rows, int64_t vocab_size, const llmos_sampling* settings,
                               const llmos_sampling_row* rows, llmos_sampled* results, llmos_token_logprob* tops, int32_t max_top);

#ifdef __cplusplus
}
#endif
#endif
