"""The words and sentences that the tasks are made of."""

#: A haystack without meaning: these sentences, again and again.
NOISE = (
    "The road is long.", "The rain is cold.", "A bird sits on the wall.", "The door was open.", "We walked on.",
    "Nobody was at home.", "The wind came from the sea.", "It was late.", "The lamp was still on.", "They went back.",
)  # fmt: skip

_NOUNS = """
    acorn anchor apple apron arrow atlas autumn badge bakery balcony bamboo banana banner barn barrel basket beach beacon
    beetle bell bench berry blanket blossom bottle bottom bowl branch bread brick bridge broom bucket button cabin cable
    cactus candle canvas carpet carrot castle cedar cellar chain chair chalk cherry chest chimney circus clay clock cloud
    clover coast coat cobalt coffee collar comet compass copper coral corner cotton cradle crane cricket crown crystal
    curtain cushion daisy desert diamond dinner dolphin donkey dragon drawer drum eagle earth easel elbow engine falcon
    farmer feather fence fern ferry fiddle finger flame flute forest fork fossil fountain garden garlic glacier glove goat
    grain granite grape gravel hammer harbor harvest hazel helmet hill hinge honey hotel island ivory jacket jasmine jewel
    jungle kettle kitten knife ladder lagoon lantern laurel leaf lemon letter library lily lizard magnet mango maple marble
    market meadow melon mill mirror mitten monkey moon mountain mushroom napkin needle nest nickel oak oasis ocean olive
    onion orange orchard otter oven owl paddle palace panther paper parrot pasture peach pear pebble pelican pencil pepper
    piano pillow pine pirate planet plum pocket pond poppy prairie puzzle quarry quartz quill rabbit raven ribbon river
    robin rocket rose saddle salmon sandal scarf school shadow shell silver sketch spider spoon spring squirrel stable
    statue stone stove summer sunset swan table teapot temple thistle thunder tiger timber tower tractor trumpet tulip
    tunnel turtle valley velvet village violin wagon walnut water whale willow window winter wolf wool yarn zebra
"""
#: Common nouns: keys, and the lists of words.
NOUNS = tuple(_NOUNS.split())
