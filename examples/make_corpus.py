"""Make the demo's corpus: an invented gazetteer of lighthouses, the same every time.

Every name, place and figure is made up by this script, so the corpus is free to ship.
Run it to write ``corpus.txt``, one passage a line.
"""

from __future__ import annotations

import random
from pathlib import Path

COASTS = (
    "Amber", "Basalt", "Cinder", "Driftwood", "Eider", "Fennel", "Gannet", "Heron", "Indigo", "Juniper",
    "Kelp", "Lantern", "Marram", "Nettle", "Osprey", "Plover", "Quarry", "Russet", "Saltmarsh", "Tern",
    "Umber", "Velvet", "Willow", "Yarrow", "Zephyr", "Bracken", "Cormorant", "Dulse", "Fulmar", "Gorse",
)  # fmt: skip
FIRST = (
    "Ar", "Bel", "Cor", "Dun", "El", "Far", "Gal", "Hol", "In", "Jor", "Kel", "Lor", "Mar", "Nor", "Or",
    "Pen", "Quil", "Ros", "Stor", "Tal", "Ul", "Ves", "Wil", "Yar",
)  # fmt: skip
SECOND = ("ven", "mar", "dale", "rick", "wyn", "ness", "holm", "gate", "lin", "moor", "stead", "bury")
KIND = ("Point", "Head", "Rock", "Island", "Spit", "Skerry")
BIRDS = ("puffins", "guillemots", "kittiwakes", "storm petrels", "razorbills", "arctic terns", "shags")
FINISH = ("white", "red and white bands", "black and white spirals", "bare granite", "ochre", "slate grey")
LENGTH = 10  # lighthouses to a coast


def passages() -> list[str]:
    """About 2,700 passages: nine on each of 300 lighthouses."""
    rng = random.Random(1874)
    names = [f"{a}{b} {c}" for a in FIRST for b in SECOND for c in KIND]
    rng.shuffle(names)
    lines = []
    for index in range(len(COASTS) * LENGTH):
        coast, name = COASTS[index // LENGTH], names[index]
        latitude = 48 + 0.45 * (index // LENGTH) + rng.uniform(0.0, 0.4)
        longitude = rng.uniform(1.0, 9.0)
        built, height, reach = rng.randint(1790, 1930), rng.randint(12, 64), rng.randint(9, 28)
        lines += [
            f"Position of {name} lighthouse on the {coast} coast: {latitude:.3f} N, {longitude:.3f} E.",
            f"{name} lighthouse on the {coast} coast was built in {built}; its tower is {height} m tall.",
            (
                f"The light of {name}, {coast} coast, reaches {reach} nautical miles and flashes"
                f" {rng.choice(('once', 'twice', 'three times'))} every {rng.randint(5, 30)} seconds."
            ),
            f"The tower of {name} on the {coast} coast is painted in {rng.choice(FINISH)}.",
            f"{rng.choice(BIRDS).capitalize()} nest below {name} lighthouse from April to July.",
            (
                f"The keeper of {name} left in {rng.randint(1960, 1998)}, when the light on this part of the"
                f" {coast} coast became automatic."
            ),
            (
                f"Visitors reach {name} on foot in {rng.randint(10, 90)} minutes; the door opens at"
                f" {rng.randint(8, 11)} o'clock from May to September."
            ),
            f"The fog horn at {name}, {coast} coast, was silenced in {rng.randint(1970, 2005)}.",
            (
                f"A storm in {rng.randint(1850, 1950)} broke the lantern of {name}; its lens of the"
                f" {rng.choice(('first', 'second', 'third', 'fourth'))} order was replaced the next year."
            ),
        ]
    return lines


if __name__ == "__main__":
    path = Path(__file__).with_name("corpus.txt")
    path.write_text("\n".join(passages()) + "\n", encoding="utf-8")
    print(f"{len(passages())} passages in {path.name}")
