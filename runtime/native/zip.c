/* Reading the one ZIP64 form that an artifact has (runtime/artifact/zipformat.py writes it).
 *
 * There is exactly one way to write given members, so the reader builds every header that should be there and compares bytes:
 * whatever differs (a method, a flag, an overlap, a gap, a comment, something after the end) is refused without being understood.
 */
#include "core.h"

enum {
  LOCAL_BYTES = 30,
  LOCAL_EXTRA_BYTES = 20 + 6, /* ZIP64 field, alignment field; then up to 63 zeros */
  CENTRAL_BYTES = 46,
  CENTRAL_EXTRA_BYTES = 28,
  END64_BYTES = 56,
  LOCATOR_BYTES = 20,
  END_BYTES = 22,
  ALL_ENDS_BYTES = END64_BYTES + LOCATOR_BYTES + END_BYTES,
  MAX_NAME_BYTES = 1024,
  MAX_MEMBERS = 4096,
  MAX_HEADER_BYTES = LOCAL_BYTES + MAX_NAME_BYTES + CENTRAL_EXTRA_BYTES + CENTRAL_BYTES + ALIGNMENT,
  VERSION = 45,
  MADE_BY = 3 << 8 | VERSION,
  UTF8_NAMES = 0x0800,
  DATE = 0x0021,
  ALIGNMENT_FIELD = 0xD935
};
static const uint32_t IN_ZIP64 = 0xFFFFFFFFu;
static const uint32_t MODE = 0100644u << 16;

typedef struct {
  uint8_t bytes[MAX_HEADER_BYTES];
  size_t size;
} llmos_zip_header;

static void put(llmos_zip_header* out, uint64_t value, int num_bytes) {
  for (int i = 0; i < num_bytes; ++i) out->bytes[out->size++] = (uint8_t)(value >> 8 * i);
}

static void put_name(llmos_zip_header* out, const char* name) {
  size_t length = strlen(name);
  memcpy(out->bytes + out->size, name, length);
  out->size += length;
}

static uint64_t get(const uint8_t* at, int num_bytes) {
  uint64_t value = 0;
  for (int i = num_bytes - 1; i >= 0; --i) value = value << 8 | at[i];
  return value;
}

static llmos_zip_header local_header(const llmos_zip_member* member, uint64_t offset) {
  llmos_zip_header out = {.size = 0};
  size_t name_bytes = strlen(member->name);
  uint64_t padding = (0 - (offset + LOCAL_BYTES + name_bytes + LOCAL_EXTRA_BYTES)) % ALIGNMENT;
  put(&out, 0x04034B50, 4), put(&out, VERSION, 2), put(&out, UTF8_NAMES, 2), put(&out, 0, 2), put(&out, 0, 2), put(&out, DATE, 2);
  put(&out, member->crc, 4), put(&out, IN_ZIP64, 4), put(&out, IN_ZIP64, 4);
  put(&out, name_bytes, 2), put(&out, LOCAL_EXTRA_BYTES + padding, 2);
  put_name(&out, member->name);
  put(&out, 1, 2), put(&out, 16, 2), put(&out, member->num_bytes, 8), put(&out, member->num_bytes, 8);
  put(&out, ALIGNMENT_FIELD, 2), put(&out, 2 + padding, 2), put(&out, ALIGNMENT, 2);
  for (; padding; --padding) put(&out, 0, 1);
  return out;
}

static llmos_zip_header central_header(const llmos_zip_member* member, uint64_t offset) {
  llmos_zip_header out = {.size = 0};
  put(&out, 0x02014B50, 4), put(&out, MADE_BY, 2), put(&out, VERSION, 2), put(&out, UTF8_NAMES, 2);
  put(&out, 0, 2), put(&out, 0, 2), put(&out, DATE, 2);
  put(&out, member->crc, 4), put(&out, IN_ZIP64, 4), put(&out, IN_ZIP64, 4);
  put(&out, strlen(member->name), 2), put(&out, CENTRAL_EXTRA_BYTES, 2), put(&out, 0, 2), put(&out, 0, 2), put(&out, 0, 2);
  put(&out, MODE, 4), put(&out, IN_ZIP64, 4);
  put_name(&out, member->name);
  put(&out, 1, 2), put(&out, 24, 2), put(&out, member->num_bytes, 8), put(&out, member->num_bytes, 8), put(&out, offset, 8);
  return out;
}

