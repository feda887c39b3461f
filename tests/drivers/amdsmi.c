/* AMD SMI as its Python binding calls it, without ROCm. The functions it needs but nobody calls are stubs in
 * amdsmi_stubs.h, made from the binding's own list.
 *
 * FAKE_AMDSMI sets devices=N, partitions=N (devices of one socket), xgmi=0|1. */
#include "faults.h"

enum { OK, INVALID = 1, UNSUPPORTED = 2, NOT_INIT = 32 };

#define DEVICES option("FAKE_AMDSMI", "devices", 2)
#define IN_SOCKET option("FAKE_AMDSMI", "partitions", 1)
#define BEGIN                                  \
  int index = (int)(intptr_t)device - 1;       \
  double value = NAN;                          \
  int status = visit(__func__, index, &value); \
  if (!started) return NOT_INIT;               \
  if (status) return status;                   \
  (void)value
#define NA16 0xffff
#define NA32 0xffffffffu
#define NA64 0xffffffffffffffffull

typedef void *device_t;
static int started;
static double watts(int index) { return 150.0 * (index + 1); }

int amdsmi_init(uint64_t flags) {
  (void)flags;
  read_rules("FAKE_AMDSMI_FAULTS");
  int status = visit(__func__, -1, NULL);
  return status ? status : (started = 1, OK);
}
int amdsmi_shut_down(void) { return started = 0, OK; }
int amdsmi_get_socket_handles(uint32_t *count, device_t *found) {
  int status = visit(__func__, -1, NULL), sockets = (DEVICES + IN_SOCKET - 1) / IN_SOCKET;
  if (status) return status;
  for (int i = 0; found && i < sockets; i++) found[i] = (device_t)(intptr_t)(i + 1);
  return *count = (uint32_t)sockets, OK;
}
int amdsmi_get_processor_handles(device_t socket, uint32_t *count, device_t *found) {
  int first = ((int)(intptr_t)socket - 1) * IN_SOCKET, here = DEVICES - first;
  if (here > IN_SOCKET) here = IN_SOCKET;
  for (int i = 0; found && i < here; i++) found[i] = (device_t)(intptr_t)(first + i + 1);
  return *count = (uint32_t)here, OK;
}

typedef struct { uint32_t gfx, umc, mm, reserved[13]; } activity_t;
int amdsmi_get_gpu_activity(device_t device, activity_t *use) {
  BEGIN;
  use->gfx = isnan(value) ? 60 + (uint32_t)index : (uint32_t)value;
  use->umc = 20, use->mm = NA16;
  return OK;
}

typedef struct {
  char name[256]; uint32_t vendor; char vendor_name[256]; uint32_t subvendor; uint64_t id; uint32_t rev;
  char serial[256]; uint32_t oam, units; uint64_t version; uint32_t subsystem, reserved[21];
} asic_t;
int amdsmi_get_gpu_asic_info(device_t device, asic_t *asic) {
  BEGIN;
  memset(asic, 0, sizeof *asic);
  snprintf(asic->name, sizeof asic->name, "AMD Instinct MI300X OAM");
  snprintf(asic->serial, sizeof asic->serial, "%X", 0xfeed + index);
  asic->vendor = 0x1002, asic->id = 0x74a1, asic->units = 304, asic->version = 0x942;
  return OK;
}
int amdsmi_get_gpu_device_uuid(device_t device, unsigned *length, char *uuid) {
  BEGIN;
  return snprintf(uuid, *length, "%02xff74a1-0000-1000-8000-00000000feed", index), OK;
}
int amdsmi_get_gpu_device_bdf(device_t device, uint64_t *bdf) {
  BEGIN;
  return *bdf = (uint64_t)(0x20 + index) << 8, OK;
}

int amdsmi_get_gpu_memory_total(device_t device, int kind, uint64_t *bytes) {
  BEGIN;
  return (void)kind, *bytes = 192ull << 30, OK;
}
int amdsmi_get_gpu_memory_usage(device_t device, int kind, uint64_t *bytes) {
  BEGIN;
  return (void)kind, *bytes = isnan(value) ? 3ull << 30 : (uint64_t)value, OK;
}
int amdsmi_get_energy_count(device_t device, uint64_t *count, float *resolution, uint64_t *at) {
  BEGIN;
  *resolution = 15.3f; /* microjoules */
  *count = (uint64_t)(isnan(value) ? 1e12 + watts(index) * seconds() * 1e6 / *resolution : value);
  return *at = (uint64_t)(1e9 * seconds()), OK;
}

