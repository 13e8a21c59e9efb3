"""What rooms hold: the tables behind the game generator and the expert's common sense.

Counted over the official ALFWorld games: which objects occur in which rooms, what can be done with them, which
receptacles may contain them and where they usually lie.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ObjectKind:
    """One kind of object. `places` maps receptacle kinds that can contain it to their share in percent (0: rare)."""

    name: str
    rooms: tuple[str, ...]
    properties: frozenset[str]
    places: dict[str, int]


# name: rooms: properties: places with their share in percent;
_OBJECT_TABLE = """
AlarmClock: bedroom: -: Desk 35 Shelf 22 SideTable 19 Dresser 17 DiningTable 7 CounterTop 1;
Apple: kitchen: clean heat cool slice: Fridge 25 CounterTop 24 DiningTable 15 GarbageCan 13 Microwave 13
  SinkBasin 9 SideTable 2;
Book: kitchen living bedroom: -: Bed 38 Desk 14 CounterTop 10 Drawer 10 Dresser 6 DiningTable 5 SideTable 4
  Cabinet 4 CoffeeTable 3 ArmChair 3 Sofa 2 Shelf 2 Ottoman 0;
Bowl: kitchen living bedroom: clean cool holds: Cabinet 30 Fridge 18 CounterTop 18 DiningTable 14 Desk 6 Shelf
  6 SinkBasin 3 Microwave 2 Dresser 2 SideTable 1 CoffeeTable 1;
Box: living bedroom: holds: DiningTable 23 Sofa 23 CoffeeTable 20 Shelf 8 SideTable 7 Desk 6 Cabinet 5 Dresser
  4 ArmChair 3 Ottoman 1;
Bread: kitchen: heat cool slice: CounterTop 56 DiningTable 30 Fridge 13 SideTable 1 GarbageCan 1 Microwave 1;
ButterKnife: kitchen: clean: CounterTop 60 DiningTable 25 Drawer 8 SinkBasin 6 SideTable 1;
CD: bedroom: -: Drawer 29 Desk 21 Dresser 14 SideTable 12 GarbageCan 9 Shelf 7 DiningTable 6 Cabinet 2 Safe 1
  CounterTop 0;
Candle: living bathroom: -: CounterTop 29 Toilet 28 Cabinet 13 Drawer 12 Shelf 6 SideTable 5 CoffeeTable 2
  DiningTable 2 Cart 1 Dresser 1;
CellPhone: kitchen living bedroom: -: Drawer 21 Bed 20 Desk 12 CounterTop 11 Dresser 8 SideTable 8 Shelf 6
  DiningTable 6 ArmChair 3 Safe 2 CoffeeTable 1 Sofa 1 Ottoman 1;
Cloth: bathroom: clean: BathtubBasin 32 Cabinet 21 CounterTop 16 Drawer 15 Shelf 5 SinkBasin 4 Toilet 3 Cart 1
  Dresser 1 SideTable 1 ArmChair 0 Desk 0 DiningTable 0 GarbageCan 0 LaundryHamper 0;
CreditCard: kitchen living bedroom: -: Drawer 26 Shelf 14 SideTable 12 Desk 9 Dresser 8 CounterTop 8 Sofa 7
  ArmChair 6 CoffeeTable 5 DiningTable 5 Ottoman 1 Safe 0;
Cup: kitchen: clean heat cool holds: Cabinet 23 Fridge 21 CounterTop 21 DiningTable 14 SinkBasin 10 Microwave
  7 Shelf 2 SideTable 2;
DishSponge: kitchen bathroom: clean: CounterTop 25 Cabinet 22 Drawer 21 DiningTable 11 SinkBasin 8 GarbageCan
  5 Shelf 4 BathtubBasin 2 Toilet 1 SideTable 1 Cart 1;
Egg: kitchen: clean heat cool slice: Fridge 25 CounterTop 24 SinkBasin 13 GarbageCan 13 Microwave 12
  DiningTable 11 SideTable 1;
Fork: kitchen: clean: CounterTop 44 DiningTable 23 Drawer 23 SinkBasin 9 SideTable 1;
Glassbottle: kitchen: -: Cabinet 34 CounterTop 31 DiningTable 12 SinkBasin 10 Fridge 8 Shelf 5 Microwave 0;
HandTowel: bathroom: -: HandTowelHolder 96 CounterTop 4 BathtubBasin 0 Cabinet 0 Cart 0 Drawer 0 GarbageCan 0
  Shelf 0 SideTable 0 SinkBasin 0 Toilet 0;
