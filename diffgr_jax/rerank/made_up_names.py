"""What things are called in the made-up shop. A title is brand, colour and thing: `Fenwick navy teapot`."""

# Departments and what they sell; every plural takes an s.
DEPARTMENTS = {
  "Kitchen": ("teapot", "teacup", "kettle", "toaster", "skillet", "ladle", "colander", "apron"),
  "Travel": ("suitcase", "backpack", "umbrella", "travel mug", "passport cover", "rain jacket", "sleeping bag", "tent"),
  "Office": ("notebook", "fountain pen", "desk lamp", "stapler", "pencil case", "bookend", "letter tray", "calendar"),
  "Garden": ("trowel", "watering can", "planter", "rake", "birdhouse", "lantern", "hammock", "hedge trimmer"),
  "Bedroom": ("pillow", "blanket", "duvet", "nightstand", "alarm clock", "bathrobe", "slipper", "curtain"),
  "Sports": ("tennis racket", "yoga mat", "dumbbell", "jump rope", "water bottle", "gym bag", "headband", "helmet"),
}
BRANDS = (
  "Alder", "Brightwell", "Castor", "Dunmore", "Everly", "Fenwick", "Galloway", "Hartley", "Inverness", "Juniper",
  "Kestrel", "Lindqvist", "Marlowe", "Norcross", "Ostrava", "Pemberton", "Quillon", "Ravenna", "Solstice", "Thornbury",
  "Ulverton", "Vireo", "Whitlock", "Yarrow",
)  # fmt: skip
COLOURS = (
  "navy", "crimson", "ivory", "charcoal", "olive", "copper", "lavender", "turquoise", "amber", "silver", "scarlet",
  "emerald", "cream", "indigo", "coral", "slate",
)  # fmt: skip
THINGS = tuple((department, thing) for department, things in DEPARTMENTS.items() for thing in things)
