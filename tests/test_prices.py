"""Money: what an hour costs by each basis, from dated offers; the paper's own column from its own terms."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gimlet_lab.costs.kv import egress_bytes_per_s, kv_bytes
from gimlet_lab.errors import UnknownNameError
from gimlet_lab.hardware import catalogue, prices
from gimlet_lab.hardware.fleet import fleet
from gimlet_lab.hardware.profiles import ProfileError
from gimlet_lab.model import Device, Quantity

DEVICES = catalogue.devices()
OFFERS = prices.offers()


def q(value: float, date: str = "2026") -> Quantity:
    return Quantity(value, "s", date, "vendor")


def test_every_offer_is_for_a_device_of_the_catalogue_at_a_price_one_can_believe():
    assert {offer.kind for offer in OFFERS} == {"on-demand", "spot", "reserved", "owning", "capex"}
    for offer in OFFERS:
        assert offer.device in DEVICES, offer
        if offer.usd_per_hour:
            assert 0.05 < offer.usd_per_hour.value < 50, offer
        else:
            assert 500 < offer.capex_usd.value < 1e5, offer


def test_the_latest_offer_counts_and_of_one_date_the_cheapest():
    def offer(usd, date, kind="on-demand", device="x"):
        return prices.Offer(device, "p", kind, q(usd, date))

    known = (
        offer(1.0, "2025-01"),
        offer(3.0, "2026-04"),
        offer(2.0, "2026-04"),
        offer(0.1, "2026-05", "reserved"),
        offer(0.2, "2026-05", device="y"),
    )
    device = Device("x", "X", "V", "gpu")
    assert prices.price(device, "rent", known).value == 2.0
    assert prices.price(device, "reserved", known).value == 0.1
    assert prices.price(device, "spot", known) is None
    assert prices.price(Device("z", "Z", "V", "gpu"), "rent", known) is None
    with pytest.raises(UnknownNameError, match="no price basis 'rented'; did you mean 'rent'"):
        prices.price(device, "rented", known)


def test_a_fleet_is_priced_by_a_basis_and_says_whose_price_it_is():
    mine = fleet("h100-sxm gaudi3", local=())
    by = {basis: prices.priced(mine, basis) for basis in prices.BASES}
    rent = by["rent"]["h100-sxm"].usd_per_hour
    assert (rent.source, rent.date) != ("", "")
    assert (
        by["operating"]["h100-sxm"].usd_per_hour.value
        < by["amortised"]["h100-sxm"].usd_per_hour.value
        < rent.value
    )
    assert by["rent"]["gaudi3"].usd_per_hour is None  # nobody's hourly rate is known
    assert "12,500 USD" in by["operating"]["gaudi3"].usd_per_hour.source
    live = Device("cpu", "here", "V", "cpu", live=True)
    assert prices.priced(replace(mine, devices=(live,)), "rent").devices == (live,)


def test_tokens_have_a_price():
    offer = prices.token_price("gpt-4o-mini")
    assert 0 < offer.usd_per_input_token.value < offer.usd_per_output_token.value < 1e-4
    with pytest.raises(UnknownNameError, match="'gpt-4o'"):
        prices.token_price("gpt-4")


# The paper (arXiv 2507.19635, Table 5): prices averaged across resellers, four years at 8%, 0.40 USD/kWh

PRINTED = {
    "a40": 0.15, "a100-sxm-80gb": 0.25, "gaudi3": 0.49, "mi300x": 0.52, "h100-sxm": 0.60, "b200-sxm": 0.83,
}  # fmt: skip


@pytest.mark.parametrize("device_id", [name for name in PRINTED if name != "h100-sxm"])
def test_the_papers_operating_cost_follows_from_its_prices_and_power(device_id):
    found = prices.price(DEVICES[device_id], "operating", OFFERS)
    assert round(found.value, 2) == PRINTED[device_id]


def test_the_papers_h100_row_is_not_consistent_with_its_own_price():
    """0.60 is what 30,000 USD would give; from the 25,000 printed beside it follows 0.55."""
    h100 = DEVICES["h100-sxm"]
    found = prices.price(h100, "operating", OFFERS)
    assert round(found.value, 2) == 0.55
    terms = next(offer.terms for offer in OFFERS if offer.kind == "capex")
    assert prices.implied_capex_usd(0.60, h100.max_w.value, terms) == pytest.approx(30_000, rel=0.01)


def test_only_continuous_compounding_gives_every_other_row():
    monthly = [replace(o, terms=replace(o.terms, compounding="monthly")) for o in OFFERS if o.kind == "capex"]
    rows = {name: round(prices.price(DEVICES[name], "operating", monthly).value, 2) for name in PRINTED}
    assert {name for name in PRINTED if rows[name] != PRINTED[name]} == {"h100-sxm", "mi300x"}


def test_the_principal_more_than_doubles_what_the_paper_prices_with():
    monthly = [replace(o, terms=replace(o.terms, compounding="monthly")) for o in OFFERS if o.kind == "capex"]
    rows = {name: round(prices.price(DEVICES[name], "amortised", monthly).value, 3) for name in PRINTED}
    assert list(rows.values()) == [0.22, 0.428, 0.778, 0.969, 1.116, 1.738]


def test_idle_hours_and_the_building_are_paid_for():
    terms = prices.Terms(q(4), q(0.08), q(0.1), q(1.5), q(0.5))
    full = replace(terms, utilisation=q(1))
    assert terms.annuity_usd_per_hour(1000) == pytest.approx(2 * full.annuity_usd_per_hour(1000))
    assert terms.energy_usd_per_hour(1000) == pytest.approx(0.15)


CAPEX = """kind = "capex"
[terms]
years = {Q4}
rate_per_year = {Q}
usd_per_kwh = {Q}
pue = {Q}
utilisation = {Q}
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('kind = "gift"\n', "kind: 'gift' is none of on-demand, spot"),
        (
            'kind = "spot"\n[[offers]]\ndevice = "t4"\n',
            "offers[0]: needs device and usd_per_hour, has device",
        ),
        ('kind = "capex"\n', "terms: needs exactly years"),
        (CAPEX.replace("kind =", 'compounding = "daily"\nkind ='), "compounding: 'daily' is none of"),
        (CAPEX.replace("rate_per_year = {Q}", "rate_per_year = {Q4}"), "terms.rate_per_year: 4 is above 1"),
        (
            (
                'kind = "api"\n[[offers]]\nmodel = "m"\n'
                "usd_per_input_token = {Q4}\nusd_per_output_token = {Q4}\n"
            ),
            "offers[0].usd_per_input_token: 4 USD for one token: a price of a million?",
        ),
    ],
)
def test_a_wrong_price_says_file_key_and_reason(tmp_path, text, reason):
    (tmp_path / "prices").mkdir()
    number = '{{ value = {}, source = "s", date = "2026", tier = "vendor" }}'
    text = text.replace("{Q4}", number.format(4)).replace("{Q}", number.format(0.5))
    (tmp_path / "prices" / "shop.toml").write_text(text)
    with pytest.raises(ProfileError, match="^" + re.escape(f"shop.toml: {reason}")):
        prices.offers((tmp_path,))


def test_the_papers_link_rates_for_the_kv_cache():
    """§5.2: one prefilling GPU, batch 1, FP16, a TTFT of 250 ms."""
    llama = {"8b": (32, 4096, 32, 8), "70b": (80, 8192, 64, 8)}
    gbit = {
        (name, tokens): egress_bytes_per_s(kv_bytes(*dims, tokens), 0.25) * 8 / 1e9
        for name, dims in llama.items()
        for tokens in (4096, 32768)
    }
    assert {key: round(rate) for key, rate in gbit.items()} == {
        ("8b", 4096): 17, ("8b", 32768): 137, ("70b", 4096): 43, ("70b", 32768): 344,
    }  # fmt: skip
    # Spread over devices, or as 8 bits, it is a share of it.
    assert egress_bytes_per_s(
        kv_bytes(*llama["70b"], 32768, item_bytes=1), 0.25, 4
    ) * 8 / 1e9 == pytest.approx(344 / 8, rel=1e-2)
