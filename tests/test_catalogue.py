"""The catalogue: every number has its source; what is wrong in a profile is found."""

from __future__ import annotations

import re

import pytest

from gimlet_lab.errors import UnknownNameError
from gimlet_lab.hardware import catalogue, lint, prices, profiles
from gimlet_lab.hardware.catalogue import read_device
from gimlet_lab.hardware.profiles import ProfileError
from gimlet_lab.model import Device

DEVICES = catalogue.devices()
CONTRACT = [
    *("h100-sxm", "h100-pcie", "h200-sxm", "a100-sxm-80gb", "a100-pcie-40gb", "b200-sxm", "l4", "l40s", "t4"),
    *("v100-pcie", "p100-pcie", "a40", "mi210", "mi300x", "gaudi3", "m3-max", "cpu"),
]


def test_the_ids_that_others_rely_on_are_there():
    assert set(CONTRACT) <= set(DEVICES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("Tesla T4", "t4"),
        ("tesla t4", "t4"),
        ("AMD Instinct MI300X", "mi300x"),
        ("Tesla V100-PCIE-32GB", "v100-pcie"),
        ("h100_sxm", "h100-sxm"),
        ("cpu", "cpu"),
    ],
)
def test_names_that_drivers_and_people_give_are_found(name, expected):
    assert catalogue.find(name).id == expected


@pytest.mark.parametrize(("name", "near"), [("h100-smx", "h100-sxm"), ("mi300", "mi300x"), ("l40", "l40s")])
def test_an_unknown_name_is_an_error_with_near_ones(name, near):
    with pytest.raises(UnknownNameError, match=re.escape(repr(near))) as caught:
        catalogue.find(name)
    assert "\n" not in str(caught.value)


def test_no_two_devices_share_a_name():
    names = [n for d in DEVICES.values() for n in {one.casefold() for one in (d.id, d.name, *d.aliases)}]
    assert len(names) == len(set(names))


def test_forty_devices_of_seven_makers():
    assert len(DEVICES) > 40
    assert {device.vendor for device in DEVICES.values()} >= {
        *("NVIDIA", "AMD", "Intel", "Google", "Apple", "AWS"),
    }


def test_profiles_are_in_the_tree_and_where_a_wheel_puts_them(monkeypatch, tmp_path):
    assert (profiles.shipped() / "prices").is_dir()
    (tmp_path / "gimlet_lab" / "profiles" / "devices").mkdir(parents=True)
    (tmp_path / "gimlet_lab" / "hardware").mkdir()
    monkeypatch.setattr(profiles, "__file__", str(tmp_path / "gimlet_lab" / "hardware" / "profiles.py"))
    assert profiles.shipped() == tmp_path / "gimlet_lab" / "profiles"


# The linter


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_no_number_is_impossible(device):
    assert lint.findings(device) == []


@pytest.mark.parametrize("device", [d for d in DEVICES.values() if d.kind == "gpu"], ids=lambda d: d.id)
def test_an_accelerator_can_be_planned_with(device):
    for name in ("peak_flops", "memory_bytes", "bandwidth_bytes_per_s", "link_bytes_per_s"):
        assert getattr(device, name), name


@pytest.mark.parametrize(
    "device", [d for d in DEVICES.values() if d.vendor in ("NVIDIA", "AMD")], ids=lambda d: d.id
)
def test_the_cost_model_knows_what_a_kernel_runs_on(device):
    for name in ("compute_units", "clock_hz", "vector_flops", "architecture"):
        assert getattr(device, name), (device.id, name)


def q(value):
    return {"value": value, "source": "s", "date": "2026", "tier": "vendor"}


@pytest.mark.parametrize(
    ("of", "changes", "key", "reason"),
    [
        ("h100-sxm", {"peak_flops": {"bfloat16": q(1979e12)}}, "peak_flops.bfloat16", "a sparse figure?"),
        ("l40s", {"peak_flops": {"bfloat16": q(733e12)}}, "peak_flops.bfloat16", "Ada Lovelace does 1024"),
        ("mi300x", {"peak_flops": {"bfloat16": q(2614e12)}}, "peak_flops.bfloat16", "CDNA 3 does 2048"),
        (
            "h100-sxm",
            {"peak_flops": {"bfloat16": q(989e12), "float8_e4m3fn": q(3958e12)}},
            "peak_flops.float8_e4m3fn",
            "4.0 times the 16-bit rate",
        ),
        (
            "h100-sxm",
            {"sparse_flops": {"bfloat16": q(989e12)}},
            "sparse_flops.bfloat16",
            "1.00 times the dense",
        ),
        ("h100-sxm", {"peak_flops": {"bfloat16": q(700e12)}}, "achieved_flops.bfloat16", "1.14 of the peak"),
        ("h100-sxm", {"peak_flops": {"bf16": q(989e12)}}, "peak_flops.bf16", "no such dtype"),
        ("h100-sxm", {"peak_flops": {"bfloat16": q(989)}}, "peak_flops.bfloat16", "989 is not in FLOP/s"),
        (
            "h100-sxm",
            {"bandwidth_bytes_per_s": q(3350)},
            "bandwidth_bytes_per_s",
            "is not in bytes per second",
        ),
        ("h100-sxm", {"bandwidth_bytes_per_s": q(8e12)}, "bandwidth_bytes_per_s", "is not what HBM3 gives"),
        (
            "epyc-9654",
            {"bandwidth_bytes_per_s": q(400e9)},
            "bandwidth_bytes_per_s",
            "10.42 channels of DDR5-4800",
        ),
        ("t4", {"bandwidth_bytes_per_s": q(10e12), "memory_kind": ""}, "peak_flops", "ridge point at 6"),
        ("h100-sxm", {"memory_bytes": q(80)}, "memory_bytes", "80 is not in bytes"),
        ("b200-sxm", {"memory_bytes": q(96e9)}, "memory_bytes", "0.50 of the datasheet's capacity"),
        ("h100-sxm", {"clock_hz": q(1980)}, "clock_hz", "1980 is not in Hz"),
        ("h100-sxm", {"max_w": q(0.7)}, "max_w", "0.7 is not in watts"),
        ("h100-sxm", {"max_w": q(300)}, "max_w", "TFLOP/s per watt"),
        ("h100-pcie", {"idle_w": q(400)}, "idle_w", "not below the cap"),
        ("mi300x", {"pair_bytes_per_s": q(900e9)}, "pair_bytes_per_s", "more to one device"),
    ],
)
def test_the_linter_names_the_key_and_the_reason(of, changes, key, reason):
    found = lint.findings(Device.from_json({**DEVICES[of].to_json(), **changes}))
    assert any(finding.key == key and reason in finding.reason for finding in found), found


