/* SHA-256 (FIPS 180-4) with the x86 SHA instructions where the CPU has them, and CRC-32 for the two members no hash covers. */
#include "core.h"

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void blocks_portable(uint32_t state[8], const uint8_t* data, size_t num_blocks) {
  for (; num_blocks; --num_blocks, data += 64) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; ++i) {
      w[i] = (uint32_t)data[4 * i] << 24 | (uint32_t)data[4 * i + 1] << 16 | (uint32_t)data[4 * i + 2] << 8 | data[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i) {
      uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; ++i) {
      uint32_t choice = (s[4] & s[5]) ^ (~s[4] & s[6]), majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
      uint32_t t1 = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) + choice + K[i] + w[i];
      uint32_t t2 = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) + majority;
      memmove(s + 1, s, 7 * sizeof *s);
      s[4] += t1;
      s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; ++i) state[i] += s[i];
  }
}

#if defined(__x86_64__)

#include <immintrin.h>

/* `lanes` messages at a time, because one alone waits for each round to finish: two take little longer than one. The instructions keep
 * the state as ABEF and CDGH; four rounds take one word vector. */
__attribute__((target("sha,sse4.1,ssse3"), always_inline)) static inline void blocks_sha(uint32_t (*states)[8], const uint8_t* const* data,
                                                                                         size_t num_blocks, const int lanes) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  __m128i abef[2], cdgh[2], w[2][4], abef_before[2], cdgh_before[2];
  for (int l = 0; l < lanes; ++l) {
    __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i*)states[l]), 0xB1);
    __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i*)(states[l] + 4)), 0x1B);
    abef[l] = _mm_alignr_epi8(low, high, 8), cdgh[l] = _mm_blend_epi16(high, low, 0xF0);
  }
  for (size_t offset = 0; offset < num_blocks * 64; offset += 64) {
    for (int l = 0; l < lanes; ++l) {
      abef_before[l] = abef[l], cdgh_before[l] = cdgh[l];
      for (int i = 0; i < 4; ++i) w[l][i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)(data[l] + offset + 16 * i)), swap);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      for (int l = 0; l < lanes; ++l) {
        __m128i sums = _mm_add_epi32(w[l][i & 3], _mm_loadu_si128((const __m128i*)(K + 4 * i)));
        cdgh[l] = _mm_sha256rnds2_epu32(cdgh[l], abef[l], sums);
        abef[l] = _mm_sha256rnds2_epu32(abef[l], cdgh[l], _mm_shuffle_epi32(sums, 0x0E));
        if (i >= 12) continue;
        __m128i seventh = _mm_alignr_epi8(w[l][(i + 3) & 3], w[l][(i + 2) & 3], 4);
        __m128i next = _mm_add_epi32(_mm_sha256msg1_epu32(w[l][i & 3], w[l][(i + 1) & 3]), seventh);
        w[l][i & 3] = _mm_sha256msg2_epu32(next, w[l][(i + 3) & 3]);
      }
    }
    for (int l = 0; l < lanes; ++l) {
      abef[l] = _mm_add_epi32(abef[l], abef_before[l]), cdgh[l] = _mm_add_epi32(cdgh[l], cdgh_before[l]);
    }
  }
  for (int l = 0; l < lanes; ++l) {
    __m128i low = _mm_shuffle_epi32(abef[l], 0x1B), high = _mm_shuffle_epi32(cdgh[l], 0xB1);
    _mm_storeu_si128((__m128i*)states[l], _mm_blend_epi16(low, high, 0xF0));
    _mm_storeu_si128((__m128i*)(states[l] + 4), _mm_alignr_epi8(high, low, 8));
  }
}

__attribute__((target("sha,sse4.1,ssse3"))) static void one_sha(uint32_t (*states)[8], const uint8_t* const* data, size_t num_blocks) {
  blocks_sha(states, data, num_blocks, 1);
}
__attribute__((target("sha,sse4.1,ssse3"))) static void two_sha(uint32_t (*states)[8], const uint8_t* const* data, size_t num_blocks) {
  blocks_sha(states, data, num_blocks, 2);
}

static bool has_instructions(void) { return host_has("sha") && host_has("sse4.1"); }
#else
static bool has_instructions(void) { return false; }
#define one_sha(states, data, num_blocks) ((void)0)
#define two_sha(states, data, num_blocks) ((void)0)
#endif

/* `lanes` (1 or 2) messages of the same length. */
static void hash_blocks(uint32_t (*states)[8], const uint8_t* const* data, size_t num_blocks, int lanes) {
  if (has_instructions() && lanes == 2) {
    two_sha(states, data, num_blocks);
  } else if (has_instructions()) {
    one_sha(states, data, num_blocks);
  } else {
    for (int l = 0; l < lanes; ++l) blocks_portable(states[l], data[l], num_blocks);
  }
}

static void put_big_endian(uint8_t* out, uint64_t value, int num_bytes) {
  for (int i = 0; i < num_bytes; ++i) out[i] = (uint8_t)(value >> 8 * (num_bytes - 1 - i));
}

void sha256(const uint8_t* const* data, size_t size, int lanes, uint8_t (*digests)[32]) {
  static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint32_t states[2][8];
  uint8_t tails[2][128] = {{0}};
  const uint8_t* tail_data[] = {tails[0], tails[1]};
  size_t rest = size % 64, tail_bytes = rest < 56 ? 64 : 128;
  for (int l = 0; l < lanes; ++l) {
    memcpy(states[l], initial, sizeof initial);
    if (rest) memcpy(tails[l], data[l] + size - rest, rest);
    tails[l][rest] = 0x80;
    put_big_endian(tails[l] + tail_bytes - 8, (uint64_t)size * 8, 8);
  }
  hash_blocks(states, data, size / 64, lanes);
  hash_blocks(states, tail_data, tail_bytes / 64, lanes);
  for (int l = 0; l < lanes; ++l) {
    for (int i = 0; i < 8; ++i) put_big_endian(digests[l] + 4 * i, states[l][i], 4);
  }
}

uint32_t crc32_of(const void* data, size_t size) {
  uint32_t table[256], crc = 0xFFFFFFFFu;
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (0xEDB88320u & (0u - (value & 1)));
    table[i] = value;
  }
  for (size_t i = 0; i < size; ++i) crc = crc >> 8 ^ table[(crc ^ ((const uint8_t*)data)[i]) & 0xFF];
  return ~crc;
}
