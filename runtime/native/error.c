/* One readable line per error, kept per thread as dlerror does. */
#include "core.h"

#include <stdarg.h>
#include <stdio.h>

enum { MESSAGE_BYTES = 1024 };
static _Thread_local char message[MESSAGE_BYTES];

/* Names in messages come from files: no control characters, so that a message is one line. */
static void make_printable(char* text) {
  for (; *text; ++text) {
    if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = '?';
  }
}

int32_t fail(int32_t code, const char* format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  make_printable(message);
  return code;
}

void prefix_error(const char* prefix) {
  char copy[MESSAGE_BYTES];
  memcpy(copy, message, sizeof copy);
  int length = snprintf(message, sizeof message, "%.400s: ", prefix);
  size_t room = sizeof message - (size_t)length - 1, size = strlen(copy);
  size_t kept = size < room ? size : room;
  memcpy(message + length, copy, kept);
  message[(size_t)length + kept] = 0;
  make_printable(message);
}

const char* llmos_last_error(void) { return message; }
