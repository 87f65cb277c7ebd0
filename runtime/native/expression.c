/* Integer expressions of symbols, such as "2*tokens + 1", in the grammar and with the meaning of Python (compiler/ir/size_text.py):
 *
 *   sum = product (("+" | "-") product)*            product = factor (("*" | "//" | "%") factor)*
 *   factor = "-" factor | number | symbol | ("min" | "max") "(" sum ("," sum)* ")"
 *          | ("floor_mul" | "floor_mul_f32") "(" sum "," sum "," sum ")" | "(" sum ")"
 * "//" rounds down and "%" has the sign of its right side. floor_mul(n, p, q) is floor(n * (p / q)) in float64; of floor_mul_f32 n, the
 * quotient and the product are rounded to float32. Overflow and a division by zero make the whole invalid.
 */
#include "core.h"

typedef struct {
  const char* text;
  const llmos_symbol* symbols;
  int32_t num_symbols;
  const int64_t* values;
  int depth;
} llmos_expression_reader;

static bool sum(llmos_expression_reader* in, int64_t* result);
static bool factor(llmos_expression_reader* in, int64_t* result);

static bool accept(llmos_expression_reader* in, char c) {
  while (*in->text == ' ') ++in->text;
  if (*in->text != c) return false;
  if (c) ++in->text;
  return true;
}

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool number(llmos_expression_reader* in, int64_t* result) {
  for (*result = 0; is_digit(*in->text); ++in->text) {
    if (__builtin_mul_overflow(*result, 10, result) || __builtin_add_overflow(*result, *in->text - '0', result)) return false;
  }
  return true;
}

static bool extremum(llmos_expression_reader* in, bool largest, int64_t* result) {
  int64_t other;
  if (!accept(in, '(') || !sum(in, result)) return false;
  while (accept(in, ',')) {
    if (!sum(in, &other)) return false;
    if (largest ? other > *result : other < *result) *result = other;
  }
  return accept(in, ')');
}

static bool rounded_product(llmos_expression_reader* in, bool in_float32, int64_t* result) {
  int64_t n, p, q;
  if (!accept(in, '(') || !sum(in, &n) || !accept(in, ',') || !sum(in, &p) || !accept(in, ',') || !sum(in, &q) || q == 0) return false;
  double scale = (double)p / (double)q, product = in_float32 ? (double)((float)n * (float)scale) : (double)n * scale;
  if (!(product > -0x1p62 && product < 0x1p62)) return false;
  *result = (int64_t)product;
  if ((double)*result > product) --*result;
  return accept(in, ')');
}

static bool named(llmos_expression_reader* in, int64_t* result) {
  const char* start = in->text;
  while (is_letter(*in->text) || is_digit(*in->text)) ++in->text;
  size_t length = (size_t)(in->text - start);
  if (length == 3 && memcmp(start, "min", 3) == 0) return extremum(in, false, result);
  if (length == 3 && memcmp(start, "max", 3) == 0) return extremum(in, true, result);
  if (length == 9 && memcmp(start, "floor_mul", 9) == 0) return rounded_product(in, false, result);
  if (length == 13 && memcmp(start, "floor_mul_f32", 13) == 0) return rounded_product(in, true, result);
  for (int32_t i = 0; i < in->num_symbols; ++i) {
    *result = in->values[i];
    if (strlen(in->symbols[i].name) == length && memcmp(in->symbols[i].name, start, length) == 0) return true;
  }
  return false;
}

static bool simple_factor(llmos_expression_reader* in, int64_t* result) {
  if (accept(in, '-')) return factor(in, result) && !__builtin_sub_overflow((int64_t)0, *result, result);
  if (accept(in, '(')) return sum(in, result) && accept(in, ')');
  return is_digit(*in->text) ? number(in, result) : is_letter(*in->text) && named(in, result);
}

static bool factor(llmos_expression_reader* in, int64_t* result) {
  bool ok = ++in->depth < 64 && simple_factor(in, result);
  --in->depth;
  return ok;
}

/* a // b and a % b in one. */
static bool divide(int64_t a, int64_t b, bool rest, int64_t* result) {
  if (b == 0 || (a == INT64_MIN && b == -1)) return false;
  int64_t quotient = a / b, remainder = a % b;
  bool down = remainder != 0 && (remainder < 0) != (b < 0);
  *result = rest ? remainder + (down ? b : 0) : quotient - (down ? 1 : 0);
  return true;
}

static bool product(llmos_expression_reader* in, int64_t* result) {
  int64_t other;
  if (!factor(in, result)) return false;
  for (;;) {
    if (accept(in, '*')) {
      if (!factor(in, &other) || __builtin_mul_overflow(*result, other, result)) return false;
    } else if (accept(in, '%')) {
      if (!factor(in, &other) || !divide(*result, other, true, result)) return false;
    } else if (accept(in, '/')) {
      if (!accept(in, '/') || !factor(in, &other) || !divide(*result, other, false, result)) return false;
    } else {
      return true;
    }
  }
}

static bool sum(llmos_expression_reader* in, int64_t* result) {
  int64_t other;
  if (!product(in, result)) return false;
  for (;;) {
    bool plus = accept(in, '+'), minus = !plus && accept(in, '-');
    if (!plus && !minus) return true;
    if (!product(in, &other)) return false;
    if (plus ? __builtin_add_overflow(*result, other, result) : __builtin_sub_overflow(*result, other, result)) return false;
  }
}

bool evaluate(const char* text, const llmos_symbol* symbols, int32_t num_symbols, const int64_t* values, int64_t* result) {
  llmos_expression_reader in = {text, symbols, num_symbols, values, 0};
  return sum(&in, result) && accept(&in, 0);
}
