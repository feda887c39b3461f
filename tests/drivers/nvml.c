/* NVML as its Python binding calls it, without a driver. What is not here is in nvml_stubs.h, made from the
 * binding's own list, and not supported.
 *
 * FAKE_NVML sets devices=N, mig=N (instances of device 0), gpm=0|1, nvlink=0|1, mixed=0|1 (every third one a T4).
 * A device draws 100 W more than the one before it, and its counter follows. */
#include "faults.h"

#define EXPORT(name) int name
#define DEVICES option("FAKE_NVML", "devices", 2)
#define SAY(text, ...) (snprintf(text, size, __VA_ARGS__), 0)

enum { OK, UNINITIALIZED = 1, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, SHORT = 7 };
enum { FIRST_MIG = 1000 };

typedef void *device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } use_t;
typedef struct {
  char legacy[16];
  unsigned domain, bus, device, id, subsystem;
  char bus_id[32];
} pci_t;
typedef struct { unsigned pid; unsigned long long bytes; unsigned instance, compute; } process_t;
typedef struct {
  uint32_t field, scope;
  int64_t timestamp, latency;
  int type, status;
  union { double d; unsigned u; unsigned long long l; } value;
} field_t;
typedef struct { double at; int device; } sample_t;
typedef struct { unsigned id; int status; double value; const char *text[3]; } metric_t;
typedef struct { unsigned version, count; sample_t *first, *second; metric_t metrics[477]; } metrics_t;
typedef struct { unsigned version, supported; } support_t;

static int started;

static int index_of(device_t device) { return (int)(intptr_t)device - 1; }
static int whole(int index) { return index >= FIRST_MIG ? 0 : index; }
static int is_t4(int index) { return option("FAKE_NVML", "mixed", 0) && index % 3 == 1; }
static double watts(int index) { return 100.0 * (whole(index) + 1); }

/* Every call starts so: the device's index, the fault of the day, and that an instance has no such sensor. */
#define BEGIN(needs_whole)                                     \
  int index = index_of(device);                                \
  double value = NAN;                                          \
  int status = visit(__func__, index, &value);                 \
  if (!started) return UNINITIALIZED;                          \
  if (status) return status;                                   \
  if (needs_whole && index >= FIRST_MIG) return UNSUPPORTED;   \
  (void)value

EXPORT(nvmlInitWithFlags)(unsigned flags) {
  (void)flags;
  read_rules("FAKE_NVML_FAULTS");
  if (option("FAKE_NVML", "print", 0)) puts("a line that nobody wants"), fflush(stdout);
  int status = visit(__func__, -1, NULL);
  started += !status;
  return status;
}
EXPORT(nvmlShutdown)(void) { return started > 0 ? (started--, OK) : UNINITIALIZED; }
EXPORT(nvmlDeviceGetCount_v2)(unsigned *count) {
  double value = NAN;
  int status = visit(__func__, -1, &value);
  *count = isnan(value) ? (unsigned)DEVICES : (unsigned)value;
  return started ? status : UNINITIALIZED;
}
EXPORT(nvmlDeviceGetHandleByIndex_v2)(unsigned index, device_t *device) {
  int status = visit(__func__, (int)index, NULL);
  *device = (device_t)(intptr_t)(index + 1);
  return status ? status : (int)index < DEVICES ? OK : INVALID;
}
EXPORT(nvmlSystemGetDriverVersion)(char *text, unsigned size) { return SAY(text, "580.65.06"); }
EXPORT(nvmlSystemGetNVMLVersion)(char *text, unsigned size) { return SAY(text, "13.580.65.06"); }
EXPORT(nvmlSystemGetCudaDriverVersion_v2)(int *version) { return *version = 13000, OK; }