Kettle: kitchen: clean: StoveBurner 42 CounterTop 26 Cabinet 24 DiningTable 7 SinkBasin 2 Shelf 1 SideTable 0;
KeyChain: living bedroom: -: Drawer 23 SideTable 16 Shelf 12 Desk 12 Dresser 11 CoffeeTable 7 DiningTable 5
  ArmChair 5 Sofa 4 Safe 4 Ottoman 1 CounterTop 1;
Knife: kitchen: clean: CounterTop 50 DiningTable 24 Drawer 20 SinkBasin 5 SideTable 1;
Ladle: kitchen: clean: CounterTop 42 Cabinet 25 Drawer 17 DiningTable 14 SinkBasin 2;
Laptop: living bedroom: -: Bed 48 Desk 12 Sofa 10 DiningTable 9 CoffeeTable 9 Dresser 6 ArmChair 3 SideTable 3
  CounterTop 1 Ottoman 1;
Lettuce: kitchen: clean cool slice: CounterTop 42 DiningTable 27 Fridge 24 SinkBasin 5 SideTable 1 GarbageCan
  1;
Mug: kitchen bedroom: clean heat cool holds: CounterTop 24 CoffeeMachine 15 Cabinet 14 Fridge 12 DiningTable
  10 Microwave 6 Desk 6 SinkBasin 5 Shelf 4 SideTable 3 Dresser 2;
Newspaper: living: -: Sofa 20 CoffeeTable 17 DiningTable 17 SideTable 15 Shelf 11 Dresser 9 ArmChair 7 Drawer
  2 Ottoman 1 Cabinet 1 GarbageCan 1;
Pan: kitchen: clean cool holds: StoveBurner 53 CounterTop 32 Cabinet 7 Fridge 4 DiningTable 4 SinkBasin 1
  SideTable 0;
Pen: kitchen living bedroom: -: Desk 22 Drawer 18 Dresser 14 Shelf 13 SideTable 13 DiningTable 9 CounterTop 5
  CoffeeTable 3 GarbageCan 2;
Pencil: kitchen living bedroom: -: Desk 20 Drawer 20 SideTable 16 Shelf 15 Dresser 10 DiningTable 8 GarbageCan
  6 CounterTop 4 CoffeeTable 2;
PepperShaker: kitchen: -: Cabinet 33 CounterTop 31 DiningTable 16 Drawer 15 Shelf 4 SideTable 2;
Pillow: living bedroom: -: Bed 69 Sofa 24 ArmChair 7 Ottoman 1;
Plate: kitchen living: clean heat cool holds: Cabinet 37 CounterTop 27 DiningTable 18 Fridge 9 Shelf 3
  SinkBasin 2 CoffeeTable 2 SideTable 1 Microwave 1 Dresser 1;
Pot: kitchen: clean cool holds: StoveBurner 74 CounterTop 14 Fridge 4 DiningTable 4 Cabinet 3 Shelf 1
  SinkBasin 1 SideTable 0;
Potato: kitchen: clean heat cool slice: CounterTop 29 Fridge 27 DiningTable 16 SinkBasin 11 Microwave 10
  GarbageCan 7 SideTable 1;
RemoteControl: living bedroom: -: CoffeeTable 21 Sofa 17 SideTable 14 DiningTable 10 Dresser 9 Drawer 9
  ArmChair 9 Desk 5 Shelf 3 CounterTop 1 Ottoman 1;
SaltShaker: kitchen: -: Cabinet 31 CounterTop 31 DiningTable 17 Drawer 15 Shelf 3 SideTable 2;
SoapBar: bathroom: clean: CounterTop 20 Toilet 16 SinkBasin 14 Cabinet 12 BathtubBasin 12 Drawer 11 GarbageCan
  7 Shelf 4 SideTable 2 Cart 1;
SoapBottle: kitchen bathroom: -: CounterTop 32 Cabinet 29 DiningTable 15 GarbageCan 10 Toilet 6 Shelf 5 Drawer
  2 SideTable 1 Cart 1;