GOOD = """id = "x"
name = "X"
vendor = "V"
kind = "gpu"
[max_w]
value = 100
source = "datasheet"
date = "2026-01-31"
tier = "vendor"
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("tier", "rank"), "max_w: needs exactly value, source, date, tier"),
        (('"datasheet"', '""'), "max_w: source is empty"),
        (('"vendor"', '"hearsay"'), "max_w: tier 'hearsay' is none of"),
        (("2026-01-31", "31.1.26"), "max_w: date must be"),
        (("= 100", '= "100 W"'), "max_w: value must be a positive number"),
        (("= 100", "= -1"), "max_w: value must be a positive number"),
        (("max_w", "max_kw"), "max_kw: no such field"),
        (('id = "x"', 'id = "y"'), "id: 'y' is not the file's name"),
        (('"gpu"', '"fpga"'), "kind: 'fpga' is neither"),
        (('name = "X"', ""), "name: missing"),
        (("[max_w]", "[max_w"), "not TOML"),
    ],
)
def test_a_wrong_profile_says_file_key_and_reason(tmp_path, change, reason):
    path = tmp_path / "x.toml"
    path.write_text(GOOD)
    assert read_device(path).max_w.value == 100
    path.write_text(GOOD.replace(*change))
    with pytest.raises(ProfileError) as caught:
        read_device(path)
    assert str(caught.value).startswith("x.toml: ")
    assert reason in str(caught.value)


# A person's own profiles


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An empty configuration folder and an empty project."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    for place in ("config/gimlet_lab/profiles", "profiles"):
        for kind in ("devices", "prices"):
            (tmp_path / place / kind).mkdir(parents=True)
    return tmp_path


def number(key, value):
    return f'{key} = {{ value = {value}, source = "my datasheet", date = "2026-11-25", tier = "vendor" }}\n'


def test_a_person_adds_a_device_and_corrects_another(own):
    new = own / "config/gimlet_lab/profiles/devices/npu-1.toml"
    new.write_text(
        'id = "npu-1"\nname = "NPU One"\nvendor = "Ours"\nkind = "gpu"\n' + number("memory_bytes", 64e9)
    )
    (own / "profiles/devices/h100-sxm.toml").write_text(number("max_w", 500))
    assert catalogue.find("npu one").memory_bytes.value == 64e9
    assert catalogue.find("h100-sxm").max_w.source == "my datasheet"
    assert catalogue.find("h100-sxm").bandwidth_bytes_per_s == DEVICES["h100-sxm"].bandwidth_bytes_per_s
    new.unlink()
    with pytest.raises(UnknownNameError):
        catalogue.find("npu-1")


def test_the_project_goes_before_the_configuration(own):
    (own / "config/gimlet_lab/profiles/devices/t4.toml").write_text(number("max_w", 65))
    (own / "profiles/devices/t4.toml").write_text(number("max_w", 60))
    assert catalogue.find("t4").max_w.value == 60


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (number("bandwidth_bytes_per_s", 3350), "bandwidth_bytes_per_s: 3350 is not in bytes per second"),
        ("[peak_flops]\n" + number("bfloat16", 1979e12), "peak_flops.bfloat16: "),
        (number("max_kw", 1), "max_kw: no such field"),
        ('id = "h100"\n', "id: 'h100' is not the file's name"),
        ("kind = 3\n", "kind: must be a text"),
    ],
)
def test_a_wrong_profile_of_ones_own_says_file_key_reason_and_place(own, text, reason):
    (own / "profiles/devices/h100-sxm.toml").write_text(text)
    with pytest.raises(ProfileError) as caught:
        catalogue.find("h100-sxm")
    assert str(caught.value).startswith(f"h100-sxm.toml: {reason}")
    assert str(own / "profiles") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_device_needs_its_name(own):
    (own / "profiles/devices/npu-1.toml").write_text('id = "npu-1"\n')
    with pytest.raises(ProfileError, match=r"npu-1\.toml: name: missing"):
        catalogue.devices()


def test_a_price_of_ones_own_is_planned_with(own):
    line = number("usd_per_hour", 0.5).replace("2026-11-25", "2027-01-01").replace("usd_per_hour = ", "")
    (own / "profiles/prices/ours.toml").write_text(
        f'kind = "on-demand"\n[[offers]]\ndevice = "h100-sxm"\nusd_per_hour = {line}'
    )
    assert catalogue.find("h100-sxm").usd_per_hour.value == 0.5
    assert any(offer.provider == "ours" for offer in prices.offers())