static llmos_zip_header end_records(uint64_t num_members, uint64_t directory, uint64_t directory_bytes) {
  llmos_zip_header out = {.size = 0};
  put(&out, 0x06064B50, 4), put(&out, 44, 8), put(&out, MADE_BY, 2), put(&out, VERSION, 2), put(&out, 0, 4), put(&out, 0, 4);
  put(&out, num_members, 8), put(&out, num_members, 8), put(&out, directory_bytes, 8), put(&out, directory, 8);
  put(&out, 0x07064B50, 4), put(&out, 0, 4), put(&out, directory + directory_bytes, 8), put(&out, 1, 4);
  put(&out, 0x06054B50, 4), put(&out, 0, 4), put(&out, 0xFFFF, 2), put(&out, 0xFFFF, 2), put(&out, IN_ZIP64, 4);
  put(&out, IN_ZIP64, 4), put(&out, 0, 2);
  return out;
}

/* One member: its record in the directory at `at`, and its header and data at `offset`. Moves both on. */
static int32_t read_member(const uint8_t* file, uint64_t directory, uint64_t directory_end, uint64_t* at, uint64_t* offset,
                           llmos_zone* zone, llmos_zip_member* member) {
  if (directory_end - *at < CENTRAL_BYTES) return fail(LLMOS_ERROR_ARTIFACT, "changed or truncated: its directory is too short");
  uint64_t name_bytes = get(file + *at + 28, 2);
  if (name_bytes == 0 || name_bytes > MAX_NAME_BYTES || directory_end - *at < CENTRAL_BYTES + name_bytes + CENTRAL_EXTRA_BYTES) {
    return fail(LLMOS_ERROR_ARTIFACT, "changed: a member's name has no valid length");
  }
  const uint8_t *name = file + *at + CENTRAL_BYTES, *extra = name + name_bytes;
  member->crc = (uint32_t)get(file + *at + 16, 4);
  member->num_bytes = get(extra + 4, 8);
  char* copy = zone_string(zone, (const char*)name, name_bytes);
  if (!copy) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  member->name = copy;
  if (strlen(copy) != name_bytes) return fail(LLMOS_ERROR_ARTIFACT, "changed: a member's name holds a zero");
  llmos_zip_header central = central_header(member, *offset), local = local_header(member, *offset);
  if (memcmp(file + *at, central.bytes, central.size) != 0) {
    return fail(LLMOS_ERROR_ARTIFACT, "changed, or not written by llmos: the directory's record of member \"%s\" is not as it should be", copy);
  }
  if (directory - *offset < local.size || memcmp(file + *offset, local.bytes, local.size) != 0) {
    return fail(LLMOS_ERROR_ARTIFACT, "changed, or not written by llmos: the header of member \"%s\" is not as it should be", copy);
  }
  *offset += local.size;
  if (directory - *offset < member->num_bytes) return fail(LLMOS_ERROR_ARTIFACT, "member \"%s\" reaches beyond its place", copy);
  member->data = file + *offset;
  *offset += member->num_bytes;
  *at += central.size;
  return LLMOS_OK;
}

int32_t zip_parse(const uint8_t* file, uint64_t size, llmos_zone* zone, llmos_zip_member** members, int32_t* num_members) {
  if (size < ALL_ENDS_BYTES) return fail(LLMOS_ERROR_ARTIFACT, "truncated, or not an artifact: it has only %llu bytes", (unsigned long long)size);
  uint64_t directory_end = size - ALL_ENDS_BYTES;
  const uint8_t* end = file + directory_end;
  uint64_t count = get(end + 24, 8), directory_bytes = get(end + 40, 8), directory = get(end + 48, 8);
  llmos_zip_header expected = end_records(count, directory, directory_bytes);
  if (memcmp(end, expected.bytes, expected.size) != 0 || directory > directory_end || directory_end - directory != directory_bytes) {
    return fail(LLMOS_ERROR_ARTIFACT, "truncated, changed, or not an artifact: it does not end as an llmos file does");
  }
  if (count == 0 || count > MAX_MEMBERS) return fail(LLMOS_ERROR_ARTIFACT, "it has %llu members; 1 to %d are allowed", (unsigned long long)count, MAX_MEMBERS);
  *members = zone_alloc(zone, count, sizeof **members);
  if (!*members) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  uint64_t at = directory, offset = 0;
  for (uint64_t i = 0; i < count; ++i) {
    int32_t code = read_member(file, directory, directory_end, &at, &offset, zone, *members + i);
    if (code) return code;
  }
  if (at != directory_end || offset != directory) return fail(LLMOS_ERROR_ARTIFACT, "changed: it has bytes that belong to no member");
  *num_members = (int32_t)count;
  return LLMOS_OK;
}
