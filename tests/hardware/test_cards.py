"""The catalogue of cards: whole, sourced, and found however a card is called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import GIB
from mimo_gguf.hardware.cards import cards, find_card, find_cards, other_sizes

# The cards of the published list with the bandwidth and price it gives.
PAGE = {
    "Tesla K20c": (208, 0), "Tesla K20m": (208, 0), "Tesla K20s": (208, 0), "Tesla K20X": (250, 0),
    "Tesla K20Xm": (250, 0), "GTX 1060 5GB": (160, 0), "P102-100": (440, 0), "RTX 3050 6GB": (168, 169),
    "Arc A380": (186, 129), "RTX 2060 6GB": (336, 150), "GTX 1660": (192, 0), "GTX 1660 SUPER": (336, 150),
    "GTX 1660 Ti": (288, 140), "GTX 1060 6GB": (192, 80), "GTX 1060 6GB 9Gbps": (217, 0),
    "GTX 1060 6GB GDDR5X": (192, 0), "GTX 1060 6GB GP104": (192, 0), "GTX 1060 6GB Rev. 2": (192, 0),
    "Tesla C2070": (143, 0), "Tesla C2075": (150, 0), "Tesla C2090": (177, 0), "Tesla M2070": (150, 0),
    "Tesla M2070-Q": (150, 0), "Tesla M2075": (150, 0), "Tesla M2090": (177, 0), "Tesla X2070": (177, 0),
}  # fmt: skip


def test_every_card_is_whole_and_unique() -> None:
    catalogue = cards()
    assert len(catalogue) >= 200
    assert len({card.name.lower() for card in catalogue}) == len(catalogue)
    for card in catalogue:
        assert card.vendor in ("nvidia", "amd", "intel", "apple") and card.source, card
        assert 1 <= card.memory_gb <= 200 and 50 <= card.bandwidth_gbs <= 10000, card
        assert not card.price_usd or card.price_source, card
        assert card.backend and card.kind in ("desktop", "laptop", "datacenter", "integrated"), card


def test_every_figure_has_a_source_and_the_bandwidth_is_what_the_bus_carries() -> None:
    published = "published GPU list for MiMo-7B"
    for card in cards():
        for source in card.source.split("; "):
            assert source.startswith("https://") or (source == published and card.name in PAGE), card
        assert "https://" in card.source, card
        if card.price_usd:
            assert card.price_source.startswith("https://") != (card.price_source == published), card
            assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", card.price_date) or card.price_source == published, card
        assert bool(card.board_watts) == card.power_source.startswith("https://"), card
        assert not card.power_supply_watts or 200 < card.power_supply_watts - card.board_watts < 500, card
        assert 0 <= card.board_watts <= 1000, card
        carried = card.bus_bits * card.data_rate_gbps / 8
        assert card.bandwidth_gbs == pytest.approx(carried, rel=0.025 if card.vendor == "apple" else 0.01), card


def test_the_documents_count_what_the_catalogue_has() -> None:
    docs = Path(__file__).parents[2] / "docs"
    counts = [sum(bool(getattr(card, name)) for card in cards()) for name in ("price_usd", "board_watts")]
    n_priced, n_watts = counts
    assert f"All {n_priced} were found" in (docs / "memory.md").read_text()
    page = (docs / "advise.md").read_text()
    assert f"the page for each of {n_watts} " in page
    own = sum(bool(re.match(r"https://www\.(nvidia|amd|geforce)\.com/", card.power_source)) for card in cards())
    assert f"own for {own} cards" in page
    assert f"the middle of the {sum(bool(card.power_supply_watts) for card in cards())} that do" in page


def test_the_families_people_own_are_there() -> None:
    for pattern, n in (
        ("GTX 10", 10), ("GTX 16", 5), ("RTX 20", 8), ("RTX 30", 15), ("RTX 40", 13), ("RTX 50", 12), ("Laptop", 15),
        ("RX 6", 13), ("RX 7", 8), ("RX 9", 4), ("Arc A", 4), ("Arc B", 2), ("M1", 8), ("M2", 9), ("M3", 8), ("M4", 8),
    ):  # fmt: skip
        assert sum(pattern in card.name for card in cards()) >= n, pattern


def test_the_published_lists_cards_are_there_and_old_ones_are_called_old() -> None:
    for name, (bandwidth, price) in PAGE.items():
        card = find_card(name)
        assert (card.name, card.bandwidth_gbs, card.price_usd) == (name, bandwidth, price)
        assert card.is_supported == (not name.startswith("Tesla"))


def test_names_are_found_however_they_are_written() -> None:
    for text in ("RTX 3060 Ti", "rtx3060ti", "NVIDIA GeForce RTX 3060 Ti", "3060 ti"):
        assert find_card(text).name == "RTX 3060 Ti"
    assert find_card("4090").name == "RTX 4090" and find_card("rx 7900xtx").name == "RX 7900 XTX"
    assert find_card("apple m2 ultra 128").memory_bytes == 96 * GIB
    with pytest.raises(UsageError, match="more than one") as caught:
        find_card("rtx 306")
    assert "RTX 3060 12GB" in str(caught.value.hint)
    for text in ("Voodoo 2", ""):
        with pytest.raises(UsageError, match="no card") as caught:
            find_card(text)
        assert "mimo-gguf gpus" in str(caught.value.hint)
    with pytest.raises(UsageError) as caught:
        find_card("RTX 4190")
    assert "RTX 4090" in str(caught.value.hint)


def test_of_several_sizes_the_smallest_is_meant_or_the_one_at_hand() -> None:
    smallest = find_card("RTX 3060")
    assert smallest.name == find_card("3060").name == "RTX 3060 8GB"
    assert [card.name for card in other_sizes(smallest)] == ["RTX 3060 12GB"] and other_sizes(find_card("4090")) == []
    assert find_card("RTX 3060", 12 * GIB - 200_000_000).name == "RTX 3060 12GB"
    assert find_card("Apple M2 Pro", 22 * GIB).name == "M2 Pro 32GB"


@pytest.mark.parametrize(
    ("described", "name"),
    [
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "RTX 4060 Laptop"),
        ("NVIDIA GeForce GTX 1650 SUPER", "GTX 1650 SUPER"),
        ("Tesla T4", "Tesla T4"),
        ("NVIDIA L4", "L4"),
        ("AMD Radeon RX 7900 XTX (RADV NAVI31)", "RX 7900 XTX"),
        ("AMD Radeon RX 5700 XT", "RX 5700 XT"),
        ("Intel(R) Arc(TM) A770 Graphics", "Arc A770 16GB"),
        ("Apple M1 Max", "M1 Max 32GB"),
    ],
)
def test_what_drivers_call_a_card_is_understood(described: str, name: str) -> None:
    assert find_card(described).name == name


def test_a_name_may_mean_several() -> None:
    assert [card.name for card in find_cards(["4090", "RTX 3060"])] == ["RTX 3060 8GB", "RTX 3060 12GB", "RTX 4090"]
    assert len(find_cards(["RTX 30"])) > 10 and find_cards(["4090", "RTX 4090"]) == (find_card("4090"),)
    for text in ("Voodoo 2", "", "GPU"):
        with pytest.raises(UsageError, match="no card"):
            find_cards(["4090", text])


# Token generation as published: card, tok/s, GB read per token (the file less its input embedding), where.
# Llama 3.1 8B in Q4_K_M is 4.92 GB, of which 0.30 GB are that; in Q4_0 4.65 and 0.30; Llama 2 7B in Q4_0 3.82 and 0.07.
MEASURED = (
    ("RTX 3080 10GB", 111.95, 4.62, "https://github.com/dmatora/LLM-inference-speed-benchmarks/issues/12"),
    ("RTX 2080", 71.9, 4.62, "https://github.com/AlexsJones/llmfit/pull/773"),
    ("RTX 3090", 155.0, 4.35, "https://github.com/ggml-org/llama.cpp/pull/15802"),
    ("Tesla P40", 56.8, 3.75, "https://github.com/ggml-org/llama.cpp/pull/4766"),
    ("RX 7900 XTX", 105.8, 4.62, "https://github.com/ggml-org/llama.cpp/pull/26284"),
    ("RX 5700 XT", 65.2, 3.75, "https://github.com/ggml-org/llama.cpp/pull/13324"),
    ("RX 9070 XT", 91.1, 4.68, "https://github.com/ggml-org/llama.cpp/issues/26663"),  # Qwen3 8B, ROCm
    ("Arc B580", 66.5, 4.37, "https://github.com/intel/ipex-llm/issues/12991"),  # Qwen2 7B, SYCL
    ("Arc A770 16GB", 42.0, 4.62, "https://github.com/ggml-org/llama.cpp/issues/17628"),  # 53 before b7189
    ("M1 Max 64GB", 46.2, 4.62, "https://github.com/brand-o/normiebench/issues/40"),
    ("M2 Pro 16GB", 33.0, 4.62, "https://github.com/AlexsJones/llmfit/pull/1031"),
    ("M4 16GB", 20.9, 4.62, "https://github.com/brand-o/normiebench/issues/3"),
)


@pytest.mark.parametrize(("name", "tps", "gb_read", "source"), MEASURED)
def test_speeds_are_near_what_was_measured(name: str, tps: float, gb_read: float, source: str) -> None:
    """Never more than a tenth above (nobody is promised too much), nor a fifth below; docs/memory.md names each."""
    card = find_card(name)
    assert 0.8 <= card.efficiency * card.bandwidth_gbs / gb_read / tps <= 1.1
    assert source.removeprefix("https://github.com/") in (Path(__file__).parents[2] / "docs/memory.md").read_text()