EXPORT(nvmlDeviceGetName)(device_t device, char *text, unsigned size) {
  BEGIN(0);
  if (index >= FIRST_MIG) return SAY(text, "NVIDIA H100 80GB HBM3 MIG 1g.10gb");
  return SAY(text, "%s", is_t4(index) ? "Tesla T4" : "NVIDIA H100 80GB HBM3");
}
EXPORT(nvmlDeviceGetUUID)(device_t device, char *text, unsigned size) {
  BEGIN(0);
  if (index >= FIRST_MIG) return SAY(text, "MIG-%08x-0000-4000-8000-000000000000", index);
  return SAY(text, "GPU-%08x-0000-4000-8000-000000000000", 0xabc0 + index);
}
EXPORT(nvmlDeviceGetPciInfo_v3)(device_t device, pci_t *pci) {
  BEGIN(1);
  memset(pci, 0, sizeof *pci);
  pci->bus = 0x10 + index;
  snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
  return OK;
}
EXPORT(nvmlDeviceGetUtilizationRates)(device_t device, use_t *use) {
  BEGIN(1);
  use->gpu = isnan(value) ? 50 + index : (unsigned)value;
  use->memory = 30;
  return OK;
}
EXPORT(nvmlDeviceGetMemoryInfo)(device_t device, memory_t *memory) {
  BEGIN(0);
  memory->total = index >= FIRST_MIG ? 10ull << 30 : is_t4(index) ? 15ull << 30 : 80ull << 30;
  memory->used = isnan(value) ? 1ull << 30 : (unsigned long long)value;
  memory->free = memory->total - memory->used;
  return OK;
}
EXPORT(nvmlDeviceGetPowerUsage)(device_t device, unsigned *milliwatts) {
  BEGIN(1);
  *milliwatts = (unsigned)(isnan(value) ? 1000 * watts(index) : value);
  return OK;
}
EXPORT(nvmlDeviceGetTotalEnergyConsumption)(device_t device, unsigned long long *millijoules) {
  BEGIN(1);
  *millijoules = (unsigned long long)(isnan(value) ? 1e9 + 1000 * watts(index) * seconds() : value);
  return is_t4(index) ? UNSUPPORTED : OK;
}
EXPORT(nvmlDeviceGetClockInfo)(device_t device, int kind, unsigned *mhz) {
  BEGIN(1);
  *mhz = isnan(value) ? (kind == 2 ? 2619 : 1980) : (unsigned)value;
  return OK;
}
EXPORT(nvmlDeviceGetMaxClockInfo)(device_t device, int kind, unsigned *mhz) {
  BEGIN(1);
  *mhz = kind == 2 ? 2619 : 1980;
  return OK;
}
EXPORT(nvmlDeviceGetTemperature)(device_t device, int sensor, unsigned *celsius) {
  BEGIN(1);
  (void)sensor;
  *celsius = isnan(value) ? 40 + index : (unsigned)value;
  return OK;
}
EXPORT(nvmlDeviceGetCurrentClocksEventReasons)(device_t device, unsigned long long *reasons) {
  BEGIN(1);
  *reasons = isnan(value) ? 0 : (unsigned long long)value;
  return OK;
}
EXPORT(nvmlDeviceGetPcieThroughput)(device_t device, int way, unsigned *kilobytes) {
  BEGIN(1);
  *kilobytes = isnan(value) ? (way ? 2000 : 1000) : (unsigned)value;
  return OK;
}
EXPORT(nvmlDeviceGetMemoryBusWidth)(device_t device, unsigned *bits) {
  BEGIN(1);
  *bits = is_t4(index) ? 256 : 5120;
  return OK;
}
EXPORT(nvmlDeviceGetComputeRunningProcesses_v3)(device_t device, unsigned *count, process_t *found) {
  BEGIN(0);
  unsigned room = *count;
  *count = 1;
  if (room < 1) return SHORT;
  memset(found, 0, sizeof *found);
  found->pid = 4711, found->bytes = 1 << 20;
  return OK;
}
EXPORT(nvmlDeviceGetFieldValues)(device_t device, int count, field_t *fields) {
  BEGIN(1);
  for (int i = 0; i < count; i++) {
    fields[i].status = option("FAKE_NVML", "nvlink", 0) && !is_t4(index) ? OK : UNSUPPORTED;
    switch (fields[i].field) {
      case 90: fields[i].value.u = 26562; break; /* MB/s of one link */
      case 138: fields[i].value.l = (unsigned long long)(1e6 * seconds()); break;
      case 139: fields[i].value.l = (unsigned long long)(2e6 * seconds()); break;
      default: fields[i].status = UNSUPPORTED;
    }
  }
  return OK;
}

/* --- MIG --- */