typedef struct {
  uint64_t socket; uint32_t current, average; uint64_t volts[3]; uint32_t limit; uint64_t reserved[18];
} power_t;
int amdsmi_get_power_info(device_t device, power_t *power) {
  BEGIN;
  memset(power, 0, sizeof *power);
  power->socket = (uint64_t)(isnan(value) ? watts(index) : value);
  power->current = power->average = power->limit = NA16;
  return OK;
}

typedef struct {
  uint32_t busy[8]; uint16_t jpeg[40], vcn[4]; uint64_t acc[8], limit[8], ppt[8], thm[8], low[8], total[8];
} partition_t;
typedef struct {
  uint16_t size; uint8_t format, content;
  uint16_t t_edge, t_hotspot, t_mem, t_vrgfx, t_vrsoc, t_vrmem, gfx, umc, mm, average_power;
  uint64_t energy, clock;
  uint16_t average_clk[7], gfxclk, socclk, uclk, vclk0, dclk0, vclk1, dclk1;
  uint32_t throttle; uint16_t fan, pcie_width, pcie_speed; uint32_t gfx_acc, mem_acc; uint16_t t_hbm[4];
  uint64_t firmware; uint16_t volts[3]; uint64_t indep_throttle; uint16_t power, vcn[4]; uint32_t locked;
  uint16_t xgmi_width, xgmi_speed; uint64_t pcie_acc, pcie_inst, pcie_counts[3], xgmi_read[8], xgmi_write[8];
  uint16_t gfxclks[8], socclks[4], vclk0s[4], dclk0s[4], jpeg[32]; uint32_t nak_sent, nak_received;
  uint64_t accumulation, prochot, ppt, socket_thm, vr_thm, hbm_thm; uint16_t partitions; partition_t xcp[8];
  uint32_t recovery; uint64_t vram_max; uint16_t xgmi_status[8];
} metrics_t;
unsigned fake_metrics_size(void) { return sizeof(metrics_t); }
int amdsmi_get_gpu_metrics_info(device_t device, metrics_t *metrics) {
  BEGIN;
  memset(metrics, 0xff, sizeof *metrics); /* all N/A */
  metrics->t_hotspot = (uint16_t)(50 + index);
  metrics->power = (uint16_t)(isnan(value) ? watts(index) : value);
  metrics->gfxclks[0] = 2100, metrics->uclk = 1300;
  for (int i = 0; i < 7; i++) metrics->xgmi_read[i] = metrics->xgmi_write[i] = (uint64_t)(1e6 * seconds());
  int held = option("FAKE_AMDSMI", "throttle", 0);
  metrics->prochot = metrics->socket_thm = metrics->vr_thm = metrics->hbm_thm = 5;
  metrics->ppt = held ? (uint64_t)(1e6 * seconds()) : 5;
  return OK;
}

int amdsmi_topo_get_link_type(device_t device, device_t other, uint64_t *hops, uint32_t *type) {
  BEGIN;
  (void)other;
  *hops = 1, *type = option("FAKE_AMDSMI", "xgmi", 1) ? 2 : 1; /* XGMI : PCIe */
  return OK;
}
int amdsmi_get_minmax_bandwidth_between_processors(device_t device, device_t other, uint64_t *low, uint64_t *high) {
  BEGIN;
  (void)other;
  return *low = 50000, *high = 64000, OK; /* MB/s */
}
typedef struct { char version[256], date[256], name[256]; } driver_t;
int amdsmi_get_gpu_driver_info(device_t device, driver_t *driver) {
  BEGIN;
  memset(driver, 0, sizeof *driver);
  return snprintf(driver->version, 256, "6.16.6"), snprintf(driver->name, 256, "amdgpu"), OK;
}
typedef struct { uint32_t major, minor, release; const char *build; } version_t;
int amdsmi_get_lib_version(version_t *version) {
  return *version = (version_t){26, 0, 2, "fake"}, OK;
}
int amdsmi_get_gpu_compute_partition(device_t device, char *text, uint32_t size) {
  BEGIN;
  return snprintf(text, size, "%s", IN_SOCKET > 1 ? "CPX" : "SPX"), OK;
}

#include "amdsmi_stubs.h"