Spatula: kitchen: clean: CounterTop 45 DiningTable 24 Drawer 21 SinkBasin 9 SideTable 1;
Spoon: kitchen: clean: CounterTop 38 Drawer 28 DiningTable 21 SinkBasin 11 SideTable 2;
SprayBottle: kitchen bathroom: -: CounterTop 32 Toilet 23 Cabinet 19 GarbageCan 10 Shelf 6 Cart 3 DiningTable
  3 SideTable 2 Dresser 2 Drawer 1;
Statue: kitchen living bedroom: -: Shelf 30 CounterTop 18 CoffeeTable 15 DiningTable 14 SideTable 12 Dresser 7
  Desk 2 Safe 1;
TissueBox: living bedroom bathroom: -: Shelf 18 CoffeeTable 14 Drawer 14 CounterTop 13 DiningTable 11
  SideTable 11 Desk 8 Cabinet 3 TVStand 3 Dresser 2 Cart 1 Toilet 1 GarbageCan 1;
ToiletPaper: bathroom: -: Toilet 24 CounterTop 22 Cabinet 12 ToiletPaperHanger 12 Drawer 11 GarbageCan 9 Shelf
  5 Dresser 2 Cart 2 SideTable 1;
Tomato: kitchen: clean heat cool slice: Fridge 33 CounterTop 30 DiningTable 19 GarbageCan 9 SinkBasin 7
  SideTable 2 Microwave 0;
Towel: bathroom: -: TowelHolder 100;
Vase: kitchen living bedroom: -: Shelf 35 Cabinet 18 CounterTop 17 CoffeeTable 9 DiningTable 8 Dresser 7
  SideTable 6 Desk 1 Safe 1;
Watch: living bedroom: -: Drawer 24 CoffeeTable 22 SideTable 18 DiningTable 12 Dresser 12 Shelf 7 Desk 3 Safe
  1;