EXPORT(nvmlDeviceGetMigMode)(device_t device, unsigned *current, unsigned *pending) {
  BEGIN(1);
  if (is_t4(index)) return UNSUPPORTED;
  *current = *pending = index == 0 && option("FAKE_NVML", "mig", 0) > 0;
  return OK;
}
EXPORT(nvmlDeviceGetMaxMigDeviceCount)(device_t device, unsigned *count) {
  BEGIN(1);
  *count = 7;
  return OK;
}
EXPORT(nvmlDeviceGetMigDeviceHandleByIndex)(device_t device, unsigned place, device_t *instance) {
  BEGIN(1);
  *instance = (device_t)(intptr_t)(FIRST_MIG + place + 1);
  return (int)place < option("FAKE_NVML", "mig", 0) ? OK : NOT_FOUND;
}
EXPORT(nvmlDeviceGetGpuInstanceId)(device_t device, unsigned *id) {
  BEGIN(0);
  *id = 7 + (unsigned)(index - FIRST_MIG);
  return index >= FIRST_MIG ? OK : INVALID;
}

/* --- links --- */

EXPORT(nvmlDeviceGetMaxPcieLinkGeneration)(device_t device, unsigned *generation) {
  BEGIN(1);
  *generation = is_t4(index) ? 3 : 5;
  return OK;
}
EXPORT(nvmlDeviceGetMaxPcieLinkWidth)(device_t device, unsigned *lanes) {
  BEGIN(1);
  *lanes = isnan(value) ? 16 : (unsigned)value;
  return OK;
}
EXPORT(nvmlDeviceGetNvLinkState)(device_t device, unsigned link, unsigned *active) {
  BEGIN(1);
  if (!option("FAKE_NVML", "nvlink", 0) || is_t4(index) || link >= 18) return link ? INVALID : UNSUPPORTED;
  *active = 1;
  return OK;
}
EXPORT(nvmlDeviceGetNvLinkRemoteDeviceType)(device_t device, unsigned link, unsigned *kind) {
  BEGIN(1);
  (void)link;
  *kind = option("FAKE_NVML", "direct", 0) ? 0 : 2; /* the other device, or a switch */
  return OK;
}
EXPORT(nvmlDeviceGetNvLinkRemotePciInfo_v2)(device_t device, unsigned link, pci_t *pci) {
  BEGIN(1);
  memset(pci, 0, sizeof *pci);
  pci->bus = 0x10 + (index ^ 1);
  (void)link;
  return OK;
}
EXPORT(nvmlDeviceGetP2PStatus)(device_t device, device_t other, int what, int *state) {
  BEGIN(1);
  (void)what, (void)other;
  *state = option("FAKE_NVML", "p2p", 1) ? 0 : 5;
  return OK;
}
EXPORT(nvmlDeviceGetTopologyCommonAncestor)(device_t device, device_t other, int *level) {
  BEGIN(1);
  *level = index / 2 == index_of(other) / 2 ? 10 : 50; /* pairs share a switch */
  return OK;
}

/* --- GPM --- */

EXPORT(nvmlGpmQueryDeviceSupport)(device_t device, support_t *support) {
  BEGIN(1);
  support->supported = option("FAKE_NVML", "gpm", 1) && !is_t4(index);
  return OK;
}
EXPORT(nvmlGpmSampleAlloc)(sample_t **sample) { return *sample = calloc(1, sizeof **sample), OK; }
EXPORT(nvmlGpmSampleFree)(sample_t *sample) { return free(sample), OK; }
EXPORT(nvmlGpmSampleGet)(device_t device, sample_t *sample) {
  BEGIN(1);
  sample->device = index, sample->at = seconds();
  return OK;
}
EXPORT(nvmlGpmMigSampleGet)(device_t device, unsigned instance, sample_t *sample) {
  BEGIN(1);
  sample->device = FIRST_MIG + (int)instance, sample->at = seconds();
  return OK;
}
EXPORT(nvmlGpmMetricsGet)(metrics_t *wanted) {
  double value = NAN;
  int status = visit(__func__, wanted->second->device, &value);
  if (status) return status;
  for (unsigned i = 0; i < wanted->count; i++) {
    metric_t *metric = &wanted->metrics[i];
    metric->status = OK;
    switch (metric->id) {
      case 2: metric->value = 87.5; break;
      case 5: metric->value = 40.0; break;
      case 10: metric->value = isnan(value) ? 61.5 : value; break;
      case 20: case 21: metric->value = 1000.0; break;
      case 60: case 61: metric->value = 2000.0; break;
      default: metric->status = UNSUPPORTED; /* others: not on this device */
    }
  }
  return OK;
}

#include "nvml_stubs.h"
