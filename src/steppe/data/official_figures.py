"""The figures and names of the official sets, class by class; :mod:`steppe.data.official` says where each is from."""

from __future__ import annotations


def by_class(table: str) -> dict[str, tuple[int, ...]]:
    """class → pictures of each domain, of a table with one class a line."""
    rows = (line.split() for line in table.strip().splitlines())
    return {name: tuple(map(int, counts)) for name, *counts in rows}


# art_painting, cartoon, photo, sketch
PACS = """
dog 379 389 189 772
elephant 255 457 202 740
giraffe 285 346 182 753
guitar 184 135 186 608
horse 201 324 199 816
house 295 288 280 80
person 449 405 432 160
"""

# Caltech101, LabelMe, SUN09, VOC2007
VLCS = """
bird 237 80 20 330
car 123 1209 932 699
chair 118 88 1036 428
dog 67 42 30 420
person 870 1237 1264 1499
"""

# location_100, location_38, location_43, location_46
TERRA_INCOGNITA_24788 = """
bird 54 3 72 90
bobcat 57 12 1104 999
cat 227 2295 3 21
coyote 12 48 834 873
dog 384 360 195 30
empty 181 194 562 726
opossum 989 4500 777 1339
rabbit 92 1396 73 566
raccoon 2552 198 390 1464
squirrel 331 761 10 14
"""

# Art, Clipart, Product, Real World
OFFICE_HOME = """
Alarm_Clock 74 60 79 86
Backpack 41 56 99 99
Batteries 27 64 62 64
Bed 40 98 43 83
Bike 75 99 44 99
Bottle 99 99 62 78
Bucket 40 73 47 80
Calculator 33 46 81 73
Calendar 20 78 81 68
Candles 76 99 56 99
Chair 69 99 99 96
Clipboards 25 40 65 65
Computer 44 99 96 64
Couch 40 64 88 76
Curtains 40 42 75 73
Desk_Lamp 23 41 83 62
Drill 15 48 67 51
Eraser 18 40 41 43
Exit_Sign 21 41 67 81
Fan 45 50 58 60
File_Cabinet 22 40 71 58
Flipflops 46 40 99 85
Flowers 90 99 91 75
Folder 20 99 90 57
Fork 46 61 41 36
Glasses 40 52 67 60
Hammer 40 99 57 52
Helmet 79 69 90 60
Kettle 46 40 72 72
Keyboard 18 99 99 75
Knives 72 53 41 83
Lamp_Shade 49 40 54 78
Laptop 51 99 99 67
Marker 20 71 56 23
Monitor 42 99 98 71
Mop 32 40 72 46
Mouse 18 76 96 60
Mug 49 99 41 58
Notebook 21 83 93 68
Oven 20 40 68 64
Pan 19 51 70 30
Paper_Clip 19 40 47 68
Pen 20 99 60 65
Pencil 26 99 40 59
Postit_Notes 19 41 38 67
Printer 18 87 99 52
Push_Pin 24 40 43 53
Radio 47 46 43 66
Refrigerator 49 40 59 75
Ruler 15 67 58 41
Scissors 20 99 99 77
Screwdriver 30 75 40 51
Shelf 42 42 49 66
Sink 41 42 46 77
Sneakers 46 43 99 88
Soda 40 61 43 63
Speaker 20 90 99 81
Spoon 46 60 47 54
TV 40 99 76 53
Table 16 80 60 59
Telephone 44 99 58 82
ToothBrush 43 39 42 85
Toys 20 99 45 67
Trash_Can 21 53 93 81
Webcam 16 40 98 49
"""

DOMAIN_NET_CLASSES = """
The_Eiffel_Tower The_Great_Wall_of_China The_Mona_Lisa aircraft_carrier airplane alarm_clock ambulance angel
animal_migration ant anvil apple arm asparagus axe backpack banana bandage barn baseball baseball_bat basket
basketball bat bathtub beach bear beard bed bee belt bench bicycle binoculars bird birthday_cake blackberry blueberry
book boomerang bottlecap bowtie bracelet brain bread bridge broccoli broom bucket bulldozer bus bush butterfly cactus
cake calculator calendar camel camera camouflage campfire candle cannon canoe car carrot castle cat ceiling_fan
cell_phone cello chair chandelier church circle clarinet clock cloud coffee_cup compass computer cookie cooler couch
cow crab crayon crocodile crown cruise_ship cup diamond dishwasher diving_board dog dolphin donut door dragon dresser
drill drums duck dumbbell ear elbow elephant envelope eraser eye eyeglasses face fan feather fence finger fire_hydrant
fireplace firetruck fish flamingo flashlight flip_flops floor_lamp flower flying_saucer foot fork frog frying_pan
garden garden_hose giraffe goatee golf_club grapes grass guitar hamburger hammer hand harp hat headphones hedgehog
helicopter helmet hexagon hockey_puck hockey_stick horse hospital hot_air_balloon hot_dog hot_tub hourglass house
house_plant hurricane ice_cream jacket jail kangaroo key keyboard knee knife ladder lantern laptop leaf leg light_bulb
lighter lighthouse lightning line lion lipstick lobster lollipop mailbox map marker matches megaphone mermaid
microphone microwave monkey moon mosquito motorbike mountain mouse moustache mouth mug mushroom nail necklace nose
ocean octagon octopus onion oven owl paint_can paintbrush palm_tree panda pants paper_clip parachute parrot passport
peanut pear peas pencil penguin piano pickup_truck picture_frame pig pillow pineapple pizza pliers police_car pond
pool popsicle postcard potato power_outlet purse rabbit raccoon radio rain rainbow rake remote_control rhinoceros
rifle river roller_coaster rollerskates sailboat sandwich saw saxophone school_bus scissors scorpion screwdriver
sea_turtle see_saw shark sheep shoe shorts shovel sink skateboard skull skyscraper sleeping_bag smiley_face snail
snake snorkel snowflake snowman soccer_ball sock speedboat spider spoon spreadsheet square squiggle squirrel stairs
star steak stereo stethoscope stitches stop_sign stove strawberry streetlight string_bean submarine suitcase sun swan
sweater swing_set sword syringe t-shirt table teapot teddy-bear telephone television tennis_racquet tent tiger toaster
toe toilet tooth toothbrush toothpaste tornado tractor traffic_light train tree triangle trombone truck trumpet
umbrella underwear van vase violin washing_machine watermelon waterslide whale wheel windmill wine_bottle wine_glass
wristwatch yoga zebra zigzag
"""