WateringCan: living: -: CoffeeTable 53 Shelf 38 SideTable 9 Cabinet 0 Desk 0 DiningTable 0 Drawer 0 Dresser 0;
WineBottle: kitchen: cool: CounterTop 37 Cabinet 25 DiningTable 24 GarbageCan 9 Shelf 3 Fridge 2 SideTable 1;
"""


def _parse_objects(table: str) -> dict[str, ObjectKind]:
    kinds = {}
    for entry in table.strip().rstrip(";").split(";"):
        name, rooms, properties, receptacles = (part.split() for part in entry.split(":"))
        shares = dict(zip(receptacles[::2], map(int, receptacles[1::2]), strict=True))
        kinds[name[0]] = ObjectKind(name[0], tuple(rooms), frozenset(properties) - {"-"}, shares)
    return kinds


OBJECTS: dict[str, ObjectKind] = _parse_objects(_OBJECT_TABLE)

FIXTURES: dict[str, dict[str, tuple[str, ...]]] = {
    "kitchen": {"HousePlant": ("CounterTop", "DiningTable")},
    "living": {
        "HousePlant": ("SideTable", "CoffeeTable", "Dresser"),
        "Television": ("TVStand", "Dresser", "CoffeeTable"),
    },
    "bedroom": {"HousePlant": ("Shelf", "Desk", "Dresser"), "Television": ("Dresser",)},
    "bathroom": {"HousePlant": ("SideTable",)},
}
"""Things that stand on receptacles and cannot be taken: room -> kind -> where."""

LAMP = "DeskLamp"
LAMP_PLACES: dict[str, tuple[str, ...]] = {
    "bedroom": ("Desk", "SideTable", "Dresser", "Shelf"),
    "living": ("SideTable", "CoffeeTable"),
}
"""Rooms with a lamp to look at things by, and where it stands."""

OPENABLE = frozenset({"Cabinet", "Drawer", "Fridge", "Microwave", "Safe"})

RECEPTACLES: dict[str, dict[str, tuple[float, int, int]]] = {
    "kitchen": {
        "Cabinet": (1.0, 4, 16),
        "CoffeeMachine": (1.0, 1, 1),
        "CounterTop": (1.0, 1, 3),
        "DiningTable": (0.54, 1, 2),
        "Drawer": (0.97, 1, 12),
        "Fridge": (1.0, 1, 1),
        "GarbageCan": (1.0, 1, 1),
        "Microwave": (1.0, 1, 1),
        "Shelf": (0.23, 3, 3),
        "SideTable": (0.1, 1, 1),
        "SinkBasin": (1.0, 1, 1),
        "StoveBurner": (1.0, 4, 6),
        "Toaster": (1.0, 1, 1),
    },
    "living": {
        "ArmChair": (0.92, 1, 3),
        "Cabinet": (0.18, 1, 8),
        "CoffeeTable": (0.81, 1, 2),
        "DiningTable": (0.47, 1, 2),
        "Drawer": (0.78, 1, 10),
        "Dresser": (0.39, 1, 2),
        "GarbageCan": (1.0, 1, 1),
        "Ottoman": (0.12, 1, 1),
        "Safe": (0.04, 1, 1),
        "Shelf": (0.38, 1, 10),
        "SideTable": (0.82, 1, 4),
        "Sofa": (1.0, 1, 2),
        "TVStand": (0.34, 1, 2),
    },
    "bedroom": {
        "ArmChair": (0.18, 1, 2),
        "Bed": (1.0, 1, 2),
        "Cabinet": (0.15, 1, 4),
        "Desk": (0.71, 1, 2),
        "DiningTable": (0.12, 1, 1),
        "Drawer": (0.96, 2, 10),
        "Dresser": (0.44, 1, 2),
        "GarbageCan": (1.0, 1, 1),
        "LaundryHamper": (0.3, 1, 1),
        "Safe": (0.2, 1, 1),
        "Shelf": (0.69, 1, 10),
        "SideTable": (0.63, 1, 2),
    },
    "bathroom": {
        "BathtubBasin": (0.65, 1, 1),
        "Cabinet": (0.46, 2, 6),
        "Cart": (0.08, 1, 1),
        "CounterTop": (0.86, 1, 2),
        "Drawer": (0.56, 1, 6),
        "Dresser": (0.08, 1, 1),
        "GarbageCan": (1.0, 1, 1),
        "HandTowelHolder": (1.0, 1, 2),
        "Shelf": (0.25, 1, 4),
        "SideTable": (0.06, 1, 1),
        "SinkBasin": (1.0, 1, 2),
        "Toilet": (1.0, 1, 1),
        "ToiletPaperHanger": (1.0, 1, 1),
        "TowelHolder": (1.0, 1, 2),
    },
}
"""Room -> receptacle kind -> (share of rooms that have it, fewest, most) in full-size rooms."""

OBJECT_COUNTS: dict[str, tuple[int, int]] = {
    "kitchen": (28, 60),
    "living": (10, 38),
    "bedroom": (14, 34),
    "bathroom": (9, 24),
}
"""Fewest and most objects of a full-size room."""

_OBJECT_TYPES = """
AlarmClock Apple BaseballBat BasketBall Bathtub Blinds Book Boots Bowl Box Bread ButterKnife CD Candle CellPhone
Chair Cloth CreditCard Cup Curtains DeskLamp DishSponge Egg FloorLamp Footstool Fork Glassbottle HandTowel
HousePlant Kettle KeyChain Knife Ladle Laptop LaundryHamperLid Lettuce LightSwitch Mirror Mug Newspaper Painting
Pan PaperTowel PaperTowelRoll Pen Pencil PepperShaker Pillow Plate Plunger Poster Pot Potato RemoteControl
SaltShaker ScrubBrush ShowerDoor ShowerGlass Sink SoapBar SoapBottle Spatula Spoon SprayBottle Statue StoveKnob
TeddyBear Television TennisRacket TissueBox ToiletPaper ToiletPaperRoll Tomato Towel Vase Watch WateringCan Window
WineBottle
"""

_RECEPTACLE_TYPES = """
ArmChair BathtubBasin Bed Cabinet Cart CoffeeMachine CoffeeTable CounterTop Desk DiningTable Drawer Dresser Fridge
GarbageCan HandTowelHolder LaundryHamper Microwave Ottoman PaintingHanger Safe Shelf SideTable SinkBasin Sofa
StoveBurner TVStand Toaster Toilet ToiletPaperHanger TowelHolder
"""

OBJECT_TYPES = tuple(_OBJECT_TYPES.split())
RECEPTACLE_TYPES = tuple(_RECEPTACLE_TYPES.split())
"""The object and receptacle types that every game of the domain declares."""
