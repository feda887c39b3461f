/* Faults on demand: what a call of a device answers instead, from which call on, and after how long.
 *
 * By environment, rules apart by commas:  CALL:DEVICE:CODE[:AFTER[:HANG_S[:VALUE]]]
 * CALL is a part of a function's name, DEVICE an index or *; a CODE of 0 with a VALUE answers with that value.
 * By control function: fake_fault with the same arguments; fake_clear forgets all of them. */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
  char call[64];
  int device, code;
  long after, seen;
  double hang_s, value;
} rule_t;

static rule_t rules[256];
static int rule_count;
static double fixed_clock = -1;

void fake_fault(const char *call, int device, int code, long after, double hang_s, double value) {
  rule_t *rule = &rules[rule_count];
  snprintf(rule->call, sizeof rule->call, "%s", call);
  rule->device = device, rule->code = code, rule->after = after, rule->seen = 0;
  rule->hang_s = hang_s, rule->value = value;
  rule_count++;
}

void fake_clear(void) { rule_count = 0; }

/* Seconds that counters count: the machine's, or those that a test sets. */
void fake_clock(double seconds) { fixed_clock = seconds; }

static double seconds(void) {
  struct timespec now;
  if (fixed_clock >= 0) return fixed_clock;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

static void read_rules(const char *variable) {
  static int done;
  const char *text = getenv(variable);
  if (done++ || !text) return;
  char *copy = strdup(text), *save = NULL;
  for (char *part = strtok_r(copy, ",", &save); part; part = strtok_r(NULL, ",", &save)) {
    char call[64] = "", device[16] = "*", value[64] = "nan";
    int code = 0;
    long after = 0;
    double hang_s = 0;
    sscanf(part, "%63[^:]:%15[^:]:%d:%ld:%lf:%63s", call, device, &code, &after, &hang_s, value);
    fake_fault(call, *device == '*' ? -1 : atoi(device), code, after, hang_s, atof(value));
  }
  free(copy);
}

/* What the rules say of this call: its status, and *value where they set one. */
static int visit(const char *call, int device, double *value) {
  for (int i = 0; i < rule_count; i++) {
    rule_t *rule = &rules[i];
    if (!strstr(call, rule->call) || (rule->device >= 0 && rule->device != device)) continue;
    if (rule->seen++ < rule->after) continue;
    if (rule->hang_s > 0) {
      struct timespec pause = {(time_t)rule->hang_s, (long)(1e9 * fmod(rule->hang_s, 1.0))};
      nanosleep(&pause, NULL);
    }
    if (value && !isnan(rule->value)) *value = rule->value;
    return rule->code;
  }
  return 0;
}

static int option(const char *variable, const char *name, int otherwise) {
  const char *text = getenv(variable), *found = text ? strstr(text, name) : NULL;
  return found && found[strlen(name)] == '=' ? atoi(found + strlen(name) + 1) : otherwise;
}
